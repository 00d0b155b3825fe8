//! What recovery points are for.
//!
//! - [`lazy`]: a point served as a protected disk at once; its blocks come when they are read
//! - [`replica`]: a file or device that follows the vault, always a whole point or on the way to one
//! - [`failover`]: to another host and back: states, terms, handover, commit
//! - [`plan`]: many disks and scripts in order
//! - [`drill`]: points that were tried
//! - [`restore`]: points to files and block devices
//! - [`image`]: points as raw and qcow2 images, and back

pub mod drill;
pub mod failover;
pub mod image;
pub mod lazy;
pub mod plan;
pub mod replica;
pub mod restore;
pub mod run;
