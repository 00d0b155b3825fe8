//! Whether the backing is the one that the driver opened.

use super::{Cause, Facts, ids};

pub(super) fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    let fault = facts.driver.and_then(|driver| driver.backing_fault.as_ref());
    let cause = fault.map(|fault| {
        let cause = match fault.kind.spoils_points() {
            true => Cause::critical(ids::BACKING_FAULT, &fault.message),
            false => Cause::warning(ids::BACKING_EXTENDED, &fault.message),
        };
        cause.advise(fault.advice(facts.name)).since(fault.since_unix_ns)
    });
    cause.into_iter().collect()
}
