//! Keeping, merging and deleting: what a vault needs so that it does not grow for ever.
//!
//! - `keep`: the rules people write, and what they mean
//! - `time`: what a maintainer knows of time, and how long it has watched holds
//! - `hold`: pins, and holds of anyone who needs a point; `held`: such a hold, renewed while it lasts
//! - `marks`: beside a held point, asked for by name before it is deleted
//! - `ledger`: the one small state that makes deleting safe; advanced a revision at a time
//! - `retire`: points that no rule keeps go; `groups`: those that belong together, together
//! - `tiers`: which segments to merge, as a pure function; `compact`: merging them
//! - `collect`: segments that nothing names go
//!
//! `maintain` does all of it, on any host, as often as one likes, and can be killed anywhere.
//! docs/explanation/format-vault.md says why no point ever loses what it needs.

pub mod collect;
pub mod compact;
mod groups;
pub mod held;
pub mod hold;
pub mod keep;
mod ledger;
mod marks;
pub mod retire;
pub mod tiers;
pub mod time;

use std::sync::atomic::{AtomicBool, Ordering};

use backstay_types::{ByteLen, CycleNo, DiskId};

use crate::error::VaultError;
use crate::store::Vault;

pub use collect::Collected;
pub use compact::Merged;
pub use held::{Held, holder};
pub use hold::HoldRequest;
pub use keep::{Keep, KeepError};
pub(crate) use ledger::{Decided, existing_points};

pub use retire::{HOLD_NOT_LISTED, Retired, Verdict, Withheld};
pub use time::Time;

/// Others that may maintain the same disk at the same time before we leave it to them.
const ROUNDS_MAX: usize = 8;

/// How to maintain a disk.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Which points stay; `None`: all.
    pub keep: Option<Keep>,
    /// Everything there is to do; otherwise only what is worth its reads: points go in batches, and
    /// segments are collected after points went.
    pub thorough: bool,
    /// Whether to merge segments, which reads and writes them. Without, a run only frees space.
    pub merge: bool,
    /// About how large a merged segment becomes, in bytes.
    pub segment_bytes: u64,
    /// zstd level of merged segments.
    pub zstd_level: i32,
}

/// What maintenance did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Points.
    pub retired: Retired,
    /// Segments that were merged.
    pub merged: Merged,
    /// Segments that were deleted.
    pub collected: Collected,
}

/// What a run of maintenance works with.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub vault: &'a Vault,
    pub disk: DiskId,
    pub policy: &'a Policy,
    pub time: &'a Time,
    /// Nothing is changed, and nothing remembered.
    pub look: bool,
    pub stop: &'a AtomicBool,
}

impl Job<'_> {
    /// An error if we were told to stop.
    fn go_on(&self) -> Result<(), VaultError> {
        if self.stop.load(Ordering::Relaxed) { Err(VaultError::MaintenanceStopped) } else { Ok(()) }
    }
}

/// Retires points, collects garbage, merges segments: all that `policy` asks for.
///
/// Safe beside cycles, readers and other maintainers, and whenever it is killed.
///
/// # Errors
/// If the vault cannot be read or written, an object is damaged, or it was told to `stop`. What was
/// done until then is done; the rest is done by the next run.
pub fn maintain(
    vault: &Vault,
    disk: DiskId,
    policy: &Policy,
    time: &Time,
    stop: &AtomicBool,
) -> Result<Report, VaultError> {
    let job = Job { vault, disk, policy, time, look: false, stop };
    let retired = retire::retire(&job)?;
    // Before anything is put: a full vault must become less full. Merging makes no garbage; what it
    // stands for is named until the next delta has taken it over.
    let collected = match policy.thorough || retired.deleted > 0 {
        true => collect::collect(&job)?,
        false => Collected::default(),
    };
    vault.keep_reserve();
    let merged = match policy.merge && merges(vault) {
        true => compact::compact(&job).map_err(|e| after(e, &retired, &collected))?,
        false => Merged::default(),
    };
    Ok(Report { retired, merged, collected })
}

/// Why segments were not merged, with what was deleted before that.
fn after(why: VaultError, retired: &Retired, collected: &Collected) -> VaultError {
    match why {
        VaultError::NoRoomToMerge { url, bytes, free, .. } => VaultError::NoRoomToMerge {
            url,
            bytes,
            free,
            points: retired.deleted,
            freed: ByteLen(collected.deleted_bytes),
        },
        why => why,
    }
}

/// Whether segments can be merged here: a host that can only write does not read them.
fn merges(vault: &Vault) -> bool {
    if vault.is_write_only() {
        tracing::info!(
            "{}: segments are not merged here: this host has a writer's key; run backstay prune where \
             the vault's key is",
            vault.url()
        );
    }
    !vault.is_write_only()
}

/// What [`maintain`] would do, and what would become of each point. Changes nothing.
///
/// # Errors
/// If the vault cannot be read, or an object is damaged.
pub fn preview(
    vault: &Vault,
    disk: DiskId,
    policy: &Policy,
    time: &Time,
) -> Result<(Report, Vec<Verdict>), VaultError> {
    let policy = Policy { thorough: true, ..policy.clone() };
    let stop = &AtomicBool::new(false);
    let job = Job { vault, disk, policy: &policy, time, look: true, stop };
    let (retired, verdicts) = retire::preview(&job)?;
    let merged =
        if policy.merge && merges(vault) { compact::preview(&job)? } else { Merged::default() };
    let gone: Vec<CycleNo> =
        verdicts.iter().filter(|verdict| !verdict.stays).map(|verdict| verdict.cycle).collect();
    let collected = collect::preview(&job, &gone)?;
    Ok((Report { retired, merged, collected }, verdicts))
}
