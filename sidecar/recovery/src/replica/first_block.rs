//! The first block of a point, fetched by itself.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use backstay_front::backing::half_written::first_block;
use backstay_types::{ByteLen, ByteOffset, SectorRange};
use backstay_vault::read::{Fetch, RestoreTarget};
use backstay_vault::{Manifest, SectorSet, Vault, VaultError};

/// A place for it in memory.
pub(super) struct FirstBlock(Mutex<Vec<u8>>);

impl FirstBlock {
    /// Fetches it.
    ///
    /// # Errors
    /// If the vault cannot be read or is damaged.
    pub fn of(vault: &Vault, point: &Manifest) -> Result<Vec<u8>, VaultError> {
        let len = first_block(point.size);
        let place = Self(Mutex::new(vec![0; len as usize]));
        let mut sectors = SectorSet::new();
        if len > 0 {
            sectors.insert(SectorRange::covering(ByteOffset(0), ByteLen(len)));
            let mut fetch = Fetch::part(vault, point, &sectors, 0)?;
            fetch.step(&place, 1, u64::MAX, &|_, _| {}, &AtomicBool::new(false))?;
            fetch.finish()?;
        }
        Ok(place.0.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, offset: ByteOffset, len: u64, put: impl FnOnce(&mut [u8])) {
        let mut block = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = (offset.0 + len).min(block.len() as u64);
        if offset.0 < end {
            put(&mut block[offset.0 as usize..end as usize]);
        }
    }
}

impl RestoreTarget for FirstBlock {
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        self.put(offset, data.len() as u64, |part| part.copy_from_slice(&data[..part.len()]));
        Ok(())
    }

    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.put(offset, len.0, |part| part.fill(0));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn name(&self) -> String {
        "the first block".into()
    }
}
