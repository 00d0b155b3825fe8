//! The traits for the driver's tracking state: durable files, and bitmaps that live until the next boot.
//!
//! Production uses [`fs::FsEnv`]. The crash tests use a recorder that rebuilds every state that a kill or
//! a power loss can leave. The model tests use an implementation in memory that yields at each step.

pub mod fs;
mod map;

use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// The storage of a disk's tracking state.
pub trait Env: Send + Sync + 'static {
    /// A durable file.
    type File: StateFile;
    /// Bits that survive the process, but not a reboot.
    type Bits: SharedBits;

    /// Makes a file with exactly these bytes. Replaces a file of the same name atomically: a crash leaves
    /// the old file or the complete new one. Content and name are durable on return.
    ///
    /// # Errors
    /// Disk full, I/O error, no permission.
    fn create(&self, name: &str, content: &[u8]) -> io::Result<Self::File>;
    /// Makes a scratch file that need not survive a crash.
    ///
    /// # Errors
    /// Disk full, I/O error, no permission.
    fn create_scratch(&self, name: &str, content: &[u8]) -> io::Result<Self::File>;
    /// Makes the content and the name of a scratch file durable.
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

    /// Makes bits, all clear, after a header. Replaces bits of the same name.
    ///
    /// # Errors
    /// No memory, no permission.
    fn create_bits(&self, name: &str, header: &[u8], words: u64) -> io::Result<Self::Bits>;
    /// Opens bits made in this boot, if they exist and `words` accepts their header. `words` returns the
    /// number of words after the header.
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

    /// Reserves that many bytes of space for the next start. A failure is only logged.
    fn reserve(&self, bytes: u64) {
        let _ = bytes;
    }
    /// Frees the reserved space. Returns whether there was any.
    fn use_reserve(&self) -> bool {
        false
    }
    /// Logs a message outside the state directory, which may have failed together with the log in it.
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
    /// Writes all of `data`. It becomes durable with a later durable write, or never (scratch files).
    ///
    /// # Errors
    /// Disk full, I/O error.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Writes all of `data` within the length of the file. The data is durable on return.
    ///
    /// # Errors
    /// I/O error.
    fn write_durable(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Where the file is, for another process to open.
    fn path(&self) -> PathBuf;
}

/// A run of 64-bit words shared with other processes.
///
/// Only reserved words may be accessed: then no access can fail for lack of memory.
pub trait SharedBits: Send + Sync + 'static {
    /// Reads a word.
    fn load(&self, word: u64) -> u64;
    /// Sets bits of a word. Returns its old value.
    fn or(&self, word: u64, mask: u64) -> u64;
    /// Allocates memory for words, so that they can be accessed.
    ///
    /// # Errors
    /// No memory.
    fn reserve(&self, words: Range<u64>) -> io::Result<()>;
    /// Runs of words that may be set. All other words are zero.
    ///
    /// # Errors
    /// I/O error.
    fn touched(&self) -> io::Result<Vec<Range<u64>>>;
    /// Where the bits are, for another process to map.
    fn path(&self) -> PathBuf;
}
