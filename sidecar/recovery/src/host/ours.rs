//! What belongs to Backstay or to another disk of this host: no command writes there, with `--force` or without it.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use backstay_front::backing::record::BackingRecord;
use backstay_front::paths::Roots;
use backstay_types::DiskName;

use super::HostError;

/// The file that makes a folder a vault.
const VAULT_RECORD: &str = "vault.json";

/// Refuses a file or device to be written for disk `of`: it lies in a vault, in the state or the runtime folder, or it is the
/// backing of another disk of this host, served or not.
///
/// # Errors
/// A refusal that says what it is.
pub fn refuse_ours(roots: &Roots, of: &DiskName, to: &Path) -> Result<(), HostError> {
    let real = real(to);
    let refused = |what: String| {
        let to = to.display();
        let why = "Nothing was written; --force does not change that";
        Err(HostError::Refused(format!("{to} {what}. Choose another place. {why}")))
    };
    for (root, what) in [(&roots.state, "state"), (&roots.runtime, "runtime")] {
        if real.starts_with(fs::canonicalize(root).unwrap_or_else(|_| root.clone())) {
            return refused(format!("is in the {what} folder of Backstay ({})", root.display()));
        }
    }
    if let Some(vault) = real.ancestors().skip(1).find(|dir| dir.join(VAULT_RECORD).is_file()) {
        return refused(format!("is a part of the vault file://{}", vault.display()));
    }
    let Ok(there) = fs::metadata(&real) else { return Ok(()) };
    for name in names(roots).into_iter().filter(|name| name != of) {
        let Ok(record) = BackingRecord::load(&roots.disk(&name).state) else { continue };
        let backings = record.backing.into_iter().chain(record.moving_to);
        let is_it = |path: &PathBuf| fs::metadata(path).is_ok_and(|other| is_same(&other, &there));
        if backings.map(|seen| seen.path).any(|path| is_it(&path)) {
            return refused(format!(
                "is the backing of disk {name} of this host; to give that disk up: backstay unprotect {name}"
            ));
        }
    }
    Ok(())
}

/// The path without links, also of a file that is not there yet.
fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
    fs::canonicalize(&absolute).unwrap_or_else(|_| {
        match (absolute.parent(), absolute.file_name()) {
            (Some(folder), Some(name)) => {
                fs::canonicalize(folder).unwrap_or_else(|_| folder.into()).join(name)
            }
            _ => absolute,
        }
    })
}

/// Whether both are one file, or one device under two names.
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    match one.file_type().is_block_device() && other.file_type().is_block_device() {
        true => one.rdev() == other.rdev(),
        false => (one.dev(), one.ino()) == (other.dev(), other.ino()),
    }
}

/// The disks that have a folder in the state directory.
fn names(roots: &Roots) -> Vec<DiskName> {
    let entries = fs::read_dir(&roots.state).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
