//! The bitmaps shared with the driver: dirty, preserved, shipped.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_format::bitmap::{BitmapHeader, HEADER_BYTES};
use backstay_types::{DiskId, EpochNo, SectorRange};
use memmap2::{MmapOptions, MmapRaw};
use nix::unistd::{Whence, lseek};

/// A bitmap that the driver made.
pub struct SharedBitmap {
    map: MmapRaw,
    file: File,
    words: u64,
}

impl SharedBitmap {
    /// Maps a bitmap and checks that it is the one meant.
    ///
    /// # Errors
    /// If it cannot be mapped, or is of another disk or epoch.
    pub fn open(path: &Path, disk: DiskId, epoch: EpochNo, sectors: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut header = vec![0; HEADER_BYTES];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut header, 0)?;
        let header = BitmapHeader::decode(&header).map_err(io::Error::other)?;
        if (header.disk, header.epoch, header.sectors) != (disk, epoch, sectors) {
            return Err(io::Error::other("bitmap of another disk or epoch"));
        }
        let len = BitmapHeader::file_bytes(sectors);
        if file.metadata()?.len() < len {
            return Err(io::Error::other("bitmap file is too short"));
        }
        let map = MmapOptions::new().len(len as usize).map_raw(&file)?;
        Ok(Self { map, file, words: (len - HEADER_BYTES as u64) / 8 })
    }

    fn word(&self, word: u64) -> &AtomicU64 {
        assert!(word < self.words, "word {word} of {}", self.words);
        // SAFETY: inside the mapping (checked in `open` and above), aligned to 8, mapped as long as
        // `self`; the driver touches these words with atomic instructions only and never shortens
        // the file. Callers touch only words whose memory the driver took.
        unsafe {
            AtomicU64::from_ptr(
                self.map.as_mut_ptr().add(HEADER_BYTES).cast::<u64>().add(word as usize),
            )
        }
    }

    /// A word.
    #[must_use]
    pub fn load(&self, word: u64) -> u64 {
        u64::from_le(self.word(word).load(Ordering::SeqCst))
    }

    /// Sets the bits of a run.
    pub fn set(&self, range: SectorRange) {
        for piece in range.split_at_multiples(64) {
            let ones = if piece.sectors() == 64 { u64::MAX } else { (1 << piece.sectors()) - 1 };
            let mask = ones << (piece.start.0 % 64);
            self.word(piece.start.0 / 64).fetch_or(mask.to_le(), Ordering::SeqCst);
        }
    }

    /// Runs of words that may be other than zero.
    ///
    /// # Errors
    /// I/O error.
    pub fn touched(&self) -> io::Result<Vec<Range<u64>>> {
        let end = HEADER_BYTES as u64 + self.words * 8;
        let (mut runs, mut at) = (vec![], HEADER_BYTES as u64);
        while at < end {
            let data = match lseek(&self.file, at as i64, Whence::SeekData) {
                Ok(data) => data as u64,
                Err(nix::errno::Errno::ENXIO) => break,
                Err(e) => return Err(e.into()),
            };
            let hole = (lseek(&self.file, data as i64, Whence::SeekHole)? as u64).min(end);
            let word = |byte: u64| byte.max(HEADER_BYTES as u64) - HEADER_BYTES as u64;
            if word(data) < word(hole) {
                runs.push(word(data) / 8..word(hole).div_ceil(8));
            }
            at = hole.max(at + 1);
        }
        Ok(runs)
    }

    /// The parts of a run whose bits are `value`.
    #[must_use]
    pub fn parts(&self, range: SectorRange, value: bool) -> Vec<SectorRange> {
        let mut parts: Vec<SectorRange> = vec![];
        for piece in range.split_at_multiples(64) {
            let word = self.load(piece.start.0 / 64);
            let bits = if value { word } else { !word };
            let mut sector = piece.start.0;
            while sector < piece.end.0 {
                let rest = bits >> (sector % 64);
                let left = piece.end.0 - sector;
                if rest & 1 == 0 {
                    sector += u64::from(rest.trailing_zeros()).min(left);
                    continue;
                }
                let len = u64::from((!rest).trailing_zeros()).min(left);
                let part = SectorRange::new(sector, sector + len);
                match parts.last_mut() {
                    Some(last) if last.end == part.start => last.end = part.end,
                    _ => parts.push(part),
                }
                sector += len;
            }
        }
        parts
    }
}
