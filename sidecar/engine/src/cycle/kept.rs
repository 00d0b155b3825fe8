//! What a failed or killed cycle leaves for the next attempt: the segments that were uploaded and verified.
//!
//! Each segment is a line in a file in the disk's state directory, written after its upload. The next
//! attempt compares these segments with the disk, as a resync does with a point, and ships what differs or
//! is missing. So it need not trust anything else that the earlier attempt knew. docs/decisions/0024 has
//! the protocol.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use backstay_format::control::CutReply;
use backstay_host::atomic::{self, Durability, PRIVATE};
use backstay_types::{ByteLen, Classified, CycleNo, DiskId, PointId, SectorRange, Term};
use backstay_vault::read::compare::Comparison;
use backstay_vault::read::read_index;
use backstay_vault::{Consistency, CycleKind, Manifest, Pass, SectorSet, SegmentRef, VaultError};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::compare::{Count, Side};
use super::pass::Scope;
use super::{Run, Stage};
use crate::error::CycleError;
use crate::pipeline::{Beside, ship_beside};

const FILE: &str = "kept-segments";
/// Kept segments that hold more than this many times what they stand for are not worth it.
const WASTE: u64 = 2;

/// What segments are kept for; they are used for nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptFor {
    pub vault: Option<Uuid>,
    /// The disk in the vault.
    pub vault_disk: DiskId,
    /// The driver's own disk.
    pub disk: DiskId,
    pub size: ByteLen,
    pub cycle: CycleNo,
    /// The point that the cycle follows.
    pub follows: Option<PointId>,
    /// Whether the whole disk is shipped.
    pub whole: bool,
    /// When that was asked for, if it was.
    pub asked_unix_ns: Option<u64>,
}

/// The segments of a cycle that has no point yet.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    of: KeptFor,
    /// Those of attempts before this one, in the order of a point's list.
    before: Vec<SegmentRef>,
    /// Open once there is something to note.
    file: Mutex<Option<File>>,
}

impl Kept {
    /// What attempts before this one have left for the same cycle; what is for something else is forgotten.
    pub fn load(state_dir: &Path, of: KeptFor) -> Self {
        let path = state_dir.join(FILE);
        let before = match read(&path, &of) {
            Ok(Some(segments)) => segments,
            Ok(None) => vec![],
            Err(e) => {
                tracing::warn!("{}: {e}: what was shipped before ships again", path.display());
                vec![]
            }
        };
        if before.is_empty() {
            forget(state_dir);
        }
        Self { path, of, before, file: Mutex::default() }
    }

    /// Notes a segment that was put and proven. If that cannot be noted, it ships again after a failure, no more.
    pub fn note(&self, segment: &SegmentRef) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = (|| {
            let file = match &mut *file {
                Some(file) => file,
                None => file.insert(self.open()?),
            };
            line(file, segment)
        })();
        if let Err(e) = noted {
            tracing::debug!("{}: {e}", self.path.display());
        }
    }

    fn open(&self) -> io::Result<File> {
        let mut file =
            OpenOptions::new().append(true).create(true).mode(PRIVATE).open(&self.path)?;
        if file.metadata()?.len() == 0 {
            line(&mut file, &self.of)?;
        }
        Ok(file)
    }

    /// Forgets what this attempt has put: it is removed.
    pub fn forget_attempt(&self) {
        let mut bytes = vec![];
        let written = line(&mut bytes, &self.of)
            .and_then(|()| self.before.iter().try_for_each(|segment| line(&mut bytes, segment)))
            .and_then(|()| atomic::replace(&self.path, &bytes, Durability::Relaxed));
        if let (Err(e), Some(state_dir)) = (written, self.path.parent()) {
            tracing::debug!("{}: {e}", self.path.display());
            forget(state_dir);
        }
    }
}

/// Nothing that was put is of use any more.
pub(super) fn forget(state_dir: &Path) {
    super::resync::remove(&state_dir.join(FILE));
}

/// Whether what was put is of use to the next attempt after an error.
pub(super) enum Worth {
    /// All of it.
    All,
    /// What attempts before this one have put: what this one did makes room.
    Before,
    /// Nothing.
    Nothing,
}

impl Worth {
    pub fn after(error: &CycleError) -> Self {
        match error {
            CycleError::Vault(VaultError::Full { .. }) => Self::Before,
            CycleError::Vault(
                VaultError::Missed { .. }
                | VaultError::Lost { .. }
                | VaultError::Fenced { .. }
                | VaultError::LostRace(_),
            ) => Self::Nothing,
            e if e.is_damage() => Self::Nothing,
            _ => Self::All,
        }
    }
}

/// Writes a line. It begins with the newline: one that was torn does not spoil the next.
fn line(to: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut bytes = vec![b'\n'];
    serde_json::to_writer(&mut bytes, what)?;
    to.write_all(&bytes)
}

/// The segments in a file, if they are for what is wanted: attempts one after the other, each by number.
fn read(path: &Path, wanted: &KeptFor) -> io::Result<Option<Vec<SegmentRef>>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut lines = BufReader::new(file).split(b'\n');
    let head = lines.by_ref().find(|line| line.as_ref().is_ok_and(|line| !line.is_empty()));
    let head: Option<KeptFor> = head.and_then(|line| serde_json::from_slice(&line.ok()?).ok());
    if head.as_ref() != Some(wanted) {
        return Ok(None);
    }
    let (mut attempts, mut segments) = (BTreeMap::new(), BTreeMap::new());
    for line in lines {
        // One that was torn by a power loss.
        let Ok(segment) = serde_json::from_slice::<SegmentRef>(&line?) else { continue };
        if segment.cycle == wanted.cycle {
            let order = attempts.len();
            let order = *attempts.entry(segment.attempt).or_insert(order);
            segments.insert((order, segment.number), segment);
        }
    }
    Ok(Some(segments.into_values().collect()))
}

impl Run<'_> {
    /// Whether an attempt before this one left something.
    pub(super) fn has_kept(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| !kept.before.is_empty())
    }

    /// Ships a closed epoch, or the whole disk, but for what attempts before this one have put and the disk still
    /// holds. Where `onto` is given, what has to move is compared with that point, too.
    pub(super) fn pass_kept(
        &mut self,
        cut: &CutReply,
        scope: Scope,
        onto: Option<&Manifest>,
    ) -> Result<Vec<Pass>, CycleError> {
        let size = self.source.size;
        let scope = self.scope(cut, scope)?;
        let before = self.kept.as_ref().map_or(&[][..], |kept| &kept.before);
        let Resumed { mut passes, cover, segments } = self.read_kept(before)?;
        tracing::info!(
            "disk {}: {} segments that were put before are used again",
            self.source.disk,
            segments.len()
        );
        // What has to move and nothing stands for; with a point below, that stands for the rest.
        let mut left = SectorSet::new();
        if onto.is_none() {
            let runs = scope.runs().flat_map(|run| cover.runs_within(run, false));
            insert_all(&mut left, runs);
        }
        let mut compared_with = scope;
        insert_all(&mut compared_with, cover.runs());
        let point = self.as_point(onto, segments);
        let disk = self.compared()?;
        let mut comparison =
            Comparison::new(self.job.vault, &point, 0, false)?.within(compared_with);
        let threads = self.job.ship.compress_threads();
        let (count, stop) = (Count::new(self.job.progress, Stage::Fuzzy, size.0), self.job.stop);
        let mut work = self.work()?;
        let noting = self.noting();
        let went = |bytes| count.went(bytes);
        let beside = Beside { put: &noting, went: &went, ..Beside::default() };
        let shipped = ship_beside(self.shipment(), beside, |feed| {
            let side = Side { disk: &disk, feed, count: &count, stop };
            while comparison.step(&side, threads, u64::MAX)? {}
            work.dirty(&left, feed, None)
        });
        drop(noting);
        self.put.extend_from_slice(&shipped.segments);
        shipped.result?;
        let mut must_move = disk.take_differs();
        insert_all(&mut must_move, left.runs());
        passes.push(Pass { must_move, segments: shipped.segments });
        Ok(passes)
    }

    /// Reads the indexes of kept segments; leaves out what the vault does not have whole.
    fn read_kept(&self, before: &[SegmentRef]) -> Result<Resumed, CycleError> {
        let mut resumed = Resumed::default();
        let mut held = 0;
        for segment in before {
            let index = match read_index(self.job.vault, self.vault_disk, self.source.size, segment)
            {
                Err(e) if e.is_loss() => {
                    tracing::warn!("disk {}: {e}: it ships again", self.source.disk);
                    continue;
                }
                index => index?,
            };
            let ranges: Vec<SectorRange> = index.extents.iter().map(|e| e.range).collect();
            held += ranges.iter().map(|range| range.sectors()).sum::<u64>();
            resumed.push(*segment, &ranges);
        }
        if held > resumed.cover.count() * WASTE {
            tracing::info!("disk {}: what was put before is outdated", self.source.disk);
            return Ok(Resumed::default());
        }
        Ok(resumed)
    }

    /// Segments as a point that a disk can be compared with, over another one if that is given.
    fn as_point(&self, onto: Option<&Manifest>, kept: Vec<SegmentRef>) -> Manifest {
        let below = onto.map_or(&[][..], |point| &point.segments);
        Manifest {
            disk: self.vault_disk,
            size: self.source.size,
            point: PointId::random(),
            // None of its segments is its own.
            cycle: self.cycle.next(),
            term: Term(1),
            predecessor: None,
            kind: CycleKind::Delta,
            consistency: Consistency::Crash,
            cut_unix_ns: 0,
            committed_unix_ns: 0,
            written: ByteLen(0),
            moved_sectors: 0,
            moved_digest: SectorSet::new().digest(),
            segments: below.iter().copied().chain(kept).collect(),
        }
    }

    /// What notes a segment that was put.
    pub(super) fn noting(&self) -> impl Fn(&SegmentRef) + Sync {
        let kept = self.kept.as_ref();
        move |segment| {
            if let Some(kept) = kept {
                kept.note(segment);
            }
        }
    }
}

fn insert_all(set: &mut SectorSet, runs: impl Iterator<Item = SectorRange>) {
    runs.for_each(|run| {
        set.insert(run);
    });
}

/// What is left of attempts before.
#[derive(Default)]
struct Resumed {
    /// In passes whose segments do not overlap.
    passes: Vec<Pass>,
    /// All sectors that they hold.
    cover: SectorSet,
    segments: Vec<SegmentRef>,
}

impl Resumed {
    fn push(&mut self, segment: SegmentRef, ranges: &[SectorRange]) {
        let fits = |pass: &&mut Pass| {
            ranges.iter().all(|range| pass.must_move.runs_within(*range, true).is_empty())
        };
        let pass = match self.passes.last_mut().filter(fits) {
            Some(pass) => pass,
            None => {
                self.passes.push(Pass { must_move: SectorSet::new(), segments: vec![] });
                let last = self.passes.len() - 1;
                &mut self.passes[last]
            }
        };
        for range in ranges {
            pass.must_move.insert(*range);
            self.cover.insert(*range);
        }
        pass.segments.push(segment);
        self.segments.push(segment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_vault::Bounds;

    fn wanted() -> KeptFor {
        KeptFor {
            vault: Some(Uuid::from_bytes([1; 16])),
            vault_disk: DiskId::from_bytes([2; 16]),
            disk: DiskId::from_bytes([3; 16]),
            size: ByteLen(1 << 20),
            cycle: CycleNo(4),
            follows: None,
            whole: true,
            asked_unix_ns: None,
        }
    }

    fn segment(attempt: u64, number: u32) -> SegmentRef {
        SegmentRef {
            cycle: CycleNo(4),
            attempt,
            number,
            object: ByteLen(9),
            data_sectors: 1,
            zero_sectors: 0,
            bounds: Bounds::default(),
            index_digest: [7; 32],
        }
    }

    #[test]
    fn lines_are_kept_in_the_order_of_a_points_list() {
        let dir = tempfile::tempdir().unwrap();
        let first = Kept::load(dir.path(), wanted());
        for (attempt, number) in [(9, 1), (9, 0), (9, 2)] {
            first.note(&segment(attempt, number));
        }
        // Torn, as by a power loss.
        let path = dir.path().join(FILE);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"\n{\"cycle\":4,\"att").unwrap();
        let second = Kept::load(dir.path(), wanted());
        second.note(&segment(5, 0));
        let names = |kept: &Kept| -> Vec<_> {
            kept.before.iter().map(|segment| (segment.attempt, segment.number)).collect()
        };
        assert_eq!(names(&second), [(9, 0), (9, 1), (9, 2)]);
        let third = Kept::load(dir.path(), wanted());
        assert_eq!(names(&third), [(9, 0), (9, 1), (9, 2), (5, 0)]);
        third.note(&segment(6, 0));
        third.forget_attempt();
        assert_eq!(names(&Kept::load(dir.path(), wanted())), names(&third));
        let other = KeptFor { cycle: CycleNo(5), ..wanted() };
        assert!(Kept::load(dir.path(), other).before.is_empty());
        assert!(!path.exists(), "what is for another cycle is forgotten");
    }
}
