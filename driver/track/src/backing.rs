//! The trait for the file or device that holds the disk's bytes.

use std::fs::File;
use std::io;

use backstay_format::control::BackingFaultKind;
use backstay_format::fingerprint::Fingerprint;
use backstay_format::mark::Mark;
use backstay_format::superblock::BackingId;
use backstay_types::{ByteLen, ByteOffset};

/// A backing file or device.
///
/// A read that begins after an acknowledged write must see that write. This includes reads by other
/// processes through the page cache, because the sidecar reads this way.
pub trait Backing: Send + Sync + 'static {
    /// The size in use: the size at opening, or the one set by [`Self::grow`].
    fn size(&self) -> ByteLen;
    /// The current size of the file or device, which somebody may have extended.
    ///
    /// # Errors
    /// If it cannot be examined.
    fn size_now(&self) -> io::Result<ByteLen> {
        Ok(self.size())
    }
    /// Extends a file, or checks that a device was extended. Never shortens. On return the size is
    /// durable, and [`Self::size`] is `to`.
    ///
    /// # Errors
    /// If that size is not possible. The size in use is unchanged.
    fn grow(&self, to: ByteLen) -> io::Result<()> {
        let _ = to;
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
    /// The identity of the file or device; `None` if it has none.
    ///
    /// # Errors
    /// If it cannot be examined.
    fn identity(&self) -> io::Result<Option<BackingId>> {
        Ok(None)
    }
    /// The mark, which is stored with the backing and so survives the state directory. `None` if there is
    /// no valid mark.
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
    /// Opens the same file or device again, so that another process can read it. `None` if no file or
    /// device holds the disk's bytes.
    ///
    /// # Errors
    /// If it cannot be opened.
    fn open_to_read(&self) -> io::Result<Option<File>> {
        Ok(None)
    }
    /// The current fault, with a description: the backing was replaced, deleted or shortened.
    fn fault(&self) -> Option<(BackingFaultKind, String)> {
        None
    }
    /// A fingerprint of the first `size` bytes, to detect changes made while no driver runs. All writes are
    /// durable when this is called. `None` if only a driver can write to the backing.
    ///
    /// # Errors
    /// If it cannot be examined.
    fn fingerprint(&self, boot_id: [u8; 16], size: ByteLen) -> io::Result<Option<Fingerprint>> {
        let _ = (boot_id, size);
        Ok(None)
    }
    /// The logical sector size of a device, in bytes.
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
    /// Makes a range read as zeroes, and frees its space if possible.
    ///
    /// # Errors
    /// What the file or device answered.
    fn punch(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()>;
    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// What the file or device answered.
    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()>;
    /// Makes every acknowledged write durable.
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
