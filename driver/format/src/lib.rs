//! The bytes of the driver's own state.
//!
//! Nothing here does I/O. Each format is one struct with its size, version, checksum and bounds
//! check beside it; `docs/explanation/format.md` describes the same bytes field by field.
//!
//! - [`superblock`]: what a protected disk's state directory says about itself
//! - [`intents`]: the change log's write intents, one bit a region
//! - [`preserved`]: the change log's preserved blocks (copy-before-write)
//! - [`mark`]: what stands on the backing itself, in case the state directory dies
//! - [`bitmap`]: the header of the shared bitmaps
//! - [`fingerprint`]: what tells whether a backing was written while nobody served it
//! - [`framing`]: messages on a stream, whatever they say
//! - [`control`]: the messages between sidecar and driver
//! - [`unfinished`]: the mark of a block device that a restore has not finished
//!
//! ```
//! use backstay_format::superblock::Geometry;
//! use backstay_types::units::ByteLen;
//!
//! let disk = Geometry::of_size(ByteLen(1 << 30));
//! assert_eq!((disk.sectors(), disk.regions()), (1 << 21, 256));
//! ```

pub mod asked;
pub mod bitmap;
pub mod control;
pub mod error;
pub mod fingerprint;
pub mod framing;
pub mod intents;
pub mod mark;
pub mod preserved;
pub mod superblock;
pub mod unfinished;
mod wire;

pub use error::FormatError;
