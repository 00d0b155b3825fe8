//! Segments and points: put once, and what a failed attempt leaves.

use backstay_types::{ByteLen, CycleNo, DiskId};
use object_store::PutPayload;
use object_store::path::Path;

use crate::error::VaultError;
use crate::format::key::{ObjectKey, Piece};
use crate::format::manifest::{Manifest, SegmentRef};
use crate::frame::{FinishedSegment, Object};
use crate::paced::{self, Pace, Unlimited};
use crate::prove::PUTS_MAX;
use crate::remote::{Role, upload};
use crate::store::Vault;

impl Vault {
    /// Puts a segment. It is durable when this returns.
    ///
    /// # Errors
    /// If the vault cannot be written.
    pub fn put_segment(&self, segment: FinishedSegment) -> Result<SegmentRef, VaultError> {
        match &self.pace {
            Some(pace) => self.put_segment_paced(segment, &**pace),
            None => self.put_segment_paced(segment, &Unlimited),
        }
    }

    /// Puts a segment no faster than it is let through (see [`crate::paced`]). It is durable when
    /// this returns.
    ///
    /// # Errors
    /// If the vault cannot be written; [`VaultError::Stopped`] if it was given up.
    pub fn put_segment_paced(
        &self,
        segment: FinishedSegment,
        pace: &dyn Pace,
    ) -> Result<SegmentRef, VaultError> {
        let id = segment.id;
        let key = id.key();
        tracing::trace!("put {key}");
        let sealing = self.segment_key_to_seal(id)?;
        let segment = segment
            .into_object(sealing)
            .map_err(|source| VaultError::Target { what: format!("ending {key}"), source })?;
        let whole = self.inner.store.put_segment(self, &key, &segment, pace)?;
        if !whole {
            return Err(VaultError::Stopped { object: key.into() });
        }
        tracing::trace!("{key} is there");
        self.inner.tails.put(id, segment.tail);
        Ok(SegmentRef {
            cycle: id.cycle,
            attempt: id.attempt,
            number: id.number,
            object: ByteLen(segment.len),
            data_sectors: segment.sectors.0,
            zero_sectors: segment.sectors.1,
            bounds: segment.bounds,
            index_digest: segment.index_digest,
        })
    }

    /// Puts a segment into a store: a long one in parts.
    pub(crate) fn put_by_requests(
        &self,
        key: &ObjectKey,
        segment: &Object,
        pace: &dyn Pace,
    ) -> Result<bool, VaultError> {
        if segment.len > self.inner.vaults.store.part_bytes {
            return self.put_in_parts(key, segment, pace);
        }
        // A small one goes as a whole: the average is right, the line is not even.
        let whole = paced::wait_for_all(pace, segment.len);
        if whole {
            self.put(key, segment.payload.clone())?;
        }
        Ok(whole)
    }

    fn put_in_parts(
        &self,
        key: &ObjectKey,
        segment: &Object,
        pace: &dyn Pace,
    ) -> Result<bool, VaultError> {
        let settings = &self.inner.vaults.store;
        let parts = upload::parts(&segment.payload, settings.part_bytes);
        let to = (&self.inner.runtime, self.store());
        let put = self.until_proven(key, &parts, || {
            let (at, parallel) = (Path::from(key), settings.parts_parallel);
            match upload::put_parts(to, &at, parts.clone(), parallel, pace) {
                // The answer to its completion was lost: nobody else has this name.
                Err(_) if self.len(key).is_ok_and(|len| len == segment.len) => Ok(Some(None)),
                put => Ok(put.map_err(|e| VaultError::of_store(key, e))?.map(|put| put.e_tag)),
            }
        })?;
        if put {
            self.inner.store.lock(self, key)?;
        }
        Ok(put)
    }

    /// Puts a segment until it is proven (see `prove`): false if it was given up. Its name is this attempt's alone.
    pub(crate) fn until_proven(
        &self,
        key: &ObjectKey,
        parts: &[PutPayload],
        put: impl Fn() -> Result<Option<Option<String>>, VaultError>,
    ) -> Result<bool, VaultError> {
        for _ in 0..PUTS_MAX {
            let Some(e_tag) = put()? else { return Ok(false) };
            if self.has_exactly(key, parts, e_tag.as_deref())? {
                return Ok(true);
            }
            tracing::warn!("{key}: the store has other bytes than were put; they are put again");
            self.delete(key)?;
        }
        Err(VaultError::Altered { object: key.into(), tries: PUTS_MAX })
    }

    /// Removes the segments of an attempt that failed, as far as that is possible.
    ///
    /// Those that the point of their cycle names stay: a writer whose commit failed cannot know
    /// that there is no point. They stay, too, when the vault cannot say.
    pub fn remove_segments(&self, disk: DiskId, segments: &[SegmentRef]) {
        // A source deletes nothing at a gateway: what it leaves, retention collects there.
        if matches!(self.role(), Ok(Some(Role::Source))) {
            return;
        }
        let mut looked_at: Option<(CycleNo, Option<Vec<SegmentRef>>)> = None;
        for segment in segments {
            let named = match &looked_at {
                Some((cycle, named)) if *cycle == segment.cycle => named,
                _ => {
                    let named = match self.manifest(disk, segment.cycle) {
                        Ok(point) => Some(point.segments),
                        Err(VaultError::NotFound { .. }) => Some(vec![]),
                        Err(_) => None,
                    };
                    &looked_at.insert((segment.cycle, named)).1
                }
            };
            let is_this = |of_point: &SegmentRef| {
                (of_point.attempt, of_point.number) == (segment.attempt, segment.number)
            };
            if named.as_ref().is_none_or(|named| named.iter().any(is_this)) {
                continue;
            }
            let key = segment.id(disk).key();
            if let Err(e) = self.delete(&key) {
                tracing::debug!("{key}: {e}: left behind, no point names it");
            }
        }
    }

    pub(crate) fn put_manifest(&self, manifest: &Manifest) -> Result<(), VaultError> {
        let key = Piece::Point(manifest.cycle).of(manifest.disk);
        let bytes = self.signed(&key, manifest.encode())?;
        self.put(&key, bytes.into())
    }
}
