//! One cycle of one disk, from lease to release.
//!
//! ```text
//!   lease → (fuzzy cut → pass) → point-in-time cut → pass → verify (I7) → announce → commit (I5) → release
//! ```
//!
//! The fuzzy pass is only there when the whole disk has to move or to be compared, when of regions
//! that were touched before the machine went down only that is known, or when the last cycle lost its
//! point in time: it ships most of what has to move without holding the guest to
//! anything, so that the pass that follows is short. Whatever fails, the driver folds the closed
//! epochs back.

mod compare;
pub(crate) mod cutter;
mod flow;
mod kept;
mod lost;
mod pass;
mod quiesced;
pub mod resync;
pub mod turn;
pub mod unchanged;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use backstay_format::control::{CutMode, CutReply, DriverStatus, Request, Response};
use backstay_format::superblock::Base;
use backstay_front::control::{ClientError, ControlClient};
use backstay_host::clock::{self, now_unix_ns};
use backstay_types::{ByteLen, Classified, CycleNo, DiskId, EpochNo, PointId};
use backstay_vault::format::key::DiskFolder;
use backstay_vault::retain::holder;
use backstay_vault::store::at_once;
use backstay_vault::{
    Consistency, CycleKind, DiskRecord, DrillCheck, DrillRecord, Manifest, Pass, PointMeta,
    SegmentRef, TermRecord, Vault, VaultError, verify_cycle,
};

use crate::config::Ship;
use crate::error::CycleError;
use crate::home;
use crate::hooks::{Hooks, Quiesced};
use crate::record::Record;
use crate::rollback_guard;
use crate::scrub::Scrubbed;
use crate::throttle::Throttle;
use crate::vault_place;
pub use cutter::{AtOnce, Cutter};
#[doc(hidden)]
pub use flow::{Flow, flow};
use kept::{Kept, KeptFor, Worth};
use pass::{Scope, Source};

/// What a cycle works with.
pub struct CycleJob<'a> {
    /// The driver's control socket.
    pub socket: &'a Path,
    /// The disk's state directory.
    pub state: &'a Path,
    /// Where to ship.
    pub vault: &'a Vault,
    /// Most bytes of preserved blocks, if the settings say so.
    pub change_log_limit: Option<ByteLen>,
    /// How to ship.
    pub ship: &'a Ship,
    /// How fast; one for all disks.
    pub throttle: &'a Throttle,
    /// What makes its point application-consistent, if there is something.
    pub hooks: Option<&'a Hooks>,
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
    /// Comparing the disk with the newest point.
    Resync,
    /// The pass over what changed.
    Delta,
    /// Comparing what arrived with what had to move.
    Verify,
}

impl Stage {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fuzzy => "whole disk",
            Self::Resync => "comparing",
            Self::Delta => "changes",
            Self::Verify => "verifying",
        }
    }
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
    /// The disk's identity in the vault.
    #[serde(default)]
    pub disk: Option<DiskId>,
    /// Bytes of sectors that moved.
    pub moved: ByteLen,
    /// Bytes put into the vault.
    pub stored: ByteLen,
    /// Bytes read from the vault.
    #[serde(default)]
    pub fetched: ByteLen,
    /// Bytes the guest wrote in the epoch.
    pub written: ByteLen,
    #[serde(with = "humantime_serde")]
    pub duration: Duration,
    /// Why the point is not as consistent as was wished, or what else went wrong with hooks.
    #[serde(default)]
    pub warning: Option<String>,
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
    Record::load(job.state).knows_vault()?;
    let (started, fetched_before) = (clock::monotonic(), job.vault.fetched());
    let mut driver = ControlClient::connect(job.socket)?;
    // One that does not answer is told at once, and not after the time that a lease may take.
    driver.status()?;
    let client = format!("process {}", std::process::id());
    let status = match driver.ask(&Request::Lease { client })? {
        Response::Leased { status } => *status,
        _ => return Err(ClientError::Confused.into()),
    };
    if let Some(change_log) = job.change_log_limit.filter(|&at| at != status.change_log_limit) {
        driver.ask(&Request::SetLimits { change_log })?;
    }
    refuse_fault(&status)?;
    let asked = resync::Request::load(job.state);
    refuse_on_disk(job.vault, &status)?;
    let begins_again = asked.as_ref().is_some_and(|asked| asked.full);
    let mut found = look_at_vault(job.state, job.vault, &status, begins_again)?;
    // What another host took over is refused before anything else is said of it (I5).
    found.refuse_fenced()?;
    found.refuse_to_begin_again(asked.as_ref(), &status)?;
    if let Some(root) = job.state.parent() {
        rollback_guard::keyring(root, job.vault)?;
    }
    let from = found.from(job.vault)?;
    let onto = from.as_ref().or(found.newest.as_ref());
    let write_only = job.vault.is_write_only();
    let flow = flow(&status, onto, found.adopted, asked.as_ref(), write_only)?;
    let term = found.term(job.vault)?;
    if let Some(from) = term.from.filter(|_| from.is_some()) {
        job.vault.hold_from(found.disk, term.term, &from)?;
    }
    let layered = matches!(flow, Flow::Delta | Flow::Resync { .. });
    let newest = found.newest.clone();
    let onto = onto.cloned();
    let kind = match flow {
        Flow::Initial => CycleKind::Initial,
        Flow::Delta => CycleKind::Delta,
        Flow::Resync { .. } | Flow::Full => CycleKind::Resync,
    };
    // What the driver has open, not what has its name.
    let file = driver.open_backing(&status)?;
    let cycle =
        newest.as_ref().map(|point| point.cycle).or(found.known).map_or(CycleNo(1), CycleNo::next);
    let kept = matches!(flow, Flow::Initial | Flow::Full | Flow::Delta) && !write_only;
    let kept = kept.then(|| {
        let of = KeptFor {
            vault: job.vault.id(),
            vault_disk: found.disk,
            disk: status.disk,
            size: status.size,
            cycle,
            follows: onto.as_ref().map(|point| point.point),
            whole: flow != Flow::Delta,
            asked_unix_ns: asked.as_ref().map(|asked| asked.asked_unix_ns),
        };
        Kept::load(job.state, of)
    });
    let mut run = Run {
        job,
        source: Source { file, disk: status.disk, size: status.size },
        vault_disk: found.disk,
        driver,
        cycle,
        attempt: attempt(),
        kept,
        closed: None,
        put: vec![],
        put_kept: 0,
        stands_alone: false,
        consistency: Consistency::Crash,
        quiesced: None,
    };
    let shipped = run.passes(flow, &status, onto.as_ref(), cutter).and_then(|(cut, passes)| {
        // Once more after the last read: what was cut off meanwhile read as zeroes.
        refuse_fault(&run.driver.status()?)?;
        (job.progress)(Stage::Verify, 0, 0);
        let verified = verify_cycle(job.vault, found.disk, status.size, cycle, passes)?;
        let base = Base { vault_disk: found.disk, cycle, point: PointId::random() };
        run.driver.ask(&Request::Announce { point: base })?;
        Ok((cut, verified, base))
    });
    let (cut, verified, base) = shipped.map_err(|e| run.undo(e, true))?;
    let meta = PointMeta {
        term: term.term,
        predecessor: newest,
        base: match (layered && !run.stands_alone, from) {
            (false, continues) => backstay_vault::Base::Nothing { continues },
            (true, None) => backstay_vault::Base::Newest,
            (true, Some(from)) => backstay_vault::Base::Older(from),
        },
        kind,
        point: base.point,
        consistency: run.consistency,
        cut_unix_ns: cut.cut_unix_ns,
        written: cut.written,
    };
    // From here on nobody but the vault knows whether the point exists: its segments stay.
    let point = job.vault.commit(verified, meta).map_err(|e| run.undo(e.into(), false))?;
    run.driver.ask(&Request::Release { epoch: cut.epoch, base })?;
    found.release_from(job.vault, &term, &point);
    if flow == (Flow::Resync { deep: true }) {
        note_whole(job.vault, &point);
    }
    let reads_no_other = !layered || run.stands_alone;
    if flow == (Flow::Resync { deep: true }) || reads_no_other {
        Scrubbed::note_whole(job.state, point.cycle);
    } else {
        Scrubbed::note_layered(job.state, point.cycle);
    }
    resync::forget(job.state, asked.as_ref());
    kept::forget(job.state);
    // The point is there, and the next cycle does this again.
    if let Err(e) = home::remember(job.state, &status.name, job.vault, true) {
        tracing::warn!("{e}");
    }
    let fetched = ByteLen(job.vault.fetched().0 - fetched_before.0);
    let report = report(&point, &cut, fetched, clock::since(started));
    Ok(CycleReport { warning: run.quiesced.take().and_then(Quiesced::finish), ..report })
}

/// No point is made of a backing that is not the disk's any more.
fn refuse_fault(status: &DriverStatus) -> Result<(), CycleError> {
    match &status.backing_fault {
        Some(fault) if fault.kind.spoils_points() => {
            Err(CycleError::Backing { name: status.name.clone(), fault: fault.clone() })
        }
        _ => Ok(()),
    }
}

/// A cycle that has begun.
struct Run<'a> {
    job: &'a CycleJob<'a>,
    source: Source,
    /// The disk's identity in the vault.
    vault_disk: DiskId,
    driver: ControlClient,
    cycle: CycleNo,
    attempt: u64,
    /// What is left for the next attempt if this one fails, if anything can be.
    kept: Option<Kept>,
    /// The newest closed epoch.
    closed: Option<EpochNo>,
    /// Segments put so far.
    put: Vec<SegmentRef>,
    /// How many of them the next attempt can use if this one fails.
    put_kept: usize,
    /// It could not be compared with what is there: its point has the whole disk.
    stands_alone: bool,
    /// What the point-in-time cut promises.
    consistency: Consistency,
    /// The application that waited for it, until it has gone on.
    quiesced: Option<Quiesced>,
}

impl Run<'_> {
    /// Ships the passes of a cycle; the point-in-time cut and what was shipped.
    fn passes(
        &mut self,
        flow: Flow,
        status: &DriverStatus,
        newest: Option<&Manifest>,
        cutter: &mut dyn Cutter,
    ) -> Result<(CutReply, Vec<Pass>), CycleError> {
        let mut passes = vec![];
        let mut written = ByteLen(0);
        // Whole regions are dirty of which only the intents are known.
        let coarse = newest.filter(|newest| {
            flow == Flow::Delta
                && status.coarse
                && newest.size == status.size
                && !self.job.vault.is_write_only()
        });
        let resumes = self.has_kept();
        if flow != Flow::Delta || status.lost_point_in_time.is_some() || coarse.is_some() || resumes
        {
            let cut =
                self.cut_by(|driver| cutter::ask(driver, &Request::Cut { mode: CutMode::Fuzzy }))?;
            written = cut.written;
            match (flow, newest) {
                (Flow::Resync { deep }, Some(newest)) => {
                    match self.compare(&cut, newest, deep, status.resync_no) {
                        // What cannot be compared with is not needed either: a full copy depends on nothing older.
                        Err(CycleError::Vault(e)) if e.is_loss() => {
                            tracing::warn!("disk {}: {e}: the whole disk is shipped", status.name);
                            resync::forget_progress(self.job.state);
                            self.stands_alone = true;
                            passes = vec![self.pass(&cut, Scope::Whole, Stage::Fuzzy)?];
                        }
                        compared => passes = compared?,
                    }
                }
                _ if resumes => {
                    let whole = flow != Flow::Delta || cut.whole_disk.is_some();
                    let scope = if whole { Scope::Whole } else { Scope::Dirty };
                    passes = self.pass_kept(&cut, scope, coarse.filter(|_| !whole))?;
                }
                (Flow::Delta, Some(newest)) if cut.whole_disk.is_none() && coarse.is_some() => {
                    passes.push(self.compare_dirty(&cut, newest)?);
                }
                (Flow::Delta, _) if cut.whole_disk.is_none() => {
                    passes.push(self.pass(&cut, Scope::Dirty, Stage::Fuzzy)?);
                }
                _ => passes.push(self.pass(&cut, Scope::Whole, Stage::Fuzzy)?),
            }
        }
        let mut cut = self.quiesced_cut(cutter)?;
        if let Some(why) = cut.whole_disk {
            return Err(CycleError::Lost(format!(
                "the whole disk became dirty as it was cut ({why:?})"
            )));
        }
        passes.push(self.pass(&cut, Scope::Dirty, Stage::Delta)?);
        cut.written.0 += written.0;
        Ok((cut, passes))
    }

    /// Has a cut made, and remembers that it is open.
    fn cut_by(
        &mut self,
        make: impl FnOnce(&mut ControlClient) -> Result<CutReply, CycleError>,
    ) -> Result<CutReply, CycleError> {
        let cut = make(&mut self.driver)?;
        self.closed = Some(cut.epoch);
        Ok(cut)
    }

    /// Folds back, and removes the segments if no point can name them.
    fn undo(&mut self, why: CycleError, remove_segments: bool) -> CycleError {
        if let Some(epoch) = self.closed {
            // If even that fails, the driver folds back when this connection ends.
            if let Err(e) = self.driver.ask(&Request::FoldBack { epoch }) {
                tracing::warn!("folding back after {why}: {e}");
            }
        }
        match (&self.kept, Worth::after(&why)) {
            (Some(_), Worth::Nothing) => kept::forget(self.job.state),
            (Some(kept), Worth::Before) if remove_segments => kept.forget_attempt(),
            (Some(_), _) => return why,
            (None, _) => {}
        }
        if remove_segments {
            self.job.vault.remove_segments(self.vault_disk, &self.put[self.put_kept..]);
        }
        why
    }
}

/// The newest point that the vault has of a disk, found by its identity or, failing that, by its
/// name; right after a failover the one that the disk goes on from.
///
/// # Errors
/// If the vault cannot be read or is damaged.
pub fn newest_point(vault: &Vault, status: &DriverStatus) -> Result<Option<Manifest>, CycleError> {
    let Some(found) = find_disk(vault, status)? else { return Ok(None) };
    if let Some(damage) = found.damage {
        return Err(damage.into());
    }
    Ok(found.from(vault)?.or(found.newest))
}

/// A disk in the vault.
struct VaultDisk {
    disk: DiskId,
    /// It has the disk's name, and nothing else says that it is this disk.
    adopted: bool,
    /// Who writes, as terms name it.
    writer: String,
    newest: Option<Manifest>,
    /// The highest cycle whose point is known to have been made, if none can be read.
    known: Option<CycleNo>,
    /// Why the newest point cannot be read.
    damage: Option<VaultError>,
    /// The newest term, as it was found: a commit looks again.
    newest_term: Option<TermRecord>,
}

/// A vault in a directory on the disk that is to be shipped there is none.
fn refuse_on_disk(vault: &Vault, status: &DriverStatus) -> Result<(), CycleError> {
    let Some(dir) = vault.local_dir() else { return Ok(()) };
    match vault_place::of_directory(dir) {
        Ok(stands) if stands.is_on(&status.served) => {
            Err(CycleError::VaultOnDisk { name: status.name.clone(), vault: vault.url().into() })
        }
        Ok(_) => Ok(()),
        Err(e) => {
            tracing::warn!("{}: what it stands on cannot be told: {e}", dir.display());
            Ok(())
        }
    }
}

/// Finds the disk and its newest point in the vault, which must be the one that the disk is shipped to; makes what
/// is not there yet. `begins_again`: a full copy was asked for, so that the vault may have forgotten the disk.
fn look_at_vault(
    state: &Path,
    vault: &Vault,
    status: &DriverStatus,
    begins_again: bool,
) -> Result<VaultDisk, CycleError> {
    let found = find_disk(vault, status)?;
    home::check(state, &status.name, vault, found.is_some() || begins_again)?;
    if let Some(found) = found {
        // Its name alone makes no disk another's: nothing would say that anybody wants that.
        if found.adopted && found.newest.is_none() && found.damage.is_none() {
            let (name, disk) = (status.name.clone(), found.disk);
            return Err(VaultError::NameTaken { name, disk }.into());
        }
        home::remember(state, &status.name, vault, found.newest.is_some())?;
        return Ok(found);
    }
    vault.found_disk(&DiskRecord {
        disk: status.disk,
        name: status.name.clone(),
        size_bytes: status.size,
        sector_bytes: 512,
        created_unix_ns: now_unix_ns(),
    })?;
    home::remember(state, &status.name, vault, false)?;
    let writer = writer_of(status);
    Ok(VaultDisk {
        disk: status.disk,
        adopted: false,
        writer,
        newest: None,
        known: None,
        damage: None,
        newest_term: None,
    })
}

fn writer_of(status: &DriverStatus) -> String {
    format!("source {}", status.disk)
}

fn find_disk(vault: &Vault, status: &DriverStatus) -> Result<Option<VaultDisk>, CycleError> {
    let mut ids = vec![status.disk];
    // A disk that was adopted goes by the identity it has there.
    for base in status.proofs() {
        if !ids.contains(&base.vault_disk) {
            ids.push(base.vault_disk);
        }
    }
    let mut found = None;
    for id in ids {
        match vault.disk(id) {
            Ok(_) => found = Some((id, false)),
            Err(VaultError::NotFound { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    if found.is_none() {
        found = match vault.disk_named(&status.name) {
            Ok(record) => Some((record.disk, true)),
            // A name that its disk gave back is free.
            Err(VaultError::NotFound { .. } | VaultError::Renamed { .. }) => None,
            Err(e) => return Err(e.into()),
        };
    }
    let Some((disk, adopted)) = found else { return Ok(None) };
    let base = status.base.filter(|base| base.vault_disk == disk).map(|base| base.cycle);
    let (newest_term, newest) =
        at_once(|| vault.newest_term(disk), || newest_readable(vault, disk, base));
    let (mut newest_term, (newest, known, damage)) = (newest_term?, newest?);
    if let Some(point) = newest.as_ref().filter(|point| is_behind(newest_term.as_ref(), point)) {
        // Another host may have taken the disk over between the two looks.
        newest_term = vault.newest_term(disk)?;
        if is_behind(newest_term.as_ref(), point) {
            return Err(terms_lost(disk, point).into());
        }
    }
    let writer = writer_of(status);
    Ok(Some(VaultDisk { disk, adopted, writer, newest, known, damage, newest_term }))
}

/// Whether the terms of a vault end before the one in which a point was written.
fn is_behind(newest: Option<&TermRecord>, point: &Manifest) -> bool {
    newest.is_none_or(|term| term.term < point.term)
}

/// Who may write stands in the terms: without them nobody may.
fn terms_lost(disk: DiskId, point: &Manifest) -> VaultError {
    VaultError::Inconsistent {
        object: DiskFolder::Terms.of(disk).to_string(),
        reason: format!(
            "recovery point {} was written in term {}, and that term is gone: who may write the disk cannot be told, so \
             nothing was shipped. Bring the vault's terms back from a copy of it; where there is none, protect the disk \
             under another name",
            point.cycle, point.term
        ),
    }
}

type Newest = (Option<Manifest>, Option<CycleNo>, Option<VaultError>);

/// The newest point; or, if it cannot be read, the highest cycle that is known and why.
fn newest_readable(
    vault: &Vault,
    disk: DiskId,
    base: Option<CycleNo>,
) -> Result<Newest, VaultError> {
    let Some(cycle) = vault.newest_point(disk, base)? else {
        return Ok((None, base.max(vault.highest_known(disk)?), None));
    };
    match vault.manifest(disk, cycle) {
        Err(e) if e.is_damage() => Ok((None, Some(cycle), Some(e))),
        newest => Ok((Some(newest?), None, None)),
    }
}

impl VaultDisk {
    /// The term to write in. A disk that was adopted, which somebody asked for, takes a new one.
    fn term(&self, vault: &Vault) -> Result<TermRecord, CycleError> {
        let mut term = match &self.newest_term {
            Some(newest) => newest.clone(),
            None => vault.first_term(self.disk, &self.writer)?,
        };
        if term.writer != self.writer && self.adopted {
            term = vault.claim_term(self.disk, &self.writer)?;
        }
        if term.writer == self.writer { Ok(term) } else { Err(fenced(term)) }
    }

    /// Nothing is shipped in full because points are gone that were there: anyone who deleted them, or put another vault in
    /// the place, has to say what is right. With a full copy that was asked for, nothing older is needed.
    fn refuse_to_begin_again(
        &mut self,
        asked: Option<&resync::Request>,
        status: &DriverStatus,
    ) -> Result<(), CycleError> {
        let full = asked.is_some_and(|asked| asked.full);
        let name = status.name.to_string();
        match (self.damage.take(), self.known) {
            _ if full => Ok(()),
            (Some(source), _) => Err(CycleError::NewestDamaged { name, source }),
            (None, Some(known)) => Err(VaultError::PointsVanished { disk: name, known }.into()),
            (None, None) => Ok(()),
        }
    }

    /// I5: what another writer took over is not ours any more, whatever this disk knows.
    fn refuse_fenced(&self) -> Result<(), CycleError> {
        match &self.newest_term {
            Some(term) if term.writer != self.writer && !self.adopted => Err(fenced(term.clone())),
            _ => Ok(()),
        }
    }

    /// The point that our term goes on from, if that is not the newest and no point of the term is
    /// there yet.
    fn from(&self, vault: &Vault) -> Result<Option<Manifest>, CycleError> {
        let (Some(newest), Some(term)) = (&self.newest, &self.newest_term) else {
            return Ok(None);
        };
        let first = newest.term < term.term && term.writer == self.writer;
        let Some(from) = term.from.filter(|from| first && from.point != newest.point) else {
            return Ok(None);
        };
        match vault.manifest(self.disk, from.cycle) {
            Ok(point) if point.point == from.point => Ok(Some(point)),
            // It was held for a month: then a person has to say that the disk is right.
            Ok(_) | Err(VaultError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Lets go of the point that the term went on from, once a point of the term is there. One that
    /// was killed before it did leaves it to the next cycle.
    fn release_from(&self, vault: &Vault, term: &TermRecord, point: &Manifest) {
        let Some(from) = term.from else { return };
        let follows = |point: &Manifest| point.predecessor == Some((from.cycle, from.point));
        if (follows(point) || self.newest.as_ref().is_some_and(follows))
            && let Err(e) = vault.release_from(self.disk, term.term)
        {
            tracing::warn!("the hold on recovery point {} ends by itself: {e}", from.cycle);
        }
    }
}

/// Says beside a point that all that it needs was read back: the disk was compared with all of it. Where that cannot be said,
/// the next scrub does.
fn note_whole(vault: &Vault, point: &Manifest) {
    let now = now_unix_ns();
    let noted = vault.put_drill(&DrillRecord {
        drill: uuid::Uuid::new_v4(),
        disk: point.disk,
        cycle: point.cycle,
        point: point.point,
        check: DrillCheck::Scrub,
        passed: true,
        message: "compared with the disk, all of it read back".into(),
        by: holder(),
        began_unix_ns: now,
        ended_unix_ns: now,
    });
    if let Err(e) = noted {
        tracing::debug!("recovery point {}: {e}", point.cycle);
    }
}

fn fenced(term: TermRecord) -> CycleError {
    let ours = backstay_types::Term(term.term.0 - 1);
    VaultError::Fenced { ours, newest: term.term, writer: term.writer }.into()
}

fn report(point: &Manifest, cut: &CutReply, fetched: ByteLen, duration: Duration) -> CycleReport {
    CycleReport {
        kind: point.kind,
        cycle: point.cycle,
        point: point.point,
        disk: Some(point.disk),
        cut_unix_ns: point.cut_unix_ns,
        committed_unix_ns: point.committed_unix_ns,
        held_ns: cut.held_ns,
        moved: ByteLen(point.moved_sectors * 512),
        stored: ByteLen(point.own_segments().map(|segment| segment.object.0).sum()),
        fetched,
        written: point.written,
        duration,
        warning: None,
    }
}

/// A number that no other attempt at this cycle has.
fn attempt() -> u64 {
    u64::from_le_bytes(PointId::random().to_bytes()[..8].try_into().unwrap_or_default())
}
