//! Application-consistent points: what runs around a cut, and why nothing stays frozen.
//!
//! FIFREEZE outlives the process that asked for it, so nothing here is left to the sidecar's own life: a
//! process of its own, the guardian, does the work and undoes it when the sidecar is gone.
//! `docs/reference/hooks.md` says what happens when which of them fails.
//!
//! - [`settings`]: what a person asks for
//! - [`plan`]: what a guardian is told, and the file that outlives it
//! - [`command`]: one command line, with its time-out
//! - [`freeze`]: file systems: which may be frozen, freezing, thawing
//! - [`guardian`]: the process, in one straight line
//! - [`quiesce`]: the sidecar's side of it
//! - `withheld`: what the programs we start are not told
//! - [`mod@mend`]: thaws what a guardian that was killed has left

pub mod command;
pub mod freeze;
pub mod guardian;
pub mod lines;
pub mod mend;
pub mod plan;
pub mod quiesce;
pub mod settings;
mod withheld;

pub use mend::mend;
pub use quiesce::{Hooks, Quiesced};
pub use settings::HookSettings;
pub use withheld::withhold;
