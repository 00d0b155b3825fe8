//! The health of a disk: every health cause, the worst one first.
//!
//! A health cause is one problem. It has a stable id, a level, a reason in words and advice. Each file
//! here finds the causes of one area, from [`Facts`] that were gathered just before. The worst cause is
//! the headline of [`Health`]. All others are listed too, so that one fault never hides another.
//! `status` and `doctor` show the same list.
//!
//! To add a cause, add an id to [`ids`], a line to docs/reference/operations.md, and a check to the
//! `causes` function of its area.
//!
//! Unknown is not ok: a fact that cannot be found out is a cause as well.

mod backing;
mod clock;
mod cycle;
mod default_vault;
mod drills;
mod driver;
pub(crate) mod host;
pub mod ids;
mod keys;
mod records;
mod upkeep;
mod vault;

use std::time::Duration;

use backstay_format::control::DriverStatus;
use backstay_front::paths::{DiskPaths, Roots};
use backstay_types::DiskName;
use serde::Serialize;

use crate::config::Config;
use crate::record::Record;
use crate::service::alive::Sidecar;

pub use ids::CauseId;

/// The level of a health cause, and of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// All is well. For a cause: worth knowing, but nothing to do.
    Ok,
    /// The disk works, but a person should look at the cause.
    Warning,
    /// The disk is not protected until a person acts.
    Critical,
}

/// One problem of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// The stable id, for programs. docs/reference/operations.md lists all ids.
    pub id: CauseId,
    /// How bad it is.
    pub level: Level,
    /// What is wrong, in words.
    pub reason: String,
    /// What to do about it, in one command if possible.
    pub advice: Option<String>,
    /// When the problem began, in nanoseconds since 1970, if known.
    pub since_unix_ns: Option<u64>,
    /// When the next automatic retry is due, if there is one.
    pub next_retry_unix_ns: Option<u64>,
}

impl Cause {
    fn new(id: CauseId, level: Level, reason: impl Into<String>) -> Self {
        let (advice, since_unix_ns, next_retry_unix_ns) = (None, None, None);
        Self { id, level, reason: reason.into(), advice, since_unix_ns, next_retry_unix_ns }
    }

    /// A cause with level [`Level::Ok`].
    #[must_use]
    pub fn note(id: CauseId, reason: impl Into<String>) -> Self {
        Self::new(id, Level::Ok, reason)
    }

    /// A cause with level [`Level::Warning`].
    #[must_use]
    pub fn warning(id: CauseId, reason: impl Into<String>) -> Self {
        Self::new(id, Level::Warning, reason)
    }

    /// A cause with level [`Level::Critical`].
    #[must_use]
    pub fn critical(id: CauseId, reason: impl Into<String>) -> Self {
        Self::new(id, Level::Critical, reason)
    }

    /// Adds advice.
    #[must_use]
    pub fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// Adds when the problem began, in nanoseconds since 1970.
    #[must_use]
    pub fn since(self, unix_ns: u64) -> Self {
        Self { since_unix_ns: Some(unix_ns), ..self }
    }

    /// Adds when the next automatic retry is due, in nanoseconds since 1970, if there is one.
    #[must_use]
    pub fn retried(self, unix_ns: Option<u64>) -> Self {
        Self { next_retry_unix_ns: unix_ns, ..self }
    }
}

/// The health of a disk: a copy of the worst cause as the headline, then all causes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The level of the worst cause.
    pub level: Level,
    /// The reason of the worst cause; none if there is no cause.
    pub reason: Option<String>,
    /// When it began, in nanoseconds since 1970, if known.
    pub since_unix_ns: Option<u64>,
    /// When the next automatic retry is due, in nanoseconds since 1970, if there is one.
    pub next_retry_unix_ns: Option<u64>,
    /// What to do about it.
    pub advice: Option<String>,
    /// All causes, worst first.
    pub causes: Vec<Cause>,
}

impl Health {
    /// The health that follows from these causes. Among equals the first one is the headline.
    #[must_use]
    pub fn of(mut causes: Vec<Cause>) -> Self {
        causes.sort_by_key(|cause| std::cmp::Reverse(cause.level));
        let worst = causes.first().cloned();
        Self {
            level: worst.as_ref().map_or(Level::Ok, |worst| worst.level),
            reason: worst.as_ref().map(|worst| worst.reason.clone()),
            since_unix_ns: worst.as_ref().and_then(|worst| worst.since_unix_ns),
            next_retry_unix_ns: worst.as_ref().and_then(|worst| worst.next_retry_unix_ns),
            advice: worst.and_then(|worst| worst.advice),
            causes,
        }
    }

    /// Adds causes that only the caller can find.
    pub fn add(&mut self, causes: impl IntoIterator<Item = Cause>) {
        let mut all = std::mem::take(&mut self.causes);
        all.extend(causes);
        *self = Self::of(all);
    }

    /// Replaces a cause by one that explains the same problem better.
    pub fn replace(&mut self, id: CauseId, with: Cause) {
        let mut all = std::mem::take(&mut self.causes);
        all.retain(|cause| cause.id != id);
        all.insert(0, with);
        *self = Self::of(all);
    }
}

/// The facts about a disk from which the causes are made. An area that needs more facts reads its own
/// small record below [`Facts::paths`].
pub struct Facts<'a> {
    /// The disk.
    pub name: &'a DiskName,
    /// The folders of this host.
    pub roots: &'a Roots,
    /// The folders of the disk.
    pub paths: &'a DiskPaths,
    /// The configuration.
    pub config: &'a Config,
    /// The status from the disk's driver; none if no driver answers.
    pub driver: Option<&'a DriverStatus>,
    /// The sidecar's record of the disk.
    pub record: &'a Record,
    /// RPO now: the age of the cut of the newest committed and verified point, in nanoseconds.
    pub rpo_ns: Option<u64>,
    /// The current time, in nanoseconds since 1970.
    pub now_unix_ns: u64,
    /// The disk is a mounted point that was not made a disk of its own, so it has no cycles.
    pub only_looked_at: bool,
    /// The state of this host's sidecar.
    pub sidecar: &'a Sidecar,
}

impl Facts<'_> {
    /// The time from one cut to the next, from the disk's settings.
    fn interval(&self) -> Duration {
        self.config.interval_of(self.name)
    }

    /// Whether points of this disk must be made now.
    fn wants_points(&self) -> bool {
        self.driver.is_some() && !self.only_looked_at
    }
}

/// The areas. Among causes of the same level, the earlier area gives the headline.
const AREAS: [fn(&Facts<'_>) -> Vec<Cause>; 12] = [
    driver::causes,
    backing::causes,
    records::causes,
    cycle::causes,
    vault::causes,
    vault::scrubs,
    default_vault::causes,
    clock::causes,
    upkeep::causes,
    keys::causes,
    drills::causes,
    host::causes,
];

/// The health of a disk.
#[must_use]
pub fn of(facts: &Facts<'_>) -> Health {
    Health::of(AREAS.iter().flat_map(|area| area(facts)).collect())
}
