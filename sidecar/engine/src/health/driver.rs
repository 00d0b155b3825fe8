//! What the driver of a disk says, and whether there is one.

use super::{Cause, Facts, ids};

pub(super) fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    let name = facts.name;
    let Some(driver) = facts.driver else {
        let advice = format!("mount it: backstay mount BACKING --name {name}");
        return vec![Cause::warning(ids::NOT_SERVED, "no driver serves the disk").advise(advice)];
    };
    let warning = driver.warning.as_ref().map(|warning| {
        Cause::warning(ids::DRIVER_WARNING, warning).advise(format!(
            "it is compared in its resync window, or now by: backstay resync {name} --now"
        ))
    });
    warning.into_iter().collect()
}
