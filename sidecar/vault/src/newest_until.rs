//! The newest point that is not after an instant, among a thousand of them, without reading a thousand of them.
//!
//! The ledger says when the points' cuts were that it knows; of the others a few bytes are read, many at a time.

use std::sync::atomic::Ordering;

use backstay_types::{CycleNo, DiskId};
use futures::StreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::error::{In, VaultError};
use crate::format::key::Piece;
use crate::format::manifest::{Manifest, PEEK_BYTES};
use crate::store::Vault;

/// Heads of points that are asked for at the same time.
const PARALLEL: usize = 64;

impl Vault {
    /// Of these points, by their cycles in order, the newest whose cut is not after an instant. Clocks order
    /// nothing, so it is looked for from the newest on.
    ///
    /// # Errors
    /// If the vault cannot be read, or a point is damaged on the way.
    pub fn newest_until(
        &self,
        disk: DiskId,
        points: &[CycleNo],
        unix_ns: u64,
    ) -> Result<Option<Manifest>, VaultError> {
        let mut left = points;
        while let Some(cycle) = self.find_until(disk, left, unix_ns)? {
            match self.manifest(disk, cycle) {
                Ok(point) if point.cut_unix_ns <= unix_ns => return Ok(Some(point)),
                // Deleted by retention since it was listed.
                Ok(_) | Err(VaultError::NotFound { .. }) => {
                    left = &left[..left.partition_point(|point| *point < cycle)];
                }
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    fn find_until(
        &self,
        disk: DiskId,
        points: &[CycleNo],
        unix_ns: u64,
    ) -> Result<Option<CycleNo>, VaultError> {
        let ledger = self.ledger(disk)?;
        let cuts = points.iter().rev().map(|&cycle| {
            let known = ledger.as_ref().and_then(|ledger| ledger.point(cycle));
            let known = known.map(|point| point.cut_unix_ns);
            async move { (cycle, self.cut(disk, cycle, known).await) }
        });
        self.block_on(async {
            let mut cuts = futures::stream::iter(cuts).buffered(PARALLEL);
            while let Some((cycle, cut)) = cuts.next().await {
                match cut {
                    Ok(cut) if cut <= unix_ns => return Ok(Some(cycle)),
                    Ok(_) | Err(VaultError::NotFound { .. }) => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(None)
        })
    }

    /// When a point's cut was.
    async fn cut(
        &self,
        disk: DiskId,
        cycle: CycleNo,
        known: Option<u64>,
    ) -> Result<u64, VaultError> {
        if let Some(cut) = known {
            return Ok(cut);
        }
        let key = Piece::Point(cycle).of(disk);
        self.inner.requests.fetch_add(1, Ordering::Relaxed);
        let head = self.store().get_range(&Path::from(&key), 0..PEEK_BYTES as u64).await;
        let head = head.map_err(|e| VaultError::of_store(&key, e))?;
        let (of, number, cut) = Manifest::peek(&head).within(&key)?;
        if (of, number) != (disk, cycle) {
            let reason = format!("it is point {number} of disk {of}");
            return Err(VaultError::Inconsistent { object: key.into(), reason });
        }
        Ok(cut)
    }
}
