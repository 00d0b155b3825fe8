//! Whether the vault can be looked after.

use super::{Cause, Facts, ids};

pub(super) fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    let failed = facts.record.upkeep.as_ref().map(|failure| {
        let reason = format!(
            "its vault cannot be looked after (points thinned out, segments merged): {}",
            failure.message
        );
        let advice =
            format!("cycles go on; mend what it says, then: backstay prune {}", facts.name);
        Cause::warning(ids::UPKEEP_FAILED, reason).advise(advice).since(failure.since_unix_ns)
    });
    failed.into_iter().collect()
}
