//! Making what a host keeps of a mounted point, and removing it.
//!
//! It is made in a folder under another name, which is renamed when everything in it is durable: so it is there
//! as a whole or not at all. First of all that folder gets a *claim*, which says what is made elsewhere: the hold
//! in the vault, and the overlay if it is to be somewhere else. Anyone who was killed finds both again by it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use backstay_format::superblock::BackingId;
use backstay_front::life::lock_disk;
use backstay_front::paths::DiskPaths;
use backstay_host::atomic::{self, Durability, sync_folder_of};
use backstay_host::kill_point;
use backstay_host::own_dir::{self, own_dir};
use backstay_host::record;
use backstay_types::{DiskId, DiskName, PointId};
use backstay_vault::retain::Held;
use backstay_vault::{Manifest, Vault, VaultError, Vaults};
use serde::{Deserialize, Serialize};

use super::MountError;
use super::choice::{PointChoice, choose};
use super::keeper;
use super::medium::{OverlayFile, overlay_parts};
use super::overlay::{first_header, map_bytes};
use super::record::{FOLDER, MountedPoint, folder};
use super::serve::MountOptions;

/// The point's manifest, the overlay, and its map, in the folder.
pub(super) const MANIFEST: &str = "point.bin";
pub(super) const OVERLAY: &str = "overlay.data";
pub(super) const MAP: &str = "overlay.map";
const CLAIM: &str = "claim.json";

/// Called around every step that lasts; tests kill the process there.
fn step() {
    kill_point::step("mount", "");
}

/// What is made outside of the folder, before it is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    vault: String,
    disk: DiskId,
    hold: String,
    overlay: Option<PathBuf>,
}

impl Claim {
    fn load(unfinished: &Path) -> Option<Self> {
        // Without it an empty overlay elsewhere stays, and the hold ends by itself.
        record::load_shown(&unfinished.join(CLAIM))
    }

    /// Empties the folder and takes a claim, the one before if it is for the same.
    fn take(
        paths: &DiskPaths,
        vault: &str,
        disk: DiskId,
        overlay: Option<PathBuf>,
    ) -> Result<Self, MountError> {
        let unfinished = unfinished(paths);
        let before = Self::load(&unfinished);
        before.iter().for_each(Self::remove_overlay);
        let hold = match before {
            Some(before) if (before.vault.as_str(), before.disk) == (vault, disk) => before.hold,
            _ => format!("mount-{}", &PointId::random().to_string()[..13]),
        };
        if let Some(path) = overlay.as_ref().filter(|path| path.exists()) {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(MountError::Io { path: path.clone(), source });
        }
        // A removal that was killed in the middle.
        absent_is_fine(fs::remove_dir_all(folder(paths))).map_err(MountError::io(folder(paths)))?;
        let make = || {
            own_dir(&unfinished)?;
            for entry in fs::read_dir(&unfinished)?.flatten() {
                if entry.file_name() != CLAIM {
                    fs::remove_file(entry.path())?;
                }
            }
            let claim = Self { vault: vault.into(), disk, hold, overlay };
            record::save(&unfinished.join(CLAIM), &claim, Durability::Durable)?;
            sync_folder_of(&unfinished)?;
            Ok(claim)
        };
        make().map_err(MountError::io(&unfinished))
    }

    /// Removes the overlay that was made elsewhere; nothing was ever written to it.
    fn remove_overlay(&self) {
        let Some(overlay) = &self.overlay else { return };
        for (part, _) in overlay_parts(overlay, backstay_format::superblock::Geometry::SIZE_MAX) {
            if fs::metadata(&part).is_ok_and(|meta| meta.is_file() && meta.blocks() == 0)
                && let Err(e) = fs::remove_file(&part)
            {
                tracing::warn!("{}: {e}", part.display());
            }
        }
    }
}

/// Where it is made.
fn unfinished(paths: &DiskPaths) -> PathBuf {
    paths.state.join(format!("{FOLDER}.unfinished"))
}

/// Removes what was begun of a mounted point that is not to be; its hold, if there is one, ends by itself.
pub(super) fn give_up(paths: &DiskPaths) {
    let unfinished = unfinished(paths);
    Claim::load(&unfinished).iter().for_each(Claim::remove_overlay);
    let _ = fs::remove_dir_all(unfinished);
}

/// A point that was not mounted here before: found, held, and its folder made.
pub(super) fn fresh(
    name: &DiskName,
    paths: &DiskPaths,
    options: &MountOptions,
) -> Result<(MountedPoint, Vault, Option<Held>), MountError> {
    let refused = |reason: &str| MountError::Refused { name: name.clone(), reason: reason.into() };
    if paths.state.join("super").exists() {
        return Err(refused(
            "there is a protected disk of this name on this host; choose another --name",
        ));
    }
    let Some(url) = &options.vault else {
        return Err(refused("no vault was named: use --vault"));
    };
    let vault = options.vaults.open(url)?;
    vault.check_readable()?;
    let disk = vault.disk_named(options.disk.as_ref().unwrap_or(name))?;
    let choice = options.point.unwrap_or(PointChoice::Latest);
    let overlay = options
        .overlay
        .as_ref()
        .map(|path| std::path::absolute(path).map_err(MountError::io(path)));
    let claim = Claim::take(paths, url, disk.disk, overlay.transpose()?)?;
    step();
    // Retention may be faster than the hold; the newest point may then be another one.
    let mut rounds = 3;
    let (manifest, held) = loop {
        let found = choose(&vault, disk.disk, choice)?;
        let request = keeper::request(&claim.hold, name, found.cycle)?;
        match keeper::take(&vault, disk.disk, request) {
            Err(VaultError::Retired(_) | VaultError::NotFound { .. }) if rounds > 0 => rounds -= 1,
            held => break (found, held?),
        }
    };
    let mut record = MountedPoint {
        vault: url.clone(),
        disk: disk.disk,
        disk_name: disk.name,
        cycle: manifest.cycle,
        point: manifest.point,
        size_bytes: manifest.size,
        cut_unix_ns: manifest.cut_unix_ns,
        overlay: claim.overlay.clone(),
        hold: claim.hold,
        cache_bytes: options.cache.unwrap_or(MountOptions::CACHE_DEFAULT),
        overlay_identity: String::new(),
    };
    step();
    make_folder(paths, &mut record, &manifest)?;
    step();
    Ok((record, vault, held))
}

fn make_folder(
    paths: &DiskPaths,
    record: &mut MountedPoint,
    manifest: &Manifest,
) -> Result<(), MountError> {
    let unfinished = unfinished(paths);
    let path = overlay_path(record, &unfinished);
    OverlayFile::create(&path, manifest.size).map_err(MountError::io(&path))?;
    record.overlay_identity = OverlayFile::open(&path, manifest.size)
        .map_err(io::Error::other)
        .and_then(|file| identity(&file))
        .map_err(MountError::io(&path))?;
    step();
    let path = unfinished.join(MAP);
    let header = first_header(manifest.disk, manifest.point, manifest.size).encode();
    let make_map = || -> io::Result<()> {
        let mut how = OpenOptions::new();
        let map = how.create_new(true).write(true).mode(0o600).open(&path)?;
        map.set_len(map_bytes(manifest.size))?;
        map.write_all_at(&header, 0)?;
        map.sync_all()
    };
    make_map().map_err(MountError::io(&path))?;
    step();
    let path = unfinished.join(MANIFEST);
    atomic::replace(&path, &manifest.encode(), Durability::Durable)
        .map_err(MountError::io(&path))?;
    step();
    record.save(&unfinished)?;
    step();
    let renamed = atomic::rename_durably(&unfinished, &folder(paths))
        .and_then(|()| sync_folder_of(&paths.state));
    renamed.map_err(MountError::io(folder(paths)))?;
    // From here on the record says all that the claim does.
    let _ = fs::remove_file(folder(paths).join(CLAIM));
    Ok(())
}

pub(super) fn overlay_path(record: &MountedPoint, folder: &Path) -> PathBuf {
    record.overlay.clone().unwrap_or_else(|| folder.join(OVERLAY))
}

pub(super) fn identity(file: &OverlayFile) -> io::Result<String> {
    let hex = |id: BackingId| id.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok(file.identities()?.into_iter().flatten().map(hex).collect())
}

/// Removes everything that this host has of a mounted point that nobody serves: what was written to it is
/// gone then. The hold in the vault goes, too, if the vault can be reached; else it ends by itself.
///
/// # Errors
/// If it is served, is no mounted point, or its files cannot be removed; run again, it goes on.
pub fn forget(vaults: &Vaults, name: &DiskName, paths: &DiskPaths) -> Result<(), MountError> {
    let refused = |reason: String| MountError::Refused { name: name.clone(), reason };
    let unfinished = unfinished(paths);
    if !folder(paths).exists() && !unfinished.exists() && !is_bare(&paths.state) {
        return Err(refused("it is no mounted point".into()));
    }
    let lock = lock_disk(name, &paths.lock_file()).map_err(|e| refused(e.to_string()))?;
    // A record that is damaged keeps nothing here.
    if let Ok(Some(record)) = MountedPoint::load(name, paths) {
        if let Some(overlay) = &record.overlay {
            for (part, _) in overlay_parts(overlay, record.size_bytes) {
                absent_is_fine(fs::remove_file(&part)).map_err(MountError::io(part))?;
            }
        }
        release((vaults, &record.vault), record.disk, &record.hold, name);
    }
    step();
    if let Some(claim) = Claim::load(&unfinished) {
        claim.remove_overlay();
        release((vaults, &claim.vault), claim.disk, &claim.hold, name);
    }
    step();
    // The folder last: as long as it is there, this can be finished.
    own_dir::remove(&paths.runtime).map_err(MountError::io(&paths.runtime))?;
    let entries = fs::read_dir(&paths.state).map_err(MountError::io(&paths.state))?;
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_file())) {
        absent_is_fine(fs::remove_file(entry.path())).map_err(MountError::io(entry.path()))?;
    }
    for dir in [&unfinished, &folder(paths), &paths.state] {
        step();
        own_dir::remove(dir).map_err(MountError::io(dir))?;
    }
    drop(lock);
    Ok(())
}

/// Whether a state directory is what is left when nothing else is.
fn is_bare(state: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(state) else { return false };
    entries.all(|entry| {
        entry.is_ok_and(|entry| entry.file_name() == "lock" || entry.file_name() == "driver.log")
    })
}

fn absent_is_fine(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Releases a hold, if the vault can be reached; else it ends by itself.
fn release((vaults, url): (&Vaults, &str), disk: DiskId, hold: &str, name: &DiskName) {
    let released = vaults.open(url).and_then(|vault| {
        vault.release(disk, &keeper::request(hold, name, backstay_types::CycleNo(0))?.name)
    });
    if let Err(e) = released {
        tracing::warn!("the point's hold {hold} ends by itself: {e}");
    }
}
