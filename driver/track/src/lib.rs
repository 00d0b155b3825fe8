//! Tracking: what stands between a guest's write and the backing device.
//!
//! A [`ProtectedDisk`] keeps, for every write, a durable intent for its region and a dirty bit for
//! its sectors before the write can reach the backing (I1); cuts epochs at an instant and keeps
//! the content of that instant readable by copy-before-write (I2); and never lets its own trouble
//! become the guest's (I4). All I/O goes through two seams, [`env::Env`] for its own state and
//! [`Backing`] for the disk's bytes, so that tests can record, break and replay every step.
//!
//! Reading order: [`mod@env`] (the seam), `bitmap`, `intents`, `epoch`, `closed` (copy-before-write),
//! `disk` (the write path), `prepare` and `cut` (the life of a cycle), `hold` (cuts that are held for
//! a group), `grow`, `recover` (after a stop of any kind), `rebind` (a disk that was moved to another
//! backing), `witness` (when the state directory dies).
//!
//! Locks, always taken in this order: `admin` (one control operation at a time) → `gate` (a write
//! holds it shared from its checks until it is done; a cut holds it alone for the instant of the
//! swap) → a stripe of the closed epoch (two writers preserving the same sectors) or the intent
//! map's commit lock (never inside the gate).

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
