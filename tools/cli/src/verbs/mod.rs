//! One file a verb.

pub mod attach;
pub mod cycle;
pub mod detach;
pub mod docs;
pub mod group;
pub mod mount;
pub mod points;
mod progress;
pub mod restore;
pub mod sidecar;
pub mod status;
mod target;
pub mod umount;
pub mod verify;
