//! Everything that uses recovery points.
//!
//! - [`mount`]: a point served as a protected disk at once; its blocks are fetched when they are read
//! - [`replica`]: a file or device that follows the vault, always a whole point or on the way to one
//! - [`failover`]: moving a disk to another host and back: states, terms, handover, commit
//! - [`host`]: the disks of this host: how they are served and who uses them
//! - [`plan`]: many disks and scripts in order
//! - [`drill`]: trying points, with a verdict
//! - [`restore`]: points to files and block devices
//! - [`image`]: points as raw and qcow2 images, and back
//!
//! A user names a point in one of three ways:
//!
//! ```
//! use backstay_recovery::mount::PointChoice;
//!
//! assert!(matches!("latest".parse(), Ok(PointChoice::Latest)));
//! assert!(matches!("17".parse(), Ok(PointChoice::Cycle(cycle)) if cycle.0 == 17));
//! assert!(matches!("2026-02-03T04:05:06Z".parse(), Ok(PointChoice::Until(_))));
//! ```

pub mod drill;
pub mod failover;
pub mod host;
pub mod image;
pub mod mount;
pub mod plan;
pub mod replica;
pub mod restore;
pub mod run;
