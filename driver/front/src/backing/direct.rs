//! O_DIRECT through io_uring: one ring a thread, with a registered file and registered buffers.
//!
//! A request is cut into pieces of at most [`PIECE_BYTES`], up to [`PIECES`] of them in flight at
//! once. The front's buffers are not aligned as O_DIRECT wants, so each piece is copied through a
//! registered buffer. Requests that are not whole sectors at both ends are read, changed and
//! written back while no other write runs: POSIX promises that a write of a part of a sector
//! loses nothing of another write to the same sector, and a read-modify-write alone would.
//!
//! Never buffered and direct writes on one backing: a page of the cache that is filled while a
//! direct write runs may later be written back over it. The kernel drops cached pages around
//! each direct write, so the sidecar's buffered reads see what was answered.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{PoisonError, RwLock};

use backstay_format::{ByteLen, ByteOffset, SECTOR_BYTES};
use backstay_track::Backing;
use io_uring::{IoUring, opcode, squeue, types};
use nix::fcntl::Flock;

use super::buffered::Buffered;

/// Bytes of one piece and of one registered buffer.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces of one request in flight.
const PIECES: usize = 4;
/// What direct I/O is aligned to where whole sectors are not enough.
const PAGE_BYTES: u64 = 4096;

/// A backing read and written past the page cache.
pub struct Direct {
    /// For everything but data: lock, discards, flushes, times.
    buffered: Buffered,
    direct: File,
    /// What a request must be a multiple of to go as it is.
    align: u64,
    /// Held shared by aligned writes, alone by read-modify-writes.
    partial: RwLock<()>,
}

impl Direct {
    pub(super) fn new(
        file: Flock<File>,
        direct: File,
        size: ByteLen,
        device: bool,
    ) -> io::Result<Self> {
        let align = if can_read(&direct, SECTOR_BYTES) { SECTOR_BYTES } else { PAGE_BYTES };
        let buffered = Buffered::new(file, size, device);
        Ok(Self { buffered, direct, align, partial: RwLock::new(()) })
    }

    pub(super) fn file(&self) -> &File {
        self.buffered.file()
    }

    /// The smallest aligned range around a request; may reach past the disk's end.
    fn around(&self, offset: u64, len: usize) -> (u64, usize) {
        let start = offset / self.align * self.align;
        (start, ((offset + len as u64).next_multiple_of(self.align) - start) as usize)
    }
}

impl Backing for Direct {
    fn size(&self) -> ByteLen {
        self.buffered.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: ByteOffset) -> io::Result<()> {
        let (start, len) = self.around(offset.0, buf.len());
        if (start, len) == (offset.0, buf.len()) {
            return with_ring(&self.direct, |ring| ring.read(buf, offset.0, self.size().0));
        }
        let mut whole = vec![0; len];
        with_ring(&self.direct, |ring| ring.read(&mut whole, start, self.size().0))?;
        let skip = (offset.0 - start) as usize;
        buf.copy_from_slice(&whole[skip..skip + buf.len()]);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        let (start, len) = self.around(offset.0, data.len());
        if (start, len) == (offset.0, data.len()) {
            let _shared = self.partial.read().unwrap_or_else(PoisonError::into_inner);
            return with_ring(&self.direct, |ring| ring.write(data, offset.0));
        }
        let _alone = self.partial.write().unwrap_or_else(PoisonError::into_inner);
        if start + len as u64 > self.size().0 {
            // The disk's end is not aligned: the last bytes cannot be written past the page
            // cache. No direct write runs now, and the flush leaves no dirty page behind.
            self.buffered.write_at(data, offset)?;
            return self.buffered.sync();
        }
        let mut whole = vec![0; len];
        with_ring(&self.direct, |ring| {
            ring.read(&mut whole, start, self.size().0)?;
            let skip = (offset.0 - start) as usize;
            whole[skip..skip + data.len()].copy_from_slice(data);
            ring.write(&whole, start)
        })
    }

    fn punch(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        let _alone = self.partial.write().unwrap_or_else(PoisonError::into_inner);
        self.buffered.punch(offset, len)?;
        self.settle_unaligned(offset, len)
    }

    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        let _alone = self.partial.write().unwrap_or_else(PoisonError::into_inner);
        self.buffered.zero(offset, len)?;
        self.settle_unaligned(offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.buffered.sync()
    }

    fn mtime_unix_ns(&self) -> io::Result<u64> {
        self.buffered.mtime_unix_ns()
    }
}

impl Direct {
    /// Zeroing a part of a block dirties its page in the cache; it must not stay there.
    fn settle_unaligned(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        if (offset.0 | len.0).is_multiple_of(PAGE_BYTES) { Ok(()) } else { self.buffered.sync() }
    }
}

#[repr(C, align(4096))]
struct Aligned([u8; PIECE_BYTES]);

/// Whether direct reads of this alignment work.
fn can_read(file: &File, align: u64) -> bool {
    let mut page = aligned();
    nix::sys::uio::pread(file, &mut page.0[..align as usize], align as i64).is_ok()
}

fn aligned() -> Box<Aligned> {
    // SAFETY: all-zero bytes are a valid array of bytes. (Zeroed in place: a buffer this large
    // must not pass over the stack.)
    unsafe { Box::<Aligned>::new_zeroed().assume_init() }
}

/// A thread's ring and its registered buffers.
struct Ring {
    /// Dropped before the buffers it was given.
    uring: IoUring,
    buffers: Vec<Box<Aligned>>,
    file: i32,
}

thread_local! {
    static RING: RefCell<Option<Ring>> = const { RefCell::new(None) };
}

fn with_ring<T>(file: &File, work: impl FnOnce(&mut Ring) -> io::Result<T>) -> io::Result<T> {
    RING.with_borrow_mut(|ring| {
        let usable = ring.take().filter(|ring| ring.file == file.as_raw_fd());
        let ring = ring.insert(match usable {
            Some(usable) => usable,
            None => Ring::new(file)?,
        });
        work(ring)
    })
}

impl Ring {
    fn new(file: &File) -> io::Result<Self> {
        let uring = IoUring::new(PIECES as u32)?;
        let mut buffers: Vec<_> = (0..PIECES).map(|_| aligned()).collect();
        let iovecs: Vec<libc::iovec> = buffers
            .iter_mut()
            .map(|b| libc::iovec { iov_base: b.0.as_mut_ptr().cast(), iov_len: PIECE_BYTES })
            .collect();
        // SAFETY: each buffer is a box of its own that stays where it is until the ring, declared
        // before it, is dropped; every request is waited for before its buffer is used again.
        unsafe { uring.submitter().register_buffers(&iovecs)? };
        uring.submitter().register_files(&[file.as_raw_fd()])?;
        Ok(Self { uring, buffers, file: file.as_raw_fd() })
    }

    /// Reads aligned bytes; what lies past the disk's end is zero.
    fn read(&mut self, buf: &mut [u8], offset: u64, end: u64) -> io::Result<()> {
        let mut at = offset;
        for batch in buf.chunks_mut(PIECES * PIECE_BYTES) {
            let lens: Vec<usize> = batch.chunks(PIECE_BYTES).map(<[u8]>::len).collect();
            let done = self.transfer(&lens, at, true)?;
            for ((piece, buffer), done) in
                batch.chunks_mut(PIECE_BYTES).zip(&self.buffers).zip(done)
            {
                let there = end.saturating_sub(at).min(piece.len() as u64) as usize;
                if done < there {
                    tracing::error!("the backing is shorter than the disk");
                    return Err(io::Error::from_raw_os_error(libc::EIO));
                }
                piece[..there].copy_from_slice(&buffer.0[..there]);
                piece[there..].fill(0);
                at += piece.len() as u64;
            }
        }
        Ok(())
    }

    /// Writes aligned bytes.
    fn write(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for batch in data.chunks(PIECES * PIECE_BYTES) {
            let mut lens = [0; PIECES];
            let mut n = 0;
            for (piece, buffer) in batch.chunks(PIECE_BYTES).zip(&mut self.buffers) {
                buffer.0[..piece.len()].copy_from_slice(piece);
                lens[n] = piece.len();
                n += 1;
            }
            let done = self.transfer(&lens[..n], at, false)?;
            if done.iter().zip(&lens).any(|(done, len)| done < len) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            at += batch.len() as u64;
        }
        Ok(())
    }

    /// Moves pieces between file and registered buffers, all in flight at once; waits for all.
    fn transfer(&mut self, lens: &[usize], offset: u64, read: bool) -> io::Result<[usize; PIECES]> {
        let mut at = offset;
        for (slot, &len) in lens.iter().enumerate() {
            let entry = self.entry(slot, len, at, read);
            // SAFETY: the entry names a registered buffer that lives as long as the ring; every
            // entry is waited for below before this returns.
            unsafe { self.uring.submission().push(&entry) }
                .map_err(|_| io::Error::other("io_uring: submission queue is full"))?;
            at += len as u64;
        }
        let mut done = [0; PIECES];
        let (mut reaped, mut failed) = (0, None);
        while reaped < lens.len() {
            match self.uring.submit_and_wait(lens.len() - reaped) {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) => return Err(e),
            }
            for entry in self.uring.completion() {
                reaped += 1;
                match entry.result() {
                    n if n >= 0 => done[entry.user_data() as usize] = n as usize,
                    e => failed = Some(io::Error::from_raw_os_error(-e)),
                }
            }
        }
        failed.map_or(Ok(done), Err)
    }

    fn entry(&mut self, slot: usize, len: usize, at: u64, read: bool) -> squeue::Entry {
        let (file, index) = (types::Fixed(0), slot as u16);
        let buffer = self.buffers[slot].0.as_mut_ptr();
        let entry = if read {
            opcode::ReadFixed::new(file, buffer, len as u32, index).offset(at).build()
        } else {
            opcode::WriteFixed::new(file, buffer, len as u32, index).offset(at).build()
        };
        entry.user_data(slot as u64)
    }
}
