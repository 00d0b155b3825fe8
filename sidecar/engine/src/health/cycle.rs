//! How the last cycles went, and how old the newest point is.

use std::time::Duration;

use super::{Cause, Facts, ids};
use crate::record::{Failure, VaultTrouble};
use crate::status::LATE_MIN;

/// How late a point may be before that is worth a warning: so many intervals, and never less than
/// [`LATE_MIN`].
const LATE_INTERVALS: u32 = 3;

pub(super) fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    if facts.only_looked_at {
        return vec![];
    }
    // That another vault is there is told in vault.rs.
    let failure = facts.record.failure.as_ref().filter(|failure| failure.vault.is_none());
    let failure = failure.map(|failure| failed(facts, failure));
    failure.into_iter().chain(point_warning(facts)).chain(age(facts)).collect()
}

fn failed(facts: &Facts<'_>, failure: &Failure) -> Cause {
    let name = facts.name;
    if let Some(trouble) = failure.trouble {
        return of_vault(facts, failure, trouble).since(failure.since_unix_ns);
    }
    let cause = match (failure.fenced, failure.person_must_act) {
        (true, _) => Cause::critical(ids::FENCED, &failure.message).advise(format!(
            "its users are not affected, but nothing they write is protected any more. If the other \
             side is right, stop using this disk and bring it back: backstay failback {name} --to \
             BACKING. If this side is right, protect it under another name (unprotect {name} \
             --keep-points first)"
        )),
        (false, true) => Cause::critical(ids::CYCLE_STOPPED, &failure.message)
            .advise(format!("fix the cause, then run: backstay resume {name}")),
        (false, false) => {
            let reason = format!("{} ({} times)", failure.message, facts.record.failures);
            Cause::warning(ids::CYCLE_FAILED, reason)
                .advise("it is retried automatically")
                .retried(facts.record.next_unix_ns)
        }
    };
    cause.since(failure.since_unix_ns)
}

/// What a cycle found out about the vault: nothing is protected until a person acts, though it is tried again where that may
/// help.
fn of_vault(facts: &Facts<'_>, failure: &Failure, trouble: VaultTrouble) -> Cause {
    let name = facts.name;
    match trouble {
        VaultTrouble::Refused => Cause::critical(ids::STORE_REFUSED, &failure.message)
            .advise(format!(
                "fix what the store reports; it is retried automatically, at once when the credentials file changes, or now with: backstay cycle {name}"
            ))
            .retried(facts.record.next_unix_ns),
        // The message names the way out.
        VaultTrouble::PointsVanished => Cause::critical(ids::POINTS_VANISHED, &failure.message)
            .advise(format!(
                "bring the vault back, then: backstay resume {name}; or, if the points are lost for good: backstay resync \
                 {name} --now --the-disk-is-right"
            )),
        VaultTrouble::DocumentDamaged => {
            Cause::critical(ids::VAULT_DAMAGED, &failure.message).advise(format!(
                "no cycle writes this object again: bring it back from a copy of the vault (a backup, another version of \
                 the object), then: backstay resume {name}"
            ))
        }
        VaultTrouble::Damaged => {
            Cause::critical(ids::VAULT_DAMAGED, &failure.message).advise(format!(
                "ship again what is damaged: backstay resync {name} --now --deep; if that fails, all of it: --full \
                 instead of --deep. Where somebody mended it: backstay resume {name}"
            ))
        }
    }
}

fn point_warning(facts: &Facts<'_>) -> Option<Cause> {
    let warning = facts.record.last.as_ref()?.warning.as_ref()?;
    let advice = "see the disk's hooks in the configuration, and docs/reference/hooks.md";
    Some(Cause::warning(ids::POINT_WARNING, warning).advise(advice))
}

/// Only of a disk that is served: the newest point of one that nobody writes to does not grow old.
fn age(facts: &Facts<'_>) -> Option<Cause> {
    let driver = facts.driver?;
    let Some(rpo) = facts.rpo_ns.map(Duration::from_nanos) else {
        let advice = format!("a sidecar makes one, or: backstay cycle {}", facts.name);
        return driver
            .base
            .is_none()
            .then(|| Cause::warning(ids::NO_POINT, "no recovery point yet").advise(advice));
    };
    let interval = facts.interval();
    (rpo > LATE_MIN.max(interval * LATE_INTERVALS)).then(|| {
        let age = humantime::format_duration(Duration::from_secs(rpo.as_secs()));
        let interval = humantime::format_duration(interval);
        let reason = format!("the newest recovery point is {age} old, {interval} is its interval");
        Cause::warning(ids::POINT_LATE, reason)
            .advise("is a sidecar running, and is no blackout window on? See backstay jobs")
    })
}
