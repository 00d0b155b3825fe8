//! Real disks for tests: folders, the `backstay` command, loop devices, mounts, stamped writers.
//!
//! These tests need root, /dev/fuse and loop devices, and fail loudly without. Everything a test
//! made is taken down when its [`Host`] is dropped, also after a panic, and only what it made.

pub mod acked;
pub mod backend;
pub mod command;
pub mod forward;
pub mod gateway;
pub mod guest;
pub mod host;
pub mod https;
pub mod lab;
pub mod metrics;
pub mod netns;
pub mod ordered;
pub mod pair;
pub mod pki;
pub mod postgres;
pub mod proxy;
pub mod sealed;
pub mod seed;
pub mod service;
pub mod stamp;
pub mod store;
mod vaults;

pub use command::{must, run};
pub use host::{Disk, FsMount, Host};
