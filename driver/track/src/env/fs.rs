//! The real thing: a state directory on a disk, and a runtime directory on tmpfs.
//!
//! Why tmpfs for the bits: they survive the death of the driver exactly and are gone with the boot,
//! which is just when they may no longer be believed; they never cause disk I/O on the write path;
//! and memory for them is taken before they are touched, so a full tmpfs is an error at a place
//! that can handle it and never a SIGBUS.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use backstay_host::atomic;
use backstay_host::own_dir::own_dir;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::uio::pwrite;
use nix::unistd::{Whence, lseek};

use backstay_host::alarm;

use super::map::MappedWords;
use super::{Env, SharedBits, StateFile};

/// Takes the room that the next start needs, in both directories.
const RESERVE: &str = "reserve";
/// Ends the name of a file that is not finished; left only by a crash.
const UNFINISHED: &str = ".unfinished";

/// State in two directories: one that lasts, one on tmpfs.
#[derive(Debug)]
pub struct FsEnv {
    state_dir: PathBuf,
    runtime_dir: PathBuf,
    state_handle: File,
    boot_id: [u8; 16],
}

impl FsEnv {
    /// Makes the directories if they are missing (mode 0700) and opens them.
    ///
    /// # Errors
    /// If they cannot be made, are not ours alone, or the runtime directory is not on tmpfs.
    pub fn open(state_dir: &Path, runtime_dir: &Path) -> io::Result<Self> {
        for dir in [state_dir, runtime_dir] {
            own_dir(dir)?;
            atomic::tidy(dir);
        }
        let runtime = File::open(runtime_dir)?;
        if fstatfs(&runtime)?.filesystem_type() != TMPFS_MAGIC {
            return Err(io::Error::other(format!(
                "{} is not on tmpfs; the dirty bitmap must live in memory that survives the \
                 driver but not the boot: choose a directory on tmpfs (/run or /dev/shm)",
                runtime_dir.display()
            )));
        }
        let state_handle = File::open(state_dir)?;
        for name in Self::names(state_dir)?.iter().filter(|name| name.ends_with(UNFINISHED)) {
            remove_if_there(&state_dir.join(name))?;
        }
        if let Some(parent) = state_dir.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(Self {
            state_dir: state_dir.canonicalize()?,
            runtime_dir: runtime_dir.canonicalize()?,
            state_handle,
            boot_id: read_boot_id()?,
        })
    }

    fn names(dir: &Path) -> io::Result<Vec<String>> {
        let mut names = vec![];
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if let (true, Ok(name)) =
                (entry.file_type()?.is_file(), entry.file_name().into_string())
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn new_file(path: &Path, content: &[u8]) -> io::Result<File> {
        remove_if_there(path)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)?;
        file.write_all(content)?;
        Ok(file)
    }

    fn existing_file(path: &Path) -> io::Result<Option<File>> {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path);
        match open {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn read_boot_id() -> io::Result<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    match u128::from_str_radix(&hex, 16) {
        Ok(id) if hex.len() == 32 => Ok(id.to_be_bytes()),
        _ => Err(io::Error::other(format!("the kernel's boot id is not one: {text:?}"))),
    }
}

impl Env for FsEnv {
    type File = FsFile;
    type Bits = FsBits;

    fn create(&self, name: &str, content: &[u8]) -> io::Result<FsFile> {
        // Under another name until it is whole and durable: a crash leaves the old file or the new.
        let path = self.state_dir.join(name);
        let unfinished = self.state_dir.join(format!("{name}{UNFINISHED}"));
        let file = Self::new_file(&unfinished, content)?;
        file.sync_all()?;
        atomic::rename(&unfinished, &path)?;
        self.state_handle.sync_all()?;
        Ok(FsFile { file, path })
    }

    fn make_durable(&self, file: &FsFile, _name: &str) -> io::Result<()> {
        file.file.sync_all()?;
        self.state_handle.sync_all()
    }

    fn create_scratch(&self, name: &str, content: &[u8]) -> io::Result<FsFile> {
        let path = self.state_dir.join(name);
        Ok(FsFile { file: Self::new_file(&path, content)?, path })
    }

    fn open(&self, name: &str) -> io::Result<Option<FsFile>> {
        let path = self.state_dir.join(name);
        Ok(Self::existing_file(&path)?.map(|file| FsFile { file, path }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        remove_if_there(&self.state_dir.join(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Self::names(&self.state_dir)
    }

    fn create_bits(&self, name: &str, header: &[u8], words: u64) -> io::Result<FsBits> {
        let path = self.runtime_dir.join(name);
        let file = Self::new_file(&path, header)?;
        file.set_len(header.len() as u64 + words * 8)?;
        let header_bytes = header.len() as u64;
        Ok(FsBits {
            map: MappedWords::new(&file, header.len(), words)?,
            file,
            path,
            header_bytes,
            words,
        })
    }

    fn open_bits(
        &self,
        name: &str,
        words: &dyn Fn(&[u8]) -> Option<u64>,
    ) -> io::Result<Option<FsBits>> {
        let path = self.runtime_dir.join(name);
        let Some(file) = Self::existing_file(&path)? else {
            return Ok(None);
        };
        let mut header = vec![0; backstay_format::bitmap::HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        let Some(words) = words(&header) else {
            return Ok(None);
        };
        let header_bytes = header.len() as u64;
        let map = MappedWords::new(&file, header.len(), words)?;
        Ok(Some(FsBits { map, file, path, header_bytes, words }))
    }

    fn remove_bits(&self, name: &str) -> io::Result<()> {
        remove_if_there(&self.runtime_dir.join(name))
    }

    fn list_bits(&self) -> io::Result<Vec<String>> {
        Self::names(&self.runtime_dir)
    }

    fn reserve(&self, bytes: u64) {
        for dir in [&self.state_dir, &self.runtime_dir] {
            let kept = Self::new_file(&dir.join(RESERVE), &[])
                .and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, bytes as i64)?));
            if let Err(e) = kept {
                let _ = remove_if_there(&dir.join(RESERVE));
                tracing::warn!(
                    "no {bytes} bytes are left in {} for the next start ({e}): make room there",
                    dir.display()
                );
            }
        }
    }

    fn use_reserve(&self) -> bool {
        let given_up = |dir: &PathBuf| fs::remove_file(dir.join(RESERVE)).is_ok();
        let all = [&self.state_dir, &self.runtime_dir].map(given_up);
        all.contains(&true)
    }

    fn alarm(&self, message: &str) {
        let name = self.state_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        alarm::raise(&format!("disk {name}: {message}"));
    }

    fn boot_id(&self) -> [u8; 16] {
        self.boot_id
    }

    fn now_unix_ns(&self) -> u64 {
        backstay_host::clock::now_unix_ns()
    }
}

/// A file in the state directory.
#[derive(Debug)]
pub struct FsFile {
    file: File,
    path: PathBuf,
}

impl StateFile for FsFile {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn write_durable(&self, data: &[u8], offset: u64) -> io::Result<()> {
        // RWF_DSYNC: one system call writes the block and flushes it. The file's blocks were all
        // written when it was made, so there is no metadata to commit with it.
        let iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        // SAFETY: `iov` describes `data`, which outlives the call and is only read by it.
        let n = unsafe {
            libc::pwritev2(self.file.as_raw_fd(), &iov, 1, offset as i64, libc::RWF_DSYNC)
        };
        match n {
            n if n == data.len() as isize => Ok(()),
            n if n < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) => {
                Err(io::Error::last_os_error())
            }
            _ => {
                // Short or interrupted: finish the slow way.
                let mut done = n.max(0) as usize;
                while done < data.len() {
                    done += pwrite(&self.file, &data[done..], (offset + done as u64) as i64)?;
                }
                self.file.sync_data()
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.path.clone()
    }
}

/// Bits in a tmpfs file.
pub struct FsBits {
    map: MappedWords,
    file: File,
    path: PathBuf,
    header_bytes: u64,
    words: u64,
}

impl SharedBits for FsBits {
    fn load(&self, word: u64) -> u64 {
        self.map.load(word)
    }

    fn or(&self, word: u64, mask: u64) -> u64 {
        self.map.or(word, mask)
    }

    fn reserve(&self, words: Range<u64>) -> io::Result<()> {
        let (start, end) = (words.start * 8, words.end.min(self.words) * 8);
        if start >= end {
            return Ok(());
        }
        let at = (self.header_bytes + start) as i64;
        Ok(fallocate(&self.file, FallocateFlags::empty(), at, (end - start) as i64)?)
    }

    fn touched(&self) -> io::Result<Vec<Range<u64>>> {
        // tmpfs reports a page as data once it was touched; pages that are only reserved are
        // zero and need no look.
        let end = self.header_bytes + self.words * 8;
        let mut runs = vec![];
        let mut at = self.header_bytes;
        while at < end {
            let data = match lseek(&self.file, at as i64, Whence::SeekData) {
                Ok(data) => data as u64,
                Err(nix::errno::Errno::ENXIO) => break,
                Err(e) => return Err(e.into()),
            };
            let hole = lseek(&self.file, data as i64, Whence::SeekHole)? as u64;
            let word = |byte: u64| byte.clamp(self.header_bytes, end) - self.header_bytes;
            let (first, last) = (word(data) / 8, word(hole).div_ceil(8));
            if first < last {
                runs.push(first..last);
            }
            at = hole.max(at + 1);
        }
        Ok(runs)
    }

    fn path(&self) -> PathBuf {
        self.path.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_survive_being_opened_again() {
        let shm = tempfile::tempdir_in("/dev/shm").unwrap();
        let disk = tempfile::tempdir().unwrap();
        let env = FsEnv::open(disk.path(), shm.path()).unwrap();
        let header = [7u8; 4096];
        let bits = env.create_bits("b", &header, 1 << 20).unwrap();
        bits.reserve(600..640).unwrap();
        bits.or(601, 5);
        drop(bits);
        let is_it = |found: &[u8]| (found == header).then_some(1 << 20);
        let bits = env.open_bits("b", &is_it).unwrap().unwrap();
        assert_eq!(bits.load(601), 5);
        assert!(bits.touched().unwrap().iter().any(|r| r.contains(&601)));
        assert!(env.open_bits("b", &|_| None).unwrap().is_none(), "another's bits");
        let more = env.open_bits("b", &|_| Some(1 << 30));
        assert!(more.is_err(), "a file too short must not be mapped");
    }

    #[test]
    fn a_runtime_directory_on_a_disk_is_refused() {
        // The working directory of a test is the checkout, which is not on tmpfs.
        let dir = tempfile::tempdir_in(".").unwrap();
        let err = FsEnv::open(dir.path(), dir.path()).unwrap_err();
        assert!(err.to_string().contains("tmpfs"), "{err}");
    }

    #[test]
    fn full_tmpfs_is_an_error_not_a_signal() {
        let shm = tempfile::tempdir_in("/dev/shm").unwrap();
        let disk = tempfile::tempdir().unwrap();
        let env = FsEnv::open(disk.path(), shm.path()).unwrap();
        let bits = env.create_bits("b", &[0; 4096], 1 << 40).unwrap();
        // More than the machine has; tmpfs refuses and gives back what it took.
        assert!(bits.reserve(0..1 << 38).is_err());
    }
}
