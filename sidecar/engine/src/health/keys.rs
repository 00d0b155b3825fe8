//! Whether the keys of an encrypted vault are where somebody can find them.

use super::{Cause, Facts, ids};

pub(super) fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    let worry = facts.record.keys.as_ref().map(|worry| {
        Cause::warning(ids::KEYS, &worry.message)
            .advise("see backstay key list, and docs/reference/encryption.md")
            .since(worry.since_unix_ns)
    });
    worry.into_iter().collect()
}
