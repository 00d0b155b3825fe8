//! The driver: one process that serves one protected disk as a file, tracks what is written to
//! it, and answers its control socket.
//!
//! - [`paths`]: where a disk's state, sockets and mount are
//! - [`backing`]: files and devices, and the ways to read and write them
//! - [`fuse`]: the file `disk`, in front of the tracking
//! - [`control`]: the socket: server in the driver, client for the sidecar and the command
//! - [`life`]: start, hardening, signals, stop
//! - [`offline`]: moving and renaming a disk that nobody serves

pub mod backing;
pub mod control;
pub mod fuse;
pub mod life;
pub mod offline;
pub mod paths;
