//! Whether the wall clock may decide about history.
//!
//! Nothing is deleted because of a date unless the wall clock agrees with what this host knows of time:
//! since the last look of this boot it moved as the boot clock did; after a reboot it does not lie
//! before the last look, nor far after it. Otherwise the clock *jumped*. A jump is explained when the
//! clock agrees again, or when the kernel says that a time server disciplines it; or a person accepts
//! it ([`accept`]). docs/decisions/0023 says why.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{boot_id, now_unix_ns, since_boot_ns};
use crate::atomic::Durability;
use crate::record::{RecordError, load, save};

/// The wall clock may differ from the boot clock by this between two looks.
pub const TOLERANCE: Duration = Duration::from_secs(120);
/// A host whose clock nobody looked at for longer, over a reboot, cannot say how long it was off.
pub const UNSEEN_MAX: Duration = Duration::from_secs(86_400);
/// The last trusted reading is written down again after this.
const REFRESH_NS: u64 = 60_000_000_000;
/// The record's file in a state directory.
const FILE: &str = ".clock.json";

/// What the clocks say at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// The boot of the kernel.
    pub boot: String,
    /// Nanoseconds since that boot, suspended time included.
    pub since_boot_ns: u64,
    /// The wall clock, nanoseconds since 1970.
    pub unix_ns: u64,
    /// Whether the kernel says that a time server disciplines the wall clock.
    #[serde(default)]
    pub synchronised: bool,
}

impl Reading {
    /// What the clocks say now.
    #[must_use]
    pub fn take() -> Self {
        Self {
            boot: boot_id(),
            since_boot_ns: since_boot_ns(),
            unix_ns: now_unix_ns(),
            synchronised: synchronised(),
        }
    }
}

/// Why the wall clock may not decide about history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doubt {
    /// It moved differently from the boot clock.
    Jumped {
        /// By how much.
        by: Duration,
        /// Ahead; otherwise back.
        ahead: bool,
    },
    /// It lies before the last look, over a reboot.
    Back {
        /// By how much.
        by: Duration,
    },
    /// It lies so far after the last look, over a reboot, that nothing confirms it.
    Unseen {
        /// How far.
        since: Duration,
    },
    /// What was remembered of it cannot be read.
    Forgotten {
        /// Why.
        reason: String,
    },
}

impl Doubt {
    /// A stable name, as causes of health have.
    #[must_use]
    pub fn id(&self) -> &'static str {
        match self {
            Self::Jumped { .. } | Self::Back { .. } => "clock-jumped",
            Self::Unseen { .. } | Self::Forgotten { .. } => "clock-untrusted",
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |long: &Duration| humantime_of(Duration::from_secs(long.as_secs().max(1)));
        match self {
            Self::Jumped { by, ahead } => {
                let way = if *ahead { "ahead" } else { "back" };
                write!(f, "the clock of this host jumped {} {way}", text(by))
            }
            Self::Back { by } => {
                write!(
                    f,
                    "the clock of this host is {} behind what it was before the reboot",
                    text(by)
                )
            }
            Self::Unseen { since } => write!(
                f,
                "the clock of this host moved on by {} over a reboot, and no time server confirms it",
                text(since)
            ),
            Self::Forgotten { reason } => {
                write!(f, "what was remembered of this host's clock cannot be read: {reason}")
            }
        }
    }
}

/// Days, hours, minutes, seconds: the two largest.
fn humantime_of(long: Duration) -> String {
    let seconds = long.as_secs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let mut rest = seconds;
    let mut parts = vec![];
    for (size, unit) in units {
        if rest >= size && parts.len() < 2 {
            parts.push(format!("{} {unit}", rest / size));
            rest %= size;
        }
    }
    parts.join(" ")
}

/// What a state directory remembers of the clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Remembered {
    /// The last reading that was trusted.
    trusted: Option<Reading>,
    /// Since when the clock is doubted, by the boot clock where that is known.
    doubted_since_unix_ns: Option<u64>,
}

/// The clock, judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// What it says.
    pub reading: Reading,
    /// Why it may not decide about history; `None`: it may.
    pub doubt: Option<Doubt>,
    /// Since when it is doubted, nanoseconds since 1970.
    pub since_unix_ns: Option<u64>,
}

/// Judges a reading by the last one that was trusted.
#[must_use]
pub fn judge(trusted: Option<&Reading>, now: &Reading) -> Option<Doubt> {
    let before = trusted?;
    if now.synchronised {
        return None;
    }
    let wall = i128::from(now.unix_ns) - i128::from(before.unix_ns);
    let long =
        |ns: i128| Duration::from_nanos(u64::try_from(ns.unsigned_abs()).unwrap_or(u64::MAX));
    if now.boot == before.boot && !now.boot.is_empty() {
        let drift = wall - (i128::from(now.since_boot_ns) - i128::from(before.since_boot_ns));
        let jumped = long(drift) > TOLERANCE;
        return jumped.then(|| Doubt::Jumped { by: long(drift), ahead: drift > 0 });
    }
    if wall < 0 {
        return (long(wall) > TOLERANCE).then(|| Doubt::Back { by: long(wall) });
    }
    (long(wall) > UNSEEN_MAX).then(|| Doubt::Unseen { since: long(wall) })
}

fn path(state: &Path) -> PathBuf {
    state.join(FILE)
}

fn judged(remembered: &Result<Remembered, RecordError>, reading: Reading) -> Judged {
    let (doubt, since) = match remembered {
        Ok(remembered) => {
            (judge(remembered.trusted.as_ref(), &reading), remembered.doubted_since_unix_ns)
        }
        Err(_) if reading.synchronised => (None, None),
        Err(e) => (Some(Doubt::Forgotten { reason: e.to_string() }), None),
    };
    let since_unix_ns = doubt.is_some().then(|| since.unwrap_or(reading.unix_ns));
    Judged { reading, doubt, since_unix_ns }
}

/// Judges the clock by what a state directory remembers of it. Writes nothing.
#[must_use]
pub fn peek(state: &Path) -> Judged {
    judged(&load(&path(state)).map(Option::unwrap_or_default), Reading::take())
}

/// The same, and remembers a clock that is trusted, and since when it is not. A record that cannot be
/// written is only worth a warning: the older one judges more strictly.
#[must_use]
pub fn look(state: &Path) -> Judged {
    let remembered = load::<Remembered>(&path(state)).map(Option::unwrap_or_default);
    let now = judged(&remembered, Reading::take());
    let next = match (&now.doubt, &remembered) {
        (None, Ok(before)) if is_fresh(before, &now.reading) => return now,
        (None, _) => Remembered { trusted: Some(now.reading.clone()), doubted_since_unix_ns: None },
        (Some(_), Ok(before)) if before.doubted_since_unix_ns.is_none() => {
            Remembered { doubted_since_unix_ns: expected(before, &now.reading), ..before.clone() }
        }
        // What cannot be read stays, for a person to see.
        (Some(_), _) => return now,
    };
    if let Err(e) = save(&path(state), &next, Durability::Durable) {
        tracing::warn!("remembering the clock: {e}");
    }
    now
}

/// Whether the same clock was written down not long ago.
fn is_fresh(before: &Remembered, now: &Reading) -> bool {
    let age = |trusted: &Reading| now.since_boot_ns.checked_sub(trusted.since_boot_ns);
    before.doubted_since_unix_ns.is_none()
        && before.trusted.as_ref().is_some_and(|trusted| {
            trusted.boot == now.boot && age(trusted).is_some_and(|age| age < REFRESH_NS)
        })
}

/// What the wall clock would say if it had gone on as the boot clock did.
fn expected(before: &Remembered, now: &Reading) -> Option<u64> {
    let trusted = before.trusted.as_ref()?;
    match trusted.boot == now.boot {
        true => Some(trusted.unix_ns + now.since_boot_ns.saturating_sub(trusted.since_boot_ns)),
        false => Some(now.unix_ns),
    }
}

/// A person says that the clock is right: it is trusted from now on.
///
/// # Errors
/// If the state directory cannot be written.
pub fn accept(state: &Path) -> Result<(), RecordError> {
    let trusted = Some(Reading::take());
    save(&path(state), &Remembered { trusted, doubted_since_unix_ns: None }, Durability::Durable)
}

/// Whether the kernel says that a time server disciplines its clock. A clock that is set by hand does
/// not count as disciplined until the time server's program has seen it.
fn synchronised() -> bool {
    // SAFETY: a `timex` is plain numbers, so all zeroes are one; with `modes` 0 the call only reads the
    // kernel's state into it.
    #[allow(unsafe_code, reason = "libc has no safe way to ask")]
    let (state, status) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex.status)
    };
    state >= 0 && state != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const DAY: u64 = 86_400 * SECOND;

    fn at(boot: &str, since_boot: u64, unix: u64) -> Reading {
        let (since_boot_ns, unix_ns) = (since_boot * SECOND, unix * SECOND);
        Reading { boot: boot.into(), since_boot_ns, unix_ns, synchronised: false }
    }

    #[test]
    fn a_clock_is_judged_by_the_boot_clock() {
        let before = at("a", 100, 1_000_000);
        let judge = |now: Reading| judge(Some(&before), &now);
        assert_eq!(super::judge(None, &before), None);
        assert_eq!(judge(at("a", 700, 1_000_600)), None);
        // Suspended for a week: the boot clock knows.
        assert_eq!(judge(at("a", 605_000, 1_604_900)), None);
        for (unix, ahead) in [(1_000_010 + 40 * 86_400, true), (10, false)] {
            let doubt = judge(at("a", 110, unix)).unwrap();
            assert!(matches!(doubt, Doubt::Jumped { ahead: way, .. } if way == ahead), "{doubt}");
            assert_eq!(doubt.id(), "clock-jumped");
            let disciplined = Reading { synchronised: true, ..at("a", 110, unix) };
            assert_eq!(judge(disciplined), None);
        }
        // A virtual machine was paused for a day: only a time server tells that from a clock that was set forward.
        let resumed = at("a", 160, 1_000_060 + 86_400);
        assert!(matches!(judge(resumed.clone()), Some(Doubt::Jumped { ahead: true, .. })));
        assert_eq!(judge(Reading { synchronised: true, ..resumed }), None);
        let forty = judge(at("a", 107, 1_000_007 + 40 * 86_400)).unwrap();
        assert_eq!(forty.to_string(), "the clock of this host jumped 40 d ahead");
        // After a reboot.
        assert_eq!(judge(at("b", 1, 1_000_500)), None);
        assert!(matches!(judge(at("b", 1, 900_000)), Some(Doubt::Back { .. })));
        let long = judge(at("b", 1, 1_000_000 + 40 * 86_400)).unwrap();
        assert!(long.to_string().contains("40 d") && long.id() == "clock-untrusted", "{long}");
    }

    #[test]
    fn what_is_trusted_is_remembered_and_a_jump_until_it_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let write = |reading: Reading| {
            let all = Remembered { trusted: Some(reading), doubted_since_unix_ns: None };
            save(&path(dir.path()), &all, Durability::Durable).unwrap();
        };
        let remembered = || load::<Remembered>(&path(dir.path())).unwrap().unwrap();
        assert_eq!(look(dir.path()).doubt, None);
        assert!(remembered().trusted.is_some());
        // Forty days were taken off the clock since: as if it had been ahead then.
        let now = Reading::take();
        if now.synchronised {
            return;
        }
        write(Reading { unix_ns: now.unix_ns + 40 * DAY, ..now.clone() });
        assert_eq!(peek(dir.path()).doubt.unwrap().id(), "clock-jumped");
        assert_eq!(remembered().doubted_since_unix_ns, None, "a peek writes nothing");
        let first = look(dir.path());
        assert!(first.doubt.is_some());
        let again = look(dir.path());
        assert_eq!(again.since_unix_ns, remembered().doubted_since_unix_ns);
        accept(dir.path()).unwrap();
        assert_eq!((look(dir.path()).doubt, remembered().doubted_since_unix_ns), (None, None));
        std::fs::write(path(dir.path()), b"{").unwrap();
        assert_eq!(look(dir.path()).doubt.unwrap().id(), "clock-untrusted");
        assert_eq!(std::fs::read(path(dir.path())).unwrap(), b"{");
        accept(dir.path()).unwrap();
        assert_eq!(look(dir.path()).doubt, None);
    }
}
