//! Opening what lies in a vault's directory, and nothing else.
//!
//! Anyone who can write into the directory can put a symbolic link there, and Backstay, mostly root, would
//! read or write where it leads; or a FIFO, on which an open waits for ever. So each name of a key is opened in
//! the folder before it, never following a link (`O_NOFOLLOW`), and what stands at its end has to be a regular
//! file. `openat2` would do it in one call, but a seccomp filter that restricts modes (systemd's
//! `RestrictSUIDSGID=`) cannot look at its arguments and answers ENOSYS.
//!
//! Everything else goes through the descriptor of the folder that was opened like this
//! (`/proc/self/fd/N/name`): nobody can exchange a folder between looking and doing.
//!
//! The root is opened again each time, links in its own path are the administrator's: a vault on a file
//! system that is unmounted and mounted again stays usable, and nothing keeps it from being unmounted.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};

use super::MODE;

/// Something in a vault's directory that no put of ours makes.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what} stands at or above {key:?} in the vault's directory; it was not followed and nothing was read or \
     written there. Backstay puts none there: find out who did, and remove it (to have a part of a vault \
     elsewhere, use a bind mount)"
)]
pub(crate) struct Planted {
    what: &'static str,
    key: String,
}

impl Planted {
    pub fn error(what: &'static str, key: &str) -> io::Error {
        io::Error::other(Self { what, key: key.into() })
    }
}

/// A directory whose inside is looked up without links.
#[derive(Debug, Clone)]
pub(crate) struct Beneath {
    root: PathBuf,
}

impl Beneath {
    pub fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Opens an object for reading: a regular file.
    pub fn object(&self, key: &str) -> io::Result<(File, Metadata)> {
        // Without waiting: an open of a FIFO ends at once, and is no use to anyone.
        let file = self.open(key, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
        let about = file.metadata()?;
        match about.file_type() {
            kind if kind.is_file() => Ok((file, about)),
            kind if kind.is_dir() => Err(io::ErrorKind::NotFound.into()),
            _ => Err(Planted::error("no regular file", key)),
        }
    }

    /// Opens a folder; the empty name is the root's.
    pub fn folder(&self, key: &str) -> io::Result<Folder> {
        self.open(key, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map(Folder)
    }

    /// Opens a folder, and makes it and what is missing above it, for the owner alone.
    pub fn make_folder(&self, key: &str) -> io::Result<Folder> {
        match self.folder(key) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !key.is_empty() => {}
            other => return other,
        }
        let (above, name) = split(key);
        let above = self.make_folder(above)?;
        match DirBuilder::new().mode(MODE).create(above.at(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        self.folder(key)
    }

    fn open(&self, key: &str, flags: OFlag) -> io::Result<File> {
        let root = File::open(&self.root)?;
        let (folder, name) = split(key);
        if key.is_empty() {
            return Ok(root);
        }
        let mut within = root;
        for name in folder.split('/').filter(|_| !folder.is_empty()) {
            within = step(&within, name, OFlag::O_PATH | OFlag::O_DIRECTORY, key)?;
        }
        step(&within, name, flags, key)
    }
}

/// Opens a name right in a folder.
fn step(within: &File, name: &str, flags: OFlag, key: &str) -> io::Result<File> {
    if matches!(name, "" | "." | "..") {
        return Err(io::Error::other(format!("{key:?} is not the key of an object")));
    }
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    loop {
        return match openat(within, name, flags, Mode::empty()) {
            Err(Errno::EINTR) => continue,
            Err(Errno::ELOOP) => Err(Planted::error("a symbolic link", key)),
            // Of a link, too, where a folder was wanted.
            Err(Errno::ENOTDIR) if is_link(within, name) => {
                Err(Planted::error("a symbolic link", key))
            }
            Err(Errno::ENOTDIR) => Err(io::ErrorKind::NotFound.into()),
            // Of a socket, or a device nobody drives.
            Err(Errno::ENXIO | Errno::ENODEV) => Err(Planted::error("no regular file", key)),
            Err(e) => Err(e.into()),
            Ok(fd) => Ok(fd.into()),
        };
    }
}

/// Only for what is said of it: it was refused already.
fn is_link(within: &File, name: &str) -> bool {
    let about = fstatat(within, name, AtFlags::AT_SYMLINK_NOFOLLOW);
    about.is_ok_and(|about| {
        SFlag::from_bits_truncate(about.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFLNK
    })
}

/// A folder that was opened, wherever its name leads by now.
#[derive(Debug)]
pub(crate) struct Folder(File);

impl Folder {
    /// A path to the folder, as long as this is there.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// A path to a name in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// What is in it.
    pub fn entries(&self) -> io::Result<fs::ReadDir> {
        fs::read_dir(self.path())
    }

    /// Makes the names in it durable.
    pub fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}

/// The folder of a key, and the name in it.
pub(crate) fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('/').unwrap_or(("", key))
}

/// Whether a name is of an object that is being written: `<name>#<number>`.
pub(crate) fn is_staged(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, number)| {
        !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
    })
}
