//! Lists: sorted, in pages, and of nothing but what the certificate's holder may see.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use backstay_types::DiskId;
use futures::TryStreamExt;
use hyper::StatusCode;
use object_store::path::Path;
use serde::Serialize;

use super::body::{Answer, with};
use super::request::{Asked, Refused, blocking};
use crate::owners::Ownership;
use crate::pki::Disks;
use backstay_vault::format::key::{Folder, ObjectKey};

/// Objects in a page.
const PAGE: usize = 5000;
/// Most folders in an answer.
const FOLDERS_MAX: usize = 100_000;

#[derive(Debug, Default, Serialize)]
struct Page {
    objects: Vec<Listed>,
    folders: Vec<String>,
    /// Where the next page begins.
    next: Option<String>,
}

#[derive(Debug, Serialize)]
struct Listed {
    key: String,
    size: u64,
}

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    prefix: String,
    after: String,
    folders: bool,
}

impl Query {
    /// Nothing in it is escaped: keys have no character that would have to be.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut query = Self::default();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=')? {
                ("prefix", prefix) => query.prefix = prefix.into(),
                ("after", after) => query.after = after.into(),
                ("folders", folders) => query.folders = folders == "1",
                _ => return None,
            }
        }
        let plain =
            |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
        (plain(&query.prefix) && plain(&query.after) && query.after.len() <= 512).then_some(query)
    }
}

/// Whose objects may be seen.
enum Visible {
    All,
    Of(HashSet<DiskId>),
}

impl Visible {
    fn key(&self, asked: &Asked, key: &str) -> bool {
        match (self, ObjectKey::parse(key)) {
            (_, None | Some(ObjectKey::Probe(_))) => false,
            (Self::All, _) => true,
            (Self::Of(disks), Some(ObjectKey::Disk(disk, _))) => disks.contains(&disk),
            (_, Some(ObjectKey::Name(name, _))) => asked.who.disks.has(&name),
            // Names of groups are everybody's; what is in their points is not.
            (_, Some(_)) => true,
        }
    }

    fn folder(&self, asked: &Asked, folder: &str) -> bool {
        match (self, Folder::parse(folder)) {
            (_, None | Some(Folder::Probes)) => false,
            (Self::All, _) => true,
            (Self::Of(disks), Some(Folder::Disk(disk) | Folder::In(disk, _))) => {
                disks.contains(&disk)
            }
            (_, Some(Folder::NamesOf(name))) => asked.who.disks.has(&name),
            (_, Some(_)) => true,
        }
    }
}

/// Answers a list.
pub(super) async fn list(asked: &Asked, query: &str) -> Result<Answer, Refused> {
    let bad = || Refused::BadRequest("that is no prefix of a vault's keys".into());
    let query = Query::parse(query).ok_or_else(bad)?;
    let folder = Folder::parse(&query.prefix).ok_or_else(bad)?;
    let no = || Refused::Forbidden("the certificate does not name this disk".into());
    let seen = match (&folder, &asked.who.disks) {
        (Folder::Probes, _) => return Err(bad()),
        (_, Disks::All) => Visible::All,
        (Folder::NamesOf(name), Disks::Named(names)) if !names.contains(name) => return Err(no()),
        (
            Folder::NamesOf(_)
            | Folder::Names
            | Folder::Groups
            | Folder::Group(_)
            | Folder::GroupPoints(_)
            | Folder::Keys
            | Folder::Proofs
            | Folder::ProofsOf(_),
            _,
        ) => Visible::Of(HashSet::new()),
        (Folder::Disk(disk) | Folder::In(disk, _), _) => match asked.standing(*disk).await? {
            Ownership::Others => return Err(no()),
            _ => Visible::Of(HashSet::from([*disk])),
        },
        (Folder::All | Folder::Disks, _) => {
            let (shared, who) = (Arc::clone(&asked.shared), Arc::clone(&asked.who));
            let disks = blocking(move || Ok(shared.owners.disks(&shared.vault, &who)?)).await?;
            Visible::Of(disks.unwrap_or_default().into_iter().collect())
        }
    };
    let page = match query.folders {
        true => folders(asked, &query.prefix, &seen).await?,
        false => objects(asked, &query, &seen).await?,
    };
    let text = serde_json::to_vec(&page).map_err(|e| Refused::Store(e.to_string()))?;
    Ok(with(StatusCode::OK, "application/json", text.into()))
}

async fn folders(asked: &Asked, prefix: &str, seen: &Visible) -> Result<Page, Refused> {
    let path = Path::from(prefix);
    let listed = asked.shared.store.list_with_delimiter(Some(&path)).await?;
    let folders = listed.common_prefixes.iter().map(|folder| folder.as_ref().to_owned());
    let folders: Vec<String> = folders.filter(|folder| seen.folder(asked, folder)).collect();
    if folders.len() > FOLDERS_MAX {
        return Err(Refused::TooLong);
    }
    let objects = listed.objects.iter().filter(|meta| seen.key(asked, meta.location.as_ref()));
    let objects = objects.map(|meta| Listed { key: meta.location.to_string(), size: meta.size });
    Ok(Page { objects: objects.take(PAGE).collect(), folders, next: None })
}

/// The first page of what comes after a key. Not every store lists in order, so the smallest keys are picked:
/// memory is that of a page.
async fn objects(asked: &Asked, query: &Query, seen: &Visible) -> Result<Page, Refused> {
    let (prefix, after) = (Path::from(query.prefix.as_str()), Path::from(query.after.as_str()));
    let mut found = match query.after.is_empty() {
        true => asked.shared.store.list(Some(&prefix)),
        false => asked.shared.store.list_with_offset(Some(&prefix), &after),
    };
    let mut first: BTreeMap<String, u64> = BTreeMap::new();
    let mut more = false;
    while let Some(meta) = found.try_next().await? {
        let key = meta.location.to_string();
        if key <= query.after || !seen.key(asked, &key) {
            continue;
        }
        first.insert(key, meta.size);
        if first.len() > PAGE {
            first.pop_last();
            more = true;
        }
    }
    let next = first.keys().next_back().filter(|_| more).cloned();
    let objects = first.into_iter().map(|(key, size)| Listed { key, size }).collect();
    Ok(Page { objects, folders: vec![], next })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let parsed = Query::parse("prefix=disks/x&after=&folders=1").unwrap();
        let expected = Query { prefix: "disks/x".into(), after: String::new(), folders: true };
        assert_eq!(parsed, expected);
        assert_eq!(Query::parse(""), Some(Query::default()));
        for wrong in ["prefix", "x=1", "prefix=a%2fb", "prefix=a b", "after=\u{e9}"] {
            assert_eq!(Query::parse(wrong), None, "{wrong}");
        }
    }
}
