//! Recovery plans: many disks, machines and scripts in order.
//!
//! - [`parse`]: the plan as people write it
//! - [`state`]: what is known of a run
//! - [`run`]: running it, going on with it, taking it down; what it does to disks is behind
//!   [`run::Executor`]
//! - [`host`]: that on this host, by the failovers of this library
//! - [`report`]: what a run did
//!
//! How plans are written and run: docs/reference/plans.md.

pub mod host;
pub mod parse;
pub mod report;
pub mod run;
#[cfg(test)]
mod run_tests;
pub mod state;

pub use host::HostExecutor;
pub use parse::{Action, Group, Kind, Machine, Plan, PlanError, Step};
pub use report::Report;
pub use run::{Answer, Executor, RunError};
pub use state::{Chosen, Run, RunFolder, RunState, Up};
