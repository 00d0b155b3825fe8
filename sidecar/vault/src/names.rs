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
use std::time::Duration;

use backstay_host::clock;
use backstay_types::{Classified, DiskId, DiskName};

use crate::error::VaultError;
use crate::format::document::{DiskRecord, NameRecord, VaultRecord};
use crate::format::key::{Folder, ObjectKey, Piece};
use crate::store::{Vault, now_unix_ns};

/// Most steps from an old name to the name that holds now.
const RENAMES_FOLLOWED: usize = 64;

/// How often, and how long apart, a claimant looks what another does that has overtaken it and has no record.
const CONFIRM_LOOKS: u32 = 40;
const CONFIRM_EVERY: Duration = Duration::from_millis(50);

/// The key of a document of a name.
fn name_key(name: &DiskName, number: u64) -> ObjectKey {
    ObjectKey::Name(name.clone(), number)
}

/// The number of the next document of a name.
fn next_number(name: &DiskName, newest: Option<u64>) -> Result<u64, VaultError> {
    newest.unwrap_or(0).checked_add(1).ok_or_else(|| VaultError::Inconsistent {
        object: name_key(name, u64::MAX).into(),
        reason: "no document of a name has such a number: remove it".into(),
    })
}

/// A disk, or the name of one, whose document is damaged.
#[derive(Debug)]
pub struct DamagedDisk {
    /// Its name, if that can be told.
    pub name: Option<DiskName>,
    /// Which disk, if that can be told.
    pub disk: Option<DiskId>,
    /// What is damaged.
    pub why: VaultError,
}

/// Who has a name.
enum Holder {
    /// A disk that has a record.
    Disk(NameRecord),
    /// Nobody: its disk gave it back.
    GivenBack(NameRecord),
    /// Nobody: there are only claims of disks that have no record.
    None,
}

impl Vault {
    /// All disks with the names they have now, sorted by them.
    ///
    /// # Errors
    /// If the vault cannot be read, or a record is damaged.
    pub fn disks(&self) -> Result<Vec<DiskRecord>, VaultError> {
        let (disks, damaged) = self.list_disks()?;
        damaged.into_iter().next().map_or(Ok(disks), |damaged| Err(damaged.why))
    }

    /// The disks that can be read, as [`Self::disks`] gives them, and beside them what cannot be: one damaged document
    /// hides no other disk.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn list_disks(&self) -> Result<(Vec<DiskRecord>, Vec<DamagedDisk>), VaultError> {
        let (mut disks, mut damaged) = (vec![], vec![]);
        for (disk, read) in self.each_record()? {
            match read {
                Ok(record) => disks.push(record),
                Err(why) => damaged.push(DamagedDisk { name: None, disk: Some(disk), why }),
            }
        }
        let mut now: HashMap<DiskId, NameRecord> = HashMap::new();
        for name in self.listed_names()? {
            let held = match self.name_record(&name) {
                Ok(held) => held,
                Err(why) if why.is_damage() => {
                    // Whose it is says the newest claim, even if that disk's record is what is damaged.
                    let newest = self.newest_of_name(&name).ok().flatten();
                    let disk = newest.map(|(_, newest)| newest.disk);
                    let mut known = damaged.iter_mut().filter(|d| disk.is_some() && d.disk == disk);
                    match known.next() {
                        Some(known) => known.name = Some(name),
                        None => damaged.push(DamagedDisk { name: Some(name), disk, why }),
                    }
                    continue;
                }
                Err(e) => return Err(e),
            };
            let Some(held) = held.filter(|held| held.renamed_to.is_none()) else { continue };
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
        Ok((disks, damaged))
    }

    /// The disk that has a name now.
    ///
    /// # Errors
    /// If there is none; [`VaultError::Renamed`] if there was one and it has another name now.
    pub fn disk_named(&self, name: &DiskName) -> Result<DiskRecord, VaultError> {
        let none =
            || VaultError::NotFound { object: format!("a disk named {name} in {}", self.url()) };
        let Some(newest) = self.numbers_of(name)?.pop() else {
            return self.disk_of_record(name)?.or(self.disk_by_identity(name)?).ok_or_else(none);
        };
        match self.holder_up_to(name, newest)? {
            Holder::Disk(held) => Ok(DiskRecord { name: name.clone(), ..self.disk(held.disk)? }),
            Holder::GivenBack(NameRecord { renamed_to: Some(to), .. }) => {
                let to = self.follow(to)?;
                Err(VaultError::Renamed { name: name.clone(), to })
            }
            Holder::GivenBack(_) | Holder::None => Err(none()),
        }
    }

    /// Whether a disk is found by the name that it was made under and goes by on its host.
    ///
    /// # Errors
    /// If who looks for that name finds another disk, or none; or the vault cannot be read.
    pub fn check_name(&self, name: &DiskName, disk: DiskId) -> Result<(), VaultError> {
        if self.disk(disk)?.name != *name {
            return Ok(());
        }
        match self.disk_named(name) {
            Ok(found) if found.disk != disk => Err(VaultError::Inconsistent {
                object: Folder::NamesOf(name.clone()).to_string(),
                reason: format!(
                    "it leads to disk {}, and disk {disk} goes by that name here: anyone who restores {name} elsewhere gets \
                     another disk",
                    found.disk
                ),
            }),
            Ok(_) | Err(VaultError::Renamed { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The disk whose identity was given in the place of a name, as when the document of its name is lost.
    fn disk_by_identity(&self, name: &DiskName) -> Result<Option<DiskRecord>, VaultError> {
        let Ok(disk) = name.as_str().parse::<uuid::Uuid>() else { return Ok(None) };
        match self.disk_by_id(DiskId::from_bytes(disk.into_bytes())) {
            Err(VaultError::NotFound { .. }) => Ok(None),
            disk => disk.map(Some),
        }
    }

    /// Takes a name for a disk that has none yet. Taking it again does nothing. The name is the disk's only when its
    /// record is there, too: see [`Self::found_disk`].
    ///
    /// # Errors
    /// [`VaultError::NameTaken`] if another disk has it; or the vault cannot be read or written.
    pub fn claim_name(&self, name: &DiskName, disk: DiskId) -> Result<(), VaultError> {
        self.take_name(name, disk, 0)
    }

    /// Makes a new disk under a name, which of many who want it at once one gets.
    ///
    /// A claim is a document of the name, and may be overtaken as long as the claimant has no record: it may have been
    /// killed. So a claimant (1) puts its claim, (2) looks whether one that it overtook has a record by now, and gives
    /// way then, (3) puts its record, and (4) looks whether its claim is still the newest. Of two, the one that
    /// overtakes does 1 before 2, the other 3 before 4: one of them sees the other.
    ///
    /// # Errors
    /// [`VaultError::NameTaken`] if another disk has the name. Nothing of this disk is in the vault then. Or the vault
    /// cannot be read or written.
    pub fn found_disk(&self, record: &DiskRecord) -> Result<(), VaultError> {
        self.claim_name(&record.name, record.disk)?;
        self.create_disk(record)?;
        let confirmed = self.confirm_name(&record.name, record.disk);
        if matches!(confirmed, Err(VaultError::NameTaken { .. }))
            && let Err(e) = self.delete(&Piece::Record.of(record.disk))
        {
            // A source deletes nothing at a gateway. No name leads there.
            tracing::debug!("{e}: the record of a disk without a name is left behind");
        }
        confirmed
    }

    /// Whether a claim is still the newest, now that its disk has a record.
    fn confirm_name(&self, name: &DiskName, disk: DiskId) -> Result<(), VaultError> {
        for _ in 0..CONFIRM_LOOKS {
            match self.newest_of_name(name)? {
                Some((_, newest)) if newest.disk == disk => return Ok(()),
                Some((_, newest)) if self.is_there(newest.disk)? => {
                    return Err(VaultError::NameTaken { name: name.clone(), disk: newest.disk });
                }
                // It is about to give way or to put its record.
                _ => clock::sleep(CONFIRM_EVERY),
            }
        }
        // It was killed.
        self.take_name(name, disk, 0)
    }

    /// Whether a disk has a name, or was the last to have it.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn had_name(&self, disk: DiskId, name: &DiskName) -> Result<bool, VaultError> {
        Ok(self.newest_of_name(name)?.is_some_and(|(_, newest)| newest.disk == disk))
    }

    /// The document of a name that counts, if there is one: the newest, unless that is only a claim of a disk that has no
    /// record, and there is one below of a disk that has.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn name_record(&self, name: &DiskName) -> Result<Option<NameRecord>, VaultError> {
        let Some((number, newest)) = self.newest_of_name(name)? else { return Ok(None) };
        Ok(Some(match self.holder_up_to(name, number)? {
            Holder::Disk(held) | Holder::GivenBack(held) => held,
            Holder::None => newest,
        }))
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
        let taken = |by: DiskId| Err(VaultError::NameTaken { name: name.clone(), disk: by });
        loop {
            let numbers = self.numbers_of(name)?;
            let newest = numbers.last().copied();
            let mut ours = None;
            match newest {
                None => {
                    if let Some(other) = self.disk_of_record(name)?.filter(|d| d.disk != disk) {
                        return taken(other.disk);
                    }
                }
                Some(newest) => {
                    let held: NameRecord = self.document(&name_key(name, newest))?;
                    let is_ours = held.disk == disk && held.renamed_to.is_none();
                    match self.holder_up_to(name, newest)? {
                        Holder::Disk(held) if held.disk != disk => return taken(held.disk),
                        Holder::Disk(_) if is_ours => return Ok(()),
                        _ => ours = is_ours.then_some(newest),
                    }
                }
            }
            let number = match ours {
                Some(number) => number,
                None => {
                    let number = next_number(name, newest)?;
                    let record = NameRecord {
                        name: name.clone(),
                        number: Some(number),
                        disk,
                        change,
                        renamed_to: None,
                        since_unix_ns: now_unix_ns(),
                    };
                    // If somebody else was first, what they put says who has it.
                    if !self.put_next(name, number, &record)? {
                        continue;
                    }
                    number
                }
            };
            // Whom this claim overtook may have got its record meanwhile, and be sure of the name.
            let below = numbers.iter().rev().copied().find(|&below| below < number);
            return match below.map(|below| self.holder_up_to(name, below)).transpose()? {
                Some(Holder::Disk(held)) if held.disk != disk => {
                    self.give_way(name, number, &held)?;
                    taken(held.disk)
                }
                _ => Ok(()),
            };
        }
    }

    /// Gives a name back to the disk whose claim was overtaken, and has a record.
    fn give_way(&self, name: &DiskName, ours: u64, to: &NameRecord) -> Result<(), VaultError> {
        let number = next_number(name, Some(ours))?;
        let record =
            NameRecord { number: Some(number), since_unix_ns: now_unix_ns(), ..to.clone() };
        match self.put_next(name, number, &record) {
            // Somebody's claim came after ours; or a gateway puts no name of another's disk. A claim of a disk
            // without a record does not count.
            Ok(_) => Ok(()),
            Err(e) => {
                tracing::debug!("{e}: the claim of a disk without a record is left behind");
                Ok(())
            }
        }
    }

    /// Who has a name by its documents up to one: the newest of a disk that has a record.
    fn holder_up_to(&self, name: &DiskName, number: u64) -> Result<Holder, VaultError> {
        let numbers = self.numbers_of(name)?;
        for number in numbers.into_iter().rev().filter(|&n| n <= number) {
            let held: NameRecord = self.document(&name_key(name, number))?;
            if held.renamed_to.is_some() {
                return Ok(Holder::GivenBack(held));
            }
            if self.is_there(held.disk)? {
                return Ok(Holder::Disk(held));
            }
        }
        Ok(Holder::None)
    }

    /// Says of a name that its disk has another one now.
    fn give_back(&self, name: &DiskName, disk: DiskId, to: &DiskName) -> Result<(), VaultError> {
        loop {
            let (number, change) = match self.newest_of_name(name)? {
                Some((_, held)) if held.disk != disk || held.renamed_to.is_some() => return Ok(()),
                Some((number, held)) => (next_number(name, Some(number))?, held.change),
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
        let Some(number) = self.numbers_of(name)?.pop() else { return Ok(None) };
        let key = name_key(name, number);
        Ok(Some((number, self.document(&key)?)))
    }

    /// The numbers of the documents of a name.
    fn numbers_of(&self, name: &DiskName) -> Result<Vec<u64>, VaultError> {
        self.numbers_to_newest(&Folder::NamesOf(name.clone()), |number| name_key(name, number))
    }

    /// The document of every name that counts.
    fn all_names(&self) -> Result<BTreeMap<String, NameRecord>, VaultError> {
        let mut newest = BTreeMap::new();
        for name in self.listed_names()? {
            if let Some(record) = self.name_record(&name)? {
                newest.insert(name.into(), record);
            }
        }
        Ok(newest)
    }

    /// Every name that there are documents of.
    fn listed_names(&self) -> Result<Vec<DiskName>, VaultError> {
        let documents = self.listed(&Folder::Names)?.into_iter();
        let mut names: Vec<DiskName> = documents
            .filter_map(|(key, _)| match key {
                ObjectKey::Name(name, _) => Some(name),
                _ => None,
            })
            .collect();
        names.dedup();
        Ok(names)
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
        match known.map_or_else(|| self.document::<VaultRecord>(&ObjectKey::Vault), Ok) {
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
