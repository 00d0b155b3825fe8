//! The host: the one room through which every crate meets the machine it runs on.
//!
//! Each mechanism stands here once, so that it can be mended in one place, and so that a simulated
//! host can take its place:
//!
//! - [`clock`]: the wall clock, the monotonic clock, sleeping
//! - [`alarm`]: saying something although the disk with the logs is dead
//! - [`atomic`]: replacing a file as a whole
//! - [`record`]: small JSON records in files
//! - [`own_dir`]: folders that belong to us and to nobody else
//! - [`lock`]: locks on files, with a bounded wait
//! - [`child`]: commands with a time limit
//! - [`mod@doing`]: what another process is doing
//! - [`kill_point`]: where tests kill a process
//! - [`mounts`]: the table of mounts
//! - [`loop_device`]: loop devices
//! - [`fuse_connection`]: FUSE file systems, as the kernel sees them
//! - [`stack`]: what a file or block device finally stands on
//! - [`claim`]: bytes that one driver of this host has for itself
//! - [`in_use`]: who uses a file or device
//! - [`stamp`]: whether a file is still the one that was read
//!
//! ```
//! use backstay_host::atomic::{self, Durability};
//!
//! let file = std::env::temp_dir().join(format!("backstay-example-{}", std::process::id()));
//! // Anyone who reads it sees the old content or the new one, never a part.
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
