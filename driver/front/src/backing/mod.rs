//! Backing files and devices: opening them for exclusive use by one driver, reading and writing them.
//!
//! There are two engines. Measurements decided which one is the default (docs/decisions/0002).

mod alone;
mod buffered;
pub mod copy;
mod direct;
mod fingerprint;
pub mod half_written;
mod identity;
mod mark;
mod open;
pub mod record;
mod ring;
mod watch;

use std::fs::File;
use std::io;

use backstay_format::control::BackingFaultKind;
use backstay_format::fingerprint::Fingerprint;
use backstay_format::mark::Mark;
use backstay_format::superblock::BackingId;
use backstay_track::Backing;
use backstay_types::{ByteLen, ByteOffset};

pub use alone::refuse_users;
pub use half_written::{PART_EXTENSION, is_part, unfinished};
pub use open::{Engine, OpenError, image_format, open, open_as};

use buffered::Buffered;
use direct::Direct;

/// The target of [`AnyBacking::seek`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that may differ from zero.
    Data,
    /// The next hole, or the end of the backing.
    Hole,
}

/// A backing that the program provides when it starts the driver, instead of a file or device.
///
/// An operation may have to fetch data first. [`Self::has`] and [`Self::takes`] tell in advance whether
/// it can run at once. If not, it runs on other threads than the event loops, so that it delays no other
/// request.
pub trait RemoteBacking: Backing {
    /// The kind of backing, in one word.
    fn name(&self) -> &'static str;
    /// Finds data or a hole at or after `offset`. An implementation that cannot tell reports data. May
    /// be slow.
    ///
    /// # Errors
    /// `ENXIO` if there is no data up to the end.
    fn seek(&self, offset: ByteOffset, target: Seek) -> io::Result<ByteOffset>;
    /// Whether these bytes are local, so that a read waits only for the local disk.
    fn has(&self, offset: ByteOffset, len: ByteLen) -> bool;
    /// Whether a write of these bytes waits only for the local disk.
    fn takes(&self, offset: ByteOffset, len: ByteLen) -> bool;
    /// Fetches the data that a write of these bytes needs, so that [`Self::takes`] becomes true.
    ///
    /// # Errors
    /// If the data cannot be fetched.
    fn prepare(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()>;
    /// Stops all background work, because the disk is about to be closed.
    fn stop(&self);
}

/// An open backing.
pub enum AnyBacking {
    /// A file or device, through the page cache.
    Buffered(Buffered),
    /// A file or device, bypassing the page cache.
    Direct(Direct),
    /// Provided by the program that starts the driver.
    Remote(Box<dyn RemoteBacking>),
}

macro_rules! each {
    ($self:ident, $b:ident => $call:expr) => {
        match $self {
            AnyBacking::Buffered($b) => $call,
            AnyBacking::Direct($b) => $call,
            AnyBacking::Remote($b) => $call,
        }
    };
}

impl AnyBacking {
    /// The engine's name.
    #[must_use]
    pub fn engine(&self) -> String {
        match self {
            Self::Buffered(_) => Engine::Buffered.to_string(),
            Self::Direct(_) => Engine::Direct.to_string(),
            Self::Remote(remote) => remote.name().into(),
        }
    }

    /// The backing, if the program that started the driver provides it.
    #[must_use]
    pub fn remote(&self) -> Option<&dyn RemoteBacking> {
        match self {
            Self::Remote(remote) => Some(&**remote),
            Self::Buffered(_) | Self::Direct(_) => None,
        }
    }

    /// Finds data or a hole at or after `offset`. Devices have no holes.
    ///
    /// # Errors
    /// `ENXIO` if there is no data up to the end; otherwise the error of the file.
    pub fn seek(&self, offset: ByteOffset, target: Seek) -> io::Result<ByteOffset> {
        each!(self, b => b.seek(offset, target))
    }
}

impl Backing for AnyBacking {
    fn size(&self) -> ByteLen {
        each!(self, b => b.size())
    }
    fn size_now(&self) -> io::Result<ByteLen> {
        each!(self, b => b.size_now())
    }
    fn grow(&self, to: ByteLen) -> io::Result<()> {
        each!(self, b => b.grow(to))
    }
    fn identity(&self) -> io::Result<Option<BackingId>> {
        each!(self, b => b.identity())
    }
    fn mark(&self) -> io::Result<Option<Mark>> {
        each!(self, b => b.mark())
    }
    fn set_mark(&self, mark: &Mark) -> io::Result<()> {
        each!(self, b => b.set_mark(mark))
    }
    fn open_to_read(&self) -> io::Result<Option<File>> {
        each!(self, b => b.open_to_read())
    }
    fn fault(&self) -> Option<(BackingFaultKind, String)> {
        each!(self, b => b.fault())
    }
    fn fingerprint(&self, boot_id: [u8; 16], size: ByteLen) -> io::Result<Option<Fingerprint>> {
        each!(self, b => b.fingerprint(boot_id, size))
    }
    fn sector_bytes(&self) -> Option<u32> {
        each!(self, b => b.sector_bytes())
    }
    fn read_at(&self, buf: &mut [u8], offset: ByteOffset) -> io::Result<()> {
        each!(self, b => b.read_at(buf, offset))
    }
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        each!(self, b => b.write_at(data, offset))
    }
    fn punch(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        each!(self, b => b.punch(offset, len))
    }
    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        each!(self, b => b.zero(offset, len))
    }
    fn sync(&self) -> io::Result<()> {
        each!(self, b => b.sync())
    }
    fn mtime_unix_ns(&self) -> io::Result<u64> {
        each!(self, b => b.mtime_unix_ns())
    }
}
