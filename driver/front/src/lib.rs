//! The driver: a process that serves one protected disk as a file, tracks its writes, and answers
//! requests on a control socket.
//!
//! - [`paths`]: where a disk's state, sockets and mount are
//! - [`backing`]: opening, reading and writing the backing file or device
//! - [`fuse`]: the file system with the file `disk`
//! - [`control`]: the control socket: the server in the driver, the client for the sidecar and the CLI
//! - [`life`]: start, hardening, signals, stop
//! - [`offline`]: moving and renaming a disk that no driver serves
//!
//! Asking a disk's driver for its status:
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
