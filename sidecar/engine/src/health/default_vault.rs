//! Whether the default vault was changed and left the disk behind.

use super::{Cause, Facts, ids};
use crate::home::{Home, same_url};

pub(super) fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    left_behind(facts).into_iter().collect()
}

/// Of a disk that went to the default vault because nobody said anything else. What its own settings say is told in
/// vault.rs.
fn left_behind(facts: &Facts<'_>) -> Option<Cause> {
    let (name, default) = (facts.name, &facts.config.vault);
    let home = Home::load(&facts.paths.state).ok()??;
    let ignored = facts.config.disk.get(name).is_some_and(|disk| disk.vault_ignored.is_some());
    if home.was_default != Some(true) || same_url(&home.url, default) || ignored {
        return None;
    }
    let stays = &home.url;
    let reason = format!(
        "the default vault is now {default}; this disk stays in {stays}, where its recovery points are"
    );
    let advice = format!(
        "backstay set {name} --vault {default} moves it, with a full copy; backstay set {name} --vault {stays} says that \
         it is to stay"
    );
    Some(Cause::warning(ids::VAULT_DEFAULT_CHANGED, reason).advise(advice))
}
