//! Whether the vault is the one that was meant, and a safe place.

use super::{Cause, Facts, ids};
use crate::home::Home;
use crate::record::WrongVault;
use crate::scrub::Scrubbed;
use crate::silent::Silent;
use crate::vault_place;

/// What scrubs found that nobody has mended.
pub(super) fn scrubs(facts: &Facts<'_>) -> Vec<Cause> {
    let name = facts.name;
    let Some(scrubbed) = Scrubbed::load(&facts.paths.state) else { return vec![] };
    let mut causes = vec![];
    if let Some((cycle, why)) = scrubbed.damaged.last_key_value() {
        let count = scrubbed.damaged.len();
        // A point that was made since and has the whole disk is not among them.
        let last = facts.record.last.as_ref().map(|last| last.cycle);
        let newest_is = scrubbed.newest_is_damaged(last);
        let reason = match count {
            1 => format!("recovery point {cycle} is damaged: {why}"),
            _ => format!("{count} recovery points are damaged, the newest of them {cycle}: {why}"),
        };
        let cause = match newest_is {
            true => Cause::critical(ids::VAULT_DAMAGED, reason),
            false => Cause::warning(ids::VAULT_DAMAGED, reason),
        };
        let again = match newest_is {
            true => format!(
                " What the disk still has is shipped again by: backstay resync {name} --now --deep."
            ),
            false => String::new(),
        };
        causes.push(cause.advise(format!(
            "see backstay points {name}.{again} This ends when the damaged ones are retired, by the disk's rules or by: \
             backstay prune {name} --keep RULES (try it with --dry-run), or when backstay verify {name} finds them whole"
        )));
    }
    if let Some((at, why)) = &scrubbed.failed {
        let reason = format!("its points could not be read back: {why}");
        let advice = "it is retried automatically; fix the cause";
        causes.push(Cause::warning(ids::SCRUB_FAILED, reason).advise(advice).since(*at));
    }
    causes
}

pub(super) fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    let all = [wrong(facts), silent(facts), unknown(facts), ignored(facts), place(facts)];
    all.into_iter().flatten().collect()
}

/// Nothing is copied there, and it is looked at again by itself: a file system may be mounted again.
fn wrong(facts: &Facts<'_>) -> Option<Cause> {
    let failure = facts.record.failure.as_ref()?;
    let id = match failure.vault? {
        WrongVault::Gone => ids::VAULT_GONE,
        WrongVault::Other => ids::OTHER_VAULT,
    };
    let advice = format!(
        "bring the right vault back: then it goes on by itself. If the disk is to be shipped to another \
         vault: backstay set {} --vault URL",
        facts.name
    );
    let cause = Cause::critical(id, &failure.message).advise(advice).since(failure.since_unix_ns);
    Some(cause.retried(facts.record.next_unix_ns))
}

/// A cycle waits for it, and goes on as soon as it answers.
fn silent(facts: &Facts<'_>) -> Option<Cause> {
    let Silent { url, since_unix_ns, why, .. } = Silent::load(&facts.paths.state)?;
    let silent_for = facts.now_unix_ns.saturating_sub(since_unix_ns) / 1_000_000_000;
    let why = why.map_or_else(String::new, |why| format!(": {why}"));
    let reason = format!("vault {url} has not answered for {silent_for} s{why}");
    let advice =
        "the cycle goes on as soon as it answers; look at the store, and at the network between";
    Some(Cause::warning(ids::VAULT_SILENT, reason).advise(advice).since(since_unix_ns))
}

fn unknown(facts: &Facts<'_>) -> Option<Cause> {
    let e = Home::load(&facts.paths.state).err()?;
    let reason = format!("the vault of its recovery points is unknown: {e}");
    let advice = format!("name it: backstay set {} --vault URL", facts.name);
    Some(Cause::critical(ids::VAULT_UNKNOWN, reason).advise(advice))
}

fn ignored(facts: &Facts<'_>) -> Option<Cause> {
    let disk = facts.config.disk.get(facts.name)?;
    let (set, home) = (disk.vault_ignored.as_ref()?, disk.vault.as_ref()?);
    let reason = format!(
        "its settings name vault {set}, and its recovery points are in {home}, where they go on"
    );
    let advice = format!("to ship it to {set}: backstay set {} --vault {set}", facts.name);
    Some(Cause::warning(ids::VAULT_SETTING, reason).advise(advice))
}

/// A vault that is lost together with the disk. Of a disk that is served, or was shipped: others have no backing that
/// is known.
fn place(facts: &Facts<'_>) -> Option<Cause> {
    let url = facts.config.vault_of(facts.name);
    let backing = &facts.driver?.backing;
    let found = vault_place::shared(url, backing)?;
    let reason = found.reason(url);
    let advice = "use a vault on another host or in an object store; if this one is meant, set allow_local_vault = true";
    Some(match facts.config.allow_local_vault {
        true => Cause::note(found.id(), reason),
        false => Cause::warning(found.id(), reason).advise(advice),
    })
}
