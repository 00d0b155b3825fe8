//! How the last drill fared.

use super::{Cause, Facts, ids};
use crate::drills::Drilled;

pub(super) fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    let name = facts.name;
    let trouble = facts.record.drilled.as_ref().and_then(Drilled::trouble).map(|reason| {
        Cause::warning(ids::DRILL, reason).advise(format!(
            "see backstay points {name}; fix the cause, then run: backstay drill {name}"
        ))
    });
    trouble.into_iter().collect()
}
