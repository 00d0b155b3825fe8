//! Change tracking: the layer between a guest's write and the backing.
//!
//! A [`ProtectedDisk`] gives three guarantees:
//!
//! - Before a write reaches the backing, its region has a durable intent and its sectors are marked
//!   dirty (I1).
//! - A cut ends an epoch at one instant. Copy-before-write keeps the content of that instant readable
//!   while a cycle ships it (I2).
//! - A failure of tracking never becomes a failure of the guest's I/O (I4).
//!
//! All I/O goes through two traits: [`env::Env`] for the tracking state and [`Backing`] for the disk's
//! bytes. Tests replace both to record, fail and replay every step.
//!
//! Reading order: [`mod@env`], `bitmap`, `intents`, `epoch`, `closed` (copy-before-write), `disk` (the
//! write path), `prepare` and `cut` (the life of a cycle), `hold` (cuts held for a group), `grow`,
//! `recover` (after any kind of stop), `rebind` (a disk moved to another backing), `witness` (the state
//! directory fails).
//!
//! Lock order:
//!
//! 1. `admin` serializes control operations.
//! 2. `gate`: a write holds it shared from its checks until it is done. A cut holds it exclusively
//!    while it swaps the epochs.
//! 3. A stripe of the closed epoch serializes writers that preserve the same sectors. The intent map's
//!    commit lock is on the same level; it is never taken inside the gate.

mod backing;
mod bitmap;
mod clean;
mod closed;
mod cut;
mod disk;
pub mod env;
mod epoch;
mod error;
mod grow;
mod hold;
mod intents;
mod meta;
mod prepare;
mod rebind;
mod recover;
mod state;
mod status;
mod sums;
#[doc(hidden)]
pub mod sync;
mod waits;
mod witness;

pub use backing::Backing;
pub use cut::Sealed;
pub use env::fs::FsEnv;
pub use error::TrackError;
pub use grow::Grown;
pub use hold::HeldCut;
pub use rebind::{Binding, Offline};
pub use state::{OpenOptions, ProtectedDisk};
pub use status::Identity;
