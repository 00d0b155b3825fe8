//! What whole-system tests share.
//!
//! - [`crash`]: a recorder for every I/O of the driver, and every state a crash could leave of it

pub mod crash;
