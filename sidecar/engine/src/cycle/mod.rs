//! One cycle of one disk, from lease to release.
//!
//! ```text
//!   lease → (fuzzy cut → pass) → point-in-time cut → pass → verify (I7) → announce → commit (I5) → release
//! ```
//!
//! The fuzzy pass ships most of the data while the guest writes freely, so that the point-in-time pass
//! is short. A cycle has a fuzzy pass only if one of these holds:
//!
//! - the whole disk must be shipped or compared;
//! - after a crash of the machine, only write intents are known for some regions;
//! - the last cycle lost its point in time;
//! - an earlier attempt of this cycle left segments that can be used.
//!
//! If any step fails, the driver folds the closed epochs back.

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

/// The inputs of a cycle.
pub struct CycleJob<'a> {
    /// The driver's control socket.
    pub socket: &'a Path,
    /// The disk's state directory.
    pub state: &'a Path,
    /// The vault to ship to.
    pub vault: &'a Vault,
    /// Limit for preserved blocks, in bytes, if one is set.
    pub change_log_limit: Option<ByteLen>,
    /// How to ship.
    pub ship: &'a Ship,
    /// The bandwidth limit, shared by all disks.
    pub throttle: &'a Throttle,
    /// Hooks that make the point application-consistent, if there are any.
    pub hooks: Option<&'a Hooks>,
    /// Called with the progress.
    pub progress: &'a (dyn Fn(Stage, u64, u64) + Sync),
    /// Set by the caller to stop the cycle.
    pub stop: &'a AtomicBool,
}

/// The stage of a cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The pass over the whole disk.
    Fuzzy,
    /// Comparing the disk with the newest point.
    Resync,
    /// The pass over the changes.
    Delta,
    /// Checking that every sector that had to move has arrived.
    Verify,
}

impl Stage {
    /// The name for users.
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

/// The result of a cycle.
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
    /// Bytes that the guest wrote in the epoch.
    pub written: ByteLen,
    #[serde(with = "humantime_serde")]
    pub duration: Duration,
    /// Why the point is less consistent than requested, or another problem with hooks.
    #[serde(default)]
    pub warning: Option<String>,
}

/// Runs one cycle.
///
/// # Errors
/// If the cycle fails. No point was committed then, with one exception: [`CycleError::Driver`] may also
/// come after the commit point. The point then exists, and the next cycle ships its sectors once more.
pub fn run(job: &CycleJob<'_>) -> Result<CycleReport, CycleError> {
    run_cut_by(job, &mut AtOnce)
}

/// Runs one cycle whose point-in-time cut is made by `cutter`, which may wait for other disks first.
///
/// # Errors
/// As for [`run`].
pub fn run_cut_by(job: &CycleJob<'_>, cutter: &mut dyn Cutter) -> Result<CycleReport, CycleError> {
    Record::load(job.state).knows_vault()?;
    let (started, fetched_before) = (clock::monotonic(), job.vault.fetched());
    let mut driver = ControlClient::connect(job.socket)?;
    // A driver that hangs fails here at once. A lease request has a much longer time limit.
    driver.status()?;
    let client = format!("process {}", std::process::id());
    let status = match driver.ask(&Request::Lease { client })? {
        Response::Leased { status } => *status,
        _ => return Err(ClientError::Confused.into()),
    };
    if let Some(change_log) = job.change_log_limit.filter(|&max| max != status.change_log_limit) {
        driver.ask(&Request::SetLimits { change_log })?;
    }
    refuse_fault(&status)?;
    let asked = resync::Request::load(job.state);
    refuse_on_disk(job.vault, &status)?;
    let begins_again = asked.as_ref().is_some_and(|asked| asked.full);
    let mut found = look_at_vault(job.state, job.vault, &status, begins_again)?;
    // First of all checks: a disk that another host took over must not be shipped (I5).
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
    // The file that the driver has open. Its path may lead to another file by now.
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
        // Check again after the last read: a backing that was shortened meanwhile has read as zeroes.
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
    // If the commit fails the point may still exist, and only the vault knows. Keep the segments.
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
    // Not an error: the point exists, and the next cycle writes this again.
    if let Err(e) = home::remember(job.state, &status.name, job.vault, true) {
        tracing::warn!("{e}");
    }
    let fetched = ByteLen(job.vault.fetched().0 - fetched_before.0);
    let report = report(&point, &cut, fetched, clock::since(started));
    Ok(CycleReport { warning: run.quiesced.take().and_then(Quiesced::finish), ..report })
}

/// Refuses to make a point while the backing has a fault that would spoil it.
fn refuse_fault(status: &DriverStatus) -> Result<(), CycleError> {
    match &status.backing_fault {
        Some(fault) if fault.kind.spoils_points() => {
            Err(CycleError::Backing { name: status.name.clone(), fault: fault.clone() })
        }
        _ => Ok(()),
    }
}

/// A running cycle.
struct Run<'a> {
    job: &'a CycleJob<'a>,
    source: Source,
    /// The disk's identity in the vault.
    vault_disk: DiskId,
    driver: ControlClient,
    cycle: CycleNo,
    attempt: u64,
    /// What a failed attempt leaves to the next one, if this kind of cycle can continue.
    kept: Option<Kept>,
    /// The newest closed epoch.
    closed: Option<EpochNo>,
    /// Segments put so far.
    put: Vec<SegmentRef>,
    /// How many of these segments the next attempt can use if this one fails.
    put_kept: usize,
    /// The older points could not be compared with, so the new point contains the whole disk.
    stands_alone: bool,
    /// The consistency of the point-in-time cut.
    consistency: Consistency,
    /// The application that the hooks paused for the cut, until it runs again.
    quiesced: Option<Quiesced>,
}

impl Run<'_> {
    /// Ships the passes of a cycle. Returns the point-in-time cut and the passes.
    fn passes(
        &mut self,
        flow: Flow,
        status: &DriverStatus,
        newest: Option<&Manifest>,
        cutter: &mut dyn Cutter,
    ) -> Result<(CutReply, Vec<Pass>), CycleError> {
        let mut passes = vec![];
        let mut written = ByteLen(0);
        // For some regions only the intents are known: compare them with the newest point.
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
                        // The older data is lost. A full copy does not need it.
                        Err(CycleError::Vault(e)) if e.is_loss() => {
                            tracing::warn!("disk {}: {e}: shipping the whole disk", status.name);
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

    /// Makes a cut, and remembers its epoch so that a failure can fold it back.
    fn cut_by(
        &mut self,
        make: impl FnOnce(&mut ControlClient) -> Result<CutReply, CycleError>,
    ) -> Result<CutReply, CycleError> {
        let cut = make(&mut self.driver)?;
        self.closed = Some(cut.epoch);
        Ok(cut)
    }

    /// Folds the cut back. Removes the segments if no point can name them.
    fn undo(&mut self, why: CycleError, remove_segments: bool) -> CycleError {
        if let Some(epoch) = self.closed {
            // If this fails too, the driver folds back when the connection ends.
            if let Err(e) = self.driver.ask(&Request::FoldBack { epoch }) {
                tracing::warn!("cannot fold back after a failure ({why}): {e}");
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

/// The newest point of a disk in the vault. The disk is found by its identity, or else by its name. Right
/// after a failover, this is the point that the new term continues from.
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
    /// Only the name matches: nothing proves that this is our disk.
    adopted: bool,
    /// This disk's name as a writer in terms.
    writer: String,
    newest: Option<Manifest>,
    /// The highest cycle that is known to have made a point, if no point can be read.
    known: Option<CycleNo>,
    /// Why the newest point cannot be read.
    damage: Option<VaultError>,
    /// The newest term at the start of the cycle. The commit checks again.
    newest_term: Option<TermRecord>,
}

/// Refuses a vault in a directory on the protected disk itself: it would be lost with the disk.
fn refuse_on_disk(vault: &Vault, status: &DriverStatus) -> Result<(), CycleError> {
    let Some(dir) = vault.local_dir() else { return Ok(()) };
    match vault_place::of_directory(dir) {
        Ok(stands) if stands.is_on(&status.served) => {
            Err(CycleError::VaultOnDisk { name: status.name.clone(), vault: vault.url().into() })
        }
        Ok(_) => Ok(()),
        Err(e) => {
            tracing::warn!("{}: cannot find the devices below this vault: {e}", dir.display());
            Ok(())
        }
    }
}

/// Finds the disk and its newest point in the vault, which must be the disk's home. Creates the disk's
/// record if there is none. `begins_again` means that a full copy was requested: the vault may then have
/// lost the disk.
fn look_at_vault(
    state: &Path,
    vault: &Vault,
    status: &DriverStatus,
    begins_again: bool,
) -> Result<VaultDisk, CycleError> {
    let found = find_disk(vault, status)?;
    home::check(state, &status.name, vault, found.is_some() || begins_again)?;
    if let Some(found) = found {
        // Same name, but no point to compare with: nobody has confirmed that it is the same disk.
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
    // An adopted disk has another identity in the vault than in the driver.
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
            // A disk that was renamed has given up this name.
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
        // Another host may have taken the disk over between the two reads.
        newest_term = vault.newest_term(disk)?;
        if is_behind(newest_term.as_ref(), point) {
            return Err(terms_lost(disk, point).into());
        }
    }
    let writer = writer_of(status);
    Ok(Some(VaultDisk { disk, adopted, writer, newest, known, damage, newest_term }))
}

/// Whether the term of a point is newer than the newest term in the vault: term records are missing.
fn is_behind(newest: Option<&TermRecord>, point: &Manifest) -> bool {
    newest.is_none_or(|term| term.term < point.term)
}

/// The terms say who may write. Without them nobody may.
fn terms_lost(disk: DiskId, point: &Manifest) -> VaultError {
    VaultError::Inconsistent {
        object: DiskFolder::Terms.of(disk).to_string(),
        reason: format!(
            "recovery point {} was written in term {}, and the record of that term is missing: the vault no longer \
             says who may write the disk. Nothing was shipped. Restore the vault's terms from a copy of the vault. If \
             there is no copy, protect the disk under another name",
            point.cycle, point.term
        ),
    }
}

type Newest = (Option<Manifest>, Option<CycleNo>, Option<VaultError>);

/// The newest point. If it cannot be read: the highest known cycle and the error.
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
    /// The term to write in. An adopted disk, which a person has confirmed, begins a new term.
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

    /// Refuses to start again from a full copy when earlier points are missing or damaged: somebody may
    /// have deleted them or replaced the vault, and a person must decide. If a person has requested a full
    /// copy, nothing older is needed.
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

    /// I5: refuses a disk that another writer has taken over, whatever the driver's state says.
    fn refuse_fenced(&self) -> Result<(), CycleError> {
        match &self.newest_term {
            Some(term) if term.writer != self.writer && !self.adopted => Err(fenced(term.clone())),
            _ => Ok(()),
        }
    }

    /// The point that our term continues from, if it is not the newest and the term has no points yet.
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
            // Its retention hold has ended. A person must now confirm which side is right.
            Ok(_) | Err(VaultError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Releases the hold on the point that the term continued from, once the term has a point. If the
    /// sidecar is killed before this, the next cycle does it.
    fn release_from(&self, vault: &Vault, term: &TermRecord, point: &Manifest) {
        let Some(from) = term.from else { return };
        let follows = |point: &Manifest| point.predecessor == Some((from.cycle, from.point));
        if (follows(point) || self.newest.as_ref().is_some_and(follows))
            && let Err(e) = vault.release_from(self.disk, term.term)
        {
            tracing::warn!(
                "cannot release the hold on recovery point {}; it will expire: {e}",
                from.cycle
            );
        }
    }
}

/// Records a passed scrub for a point: a deep resync has read all of its data. If the record cannot be
/// written, the next scrub reads the data again.
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

/// A random number that tells the attempts of a cycle apart.
fn attempt() -> u64 {
    u64::from_le_bytes(PointId::random().to_bytes()[..8].try_into().unwrap_or_default())
}
