//! Putting a segment no faster than somebody lets it through.
//!
//! A store takes an object as a whole, and what it does with it then is its own affair. A directory,
//! though, is written here: a staged file is written and synced, linked to its name, and the name is
//! synced. In between each step waits until it is let through,
//! and its write-back is begun soon: on a network file system it leaves the machine then,
//! not all together at the end.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes after which write-back is begun.
const WRITE_BACK_BYTES: i64 = 256 << 10;

/// Most puts of one name that may be under way, or were killed.
const STAGED_MAX: u32 = 1 << 16;

/// Lets bytes through, some at a time.
pub trait Pace: Sync {
    /// Waits until some of `want` bytes (at least 1) may go; how many of them. `None`: give up.
    fn let_through(&self, want: u64) -> Option<u64>;
}

/// Everything at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unlimited;

impl Pace for Unlimited {
    fn let_through(&self, want: u64) -> Option<u64> {
        Some(want)
    }
}

/// Waits for all of `len` bytes; false if they were given up.
pub(crate) fn wait_for_all(pace: &dyn Pace, len: u64) -> bool {
    let mut left = len;
    while left > 0 {
        match pace.let_through(left) {
            Some(some) => left -= some.clamp(1, left),
            None => return false,
        }
    }
    true
}

/// Writes a new file of parts, durably, step by step; false if it was given up, and nothing is there.
/// The directory must be there; its own name is the caller's affair.
pub(crate) fn put<B: AsRef<[u8]>>(
    to: &Path,
    parts: impl IntoIterator<Item = io::Result<B>>,
    pace: &dyn Pace,
) -> io::Result<bool> {
    let (staged, file) = stage(to)?;
    let put = write(file, parts, pace).and_then(|whole| {
        if whole {
            // Fails if the name is taken: nothing is ever overwritten.
            std::fs::hard_link(&staged, to)?;
        }
        Ok(whole)
    });
    let removed = std::fs::remove_file(staged);
    let whole = put?;
    removed?;
    if let (true, Some(dir)) = (whole, to.parent()) {
        File::open(dir)?.sync_all()?;
    }
    Ok(whole)
}

/// Puts a file, durably, in the place of one that is damaged: what is there before and after is whole or is not.
pub(crate) fn replace<B: AsRef<[u8]>>(
    to: &Path,
    parts: impl IntoIterator<Item = io::Result<B>>,
) -> io::Result<()> {
    let (staged, file) = stage(to)?;
    let put =
        write(file, parts, &Unlimited).and_then(|_| backstay_host::atomic::rename(&staged, to));
    if let Err(e) = put {
        let _ = std::fs::remove_file(staged);
        return Err(e);
    }
    to.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Makes a file beside a name that is this put's alone. Lists pass over names like these. Nothing that is
/// there is opened: another put may be at it, or somebody may have planted a link.
fn stage(to: &Path) -> io::Result<(PathBuf, File)> {
    let mut number = 0;
    loop {
        number += 1;
        let mut staged = to.as_os_str().to_owned();
        staged.push(format!("#{number}"));
        match OpenOptions::new().create_new(true).write(true).mode(0o600).open(&staged) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && number < STAGED_MAX => {}
            file => return Ok((staged.into(), file?)),
        }
    }
}

fn write<B: AsRef<[u8]>>(
    mut file: File,
    parts: impl IntoIterator<Item = io::Result<B>>,
    pace: &dyn Pace,
) -> io::Result<bool> {
    let (mut at, mut begun) = (0, 0);
    for part in parts {
        let part = part?;
        let mut part = part.as_ref();
        while !part.is_empty() {
            let Some(some) = pace.let_through(part.len() as u64) else { return Ok(false) };
            let all = part.len();
            let (now, later) = part.split_at(some.clamp(1, all as u64) as usize);
            file.write_all(now)?;
            at += now.len() as i64;
            if at - begun >= WRITE_BACK_BYTES {
                begin_write_back(&file, begun, at - begun);
                begun = at;
            }
            part = later;
        }
    }
    file.sync_all()?;
    Ok(true)
}

/// Has the kernel write a range, without waiting. Whether it does so matters for the line's evenness
/// alone: what must be durable is synced.
fn begin_write_back(file: &File, at: i64, len: i64) {
    // SAFETY: takes numbers only; the descriptor is open.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), at, len, libc::SYNC_FILE_RANGE_WRITE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Lets a few bytes through at a time, and gives up after a number of them.
    struct Steps {
        step: u64,
        left: Mutex<u64>,
    }

    impl Pace for Steps {
        fn let_through(&self, want: u64) -> Option<u64> {
            let mut left = self.left.lock().unwrap();
            let some = want.min(self.step).min(*left);
            *left -= some;
            (some > 0).then_some(some)
        }
    }

    fn steps(step: u64, left: u64) -> Steps {
        Steps { step, left: Mutex::new(left) }
    }

    fn names(dir: &Path) -> Vec<String> {
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.unwrap().file_name().into_string().unwrap()
        };
        std::fs::read_dir(dir).unwrap().map(name).collect()
    }

    #[test]
    fn what_is_put_in_steps_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("segment");
        let parts: [&[u8]; 4] = [b"first", b"", b"second part", b"x"];
        assert!(put(&to, parts.map(Ok), &steps(3, 17)).unwrap());
        assert_eq!(std::fs::read(&to).unwrap(), b"firstsecond partx");
        assert_eq!(names(dir.path()), ["segment"]);
        let error = put(&to, parts.map(Ok), &Unlimited).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(names(dir.path()), ["segment"]);
    }

    #[test]
    fn what_is_given_up_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let parts: [&[u8]; 2] = [b"first", b"second"];
        assert!(!put(&dir.path().join("segment"), parts.map(Ok), &steps(4, 10)).unwrap());
        assert!(names(dir.path()).is_empty());
        assert!(!wait_for_all(&steps(4, 10), 11) && wait_for_all(&steps(4, 10), 10));
    }

    /// Nothing is written before it was let through.
    #[test]
    fn no_byte_goes_before_its_time() {
        struct Looks<'a>(&'a Path, Mutex<Vec<(u64, u64)>>);
        impl Pace for Looks<'_> {
            fn let_through(&self, want: u64) -> Option<u64> {
                let written = std::fs::metadata(self.0).map_or(0, |m| m.len());
                let mut seen = self.1.lock().unwrap();
                let let_through = seen.last().map_or(0, |(_, after)| *after);
                let some = want.min(2);
                seen.push((written, let_through + some));
                Some(some)
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let staged = dir.path().join("segment#1");
        let pace = Looks(&staged, Mutex::default());
        assert!(put(&dir.path().join("segment"), [Ok(&[7u8; 9][..])], &pace).unwrap());
        let seen = pace.1.into_inner().unwrap();
        assert_eq!(seen, [(0, 2), (2, 4), (4, 6), (6, 8), (8, 9)]);
    }
}
