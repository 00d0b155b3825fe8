//! One file a verb.

pub mod attach;
pub mod cycle;
pub mod detach;
pub mod docs;
pub mod group;
pub mod grow;
pub mod guardian;
pub mod holds;
pub mod jobs;
pub mod mount;
pub mod pin;
pub mod points;
mod progress;
pub mod protect;
pub mod prune;
pub mod relocate;
pub mod rename;
pub mod restore;
pub mod resume;
pub mod resync;
pub mod sidecar;
pub mod status;
mod target;
pub mod umount;
pub mod unpin;
pub mod unprotect;
pub mod verify;
