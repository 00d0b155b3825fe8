//! The sidecar: ships the changes of protected disks to a vault, in cycles.
//!
//! One cycle:
//!
//! - [`cycle`]: one cycle, from lease to release
//! - [`source`]: reading a disk: the backing, the shared bitmaps, the preserved blocks
//! - [`pipeline`]: read → find zeroes, checksum, compress → segments → upload
//! - [`throttle`]: one bandwidth limit for all uploads
//! - [`hooks`]: commands before and after a cut, for application-consistent points
//! - [`group`]: consistency groups: disks on one or several hosts, cut at the same instant
//!
//! Many disks:
//!
//! - [`service`]: runs the cycles of all disks of this host
//! - [`schedule`]: decides which cycle runs next; has no clock of its own
//! - [`windows`]: blackout windows and timetables
//! - [`phase`]: the replication state of a disk, and its transitions
//! - [`upkeep`]: retention, merging and collection after cycles
//! - [`drills`]: the settings and the last result of drills; the caller of the service runs them
//!
//! Settings and requests:
//!
//! - [`config`]: the configuration file; [`reload`]: following its changes
//! - [`protection`]: the settings given to `backstay protect`
//! - [`requests`]: requests from commands to a running sidecar
//! - [`store`]: settings for object stores; [`gateway`]: settings for a gateway on this host
//!
//! Status:
//!
//! - [`record`]: the sidecar's stored state of a disk
//! - [`status`]: the status of a disk; [`health`]: its health causes, worst first
//! - [`totals`]: sums over cycles; [`metrics`]: totals and status for monitoring systems
//! - [`jobs`]: long operations, with their progress
//!
//! Safety checks:
//!
//! - [`prerequisites`]: conditions for protecting a disk; [`doctor`]: checks of the host
//! - [`home`]: the vault that holds a disk's points; [`vault_place`]: the devices below a vault in a
//!   directory
//! - [`key_health`]: whether the keys of encrypted vaults can be found
//! - [`rollback_guard`]: the newest state of encrypted vaults that this host has seen, to detect a rollback
//!
//! ```
//! use backstay_engine::config::Config;
//!
//! let config: Config = toml::from_str("interval = '30s'\nkeep = 'all 2h, daily 30d'")?;
//! assert_eq!(config.interval.as_secs(), 30);
//! assert!(toml::from_str::<Config>("intervall = '30s'").is_err());
//! # Ok::<(), toml::de::Error>(())
//! ```

pub mod config;
pub mod cycle;
pub mod doctor;
pub mod drills;
pub mod encryption;
pub mod error;
pub mod gateway;
pub mod group;
pub mod health;
pub mod home;
pub mod hooks;
pub mod jobs;
pub mod key_health;
pub mod metrics;
pub mod phase;
pub mod pipeline;
pub mod prerequisites;
pub mod protection;
pub mod record;
pub mod reload;
pub mod requests;
pub mod rollback_guard;
pub mod schedule;
pub mod scrub;
pub mod service;
mod silent;
pub mod source;
pub mod status;
pub mod store;
pub mod throttle;
pub mod totals;
pub mod upkeep;
pub mod vault_place;
pub mod windows;

pub use config::Config;
pub use error::CycleError;
