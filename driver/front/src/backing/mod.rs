//! Backing files and devices: opening them for one driver alone, and reading and writing them.
//!
//! Two engines read and write; which one is the default was measured (docs/decisions/0002).

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

/// What to look for in a backing; see [`AnyBacking::seek`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that may be other than zero.
    Data,
    /// The next hole, or the end.
    Hole,
}

/// A backing that is not a file or device of its own: anyone who starts the driver brings it.
///
/// What it answers may take long, since it may have to fetch it. So that this holds up nothing else, it
/// says beforehand what it can do at once; the rest is done by other threads than the event loops.
pub trait RemoteBacking: Backing {
    /// What it is, in one word.
    fn name(&self) -> &'static str;
    /// Finds data or a hole from `offset` on; anyone who does not know says that all is data. May take long.
    ///
    /// # Errors
    /// `ENXIO` if there is no data up to the end.
    fn seek(&self, offset: ByteOffset, what: Seek) -> io::Result<ByteOffset>;
    /// Whether these bytes are here, so that reading them waits for nothing but the local disk.
    fn has(&self, offset: ByteOffset, len: ByteLen) -> bool;
    /// Whether a write of these bytes waits for nothing but the local disk.
    fn takes(&self, offset: ByteOffset, len: ByteLen) -> bool;
    /// Fetches what a write of these bytes needs, so that [`Self::takes`] is true.
    ///
    /// # Errors
    /// If it cannot be fetched.
    fn prepare(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()>;
    /// The disk is about to be closed: what goes on in the background ends.
    fn stop(&self);
}

/// An open backing.
pub enum AnyBacking {
    /// Through the page cache.
    Buffered(Buffered),
    /// Past the page cache.
    Direct(Direct),
    /// Brought by the program that starts the driver.
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

    /// The backing, if it was brought by the program that started the driver.
    #[must_use]
    pub fn remote(&self) -> Option<&dyn RemoteBacking> {
        match self {
            Self::Remote(made) => Some(&**made),
            Self::Buffered(_) | Self::Direct(_) => None,
        }
    }

    /// Finds data or a hole from `offset` on. Devices have no holes.
    ///
    /// # Errors
    /// `ENXIO` if there is no data up to the end; else what the file answered.
    pub fn seek(&self, offset: ByteOffset, what: Seek) -> io::Result<ByteOffset> {
        each!(self, b => b.seek(offset, what))
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
