//! Whether the vault is the one that was meant, and a safe place.

use super::{Cause, Facts, ids};
use crate::record::WrongVault;

pub(super) fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    wrong(facts).into_iter().collect()
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
