//! Moving a disk: its state is bound to another backing with the same content.
//!
//! This requires a clean stop, because only then is the saved bitmap exact and independent of the old
//! backing. One superblock write binds the new backing. Until it is durable the old backing is bound, and
//! serving the disk from any other backing leads to a resync.

use backstay_format::superblock::{CleanStop, Superblock};
use backstay_types::ByteLen;

use crate::env::Env;
use crate::error::Doing;
use crate::meta::Meta;
use crate::{Backing, TrackError, clean};

/// The state of a disk that no driver serves.
pub struct Offline<E: Env> {
    meta: Meta<E::File>,
}

/// The relation of a backing to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// The bound backing, unchanged since the clean stop.
    Bound,
    /// Another backing, or a changed one.
    Other,
}

impl<E: Env> Offline<E> {
    /// Opens the state of a disk.
    ///
    /// # Errors
    /// If there is none, it cannot be read, or the disk was not stopped cleanly.
    pub fn open(env: &E) -> Result<Self, TrackError> {
        let Some(meta) = Meta::open(env)? else {
            return Err(TrackError::Order("it was never mounted"));
        };
        let offline = Self { meta };
        if offline.superblock().clean.is_none() {
            return Err(TrackError::Order(
                "it was not stopped cleanly: mount it, then umount it, and try again",
            ));
        }
        Ok(offline)
    }

    /// The current superblock.
    pub fn superblock(&self) -> &Superblock {
        self.meta.get()
    }

    /// Passes the saved dirty bitmap to a function, word by word: the word's number and its bits. Returns
    /// `false` if the saved bitmap is damaged; the words passed until then are then meaningless.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn saved(&self, env: &E, each: impl FnMut(u64, u64)) -> Result<bool, TrackError> {
        let sb = self.superblock();
        match sb.clean {
            Some(stop) => clean::load(env, sb.disk, sb.geometry, stop, each),
            None => Ok(false),
        }
    }

    /// The relation of a backing to the disk. A backing without an identity is compared by its size and
    /// the time of its last change.
    ///
    /// # Errors
    /// If it cannot be examined.
    pub fn binding<B: Backing>(&self, env: &E, backing: &B) -> Result<Binding, TrackError> {
        let sb = self.superblock();
        let identity = backing.identity().map_err(examined)?;
        let same = match (sb.backing, identity) {
            (Some(was), Some(is)) => was == is,
            _ => true,
        };
        let Some(stop) = sb.clean else { return Ok(Binding::Other) };
        let sizes = [Some(sb.geometry.size), sb.growing_to];
        let untouched = clean::difference(env, backing, stop)?.is_none();
        let fits = sizes.contains(&Some(backing.size()));
        Ok(if same && untouched && fits { Binding::Bound } else { Binding::Other })
    }

    /// Records the identity of the backing, for a state made by a version that did not record it.
    ///
    /// # Errors
    /// If the backing cannot be examined, or the superblock cannot be written.
    pub fn note<B: Backing>(&mut self, backing: &B) -> Result<(), TrackError> {
        let identity = backing.identity().map_err(examined)?;
        if self.superblock().backing == identity {
            return Ok(());
        }
        self.meta.change(|sb| sb.backing = identity).doing("writing the superblock")
    }

    /// Binds the disk to `backing`, which must hold the same bytes durably. If it is larger, the disk
    /// grows when it is next mounted.
    ///
    /// # Errors
    /// If it cannot be examined, is too small or too large, or the superblock cannot be written. The disk
    /// then stays bound to the old backing.
    pub fn bind<B: Backing>(&mut self, env: &E, backing: &B) -> Result<(), TrackError> {
        let geometry = self.superblock().geometry;
        let (expected, found) = (geometry.size, backing.size());
        if found < expected {
            return Err(TrackError::Size { expected, found });
        }
        geometry.with_size(found).map_err(|_| TrackError::Unfit(found))?;
        let growing_to: Option<ByteLen> = (found > expected).then_some(found);
        let identity = backing.identity().map_err(examined)?;
        let backing_mtime_ns = backing.mtime_unix_ns().map_err(examined)?;
        let fingerprint_crc = clean::save_fingerprint(env, backing)?;
        self.meta
            .change(|sb| {
                sb.backing = identity;
                sb.growing_to = growing_to;
                sb.clean =
                    sb.clean.map(|stop| CleanStop { backing_mtime_ns, fingerprint_crc, ..stop });
            })
            .doing("writing the superblock")
    }
}

fn examined(source: std::io::Error) -> TrackError {
    TrackError::Backing { doing: "reading its identity", source }
}
