//! A file in the making: beside its place, under a name of its own, until it is whole and durable.
//!
//! A restore that was killed leaves it, with a line after its last byte that says which point it is of
//! and how many of the point's segments it has. The same restore goes on there; any other starts over.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use backstay_front::backing::PART_EXTENSION;
use backstay_host::{atomic, in_use, lock};
use backstay_types::ByteLen;
use backstay_vault::Manifest;
use nix::fcntl::Flock;

use super::RestoreError;
use super::goal::{Goal, GoalError};

/// Longest line after the last byte.
const NOTE_BYTES_MAX: usize = 256;

/// A file in the making; removed unless it is finished or kept.
pub struct Part {
    path: PathBuf,
    /// Nobody else makes the same one.
    lock: Flock<File>,
    remove: bool,
}

impl Part {
    /// Begins a file, or takes up one that a killed command left.
    ///
    /// # Errors
    /// If it cannot be made, or another command writes it.
    pub fn begin(goal: &Goal) -> Result<Self, GoalError> {
        let to = goal.path();
        let name = to
            .file_name()
            .ok_or_else(|| GoalError::Refused(format!("{} is no name of a file", to.display())))?;
        let mut part = name.to_owned();
        part.push(format!(".{PART_EXTENSION}"));
        let path = to.with_file_name(part);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(GoalError::io(format!("making {}", path.display())))?;
        let lock = lock::exclusive(file, lock::LOOKED_AT_WAIT)
            .map_err(GoalError::io(format!("locking {}", path.display())))?;
        let lock = lock.ok_or_else(|| {
            let shown = path.display();
            GoalError::Refused(format!(
                "{shown} is being written by another restore or export. Nothing was changed"
            ))
        })?;
        Ok(Self { path, lock, remove: true })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, for reading and writing.
    ///
    /// # Errors
    /// What the system answered.
    pub fn file(&self) -> io::Result<File> {
        self.lock.try_clone()
    }

    /// Leaves it for a restore of the same point to go on with.
    pub fn keep(mut self) {
        self.remove = false;
    }

    /// How many segments of a point it has; 0 if it is of another point, or nobody knows.
    pub(super) fn seen(&self, point: &Manifest) -> io::Result<usize> {
        let (len, size) = (self.lock.metadata()?.len(), point.size.0);
        if len <= size || len - size > NOTE_BYTES_MAX as u64 {
            return Ok(0);
        }
        let mut line = vec![0; (len - size) as usize];
        self.lock.read_exact_at(&mut line, size)?;
        let line = String::from_utf8(line).unwrap_or_default();
        let seen = line.trim_end().split(' ').nth(2).and_then(|seen| seen.parse().ok());
        Ok(seen.filter(|&seen| note(point, seen) == line).unwrap_or_default())
    }

    /// Notes how many segments of a point it has, durably. They must be durable already.
    pub(super) fn note(&self, point: &Manifest, seen: usize) -> io::Result<()> {
        self.lock.set_len(point.size.0)?;
        self.lock.write_all_at(note(point, seen).as_bytes(), point.size.0)?;
        self.lock.sync_all()
    }

    /// An error of doing something to it.
    pub(super) fn error(&self, doing: &str) -> impl FnOnce(io::Error) -> RestoreError + use<> {
        let what = format!("{doing} {}", self.path.display());
        move |source| GoalError::Io { what, source }.into()
    }

    /// Gives it its name, durably. It takes mode and owner of a file that it replaces.
    ///
    /// # Errors
    /// If somebody uses by now what it would replace, or the system refuses. It is removed then.
    pub fn finish(mut self, goal: &Goal, size: Option<ByteLen>) -> Result<(), GoalError> {
        let Goal::File { path: to, replaces } = goal else {
            return Err(GoalError::Refused(format!("{} is no file", goal.path().display())));
        };
        let said = || GoalError::io(format!("finishing {}", to.display()));
        if let Some(size) = size {
            self.lock.set_len(size.0).map_err(said())?;
        }
        if *replaces && let Ok(old) = fs::metadata(to) {
            // First the owner: changing it takes away special bits of the mode.
            let file: &File = &self.lock;
            let owned = std::os::unix::fs::fchown(file, Some(old.uid()), Some(old.gid()));
            if let Err(e) = owned
                && e.raw_os_error() != Some(libc::EPERM)
            {
                return Err(said()(e));
            }
            let mode = fs::Permissions::from_mode(old.mode() & 0o7777);
            self.lock.set_permissions(mode).map_err(said())?;
        }
        self.lock.sync_all().map_err(said())?;
        let moved = match replaces {
            // It took its time: somebody may have come.
            true => {
                in_use::refuse(to)?;
                atomic::rename(&self.path, to)
            }
            false => atomic::rename_to_free_name(&self.path, to),
        };
        moved.map_err(said())?;
        self.remove = false;
        atomic::sync_folder_of(to).map_err(said())
    }
}

/// `backstay-part 1 SEEN DISK CYCLE POINT SIZE CRC`: one line, checked as a whole.
fn note(point: &Manifest, seen: usize) -> String {
    let line = format!(
        "backstay-part 1 {seen} {} {} {} {}",
        point.disk, point.cycle, point.point, point.size.0
    );
    format!("{line} {:08x}\n", crc32c::crc32c(line.as_bytes()))
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.remove {
            let _ = fs::remove_file(&self.path);
        }
    }
}
