//! The seam for the driver's own state: files that last, and bits that live as long as the boot.
//!
//! Production is [`fs::FsEnv`]; the crash tests put a recorder here that can rebuild every state a
//! kill or a power loss could leave, and the model tests an in-memory one that yields at each step.

pub mod fs;
mod map;

use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// Where a disk's state lives.
pub trait Env: Send + Sync + 'static {
    /// A file that lasts.
    type File: StateFile;
    /// Bits that survive the process but not the boot.
    type Bits: SharedBits;

    /// Makes a file of exactly these bytes, replacing any of that name at once: a crash leaves the
    /// old file or the whole new one. Both bytes and name are durable when this returns.
    ///
    /// # Errors
    /// Disk full, I/O error, no permission.
    fn create(&self, name: &str, content: &[u8]) -> io::Result<Self::File>;
    /// Makes a scratch file that need not survive a crash.
    ///
    /// # Errors
    /// Disk full, I/O error, no permission.
    fn create_scratch(&self, name: &str, content: &[u8]) -> io::Result<Self::File>;
    /// Makes a scratch file and its name durable.
    ///
    /// # Errors
    /// I/O error.
    fn make_durable(&self, file: &Self::File, name: &str) -> io::Result<()>;
    /// Opens a file, if there is one of that name.
    ///
    /// # Errors
    /// I/O error, no permission.
    fn open(&self, name: &str) -> io::Result<Option<Self::File>>;
    /// Removes a file, if there is one. Need not be durable.
    ///
    /// # Errors
    /// I/O error, no permission.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Names of all files.
    ///
    /// # Errors
    /// I/O error, no permission.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes bits, all clear, with a header before them; replaces any of that name.
    ///
    /// # Errors
    /// No memory, no permission.
    fn create_bits(&self, name: &str, header: &[u8], words: u64) -> io::Result<Self::Bits>;
    /// Opens bits made in this boot, if there are any of that name and `words` knows their header:
    /// it says how many words follow it.
    ///
    /// # Errors
    /// I/O error, no permission, fewer words than that.
    fn open_bits(
        &self,
        name: &str,
        words: &dyn Fn(&[u8]) -> Option<u64>,
    ) -> io::Result<Option<Self::Bits>>;
    /// Removes bits, if there are any.
    ///
    /// # Errors
    /// I/O error, no permission.
    fn remove_bits(&self, name: &str) -> io::Result<()>;
    /// Names of all bits.
    ///
    /// # Errors
    /// I/O error, no permission.
    fn list_bits(&self) -> io::Result<Vec<String>>;

    /// Keeps so many bytes of room for the next start, beside what is used now. Trouble with it is worth a
    /// warning only.
    fn reserve(&self, bytes: u64) {
        let _ = bytes;
    }
    /// Gives up the room that was kept; whether there was any.
    fn use_reserve(&self) -> bool {
        false
    }
    /// Says something where it is heard although the state directory, and the log in it, may be dead.
    fn alarm(&self, message: &str) {
        let _ = message;
    }
    /// The kernel's boot id.
    fn boot_id(&self) -> [u8; 16];
    /// The time, nanoseconds since 1970.
    fn now_unix_ns(&self) -> u64;
}

/// A file of the driver's state.
pub trait StateFile: Send + Sync + 'static {
    /// Its length in bytes.
    ///
    /// # Errors
    /// I/O error.
    fn len_bytes(&self) -> io::Result<u64>;
    /// Reads exactly `buf.len()` bytes.
    ///
    /// # Errors
    /// I/O error, or the file ends before.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `data`; durable only after a later durable write or never (scratch).
    ///
    /// # Errors
    /// Disk full, I/O error.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Writes all of `data` inside the file's length; durable when this returns.
    ///
    /// # Errors
    /// I/O error.
    fn write_durable(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Where the file is, for another process to open.
    fn path(&self) -> PathBuf;
}

/// A run of 64-bit words shared with other processes.
///
/// Words are only touched where they were reserved: then no access can fail for lack of memory.
pub trait SharedBits: Send + Sync + 'static {
    /// Reads a word.
    fn load(&self, word: u64) -> u64;
    /// Sets bits of a word; returns what it was before.
    fn or(&self, word: u64, mask: u64) -> u64;
    /// Takes the memory for words, so that they can be touched.
    ///
    /// # Errors
    /// No memory.
    fn reserve(&self, words: Range<u64>) -> io::Result<()>;
    /// The words that were reserved or set, as runs; all others are zero.
    ///
    /// # Errors
    /// I/O error.
    fn touched(&self) -> io::Result<Vec<Range<u64>>>;
    /// Where the bits are, for another process to map.
    fn path(&self) -> PathBuf;
}
