//! A file or device that holds a disk at a recovery point and is brought from point to point: hot
//! standby, and what failback does to the old source. docs/explanation/replica.md has the promise, the
//! order of every durable step and what each failure leaves.
//!
//! # For other parts
//! ```text
//! Replica::create(vault, point, Begin { .. })       a new replica: compared with or filled from the vault
//! Replica::from_stopped_disk(vault, .., Begin)       the backing of a stopped disk: its base but for its
//!                                                    dirty sectors; falls back to comparing
//! Replica::open(paths, name, limits)                 one that was begun
//!   .bring_to(vault, point, watch) -> Moved          to any point; goes on where a kill left it
//!   .finish()                                        to a whole point with what is on this host
//!   .take_over() -> TakenOver                        durable; serve it with TakenOver::{target, base}
//! follow(replica, ..)                                to the newest point, over and over
//! ```
//! A replica is locked as long as its value lives: its name (with the lock that drivers take) and
//! its target. The seam in [`Limits`] lets tests fail at each durable step.
//!
//! - [`record`]: what lasts; [`log`], [`set`]: its files
//! - [`difference`]: which sectors may differ between two points
//! - [`target`]: what it is kept on
//! - `first_block`: what is written last, in place of the mark of what is half written
//! - `advance`: from point to point; `apply`: from the log to the target; `seed`: to the first point
//! - [`mod@follow`]: staying at the newest; [`status`]: what people see

mod advance;
mod apply;
pub mod difference;
mod error;
mod first_block;
pub mod follow;
pub mod log;
pub mod record;
mod seam;
mod seed;
pub mod set;
pub mod status;
pub mod target;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use backstay_format::superblock::Base;
use backstay_front::life::{DriverError, lock_disk};
use backstay_front::paths::DiskPaths;
use backstay_host::clock::now_unix_ns;
use backstay_types::{ByteLen, CycleNo, DiskName};
use backstay_vault::retain::held::HOLDER_LASTS;
use backstay_vault::retain::{HoldRequest, holder};
use backstay_vault::{HoldKind, HoldName, Vault, VaultError};
use nix::fcntl::Flock;

pub use error::ReplicaError;
pub use follow::{Follow, follow, newest};
pub use record::{PointRef, ReplicaRecord, ReplicaState, Seed};
pub use seam::Seam;
pub use seed::{Begin, SeedChoice};
pub use target::{Ground, Target};

use error::io_error;
use record::make_dir;

/// Bounds of a replica's work.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest redo log.
    pub log: ByteLen,
    /// Sectors after which what a seed has done is noted.
    pub stretch_sectors: u64,
    /// Threads that fetch, check and write.
    pub threads: usize,
    /// For tests.
    pub seam: Seam,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            log: ByteLen(1 << 30),
            stretch_sectors: 16 << 20,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            seam: Seam::default(),
        }
    }
}

/// What is being done, for a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// From the vault into the log.
    Fetching,
    /// From the log, or from the vault, to the target.
    Applying,
    /// The target with the vault.
    Comparing,
}

impl Activity {
    /// As a word for a progress bar.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Applying => "applying",
            Self::Comparing => "comparing",
        }
    }
}

/// Who watches the work, and may stop it.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Told how far it is: bytes done, bytes in all.
    pub progress: &'a (dyn Fn(Activity, u64, u64) + Sync),
    /// Set to stop as soon as that is safe.
    pub stop: &'a AtomicBool,
}

impl Watch<'_> {
    fn go_on(&self) -> Result<(), ReplicaError> {
        if self.stop.load(Ordering::Relaxed) { Err(ReplicaError::Stopped) } else { Ok(()) }
    }
}

/// What it cost to get to a point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Moved {
    /// Bytes that were written to the target, zeroes counted.
    pub written: ByteLen,
    /// Bytes read from the vault.
    pub fetched: ByteLen,
}

/// A replica that was made a disk's backing.
#[derive(Debug, Clone)]
pub struct TakenOver {
    /// The backing.
    pub target: PathBuf,
    /// The point it holds.
    pub point: PointRef,
    /// The same, for the state of the new disk.
    pub base: Base,
}

/// A replica; nobody else has it while this lives.
pub struct Replica {
    /// Its folder.
    dir: PathBuf,
    record: ReplicaRecord,
    target: Target,
    limits: Limits,
    _lock: Option<Flock<File>>,
}

/// The folder of a disk's replica.
#[must_use]
pub fn folder(paths: &DiskPaths) -> PathBuf {
    paths.state.join("replica")
}

fn lock(paths: &DiskPaths, name: &DiskName) -> Result<Flock<File>, ReplicaError> {
    make_dir(&folder(paths))?;
    lock_disk(name, &paths.lock_file()).map_err(|source| match source {
        DriverError::Running(_) => {
            ReplicaError::Running { name: name.clone(), source: source.into() }
        }
        DriverError::Io { doing, source } => ReplicaError::Io { doing, source },
        source => ReplicaError::Running { name: name.clone(), source: source.into() },
    })
}

impl Replica {
    /// Opens a replica that was begun.
    ///
    /// # Errors
    /// If there is none, somebody else has it, or its target is not as it was left.
    pub fn open(paths: &DiskPaths, name: &DiskName, limits: Limits) -> Result<Self, ReplicaError> {
        let dir = folder(paths);
        let load = || match ReplicaRecord::load(&dir)? {
            None => Err(ReplicaError::None { name: name.clone(), dir: dir.clone() }),
            Some(ReplicaRecord { standing: ReplicaState::TakenOver { .. }, .. }) => {
                Err(ReplicaError::TakenOver(name.clone()))
            }
            Some(record) => Ok(record),
        };
        load()?;
        let lock = lock(paths, name)?;
        // Again: anyone who had the lock may have changed it.
        let record = load()?;
        if paths.state.join("super").exists() {
            return Err(has_a_disk(name));
        }
        let target = Target::open(&record.target.path, false)?;
        Self::with(dir, record, target, limits, Some(lock))
    }

    /// A replica with an open target.
    ///
    /// # Errors
    /// If the target is not as it was left.
    pub fn with(
        dir: PathBuf,
        record: ReplicaRecord,
        target: Target,
        limits: Limits,
        lock: Option<Flock<File>>,
    ) -> Result<Self, ReplicaError> {
        target.objection(&record.name, &record.target)?;
        if let ReplicaState::At { point, mtime_unix_ns } = &record.standing {
            let (size, mtime) = (target.size()?, target.mtime()?);
            let fits = if record.target.device {
                size >= point.size_bytes
            } else {
                size == point.size_bytes
            };
            let marked = target.is_marked().map_err(error::on("reading", target.path()))?;
            if !fits || marked || mtime != *mtime_unix_ns {
                return Err(ReplicaError::Refused {
                    name: record.name,
                    reason: format!(
                        "somebody else changed {} since it was at point {}; to have it compared with the \
                         vault and mended, use --to {} --seed compare --force",
                        target.path().display(),
                        point.cycle,
                        target.path().display()
                    ),
                });
            }
        }
        record.tidy(&dir);
        Ok(Self { dir, record, target, limits, _lock: lock })
    }

    /// What is known of it.
    #[must_use]
    pub fn record(&self) -> &ReplicaRecord {
        &self.record
    }

    /// What its target holds.
    #[must_use]
    pub fn standing(&self) -> &ReplicaState {
        &self.record.standing
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes it the backing of a disk, at the point it holds. Durable when this returns: it is never
    /// a replica again by itself. Then a driver may serve it with the base as the disk's.
    ///
    /// # Errors
    /// If it is at no whole point and cannot be brought to one with what is on this host.
    pub fn take_over(mut self) -> Result<TakenOver, ReplicaError> {
        self.finish()?;
        let ReplicaState::At { point, .. } = self.record.standing else {
            return Err(ReplicaError::NotWhole {
                name: self.record.name.clone(),
                standing: self.record.standing.explain(),
            });
        };
        self.limits.seam.step("taking over")?;
        self.set(ReplicaState::TakenOver { point })?;
        self.limits.seam.step("taken over")?;
        Ok(taken_over(&self.record, point))
    }

    /// What was taken over before, for anyone who was killed before it served it.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn taken_over(paths: &DiskPaths) -> Result<Option<TakenOver>, ReplicaError> {
        let record = ReplicaRecord::load(&folder(paths))?;
        Ok(record.and_then(|record| match record.standing {
            ReplicaState::TakenOver { point } => Some(taken_over(&record, point)),
            _ => None,
        }))
    }

    /// Makes a standing durable.
    fn set(&mut self, standing: ReplicaState) -> Result<(), ReplicaError> {
        let record = ReplicaRecord { standing, ..self.record.clone() };
        record.save(&self.dir)?;
        self.record = record;
        Ok(())
    }

    /// Holds the points that it needs, and one more; the steady hold under its own name, which a
    /// replica that was killed or stopped keeps for a week. `false`: that one is gone.
    fn hold(&self, vault: &Vault, also: Option<CycleNo>) -> Result<bool, ReplicaError> {
        let needs = self.record.standing.needs().into_iter().chain(also);
        let (Some(first), Some(last)) = (needs.clone().min(), needs.max()) else { return Ok(true) };
        let name = hold_name(&self.record)?;
        let request = HoldRequest {
            name,
            kind: HoldKind::Replica,
            holder: holder(),
            reason: format!("replica on {}", self.target.path().display()),
            first_cycle: first,
            last_cycle: last,
            until_unix_ns: Some(now_unix_ns().saturating_add(HOLDER_LASTS.as_nanos() as u64)),
        };
        match vault.hold(self.record.disk, &request) {
            Ok((_, points)) => Ok(also.is_none_or(|also| points.contains(&also))),
            Err(VaultError::Retired(_) | VaultError::NotFound { .. }) => Ok(also.is_none()),
            Err(e @ (VaultError::Denied { .. } | VaultError::Full { .. })) => {
                tracing::warn!("replica {}: reading without a hold: {e}", self.record.name);
                Ok(true)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Gives up its hold on the vault: for a replica that is not needed any more.
    ///
    /// # Errors
    /// If the vault cannot be written.
    pub fn release(&self, vault: &Vault) -> Result<(), ReplicaError> {
        vault.release(self.record.disk, &hold_name(&self.record)?)?;
        Ok(())
    }
}

/// Gives up the hold of a replica that was taken over: its target is a disk, and needs no point.
///
/// # Errors
/// If its record cannot be read, or the vault not be written; the hold ends by itself then.
pub fn release_taken_over(vault: &Vault, paths: &DiskPaths) -> Result<(), ReplicaError> {
    let record = ReplicaRecord::load(&folder(paths))?;
    if let Some(record) = record.filter(|r| matches!(r.standing, ReplicaState::TakenOver { .. })) {
        vault.release(record.disk, &hold_name(&record)?)?;
    }
    Ok(())
}

fn hold_name(record: &ReplicaRecord) -> Result<HoldName, ReplicaError> {
    let name = format!("replica-{}", record.replica);
    name.parse().map_err(|source| ReplicaError::State { path: "replica.json".into(), source })
}

fn taken_over(record: &ReplicaRecord, point: PointRef) -> TakenOver {
    TakenOver { target: record.target.path.clone(), point, base: point.base(record.disk) }
}

fn has_a_disk(name: &DiskName) -> ReplicaError {
    ReplicaError::Refused {
        name: name.clone(),
        reason: format!(
            "this host has a protected disk of that name; to make it a replica, umount it and use \
             --seed changes with its own backing (it ends as a disk then), or umount it and remove its \
             state with backstay unprotect {name}"
        ),
    }
}
