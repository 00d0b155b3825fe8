//! A thread's io_uring: one registered file, registered buffers, a few pieces in flight at once.
//!
//! Requests are copied through the registered buffers, which are aligned as O_DIRECT wants; the
//! front's buffers are not. A request is over when this module returns: nothing stays in flight,
//! so a buffer can be used again. A ring that fails with requests in flight is never used again
//! and never freed, because the kernel may still write to its buffers.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, squeue, types};

/// Bytes of one piece and of one registered buffer.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces of one request in flight.
const PIECES: usize = 4;

#[repr(C, align(4096))]
struct Aligned([u8; PIECE_BYTES]);

/// A thread's ring for one file.
pub(super) struct Ring {
    /// Dropped before the buffers it was given.
    uring: IoUring,
    buffers: Vec<Box<Aligned>>,
    /// The file it is for, as its owner numbers files.
    owner: u64,
    /// Requests may still be in flight: see above.
    broken: bool,
}

/// A piece in flight.
#[derive(Clone, Copy, Default)]
struct RingPart {
    /// Where in the file.
    at: u64,
    len: usize,
    done: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

thread_local! {
    static RING: RefCell<Option<Ring>> = const { RefCell::new(None) };
}

/// Lends the thread's ring, made for the file that `owner` numbers.
pub(super) fn with_ring<T>(
    owner: u64,
    file: &File,
    work: impl FnOnce(&mut Ring) -> io::Result<T>,
) -> io::Result<T> {
    RING.with_borrow_mut(|slot| {
        let usable = slot.take().filter(|ring| ring.owner == owner);
        let ring = slot.insert(match usable {
            Some(usable) => usable,
            None => Ring::new(owner, file)?,
        });
        let result = work(ring);
        if ring.broken {
            // The kernel may still use its buffers: give them up instead of freeing them.
            std::mem::forget(slot.take());
        }
        result
    })
}

/// Whether direct reads of this alignment work.
pub(super) fn can_read(file: &File, align: u64) -> bool {
    let mut page = aligned();
    nix::sys::uio::pread(file, &mut page.0[..align as usize], align as i64).is_ok()
}

fn aligned() -> Box<Aligned> {
    // SAFETY: all-zero bytes are a valid array of bytes. (Zeroed in place: a buffer this large
    // must not pass over the stack.)
    unsafe { Box::<Aligned>::new_zeroed().assume_init() }
}

impl Ring {
    fn new(owner: u64, file: &File) -> io::Result<Self> {
        let uring = IoUring::new(PIECES as u32)?;
        let mut buffers: Vec<_> = (0..PIECES).map(|_| aligned()).collect();
        let iovecs: Vec<libc::iovec> = buffers
            .iter_mut()
            .map(|b| libc::iovec { iov_base: b.0.as_mut_ptr().cast(), iov_len: PIECE_BYTES })
            .collect();
        // SAFETY: each buffer is a box of its own that stays where it is until the ring, declared
        // before it, is dropped; every request is over before its buffer is used again.
        unsafe { uring.submitter().register_buffers(&iovecs)? };
        uring.submitter().register_files(&[file.as_raw_fd()])?;
        Ok(Self { uring, buffers, owner, broken: false })
    }

    /// Reads bytes of any alignment, in whole blocks of `align`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; else what the file answered.
    pub fn read(&mut self, buf: &mut [u8], offset: u64, align: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        let mut at = offset / align * align;
        while at < end {
            let batch_end = end.next_multiple_of(align).min(at + (PIECES * PIECE_BYTES) as u64);
            let (pieces, n) = cut(at, batch_end);
            let done = self.transfer(&pieces[..n], Direction::Read)?;
            for (slot, (piece, done)) in pieces[..n].iter().zip(done).enumerate() {
                let (from, to) = (piece.at.max(offset), (piece.at + piece.len as u64).min(end));
                let (first, last) = ((from - piece.at) as usize, (to - piece.at) as usize);
                if done < last {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let into = &mut buf[(from - offset) as usize..(to - offset) as usize];
                into.copy_from_slice(&self.buffers[slot].0[first..last]);
            }
            at = batch_end;
        }
        Ok(())
    }

    /// Writes whole blocks.
    ///
    /// # Errors
    /// What the file answered; a part may have been written.
    pub fn write(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for batch in data.chunks(PIECES * PIECE_BYTES) {
            for (piece, buffer) in batch.chunks(PIECE_BYTES).zip(&mut self.buffers) {
                buffer.0[..piece.len()].copy_from_slice(piece);
            }
            let batch_end = at + batch.len() as u64;
            let (pieces, n) = cut(at, batch_end);
            self.transfer(&pieces[..n], Direction::Write)?;
            at = batch_end;
        }
        Ok(())
    }

    /// Changes a part of the block of `align` bytes at `block`: reads it, changes it, writes it
    /// back. The caller keeps other writers away.
    ///
    /// # Errors
    /// As for reading and writing.
    pub fn patch(&mut self, block: u64, align: u64, skip: usize, data: &[u8]) -> io::Result<()> {
        let piece = RingPart { at: block, len: align as usize, done: 0 };
        if self.transfer(&[piece], Direction::Read)?[0] < piece.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffers[0].0[skip..skip + data.len()].copy_from_slice(data);
        self.transfer(&[piece], Direction::Write).map(drop)
    }

    /// Moves pieces between file and buffers, one buffer a piece, all in flight at once; waits for
    /// all. How much of each was moved: less than asked only for reads, at the file's end.
    fn transfer(&mut self, pieces: &[RingPart], way: Direction) -> io::Result<[usize; PIECES]> {
        let mut state = [RingPart::default(); PIECES];
        state[..pieces.len()].copy_from_slice(pieces);
        let mut failed = None;
        let mut in_flight = 0;
        for (slot, piece) in pieces.iter().enumerate() {
            self.push(slot, *piece, way);
            in_flight += 1;
        }
        while in_flight > 0 {
            match self.uring.submit_and_wait(1) {
                Ok(_) => {}
                // Out of something for a moment. What is in flight goes on.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    std::thread::yield_now();
                }
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) => {
                    self.broken = true;
                    return Err(e);
                }
            }
            let ended: Option<(usize, i32)> =
                self.uring.completion().next().map(|e| (e.user_data() as usize, e.result()));
            let Some((slot, result)) = ended else { continue };
            in_flight -= 1;
            let piece = &mut state[slot];
            match result {
                n if n > 0 => piece.done += n as usize,
                0 if way == Direction::Read => continue,
                0 => failed = Some(io::Error::from_raw_os_error(libc::EIO)),
                e if e == -libc::EINTR || e == -libc::EAGAIN => {}
                e => failed = Some(io::Error::from_raw_os_error(-e)),
            }
            // A part was moved: go on with the rest. A read that ends inside a block met the end.
            let at_block = piece.done.is_multiple_of(backstay_types::SECTOR_BYTES as usize);
            if failed.is_none() && piece.done < piece.len && at_block {
                let rest = *piece;
                self.push(slot, rest, way);
                in_flight += 1;
            }
        }
        failed.map_or_else(|| Ok(state.map(|piece| piece.done)), Err)
    }

    /// Queues what is left of a piece.
    fn push(&mut self, slot: usize, piece: RingPart, way: Direction) {
        let (file, index) = (types::Fixed(0), slot as u16);
        let buffer = self.buffers[slot].0[piece.done..].as_mut_ptr();
        let (at, len) = (piece.at + piece.done as u64, (piece.len - piece.done) as u32);
        let entry: squeue::Entry = match way {
            Direction::Read => opcode::ReadFixed::new(file, buffer, len, index).offset(at).build(),
            Direction::Write => {
                opcode::WriteFixed::new(file, buffer, len, index).offset(at).build()
            }
        };
        // SAFETY: the entry names bytes of a registered buffer that lives as long as the ring, and
        // no more of them than it has; `transfer` waits for its end or gives the ring up.
        let pushed = unsafe { self.uring.submission().push(&entry.user_data(slot as u64)) };
        // There are as many entries as slots, and a slot is pushed only when it is not in flight.
        assert!(pushed.is_ok(), "more requests than slots");
    }
}

/// Cuts a range of at most [`PIECES`] pieces.
fn cut(start: u64, end: u64) -> ([RingPart; PIECES], usize) {
    let mut pieces = [RingPart::default(); PIECES];
    let (mut at, mut n) = (start, 0);
    while at < end {
        let len = (end - at).min(PIECE_BYTES as u64) as usize;
        pieces[n] = RingPart { at, len, done: 0 };
        at += len as u64;
        n += 1;
    }
    (pieces, n)
}
