//! Whether the vault can be looked after.

use super::{Cause, Facts, ids};

pub(super) fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    let failed = facts.record.upkeep.as_ref().map(|failure| {
        let reason = format!(
            "its vault cannot be looked after (points thinned out, segments merged): {}",
            failure.message
        );
        let advice =
            format!("cycles go on; fix the cause, then run: backstay prune {}", facts.name);
        Cause::warning(ids::UPKEEP_FAILED, reason).advise(advice).since(failure.since_unix_ns)
    });
    let unlisted = facts.record.withheld.as_ref();
    let unlisted = unlisted.filter(|note| note.why.cause == ids::HOLD_NOT_LISTED.as_str());
    let unlisted = unlisted.map(|note| {
        let advice = "see backstay holds; if nobody needs the point, let go of the hold as it says";
        Cause::warning(ids::HOLD_NOT_LISTED, note.why.reason.clone())
            .advise(advice)
            .since(note.since_unix_ns)
    });
    failed.into_iter().chain(unlisted).collect()
}
