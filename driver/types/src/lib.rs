//! The words that every crate shares: units, identities and names. No I/O, no formats.
//!
//! - [`units`]: sectors, byte offsets, cycles, epochs, terms, and the identities of disks and points
//! - [`name`]: names of disks, safe in paths and object keys
//! - [`class`]: what to do about an error
//!
//! ```
//! use backstay_types::DiskName;
//! use backstay_types::units::{ByteLen, SectorRange};
//!
//! let name: DiskName = "db-1".parse()?;
//! assert_eq!(name.as_str(), "db-1");
//! assert!("../etc".parse::<DiskName>().is_err());
//! assert_eq!(SectorRange::whole(ByteLen(1 << 20)).sectors(), 2048);
//! # Ok::<(), backstay_types::name::NameError>(())
//! ```

pub mod class;
pub mod name;
pub mod units;

pub use class::{Class, Classified};
pub use name::{DiskName, NameError};
pub use units::{
    ByteLen, ByteOffset, CycleNo, DiskId, EpochNo, PointId, Region, SECTOR_BYTES, Sector,
    SectorRange, Term,
};
