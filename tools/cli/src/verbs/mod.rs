//! One file a verb.

pub mod attach;
pub mod cycle;
pub mod detach;
pub mod docs;
pub mod grow;
pub mod mount;
pub mod points;
mod progress;
pub mod relocate;
pub mod rename;
pub mod restore;
pub mod sidecar;
pub mod status;
mod target;
pub mod umount;
pub mod verify;
