//! Checks of the host, with explanations. They change nothing.

mod beside;
mod disk;
mod host;
mod system;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use backstay_front::paths::Roots;
use backstay_types::DiskName;
use backstay_vault::{Vault, VaultError, Vaults};
use serde::Serialize;

use crate::Config;
use crate::config::VAULT_DEFAULT;
use crate::health::{Cause, CauseId, Level};
use crate::prerequisites::Checked::{self, Bad, Good, Odd};
use crate::prerequisites::Verdict;
use crate::record::Record;
use crate::rollback_guard;

pub use disk::disk;
pub use host::host;

/// What findings of the host itself are about.
pub const HOST: &str = "host";

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Of what: [`HOST`], `vault`, or a disk's name.
    pub of: String,
    /// What was looked at.
    pub what: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found, and what to do if it is not good.
    pub found: String,
    /// The id of the health cause that it is, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<CauseId>,
}

impl Finding {
    fn new(of: &str, (what, found): (&'static str, Checked)) -> Self {
        let (verdict, found) = found.split();
        Self { of: of.into(), what, verdict, found, id: None }
    }

    /// A cause of a disk's health, as `status` shows it.
    #[must_use]
    pub fn of_cause(name: &DiskName, cause: &Cause) -> Self {
        let verdict = match cause.level {
            Level::Ok => Verdict::Ok,
            Level::Warning => Verdict::Warning,
            Level::Critical => Verdict::Failed,
        };
        let found = match &cause.advice {
            Some(advice) => format!("{}; {advice}", cause.reason),
            None => cause.reason.clone(),
        };
        Self { of: name.to_string(), what: "health", verdict, found, id: Some(cause.id) }
    }
}

/// Looks at every vault that the configuration or a disk names.
#[must_use]
pub fn vaults(roots: &Roots, config: &Config, names: &[DiskName]) -> Vec<Finding> {
    let mut urls: BTreeSet<&str> = names.iter().map(|name| config.vault_of(name)).collect();
    urls.insert(&config.vault);
    let look = |url: &&str| {
        let url = *url;
        let mut disks = names.iter().filter(|name| config.vault_of(name) == url).peekable();
        let warn = disks.peek().is_some() && !config.allow_local_vault;
        let has_points = disks.any(|name| Record::load(&roots.disk(name).state).last.is_some());
        Finding::new(
            "vault",
            ("reachable", vault(&config.vaults, &roots.state, (url, warn, has_points))),
        )
    };
    let keys = |url: &&str| keys(&config.vaults, url, config.encryption.stale());
    let reachable: Vec<_> = urls.iter().map(look).collect();
    reachable.into_iter().chain(urls.iter().filter_map(keys)).collect()
}

/// Whether the keys of an encrypted vault are where somebody can find them.
fn keys(vaults: &Vaults, url: &str, stale: Duration) -> Option<Finding> {
    // One that cannot be read is told above.
    let vault = vaults.open_to_look(url).ok().filter(Vault::is_encrypted)?;
    let found = match vault.worries(stale) {
        Err(e) => Bad(e.to_string()),
        Ok(worries) if worries.is_empty() => Good(format!("{url}: somebody else can open it, too")),
        Ok(worries) => {
            let all: Vec<_> = worries.iter().map(ToString::to_string).collect();
            Odd(format!("{url}: {}", all.join("; ")))
        }
    };
    Some(Finding::new("vault", ("keys", found)))
}

fn vault(vaults: &Vaults, state: &Path, (url, warn, has_points): (&str, bool, bool)) -> Checked {
    // Opened, not made: a doctor leaves no vaults behind.
    let look = |vault: Vault| {
        vault.probe()?;
        rollback_guard::keyring(state, &vault)
    };
    match vaults.open_to_look(url).and_then(look) {
        Ok(()) if url == VAULT_DEFAULT && warn => Odd(format!(
            "{url} can be written, but it is on this very host and lost with it; set vault = \"…\""
        )),
        Ok(()) => Good(format!("{url} can be written and read back")),
        Err(e) if has_points => Bad(format!(
            "{e}; disks of this host have their points there, and none can be made until it is back"
        )),
        Err(e @ VaultError::NoVault { .. }) => Odd(e.to_string()),
        Err(e) => Bad(format!("{e}; no recovery point can be made until this is mended")),
    }
}
