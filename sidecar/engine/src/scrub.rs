//! Scrubs: read whole points back in the background, and repair damage while a good copy still exists.
//!
//! One thread reads the points of one disk at a time, at most at `scrub_limit`. A small record in the
//! disk's state directory stores the progress, so that a restarted sidecar continues there. Damage is noted
//! in that record, for the disk's health, and in the vault, for every host that may restore the points.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use backstay_host::atomic::Durability;
use backstay_host::clock::{self, now_unix_ns};
use backstay_host::record;
use backstay_types::{ByteLen, Classified, CycleNo, DiskId, DiskName, SectorRange};
use backstay_vault::read::mend::{Mended, Spare};
use backstay_vault::read::survey::{Reading, Survey, segment_name, survey};
use backstay_vault::retain::Held;
use backstay_vault::{Manifest, Vault, VaultError, Vaults};
use serde::{Deserialize, Serialize};

use crate::cycle::resync::Request;
use crate::jobs::{JobBook, JobKind};

const FILE: &str = "scrub.json";
/// A scrub that failed is tried again after this long.
const AGAIN: Duration = Duration::from_secs(3600);
/// The record is written after so many segments.
const SAVED_AFTER: usize = 16;

/// How often points are read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Every(Option<Duration>);

impl Every {
    /// Never.
    pub const NEVER: Self = Self(None);

    /// From one scrub to the next; none: never.
    #[must_use]
    pub fn interval(self) -> Option<Duration> {
        self.0
    }
}

impl TryFrom<String> for Every {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        const DAY: u64 = 86_400;
        let long = match text.as_str() {
            "never" => return Ok(Self::NEVER),
            "daily" => Duration::from_secs(DAY),
            "weekly" => Duration::from_secs(7 * DAY),
            "monthly" => Duration::from_secs(30 * DAY),
            text => humantime::parse_duration(text).map_err(|e| {
                format!(
                    "scrub = {text:?}: never, daily, weekly, monthly or a time such as 3d ({e})"
                )
            })?,
        };
        match long.is_zero() {
            true => Err("scrub: an interval of zero; use never".into()),
            false => Ok(Self(Some(long))),
        }
    }
}

impl From<Every> for String {
    fn from(every: Every) -> Self {
        every.0.map_or_else(|| "never".into(), |long| humantime::format_duration(long).to_string())
    }
}

/// What is remembered of a disk's scrubs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scrubbed {
    /// When the one that runs, or was interrupted, began, nanoseconds since 1970.
    pub began_unix_ns: Option<u64>,
    /// Segments that it has read.
    pub done: BTreeSet<String>,
    /// When the last one ended, nanoseconds since 1970.
    pub ended_unix_ns: Option<u64>,
    /// When one was last tried that failed, and why.
    pub failed: Option<(u64, String)>,
    /// Points that are damaged, and why.
    pub damaged: BTreeMap<CycleNo, String>,
    /// The newest point when it ended.
    pub newest: Option<CycleNo>,
    /// The newest point that is known to be whole: read back, or made of the whole disk since.
    pub whole: Option<CycleNo>,
    /// Segments that the last one mended.
    pub mended: u64,
    /// Somebody else found damage, or a point was laid over it: one is due now, also where none are made by themselves.
    pub asked: bool,
    /// The newest damaged point for which one was asked because another was laid over it: that is asked for once.
    pub asked_over: Option<CycleNo>,
}

impl Scrubbed {
    /// Reads it; one that cannot be read is as good as none: all is found out again.
    #[must_use]
    pub fn load(state_dir: &Path) -> Option<Self> {
        record::load_shown(&state_dir.join(FILE))
    }

    fn save(&self, state_dir: &Path) {
        if let Err(e) = record::save(&state_dir.join(FILE), self, Durability::Relaxed) {
            tracing::warn!("{e}");
        }
    }

    /// What `backstay verify` found of these points is in this host's health at once; if any is damaged, the next scrub is
    /// due now: it mends what can be mended.
    ///
    /// `there` are all points that there are now, in order: what is said of others is forgotten.
    pub fn note_verify(state_dir: &Path, points: &[CycleNo], found: &Survey, there: &[CycleNo]) {
        let before = Self::load(state_dir).unwrap_or_default();
        let mut record = before.clone();
        record.damaged.retain(|cycle, _| !points.contains(cycle) && there.contains(cycle));
        record.damaged.extend(found.damaged.iter().map(|(cycle, e)| (*cycle, e.to_string())));
        record.newest = there.last().copied();
        let whole = points.iter().copied().filter(|cycle| !found.damaged.contains_key(cycle)).max();
        let known = |cycle: &CycleNo| there.contains(cycle) && !found.damaged.contains_key(cycle);
        record.whole = record.whole.filter(known).max(whole);
        if record.damaged != before.damaged {
            record.asked = !found.damaged.is_empty();
        }
        let nothing = before.damaged.is_empty() && record.damaged.is_empty();
        if record != before && !nothing {
            record.save(state_dir);
        }
    }

    /// Forgets what is said of points that are gone.
    pub fn note_gone(state_dir: &Path, gone: impl Fn(CycleNo) -> bool) {
        let Some(mut record) = Self::load(state_dir) else { return };
        let before = record.damaged.len();
        record.damaged.retain(|cycle, _| !gone(*cycle));
        if record.damaged.len() < before {
            record.save(state_dir);
        }
    }

    /// A point was made that has the whole disk, whatever is damaged below it.
    pub fn note_whole(state_dir: &Path, cycle: CycleNo) {
        let Some(mut record) = Self::load(state_dir) else { return };
        record.whole = Some(cycle);
        record.save(state_dir);
    }

    /// A point was made that needs what others have. If what it may need is damaged, only reading it back tells whether it
    /// is whole: that is asked for, once for what is damaged now.
    pub fn note_layered(state_dir: &Path, cycle: CycleNo) {
        let Some(mut record) = Self::load(state_dir) else { return };
        let newest = record.damaged.last_key_value().map(|(cycle, _)| *cycle);
        if newest <= record.asked_over || !record.newest_is_damaged(Some(cycle)) {
            return;
        }
        (record.asked, record.asked_over) = (true, newest);
        record.save(state_dir);
    }

    /// Whether the disk's newest state is damaged, as far as is known: no whole point is newer than one that is damaged.
    #[must_use]
    pub fn newest_is_damaged(&self, last: Option<CycleNo>) -> bool {
        let Some((&damaged, _)) = self.damaged.last_key_value() else { return false };
        // That something older is damaged says nothing of a newest one that was read back with it.
        let read = self.newest.filter(|newest| !self.damaged.contains_key(newest));
        let whole = self.whole.max(read);
        last == Some(damaged) || whole.is_none_or(|whole| whole < damaged)
    }

    /// When the next one is due, nanoseconds since 1970; none: never. The first one is due at once.
    #[must_use]
    pub fn due(&self, every: Option<Duration>) -> Option<u64> {
        let after = |at: u64, long: Duration| {
            at.saturating_add(u64::try_from(long.as_nanos()).unwrap_or(u64::MAX))
        };
        let due = match (self.asked || self.began_unix_ns.is_some(), every) {
            (true, _) => 0,
            (false, Some(every)) => self.ended_unix_ns.map_or(0, |ended| after(ended, every)),
            (false, None) => return None,
        };
        let again = AGAIN.min(every.unwrap_or(AGAIN));
        Some(self.failed.as_ref().map_or(due, |(at, _)| due.max(after(*at, again))))
    }
}

/// A disk whose points are to be read back.
#[derive(Debug, Clone)]
pub struct Due {
    /// What vaults are opened with.
    pub vaults: Vaults,
    /// Its name.
    pub name: DiskName,
    /// Its state directory.
    pub state: PathBuf,
    /// Its vault.
    pub url: String,
    /// What it is in the vault.
    pub disk: DiskId,
    /// Its backing.
    pub backing: PathBuf,
    /// Bytes a second; none: as fast as it goes.
    pub limit: Option<u64>,
}

/// Runs scrubs, one at a time.
#[derive(Debug, Default)]
pub struct Scrubs {
    running: Option<JoinHandle<()>>,
}

impl Scrubs {
    /// Whether one runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Begins one.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn begin(
        &mut self,
        due: Due,
        jobs: &JobBook,
        stop: &Arc<AtomicBool>,
    ) -> std::io::Result<()> {
        let (jobs, stop) = (jobs.clone(), Arc::clone(stop));
        let thread = thread::Builder::new().name("scrub".into());
        self.running = Some(thread.spawn(move || run(&due, &jobs, &stop))?);
        Ok(())
    }
}

/// Reads the points of a disk back, mends what can be mended, and writes down what was found.
fn run(due: &Due, jobs: &JobBook, stop: &AtomicBool) {
    let job = jobs.begin_if_long(&due.name, JobKind::Scrub);
    let mut record = Scrubbed::load(&due.state).unwrap_or_default();
    if record.began_unix_ns.is_none() {
        (record.began_unix_ns, record.done) = (Some(now_unix_ns()), BTreeSet::new());
    }
    let record = Mutex::new(record);
    let scrubbed = scrub(due, &record, &|done, all| job.progress("reading back", done, all), stop);
    let mut record = record.into_inner().unwrap_or_else(PoisonError::into_inner);
    match scrubbed {
        Ok(()) => {
            let damaged = record.damaged.len();
            tracing::info!("disk {}: points were read back: {damaged} are damaged", due.name);
            let _ = job.end_at(Ok(None));
        }
        // The sidecar stops: it goes on there.
        Err(VaultError::Stopped { .. }) => {
            let _ = job.end_at(Ok(None));
        }
        Err(e) => {
            tracing::error!("disk {}: reading its points back: {e}", due.name);
            record.failed = Some((now_unix_ns(), e.to_string()));
            let _ = job.end_at(Err(e.to_string()));
        }
    }
    record.save(&due.state);
}

fn scrub(
    due: &Due,
    record: &Mutex<Scrubbed>,
    progress: &(dyn Fn(u64, u64) + Sync),
    stop: &AtomicBool,
) -> Result<(), VaultError> {
    let lock = || record.lock().unwrap_or_else(PoisonError::into_inner);
    let vault = due.vaults.open(&due.url)?;
    let disk = due.disk;
    let points = vault.points(disk)?;
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else {
        let mut record = lock();
        *record = Scrubbed { ended_unix_ns: Some(now_unix_ns()), ..Scrubbed::default() };
        return Ok(());
    };
    let held = Held::reading(&vault, disk, first..=last, "scrub")?;
    let points = held.points().to_vec();
    let (began, read) = (clock::monotonic(), AtomicU64::new(0));
    let skip = lock().done.clone();
    let done = |name: &str, bytes: u64| {
        if !skip.contains(name) {
            let mut record = lock();
            record.done.insert(name.to_owned());
            if record.done.len().is_multiple_of(SAVED_AFTER) {
                record.save(&due.state);
            }
            drop(record);
            let all = read.fetch_add(bytes, Ordering::Relaxed) + bytes;
            let at = due.limit.map_or(Duration::ZERO, |limit| {
                Duration::from_secs_f64(all as f64 / limit.max(1) as f64)
            });
            while clock::since(began) < at && !stop.load(Ordering::Relaxed) {
                clock::sleep(Duration::from_millis(100).min(at));
            }
        }
        !stop.load(Ordering::Relaxed)
    };
    let how = Reading { threads: 1, progress, skip: &skip, done: &done };
    let mut found = survey(&vault, disk, &points, &how)?;
    let mended = mend(due, &vault, &points, &found)?;
    if mended > 0 {
        // What was read once is not read again.
        let skip = lock().done.clone();
        found = survey(&vault, disk, &points, &Reading { skip: &skip, ..how })?;
    }
    vault.note_survey(disk, &points, &found)?;
    let mut record = lock();
    let damaged = found.damaged.iter().map(|(cycle, e)| (*cycle, e.to_string())).collect();
    *record = Scrubbed {
        ended_unix_ns: Some(now_unix_ns()),
        damaged,
        newest: points.last().copied(),
        whole: points.iter().copied().filter(|cycle| !found.damaged.contains_key(cycle)).max(),
        mended,
        asked_over: record.asked_over,
        ..Scrubbed::default()
    };
    // What the disk still has is laid over what is damaged.
    let newest_is_damaged = points.last().is_some_and(|newest| record.damaged.contains_key(newest));
    if newest_is_damaged && Request::load(&due.state).is_none() {
        let request = Request { deep: true, asked_unix_ns: now_unix_ns(), ..Request::default() };
        if let Err(e) = request.save(&due.state) {
            tracing::warn!("disk {}: a resync could not be asked for: {e}", due.name);
        }
    }
    Ok(())
}

/// Mends what can be mended of the disk and of other points; how many segments.
fn mend(due: &Due, vault: &Vault, points: &[CycleNo], found: &Survey) -> Result<u64, VaultError> {
    if found.segments.is_empty() {
        return Ok(0);
    }
    let of_disk = File::open(&due.backing).ok().map(OfDisk);
    let mut others: Vec<Manifest> = vec![];
    for &cycle in points.iter().rev() {
        match vault.listed_manifest(due.disk, cycle) {
            Ok(point) => others.extend(point),
            Err(e) if e.is_damage() => {}
            Err(e) => return Err(e),
        }
    }
    let others: Vec<_> = others.iter().map(|point| vault.spare(point)).collect();
    let mut spares: Vec<&dyn Spare> = of_disk.iter().map(|disk| disk as &dyn Spare).collect();
    spares.extend(others.iter().map(|other| other as &dyn Spare));
    let mut mended = 0;
    for bad in &found.segments {
        let name = segment_name(due.disk, &bad.segment);
        match vault.mend_segment(due.disk, bad.size, &bad.segment, &spares) {
            Ok(Mended::Whole) => {
                tracing::warn!("disk {}: segment {name} was damaged and is whole again", due.name);
                mended += 1;
            }
            Ok(Mended::Not) => {
                tracing::error!("disk {}: segment {name} is damaged: {}", due.name, bad.why);
            }
            Err(e) if e.is_damage() || matches!(e, VaultError::NotFound { .. }) => {
                tracing::error!("disk {}: segment {name} is damaged: {e}", due.name);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(mended)
}

/// The disk as it is now: what was not written since is what it was.
struct OfDisk(File);

impl Spare for OfDisk {
    fn read(&self, range: SectorRange) -> Option<Vec<u8>> {
        let ByteLen(len) = range.bytes();
        let mut bytes = vec![0; len as usize];
        let mut at = 0;
        // The disk's last sector may be partial.
        while at < bytes.len() {
            match self.0.read_at(&mut bytes[at..], range.start.byte_offset().0 + at as u64) {
                Ok(0) => break,
                Ok(some) => at += some,
                Err(_) => return None,
            }
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_write_it() {
        let every = |text: &str| Every::try_from(text.to_owned());
        assert_eq!(every("weekly").unwrap().interval(), Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(every("3d").unwrap().interval(), Some(Duration::from_secs(3 * 86_400)));
        assert_eq!(every("never").unwrap().interval(), None);
        assert!(every("0s").is_err() && every("often").unwrap_err().contains("weekly"));
    }

    #[test]
    fn what_is_gone_or_overtaken_is_no_trouble_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let at = |cycles: &[u64]| cycles.iter().map(|cycle| CycleNo(*cycle)).collect::<Vec<_>>();
        let loaded = || Scrubbed::load(dir.path()).unwrap();
        let damaged = |cycles: &[u64]| {
            let of = |cycle| (cycle, VaultError::NotFound { object: "segment".into() });
            Survey { damaged: at(cycles).into_iter().map(of).collect(), ..Survey::default() }
        };
        let all = at(&[1, 2, 3, 4]);
        Scrubbed::note_verify(dir.path(), &all, &damaged(&[2, 4]), &all);
        assert!(loaded().newest_is_damaged(Some(CycleNo(4))));
        // A delta may build on what is damaged; what has the whole disk does not.
        assert!(loaded().newest_is_damaged(Some(CycleNo(5))));
        Scrubbed::note_whole(dir.path(), CycleNo(5));
        assert!(!loaded().newest_is_damaged(Some(CycleNo(5))));
        // One that was read back alone is not taken for all.
        Scrubbed::note_verify(dir.path(), &at(&[6]), &damaged(&[]), &at(&[1, 2, 4, 5, 6]));
        assert_eq!(loaded().damaged.keys().copied().collect::<Vec<_>>(), at(&[2, 4]));
        assert_eq!((loaded().newest, loaded().whole), (Some(CycleNo(6)), Some(CycleNo(6))));
        Scrubbed::note_gone(dir.path(), |cycle| cycle == CycleNo(2));
        assert_eq!(loaded().damaged.keys().copied().collect::<Vec<_>>(), at(&[4]));
        // It went behind our back.
        Scrubbed::note_verify(dir.path(), &at(&[6]), &damaged(&[]), &at(&[5, 6]));
        assert!(loaded().damaged.is_empty() && !loaded().newest_is_damaged(Some(CycleNo(6))));
    }

    #[test]
    fn what_is_laid_over_damage_is_read_back_once() {
        let dir = tempfile::tempdir().unwrap();
        let loaded = || Scrubbed::load(dir.path()).unwrap();
        Scrubbed::note_layered(dir.path(), CycleNo(3));
        assert_eq!(Scrubbed::load(dir.path()), None);
        let damaged = BTreeMap::from([(CycleNo(3), String::from("a segment"))]);
        let ended = Scrubbed { damaged, newest: Some(CycleNo(3)), ..Scrubbed::default() };
        ended.save(dir.path());
        Scrubbed::note_layered(dir.path(), CycleNo(4));
        assert!(loaded().asked && loaded().due(None) == Some(0));
        // It was read back, and is damaged, too.
        Scrubbed { asked: false, ..loaded() }.save(dir.path());
        Scrubbed::note_layered(dir.path(), CycleNo(5));
        assert!(!loaded().asked, "once");
        // What has the whole disk needs none of it.
        Scrubbed { asked_over: None, ..loaded() }.save(dir.path());
        Scrubbed::note_whole(dir.path(), CycleNo(6));
        Scrubbed::note_layered(dir.path(), CycleNo(7));
        assert!(!loaded().asked);
    }

    #[test]
    fn one_that_was_interrupted_goes_on_and_one_that_failed_waits() {
        let long = Duration::from_secs(7 * 86_400);
        let week = Some(long);
        assert_eq!((Scrubbed::default().due(week), Scrubbed::default().due(None)), (Some(0), None));
        let ended = Scrubbed { ended_unix_ns: Some(5), ..Scrubbed::default() };
        assert_eq!(ended.due(week), Some(5 + long.as_nanos() as u64));
        assert_eq!(Scrubbed { asked: true, ..ended.clone() }.due(None), Some(0));
        let interrupted = Scrubbed { began_unix_ns: Some(9), ..ended.clone() };
        assert_eq!(interrupted.due(week), Some(0));
        let failed = Scrubbed { failed: Some((10, "away".into())), ..interrupted };
        assert_eq!(failed.due(week), Some(10 + AGAIN.as_nanos() as u64));
    }
}
