//! Conditions for protecting a disk. They are checked before anything is changed, and each result is
//! explained.

use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::Duration;

use backstay_format::superblock::Superblock;
use backstay_front::backing::{self, Engine};
use backstay_front::paths::Roots;
use backstay_host::clock;
use backstay_track::Backing;
use backstay_types::{ByteLen, DiskName};
use backstay_vault::{VaultError, Vaults};
use nix::sys::statvfs::statvfs;
use serde::Serialize;

use crate::vault_place;

/// The oldest kernel: the first long-term one with all that is used (io_uring with registered files,
/// FUSE with parallel direct writes).
const KERNEL_MIN: (u32, u32) = (6, 1);
/// No clock before this is right: 2026-01-01.
const CLOCK_MIN: Duration = Duration::from_secs(1_767_225_600);
/// Least room for a disk's state besides preserved blocks.
const STATE_MIN: u64 = 64 << 20;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub what: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found, and what to do if it is not good.
    pub found: String,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It will work, and should be looked at.
    Warning,
    /// It will not work.
    Failed,
}

/// What the caller says of the disk and its vault.
#[derive(Debug, Clone, Copy, Default)]
pub struct Told {
    /// A vault on this host is no warning.
    pub allow_local_vault: bool,
    /// The disk goes on from the points of its name, although nothing proves that it is newer.
    pub disk_is_right: bool,
    /// Most bytes of preserved blocks; half the disk, if nothing is said.
    pub change_log_limit: Option<ByteLen>,
}

/// Looks at everything; nothing is changed.
#[must_use]
pub fn check(
    roots: &Roots,
    name: &DiskName,
    disk: &Path,
    (vaults, vault): (&Vaults, &str),
    told: Told,
) -> Vec<Check> {
    let Told { allow_local_vault: allow_local, disk_is_right, change_log_limit } = told;
    let size = backing_size(disk);
    let log = change_log_limit.unwrap_or(ByteLen(size.unwrap_or_default() / 2));
    vec![
        looked("rights", rights()),
        looked("kernel", kernel()),
        looked("/dev/fuse", fuse()),
        looked("backing", raw(roots, name, disk).and_then(|()| usable(disk))),
        looked("name", free_name(roots, name, disk)),
        looked("change log", room_for_log(&roots.state, log)),
        looked("memory for bitmaps", room_for_bitmaps(&roots.runtime, size.unwrap_or_default())),
        looked("vault", writable_vault(vaults, vault)),
        looked("name in the vault", name_in_vault(roots, name, (vaults, vault), disk_is_right)),
        looked("vault's place", place_of_vault(roots, name, disk, vault, allow_local)),
        looked("clock", clock()),
    ]
    .into_iter()
    .map(|(what, found)| {
        let (verdict, found) = found.split();
        Check { what, verdict, found }
    })
    .collect()
}

/// What was found of a thing.
pub(crate) enum Checked {
    /// As it should be.
    Good(String),
    /// To be looked at.
    Odd(String),
    /// It will not work.
    Bad(String),
}

impl Checked {
    /// How it is, and the words.
    pub(crate) fn split(self) -> (Verdict, String) {
        match self {
            Good(found) => (Verdict::Ok, found),
            Odd(found) => (Verdict::Warning, found),
            Bad(found) => (Verdict::Failed, found),
        }
    }
}
use Checked::{Bad, Good, Odd};

/// A thing that could not even be looked at is bad.
pub(crate) fn looked(
    what: &'static str,
    found: Result<Checked, impl Display>,
) -> (&'static str, Checked) {
    (what, found.unwrap_or_else(|e| Bad(e.to_string())))
}

pub(crate) fn rights() -> Result<Checked, std::io::Error> {
    Ok(if nix::unistd::geteuid().is_root() {
        Good("root".into())
    } else {
        Bad("not root: mounting and attaching need it; use sudo".into())
    })
}

pub(crate) fn kernel() -> Result<Checked, nix::errno::Errno> {
    let name = nix::sys::utsname::uname()?;
    let release = name.release().to_string_lossy().into_owned();
    Ok(match version(&release) {
        Some(found) if found >= KERNEL_MIN => Good(release),
        Some(_) => {
            let (major, minor) = KERNEL_MIN;
            Bad(format!("{release} is too old: {major}.{minor} or newer is needed"))
        }
        None => Odd(format!("{release}: not a version that can be read")),
    })
}

/// Major and minor of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(crate) fn fuse() -> Result<Checked, String> {
    let path = "/dev/fuse";
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(Good("can be opened".into())),
        Err(e) => Err(format!("{path}: {e}; load the module: modprobe fuse")),
    }
}

pub(crate) fn backing_size(path: &Path) -> Option<u64> {
    let mut file = fs::File::open(path).ok()?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).ok()
}

/// A disk that is new here must not be an image of another format.
fn raw(roots: &Roots, name: &DiskName, path: &Path) -> Result<(), String> {
    let known = roots.disk(name).state.join("super").exists();
    if backing::is_part(path) {
        return Err(format!(
            "{} is a part of a restore or an export that was not finished: run that again",
            path.display()
        ));
    }
    match backing::image_format(path) {
        Ok(Some(format)) if !known => Err(format!(
            "{} is a {format} image, not a raw disk; import it into a vault (backstay import), or convert it \
             with qemu-img convert -O raw",
            path.display()
        )),
        // What else is wrong with it is found when it is opened.
        _ => Ok(()),
    }
}

pub(crate) fn usable(path: &Path) -> Result<Checked, String> {
    backing::refuse_users(path).map_err(|e| e.to_string())?;
    // Opened as a driver would, and closed again.
    let opened = backing::open(path, Engine::default()).map_err(|e| e.to_string())?;
    let unfinished = backing::unfinished(path, &opened).map_err(|e| e.to_string())?;
    Ok(match opened.size().0 {
        0 => Bad(format!("{} is empty: a disk has a size", path.display())),
        _ if unfinished.is_some() => Bad(unfinished.unwrap_or_default()),
        size => Good(format!("{} ({size} bytes) is nobody else's", path.display())),
    })
}

fn free_name(roots: &Roots, name: &DiskName, disk: &Path) -> Result<Checked, std::io::Error> {
    let paths = roots.disk(name);
    if backstay_front::control::ControlClient::connect(&paths.control_socket()).is_ok() {
        return Ok(Bad(format!(
            "a disk {name} is served already; unprotect it, or use another name"
        )));
    }
    let before = match crate::protection::Protection::load(&paths.state) {
        Ok(before) => before,
        Err(e) => return Ok(Odd(format!("{e}; it is written again"))),
    };
    Ok(match before {
        Some(before) if before.backing != disk => Bad(format!(
            "{name} is the name of the disk on {}; use another one",
            before.backing.display()
        )),
        _ if paths.state.join("super").exists() => {
            Odd(format!("{name} was served before: its state is used again"))
        }
        _ => Good(format!("{name} is free")),
    })
}

/// The nearest folder that is there.
pub(crate) fn existing(path: &Path) -> &Path {
    path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"))
}

pub(crate) fn room(path: &Path) -> Result<u64, nix::errno::Errno> {
    let fs = statvfs(existing(path))?;
    Ok(fs.blocks_available() * fs.fragment_size())
}

pub(crate) fn room_for_log(state: &Path, limit: ByteLen) -> Result<Checked, nix::errno::Errno> {
    let (room, at) = (room(state)?, state.display());
    let (have, want) = (size(room), size(limit.0));
    Ok(if room < STATE_MIN {
        Bad(format!("{have} free in {at}: {} are needed at least", size(STATE_MIN)))
    } else if room < limit.0 {
        Odd(format!(
            "{have} free in {at}, the change log may take {want}: when it is full, a cycle loses its \
             point in time. Set --change-log-limit or make room"
        ))
    } else {
        Good(format!("{have} free in {at}, {want} may be needed"))
    })
}

pub(crate) fn room_for_bitmaps(runtime: &Path, disk: u64) -> Result<Checked, nix::errno::Errno> {
    let (room, at) = (room(runtime)?, runtime.display());
    // One bit a sector; during a cycle there are up to five such maps.
    let most = disk / 4096 * 5;
    let (have, want) = (size(room), size(most));
    Ok(if room < most {
        Odd(format!(
            "{have} free in {at}, {want} if the whole disk is written during a cycle: without room \
             the disk is resynced"
        ))
    } else {
        Good(format!("{have} free in {at}, {want} at most"))
    })
}

fn writable_vault(vaults: &Vaults, url: &str) -> Result<Checked, VaultError> {
    let vault = match vaults.open_to_look(url) {
        Err(VaultError::NoVault { .. }) => {
            vaults.check_place(url)?;
            return Ok(Good(format!("{url}: there is no vault yet; backstay protect makes one")));
        }
        vault => vault?,
    };
    vault.probe()?;
    if !vault.is_encrypted() {
        return Ok(Good(format!("{url} can be written and read back; its store can read it, too")));
    }
    // What opens no vault seals none, and a first copy would end with that.
    let keys = vault.keys()?;
    let what = if keys.is_write_only() { "this host can only write" } else { "its key opens it" };
    Ok(Good(format!("{url} can be written and read back; it is encrypted, {what}")))
}

/// What the first cycle would be refused for is asked before anything is started: whether this host may ship a disk of
/// the name, and whose the name is.
fn name_in_vault(
    roots: &Roots,
    name: &DiskName,
    (vaults, url): (&Vaults, &str),
    disk_is_right: bool,
) -> Result<Checked, VaultError> {
    let vault = match vaults.open_to_look(url) {
        Err(VaultError::NoVault { .. }) => return Ok(Good(format!("{name} is free"))),
        vault => vault?,
    };
    if let Some(who) = vault.who_am_i()?.filter(|who| !who.may_ship(name)) {
        return Ok(Bad(format!(
            "the certificate of this host ({}) does not let it ship disk {name} through {url}: it is for {}. Ask for one \
             that names it (backstay pki), or use another name",
            who.name,
            who.disks()
        )));
    }
    let super_block = std::fs::read(roots.disk(name).state.join("super")).ok();
    let here = super_block.and_then(|bytes| Superblock::newest(&bytes).ok());
    for id in here.iter().flat_map(|here| {
        let points = here.base.iter().chain(&here.announced);
        [here.disk].into_iter().chain(points.map(|point| point.vault_disk))
    }) {
        match vault.disk(id) {
            Ok(_) => return Ok(Good(format!("{url} has this disk already"))),
            Err(VaultError::NotFound { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    let there = match vault.disk_named(name) {
        // A name that its disk gave back is free.
        Err(VaultError::NotFound { .. } | VaultError::Renamed { .. }) => {
            return Ok(Good(format!("{name} is free")));
        }
        there => there?.disk,
    };
    Ok(match (vault.newest_point(there, None)?, disk_is_right) {
        (Some(newest), true) => Good(format!("{name} goes on from recovery point {newest}")),
        (Some(newest), false) => Bad(format!(
            "{url} has a disk {name} already ({there}, newest recovery point {newest}), and nothing proves that this disk \
             is newer, or that it is that disk. Use another name; or, if you know that it is that disk and newer than its \
             points: --the-disk-is-right"
        )),
        (None, _) => Bad(format!(
            "{url} has a disk {name} already ({there}), of which there is no recovery point yet: use another name"
        )),
    })
}

/// A vault on the disk itself is none; one that is lost with it is worth a word.
fn place_of_vault(
    roots: &Roots,
    name: &DiskName,
    disk: &Path,
    url: &str,
    allow_local: bool,
) -> Result<Checked, std::io::Error> {
    let Some(dir) = vault_place::directory(url) else {
        return Ok(Good("not on this host".into()));
    };
    let stands = vault_place::of_directory(&dir)?;
    if stands.served.iter().any(|at| at.starts_with(&roots.disk(name).runtime)) {
        return Ok(Bad(format!(
            "{url} is on this very disk: it would be lost with it; use another vault"
        )));
    }
    Ok(match vault_place::shared(url, disk) {
        Some(shared) if allow_local => {
            Good(format!("{}; allow_local_vault says that it is meant", shared.reason(url)))
        }
        Some(shared) => Odd(format!("{}; use a vault elsewhere", shared.reason(url))),
        None => Good("not on this host".into()),
    })
}

pub(crate) fn clock() -> Result<Checked, std::io::Error> {
    let now = Duration::from_nanos(clock::now_unix_ns());
    if now < CLOCK_MIN {
        return Ok(Bad("the clock is years behind: points would carry wrong times; set it".into()));
    }
    Ok(if is_synchronised() {
        Good("synchronised".into())
    } else {
        Odd("the kernel does not know it as synchronised; points carry its time. Run an NTP client"
            .into())
    })
}

/// Whether the kernel's clock is kept right by somebody.
fn is_synchronised() -> bool {
    // SAFETY: all-zero bytes are a valid timex: it is numbers only.
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a timex of ours; with no modes set nothing is changed.
    let state = unsafe { libc::adjtimex(&raw mut clock) };
    state >= 0 && state != libc::TIME_ERROR
}

pub(crate) fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_kernels() {
        assert_eq!(version("6.18.44-cloud"), Some((6, 18)));
        assert_eq!(version("5.10.0-28-amd64"), Some((5, 10)));
        assert_eq!(version("next"), None);
    }

    #[test]
    fn each_failure_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(Some(dir.path().join("s")), Some(dir.path().join("r")));
        let name: DiskName = "d".parse().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let found = |disk: &Path, vault: &str| {
            let all = check(&roots, &name, disk, (&Vaults::default(), vault), Told::default());
            let failed = all.into_iter().filter(|c| c.verdict == Verdict::Failed);
            failed.map(|c| (c.what, c.found)).collect::<Vec<_>>()
        };
        let url = dir.path().join("v");
        let missing = found(&dir.path().join("none"), url.to_str().unwrap());
        assert!(missing.iter().any(|(what, _)| *what == "backing"), "{missing:?}");
        let empty = found(&file, url.to_str().unwrap());
        assert!(empty.iter().any(|(what, why)| *what == "backing" && why.contains("empty")));
        let vault = found(&file, "ftp://nowhere");
        assert!(vault.iter().any(|(what, _)| *what == "vault"), "{vault:?}");
        let place = |allow_local_vault| {
            let told = Told { allow_local_vault, ..Told::default() };
            let all =
                check(&roots, &name, &file, (&Vaults::default(), url.to_str().unwrap()), told);
            all.into_iter().find(|c| c.what == "vault's place").unwrap()
        };
        assert_eq!(place(false).verdict, Verdict::Warning, "{:?}", place(false));
        assert_eq!(place(true).verdict, Verdict::Ok, "{:?}", place(true));
        let file_as_vault = found(&file, file.join("x").to_str().unwrap());
        assert!(file_as_vault.iter().any(|(what, _)| *what == "vault"), "{file_as_vault:?}");
    }
}
