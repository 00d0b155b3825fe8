//! The seam under the local side of a mounted point: the overlay's bytes and its map.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use backstay_format::mark::Mark;
use backstay_format::superblock::BackingId;
use backstay_front::backing::{AnyBacking, Engine, OpenError, open};
use backstay_track::Backing;
use backstay_types::{ByteLen, ByteOffset};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// A file, as a crash sees it: what was written may or may not be there until a sync returns.
pub(crate) trait Medium: Send + Sync + 'static {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()>;
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()>;
    /// Makes a range read as zeroes, giving its space back if possible.
    fn punch(&self, at: u64, len: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
    /// The next stretch from `at` on that may hold something; `None` if there is none.
    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>>;
}

/// Most bytes in one file: ext4 has none of 16 TiB.
const PART_BYTES: u64 = 8 << 40;

/// The overlay's bytes: a sparse file that nobody else may open as a disk; of a very large disk, several.
pub(crate) struct OverlayFile {
    parts: Vec<AnyBacking>,
    size: ByteLen,
}

/// The files of an overlay, with their lengths.
pub(crate) fn overlay_parts(path: &Path, size: ByteLen) -> Vec<(PathBuf, u64)> {
    let name = |part: u64| match part {
        0 => path.to_owned(),
        part => {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{part}"));
            name.into()
        }
    };
    let parts = size.0.div_ceil(PART_BYTES).max(1);
    let len = |part: u64| (size.0 - part * PART_BYTES).min(PART_BYTES);
    (0..parts).map(|part| (name(part), len(part))).collect()
}

impl OverlayFile {
    /// Makes the file, as long as the disk, where none is.
    pub fn create(path: &Path, size: ByteLen) -> io::Result<()> {
        for (path, len) in overlay_parts(path, size) {
            let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
            file.set_len(len)?;
            file.sync_all()?;
        }
        backstay_host::atomic::sync_folder_of(path)
    }

    pub fn open(path: &Path, size: ByteLen) -> Result<Self, OpenError> {
        let mut parts = vec![];
        for (path, len) in overlay_parts(path, size) {
            let backing = open(&path, Engine::Buffered)?;
            if backing.size().0 != len {
                let source = io::Error::other(format!(
                    "{} bytes, {len} were expected: this is not the overlay that was made for the point",
                    backing.size()
                ));
                return Err(OpenError::Io { path, source });
            }
            parts.push(backing);
        }
        Ok(Self { parts, size })
    }

    /// When it was last written to.
    pub fn mtime_unix_ns(&self) -> io::Result<u64> {
        let times = self.parts.iter().map(Backing::mtime_unix_ns);
        times.collect::<io::Result<Vec<u64>>>().map(|times| times.into_iter().max().unwrap_or(0))
    }

    /// Which files it is.
    pub fn identities(&self) -> io::Result<Vec<Option<BackingId>>> {
        self.parts.iter().map(Backing::identity).collect()
    }

    /// The mark of the overlay: that of its first file.
    pub fn mark(&self) -> io::Result<Option<Mark>> {
        self.parts.first().ok_or(io::ErrorKind::Unsupported)?.mark()
    }

    /// Replaces it.
    pub fn set_mark(&self, mark: &Mark) -> io::Result<()> {
        self.parts.first().ok_or(io::ErrorKind::Unsupported)?.set_mark(mark)
    }

    /// Calls with each file that has bytes of a range: the file, where in it, and where in the range.
    fn each(
        &self,
        at: u64,
        len: u64,
        mut each: impl FnMut(&AnyBacking, u64, Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut here, end) = (at, at + len);
        while here < end {
            let stop = ((here / PART_BYTES + 1) * PART_BYTES).min(end);
            let part = self.parts.get((here / PART_BYTES) as usize);
            let part = part.ok_or(io::ErrorKind::UnexpectedEof)?;
            each(part, here % PART_BYTES, (here - at) as usize..(stop - at) as usize)?;
            here = stop;
        }
        Ok(())
    }
}

impl Medium for OverlayFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.each(at, buf.len() as u64, |part, at, range| {
            part.read_at(&mut buf[range], ByteOffset(at))
        })
    }
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.each(at, data.len() as u64, |part, at, range| {
            part.write_at(&data[range], ByteOffset(at))
        })
    }
    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.each(at, len, |part, at, range| {
            part.punch(ByteOffset(at), ByteLen(range.len() as u64))
        })
    }
    fn sync(&self) -> io::Result<()> {
        self.parts.iter().try_for_each(Backing::sync)
    }
    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        Ok((at < self.size.0).then_some((at, self.size.0)))
    }
}

/// A plain sparse file of the state directory.
pub(crate) struct PlainFile(pub File);

impl Medium for PlainFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, at)
    }
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(data, at)
    }
    fn punch(&self, _at: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        let data = match lseek(&self.0, at as i64, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        Ok(Some((data as u64, lseek(&self.0, data, Whence::SeekHole)? as u64)))
    }
}

#[cfg(test)]
pub(crate) mod memory {
    //! A medium in memory that can lose what was not synced.

    use std::collections::BTreeMap;
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::Medium;

    const SECTOR: usize = 512;

    #[derive(Default, Clone)]
    struct State {
        /// What is there for anyone who reads.
        now: Vec<u8>,
        /// What a crash leaves for sure.
        durable: Vec<u8>,
        /// For each sector that was written since the last sync: all it was since.
        pending: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    }

    /// Clones share it.
    #[derive(Clone)]
    pub struct Memory(Arc<Mutex<State>>, Arc<Mutex<Option<u64>>>);

    impl Memory {
        /// `fuse`: operations that all media together still do.
        pub fn new(bytes: usize, fuse: Arc<Mutex<Option<u64>>>) -> Self {
            let zero = vec![0; bytes.next_multiple_of(SECTOR)];
            let state = State { now: zero.clone(), durable: zero, ..State::default() };
            Self(Arc::new(Mutex::new(state)), fuse)
        }

        fn step(&self) -> io::Result<()> {
            let mut fuse = self.1.lock().unwrap();
            match fuse.as_mut() {
                Some(0) => Err(io::Error::other("the power is gone")),
                Some(left) => {
                    *left -= 1;
                    Ok(())
                }
                None => Ok(()),
            }
        }

        /// The medium after a power loss: each sector that was not synced is any of what it was.
        pub fn crashed(&self, rng: &mut fastrand::Rng, fuse: Arc<Mutex<Option<u64>>>) -> Self {
            let state = self.0.lock().unwrap().clone();
            let mut durable = state.durable;
            for (sector, versions) in state.pending {
                let choice = rng.usize(0..=versions.len());
                if choice > 0 {
                    durable[sector * SECTOR..(sector + 1) * SECTOR]
                        .copy_from_slice(&versions[choice - 1]);
                }
            }
            let state = State { now: durable.clone(), durable, ..State::default() };
            Self(Arc::new(Mutex::new(state)), fuse)
        }

        fn change(&self, at: u64, len: usize, data: Option<&[u8]>) -> io::Result<()> {
            // A write that the power loss interrupts may have been begun.
            let alive = self.step();
            let mut state = self.0.lock().unwrap();
            let (from, to) = (at as usize, at as usize + len);
            match data {
                Some(data) => state.now[from..to].copy_from_slice(data),
                None => state.now[from..to].fill(0),
            }
            for sector in from / SECTOR..to.div_ceil(SECTOR) {
                let mut version = [0; SECTOR];
                version.copy_from_slice(&state.now[sector * SECTOR..(sector + 1) * SECTOR]);
                state.pending.entry(sector).or_default().push(version);
            }
            alive
        }
    }

    impl Medium for Memory {
        fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
            let state = self.0.lock().unwrap();
            buf.copy_from_slice(&state.now[at as usize..at as usize + buf.len()]);
            Ok(())
        }
        fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
            self.change(at, data.len(), Some(data))
        }
        fn punch(&self, at: u64, len: u64) -> io::Result<()> {
            self.change(at, len as usize, None)
        }
        fn sync(&self) -> io::Result<()> {
            self.step()?;
            let mut state = self.0.lock().unwrap();
            state.durable = state.now.clone();
            state.pending.clear();
            Ok(())
        }
        fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
            let len = self.0.lock().unwrap().now.len() as u64;
            Ok((at < len).then_some((at, len)))
        }
    }
}
