//! The mark of a file or device that holds only a part of a disk.
//!
//! A restore, a replica (also that of a failback) or a move writes it into the first bytes of the device before anything else, and replaces it by the
//! true ones after everything else. So a device that bears it must not be used, on whatever host it is
//! found; and one whose first bytes somebody has written since is somebody's new data.

use crate::FormatError;
use crate::wire::{check_crc, check_version, expect};
use backstay_types::DiskName;
use backstay_types::units::{ByteLen, CycleNo, DiskId, PointId};

/// Bytes of the mark: the smallest block that any device writes as a whole.
pub const MARK_BYTES: usize = 512;

const WHAT: &str = "mark of an unfinished restore";
const MAGIC: &[u8; 8] = b"BSTYHALF";
const VERSION: u32 = 1;
const NAME_AT: usize = 72;
const TEXT_AT: usize = NAME_AT + DiskName::LEN_MAX;
const CRC_AT: usize = MARK_BYTES - 4;
/// For anyone who looks at the device without us.
const TEXT: &[u8] =
    b"\nThis device holds an unfinished restore of Backstay. Its content is not a disk. \
Run the restore again, or overwrite the device.\n";

/// Who was writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// A restore.
    Restore,
    /// A replica, or a failback, which brings one to the newest point.
    Replica,
    /// A move of a disk to another backing. The mark names no point.
    Move,
    /// A writer of a later version.
    Other(u32),
}

impl Writer {
    fn code(self) -> u32 {
        match self {
            Self::Restore => 0,
            Self::Replica => 1,
            Self::Move => 2,
            Self::Other(code) => code,
        }
    }

    fn of(code: u32) -> Self {
        match code {
            0 => Self::Restore,
            1 => Self::Replica,
            2 => Self::Move,
            code => Self::Other(code),
        }
    }
}

/// Which recovery point was being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedRestore {
    /// By whom.
    pub writer: Writer,
    /// The disk.
    pub disk: DiskId,
    /// Its name in the vault.
    pub name: DiskName,
    /// The point's cycle.
    pub cycle: CycleNo,
    /// The point.
    pub point: PointId,
    /// The point's size.
    pub size: ByteLen,
    /// When it began, nanoseconds since 1970.
    pub started_unix_ns: u64,
}

impl UnfinishedRestore {
    /// The mark's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; MARK_BYTES] {
        let mut out = [0u8; MARK_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.writer.code().to_le_bytes());
        out[16..32].copy_from_slice(&self.disk.to_bytes());
        out[32..48].copy_from_slice(&self.point.to_bytes());
        out[48..56].copy_from_slice(&self.cycle.0.to_le_bytes());
        out[56..64].copy_from_slice(&self.size.0.to_le_bytes());
        out[64..72].copy_from_slice(&self.started_unix_ns.to_le_bytes());
        let name = self.name.as_str().as_bytes();
        out[NAME_AT..NAME_AT + name.len()].copy_from_slice(name);
        out[TEXT_AT..TEXT_AT + TEXT.len()].copy_from_slice(TEXT);
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Whether these bytes begin as a mark does. One that is damaged is still no disk.
    #[must_use]
    pub fn is_mark(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// Reads a mark.
    ///
    /// # Errors
    /// Anything but a whole mark of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let f = expect(WHAT, bytes, MARK_BYTES, MAGIC)?;
        check_crc(WHAT, &f.0[..CRC_AT], f.u32(CRC_AT))?;
        check_version(WHAT, f.u32(8), VERSION)?;
        let name: [u8; DiskName::LEN_MAX] = f.array(NAME_AT);
        let len = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        let name = std::str::from_utf8(&name[..len]).ok().and_then(|text| text.parse().ok());
        let name =
            name.ok_or(FormatError::Bounds { what: WHAT, field: "name", value: len as u64 })?;
        Ok(Self {
            writer: Writer::of(f.u32(12)),
            disk: DiskId::from_bytes(f.array(16)),
            name,
            cycle: CycleNo(f.u64(48)),
            point: PointId::from_bytes(f.array(32)),
            size: ByteLen(f.u64(56)),
            started_unix_ns: f.u64(64),
        })
    }
}

const _: () = assert!(TEXT_AT + TEXT.len() <= CRC_AT);
