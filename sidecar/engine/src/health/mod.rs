//! How well a disk is: every cause for worry, the worst one first.
//!
//! A *cause* is one thing that is wrong, with a stable id, a level, the reason in words and what to do.
//! Each area of the product finds its own, in its own file, from [`Facts`] that were gathered just now:
//! a new cause is an id in [`ids`], a line in docs/reference/operations.md, and a `facts → causes` in one of the
//! files here. The worst cause is the headline of [`Health`]; the others are listed with it, so that one
//! fault never hides another. `status` and `doctor` show the same list.
//!
//! Unknown is not ok: what could not be found out is a cause.

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

/// How well a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// All is well; as a cause's level: worth knowing, and nothing to do.
    Ok,
    /// It works, and something should be looked at.
    Warning,
    /// It is not protected until a person acts.
    Critical,
}

/// One thing that is wrong with a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// Which: stable, for programs. docs/reference/operations.md lists them.
    pub id: CauseId,
    /// How bad it is.
    pub level: Level,
    /// What is wrong, in words.
    pub reason: String,
    /// What to do about it, in one command if possible.
    pub advice: Option<String>,
    /// Since when, nanoseconds since 1970, if that is known.
    pub since_unix_ns: Option<u64>,
    /// When it is retried automatically, if it is.
    pub next_retry_unix_ns: Option<u64>,
}

impl Cause {
    fn new(id: CauseId, level: Level, reason: impl Into<String>) -> Self {
        let (advice, since_unix_ns, next_retry_unix_ns) = (None, None, None);
        Self { id, level, reason: reason.into(), advice, since_unix_ns, next_retry_unix_ns }
    }

    /// Worth knowing, and nothing to do.
    #[must_use]
    pub fn note(id: CauseId, reason: impl Into<String>) -> Self {
        Self::new(id, Level::Ok, reason)
    }

    /// It works, and something should be looked at.
    #[must_use]
    pub fn warning(id: CauseId, reason: impl Into<String>) -> Self {
        Self::new(id, Level::Warning, reason)
    }

    /// The disk is not protected until a person acts.
    #[must_use]
    pub fn critical(id: CauseId, reason: impl Into<String>) -> Self {
        Self::new(id, Level::Critical, reason)
    }

    /// Says what to do.
    #[must_use]
    pub fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// Says since when, in nanoseconds since 1970.
    #[must_use]
    pub fn since(self, unix_ns: u64) -> Self {
        Self { since_unix_ns: Some(unix_ns), ..self }
    }

    /// Says when it is retried automatically, in nanoseconds since 1970, if that is known.
    #[must_use]
    pub fn retried(self, unix_ns: Option<u64>) -> Self {
        Self { next_retry_unix_ns: unix_ns, ..self }
    }
}

/// How well a disk is and why: the worst cause in front, then all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// How well.
    pub level: Level,
    /// Why, in words; none if all is well.
    pub reason: Option<String>,
    /// Since when, nanoseconds since 1970, if that is known.
    pub since_unix_ns: Option<u64>,
    /// When it is tried again; never, until a person acts, if it is critical.
    pub next_retry_unix_ns: Option<u64>,
    /// What to do about it.
    pub advice: Option<String>,
    /// Everything that is wrong, worst first.
    pub causes: Vec<Cause>,
}

impl Health {
    /// The health that these causes make. Among equals the first one given is the headline.
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

    /// With causes more, of somebody who knows things that are not known here.
    pub fn add(&mut self, causes: impl IntoIterator<Item = Cause>) {
        let mut all = std::mem::take(&mut self.causes);
        all.extend(causes);
        *self = Self::of(all);
    }

    /// With another cause in the place of one that somebody who knows more can explain better.
    pub fn replace(&mut self, id: CauseId, with: Cause) {
        let mut all = std::mem::take(&mut self.causes);
        all.retain(|cause| cause.id != id);
        all.insert(0, with);
        *self = Self::of(all);
    }
}

/// What was found out about a disk just now. Causes are made of these; a file here that needs to know
/// more reads its own small record below [`Facts::paths`].
pub struct Facts<'a> {
    /// The disk.
    pub name: &'a DiskName,
    /// The folders of this host.
    pub roots: &'a Roots,
    /// The folders of the disk.
    pub paths: &'a DiskPaths,
    /// The configuration.
    pub config: &'a Config,
    /// What its driver says; none if none answers.
    pub driver: Option<&'a DriverStatus>,
    /// What the sidecar remembers.
    pub record: &'a Record,
    /// Age of the cut of the newest point that is committed and verified, in nanoseconds.
    pub rpo_ns: Option<u64>,
    /// The time, nanoseconds since 1970.
    pub now_unix_ns: u64,
    /// It is a mounted recovery point that nobody has made a disk of: it is not cycled.
    pub only_looked_at: bool,
    /// Whether the host's sidecar is at work.
    pub sidecar: &'a Sidecar,
}

impl Facts<'_> {
    /// From one cut to the next, as the disk's settings say.
    fn interval(&self) -> Duration {
        self.config.interval_of(self.name)
    }

    /// Whether somebody has to make points of it now.
    fn wants_points(&self) -> bool {
        self.driver.is_some() && !self.only_looked_at
    }
}

/// The areas, the one whose cause is the headline among equals first.
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

/// How well a disk is.
#[must_use]
pub fn of(facts: &Facts<'_>) -> Health {
    Health::of(AREAS.iter().flat_map(|area| area(facts)).collect())
}
