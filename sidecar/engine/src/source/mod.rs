//! Reading a disk for a cycle.
//!
//! - [`bits`]: the bitmaps shared with the driver
//! - [`reader`]: the backing, many reads at a time
//! - [`extents`]: where a backing holds data at all
//! - [`preserved`]: what copy-before-write kept

pub mod bits;
pub mod extents;
pub mod preserved;
pub mod reader;
