//! Whose a disk is: a certificate has names of disks, objects have identities.
//!
//! What the vault's documents of names say decides, with one thing that they do not: anyone who could put a
//! document of *its* name for *another's* disk would own that. So a name counts only if the disk was made
//! with it, or if it was given it when it was somebody's already (a rename), and such a document is
//! taken only from the disk's owner ([`crate::admission`]).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstay_host::clock;
use backstay_types::{DiskId, DiskName};
use backstay_vault::{Vault, VaultError};

use crate::pki::{Disks, Identity};

/// How long what was found is believed. What a certificate has it could have had a moment ago.
const BELIEVED: Duration = Duration::from_secs(10);
/// How long it is believed while the store does not answer, of segments that are kept here until it does.
const BELIEVED_AWAY: Duration = Duration::from_secs(3600);
/// Most names that are remembered.
const NAMES_MAX: usize = 65_536;

/// What a certificate has to do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// It is one of its disks.
    Own,
    /// The disk has a name of the certificate's and no record yet: it is being made.
    Begun,
    /// There is no such disk.
    Unknown,
    /// It is another's.
    Others,
}

/// Which disk a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meant {
    Disk(DiskId),
    Begun(DiskId),
    None,
}

/// Finds out whose disks are, and remembers it for a while.
#[derive(Debug, Default)]
pub struct Owners {
    known: Mutex<HashMap<DiskName, (Instant, DiskId)>>,
}

impl Owners {
    /// What a certificate has to do with a disk. Blocks.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn standing(
        &self,
        vault: &Vault,
        who: &Identity,
        disk: DiskId,
    ) -> Result<Ownership, VaultError> {
        let names = match &who.disks {
            Disks::Named(names) => names,
            Disks::All => {
                return Ok(match record(vault, disk)? {
                    Some(_) => Ownership::Own,
                    None => Ownership::Unknown,
                });
            }
        };
        if names.iter().any(|name| self.known(name) == Some(disk)) {
            return Ok(Ownership::Own);
        }
        for name in names {
            match self.meant(vault, name)? {
                Meant::Disk(found) if found == disk => return Ok(Ownership::Own),
                Meant::Begun(found) if found == disk => return Ok(Ownership::Begun),
                _ => {}
            }
        }
        Ok(match record(vault, disk)? {
            Some(_) => Ownership::Others,
            None => Ownership::Unknown,
        })
    }

    /// Whether a disk was one of the certificate's not long ago.
    #[must_use]
    pub fn was_own(&self, who: &Identity, disk: DiskId) -> bool {
        let Disks::Named(names) = &who.disks else { return false };
        names.iter().any(|name| self.known_for(name, BELIEVED_AWAY) == Some(disk))
    }

    /// The disks of a certificate; `None`: all there are. Blocks.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn disks(&self, vault: &Vault, who: &Identity) -> Result<Option<Vec<DiskId>>, VaultError> {
        let Disks::Named(names) = &who.disks else { return Ok(None) };
        let mut disks = vec![];
        for name in names {
            match self.meant(vault, name)? {
                Meant::Disk(disk) | Meant::Begun(disk) => disks.push(disk),
                Meant::None => {}
            }
        }
        Ok(Some(disks))
    }

    fn meant(&self, vault: &Vault, name: &DiskName) -> Result<Meant, VaultError> {
        if let Some(disk) = self.known(name) {
            return Ok(Meant::Disk(disk));
        }
        let Some(held) = vault.name_record(name)? else {
            // A vault from before there were documents of names.
            return match vault.disk_named(name) {
                Ok(record) => Ok(self.remember(name, record.disk)),
                Err(VaultError::NotFound { .. } | VaultError::Renamed { .. }) => Ok(Meant::None),
                Err(e) => Err(e),
            };
        };
        if held.renamed_to.is_some() {
            return Ok(Meant::None);
        }
        Ok(match record(vault, held.disk)? {
            None => Meant::Begun(held.disk),
            Some(made_with) if made_with == *name || held.change > 0 => {
                self.remember(name, held.disk)
            }
            Some(_) => Meant::None,
        })
    }

    fn known(&self, name: &DiskName) -> Option<DiskId> {
        self.known_for(name, BELIEVED)
    }

    fn known_for(&self, name: &DiskName, believed: Duration) -> Option<DiskId> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).filter(|(at, _)| clock::since(*at) < believed).map(|(_, disk)| *disk)
    }

    fn remember(&self, name: &DiskName, disk: DiskId) -> Meant {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= NAMES_MAX {
            known.clear();
        }
        known.insert(name.clone(), (clock::monotonic(), disk));
        Meant::Disk(disk)
    }
}

/// The name that a disk was made with; `None` if it is not there.
fn record(vault: &Vault, disk: DiskId) -> Result<Option<DiskName>, VaultError> {
    match vault.disk(disk) {
        Ok(record) => Ok(Some(record.name)),
        Err(VaultError::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}
