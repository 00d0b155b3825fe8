//! Retention, where no source can reach: at the gateway.
//!
//! Any number of gateways may do it at the same time; the ledger sees to that (docs/explanation/format-vault.md).

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use backstay_types::DiskName;
use backstay_vault::retain::{Keep, Policy, Report, Time, maintain};
use backstay_vault::{Vault, VaultError};

/// How a disk is to be kept.
pub type PolicyOf = Box<dyn Fn(&DiskName) -> Policy + Send + Sync>;

/// What was done with a disk.
pub type Round = (DiskName, Result<Report, VaultError>);

/// What retention works by.
pub struct Retention {
    /// Where this gateway remembers its clock, and how long it has watched holds.
    pub state: PathBuf,
    /// From one round to the next.
    pub every: Duration,
    /// Points younger than this stay, whatever the rules say.
    pub immutable: Option<Duration>,
    /// How each disk is kept.
    pub policy_of: PolicyOf,
}

impl Retention {
    /// The rules for a disk, none of whose young points goes.
    #[must_use]
    pub fn policy(&self, disk: &DiskName) -> Policy {
        let mut policy = (self.policy_of)(disk);
        // Without rules all points stay anyway.
        if let (Some(keep), Some(immutable)) = (&policy.keep, self.immutable) {
            policy.keep = Some(with_all(keep, immutable));
        }
        policy
    }

    /// One round over all disks; what was done with each. Blocks.
    ///
    /// # Errors
    /// If the disks cannot be listed.
    pub fn round(&self, vault: &Vault, stop: &AtomicBool) -> Result<Vec<Round>, VaultError> {
        let mut done = vec![];
        for disk in vault.disks()? {
            if stop.load(std::sync::atomic::Ordering::Relaxed) {
                break;
            }
            let policy = self.policy(&disk.name);
            done.push((
                disk.name,
                maintain(vault, disk.disk, &policy, &Time::look(&self.state), stop),
            ));
        }
        Ok(done)
    }
}

/// Rules, and one more that keeps every point not older than a time.
fn with_all(keep: &Keep, time: Duration) -> Keep {
    let text = format!("{keep}, all {}s", time.as_secs().max(1));
    // What a rule is written as can be read again.
    text.parse().unwrap_or_else(|_| keep.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn immutable_is_one_more_rule() {
        let keep: Keep = "last 1".parse().unwrap();
        let more = with_all(&keep, Duration::from_secs(7 * 86_400));
        assert_eq!(more.to_string(), "last 1, all 7days");
    }
}
