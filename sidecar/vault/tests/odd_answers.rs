//! A store that lies now and then: flips a byte of what is put or read, does not find what is there, lists less than it
//! has, overwrites. None of it may become a fact.

mod common;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use backstay_types::{Classified, CycleNo, SectorRange};
use backstay_vault::format::key::Piece;
use backstay_vault::read::verify_points;
use backstay_vault::retain::{Policy, Report, maintain};
use backstay_vault::{HoldKind, Manifest, VaultError, Vaults};
use bytes::Bytes;
use common::history::{hold, time};
use common::{Lab, content};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

type Choose = Box<dyn FnMut(&str) -> bool + Send>;

/// What is wrong, by the keys it is done to.
#[derive(Default)]
struct Faults {
    flip_put: Option<Choose>,
    flip_get: Option<Choose>,
    not_found: Option<Choose>,
    /// Keys that lists do not show; those that begin after a key, if `all_lists`.
    hidden: Option<Choose>,
    all_lists: bool,
    /// Says that it deleted, and did not.
    keeps: Option<Choose>,
}

fn is(choose: &mut Option<Choose>, key: &str) -> bool {
    choose.as_mut().is_some_and(|choose| choose(key))
}

#[derive(Clone)]
struct Odd {
    store: Arc<InMemory>,
    faults: Arc<Mutex<Faults>>,
}

impl fmt::Debug for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Odd")
    }
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Odd")
    }
}

fn flipped(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 0x20;
    }
    bytes.into()
}

impl Odd {
    fn shown(&self, listed: Result<ObjectMeta>, second: bool) -> Option<Result<ObjectMeta>> {
        let mut faults = self.faults.lock().unwrap();
        let all = faults.all_lists;
        match &listed {
            Ok(meta) if (all || !second) && is(&mut faults.hidden, meta.location.as_ref()) => None,
            _ => Some(listed),
        }
    }
}

#[async_trait::async_trait]
impl ObjectStore for Odd {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let flip = is(&mut self.faults.lock().unwrap().flip_put, at.as_ref());
        let payload = if flip { flipped(&Bytes::from(payload)).into() } else { payload };
        self.store.put_opts(at, payload, options).await
    }
    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(at, options).await
    }
    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let (gone, flip) = {
            let mut faults = self.faults.lock().unwrap();
            (is(&mut faults.not_found, at.as_ref()), is(&mut faults.flip_get, at.as_ref()))
        };
        if gone {
            return Err(Error::NotFound { path: at.to_string(), source: "odd".into() });
        }
        let head = options.head;
        let got = self.store.get_opts(at, options).await?;
        if !flip || head {
            return Ok(got);
        }
        let (meta, range, attributes) =
            (got.meta.clone(), got.range.clone(), got.attributes.clone());
        let bytes = flipped(&got.bytes().await?);
        let payload = futures::stream::once(async move { Ok(bytes) }).boxed();
        Ok(GetResult {
            payload: GetResultPayload::Stream(payload),
            meta,
            range,
            attributes,
            extensions: Default::default(),
        })
    }
    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.store.get_ranges(at, ranges).await
    }
    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete = move |path: Path| {
            let this = this.clone();
            async move {
                if is(&mut this.faults.lock().unwrap().keeps, path.as_ref()) {
                    return Ok(path);
                }
                let one = futures::stream::once(async move { Ok(path) }).boxed();
                this.store.delete_stream(one).try_collect::<Vec<_>>().await?;
                Ok(Path::default())
            }
        };
        paths.and_then(delete).boxed()
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let this = self.clone();
        let shown = move |listed| futures::future::ready(this.shown(listed, false));
        self.store.list(prefix).filter_map(shown).boxed()
    }
    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let this = self.clone();
        let shown = move |listed| futures::future::ready(this.shown(listed, true));
        self.store.list_with_offset(prefix, offset).filter_map(shown).boxed()
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

/// The first time for each key that has one of these in it.
fn once_each(of: &'static [&'static str]) -> Option<Choose> {
    let mut seen = std::collections::HashSet::new();
    Some(Box::new(move |key: &str| {
        of.iter().any(|part| key.contains(part)) && seen.insert(key.to_owned())
    }))
}

fn always(part: &str) -> Option<Choose> {
    let part = part.to_owned();
    Some(Box::new(move |key: &str| key.contains(&part)))
}

struct Room {
    lab: Lab,
    odd: Odd,
    now: Vec<u8>,
    points: Vec<Manifest>,
}

const ALL: &[&str] = &["disk.json", "/terms/", "/segments/", "/points/", "/holds/", "/ledger/"];

impl Room {
    fn new(faults: Faults) -> Self {
        let odd = Odd { store: Arc::default(), faults: Arc::new(Mutex::new(faults)) };
        let vault = Vaults::default().on_store("odd", Arc::new(odd.clone())).unwrap();
        let lab = Lab::with(tempfile::tempdir().unwrap(), vault, 1 << 20);
        let now = content(&mut fastrand::Rng::with_seed(5), 1 << 20);
        Self { lab, odd, now, points: vec![] }
    }

    fn with_points(count: u8) -> Self {
        let mut room = Self::new(Faults::default());
        (0..count).for_each(|_| room.cycle());
        room
    }

    fn cycle(&mut self) {
        let n = self.points.len();
        let runs = match n {
            0 => vec![self.lab.whole()],
            n => vec![SectorRange::new(n as u64 * 16, n as u64 * 16 + 24)],
        };
        if n > 0 {
            for run in &runs {
                let at = run.start.byte_offset().0 as usize;
                self.now[at..at + run.bytes().0 as usize].fill(n as u8);
            }
        }
        self.points.push(self.lab.cycle(self.points.last(), &self.now, &runs).unwrap());
    }

    fn go_wrong(&self, faults: Faults) {
        *self.odd.faults.lock().unwrap() = faults;
    }

    fn prune(&self, keep: &str) -> Result<Report, VaultError> {
        let policy = Policy {
            keep: Some(keep.parse().unwrap()),
            thorough: true,
            merge: false,
            segment_bytes: 1 << 20,
            zstd_level: 1,
        };
        let stop = AtomicBool::new(false);
        maintain(&self.lab.vault, self.lab.disk, &policy, &time(1 << 50), &stop)
    }

    fn cycles(&self) -> Vec<u64> {
        self.lab.vault.points(self.lab.disk).unwrap().into_iter().map(|cycle| cycle.0).collect()
    }

    fn pin(&self, cycle: u64) {
        let pin = hold("p", HoldKind::Pin, (cycle, cycle), None);
        self.lab.vault.hold(self.lab.disk, &pin).unwrap();
    }

    fn is_whole(&self) {
        let cycles: Vec<CycleNo> = self.cycles().into_iter().map(CycleNo).collect();
        verify_points(&self.lab.vault, self.lab.disk, &cycles, 2, &|_, _| {}).unwrap();
        assert_eq!(self.lab.restored(*cycles.last().unwrap()).unwrap(), self.now);
    }
}

#[test]
fn what_arrives_changed_is_put_again_whatever_kind_it_is() {
    let mut room = Room::new(Faults { flip_put: once_each(ALL), ..Faults::default() });
    (0..3).for_each(|_| room.cycle());
    room.pin(1);
    room.prune("last 1").unwrap();
    room.go_wrong(Faults::default());
    assert_eq!(room.cycles(), [1, 3]);
    room.is_whole();
}

#[test]
fn what_always_arrives_changed_is_an_error_that_passes_and_leaves_nothing() {
    let mut room = Room::with_points(1);
    room.go_wrong(Faults { flip_put: always("/points/"), ..Faults::default() });
    let run = [SectorRange::new(0, 8)];
    let failed = room.lab.cycle(room.points.last(), &room.now, &run).unwrap_err();
    assert!(matches!(failed, VaultError::Altered { .. }), "{failed}");
    assert_eq!(failed.class(), backstay_types::Class::Retry);
    room.go_wrong(Faults::default());
    assert_eq!(room.cycles(), [1]);
    room.cycle();
    room.is_whole();
}

#[test]
fn one_flipped_byte_or_one_404_is_read_again() {
    let room = Room::with_points(3);
    room.go_wrong(Faults { flip_get: once_each(ALL), ..Faults::default() });
    room.is_whole();
    room.go_wrong(Faults { not_found: once_each(&["/segments/"]), ..Faults::default() });
    room.is_whole();
}

/// A 404 once for a point or a hold must not cost what it needs.
#[test]
fn one_404_deletes_nothing() {
    let room = Room::with_points(4);
    room.pin(1);
    room.prune("last 2").unwrap();
    let faults = once_each(&["/points/", "/holds/"]);
    room.go_wrong(Faults { not_found: faults, ..Faults::default() });
    room.prune("last 1").unwrap();
    room.go_wrong(Faults::default());
    assert_eq!(room.cycles(), [1, 4]);
    room.is_whole();
}

#[test]
fn a_list_that_lags_hides_no_point() {
    let room = Room::with_points(4);
    let newest = format!("/points/{:020}", 4);
    room.go_wrong(Faults { hidden: always(&newest), all_lists: true, ..Faults::default() });
    assert_eq!(room.cycles(), [1, 2, 3, 4]);
    room.prune("last 2").unwrap();
    room.go_wrong(Faults { hidden: always("/points/"), all_lists: true, ..Faults::default() });
    assert_eq!(room.cycles(), [3, 4], "what the ledger knows");
    room.prune("last 2").unwrap();
    room.go_wrong(Faults::default());
    assert_eq!(room.cycles(), [3, 4]);
    room.is_whole();
    // Without a ledger, by what the disk knows.
    let room = Room::with_points(3);
    room.go_wrong(Faults { hidden: always("/points/"), all_lists: true, ..Faults::default() });
    let newest = room.lab.vault.newest_point(room.lab.disk, Some(CycleNo(2))).unwrap();
    assert_eq!(newest, Some(CycleNo(3)));
}

#[test]
fn a_hold_or_ledger_that_one_list_lacks_holds() {
    let room = Room::with_points(4);
    room.pin(2);
    room.go_wrong(Faults { hidden: always("/holds/"), ..Faults::default() });
    room.prune("last 1").unwrap();
    assert_eq!(room.cycles(), [2, 4]);
    room.go_wrong(Faults { hidden: always("/ledger/"), ..Faults::default() });
    let ledger = room.lab.vault.ledger(room.lab.disk).unwrap();
    assert!(ledger.is_some_and(|ledger| ledger.horizon == CycleNo(4)));
    // A pin that no list shows is none.
    room.go_wrong(Faults { hidden: always("/holds/"), all_lists: true, ..Faults::default() });
    let pin = hold("q", HoldKind::Pin, (4, 4), None);
    let refused = room.lab.vault.hold(room.lab.disk, &pin).unwrap_err();
    assert!(matches!(refused, VaultError::Unfit { .. }), "{refused}");
}

/// I12: a point is not deleted because no list shows what holds it.
#[test]
fn a_pin_that_no_list_shows_keeps_its_point() {
    let room = Room::with_points(4);
    let (vault, disk) = (&room.lab.vault, room.lab.disk);
    room.pin(2);
    let other = hold("q", HoldKind::Pin, (2, 2), None);
    vault.hold(disk, &other).unwrap();
    assert!(vault.release(disk, &other.name).unwrap(), "the other one still holds it");
    for _ in 0..2 {
        room.go_wrong(Faults { hidden: always("/holds/"), all_lists: true, ..Faults::default() });
        let report = room.prune("last 1").unwrap();
        let withheld = report.retired.withheld.expect("a contradiction");
        assert_eq!(withheld.cause, "hold-not-listed");
        assert!(withheld.reason.contains("unpin NAME p --force"), "{}", withheld.reason);
        room.go_wrong(Faults::default());
        assert_eq!(room.cycles(), [2, 4]);
    }
    room.is_whole();
    // Let go of by name, wherever its hold is.
    room.go_wrong(Faults { hidden: always("/holds/"), all_lists: true, ..Faults::default() });
    assert!(vault.unmark_everywhere(disk, &"p".parse().unwrap()).unwrap());
    room.prune("last 1").unwrap();
    room.go_wrong(Faults::default());
    assert_eq!(room.cycles(), [4]);
    // Marks go with their point.
    let keys = futures::executor::block_on(room.odd.store.list(None).try_collect::<Vec<_>>());
    assert!(!keys.unwrap().iter().any(|meta| meta.location.as_ref().contains("/held/")));
}

#[test]
fn a_disk_is_deleted_or_it_is_said_that_it_is_not() {
    let room = Room::with_points(3);
    room.go_wrong(Faults { hidden: always("/points/"), ..Faults::default() });
    room.lab.vault.remove_disk(room.lab.disk).unwrap();
    let keys = futures::executor::block_on(room.odd.store.list(None).try_collect::<Vec<_>>());
    assert_eq!(keys.unwrap().len(), 0);
    let room = Room::with_points(2);
    room.go_wrong(Faults { keeps: always("/points/"), ..Faults::default() });
    let failed = room.lab.vault.remove_disk(room.lab.disk).unwrap_err();
    assert!(failed.to_string().contains("not deleted"), "{failed}");
    room.lab.vault.disk(room.lab.disk).expect("its record goes last");
}

/// After all points were deleted behind our back, a full copy goes on beyond them: no number is used twice.
#[test]
fn a_full_copy_begins_again_beyond_what_was_deleted() {
    let mut room = Room::with_points(3);
    room.prune("last 2").unwrap();
    for cycle in 1..4 {
        let path = Path::from(&Piece::Point(CycleNo(cycle)).of(room.lab.disk));
        let gone = futures::stream::once(async move { Ok(path) }).boxed();
        let _ = futures::executor::block_on(room.odd.store.delete_stream(gone).collect::<Vec<_>>());
    }
    let (vault, disk) = (&room.lab.vault, room.lab.disk);
    assert_eq!(vault.newest_point(disk, Some(CycleNo(3))).unwrap(), None);
    assert_eq!(vault.highest_known(disk).unwrap(), Some(CycleNo(3)));
    let runs = [room.lab.whole()];
    let segments = room.lab.ship(4, &room.now, &runs);
    let pass = backstay_vault::Pass { must_move: common::set(&runs), segments };
    let verified =
        backstay_vault::verify_cycle(vault, disk, room.lab.size, CycleNo(4), vec![pass]).unwrap();
    let point = vault.commit(verified, common::meta(None)).unwrap();
    room.points.push(point);
    room.prune("last 2").unwrap();
    assert_eq!(room.cycles(), [4]);
    room.is_whole();
}
