//! Crash states: record every write, sync and bitmap store of a driver, then rebuild what a kill
//! or a power loss at any point could have left, recover it, and look for lost writes.
//!
//! - [`state`]: the machine as it is: files, names, shared bits, the backing
//! - [`recorder`]: the driver's seams, keeping a machine and the log of what was done to it
//! - [`rebuild`]: what a crash after any step of a log can leave
//! - [`workload`]: seeded guests and cycles, with an oracle of what must be true
//! - [`check`]: recovers a state and compares

pub mod check;
pub mod rebuild;
pub mod recorder;
pub mod state;
pub mod workload;
