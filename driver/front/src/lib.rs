//! The driver: one process that serves one protected disk as a file, tracks what is written to
//! it, and answers its control socket.
//!
//! - [`paths`]: where a disk's state, sockets and mount are
//! - [`backing`]: files and devices, and the ways to read and write them
//! - [`fuse`]: the file `disk`, in front of the tracking
//! - [`control`]: the socket: server in the driver, client for the sidecar and the command
//! - [`life`]: start, hardening, signals, stop
//! - [`offline`]: moving and renaming a disk that nobody serves
//!
//! Asking the driver of a disk how it is:
//!
//! ```no_run
//! use backstay_front::control::ControlClient;
//!
//! let socket = std::path::Path::new("/run/backstay/db/control.sock");
//! let status = ControlClient::connect(socket)?.status()?;
//! println!("{} has {} bytes and is served as {}", status.name, status.size.0, status.served.display());
//! # Ok::<(), backstay_front::control::ClientError>(())
//! ```

pub mod backing;
pub mod control;
pub mod fuse;
pub mod life;
pub mod offline;
pub mod paths;
