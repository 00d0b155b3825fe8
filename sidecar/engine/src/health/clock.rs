//! Whether the clock can be trusted with what points say about themselves.

use backstay_host::clock::trusted::{Doubt, Judged, peek};

use super::{Cause, Facts, ids};
use crate::status::is_from_the_future;

pub(super) fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    // Found out now: what upkeep wrote down may be older than the jump, or than its end.
    let Judged { doubt, since_unix_ns, .. } = peek(&facts.roots.state);
    let mut causes = vec![];
    if let Some(doubt) = doubt {
        let id = match doubt {
            Doubt::Jumped { .. } | Doubt::Back { .. } => ids::CLOCK_JUMPED,
            Doubt::Unseen { .. } | Doubt::Forgotten { .. } => ids::CLOCK_UNTRUSTED,
        };
        let reason = format!("{doubt}; no recovery point is retired until that is explained");
        let cause = Cause::warning(id, reason).advise(accept(facts));
        causes.push(since_unix_ns.into_iter().fold(cause, Cause::since));
    }
    if let Some(last) = facts.record.last.as_ref()
        && is_from_the_future(last.cut_unix_ns, facts.now_unix_ns)
    {
        let reason = format!(
            "recovery point {} is dated after this host's clock: how old it is, is not known",
            last.cycle
        );
        causes.push(Cause::warning(ids::POINT_FROM_THE_FUTURE, reason).advise(format!(
            "set the clock if it is wrong (date -u shows it); else the next recovery point ends this: backstay \
             cycle {}",
            facts.name
        )));
    } else if let Some(note) = &facts.record.withheld
        && note.why.cause == ids::POINT_FROM_THE_FUTURE.as_str()
    {
        let reason = format!("{}; no recovery point is retired", note.why.reason);
        let cause = Cause::warning(ids::POINT_FROM_THE_FUTURE, reason);
        causes.push(cause.since(note.since_unix_ns).advise(accept(facts)));
    }
    causes
}

fn accept(facts: &Facts<'_>) -> String {
    format!(
        "set the clock (date -u shows it); if it is right: backstay prune {} --accept-clock",
        facts.name
    )
}
