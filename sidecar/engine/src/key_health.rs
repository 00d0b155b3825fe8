//! Checks that the keys of encrypted vaults can be found, while the disks still run.
//!
//! A thread checks the vault of each disk when the sidecar starts, when the configuration changes, and from
//! time to time. The result appears in the health of the disks ([`crate::status`]); a new problem is also
//! logged. Nothing waits for this thread. A vault that does not answer is reported by the cycles, not here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use backstay_host::clock;
use backstay_vault::Vaults;

use crate::record::note_keys;

/// From one look to the next.
const EVERY: Duration = Duration::from_secs(900);

/// State directories of the disks of each vault.
pub type DisksOf = BTreeMap<String, Vec<PathBuf>>;

/// Looks at keys once in a while.
#[derive(Debug, Default)]
pub struct Care {
    looked: Option<(DisksOf, Instant)>,
    looking: Option<JoinHandle<()>>,
}

impl Care {
    /// The next look is due at once.
    pub fn soon(&mut self) {
        self.looked = None;
    }

    /// Looks, if it is time, or there is another disk or vault. At most one look at a time.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn look(
        &mut self,
        vaults: &Vaults,
        disks: DisksOf,
        stale: Duration,
    ) -> std::io::Result<()> {
        let due = self
            .looked
            .as_ref()
            .is_none_or(|(seen, at)| *seen != disks || clock::since(*at) >= EVERY);
        if !due || self.looking.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        self.looked = Some((disks.clone(), clock::monotonic()));
        let vaults = vaults.clone();
        let looking = thread::Builder::new().name("keys".into());
        self.looking = Some(looking.spawn(move || look_at(&vaults, &disks, stale))?);
        Ok(())
    }
}

fn look_at(vaults: &Vaults, disks: &DisksOf, stale: Duration) {
    for (url, states) in disks {
        match vaults.open(url).and_then(|vault| vault.worries(stale)) {
            Ok(worries) => {
                let news = states.iter().filter(|state| note_keys(state, &worries)).count();
                if news > 0 {
                    worries.iter().for_each(|worry| tracing::warn!("vault {url}: {worry}"));
                }
            }
            Err(e) => tracing::debug!("vault {url}: its keys were not looked at: {e}"),
        }
    }
}
