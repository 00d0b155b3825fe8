//! Names of disks: unique, found, given back; by many writers at once, and after a kill at any step.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use backstay_types::{ByteLen, Classified, DiskId, DiskName};
use backstay_vault::{DiskRecord, Vault, VaultError, Vaults};
use common::{At, Steps, record};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, memory::InMemory,
};

fn name(text: &str) -> DiskName {
    text.parse().unwrap()
}

/// A new disk as a first cycle makes it.
fn add(vault: &Vault, text: &str) -> DiskId {
    let disk = DiskId::random();
    vault.claim_name(&name(text), disk).unwrap();
    vault
        .create_disk(&backstay_vault::DiskRecord { name: name(text), ..record(disk, ByteLen(1)) })
        .unwrap();
    disk
}

fn vault() -> (tempfile::TempDir, Vault) {
    let dir = tempfile::tempdir().unwrap();
    let vault = Vaults::default().create(dir.path().to_str().unwrap()).unwrap();
    (dir, vault)
}

fn names(vault: &Vault) -> Vec<(String, DiskId)> {
    vault.disks().unwrap().into_iter().map(|disk| (disk.name.into(), disk.disk)).collect()
}

#[test]
fn a_renamed_disk_is_found_by_its_new_name() {
    let (_dir, vault) = vault();
    let (a, b) = (add(&vault, "a"), add(&vault, "b"));
    assert_eq!(vault.disk_named(&name("a")).unwrap().disk, a);
    assert!(matches!(vault.rename_disk(a, &name("b")), Err(VaultError::NameTaken { .. })));
    for to in ["c", "d", "c"] {
        vault.rename_disk(a, &name(to)).unwrap();
        vault.rename_disk(a, &name(to)).unwrap();
        let found = vault.disk_named(&name(to)).unwrap();
        assert_eq!((found.disk, found.name), (a, name(to)));
        assert_eq!(names(&vault), [("b".into(), b), (to.into(), a)]);
    }
    // Old names say where the disk has gone to, over all steps.
    for old in ["a", "d"] {
        match vault.disk_named(&name(old)).unwrap_err() {
            VaultError::Renamed { to, .. } => assert_eq!(to, name("c"), "{old}"),
            other => panic!("{other}"),
        }
    }
    assert!(matches!(vault.disk_named(&name("never")), Err(VaultError::NotFound { .. })));
    assert!(vault.had_name(a, &name("d")).unwrap() && vault.had_name(a, &name("c")).unwrap());
    assert!(!vault.had_name(b, &name("d")).unwrap() && !vault.had_name(a, &name("x")).unwrap());
    // A name that was given back may be taken: by another disk, or by its own again.
    vault.rename_disk(b, &name("a")).unwrap();
    assert_eq!(vault.disk_named(&name("a")).unwrap().disk, b);
    assert!(matches!(vault.rename_disk(a, &name("a")), Err(VaultError::NameTaken { .. })));
    assert_eq!(names(&vault), [("a".into(), b), ("c".into(), a)]);
}

/// A record is put before all else that a disk has, and goes after it. Without it, a disk that has a history is damaged, and
/// is not one that was never finished: its name is not free, and by its identity its points are found.
#[test]
fn a_record_that_is_gone_is_damage() {
    let (dir, vault) = vault();
    let mut history = common::history::History::new(&vault, 1 << 20, 1);
    let disk = history.disk;
    vault.claim_name(&name("db"), disk).unwrap();
    let folder = dir.path().join(format!("disks/{disk}"));
    let lose = || std::fs::remove_file(folder.join("disk.json")).unwrap();
    let by_id = |vault: &Vault| vault.disk_named(&name(&disk.to_string()));
    let begun = DiskId::random();
    vault.claim_name(&name("begun"), begun).unwrap();
    assert!(matches!(vault.disk(begun), Err(VaultError::NotFound { .. })), "never finished");
    history.cycle(&vault, &mut fastrand::Rng::with_seed(1)).unwrap();
    lose();
    let is_damage = |e: VaultError| {
        assert!(e.is_damage() && e.damaged_document().is_some(), "{e}");
        assert!(e.to_string().contains("disk.json"), "{e}");
    };
    is_damage(vault.disk(disk).unwrap_err());
    is_damage(vault.disk_named(&name("db")).unwrap_err());
    is_damage(vault.claim_name(&name("db"), DiskId::random()).unwrap_err());
    let (disks, damaged) = vault.list_disks().unwrap();
    assert!(disks.is_empty() && damaged.len() == 1, "{disks:?} {damaged:?}");
    assert_eq!((damaged[0].disk, damaged[0].name.clone()), (Some(disk), Some(name("db"))));
    let found = by_id(&vault).unwrap();
    assert_eq!((found.disk, found.size_bytes), (disk, ByteLen(1 << 20)));
    // A ledger alone says that there was a record.
    std::fs::remove_dir_all(folder.join("points")).unwrap();
    std::fs::create_dir_all(folder.join("ledger")).unwrap();
    std::fs::write(folder.join("ledger").join(format!("{:020}", 1)), b"").unwrap();
    is_damage(vault.disk(disk).unwrap_err());
}

/// An import takes its term before it puts its record; killed in between it is one that was never finished.
#[test]
fn a_term_may_come_before_the_record() {
    let (_dir, vault) = vault();
    let (killed, disk) = (DiskId::random(), DiskId::random());
    for begun in [killed, disk] {
        vault.claim_name(&name("db"), begun).unwrap();
        vault.term_or_first(begun, "import").unwrap();
    }
    assert!(matches!(vault.disk(killed), Err(VaultError::NotFound { .. })));
    let record = DiskRecord {
        disk,
        name: name("db"),
        size_bytes: ByteLen(1 << 20),
        sector_bytes: 512,
        created_unix_ns: 1,
    };
    vault.found_disk(&record).unwrap();
    assert_eq!(vault.disk_named(&name("db")).unwrap().disk, disk);
    assert!(vault.list_disks().unwrap().1.is_empty());
}

#[test]
fn of_many_who_want_a_name_one_gets_it() {
    let (_dir, vault) = vault();
    let disks: Vec<DiskId> = (0..6).map(|n| add(&vault, &format!("disk{n}"))).collect();
    let results: Vec<_> = std::thread::scope(|scope| {
        let rename = |disk: DiskId| vault.rename_disk(disk, &name("db"));
        let all: Vec<_> = disks.iter().map(|&disk| scope.spawn(move || rename(disk))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let won: Vec<_> = (0..6).filter(|&n| results[n].is_ok()).collect();
    assert_eq!(won.len(), 1, "{results:?}");
    assert_eq!(vault.disk_named(&name("db")).unwrap().disk, disks[won[0]]);
    for (n, result) in results.iter().enumerate().filter(|(n, _)| *n != won[0]) {
        assert!(matches!(result, Err(VaultError::NameTaken { .. })), "{result:?}");
        assert_eq!(vault.disk_named(&name(&format!("disk{n}"))).unwrap().disk, disks[n]);
    }
}

/// A first cycle that was killed after it took the name and before it made the disk's record.
#[test]
fn a_name_without_a_disk_is_free() {
    let (_dir, vault) = vault();
    let killed = DiskId::random();
    vault.claim_name(&name("a"), killed).unwrap();
    vault.claim_name(&name("a"), killed).unwrap();
    assert!(vault.disk_named(&name("a")).is_err());
    let other = add(&vault, "a");
    assert_eq!(vault.disk_named(&name("a")).unwrap().disk, other);
    assert!(matches!(vault.claim_name(&name("a"), killed), Err(VaultError::NameTaken { .. })));
}

/// Disks of a vault that was made before there were documents of names.
#[test]
fn older_vaults_are_looked_through() {
    let vault = Vaults::default().on_store("memory", Arc::new(InMemory::new())).unwrap();
    let disk = DiskId::random();
    let old = backstay_vault::DiskRecord { name: name("old"), ..record(disk, ByteLen(1)) };
    vault.create_disk(&old).unwrap();
    assert_eq!(vault.disk_named(&name("old")).unwrap(), old);
    let taken = vault.claim_name(&name("old"), DiskId::random());
    assert!(matches!(taken, Err(VaultError::NameTaken { .. })));
    vault.claim_name(&name("old"), disk).unwrap();
    let other = add(&vault, "other");
    vault.rename_disk(disk, &name("new")).unwrap();
    assert_eq!(vault.disk_named(&name("new")).unwrap().disk, disk);
    assert!(matches!(vault.disk_named(&name("old")), Err(VaultError::Renamed { .. })));
    assert_eq!(names(&vault), [("new".into(), disk), ("other".into(), other)]);
    vault.rename_disk(other, &name("old")).unwrap();
    assert_eq!(vault.disk_named(&name("old")).unwrap().disk, other);
}

/// Two found a disk under one name, the second as a whole at any one step of the first: one gets it, and the vault
/// has nothing of the other.
#[test]
fn of_two_who_found_a_disk_one_gets_the_name_at_every_step() {
    let record = |disk: DiskId| DiskRecord { name: name("db"), ..record(disk, ByteLen(1)) };
    let mut won_by = [0, 0];
    for step in 0.. {
        let (dir, whole) = vault();
        let (first, second) = (DiskId::random(), DiskId::random());
        let answer = Arc::new(Mutex::new(None));
        let meanwhile = {
            let (whole, answer, record) = (whole.clone(), Arc::clone(&answer), record(second));
            move || *answer.lock().unwrap() = Some(whole.found_disk(&record))
        };
        let steps = Steps::on(dir.path(), At::Meanwhile(step, Box::new(meanwhile)));
        let stepped = Vaults::default().on_store("steps", Arc::new(steps.clone())).unwrap();
        let ours = stepped.found_disk(&record(first));
        let Some(theirs) = answer.lock().unwrap().take() else { break };
        for lost in [&ours, &theirs].into_iter().filter_map(|result| result.as_ref().err()) {
            assert!(matches!(lost, VaultError::NameTaken { .. }), "step {step}: {lost}");
        }
        assert!(ours.is_ok() != theirs.is_ok(), "step {step}: {ours:?} {theirs:?}");
        let (winner, loser) = if ours.is_ok() { (first, second) } else { (second, first) };
        won_by[usize::from(winner == second)] += 1;
        assert_eq!(whole.disk_named(&name("db")).unwrap().disk, winner, "step {step}");
        assert!(matches!(whole.disk(loser), Err(VaultError::NotFound { .. })), "step {step}");
        assert_eq!(names(&whole), [("db".into(), winner)], "step {step}");
        let late = whole.found_disk(&record(DiskId::random()));
        assert!(matches!(late, Err(VaultError::NameTaken { .. })), "step {step}");
    }
    assert!(won_by[0] > 1 && won_by[1] > 1, "{won_by:?}");
}

/// The second is killed at its n-th change, as a whole at any one step of the first: the first gets it, or is told
/// that the second has it; and if nobody has it, who asks next gets it.
#[test]
fn a_claimant_that_is_killed_takes_no_name_away() {
    let record = |disk: DiskId| DiskRecord { name: name("db"), ..record(disk, ByteLen(1)) };
    for step in [0, 2, 4, 6, 8, 10, 12, 14] {
        for change in 0..3 {
            let (dir, whole) = vault();
            let (first, second) = (DiskId::random(), DiskId::random());
            let meanwhile = {
                let dying = Steps::on(dir.path(), At::DieAfter(change));
                let dying = Vaults::default().on_store("dying", Arc::new(dying)).unwrap();
                let record = record(second);
                move || drop(dying.found_disk(&record))
            };
            let steps = Steps::on(dir.path(), At::Meanwhile(step, Box::new(meanwhile)));
            let stepped = Vaults::default().on_store("steps", Arc::new(steps)).unwrap();
            let ours = stepped.found_disk(&record(first));
            let here = whole.disk_named(&name("db")).map(|disk| disk.disk);
            match ours {
                Ok(()) => assert_eq!(here.unwrap(), first, "step {step}, change {change}"),
                Err(VaultError::NameTaken { disk, .. }) => {
                    assert_eq!(disk, second);
                    assert_eq!(here.unwrap(), second, "step {step}, change {change}");
                }
                Err(e) => panic!("step {step}, change {change}: {e}"),
            }
        }
    }
}

/// At a barrier, in a directory.
#[test]
fn of_many_threads_that_found_a_disk_one_gets_the_name() {
    for _ in 0..30 {
        let (_dir, vault) = vault();
        let start = Barrier::new(4);
        let found = |disk: DiskId| {
            start.wait();
            vault.found_disk(&DiskRecord { name: name("db"), ..record(disk, ByteLen(1)) })
        };
        let disks = [(); 4].map(|()| DiskId::random());
        let results: Vec<_> = std::thread::scope(|scope| {
            let all: Vec<_> =
                disks.map(|disk| scope.spawn(move || found(disk))).into_iter().collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let won: Vec<_> = (0..4).filter(|&n| results[n].is_ok()).collect();
        // All may have stood in each other's way; never do two have it.
        assert!(won.len() <= 1, "{results:?}");
        match won.first() {
            Some(&won) => assert_eq!(names(&vault), [("db".into(), disks[won])], "{results:?}"),
            None => vault
                .found_disk(&DiskRecord { name: name("db"), ..record(disks[0], ByteLen(1)) })
                .unwrap(),
        }
    }
}

/// A store that is gone after so many puts, as a killed process leaves it.
#[derive(Debug)]
struct Killed {
    store: Arc<InMemory>,
    puts_left: AtomicUsize,
}

impl std::fmt::Display for Killed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("killed")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Killed {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let left = self.puts_left.load(Ordering::SeqCst);
        if left == 0 {
            let source = "the process is gone".into();
            return Err(object_store::Error::Generic { store: "killed", source });
        }
        self.puts_left.store(left - 1, Ordering::SeqCst);
        self.store.put_opts(at, payload, options).await
    }
    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(at, options).await
    }
    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.store.get_opts(at, options).await
    }
    fn delete_stream(
        &self,
        at: futures::stream::BoxStream<'static, object_store::Result<Path>>,
    ) -> futures::stream::BoxStream<'static, object_store::Result<Path>> {
        self.store.delete_stream(at)
    }
    fn list(
        &self,
        prefix: Option<&Path>,
    ) -> futures::stream::BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.store.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }
    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

/// Killed after each put: one of the two names finds the disk, no other disk gets one of them by
/// mistake, and the same rename finishes.
#[test]
fn a_rename_that_is_killed_can_be_run_again() {
    for puts in 0..2 {
        let store = Arc::new(InMemory::new());
        let whole = Vaults::default()
            .on_store("memory", Arc::clone(&store) as Arc<dyn ObjectStore>)
            .unwrap();
        let (a, b) = (add(&whole, "a"), add(&whole, "b"));
        let killed = Killed { store: Arc::clone(&store), puts_left: AtomicUsize::new(puts) };
        let dying = Vaults::default().on_store("killed", Arc::new(killed)).unwrap();
        dying.rename_disk(a, &name("c")).expect_err("killed");
        let found: Vec<_> = ["a", "c"]
            .iter()
            .filter_map(|text| whole.disk_named(&name(text)).ok())
            .map(|disk| disk.disk)
            .collect();
        assert!(!found.is_empty() && found.iter().all(|disk| *disk == a), "after {puts} puts");
        let half: Vec<_> = names(&whole).into_iter().filter(|(_, disk)| *disk == a).collect();
        assert_eq!(half.len(), 1, "listed once");
        assert!(whole.rename_disk(b, &name(&half[0].0)).is_err());
        whole.rename_disk(a, &name("c")).unwrap();
        assert_eq!(names(&whole), [("b".into(), b), ("c".into(), a)]);
        assert!(matches!(whole.disk_named(&name("a")), Err(VaultError::Renamed { .. })));
    }
}
