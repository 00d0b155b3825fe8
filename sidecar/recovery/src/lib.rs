//! What recovery points are for.
//!
//! - [`mount`]: a point served as a protected disk at once; its blocks come when they are read
//! - [`replica`]: a file or device that follows the vault, always a whole point or on the way to one
//! - [`failover`]: to another host and back: states, terms, handover, commit
//! - [`host`]: the disks of this host, how they are served and by whom used
//! - [`plan`]: many disks and scripts in order
//! - [`drill`]: points that were tried
//! - [`restore`]: points to files and block devices
//! - [`image`]: points as raw and qcow2 images, and back
//!
//! Choosing a point as people name it:
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
