//! The home of a disk: the vault that holds its points.
//!
//! The command that makes the first point records the home. From then on no command ships the disk to
//! another vault: not with `--vault`, not through the configuration, and not to a new vault at the same
//! URL. Only `backstay set NAME --vault URL` changes the home. So `cycle --vault X` and a sidecar with
//! `vault = Y` cannot split a disk's history in two.

use std::path::{Path, PathBuf};

use backstay_host::atomic::Durability;
use backstay_host::clock::now_unix_ns;
use backstay_host::record::{self, RecordError};
use backstay_types::{Class, Classified, DiskName};
use backstay_vault::{Vault, known};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::protection::Protection;
use crate::record::Record;

const FILE: &str = "home.json";

/// Where a disk's points are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// The vault's URL.
    pub url: String,
    /// Its identity; unknown of disks that were shipped before it was written down.
    pub vault: Option<Uuid>,
    /// Whether a point of the disk was committed there.
    pub has_points: bool,
    /// Since when, nanoseconds since 1970.
    pub since_unix_ns: u64,
    /// Whether it was the configuration's default vault then; unknown until somebody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was_default: Option<bool>,
}

/// Why a disk is not shipped to a vault.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Its points are in another one.
    #[error(
        "disk {name}: its recovery points are in vault {}, not in {url}. Nothing was shipped. To ship it to {url} \
         from now on: backstay set {name} --vault {url}",
        home.shown()
    )]
    Elsewhere {
        /// The disk.
        name: DiskName,
        /// Where they are.
        home: Box<Home>,
        /// Where it was to be shipped.
        url: String,
    },
    /// The vault does not know the disk any more.
    #[error(
        "disk {name}: vault {} has no record of it, although this host has shipped points there: they were \
         deleted, or an older copy of the vault is there. Nothing was shipped. If the vault cannot be \
         brought back, ship all of the disk again: backstay resync {name} --now --the-disk-is-right",
        home.shown()
    )]
    Forgotten {
        /// The disk.
        name: DiskName,
        /// The vault.
        home: Box<Home>,
    },
    /// What was written down cannot be read or written.
    #[error(
        "disk {name}: the vault of its recovery points is unknown: {source}. Nothing was shipped"
    )]
    Record {
        /// The disk.
        name: DiskName,
        /// Why.
        source: RecordError,
    },
}

impl Classified for HomeError {
    fn class(&self) -> Class {
        match self {
            // Where the points are is not known: nothing is shipped anywhere.
            Self::Elsewhere { .. } | Self::Forgotten { .. } | Self::Record { .. } => Class::Refused,
        }
    }
}

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

impl Home {
    /// Of a disk, by its state directory; none if it was never shipped.
    ///
    /// # Errors
    /// If the record cannot be read: then nobody knows.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, RecordError> {
        if let Some(home) = record::load(&file(state_dir))? {
            return Ok(Some(home));
        }
        // Where it was to go must be known, too.
        Protection::load(state_dir)?;
        // Shipped before it was written down.
        let Some(record) = Record::read(state_dir)? else { return Ok(None) };
        let (Some(_), Some(url)) = (&record.last, record.vault) else { return Ok(None) };
        Ok(Some(Self { url, vault: None, has_points: true, since_unix_ns: 0, was_default: None }))
    }

    /// Writes it down, durably.
    ///
    /// # Errors
    /// If the state directory cannot be written.
    pub fn save(&self, state_dir: &Path) -> Result<(), RecordError> {
        record::save(&file(state_dir), self, Durability::Durable)
    }

    /// A vault as the home of a disk that has no points there.
    #[must_use]
    pub fn in_vault(vault: &Vault) -> Self {
        Self {
            url: vault.url().into(),
            vault: vault.id(),
            has_points: false,
            since_unix_ns: now_unix_ns(),
            was_default: None,
        }
    }

    /// Whether it is this vault. The identity decides; a URL only where no identity was written down.
    #[must_use]
    pub fn is(&self, vault: &Vault) -> bool {
        match self.vault {
            Some(_) => self.vault == vault.id(),
            None => same_url(&self.url, vault.url()),
        }
    }

    /// For people: its URL and identity.
    #[must_use]
    pub fn shown(&self) -> String {
        match self.vault {
            Some(vault) => format!("{} ({vault})", self.url),
            None => self.url.clone(),
        }
    }
}

/// Whether two URLs are the same place.
#[must_use]
pub fn same_url(one: &str, other: &str) -> bool {
    match (known::canonical(one), known::canonical(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

/// Whether a disk may be shipped to a vault: its home, or any if it has none. `known_there`: whether the vault
/// has a record of it. To be asked before anything is put.
///
/// # Errors
/// If it may not.
pub fn check(
    state_dir: &Path,
    name: &DiskName,
    vault: &Vault,
    known_there: bool,
) -> Result<(), HomeError> {
    let Some(home) = load(state_dir, name)? else { return Ok(()) };
    let (name, home) = (name.clone(), Box::new(home));
    match home.is(vault) {
        false => Err(HomeError::Elsewhere { name, home, url: vault.url().into() }),
        true if home.has_points && !known_there => Err(HomeError::Forgotten { name, home }),
        true => Ok(()),
    }
}

/// Writes down that a disk's points are in a vault from now on, if that is not written down yet.
///
/// # Errors
/// If it cannot be: the next cycle might go elsewhere.
pub fn remember(
    state_dir: &Path,
    name: &DiskName,
    vault: &Vault,
    has_points: bool,
) -> Result<(), HomeError> {
    let before = load(state_dir, name)?;
    let has_points = has_points || before.as_ref().is_some_and(|home| home.has_points);
    if before.as_ref().is_some_and(|home| home.vault.is_some() && home.has_points == has_points) {
        return Ok(());
    }
    let home = match before {
        Some(home) => Home { vault: home.vault.or(vault.id()), has_points, ..home },
        None => Home { has_points, ..Home::in_vault(vault) },
    };
    home.save(state_dir).map_err(|source| HomeError::Record { name: name.clone(), source })
}

/// Writes down whether a disk's home is the default vault, once: a default that is changed later does not move the
/// disk, and that is to be said. Where it cannot be written, it is tried with the next cycle.
pub fn note_default(state_dir: &Path, default: &str) {
    let Ok(Some(home)) = record::load::<Home>(&file(state_dir)) else { return };
    if home.was_default.is_none() {
        let was_default = Some(same_url(&home.url, default));
        if let Err(e) = (Home { was_default, ..home }).save(state_dir) {
            tracing::warn!("{e}");
        }
    }
}

fn load(state_dir: &Path, name: &DiskName) -> Result<Option<Home>, HomeError> {
    Home::load(state_dir).map_err(|source| HomeError::Record { name: name.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_vault::Vaults;

    fn vault(dir: &Path, name: &str) -> Vault {
        let url = dir.join(name);
        Vaults::default().create(url.to_str().unwrap()).unwrap()
    }

    #[test]
    fn a_disk_is_shipped_to_its_home_alone() {
        let dir = tempfile::tempdir().unwrap();
        let name: DiskName = "db".parse().unwrap();
        let (first, second) = (vault(dir.path(), "one"), vault(dir.path(), "two"));
        let state = dir.path();
        check(state, &name, &first, false).unwrap();
        remember(state, &name, &first, false).unwrap();
        check(state, &name, &first, false).unwrap();
        let refused = check(state, &name, &second, false).unwrap_err();
        assert!(matches!(&refused, HomeError::Elsewhere { .. }), "{refused}");
        remember(state, &name, &first, true).unwrap();
        check(state, &name, &first, true).unwrap();
        assert!(matches!(check(state, &name, &first, false), Err(HomeError::Forgotten { .. })));
        // The same vault under another URL is the same vault; another one under the same URL is not.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("one"), &link).unwrap();
        let by_link = Vaults::default().open(link.to_str().unwrap()).unwrap();
        check(state, &name, &by_link, true).unwrap();
        backstay_host::atomic::rename(&dir.path().join("one"), &dir.path().join("away")).unwrap();
        let another = vault(dir.path(), "one");
        assert!(matches!(check(state, &name, &another, true), Err(HomeError::Elsewhere { .. })));
        // What cannot be read is no answer.
        std::fs::write(file(state), b"{").unwrap();
        assert!(matches!(check(state, &name, &first, true), Err(HomeError::Record { .. })));
    }

    #[test]
    fn a_disk_of_before_has_the_home_that_its_last_cycle_went_to() {
        let dir = tempfile::tempdir().unwrap();
        let name: DiskName = "db".parse().unwrap();
        let (first, second) = (vault(dir.path(), "one"), vault(dir.path(), "two"));
        let url = first.url().to_owned();
        let record =
            Record { last: Some(crate::record::shipped()), vault: Some(url), ..Record::default() };
        record.save(dir.path()).unwrap();
        assert!(check(dir.path(), &name, &second, true).is_err());
        remember(dir.path(), &name, &first, true).unwrap();
        assert_eq!(Home::load(dir.path()).unwrap().unwrap().vault, first.id());
    }
}
