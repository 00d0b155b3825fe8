//! The one place where shared memory is touched: a tmpfs file mapped as atomic words.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// Words of a mapped file, after a header.
pub(super) struct MappedWords {
    map: MmapRaw,
    header_bytes: usize,
    words: u64,
}

impl MappedWords {
    /// Maps `words` words that lie after `header_bytes` bytes; the file must be long enough.
    pub fn new(file: &File, header_bytes: usize, words: u64) -> io::Result<Self> {
        let len = header_bytes as u64 + words * 8;
        if !header_bytes.is_multiple_of(8) || file.metadata()?.len() < len {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "bitmap file is too short"));
        }
        let map = MmapOptions::new().len(len as usize).map_raw(file)?;
        Ok(Self { map, header_bytes, words })
    }

    fn word(&self, word: u64) -> &AtomicU64 {
        assert!(word < self.words, "word {word} of {}", self.words);
        let at = self.header_bytes + word as usize * 8;
        // SAFETY: `at + 8` lies inside the mapping (checked above and in `new`) and is aligned to
        // 8 (the mapping is page aligned, the header a multiple of 8). The mapping lives as long
        // as `self`. Other processes touch these words with atomic instructions only. The file is
        // never shortened while it is mapped, and callers touch reserved words only, so no access
        // can fault.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(at).cast()) }
    }

    pub fn load(&self, word: u64) -> u64 {
        u64::from_le(self.word(word).load(Ordering::SeqCst))
    }

    pub fn or(&self, word: u64, mask: u64) -> u64 {
        u64::from_le(self.word(word).fetch_or(mask.to_le(), Ordering::SeqCst))
    }
}
