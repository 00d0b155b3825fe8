//! Reading the backing: many reads in flight, through io_uring and the page cache.
//!
//! Through the page cache, because that is where a buffered driver's writes are and what a direct
//! driver's writes invalidate: what is read is what was answered to the guest. Scattered sectors are
//! read up to [`DEPTH`] at a time, so a slow disk is kept busy; long runs in pieces of a frame.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use backstay_format::{ByteLen, SectorRange};
use io_uring::{IoUring, opcode, types};

/// Reads in flight.
pub const DEPTH: usize = 64;

/// Reads runs of sectors.
pub struct Reader {
    uring: IoUring,
    size: ByteLen,
    /// Keeps the registered file open.
    file: File,
}

/// A run to read into a part of a buffer.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The sectors.
    pub range: SectorRange,
    /// Where they go in the buffer, in bytes.
    pub at: usize,
}

impl Reader {
    /// A reader of a backing.
    ///
    /// # Errors
    /// If the kernel has no io_uring for us.
    pub fn new(file: File, size: ByteLen) -> io::Result<Self> {
        let uring = IoUring::new(DEPTH as u32)?;
        uring.submitter().register_files(&[file.as_raw_fd()])?;
        Ok(Self { uring, size, file })
    }

    /// Reads runs into a buffer, all at once. What lies past the disk's end is zero.
    ///
    /// # Errors
    /// The first read that failed; a backing that ends inside the disk is one.
    pub fn read(&mut self, wanted: &[Wanted], buffer: &mut [u8]) -> io::Result<()> {
        for batch in wanted.chunks(DEPTH) {
            for (number, want) in batch.iter().enumerate() {
                let len = want.range.bytes().0 as usize;
                let part = &mut buffer[want.at..want.at + len];
                let there = self.there(want);
                part[there..].fill(0);
                let read = opcode::Read::new(types::Fixed(0), part.as_mut_ptr(), there as u32)
                    .offset(want.range.start.byte_offset().0)
                    .build()
                    .user_data(number as u64);
                // SAFETY: the entry points into `buffer`, which outlives the call; every entry is
                // waited for below before this returns, also after an error.
                unsafe { self.uring.submission().push(&read) }
                    .map_err(|_| io::Error::other("io_uring: submission queue is full"))?;
            }
            self.wait(batch, buffer)?;
        }
        Ok(())
    }

    fn wait(&mut self, batch: &[Wanted], buffer: &mut [u8]) -> io::Result<()> {
        let (mut reaped, mut failed) = (0, None);
        let mut short = vec![];
        while reaped < batch.len() {
            match self.uring.submit_and_wait(batch.len() - reaped) {
                Err(e) if e.raw_os_error() != Some(libc::EINTR) => return Err(e),
                _ => {}
            }
            for entry in self.uring.completion() {
                reaped += 1;
                let want = batch[entry.user_data() as usize];
                let there = self.size.0 - want.range.start.byte_offset().0;
                let there = there.min(want.range.bytes().0) as usize;
                match entry.result() {
                    n if n < 0 => failed = Some(io::Error::from_raw_os_error(-n)),
                    n if (n as usize) < there => short.push((want, n as usize, there)),
                    _ => {}
                }
            }
        }
        if let Some(e) = failed {
            return Err(e);
        }
        // Rare: a signal or the end of a large folio cut a read short.
        for (want, done, there) in short {
            let offset = want.range.start.byte_offset().0 + done as u64;
            let part = &mut buffer[want.at + done..want.at + there];
            std::os::unix::fs::FileExt::read_exact_at(&self.file, part, offset)?;
        }
        Ok(())
    }

    fn there(&self, want: &Wanted) -> usize {
        let left = self.size.0 - want.range.start.byte_offset().0;
        want.range.bytes().0.min(left) as usize
    }
}
