//! The fingerprint of a backing at a clean stop: what tells whether it was written while nobody served it.
//!
//! It cannot tell everything. A file's times and a device's write counters are exact as far as they reach; a
//! digest of samples of the content only sees what a sample lies in.

use crate::FormatError;
use crate::wire::{check_crc, check_version, expect};
use backstay_types::ByteLen;

/// Bytes of the file.
pub const FINGERPRINT_BYTES: usize = 4096;

const WHAT: &str = "fingerprint";
const MAGIC: &[u8; 8] = b"BSTYFPRT";
const VERSION: u32 = 1;
const CRC_AT: usize = FINGERPRINT_BYTES - 4;

/// What a backing was like at a clean stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// Bytes of it that the samples are of.
    pub size: ByteLen,
    /// When a file's inode was changed last (ctime), nanoseconds since 1970; 0 for a device.
    pub changed_ns: u64,
    /// When the file under a loop device was written last (mtime), nanoseconds since 1970; 0 if there is none.
    pub below_written_ns: u64,
    /// The boot that the counters are of.
    pub boot_id: [u8; 16],
    /// What the kernel counted of a device, if it counts.
    pub counters: Option<WriteCounters>,
    /// BLAKE3 of samples of the content (see docs/explanation/format.md).
    pub samples: [u8; 32],
}

/// What the kernel counted of a device since it was attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteCounters {
    /// Numbers attachments of devices in this boot (`diskseq` in sysfs). Never 0.
    pub diskseq: u64,
    /// Writes that were done.
    pub writes: u64,
    /// Sectors written.
    pub written_sectors: u64,
    /// Discards that were done.
    pub discards: u64,
    /// Sectors discarded.
    pub discarded_sectors: u64,
}

impl Fingerprint {
    /// What shows that a backing was changed since `self`; `now` is what it is like now, and `grown` says that
    /// it has more bytes than then, which writes to the file under a loop device.
    #[must_use]
    pub fn difference(&self, now: &Self, grown: bool) -> Option<&'static str> {
        let both_differ = |a: u64, b: u64| a != 0 && b != 0 && a != b;
        if self.size != now.size {
            return Some("its size is another one");
        }
        if both_differ(self.changed_ns, now.changed_ns) {
            return Some("the time of its last change is another one");
        }
        if !grown && both_differ(self.below_written_ns, now.below_written_ns) {
            return Some("the file under it was written");
        }
        if let (Some(was), Some(is)) = (self.counters, now.counters)
            && self.boot_id == now.boot_id
            && was.diskseq == is.diskseq
            && was != is
        {
            return Some("the kernel counted writes to it");
        }
        (self.samples != now.samples).then_some("samples of its content are different")
    }

    /// The bytes of the file.
    #[must_use]
    pub fn encode(&self) -> [u8; FINGERPRINT_BYTES] {
        let mut out = [0u8; FINGERPRINT_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, &self.size.0.to_le_bytes());
        put(24, &self.changed_ns.to_le_bytes());
        put(32, &self.below_written_ns.to_le_bytes());
        put(40, &self.boot_id);
        if let Some(counters) = self.counters {
            put(56, &counters.diskseq.to_le_bytes());
            put(64, &counters.writes.to_le_bytes());
            put(72, &counters.written_sectors.to_le_bytes());
            put(80, &counters.discards.to_le_bytes());
            put(88, &counters.discarded_sectors.to_le_bytes());
        }
        put(96, &self.samples);
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the file.
    ///
    /// # Errors
    /// Anything but a whole fingerprint of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let f = expect(WHAT, bytes, FINGERPRINT_BYTES, MAGIC)?;
        check_crc(WHAT, &f.0[..CRC_AT], f.u32(CRC_AT))?;
        check_version(WHAT, f.u32(8), VERSION)?;
        let counters = (f.u64(56) != 0).then(|| WriteCounters {
            diskseq: f.u64(56),
            writes: f.u64(64),
            written_sectors: f.u64(72),
            discards: f.u64(80),
            discarded_sectors: f.u64(88),
        });
        Ok(Self {
            size: ByteLen(f.u64(16)),
            changed_ns: f.u64(24),
            below_written_ns: f.u64(32),
            boot_id: f.array(40),
            counters,
            samples: f.array(96),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sign_of_a_change_counts_and_only_in_its_boot() {
        let counters = WriteCounters {
            diskseq: 7,
            writes: 100,
            written_sectors: 800,
            discards: 0,
            discarded_sectors: 0,
        };
        let was = Fingerprint {
            size: ByteLen(1 << 20),
            changed_ns: 5,
            below_written_ns: 6,
            boot_id: [1; 16],
            counters: Some(counters),
            samples: [9; 32],
        };
        assert_eq!(was.difference(&was, false), None);
        let more = Some(WriteCounters { writes: 101, ..counters });
        let another = Some(WriteCounters { writes: 1, diskseq: 8, ..counters });
        let changed = [
            Fingerprint { size: ByteLen(2 << 20), ..was },
            Fingerprint { changed_ns: 6, ..was },
            Fingerprint { below_written_ns: 7, ..was },
            Fingerprint { counters: more, ..was },
            Fingerprint { samples: [8; 32], ..was },
        ];
        assert!(changed.iter().all(|now| was.difference(now, false).is_some()));
        assert_eq!(was.difference(&changed[2], true), None, "it was extended");
        assert!(was.difference(&changed[3], true).is_some());
        let same = [
            Fingerprint { counters: more, boot_id: [2; 16], ..was },
            Fingerprint { counters: another, ..was },
            Fingerprint { counters: None, changed_ns: 0, ..was },
        ];
        assert!(same.iter().all(|now| was.difference(now, false).is_none()));
    }
}
