//! What a maintainer knows of time: its own clocks, whether they may decide, and how long it has watched holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backstay_host::atomic::Durability;
use backstay_host::clock::trusted::{self, Doubt, Judged, Reading};
use backstay_host::record;
use backstay_types::DiskId;
use serde::{Deserialize, Serialize};

use crate::format::hold::{HoldName, HoldRecord};

/// Where a state directory remembers how long holds were watched.
const WATCHED: &str = ".holds";
/// Beyond a hold's duration it is watched for this long, in nanoseconds: a renewal may be on its way.
pub const GRACE_NS: u64 = 15 * 60 * 1_000_000_000;

/// What a maintainer knows of time.
#[derive(Debug, Clone)]
pub struct Time {
    /// What its clocks say.
    pub reading: Reading,
    /// Why its wall clock may not decide which points go; `None`: it may.
    pub doubt: Option<Doubt>,
    /// A person says that the clock is right, whatever contradicts it.
    pub accepted: bool,
    /// Where it remembers how long it has watched holds; `None`: nowhere, so no hold ends for it.
    pub watched: Option<PathBuf>,
}

/// What was seen of a disk's holds at the last look.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Watched {
    /// The boot of that look.
    boot: String,
    /// When it was, nanoseconds since that boot.
    since_boot_ns: u64,
    /// For how many nanoseconds each version of a hold was seen to be there, by this host's boot clock.
    versions: BTreeMap<String, u64>,
}

impl Time {
    /// The time of a host that remembers in this state directory, and looks at its clock now.
    #[must_use]
    pub fn look(state: &Path) -> Self {
        Self::of(trusted::look(state), state)
    }

    /// The same, and writes nothing.
    #[must_use]
    pub fn peek(state: &Path) -> Self {
        Self::of(trusted::peek(state), state)
    }

    fn of(Judged { reading, doubt, .. }: Judged, state: &Path) -> Self {
        Self { reading, doubt, accepted: false, watched: Some(state.join(WATCHED)) }
    }

    /// The wall clock, nanoseconds since 1970.
    #[must_use]
    pub fn now_unix_ns(&self) -> u64 {
        self.reading.unix_ns
    }

    /// Those of a disk's holds that have not ended, and, unless this is only to `look`, remembers how long
    /// each was watched.
    ///
    /// A hold ends when this host has watched one version of it for as long as its holder meant it to last:
    /// durations, each by one clock. When it ends is never read from two hosts' wall clocks.
    #[must_use]
    pub fn live(&self, disk: DiskId, holds: Vec<HoldRecord>, look: bool) -> Vec<HoldRecord> {
        let versions = self.watch(disk, &holds, look);
        let watched = |hold: &HoldRecord| versions.get(&key(&hold.name, hold.version)).copied();
        let live = |hold: &HoldRecord| !is_over(hold, watched(hold).unwrap_or(0));
        holds.into_iter().filter(live).collect()
    }

    fn watch(&self, disk: DiskId, holds: &[HoldRecord], look: bool) -> BTreeMap<String, u64> {
        let path = self.watched.as_ref().map(|dir| dir.join(format!("{disk}.json")));
        let before = path.as_ref().and_then(|path| {
            let read = record::load::<Watched>(path);
            read.inspect_err(|e| tracing::warn!("{e}; holds are watched from the start")).ok()?
        });
        let before = before.unwrap_or_default();
        // Time in which nobody can say that this host looked at one clock does not count.
        let passed = match before.boot == self.reading.boot && !before.boot.is_empty() {
            true => self.reading.since_boot_ns.saturating_sub(before.since_boot_ns),
            false => 0,
        };
        let ends = holds.iter().filter(|hold| hold.until_unix_ns.is_some());
        let versions: BTreeMap<String, u64> = ends
            .map(|hold| {
                let key = key(&hold.name, hold.version);
                let watched = before.versions.get(&key).map_or(0, |ns| ns.saturating_add(passed));
                (key, watched)
            })
            .collect();
        let nothing = versions.is_empty() && before.versions.is_empty();
        if let (Some(path), false, false) = (path, look, nothing) {
            let (boot, since_boot_ns) = (self.reading.boot.clone(), self.reading.since_boot_ns);
            let now = Watched { boot, since_boot_ns, versions: versions.clone() };
            let saved = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            let saved = saved.map_err(|e| e.to_string()).and_then(|()| {
                record::save(&path, &now, Durability::Durable).map_err(|e| e.to_string())
            });
            if let Err(e) = saved {
                tracing::warn!("remembering how long holds were watched: {e}; they end later");
            }
        }
        versions
    }
}

/// Whether a hold is over, of which one version was watched for so long, in nanoseconds.
fn is_over(hold: &HoldRecord, watched_ns: u64) -> bool {
    let lasts = hold.until_unix_ns.map(|until| until.saturating_sub(hold.since_unix_ns));
    lasts.is_some_and(|lasts| watched_ns > lasts.saturating_add(GRACE_NS))
}

fn key(name: &HoldName, version: u64) -> String {
    format!("{version:020}-{name}")
}
