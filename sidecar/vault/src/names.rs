//! Names of disks: who has one now, and where one that is gone has gone to.
//!
//! Nothing in a vault is ever changed, so each name has a numbered list of documents
//! (`names/<name>/<n>`) of which the newest holds. A name is taken by putting the next one, which only
//! one writer can, so two disks never have the same name; looking a name up takes one short list,
//! however many disks there are.
//!
//! A disk that is renamed takes its new name first and then gives back the old one. Killed in between
//! it has both, and both find it.
//!
//! Vaults made before there were such documents say names only in `disk.json`; for them, all disks are
//! looked through.

use std::collections::{BTreeMap, HashMap};

use backstay_types::{DiskId, DiskName};
use futures::TryStreamExt;
use object_store::path::Path;

use crate::error::VaultError;
use crate::format::document::{DiskRecord, NameRecord, VaultRecord};
use crate::store::{VAULT_OBJECT, Vault, now_unix_ns};

/// Most steps from an old name to the name that holds now.
const RENAMES_FOLLOWED: usize = 64;

/// The key of a document of a name.
fn name_key(name: &DiskName, number: u64) -> String {
    format!("names/{name}/{number:020}")
}

impl Vault {
    /// All disks with the names they have now, sorted by them.
    ///
    /// # Errors
    /// If the vault cannot be read, or a record is damaged.
    pub fn disks(&self) -> Result<Vec<DiskRecord>, VaultError> {
        let mut disks = self.disk_records()?;
        let mut now: HashMap<DiskId, NameRecord> = HashMap::new();
        for held in self.all_names()?.into_values().filter(|name| name.renamed_to.is_none()) {
            match now.get(&held.disk) {
                Some(other) if other.change > held.change => {}
                _ => drop(now.insert(held.disk, held)),
            }
        }
        for disk in &mut disks {
            if let Some(held) = now.remove(&disk.disk) {
                disk.name = held.name;
            }
        }
        disks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(disks)
    }

    /// The disk that has a name now.
    ///
    /// # Errors
    /// If there is none; [`VaultError::Renamed`] if there was one and it has another name now.
    pub fn disk_named(&self, name: &DiskName) -> Result<DiskRecord, VaultError> {
        match self.newest_of_name(name)? {
            Some((_, NameRecord { disk, renamed_to: None, .. })) => {
                Ok(DiskRecord { name: name.clone(), ..self.disk(disk)? })
            }
            Some((_, NameRecord { renamed_to: Some(to), .. })) => {
                let to = self.follow(to)?;
                Err(VaultError::Renamed { name: name.clone(), to })
            }
            None => match self.disk_of_record(name)? {
                Some(disk) => Ok(disk),
                None => Err(VaultError::NotFound {
                    object: format!("a disk named {name} in {}", self.url()),
                }),
            },
        }
    }

    /// Takes a name for a disk that has none yet. Taking it again does nothing.
    ///
    /// # Errors
    /// [`VaultError::NameTaken`] if another disk has it; or the vault cannot be read or written.
    pub fn claim_name(&self, name: &DiskName, disk: DiskId) -> Result<(), VaultError> {
        self.take_name(name, disk, 0)
    }

    /// Whether a disk has a name, or was the last to have it.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn had_name(&self, disk: DiskId, name: &DiskName) -> Result<bool, VaultError> {
        Ok(self.newest_of_name(name)?.is_some_and(|(_, newest)| newest.disk == disk))
    }

    /// The newest document of a name, if there is one.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn name_record(&self, name: &DiskName) -> Result<Option<NameRecord>, VaultError> {
        Ok(self.newest_of_name(name)?.map(|(_, record)| record))
    }

    /// Gives a disk another name. Done again after it was killed in the middle, it finishes.
    ///
    /// # Errors
    /// [`VaultError::NameTaken`] if another disk has the name; or the vault cannot be read or written.
    pub fn rename_disk(&self, disk: DiskId, new: &DiskName) -> Result<(), VaultError> {
        let record = self.disk(disk)?;
        let names = self.all_names()?;
        let mine = || names.values().filter(|name| name.disk == disk);
        let change = mine().map(|name| name.change).max().unwrap_or(0) + 1;
        self.take_name(new, disk, change)?;
        let mut old: Vec<DiskName> =
            mine().filter(|name| name.renamed_to.is_none()).map(|name| name.name.clone()).collect();
        if !names.contains_key(record.name.as_str()) {
            old.push(record.name);
        }
        for name in old.into_iter().filter(|name| name != new) {
            self.give_back(&name, disk, new)?;
        }
        Ok(())
    }

    fn take_name(&self, name: &DiskName, disk: DiskId, change: u64) -> Result<(), VaultError> {
        loop {
            let number = match self.newest_of_name(name)? {
                Some((_, held)) if held.disk == disk && held.renamed_to.is_none() => return Ok(()),
                Some((number, held)) => {
                    if held.renamed_to.is_none() && self.is_there(held.disk)? {
                        return Err(VaultError::NameTaken { name: name.clone(), disk: held.disk });
                    }
                    number + 1
                }
                None => {
                    if let Some(other) = self.disk_of_record(name)?.filter(|d| d.disk != disk) {
                        return Err(VaultError::NameTaken { name: name.clone(), disk: other.disk });
                    }
                    1
                }
            };
            let record = NameRecord {
                name: name.clone(),
                number: Some(number),
                disk,
                change,
                renamed_to: None,
                since_unix_ns: now_unix_ns(),
            };
            // If somebody else was first, what they put says who has it.
            if self.put_next(name, number, &record)? {
                return Ok(());
            }
        }
    }

    /// Says of a name that its disk has another one now.
    fn give_back(&self, name: &DiskName, disk: DiskId, to: &DiskName) -> Result<(), VaultError> {
        loop {
            let (number, change) = match self.newest_of_name(name)? {
                Some((_, held)) if held.disk != disk || held.renamed_to.is_some() => return Ok(()),
                Some((number, held)) => (number + 1, held.change),
                None => (1, 0),
            };
            let record = NameRecord {
                name: name.clone(),
                number: Some(number),
                disk,
                change,
                renamed_to: Some(to.clone()),
                since_unix_ns: now_unix_ns(),
            };
            if self.put_next(name, number, &record)? {
                return Ok(());
            }
        }
    }

    /// Puts a document of a name; `false` if there is one of that number.
    fn put_next(&self, name: &DiskName, n: u64, record: &NameRecord) -> Result<bool, VaultError> {
        let key = name_key(name, n);
        match self.put_document(&key, record) {
            Ok(()) => Ok(true),
            Err(VaultError::Store {
                source: object_store::Error::AlreadyExists { .. }, ..
            }) => {
                // Ours, if the answer to an earlier put was lost; then it must last, too.
                let ours = self.document::<NameRecord>(&key)? == *record;
                if ours {
                    self.settle(&key)?;
                }
                Ok(ours)
            }
            Err(e) => Err(e),
        }
    }

    /// The newest document of a name, and its number.
    fn newest_of_name(&self, name: &DiskName) -> Result<Option<(u64, NameRecord)>, VaultError> {
        let numbers = self.numbers_to_newest(&format!("names/{name}"), |n| name_key(name, n))?;
        let Some(&number) = numbers.last() else { return Ok(None) };
        let key = name_key(name, number);
        Ok(Some((number, self.document(&key)?)))
    }

    /// The newest document of every name.
    fn all_names(&self) -> Result<BTreeMap<String, NameRecord>, VaultError> {
        let prefix = Path::from("names");
        let listed = self.block_on(self.store().list(Some(&prefix)).try_collect::<Vec<_>>());
        let listed = listed.map_err(|e| VaultError::of_store("names", e))?;
        let mut names: Vec<DiskName> = listed
            .iter()
            .filter_map(|meta| meta.location.parts().nth(1)?.as_ref().parse().ok())
            .collect();
        names.sort();
        names.dedup();
        let mut newest = BTreeMap::new();
        for name in names {
            if let Some((_, record)) = self.newest_of_name(&name)? {
                newest.insert(name.into(), record);
            }
        }
        Ok(newest)
    }

    /// The name that a disk has that was renamed to `to` once.
    fn follow(&self, mut to: DiskName) -> Result<DiskName, VaultError> {
        for _ in 0..RENAMES_FOLLOWED {
            match self.newest_of_name(&to)? {
                Some((_, NameRecord { renamed_to: Some(next), .. })) => to = next,
                _ => break,
            }
        }
        Ok(to)
    }

    /// The disk whose record says a name of which there are no documents: only in a vault that was
    /// made before there were any.
    fn disk_of_record(&self, name: &DiskName) -> Result<Option<DiskRecord>, VaultError> {
        let known = self.inner.record.get().cloned();
        match known.map_or_else(|| self.document::<VaultRecord>(VAULT_OBJECT), Ok) {
            Ok(vault) if vault.names => Ok(None),
            Ok(_) | Err(VaultError::NotFound { .. }) => {
                Ok(self.disk_records()?.into_iter().find(|disk| disk.name == *name))
            }
            Err(e) => Err(e),
        }
    }

    /// Whether a disk got as far as its record.
    fn is_there(&self, disk: DiskId) -> Result<bool, VaultError> {
        match self.disk(disk) {
            Ok(_) => Ok(true),
            Err(VaultError::NotFound { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }
}
