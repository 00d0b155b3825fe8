//! A disk with a history in a vault, and a replica of it on a target that forgets what was not synced.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use backstay_recovery::replica::record::TargetRecord;
use backstay_recovery::replica::{
    Ground, Limits, Moved, PointRef, Replica, ReplicaError, ReplicaRecord, ReplicaState, Seam,
    Seed, Target, Watch,
};
use backstay_track::Backing;
use backstay_types::{ByteLen, ByteOffset, CycleNo, SectorRange, Term};
use backstay_vault::{Claim, Manifest, Pass, PointMeta, TermFrom, Vault, verify_cycle};
use fastrand::Rng;

use crate::common::history::History;

pub static NEVER: AtomicBool = AtomicBool::new(false);

/// A seed for random tests: always the same but in the long form; printed.
pub fn seed(fixed: u64) -> u64 {
    let told = std::env::var("BACKSTAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let long = std::env::var_os("BACKSTAY_TEST_LONG").map(|_| fastrand::u64(..));
    let seed = told.or(long).unwrap_or(fixed);
    println!("BACKSTAY_SEED={seed}");
    seed
}

/// A device in memory. What was written since the last sync is there or not after a power loss, sector
/// by sector.
#[derive(Clone)]
pub struct Volatile(Arc<Mutex<Content>>);

struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Writes until it has no room any more.
    room: u64,
    written: u64,
}

impl Volatile {
    pub fn new(size: u64, fill: u8) -> Self {
        let now = vec![fill; size as usize];
        let durable = now.clone();
        Self(Arc::new(Mutex::new(Content { now, durable, room: u64::MAX, written: 0 })))
    }

    pub fn bytes(&self, size: ByteLen) -> Vec<u8> {
        self.0.lock().unwrap().now[..size.0 as usize].to_vec()
    }

    pub fn set(&self, at: usize, bytes: &[u8]) {
        let mut content = self.0.lock().unwrap();
        content.now[at..at + bytes.len()].copy_from_slice(bytes);
        content.durable[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.0.lock().unwrap().written
    }

    pub fn lose_power(&self, rng: &mut Rng) {
        let Content { now, durable, .. } = &mut *self.0.lock().unwrap();
        for (now, durable) in now.chunks_mut(512).zip(durable.chunks_mut(512)) {
            match rng.bool() {
                true => now.copy_from_slice(durable),
                false => durable.copy_from_slice(now),
            }
        }
    }

    fn change(&self, offset: ByteOffset, len: u64, with: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let mut content = self.0.lock().unwrap();
        content.room = content
            .room
            .checked_sub(len)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        content.written += len;
        with(&mut content.now[offset.0 as usize..(offset.0 + len) as usize]);
        Ok(())
    }
}

impl Backing for Volatile {
    fn size(&self) -> ByteLen {
        ByteLen(self.0.lock().unwrap().now.len() as u64)
    }
    fn grow(&self, to: ByteLen) -> io::Result<()> {
        if to > self.size() { Err(io::Error::other("too small")) } else { Ok(()) }
    }
    fn read_at(&self, buf: &mut [u8], offset: ByteOffset) -> io::Result<()> {
        let at = offset.0 as usize;
        buf.copy_from_slice(&self.0.lock().unwrap().now[at..at + buf.len()]);
        Ok(())
    }
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        self.change(offset, data.len() as u64, |bytes| bytes.copy_from_slice(data))
    }
    fn punch(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.change(offset, len.0, |bytes| bytes.fill(0))
    }
    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.punch(offset, len)
    }
    fn sync(&self) -> io::Result<()> {
        let Content { now, durable, .. } = &mut *self.0.lock().unwrap();
        durable.copy_from_slice(now);
        Ok(())
    }
    fn mtime_unix_ns(&self) -> io::Result<u64> {
        Ok(0)
    }
}

impl Ground for Volatile {}

/// Everything that lasts of a replica: its folder and its target.
pub struct Host {
    pub dir: PathBuf,
    pub target: Volatile,
    pub first: ReplicaRecord,
    pub log: ByteLen,
    pub stretch: u64,
    _keep: tempfile::TempDir,
}

impl Host {
    /// A host whose replica will be compared with, or filled from, a point.
    pub fn new(history: &History, point: &Manifest, how: Seed, room: u64) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let target = TargetRecord { path: "memory".into(), identity: String::new(), device: true };
        let first = ReplicaRecord {
            replica: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
            disk: history.disk,
            name: "lab".parse().unwrap(),
            vault: "steps".into(),
            target,
            standing: ReplicaState::Seeding { to: point.into(), how, seen: 0 },
        };
        Self {
            dir: keep.path().into(),
            target: Volatile::new(room, 0xEE),
            first,
            log: ByteLen(1 << 30),
            stretch: u64::MAX,
            _keep: keep,
        }
    }

    pub fn record(&self) -> ReplicaRecord {
        ReplicaRecord::load(&self.dir).unwrap().unwrap_or_else(|| self.first.clone())
    }

    /// Starts the replica as after a boot.
    pub fn start(&self, seam: Seam) -> Replica {
        let limits = Limits { log: self.log, stretch_sectors: self.stretch, threads: 2, seam };
        let ground = Box::new(self.target.clone());
        let target = Target::of(ground, "memory".into(), true);
        Replica::with(self.dir.clone(), self.record(), target, limits, None).unwrap()
    }

    pub fn bring(&self, vault: &Vault, to: &Manifest, seam: Seam) -> Result<Moved, ReplicaError> {
        let watch = Watch { progress: &|_, _, _| {}, stop: &NEVER };
        self.start(seam).bring_to(vault, to, watch)
    }

    /// The same with another whole host: its folder and target as they are now.
    pub fn copy(&self) -> Self {
        let keep = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&self.dir).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), keep.path().join(entry.file_name())).unwrap();
        }
        let target = Volatile::new(self.target.size().0, 0);
        target.set(0, &self.target.bytes(self.target.size()));
        Self {
            dir: keep.path().into(),
            target,
            first: self.first.clone(),
            log: self.log,
            stretch: self.stretch,
            _keep: keep,
        }
    }

    /// That the target is a point, whole.
    #[track_caller]
    pub fn is_at(&self, history: &History, point: &PointRef, what: &str) {
        let image = &history.images[&point.cycle.0];
        assert!(
            self.target.bytes(point.size_bytes) == **image,
            "{what}: the target is not point {}",
            point.cycle
        );
    }
}

/// A seam that fails at the n-th step (from 1); counts them in any case.
pub fn failing(at: u64) -> (Seam, Arc<Mutex<Vec<&'static str>>>) {
    let steps: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let seen = Arc::clone(&steps);
    let seam = Seam::with(move |step| {
        let mut seen = seen.lock().unwrap();
        seen.push(step);
        match seen.len() as u64 == at {
            true => Err(io::Error::other("killed")),
            false => Ok(()),
        }
    });
    (seam, steps)
}

/// Changes a run of a disk and commits it as the next point.
pub fn rewrite(
    history: &mut History,
    vault: &Vault,
    rng: &mut Rng,
    runs: &[SectorRange],
) -> Manifest {
    crate::common::rewrite(rng, &mut history.now, runs);
    let before = history.newest(vault).unwrap();
    history.commit(vault, before.as_ref(), runs).unwrap()
}

/// A failover to a point that need not be the newest: the first point of the next term, over that one.
pub fn fail_over(
    history: &mut History,
    vault: &Vault,
    from: &Manifest,
    runs: &[SectorRange],
    rng: &mut Rng,
) -> Manifest {
    let after = vault.newest_term(history.disk).unwrap().unwrap().term;
    let (term, went_on) =
        (after.next(), TermFrom { cycle: from.cycle, point: from.point, term: from.term });
    vault.hold_from(history.disk, term, &went_on).unwrap();
    let claim = Claim { after, writer: format!("writer {term}"), from: went_on };
    vault.take_term(history.disk, &claim).unwrap();
    history.now = history.images[&from.cycle.0].to_vec();
    crate::common::rewrite(rng, &mut history.now, runs);
    let newest = history.newest(vault).unwrap().unwrap();
    let meta = PointMeta {
        term,
        base: backstay_vault::Base::Older(from.clone()),
        ..crate::common::meta(Some(&newest))
    };
    let point = put(history, vault, newest.cycle.next(), runs, meta);
    vault.release_from(history.disk, term).unwrap();
    point
}

/// The next point of a term.
pub fn go_on(
    history: &mut History,
    vault: &Vault,
    term: Term,
    runs: &[SectorRange],
    rng: &mut Rng,
) -> Manifest {
    crate::common::rewrite(rng, &mut history.now, runs);
    let newest = history.newest(vault).unwrap().unwrap();
    let meta = PointMeta { term, ..crate::common::meta(Some(&newest)) };
    put(history, vault, newest.cycle.next(), runs, meta)
}

fn put(
    history: &mut History,
    vault: &Vault,
    cycle: CycleNo,
    runs: &[SectorRange],
    meta: PointMeta,
) -> Manifest {
    let segments = crate::common::ship(vault, history.disk, cycle, &history.now, runs).unwrap();
    let pass = Pass { must_move: crate::common::set(runs), segments };
    let verified = verify_cycle(vault, history.disk, history.size, cycle, vec![pass]).unwrap();
    let point = vault.commit(verified, meta).unwrap();
    history.images.insert(cycle.0, Arc::new(history.now.clone()));
    point
}

/// The first point of a disk, shipped as the sidecar does it: whole chunks, with their checksums.
pub fn first_in_frames(history: &mut History, vault: &Vault) -> Manifest {
    let whole = SectorRange::whole(history.size);
    let cycle = CycleNo(1);
    let segments =
        crate::common::ship_in(vault, history.disk, cycle, &history.now, &[whole], 512).unwrap();
    let pass = Pass { must_move: crate::common::set(&[whole]), segments };
    let verified = verify_cycle(vault, history.disk, history.size, cycle, vec![pass]).unwrap();
    let point = vault.commit(verified, crate::common::meta(None)).unwrap();
    history.images.insert(1, Arc::new(history.now.clone()));
    point
}

/// Flips a bit of a file.
pub fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}
