//! The sidecar: ships what changed on protected disks to a vault, in cycles.
//!
//! - [`config`]: the configuration file
//! - [`source`]: reading a disk: the backing, the shared bitmaps, the preserved blocks
//! - [`pipeline`]: read → find zeroes, checksum, compress → segments → upload
//! - [`cycle`]: one cycle from lease to release
//! - [`group`]: disks of one host and of several, cut at one instant
//! - [`schedule`]: when the next cycle runs, as a pure function
//! - [`service`]: many disks, over and over
//! - [`record`]: what the sidecar remembers of a disk
//! - [`status`]: what a person wants to know

pub mod config;
pub mod cycle;
pub mod error;
pub mod group;
pub mod pipeline;
pub mod record;
pub mod schedule;
pub mod service;
pub mod source;
pub mod status;

pub use config::Config;
pub use error::CycleError;
