//! A vault in a local directory: what makes it durable, and keeps it inside.
//!
//! A put ([`crate::paced::put`]) syncs a staged file, links it to its name, and syncs the name's
//! directory. But that directory may have been made an instant ago by a killed process or another thread
//! that did not sync its name. So before the first put into a directory, every directory
//! from it up to the vault's root is synced here, once in the life of a process.
//!
//! `beneath` looks names up without following links; `directory` makes an object store of it.

mod beneath;
mod directory;

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use backstay_host::clock;
use bytes::Bytes;

pub(crate) use beneath::Planted;
use beneath::{Beneath, Folder, is_staged, split};
pub(crate) use directory::Directory;

use crate::paced::{self, Pace};

/// Directories that nobody but the vault's owner may enter.
const MODE: u32 = 0o700;

/// Bytes that are read back at a time.
const READ_BACK_BYTES: usize = 1 << 20;

/// After this time without a write a staged file is nobody's: even a put that waits at a throttle writes
/// every second.
const STALE: Duration = Duration::from_secs(6 * 3600);

/// Makes the vault's own directory, durably, with all that is missing above it.
pub(crate) fn make_root(root: &Path) -> io::Result<()> {
    let mut missing: Vec<&Path> = root.ancestors().take_while(|dir| !dir.exists()).collect();
    DirBuilder::new().recursive(true).mode(MODE).create(root)?;
    // Somebody may have made the root and not synced it: its own name is synced in any case.
    if missing.is_empty() {
        missing.push(root);
    }
    for parent in missing.iter().filter_map(|dir| dir.parent()) {
        sync(parent)?;
    }
    Ok(())
}

/// The directories of a vault.
#[derive(Debug)]
pub(crate) struct Folders {
    beneath: Beneath,
    /// Those whose names are durable, up to the root.
    durable: Mutex<HashSet<String>>,
}

impl Folders {
    pub fn below(root: &Path) -> Self {
        Self { beneath: Beneath::new(root), durable: Mutex::default() }
    }

    /// The objects in them.
    pub fn store(&self) -> Directory {
        Directory::at(self.beneath.clone())
    }

    /// Makes the directory an object goes into, private and durable.
    pub fn prepare(&self, key: &str) -> io::Result<Folder> {
        let (key, _) = split(key);
        let folder = self.beneath.make_folder(key)?;
        if !self.durable().contains(key) {
            self.sync_names(key)?;
            remove_stale(&folder, clock::now());
            self.durable().insert(key.into());
        }
        Ok(folder)
    }

    /// Puts an object of parts, see [`paced::put`].
    pub fn put<B: AsRef<[u8]>>(
        &self,
        key: &str,
        parts: impl IntoIterator<Item = io::Result<B>>,
        pace: &dyn Pace,
    ) -> io::Result<bool> {
        let folder = self.prepare(key)?;
        paced::put(&folder.at(split(key).1), parts, pace)
    }

    /// Replaces an object that is there, see [`paced::replace`].
    pub fn replace<B: AsRef<[u8]>>(
        &self,
        key: &str,
        parts: impl IntoIterator<Item = io::Result<B>>,
    ) -> io::Result<()> {
        paced::replace(&self.prepare(key)?.at(split(key).1), parts)
    }

    /// Whether an object, which is synced, reads back as these bytes: from the disk or the server, as far as the kernel lets
    /// go of what it has in memory.
    pub fn reads_back(
        &self,
        key: &str,
        wanted: impl IntoIterator<Item = io::Result<Bytes>>,
    ) -> io::Result<bool> {
        let (mut file, about) = match self.beneath.object(key) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            found => found?,
        };
        // SAFETY: takes numbers only; the descriptor is open. Pages that are clean go; without that it is only faster.
        unsafe {
            libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED);
            libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_SEQUENTIAL);
        }
        let (mut buffer, mut at) = (vec![0; READ_BACK_BYTES], 0);
        for wanted in wanted {
            let wanted = wanted?;
            for some in wanted.chunks(READ_BACK_BYTES) {
                let there = &mut buffer[..some.len()];
                match file.read_exact(there) {
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                    read => read?,
                }
                if there != some {
                    return Ok(false);
                }
                at += some.len() as u64;
            }
        }
        Ok(about.len() == at)
    }

    /// Makes an object's name durable.
    pub fn settle(&self, key: &str) -> io::Result<()> {
        let (folder, _) = split(key);
        self.beneath.folder(folder)?.sync()?;
        self.sync_names(folder)
    }

    /// Removes what puts that were killed left in a folder of the vault: files `<name>#<number>`,
    /// which no listing shows, untouched for longer than any put takes. Returns how many.
    pub fn sweep(&self, folder: &str, untouched: Duration) -> io::Result<u64> {
        let mut swept = 0;
        let folder = match self.beneath.folder(folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            folder => folder?,
        };
        for entry in folder.entries()? {
            let entry = entry?;
            // A time in the future is young.
            let age = || clock::now().duration_since(entry.metadata().ok()?.modified().ok()?).ok();
            let staged = entry.file_name().to_str().is_some_and(is_staged);
            if staged && age().is_some_and(|age| age > untouched) {
                fs::remove_file(entry.path())?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// Makes the names of a folder and of those above it durable, up to the root.
    fn sync_names(&self, folder: &str) -> io::Result<()> {
        let mut below = folder;
        while !below.is_empty() {
            (below, _) = split(below);
            self.beneath.folder(below)?.sync()?;
        }
        Ok(())
    }

    /// The vault's own directory.
    pub fn root(&self) -> &Path {
        self.beneath.root()
    }

    fn durable(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes what killed puts have left: staged files that nobody has written to for long. They are no
/// objects and would stay for ever. What cannot be removed does no harm.
fn remove_stale(folder: &Folder, now: SystemTime) {
    for entry in folder.entries().into_iter().flatten().flatten() {
        let touched = || entry.metadata().and_then(|meta| meta.modified());
        // A clock that was set back makes it young, which is safe.
        let is_stale = |at| now.duration_since(at).is_ok_and(|age| age > STALE);
        let staged = entry.file_name().to_str().is_some_and(is_staged);
        if staged && touched().is_ok_and(is_stale) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_killed_puts_left_goes_when_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["1-2-3", "1-2-3#1", "1-2-4#17", "1-2-4#x", "#", "1-2-5#"] {
            std::fs::write(dir.path().join(name), b"x").unwrap();
        }
        let count = || std::fs::read_dir(dir.path()).unwrap().count();
        let folder = Beneath::new(dir.path()).folder("").unwrap();
        remove_stale(&folder, clock::now());
        assert_eq!(count(), 6, "somebody may be at them");
        remove_stale(&folder, clock::now() + STALE * 2);
        assert_eq!(count(), 4);
        assert!(dir.path().join("1-2-3").exists(), "an object");
    }

    #[test]
    fn folders_are_made_private_and_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("x/y/vault");
        make_root(&root).unwrap();
        make_root(&root).unwrap();
        let folders = Folders::below(&root);
        folders.prepare("vault.json").unwrap();
        folders.prepare("disks/d/points/1").unwrap();
        folders.settle("disks/d/points/1").unwrap();
        for made in ["", "disks", "disks/d", "disks/d/points"] {
            let mode = std::fs::metadata(root.join(made)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, MODE, "{made}");
        }
        assert!(folders.durable().contains("disks/d/points"));
        assert!(folders.durable().contains(""));
    }
    #[test]
    fn what_killed_puts_left_is_swept_when_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::below(dir.path());
        let in_it = dir.path().join("disks/d/segments");
        fs::create_dir_all(&in_it).unwrap();
        let day = Duration::from_secs(86_400);
        for (name, days) in [("1-a-0#1", 2), ("1-a-0#2", 0), ("1-a-0", 2), ("x#y", 2), ("x#", 2)] {
            let file = File::create(in_it.join(name)).unwrap();
            file.set_modified(clock::now() - day * days).unwrap();
        }
        assert_eq!(folders.sweep("disks/d/segments", day).unwrap(), 1);
        assert_eq!(folders.sweep("disks/d/absent", day).unwrap(), 0);
        assert!(!in_it.join("1-a-0#1").exists() && in_it.join("1-a-0#2").exists());
        assert_eq!(fs::read_dir(&in_it).unwrap().count(), 4);
    }
}
