//! Reading the backing: many reads in flight, through io_uring and the page cache.
//!
//! Through the page cache, because that is where a buffered driver's writes are and what a direct
//! driver's writes invalidate: what is read is what was answered to the guest. Scattered sectors are
//! read up to [`DEPTH`] at a time, so a slow disk is kept busy; long runs in pieces of a frame.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use backstay_types::{ByteLen, SectorRange};
use io_uring::{IoUring, opcode, types};

use super::extents;

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
    pub fn read(&mut self, wanted: &[Wanted], buffer: &mut Vec<u8>) -> io::Result<()> {
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
                // SAFETY: the entry points into `buffer`'s memory, which is not freed or moved
                // before the entry's completion was seen: `wait` returns after the last one, or
                // leaks the memory if the ring itself fails.
                unsafe { self.uring.submission().push(&read) }
                    .map_err(|_| io::Error::other("io_uring: submission queue is full"))?;
            }
            self.wait(batch, buffer)?;
        }
        Ok(())
    }

    fn wait(&mut self, batch: &[Wanted], buffer: &mut Vec<u8>) -> io::Result<()> {
        let (mut reaped, mut failed) = (0, None);
        let mut short = vec![];
        while reaped < batch.len() {
            match self.uring.submit_and_wait(batch.len() - reaped) {
                Err(e) if !is_passing(&e) => {
                    // Reads may still be under way into this memory: nobody may have it again.
                    std::mem::forget(std::mem::take(buffer));
                    return Err(e);
                }
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

    /// Whether a run reads as zeroes at this moment because it lies in one hole.
    ///
    /// # Errors
    /// I/O error.
    pub fn is_hole(&self, run: SectorRange) -> io::Result<bool> {
        extents::is_hole(&self.file, self.size, run)
    }

    fn there(&self, want: &Wanted) -> usize {
        let left = self.size.0 - want.range.start.byte_offset().0;
        want.range.bytes().0.min(left) as usize
    }
}

/// Whether the ring only has to be asked again.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn scattered_runs_come_back_in_their_places() {
        let size = ByteLen((1 << 20) + 100);
        let mut content = vec![0; size.0 as usize];
        fastrand::Rng::with_seed(5).fill(&mut content);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&content, 0).unwrap();
        let mut reader = Reader::new(file, size).unwrap();
        let whole = SectorRange::whole(size);
        // More than fit in flight, from the end to the start; the last sector is partial.
        let mut wanted = vec![];
        for start in (0..whole.end.0).rev().step_by(9) {
            wanted
                .push(Wanted { range: SectorRange::new(start, start + 1), at: wanted.len() * 512 });
        }
        assert!(wanted.len() > 2 * DEPTH);
        let mut buffer = vec![7; wanted.len() * 512];
        reader.read(&wanted, &mut buffer).unwrap();
        content.resize(whole.bytes().0 as usize, 0);
        for want in &wanted {
            let from = want.range.start.byte_offset().0 as usize;
            assert_eq!(buffer[want.at..want.at + 512], content[from..from + 512], "{}", want.range);
        }
    }

    #[test]
    fn a_backing_that_ends_early_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let mut reader = Reader::new(file, ByteLen(8192)).unwrap();
        let wanted = [Wanted { range: SectorRange::new(0, 16), at: 0 }];
        let error = reader.read(&wanted, &mut vec![0; 8192]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
