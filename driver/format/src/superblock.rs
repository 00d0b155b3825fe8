//! The superblock: the first thing read from a protected disk's state directory.
//!
//! Two slots of 4 KiB in the file `super`, written in turn (slot = generation mod 2), so that a
//! torn write leaves the other one whole. The valid slot with the higher generation holds. Every
//! step in the life of the state (open, cut, release, fold back, clean stop) is one slot write.

use serde::{Deserialize, Serialize};

use crate::FormatError;
use crate::wire::{check_crc, check_version, expect};
use backstay_types::units::{ByteLen, CycleNo, DiskId, EpochNo, PointId, Region, SectorRange};

/// Bytes of one slot.
pub const SLOT_BYTES: usize = 4096;
/// Slots in the file.
pub const SLOTS: usize = 2;
/// Most epochs that can be live at once: fuzzy, closed, current, prepared.
pub const LIVE_MAX: usize = 4;
/// Most announced points that are remembered. One is added each time a commit's outcome is not known;
/// all are forgotten with the next release.
pub const ANNOUNCED_MAX: usize = 64;

const WHAT: &str = "superblock";
const MAGIC: &[u8; 8] = b"BSTYSUPR";
const VERSION: u32 = 2;
/// Has one announced point, and is never coarse.
const VERSION_1: u32 = 1;
const CRC_AT: usize = SLOT_BYTES - 4;
const BASE_BYTES: usize = 40;
const ANNOUNCED_AT: usize = 288;

/// Size of a disk and of its regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The disk's size. Need not be a multiple of the sector size.
    pub size: ByteLen,
    /// log2 of the sectors in a region.
    pub region_shift: u8,
}

impl Geometry {
    /// 4 MiB regions.
    pub const REGION_SHIFT_DEFAULT: u8 = 13;
    /// A region is at least one word of the bitmap, so that no word belongs to two regions.
    pub const REGION_SHIFT_MIN: u8 = 6;
    /// Largest disk: 2^50 bytes (1 PiB).
    pub const SIZE_MAX: ByteLen = ByteLen(1 << 50);
    /// Most regions: the largest disk in default regions. Keeps region numbers in 32 bits and the
    /// memory for one bit a region at 32 MiB.
    pub const REGIONS_MAX: u64 = 1 << 28;

    /// A disk of `size` bytes with the default regions.
    #[must_use]
    pub fn of_size(size: ByteLen) -> Self {
        Self { size, region_shift: Self::REGION_SHIFT_DEFAULT }
    }
    /// Sectors of the disk, the last perhaps partial.
    #[must_use]
    pub fn sectors(self) -> u64 {
        SectorRange::whole(self.size).sectors()
    }
    /// Regions of the disk, the last perhaps partial.
    #[must_use]
    pub fn regions(self) -> u32 {
        self.sectors().div_ceil(1 << self.region_shift) as u32
    }
    /// The sectors of one region.
    #[must_use]
    pub fn region_sectors(self, region: Region) -> SectorRange {
        let start = u64::from(region.0) << self.region_shift;
        SectorRange::new(start, (start + (1 << self.region_shift)).min(self.sectors()).max(start))
    }
    /// The same disk with another size.
    ///
    /// # Errors
    /// If a disk cannot have it.
    pub fn with_size(self, size: ByteLen) -> Result<Self, FormatError> {
        Self { size, ..self }.check()
    }
    fn check(self) -> Result<Self, FormatError> {
        let bounds = |field, value| Err(FormatError::Bounds { what: WHAT, field, value });
        if self.size.0 == 0 || self.size > Self::SIZE_MAX {
            return bounds("size_bytes", self.size.0);
        }
        if !(Self::REGION_SHIFT_MIN..=20).contains(&self.region_shift) {
            return bounds("region_shift", self.region_shift.into());
        }
        let regions = self.sectors().div_ceil(1 << self.region_shift);
        if regions > Self::REGIONS_MAX {
            return bounds("regions", regions);
        }
        Ok(self)
    }
}

/// The recovery point that the dirty set is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The disk's identity in the vault that holds the point.
    pub vault_disk: DiskId,
    /// Its cycle.
    pub cycle: CycleNo,
    /// Its identity.
    pub point: PointId,
}

/// Why every sector of a disk must be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Resync {
    /// Nothing was ever shipped.
    NeverShipped = 1,
    /// The change log was damaged, so what it tracked is not known.
    ChangeLogDamaged = 2,
    /// The state directory could not be written, so what was tracked may not be all.
    StateUnwritable = 3,
    /// The backing was changed while no driver watched it.
    BackingChanged = 4,
    /// There was no memory for the bitmap.
    NoMemory = 5,
    /// The sidecar asked for it (the vault's points do not fit the disk's).
    Asked = 6,
    /// The machine went down, and nothing outside the state directory shows that everything was
    /// tracked until then.
    Unproven = 7,
}

impl Resync {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::NeverShipped,
            2 => Self::ChangeLogDamaged,
            3 => Self::StateUnwritable,
            4 => Self::BackingChanged,
            5 => Self::NoMemory,
            6 => Self::Asked,
            7 => Self::Unproven,
            _ => return None,
        })
    }

    /// The reason in words, for a person.
    #[must_use]
    pub fn explain(self) -> &'static str {
        match self {
            Self::NeverShipped => "the disk was never shipped to a vault",
            Self::ChangeLogDamaged => "the change log was damaged",
            Self::StateUnwritable => "the state directory could not be written",
            Self::BackingChanged => {
                "the backing was changed behind the driver's back, or may have been"
            }
            Self::NoMemory => "there was no memory for the dirty bitmap",
            Self::Asked => "the vault's newest point is not the one this disk was tracked from",
            Self::Unproven => {
                "the machine went down, and nothing outside the state directory shows that all \
                 changes were tracked until then"
            }
        }
    }
}

/// What a clean stop saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CleanStop {
    /// CRC-32C of the whole saved-bitmap file.
    pub bitmap_crc: u32,
    /// Its length in bytes.
    pub bitmap_len: u64,
    /// The backing file's modification time then, nanoseconds since 1970; 0 for a device.
    pub backing_mtime_ns: u64,
    /// CRC-32C of the backing's fingerprint, which was saved with it; 0 if none was.
    pub fingerprint_crc: u32,
}

/// Which file or device a backing is: a digest of what stays the same when it is opened again and
/// is different for another one, never of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackingId(pub [u8; 16]);

/// One generation of the superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Counts the writes of the superblock.
    pub generation: u64,
    /// The disk's identity.
    pub disk: DiskId,
    /// Its size and regions.
    pub geometry: Geometry,
    /// The kernel's boot id when the state was opened.
    pub boot_id: [u8; 16],
    /// Set by a clean stop, cleared (by a new generation) before the first write after it.
    pub clean: Option<CleanStop>,
    /// Epochs whose bitmaps and intents together are the dirty set. Oldest first, at most
    /// [`LIVE_MAX`].
    pub live: Vec<EpochNo>,
    /// If set, every sector counts as dirty, whatever the epochs say.
    pub resync: Option<Resync>,
    /// The recovery point the dirty set is counted from; none before the first.
    pub base: Option<Base>,
    /// The recovery points that sidecars were about to commit since the base, oldest first, at most
    /// [`ANNOUNCED_MAX`]. If the vault has one of them, the dirty set may be counted from it as well:
    /// it only holds more than it must.
    pub announced: Vec<Base>,
    /// The dirty set holds whole regions of which only the intents are known: most of their sectors
    /// may be as they were at the base.
    pub coarse: bool,
    /// Counts the reasons for a resync as they come up, so that a resync that was interrupted
    /// knows whether what it had compared still holds.
    pub resync_no: u64,
    /// The size the disk is about to get: set before the backing is extended, cleared by the
    /// generation that has the new size. Larger than the size of `geometry`.
    pub growing_to: Option<ByteLen>,
    /// The backing the dirty set belongs to, if it can be told from others.
    pub backing: Option<BackingId>,
}

impl Superblock {
    /// The slot this generation is written to.
    #[must_use]
    pub fn slot(&self) -> usize {
        (self.generation % SLOTS as u64) as usize
    }

    /// The bytes of a slot.
    #[must_use]
    pub fn encode(&self) -> [u8; SLOT_BYTES] {
        assert!(self.live.len() <= LIVE_MAX && self.announced.len() <= ANNOUNCED_MAX);
        let mut out = [0u8; SLOT_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &[self.geometry.region_shift]);
        put(13, &[self.resync.map_or(0, |r| r as u8)]);
        put(14, &[u8::from(self.clean.is_some())]);
        put(15, &[self.live.len() as u8]);
        put(16, &self.generation.to_le_bytes());
        put(24, &self.geometry.size.0.to_le_bytes());
        put(32, &self.disk.to_bytes());
        put(48, &self.boot_id);
        for (i, epoch) in self.live.iter().enumerate() {
            put(64 + 8 * i, &epoch.0.to_le_bytes());
        }
        if let Some(clean) = self.clean {
            put(96, &clean.bitmap_len.to_le_bytes());
            put(104, &clean.backing_mtime_ns.to_le_bytes());
            put(112, &clean.bitmap_crc.to_le_bytes());
            put(116, &clean.fingerprint_crc.to_le_bytes());
        }
        let mut put_base = |at: usize, base: &Base| {
            put(at, &base.vault_disk.to_bytes());
            put(at + 16, &base.point.to_bytes());
            put(at + 32, &base.cycle.0.to_le_bytes());
        };
        if let Some(base) = &self.base {
            put_base(128, base);
        }
        for (i, announced) in self.announced.iter().enumerate() {
            put_base(ANNOUNCED_AT + BASE_BYTES * i, announced);
        }
        put(168, &self.resync_no.to_le_bytes());
        put(256, &self.growing_to.map_or(0, |size| size.0).to_le_bytes());
        put(264, &self.backing.map_or([0; 16], |id| id.0));
        put(280, &[self.announced.len() as u8, u8::from(self.coarse)]);
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads one slot.
    ///
    /// # Errors
    /// Anything but a whole superblock of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let f = expect(WHAT, bytes, SLOT_BYTES, MAGIC)?;
        check_crc(WHAT, &f.0[..CRC_AT], f.u32(CRC_AT))?;
        let version = f.u32(8);
        if version != VERSION_1 {
            check_version(WHAT, version, VERSION)?;
        }
        let bounds = |field, value: u64| FormatError::Bounds { what: WHAT, field, value };
        let geometry = Geometry { size: ByteLen(f.u64(24)), region_shift: f.0[12] }.check()?;
        let resync = match f.0[13] {
            0 => None,
            code => Some(Resync::from_code(code).ok_or(bounds("resync", code.into()))?),
        };
        let count = usize::from(f.0[15]);
        if count > LIVE_MAX {
            return Err(bounds("live epochs", count as u64));
        }
        let live = (0..count).map(|i| EpochNo(f.u64(64 + 8 * i))).collect();
        let clean = match f.0[14] {
            0 => None,
            1 => Some(CleanStop {
                bitmap_len: f.u64(96),
                backing_mtime_ns: f.u64(104),
                bitmap_crc: f.u32(112),
                fingerprint_crc: f.u32(116),
            }),
            other => return Err(bounds("clean", other.into())),
        };
        let base_at = |at: usize| {
            (f.u64(at + 32) != 0).then(|| Base {
                vault_disk: DiskId::from_bytes(f.array(at)),
                point: PointId::from_bytes(f.array(at + 16)),
                cycle: CycleNo(f.u64(at + 32)),
            })
        };
        let growing_to = match f.u64(256) {
            0 => None,
            size if size <= geometry.size.0 => return Err(bounds("growing_to", size)),
            size => Some(geometry.with_size(ByteLen(size))?.size),
        };
        let backing = Some(BackingId(f.array(264))).filter(|id| id.0 != [0; 16]);
        let (announced, coarse) = match (version, f.0[280], f.0[281]) {
            (VERSION_1, ..) => (base_at(176).into_iter().collect(), false),
            (_, count, _) if usize::from(count) > ANNOUNCED_MAX => {
                return Err(bounds("announced points", count.into()));
            }
            (_, _, coarse) if coarse > 1 => return Err(bounds("coarse", coarse.into())),
            (_, count, coarse) => {
                let all = (0..usize::from(count)).map(|i| base_at(ANNOUNCED_AT + BASE_BYTES * i));
                let all: Option<Vec<Base>> = all.collect();
                (all.ok_or(bounds("announced cycle", 0))?, coarse == 1)
            }
        };
        Ok(Self {
            generation: f.u64(16),
            disk: DiskId::from_bytes(f.array(32)),
            geometry,
            boot_id: f.array(48),
            clean,
            live,
            resync,
            base: base_at(128),
            announced,
            coarse,
            resync_no: f.u64(168),
            growing_to,
            backing,
        })
    }

    /// The newest whole superblock of a file's bytes.
    ///
    /// # Errors
    /// If no slot is whole: the error of the slot that came closest.
    pub fn newest(file: &[u8]) -> Result<Self, FormatError> {
        let slot = |n: usize| Self::decode(file.get(n * SLOT_BYTES..).unwrap_or_default());
        match (slot(0), slot(1)) {
            (Ok(a), Ok(b)) => Ok(if a.generation > b.generation { a } else { b }),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
            (Err(a), Err(b)) => {
                // An all-zero slot was never written: what is wrong with the other says more.
                Err(if matches!(a, FormatError::Magic { .. }) { b } else { a })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample(generation: u64) -> Superblock {
        Superblock {
            generation,
            disk: DiskId::from_bytes([7; 16]),
            geometry: Geometry::of_size(ByteLen(1 << 30)),
            boot_id: [9; 16],
            clean: Some(CleanStop {
                bitmap_crc: 5,
                bitmap_len: 4096,
                backing_mtime_ns: 77,
                fingerprint_crc: 8,
            }),
            live: vec![EpochNo(4), EpochNo(5)],
            resync: Some(Resync::BackingChanged),
            base: Some(Base {
                vault_disk: DiskId::from_bytes([1; 16]),
                cycle: CycleNo(3),
                point: PointId::from_bytes([2; 16]),
            }),
            announced: vec![Base {
                vault_disk: DiskId::from_bytes([1; 16]),
                cycle: CycleNo(4),
                point: PointId::from_bytes([3; 16]),
            }],
            coarse: true,
            resync_no: 6,
            growing_to: Some(ByteLen(3 << 30)),
            backing: Some(BackingId([6; 16])),
        }
    }

    #[test]
    fn round_trip() {
        let one = sample(12);
        assert_eq!(Superblock::decode(&one.encode()).unwrap(), one);
    }

    #[test]
    fn every_flipped_byte_is_seen() {
        let bytes = sample(12).encode();
        for at in 0..SLOT_BYTES {
            let mut bad = bytes;
            bad[at] ^= 0x40;
            assert!(Superblock::decode(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn torn_slot_leaves_the_other() {
        let (old, new) = (sample(12), sample(13));
        let mut file = vec![0u8; SLOT_BYTES * SLOTS];
        file[..SLOT_BYTES].copy_from_slice(&old.encode());
        file[SLOT_BYTES..].copy_from_slice(&new.encode());
        assert_eq!(Superblock::newest(&file).unwrap(), new);
        file[SLOT_BYTES + 600] ^= 1;
        assert_eq!(Superblock::newest(&file).unwrap(), old);
    }
}
