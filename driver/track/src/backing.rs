//! The seam under which the disk's own bytes live.

use std::io;

use backstay_format::{ByteLen, ByteOffset};

/// A backing file or device.
///
/// Writes that were answered must be seen by reads that begin after, also by other processes that
/// read the file or device through the page cache (the sidecar does).
pub trait Backing: Send + Sync + 'static {
    /// Its size.
    fn size(&self) -> ByteLen;
    /// Reads exactly `buf.len()` bytes; the caller stays within the size.
    ///
    /// # Errors
    /// What the file or device answered; the guest gets the same.
    fn read_at(&self, buf: &mut [u8], offset: ByteOffset) -> io::Result<()>;
    /// Writes all of `data`, whatever its alignment; the caller stays within the size.
    ///
    /// # Errors
    /// What the file or device answered; the guest gets the same.
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()>;
    /// Makes a range read as zeroes and gives its space back where that is possible.
    ///
    /// # Errors
    /// What the file or device answered.
    fn punch(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()>;
    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// What the file or device answered.
    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()>;
    /// Makes every write that was answered durable.
    ///
    /// # Errors
    /// What the file or device answered.
    fn sync(&self) -> io::Result<()>;
    /// When the file was last modified, nanoseconds since 1970; 0 for a device.
    ///
    /// # Errors
    /// If the file cannot be examined.
    fn mtime_unix_ns(&self) -> io::Result<u64>;
}
