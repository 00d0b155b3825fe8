//! A vault: recovery points of many disks on an object store.
//!
//! - [`mod@format`]: what the objects hold, byte by byte (docs/explanation/format-vault.md); no I/O
//! - [`sectors`]: sets of sectors, for what must move and what arrived
//! - [`frame`]: runs of sectors, checksummed and compressed
//! - [`store`]: a vault and the names of its objects; `disks`, `segments`: what it holds; `objects`: puts
//!   that only one writer can win, reads, lists
//! - `prove`: what was put is what the store has
//! - [`paced`]: segments put no faster than they are let through
//! - `stores`: what differs between the places a vault can be in; [`remote`]: S3, Azure Blob, Google Cloud Storage, gateways
//! - `vaults`: what vaults are opened with; [`known`]: which one this host means by a URL
//! - `names`: which disk has which name
//! - [`commit`]: from segments to a recovery point; what is not verified cannot be committed
//! - [`retain`]: which points stay, what holds them, merging segments, collecting garbage
//! - [`terms`]: who may write a disk, and which points are on the line that goes on
//! - [`groups`]: points of many disks, cut at one instant
//! - `drills`: verdicts on points that were tried; [`damaged`]: points that are known to be damaged
//! - [`admission`]: what a gateway checks of what arrives; `serve`: objects by their keys, for a gateway
//! - [`encrypt`]: encryption at rest, signatures, keys
//! - [`read`]: verifying and restoring; nothing is written before its checksum matched
//!
//! The points of a disk, from the vault alone:
//!
//! ```no_run
//! use backstay_vault::Vaults;
//!
//! let vault = Vaults::default().open("file:///mnt/backup/vault")?;
//! let disk = vault.disk_named(&"db".parse().expect("a name"))?;
//! for cycle in vault.points(disk.disk)? {
//!     let point = vault.manifest(disk.disk, cycle)?;
//!     println!("{cycle}: {} bytes at {}", point.size.0, point.cut_unix_ns);
//! }
//! # Ok::<(), backstay_vault::VaultError>(())
//! ```

pub mod admission;
pub mod commit;
pub mod damaged;
mod disks;
mod drills;
pub mod encrypt;
pub mod error;
pub mod format;
pub mod frame;
pub mod groups;
pub mod known;
mod local;
mod names;
mod newest_until;
mod objects;
pub mod paced;
mod probe;
mod prove;
pub mod read;
pub mod remote;
mod reserve;
pub mod retain;
pub mod sectors;
mod segments;
mod serve;
pub mod store;
mod stores;
pub mod terms;
mod vaults;

pub use commit::{Base, Pass, PointMeta, VerifiedCycle, verify_cycle};
pub use error::VaultError;
pub use format::bounds::Bounds;
pub use format::document::{DiskRecord, NameRecord};
pub use format::drill::{DrillCheck, DrillRecord};
pub use format::group::{GroupMember, GroupName, GroupPoint, GroupPointNo};
pub use format::hold::{HoldKind, HoldName, HoldRecord};
pub use format::manifest::{Consistency, CycleKind, Manifest, SegmentRef};
pub use format::term::{HandoverRecord, TermFrom, TermRecord};
pub use names::DamagedDisk;
pub use paced::Pace;
pub use sectors::{NewestWins, SectorSet};
pub use store::Vault;
pub use terms::{Claim, Line};
pub use vaults::Vaults;
