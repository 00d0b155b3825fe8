//! The sidecar's record of a disk between cycles: a small file that is replaced atomically.

use backstay_types::{Class, Classified};
use std::fs;
use std::path::Path;

use backstay_host::atomic::Durability;
use backstay_host::clock::now_unix_ns;
use backstay_host::record::{self, RecordError};
use backstay_vault::VaultError;
use backstay_vault::encrypt::Worry;
use backstay_vault::retain::{Retired, Withheld};
use serde::{Deserialize, Serialize};

use crate::cycle::CycleReport;
use crate::cycle::unchanged::Unchanged;
use crate::drills::Drilled;
use crate::error::CycleError;
use crate::phase::{Event, Phase};
use crate::protection::Protection;
use crate::scrub::Scrubbed;
use crate::totals::Totals;

const FILE: &str = "sidecar.json";
/// Only there while looking after the disk's vault fails; not in the record, because another thread
/// than the disk's writes it.
const UPKEEP_FILE: &str = "upkeep.json";
/// Only there while points of the disk are not thinned out because of a clock.
const WITHHELD_FILE: &str = "withheld.json";
/// How retention went when it last succeeded.
const RETAINED_FILE: &str = "retained.json";
/// Only there while something about the vault's keys should worry somebody.
const KEYS_FILE: &str = "keys.json";

/// How the last cycles of a disk went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The last cycle that was committed and verified.
    pub last: Option<CycleReport>,
    /// Where it went.
    pub vault: Option<String>,
    /// When the disk was last seen to be still as that cycle's point shows it.
    pub unchanged: Option<Unchanged>,
    /// Failures since then.
    pub failures: u32,
    /// The last of them.
    pub failure: Option<Failure>,
    /// Where the disk is in its replication.
    pub phase: Phase,
    /// Since when, nanoseconds since 1970.
    pub phase_since_unix_ns: u64,
    /// When the next cycle is due, if one is.
    pub next_unix_ns: Option<u64>,
    /// Sums over all cycles.
    pub totals: Totals,
    /// Why it cannot be read what `backstay protect` was told: where the points go is not known then.
    #[serde(skip)]
    pub protection_unreadable: Option<String>,
    /// Why the record cannot be read; the rest says nothing then.
    #[serde(skip)]
    pub unreadable: Option<String>,
    /// Why its vault could not be looked after when that was last tried.
    #[serde(skip)]
    pub upkeep: Option<Failure>,
    /// Why its points were not thinned out when that was last tried.
    #[serde(skip)]
    pub withheld: Option<WithheldNote>,
    /// How retention went when it last succeeded.
    #[serde(skip)]
    pub retained: Option<Retained>,
    /// What about its vault's keys should worry somebody.
    #[serde(skip)]
    pub keys: Option<Failure>,
    /// The last drill of the disk on this host.
    #[serde(skip)]
    pub drilled: Option<Drilled>,
}

/// Writes down how looking after a disk's vault went.
pub fn note_upkeep(state_dir: &Path, failed: Option<&VaultError>) {
    let path = state_dir.join(UPKEEP_FILE);
    let Some(e) = failed else {
        let _ = fs::remove_file(path);
        return;
    };
    let now = now_unix_ns();
    let before = load_trouble(&path);
    let failure = Failure {
        fenced: false,
        vault: WrongVault::of(e),
        trouble: None,
        message: e.to_string(),
        person_must_act: needs_person(e),
        tried_again: true,
        at_unix_ns: now,
        since_unix_ns: before.map_or(now, |first| first.since_unix_ns),
    };
    if let Err(e) = record::save(&path, &failure, Durability::Relaxed) {
        tracing::warn!("{e}");
    }
}

/// Why the points of a disk are not thinned out, though rules say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithheldNote {
    /// The cause and the reason.
    #[serde(flatten)]
    pub why: Withheld,
    /// Since when, nanoseconds since 1970.
    pub since_unix_ns: u64,
}

/// Writes down that points of a disk are not thinned out, or that they are again.
fn note_withheld(state_dir: &Path, why: Option<&Withheld>) {
    let path = state_dir.join(WITHHELD_FILE);
    let Some(why) = why else {
        let _ = fs::remove_file(path);
        return;
    };
    let before: Option<WithheldNote> = record::load(&path).ok().flatten();
    let since_unix_ns = before.map_or_else(now_unix_ns, |first| first.since_unix_ns);
    let note = WithheldNote { why: why.clone(), since_unix_ns };
    if let Err(e) = record::save(&path, &note, Durability::Relaxed) {
        tracing::warn!("{}: {e}", path.display());
    }
}

/// How retention went when it last succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retained {
    /// When, nanoseconds since 1970.
    pub at_unix_ns: u64,
    /// Points that the vault had then; without rules that let points go they are not counted.
    pub points: Option<u64>,
}

/// Writes down that retention ran: all points were seen, and those that go by the rules went, or why they did not.
pub fn note_retained(state_dir: &Path, retired: &Retired) {
    Scrubbed::note_gone(state_dir, |cycle| retired.retired.contains(&cycle));
    note_withheld(state_dir, retired.withheld.as_ref());
    if retired.withheld.is_some() {
        return;
    }
    // A disk that was shipped has one at least.
    let points = Some(retired.kept + retired.held_back).filter(|points| *points > 0);
    let retained = Retained { at_unix_ns: now_unix_ns(), points };
    if let Err(e) = record::save(&state_dir.join(RETAINED_FILE), &retained, Durability::Relaxed) {
        tracing::warn!("{e}");
    }
}

/// Writes down what about the keys of a disk's vault should worry somebody; whether that is news.
pub fn note_keys(state_dir: &Path, worries: &[Worry]) -> bool {
    let path = state_dir.join(KEYS_FILE);
    if worries.is_empty() {
        return fs::remove_file(path).is_ok();
    }
    let message = worries.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let before = load_trouble(&path);
    let news = before.as_ref().is_none_or(|before| before.message != message);
    let now = now_unix_ns();
    let since_unix_ns = before.map_or(now, |first| first.since_unix_ns);
    let noted = Failure {
        message,
        person_must_act: true,
        tried_again: true,
        fenced: false,
        vault: None,
        trouble: None,
        at_unix_ns: now,
        since_unix_ns,
    };
    if let Err(e) = record::save(&path, &noted, Durability::Relaxed) {
        tracing::warn!("{e}");
    }
    news
}

/// What is noted in a file that is only there while something is wrong: one that cannot be read says at least
/// that.
fn load_trouble(path: &Path) -> Option<Failure> {
    record::load(path).unwrap_or_else(|e| {
        let now = now_unix_ns();
        let message = format!("something was wrong, but the record of it cannot be read: {e}");
        Some(Failure {
            message,
            person_must_act: false,
            fenced: false,
            vault: None,
            trouble: None,
            tried_again: true,
            at_unix_ns: now,
            since_unix_ns: now,
        })
    })
}

/// A vault that is not the one that was meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WrongVault {
    /// None is there.
    Gone,
    /// Another one is.
    Other,
}

impl WrongVault {
    /// What an error says of the vault.
    #[must_use]
    pub fn of(error: &VaultError) -> Option<Self> {
        match error {
            VaultError::VaultGone { .. } => Some(Self::Gone),
            VaultError::OtherVault { .. } => Some(Self::Other),
            _ => None,
        }
    }
}

/// Whether the message asks a person to act. It may be retried meanwhile.
fn needs_person(error: &impl Classified) -> bool {
    !error.may_pass() || error.class() == Class::Person
}

/// What a cycle found out about the vault or its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VaultTrouble {
    /// The store refuses what was asked: credentials, quota, clock.
    Refused,
    /// The points that were made are not there any more.
    PointsVanished,
    /// What is needed of it is damaged.
    Damaged,
    /// A document that no cycle writes again is damaged.
    DocumentDamaged,
}

impl VaultTrouble {
    /// What a failed cycle says of the vault.
    fn of(error: &CycleError) -> Option<Self> {
        match error {
            e if e.is_vanished() => Some(Self::PointsVanished),
            CycleError::Vault(e) if e.damaged_document().is_some() => Some(Self::DocumentDamaged),
            e if e.is_damage() => Some(Self::Damaged),
            CycleError::Vault(e) if e.may_pass() && e.class() == Class::Person => {
                Some(Self::Refused)
            }
            _ => None,
        }
    }
}

/// A failed cycle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed.
    pub message: String,
    /// Whether a person must act.
    pub person_must_act: bool,
    /// Whether it is retried automatically all the same: then nobody has to be told when it is mended.
    #[serde(default)]
    pub tried_again: bool,
    /// The disk was failed over: another host writes it now (I5).
    #[serde(default)]
    pub fenced: bool,
    /// What is wrong with the vault, if another one, or none, is where it should be.
    #[serde(default)]
    pub vault: Option<WrongVault>,
    /// What else was found out about the vault.
    #[serde(default)]
    pub trouble: Option<VaultTrouble>,
    /// When, nanoseconds since 1970.
    pub at_unix_ns: u64,
    /// When the first of these failures in a row was, nanoseconds since 1970.
    pub since_unix_ns: u64,
}

impl Failure {
    /// Whether nothing is tried until a person says so.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.person_must_act && !self.tried_again
    }
}

impl Record {
    /// Reads the record of a disk. Of one that cannot be read nothing is known, and that is kept in it.
    #[must_use]
    pub fn load(state_dir: &Path) -> Self {
        let record = Self::read(state_dir).map(Option::unwrap_or_default);
        let record = record.unwrap_or_else(|e| {
            tracing::warn!("{e}; the next cycle that succeeds writes a new one");
            Self { unreadable: Some(e.to_string()), ..Self::default() }
        });
        let drilled = Drilled::load(state_dir);
        let (upkeep, keys) = (state_dir.join(UPKEEP_FILE), state_dir.join(KEYS_FILE));
        let protection_unreadable = Protection::load(state_dir).err().map(|e| e.to_string());
        let (upkeep, keys) = (load_trouble(&upkeep), load_trouble(&keys));
        // Upkeep writes it again soon; what cannot be read is said by those that have it in common.
        let withheld = record::load(&state_dir.join(WITHHELD_FILE)).ok().flatten();
        let retained = record::load_shown(&state_dir.join(RETAINED_FILE));
        Self { protection_unreadable, upkeep, keys, withheld, retained, drilled, ..record }
    }

    /// Reads the record itself, for anyone who must not go on without what it says.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn read(state_dir: &Path) -> Result<Option<Self>, RecordError> {
        record::load(&state_dir.join(FILE))
    }

    /// Replaces the record of a disk, durably.
    ///
    /// # Errors
    /// If the state directory cannot be written.
    pub fn save(&self, state_dir: &Path) -> Result<(), RecordError> {
        record::save(&state_dir.join(FILE), self, Durability::Durable)
    }

    /// Replaces the record without waiting for the disk: for what would be found out again anyway.
    /// Trouble with it is only worth a warning.
    pub fn show(&self, state_dir: &Path) {
        // Only a cycle that succeeded knows more than a record that nobody can read.
        if self.unreadable.is_some() {
            return;
        }
        if let Err(e) = record::save(&state_dir.join(FILE), self, Durability::Relaxed) {
            tracing::warn!("{e}");
        }
    }

    /// Whether it is known where the points of the disk go, before anything is shipped there.
    ///
    /// # Errors
    /// If `backstay protect` was told, and that cannot be read.
    pub fn knows_vault(&self) -> Result<(), VaultError> {
        let Some(why) = &self.protection_unreadable else { return Ok(()) };
        let reason = format!(
            "whether the points of this disk go there was written down and cannot be read: {why}. Nothing was \
             shipped. Say again how the disk is protected: backstay protect"
        );
        Err(VaultError::Url { url: "its vault".into(), reason })
    }

    /// Notes that something happened to the disk. What cannot happen is said and changes nothing.
    pub fn happened(&mut self, event: Event) {
        match self.phase.after(event) {
            Ok(phase) if phase != self.phase => {
                (self.phase, self.phase_since_unix_ns) = (phase, now_unix_ns());
            }
            Ok(_) => {}
            Err(e) => tracing::error!("{e}"),
        }
    }

    /// Up to when all writes are in the newest point, nanoseconds since 1970: its cut, or when the disk was last seen to
    /// be still as it shows it.
    #[must_use]
    pub fn proven_unix_ns(&self) -> Option<u64> {
        let last = self.last.as_ref()?;
        let seen = self.unchanged.filter(|seen| seen.point == last.point);
        Some(seen.map_or(last.cut_unix_ns, |seen| seen.at_unix_ns.max(last.cut_unix_ns)))
    }

    /// Whether nothing is tried until a person says so. A record that cannot be read may say that.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.unreadable.is_some() || self.failure.as_ref().is_some_and(Failure::is_final)
    }

    /// Forgets failures: a person says that what was wrong is mended.
    pub fn resume(&mut self) {
        (self.failures, self.failure) = (0, None);
    }

    /// Notes how a cycle went and saves that. Trouble with it is only worth a warning.
    pub fn note(&mut self, result: &Result<CycleReport, CycleError>, vault: &str, dir: &Path) {
        match result {
            Ok(report) => {
                self.unreadable = None;
                self.totals.count(report);
                self.last = Some(report.clone());
                self.vault = Some(vault.into());
                self.failures = 0;
                self.failure = None;
            }
            Err(e) => {
                let now = now_unix_ns();
                self.totals.count_failed(e);
                self.failures += 1;
                if e.may_pass()
                    && let Some(stopped) = self.failure.as_mut().filter(|first| first.is_final())
                {
                    // What failed now says nothing about what a person has to mend.
                    stopped.at_unix_ns = now;
                    return self.keep(dir);
                }
                self.failure = Some(Failure {
                    message: e.to_string(),
                    person_must_act: needs_person(e),
                    tried_again: e.may_pass(),
                    fenced: e.is_fenced(),
                    vault: match e {
                        CycleError::Vault(e) => WrongVault::of(e),
                        _ => None,
                    },
                    trouble: VaultTrouble::of(e),
                    at_unix_ns: now,
                    since_unix_ns: self.failure.as_ref().map_or(now, |first| first.since_unix_ns),
                });
            }
        }
        self.keep(dir);
    }

    fn keep(&self, dir: &Path) {
        if self.unreadable.is_none()
            && let Err(e) = self.save(dir)
        {
            tracing::warn!("remembering the cycle in {}: {e}", dir.display());
        }
    }
}

/// A report, for tests.
#[cfg(test)]
pub(crate) fn shipped() -> CycleReport {
    CycleReport {
        kind: backstay_vault::CycleKind::Initial,
        cycle: backstay_types::CycleNo(1),
        point: backstay_types::PointId::from_bytes([1; 16]),
        disk: None,
        cut_unix_ns: 5,
        committed_unix_ns: 6,
        held_ns: 7,
        moved: backstay_types::ByteLen(8),
        stored: backstay_types::ByteLen(9),
        fetched: backstay_types::ByteLen(11),
        written: backstay_types::ByteLen(10),
        duration: std::time::Duration::from_secs(1),
        warning: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_types::CycleNo;

    #[test]
    fn what_is_noted_is_read_again_and_success_ends_failures() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::load(dir.path());
        assert_eq!(record, Record::default());
        record.note(&Err(CycleError::Lost("limit".into())), "/v", dir.path());
        let critical = CycleError::WhichSide {
            name: "d".into(),
            newest: CycleNo(2),
            cut_unix_ns: 0,
            known: None,
        };
        record.note(&Err(critical), "/v", dir.path());
        let read = Record::load(dir.path());
        assert_eq!((read.failures, &read), (2, &record));
        assert!(read.failure.unwrap().person_must_act);
        record.note(&Ok(shipped()), "/v", dir.path());
        let read = Record::load(dir.path());
        assert_eq!((read.failures, &read.failure, read.last), (0, &None, Some(shipped())));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        fs::write(dir.path().join(FILE), b"{").unwrap();
        let mut record = Record::load(dir.path());
        assert!(record.unreadable.is_some());
        record.show(dir.path());
        record.note(&Err(CycleError::Lost("limit".into())), "/v", dir.path());
        assert!(Record::load(dir.path()).unreadable.is_some(), "it is not taken for a new disk");
        record.note(&Ok(shipped()), "/v", dir.path());
        assert_eq!(Record::load(dir.path()).unreadable, None);
    }

    #[test]
    fn nothing_is_shipped_where_nobody_knows_where_to() {
        let dir = tempfile::tempdir().unwrap();
        Record::load(dir.path()).knows_vault().unwrap();
        fs::write(dir.path().join("protection.json"), b"{").unwrap();
        let error = Record::load(dir.path()).knows_vault().unwrap_err();
        assert!(!error.may_pass());
        assert!(error.to_string().contains("backstay protect"), "{error}");
        fs::write(dir.path().join(UPKEEP_FILE), b"{").unwrap();
        assert!(Record::load(dir.path()).upkeep.unwrap().message.contains("cannot be read"));
    }

    #[test]
    fn failed_upkeep_is_shown_until_it_works() {
        let dir = tempfile::tempdir().unwrap();
        let failed = |what: &str| VaultError::Url { url: what.into(), reason: "away".into() };
        note_upkeep(dir.path(), Some(&failed("first")));
        let first = Record::load(dir.path()).upkeep.unwrap();
        note_upkeep(dir.path(), Some(&failed("second")));
        let second = Record::load(dir.path()).upkeep.unwrap();
        assert_eq!(first.since_unix_ns, second.since_unix_ns);
        assert!(second.message.contains("second"));
        let mut record = Record::load(dir.path());
        record.note(&Ok(shipped()), "/v", dir.path());
        assert_eq!(Record::load(dir.path()).upkeep, Some(second), "a cycle says nothing of it");
        note_upkeep(dir.path(), None);
        assert_eq!(Record::load(dir.path()).upkeep, None);
    }

    #[test]
    fn worries_about_keys_are_news_once_and_end() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!note_keys(dir.path(), &[]));
        assert!(note_keys(dir.path(), &[Worry::Alone]));
        assert!(!note_keys(dir.path(), &[Worry::Alone]));
        assert!(Record::load(dir.path()).keys.unwrap().message.contains("only keys"));
        assert!(note_keys(dir.path(), &[Worry::Unproved { since_unix_ns: 1 }]));
        assert!(note_keys(dir.path(), &[]), "that it ended is news");
        assert_eq!(Record::load(dir.path()).keys, None);
    }

    /// What stopped a disk stays until it is mended, whatever else a person tries meanwhile.
    #[test]
    fn a_passing_failure_does_not_end_a_stop() {
        let dir = tempfile::tempdir().unwrap();
        let full = || CycleError::Vault(backstay_vault::VaultError::Full { object: "x".into() });
        let stop = CycleError::Vault(backstay_vault::VaultError::Inconsistent {
            object: "vault.json".into(),
            reason: "it is damaged".into(),
        });
        assert_eq!((stop.may_pass(), full().may_pass()), (false, true));
        let mut record = Record::default();
        record.note(&Err(full()), "v", dir.path());
        assert!(!record.is_stopped());
        record.note(&Err(stop), "v", dir.path());
        let said = record.failure.clone().unwrap().message;
        record.note(&Err(full()), "v", dir.path());
        assert!(record.is_stopped());
        assert_eq!(record.failure.unwrap().message, said);
        assert!(Record::load(dir.path()).is_stopped());
    }
}
