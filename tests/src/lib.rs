//! What whole-system tests share.
//!
//! - [`crash`]: a recorder for every I/O of the driver, and every state a crash could leave of it
//! - [`harness`]: real disks, loop devices, file systems and the `backstay` command

pub mod crash;
pub mod harness;
