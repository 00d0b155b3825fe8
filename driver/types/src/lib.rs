//! The words that every crate shares: units, identities and names. No I/O, no formats.
//!
//! - [`units`]: sectors, byte offsets, cycles, epochs, terms, and the identities of disks and points
//! - [`name`]: names of disks, safe in paths and object keys

pub mod name;
pub mod units;

pub use name::{DiskName, NameError};
pub use units::{
    ByteLen, ByteOffset, CycleNo, DiskId, EpochNo, PointId, Region, SECTOR_BYTES, Sector,
    SectorRange, Term,
};
