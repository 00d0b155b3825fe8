//! Claims: no two drivers of this host use the same bytes, by whatever path.
//!
//! There is one lock file per [`Ground`](crate::stack::Ground), in a folder that all drivers of the host
//! share. A claim locks the range of bytes that it reaches: exclusively if it knows the exact range, shared
//! if it only knows that it reaches some bytes of that ground. The locks end with the process.

use backstay_types::{Class, Classified};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::stack::Layer;
use crate::{clock, own_dir};

/// How often to try a lock that somebody holds.
const TRY_EVERY: Duration = Duration::from_millis(20);
/// Longest name of a holder that is read back.
const HOLDER_BYTES_MAX: usize = 256;

/// Bytes that are claimed, as long as this lives.
#[derive(Debug, Default)]
pub struct Claims(Vec<File>);

impl Drop for Claims {
    /// Unlocks by name. To close is not enough: a child that has not become a program of its own yet has
    /// the same open file, and with it the lock.
    fn drop(&mut self) {
        for file in &self.0 {
            let _ = set_lock(file, libc::F_UNLCK, 0, 0);
        }
    }
}

/// Why bytes were not claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Somebody else has them.
    #[error("{} is in use by {}", path.display(), holder.as_deref().unwrap_or("another driver"))]
    Taken {
        /// What is in use.
        path: PathBuf,
        /// Who said last that it uses it, if that process still lives.
        holder: Option<String>,
    },
    /// The claim could not be made.
    #[error("{}: {source}", path.display())]
    Io {
        /// The lock file or its folder.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The folder of the locks is not ours.
    #[error(transparent)]
    Folder(#[from] own_dir::OwnDirError),
}

impl Classified for ClaimError {
    fn class(&self) -> Class {
        match self {
            Self::Taken { .. } => Class::Refused,
            Self::Io { source, .. } => source.class(),
            Self::Folder(e) => e.class(),
        }
    }
}

/// Claims all layers of a way. `holder` says who claims, for those who are refused; it waits at most
/// `wait` for a holder that is about to end.
///
/// # Errors
/// If one of them is taken, or the lock files cannot be used. Nothing is claimed then.
pub fn claim(
    dir: &Path,
    layers: &[Layer],
    holder: &str,
    wait: Duration,
) -> Result<Claims, ClaimError> {
    own_dir::own_dir(dir)?;
    let until = clock::monotonic() + wait;
    let mut held = vec![];
    for layer in layers {
        let path = dir.join(layer.ground.to_string());
        let failed = |source| ClaimError::Io { path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(failed)?;
        while !lock(&file, layer).map_err(failed)? {
            if clock::monotonic() >= until {
                let holder = read_holder(&path);
                return Err(ClaimError::Taken { path: layer.path.clone(), holder });
            }
            clock::sleep(TRY_EVERY);
        }
        let line = format!("{} {holder}\n", std::process::id());
        let said = file.set_len(0).and_then(|()| file.write_all(line.as_bytes()));
        said.map_err(failed)?;
        held.push(file);
    }
    Ok(Claims(held))
}

/// Locks the bytes of a layer in its lock file; whether it could.
fn lock(file: &File, layer: &Layer) -> io::Result<bool> {
    let limit = i64::MAX as u64;
    let start = layer.start.min(limit - 1);
    let len = if layer.end >= limit { 0 } else { layer.end.max(start + 1) - start };
    let kind = if layer.exact { libc::F_WRLCK } else { libc::F_RDLCK };
    match set_lock(file, kind, start as i64, len as i64) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Locks or unlocks bytes for this open file; a length of 0 reaches to the end.
fn set_lock(file: &File, kind: i32, start: i64, len: i64) -> Result<i32, Errno> {
    fcntl(
        file,
        FcntlArg::F_OFD_SETLK(&libc::flock {
            l_type: kind as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: start,
            l_len: len,
            l_pid: 0,
        }),
    )
}

/// Who claimed something of it last, if that process still lives.
fn read_holder(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let (pid, name) = text.trim().split_once(' ')?;
    let lives = pid.parse::<u32>().is_ok_and(|pid| Path::new(&format!("/proc/{pid}")).exists());
    (lives && name.len() <= HOLDER_BYTES_MAX).then(|| format!("{name} (process {pid})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::Ground;

    fn layer(start: u64, end: u64, exact: bool) -> Layer {
        let ground = Ground::File { dev: 1, ino: 2 };
        Layer { ground, path: "/srv/x".into(), start, end, exact, served_at: None }
    }

    #[test]
    fn what_is_given_up_is_free_though_a_child_has_the_file_open() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("claims");
        let take = || claim(&dir, &[layer(0, 1, true)], "disk db", Duration::ZERO);
        let first = take().unwrap();
        // What a child has between fork and exec: the same open file.
        let of_a_child: Vec<_> = first.0.iter().map(|file| file.try_clone().unwrap()).collect();
        drop(first);
        take().expect("it was given up");
        drop(of_a_child);
    }

    #[test]
    fn who_shares_bytes_is_refused_and_told_who_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("claims");
        let take = |layers: &[Layer]| claim(&dir, layers, "disk db", Duration::ZERO);
        let first = take(&[layer(0, 100, true)]).unwrap();
        let refused = take(&[layer(50, 200, true)]).unwrap_err().to_string();
        assert!(refused.contains("/srv/x is in use by disk db (process"), "{refused}");
        assert!(take(&[layer(0, u64::MAX, false)]).is_err(), "some of all");
        take(&[layer(100, u64::MAX, true)]).expect("the rest is free");
        drop(first);
        let one = take(&[layer(0, u64::MAX, false)]).unwrap();
        let two = take(&[layer(0, u64::MAX, false)]).expect("two volumes of a group");
        assert!(take(&[layer(7, 8, true)]).is_err());
        drop((one, two));
        take(&[layer(7, 8, true)]).unwrap();
    }
}
