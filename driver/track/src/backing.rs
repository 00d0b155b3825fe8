//! The seam under which the disk's own bytes live.

use std::fs::File;
use std::io;

use backstay_format::control::BackingFaultKind;
use backstay_format::fingerprint::Fingerprint;
use backstay_format::mark::Mark;
use backstay_format::superblock::BackingId;
use backstay_types::{ByteLen, ByteOffset};

/// A backing file or device.
///
/// Writes that were answered must be seen by reads that begin after, also by other processes that
/// read the file or device through the page cache (the sidecar does).
pub trait Backing: Send + Sync + 'static {
    /// The size it is used with: what it had when it was opened, or what [`Self::grow`] gave it.
    fn size(&self) -> ByteLen;
    /// The size the file or device has at this moment; somebody may have extended it.
    ///
    /// # Errors
    /// If it cannot be examined.
    fn size_now(&self) -> io::Result<ByteLen> {
        Ok(self.size())
    }
    /// Extends a file, or sees that a device has been extended; durable when this returns, and
    /// [`Self::size`] is `to` from then on. Never shortens.
    ///
    /// # Errors
    /// If it cannot have that size; its size is then what it was.
    fn grow(&self, to: ByteLen) -> io::Result<()> {
        let _ = to;
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
    /// Which file or device this is; `None` if it cannot be told from others.
    ///
    /// # Errors
    /// If it cannot be examined.
    fn identity(&self) -> io::Result<Option<BackingId>> {
        Ok(None)
    }
    /// The mark that stands beside the bytes, in a place that does not die with the state directory;
    /// `None` if there is none, or what is there is no mark.
    ///
    /// # Errors
    /// If it cannot be read; `EOPNOTSUPP` if there is no place for one.
    fn mark(&self) -> io::Result<Option<Mark>> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
    /// Replaces the mark; durable when this returns.
    ///
    /// # Errors
    /// As for [`Self::mark`]; the old mark may still be there then.
    fn set_mark(&self, mark: &Mark) -> io::Result<()> {
        let _ = mark;
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
    /// Opens the very file or device once more, to be read by another process; `None` if there is none
    /// that holds the disk's bytes.
    ///
    /// # Errors
    /// If it cannot be opened.
    fn open_to_read(&self) -> io::Result<Option<File>> {
        Ok(None)
    }
    /// What is wrong with it at this moment, and in words: it was replaced, deleted, shortened.
    fn fault(&self) -> Option<(BackingFaultKind, String)> {
        None
    }
    /// What its first `size` bytes are like now; everything of it is durable. `None` if nobody but a driver
    /// can write to it.
    ///
    /// # Errors
    /// If it cannot be examined.
    fn fingerprint(&self, boot_id: [u8; 16], size: ByteLen) -> io::Result<Option<Fingerprint>> {
        let _ = (boot_id, size);
        Ok(None)
    }
    /// What a device must be addressed in, in bytes.
    fn sector_bytes(&self) -> Option<u32> {
        None
    }
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
