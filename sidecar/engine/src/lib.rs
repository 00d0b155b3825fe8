//! The sidecar: ships what changed on protected disks to a vault, in cycles.
//!
//! - [`config`]: the configuration file
//! - [`source`]: reading a disk: the backing, the shared bitmaps, the preserved blocks
//! - [`pipeline`]: read → find zeroes, checksum, compress → segments → upload
//! - [`cycle`]: one cycle from lease to release
//! - [`windows`]: blackout windows and timetables
//! - [`throttle`]: one limit for all uploads
//! - [`hooks`]: application-consistent points
//! - [`reload`]: the configuration, as it changes
//! - [`schedule`]: what runs next, without a clock of its own
//! - [`drills`]: when points are to be tried, and how the last one fared; trying them is others' work
//! - [`phase`]: where a disk is in its replication (R-30)
//! - [`jobs`]: what takes long enough to be watched
//! - [`prerequisites`]: what must hold before a disk is protected
//! - [`doctor`]: what a host has and lacks
//! - [`protection`]: what `backstay protect` was told
//! - [`requests`]: what people's commands ask of a running sidecar
//! - [`group`]: disks of one host and of several, cut at one instant
//! - [`service`]: many disks, over and over
//! - [`home`]: the vault that a disk's points are in; [`vault_place`]: what a vault in a directory stands on
//! - [`record`]: what the sidecar remembers of a disk
//! - [`status`]: what a person wants to know; [`health`]: everything that is wrong, worst first
//! - [`totals`]: sums over cycles; [`metrics`]: where they are told, with all that status says
//! - [`store`]: how object stores are reached; [`gateway`]: how a gateway on this host runs
//! - [`care`]: whether the keys of encrypted vaults are where somebody can find them
//! - [`seen`]: what this host has seen of encrypted vaults, so that an older state of one is noticed
//! - [`upkeep`]: retention, merging and collection after cycles
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
