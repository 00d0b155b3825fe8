//! What the store may do to us: lose an answer, be full, be read-only, hold hostile bytes.
//!
//! The tests that mount a small file system need root and fail without it.

mod common;

use std::ops::Range;
use std::path::Path as FsPath;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backstay_types::{Class, Classified as _};
use backstay_types::{CycleNo, SectorRange};
use backstay_vault::read::verify_point;
use backstay_vault::{Pass, VaultError, Vaults, verify_cycle};
use bytes::Bytes;
use common::{Lab, content, meta, set};
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// A store whose puts of points land, and whose answer is then replaced.
#[derive(Debug)]
struct LostAnswers {
    store: LocalFileSystem,
    armed: Arc<AtomicBool>,
    /// Points cannot be read either.
    deaf: Arc<AtomicBool>,
    answer: fn(&Path) -> Error,
}

impl std::fmt::Display for LostAnswers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LostAnswers")
    }
}

#[async_trait::async_trait]
impl ObjectStore for LostAnswers {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let put = self.store.put_opts(at, payload, options).await?;
        if at.as_ref().contains("/points/") && self.armed.load(Ordering::Relaxed) {
            return Err((self.answer)(at));
        }
        Ok(put)
    }
    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(at, options).await
    }
    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        if at.as_ref().contains("/points/") && self.deaf.load(Ordering::Relaxed) {
            return Err((self.answer)(at));
        }
        self.store.get_opts(at, options).await
    }
    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.store.get_ranges(at, ranges).await
    }
    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

fn commit_with_answer(answer: fn(&Path) -> Error) {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalFileSystem::new_with_prefix(dir.path()).unwrap();
    let armed = Arc::new(AtomicBool::new(false));
    let deaf = Arc::default();
    let store = LostAnswers { store, armed: Arc::clone(&armed), deaf, answer };
    let vault = Vaults::default().on_store("lossy", Arc::new(store)).unwrap();
    let lab = Lab::with(dir, vault, 1 << 20);
    let now = content(&mut fastrand::Rng::with_seed(1), 1 << 20);
    armed.store(true, Ordering::Relaxed);
    let point = lab.cycle(None, &now, &[lab.whole()]).expect("the put was done, so it is ours");
    assert_eq!(lab.vault.manifest(lab.disk, CycleNo(1)).unwrap(), point);
}

#[test]
fn a_commit_whose_answer_was_lost_is_a_commit() {
    commit_with_answer(|_| Error::Generic { store: "test", source: "connection reset".into() });
}

/// A store's client sends a put again when its answer is lost; the second one finds the first.
#[test]
fn a_commit_that_finds_itself_is_a_commit() {
    commit_with_answer(|at| Error::AlreadyExists {
        path: at.to_string(),
        source: "precondition failed".into(),
    });
}

/// A writer that does not know whether it committed cleans up; the point must survive that.
#[test]
fn cleaning_up_never_breaks_a_point() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalFileSystem::new_with_prefix(dir.path()).unwrap();
    let (armed, deaf): (Arc<AtomicBool>, Arc<AtomicBool>) = Default::default();
    let answer = |_: &Path| Error::Generic { store: "test", source: "connection reset".into() };
    let store = LostAnswers { store, armed: Arc::clone(&armed), deaf: Arc::clone(&deaf), answer };
    let vault = Vaults::default().on_store("lossy", Arc::new(store)).unwrap();
    let lab = Lab::with(dir, vault, 1 << 20);
    let now = content(&mut fastrand::Rng::with_seed(1), 1 << 20);
    let failed = lab.ship(1, &now, &[lab.whole()]);
    let segments = lab.ship(1, &now, &[lab.whole()]);
    let pass = Pass { must_move: set(&[lab.whole()]), segments: segments.clone() };
    let verified = verify_cycle(&lab.vault, lab.disk, lab.size, CycleNo(1), vec![pass]).unwrap();
    for flag in [&armed, &deaf] {
        flag.store(true, Ordering::Relaxed);
    }
    lab.vault.commit(verified, meta(None)).unwrap_err();
    // First while it cannot be known whether there is a point, then when it can.
    lab.vault.remove_segments(lab.disk, &segments);
    deaf.store(false, Ordering::Relaxed);
    lab.vault.remove_segments(lab.disk, &segments);
    verify_point(&lab.vault, lab.disk, CycleNo(1), 1, &|_, _| {}).unwrap();
    // Another attempt's segments are nobody's.
    let before = lab.objects().len();
    lab.vault.remove_segments(lab.disk, &failed);
    assert_eq!(lab.objects().len(), before - failed.len());
    assert!(lab.restored(CycleNo(1)).unwrap() == now);
}

/// A tmpfs of a few MiB, unmounted in the end.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        mount(&["-t", "tmpfs", "-o", &options, "backstay-test"], dir.path());
        Self(dir)
    }
    fn path(&self) -> &FsPath {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn mount(arguments: &[&str], at: &FsPath) {
    let done = Command::new("mount").args(arguments).arg(at).status().unwrap();
    assert!(done.success(), "this test mounts a file system: run it as root");
}

#[test]
fn a_full_vault_says_so_and_has_no_point() {
    let small = Mounted::new("3m");
    let url = small.path().join("vault");
    let vault = Vaults::default().create(url.to_str().unwrap()).unwrap();
    let lab = Lab::with(tempfile::tempdir().unwrap(), vault, 8 << 20);
    let mut noise = vec![0; 8 << 20];
    fastrand::Rng::with_seed(1).fill(&mut noise);
    let full = lab.cycle(None, &noise, &[lab.whole()]).unwrap_err();
    assert!(matches!(full, VaultError::Full { .. }), "{full}");
    assert_eq!(full.class(), Class::Retry);
    assert_eq!(lab.vault.points(lab.disk).unwrap(), []);
}

#[test]
fn a_read_only_vault_says_so() {
    let small = Mounted::new("8m");
    let url = small.path().join("vault");
    let vault = Vaults::default().create(url.to_str().unwrap()).unwrap();
    let lab = Lab::with(tempfile::tempdir().unwrap(), vault, 1 << 20);
    mount(&["-o", "remount,ro"], small.path());
    let now = content(&mut fastrand::Rng::with_seed(1), 1 << 20);
    let denied = lab.cycle(None, &now, &[SectorRange::new(0, 8)]).unwrap_err();
    assert!(matches!(denied, VaultError::Denied { .. }), "{denied}");
    // Mounted again for writing, it heals by itself.
    assert_eq!((denied.class(), denied.may_pass()), (Class::Person, true));
    let other = small.path().join("other");
    let denied = Vaults::default().create(other.to_str().unwrap()).err().unwrap();
    assert!(matches!(denied, VaultError::Denied { .. }), "{denied}");
}

#[test]
fn a_new_vault_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("a/b/vault");
    Vaults::default().create(root.to_str().unwrap()).unwrap();
    let mode = std::fs::metadata(&root).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

/// Of two that make a vault at once, one does, and the others are told that it is there.
#[test]
fn one_of_two_makes_a_vault() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("vault");
        let make = || Vaults::default().create(root.to_str().unwrap()).map(|vault| vault.id());
        let made: Vec<_> = std::thread::scope(|scope| {
            let all = [scope.spawn(make), scope.spawn(make), scope.spawn(make)];
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let there = Vaults::default().open(root.to_str().unwrap()).unwrap().id();
        assert_eq!(made.iter().filter(|one| one.is_ok()).count(), 1);
        for one in made {
            match one {
                Ok(made) => assert_eq!(made, there),
                Err(e) => assert!(matches!(e, VaultError::VaultExists { .. }), "{e}"),
            }
        }
    }
}

#[test]
fn other_schemes_and_absent_vaults_are_explained() {
    for url in ["ftp://host/x", "https://host:9443", "relative/path", "file://host/x", ""] {
        assert!(matches!(Vaults::default().create(url), Err(VaultError::Url { .. })), "{url}");
    }
    assert!(matches!(
        Vaults::default().open("/nonexistent/vault"),
        Err(VaultError::NoVault { .. })
    ));
}
