//! One cycle of one disk, from lease to release.
//!
//! ```text
//!   lease → (fuzzy cut → pass) → point-in-time cut → pass → verify (I7) → commit (I5) → release
//! ```
//!
//! The fuzzy pass is only there when the whole disk has to move, or when the last cycle lost its
//! point in time: it ships most of what has to move without holding the guest to anything, so that
//! the pass that follows is short. Whatever fails, the driver folds the closed epochs back.

mod base;
pub(crate) mod cutter;
mod pass;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use backstay_driver::control::{ClientError, ControlClient};
use backstay_format::control::{CutMode, CutReply, DriverStatus, Request, Response};
use backstay_format::superblock::{Base, Resync};
use backstay_format::{ByteLen, CycleNo, EpochNo, PointId};
use backstay_vault::{
    Consistency, CycleKind, DiskRecord, Manifest, Pass, PointMeta, SegmentRef, TermRecord, Vault,
    VaultError, verify_cycle,
};

use crate::config::Ship;
use crate::error::CycleError;
pub use cutter::{AtOnce, Cutter};
use pass::Source;

/// What a cycle works with.
pub struct CycleJob<'a> {
    /// The driver's control socket.
    pub socket: &'a Path,
    /// Where to ship.
    pub vault: &'a Vault,
    /// How to ship.
    pub ship: &'a Ship,
    /// Told how far it is.
    pub progress: &'a (dyn Fn(Stage, u64, u64) + Sync),
    /// Set from outside to end it.
    pub stop: &'a AtomicBool,
}

/// What a cycle is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The pass over the whole disk.
    Fuzzy,
    /// The pass over what changed.
    Delta,
    /// Comparing what arrived with what had to move.
    Verify,
}

/// What a cycle has done.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs)]
pub struct CycleReport {
    pub kind: CycleKind,
    pub cycle: CycleNo,
    pub point: PointId,
    pub cut_unix_ns: u64,
    pub committed_unix_ns: u64,
    /// How long writes were held at the cut.
    pub held_ns: u64,
    /// Bytes of sectors that moved.
    pub moved: ByteLen,
    /// Bytes put into the vault.
    pub stored: ByteLen,
    /// Bytes the guest wrote in the epoch.
    pub written: ByteLen,
    #[serde(with = "humantime_serde")]
    pub duration: Duration,
}

/// Runs one cycle.
///
/// # Errors
/// Why it failed; no point was committed then (but see [`CycleError::Driver`] after the commit: the
/// point then exists, and its sectors ship once more with the next).
pub fn run(job: &CycleJob<'_>) -> Result<CycleReport, CycleError> {
    run_cut_by(job, &mut AtOnce)
}

/// Runs one cycle whose point-in-time cut another makes, when its time has come.
///
/// # Errors
/// As for [`run`].
pub fn run_cut_by(job: &CycleJob<'_>, cutter: &mut dyn Cutter) -> Result<CycleReport, CycleError> {
    let started = Instant::now();
    let mut driver = ControlClient::connect(job.socket)?;
    let client = format!("process {}", std::process::id());
    let status = match driver.ask(&Request::Lease { client })? {
        Response::Leased { status } => *status,
        _ => return Err(ClientError::Confused.into()),
    };
    let (term, newest) = look_at_vault(job.vault, &status)?;
    let mut resync = status.resync;
    if resync.is_none() && !base::fits(job.vault, &status, newest.as_ref())? {
        resync = Some(Resync::Asked);
        driver.ask(&Request::RequireResync { reason: Resync::Asked })?;
    }
    let kind = match (resync, &newest) {
        (_, None) => CycleKind::Initial,
        (Some(_), Some(_)) => CycleKind::Resync,
        (None, Some(_)) => CycleKind::Delta,
    };
    let file = File::open(&status.backing)
        .map_err(CycleError::source(format!("{}", status.backing.display())))?;
    let cycle = newest.as_ref().map_or(CycleNo(1), |point| point.cycle.next());
    let mut run = Run {
        job,
        source: Source { file, disk: status.disk, size: status.size },
        driver,
        cycle,
        attempt: attempt(),
        closed: None,
        put: vec![],
    };
    let fuzzy_first = resync.is_some() || status.lost_point_in_time.is_some();
    let shipped = run.passes(fuzzy_first, cutter).and_then(|(cut, passes)| {
        (job.progress)(Stage::Verify, 0, 0);
        let verified = verify_cycle(job.vault, status.disk, status.size, cycle, passes)?;
        Ok((cut, verified))
    });
    let (cut, verified) = shipped.map_err(|e| run.undo(e, true))?;
    let meta = PointMeta {
        term: term.term,
        predecessor: newest,
        kind,
        consistency: Consistency::Crash,
        cut_unix_ns: cut.cut_unix_ns,
        written: cut.written,
    };
    // From here on nobody but the vault knows whether the point exists: its segments stay.
    let point = job.vault.commit(verified, meta).map_err(|e| run.undo(e.into(), false))?;
    let base = Base { vault_disk: status.disk, cycle, point: point.point };
    run.driver.ask(&Request::Release { epoch: cut.epoch, base })?;
    Ok(report(&point, &cut, started.elapsed()))
}

/// A cycle that has begun.
struct Run<'a> {
    job: &'a CycleJob<'a>,
    source: Source,
    driver: ControlClient,
    cycle: CycleNo,
    attempt: u64,
    /// The newest closed epoch.
    closed: Option<EpochNo>,
    /// Segments put so far.
    put: Vec<SegmentRef>,
}

impl Run<'_> {
    /// Ships the passes of a cycle; the point-in-time cut and what was shipped.
    fn passes(
        &mut self,
        fuzzy_first: bool,
        cutter: &mut dyn Cutter,
    ) -> Result<(CutReply, Vec<Pass>), CycleError> {
        let mut passes = vec![];
        let mut written = ByteLen(0);
        if fuzzy_first {
            let cut = cutter::ask(&mut self.driver, &Request::Cut { mode: CutMode::Fuzzy })?;
            self.closed = Some(cut.epoch);
            written = cut.written;
            passes.push(self.pass(&cut, Stage::Fuzzy)?);
        }
        let mut cut = cutter.cut(&mut self.driver)?;
        self.closed = Some(cut.epoch);
        passes.push(self.pass(&cut, Stage::Delta)?);
        cut.written.0 += written.0;
        Ok((cut, passes))
    }

    /// Folds back, and removes the segments if no point can name them.
    fn undo(&mut self, why: CycleError, remove_segments: bool) -> CycleError {
        if let Some(epoch) = self.closed {
            // If even that fails, the driver folds back when this connection ends.
            if let Err(e) = self.driver.ask(&Request::FoldBack { epoch }) {
                tracing::warn!("folding back after {why}: {e}");
            }
        }
        if remove_segments {
            self.job.vault.remove_segments(self.source.disk, &self.put);
        }
        why
    }
}

/// Finds the disk, its term and its newest point in the vault; makes what is not there yet.
fn look_at_vault(
    vault: &Vault,
    status: &DriverStatus,
) -> Result<(TermRecord, Option<Manifest>), CycleError> {
    match vault.disk(status.disk) {
        Ok(_) => {}
        Err(VaultError::NotFound { .. }) => {
            match vault.disk_named(&status.name) {
                Err(VaultError::NotFound { .. }) => {}
                Err(e) => return Err(e.into()),
                Ok(_) => return Err(CycleError::NameTaken { name: status.name.to_string() }),
            }
            vault.create_disk(&DiskRecord {
                disk: status.disk,
                name: status.name.clone(),
                size_bytes: status.size,
                sector_bytes: 512,
                created_unix_ns: now_unix_ns(),
            })?;
        }
        Err(e) => return Err(e.into()),
    }
    let writer = format!("source {}", status.disk);
    let term = vault.term_or_first(status.disk, &writer)?;
    if term.writer != writer {
        let ours = backstay_format::Term(term.term.0 - 1);
        return Err(VaultError::Fenced { ours, newest: term.term, writer: term.writer }.into());
    }
    let newest = vault.points(status.disk)?.last().copied();
    let newest = newest.map(|cycle| vault.manifest(status.disk, cycle)).transpose()?;
    Ok((term, newest))
}

fn report(point: &Manifest, cut: &CutReply, duration: Duration) -> CycleReport {
    CycleReport {
        kind: point.kind,
        cycle: point.cycle,
        point: point.point,
        cut_unix_ns: point.cut_unix_ns,
        committed_unix_ns: point.committed_unix_ns,
        held_ns: cut.held_ns,
        moved: ByteLen(point.moved_sectors * 512),
        stored: ByteLen(point.own_segments().map(|segment| segment.object.0).sum()),
        written: point.written,
        duration,
    }
}

/// A number that no other attempt at this cycle has.
fn attempt() -> u64 {
    u64::from_le_bytes(PointId::random().to_bytes()[..8].try_into().unwrap_or_default())
}

fn now_unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}
