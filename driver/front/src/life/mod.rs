//! The life of a driver process: lock, open, mount, serve, stop.

mod daemon;
mod harden;
pub mod hung;
mod memory;
mod serve;
mod traces;

pub use daemon::{Outcome, in_background};
pub use serve::{DriverError, DriverOptions, lock_disk, run, run_with};
pub use traces::Traces;
