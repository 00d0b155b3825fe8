//! A disk with a history in a vault, an image of every point beside it, and what must hold of both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use backstay_host::clock::trusted::Reading;
use backstay_types::{ByteLen, CycleNo, DiskId, SectorRange};
use backstay_vault::read::{restore, verify_points};
use backstay_vault::retain::{HoldRequest, Policy, Report, Time, maintain};
use backstay_vault::{HoldKind, Manifest, Pass, Vault, VaultError, Vaults, verify_cycle};

use super::{At, Memory, Steps, content, meta, record, rewrite, set, ship};

/// One hour.
pub const HOUR: u64 = 3_600_000_000_000;

/// A disk and an image of each of its points.
#[derive(Clone)]
pub struct History {
    pub disk: DiskId,
    pub size: ByteLen,
    pub now: Vec<u8>,
    pub images: BTreeMap<u64, Arc<Vec<u8>>>,
}

pub fn policy(keep: &str) -> Policy {
    Policy {
        keep: (!keep.is_empty()).then(|| keep.parse().unwrap()),
        thorough: true,
        merge: true,
        segment_bytes: 64 << 10,
        zstd_level: 1,
    }
}

/// The clocks of a maintainer that is trusted, so many nanoseconds after some boot; it remembers nothing.
pub fn time(since_boot_ns: u64) -> Time {
    let unix_ns = (1 << 62) + since_boot_ns;
    let reading = Reading { boot: "boot".into(), since_boot_ns, unix_ns, synchronised: false };
    Time { reading, doubt: None, accepted: false, watched: None }
}

pub fn run(vault: &Vault, disk: DiskId, keep: &str) -> Result<Report, VaultError> {
    maintain(vault, disk, &policy(keep), &time(0), &AtomicBool::new(false))
}

pub fn hold(name: &str, kind: HoldKind, cycles: (u64, u64), until: Option<u64>) -> HoldRequest {
    HoldRequest {
        name: name.parse().unwrap(),
        kind,
        holder: "test".into(),
        reason: "test".into(),
        first_cycle: CycleNo(cycles.0),
        last_cycle: CycleNo(cycles.1),
        until_unix_ns: until,
    }
}

impl History {
    /// A new disk in a vault, without points.
    pub fn new(vault: &Vault, size: u64, seed: u64) -> Self {
        let (disk, size) = (DiskId::random(), ByteLen(size));
        vault.create_disk(&record(disk, size)).unwrap();
        vault.term_or_first(disk, "test").unwrap();
        let now = content(&mut fastrand::Rng::with_seed(seed), size.0);
        Self { disk, size, now, images: BTreeMap::new() }
    }

    /// Changes the disk and commits what changed as the next point.
    pub fn cycle(
        &mut self,
        vault: &Vault,
        rng: &mut fastrand::Rng,
    ) -> Result<Manifest, VaultError> {
        let before = self.newest(vault)?;
        let runs = match before {
            None => vec![SectorRange::whole(self.size)],
            Some(_) => self.churn(rng),
        };
        self.commit(vault, before.as_ref(), &runs)
    }

    pub fn newest(&self, vault: &Vault) -> Result<Option<Manifest>, VaultError> {
        let newest = vault.points(self.disk)?.last().copied();
        newest.map(|cycle| vault.manifest(self.disk, cycle)).transpose()
    }

    /// Changes some runs of the disk, a few of them to zeroes.
    pub fn churn(&mut self, rng: &mut fastrand::Rng) -> Vec<SectorRange> {
        let sectors = SectorRange::whole(self.size).sectors();
        let mut runs = vec![];
        let mut at = rng.u64(..sectors / 4);
        while at < sectors && runs.len() < 4 {
            let end = (at + rng.u64(1..sectors / 16)).min(sectors);
            runs.push(SectorRange::new(at, end));
            at = end + rng.u64(1..sectors / 4);
        }
        rewrite(rng, &mut self.now, &runs);
        runs
    }

    pub fn commit(
        &mut self,
        vault: &Vault,
        before: Option<&Manifest>,
        runs: &[SectorRange],
    ) -> Result<Manifest, VaultError> {
        let cycle = before.map_or(CycleNo(1), |point| point.cycle.next());
        let segments = ship(vault, self.disk, cycle, &self.now, runs)?;
        let pass = Pass { must_move: set(runs), segments };
        let verified = verify_cycle(vault, self.disk, self.size, cycle, vec![pass])?;
        let point = vault.commit(verified, meta(before))?;
        self.images.insert(cycle.0, Arc::new(self.now.clone()));
        Ok(point)
    }

    /// What an attempt that was killed leaves behind.
    pub fn leave_attempt(&self, vault: &Vault, cycle: u64) {
        ship(vault, self.disk, CycleNo(cycle), &self.now, &[SectorRange::new(3, 900)]).unwrap();
    }

    pub fn restored(&self, vault: &Vault, cycle: CycleNo) -> Result<Vec<u8>, VaultError> {
        let point = vault.manifest(self.disk, cycle)?;
        let target = Memory::new(point.size);
        restore(vault, &point, &target, 2, &|_, _| {})?;
        Ok(target.bytes())
    }

    /// Every point there is restores to its image.
    pub fn check(&self, vault: &Vault, what: &str) -> BTreeSet<u64> {
        let points = vault.points(self.disk).unwrap_or_else(|e| panic!("{what}: {e}"));
        for &cycle in &points {
            let image = self.images.get(&cycle.0);
            let image = image.unwrap_or_else(|| panic!("{what}: point {cycle} was never made"));
            let restored = self.restored(vault, cycle);
            let restored = restored.unwrap_or_else(|e| panic!("{what}: point {cycle}: {e}"));
            assert!(restored == **image, "{what}: point {cycle} is another disk");
        }
        verify_points(vault, self.disk, &points, 2, &|_, _| {})
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        points.into_iter().map(|cycle| cycle.0).collect()
    }

    /// Nothing lies about that no point, merge or running cycle may need.
    pub fn check_clean(&self, vault: &Vault, dir: &Path, what: &str) {
        let points = vault.points(self.disk).unwrap();
        let newest = points.last().copied().unwrap_or(CycleNo(0));
        let mut named = BTreeSet::new();
        let mut name = |s: &backstay_vault::SegmentRef| {
            named.insert(format!("{:020}-{:016x}-{}", s.cycle.0, s.attempt, s.number));
        };
        for &cycle in &points {
            vault.manifest(self.disk, cycle).unwrap().segments.iter().for_each(&mut name);
        }
        let ledger = vault.ledger(self.disk).unwrap();
        for merge in ledger.iter().flat_map(|ledger| &ledger.merges) {
            merge.segments.iter().for_each(&mut name);
        }
        for object in objects(&self.folder(dir).join("segments")) {
            let cycle: u64 = object[..20].parse().unwrap();
            assert!(named.contains(&object) || cycle > newest.0, "{what}: {object} is nobody's");
        }
        let there: Vec<u64> =
            objects(&self.folder(dir).join("points")).iter().map(|o| o.parse().unwrap()).collect();
        assert_eq!(there, points.iter().map(|c| c.0).collect::<Vec<_>>(), "{what}");
        // The one that holds, the one before it, and what a kill left until the next one comes.
        assert!(objects(&self.folder(dir).join("ledger")).len() <= 3, "{what}");
    }

    pub fn folder(&self, dir: &Path) -> PathBuf {
        dir.join("disks").join(self.disk.to_string())
    }

    /// Bytes of all segments.
    pub fn stored(&self, dir: &Path) -> u64 {
        let folder = self.folder(dir).join("segments");
        objects(&folder).iter().map(|o| folder.join(o).metadata().unwrap().len()).sum()
    }
}

/// The names in a folder, sorted.
pub fn objects(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            // Objects never change: a second name is as good as a copy.
            std::fs::hard_link(entry.path(), &to).unwrap();
        }
    }
}

/// A vault whose steps are counted.
pub fn stepped(dir: &Path, at: At) -> (Vault, Steps) {
    let steps = Steps::on(dir, at);
    (Vaults::default().on_store("steps", Arc::new(steps.clone())).unwrap(), steps)
}

/// A directory with a vault in it, not on a disk that waits for syncs.
pub fn room() -> (tempfile::TempDir, Vault) {
    let dir = tempfile::tempdir().unwrap();
    let (vault, _) = stepped(dir.path(), At::Nothing);
    (dir, vault)
}
