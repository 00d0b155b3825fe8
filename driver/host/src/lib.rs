//! The host: the only crate that uses the clock, processes, locks and mounts of the machine directly.
//!
//! Each mechanism is implemented once, so that a bug is fixed in one place, and so that tests can replace
//! the host with a simulation.
//!
//! - [`clock`]: the wall clock, the monotonic clock, sleeping
//! - [`alarm`]: a message to the kernel log and to syslog, for when the disk with the logs has failed
//! - [`atomic`]: replacing a file atomically
//! - [`record`]: small JSON records in files
//! - [`own_dir`]: private folders: owned by us, closed to others
//! - [`lock`]: file locks with a bounded wait
//! - [`child`]: commands with a time limit
//! - [`mod@doing`]: what another process is doing
//! - [`kill_point`]: places where tests kill a process
//! - [`mounts`]: the mount table
//! - [`loop_device`]: loop devices
//! - [`fuse_connection`]: FUSE connections in the kernel
//! - [`stack`]: the devices below a file or block device
//! - [`claim`]: exclusive use of a backing by one driver of this host
//! - [`in_use`]: who uses a file or device
//! - [`stamp`]: whether a file has changed since it was read
//!
//! ```
//! use backstay_host::atomic::{self, Durability};
//!
//! let file = std::env::temp_dir().join(format!("backstay-example-{}", std::process::id()));
//! // A reader sees the old content or the new content, never a part.
//! atomic::replace(&file, b"all of it", Durability::Durable)?;
//! assert_eq!(std::fs::read(&file)?, b"all of it");
//! std::fs::remove_file(&file)?;
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod alarm;
pub mod atomic;
pub mod child;
pub mod claim;
pub mod clock;
pub mod doing;
pub mod fuse_connection;
pub mod in_use;
pub mod kill_point;
pub mod lock;
pub mod loop_device;
pub mod mounts;
pub mod own_dir;
pub mod record;
pub mod stack;
pub mod stamp;
