//! What a gateway checks and keeps, asked by a client that lies: content that is not what its checksums say, points that say
//! of other sectors that they moved, deletion before its time. In plain and encrypted vaults.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstay_tests::harness::command::said;
use backstay_tests::harness::gateway::Gateway;
use backstay_tests::harness::https::Line;
use backstay_tests::harness::service::wait_for;
use backstay_tests::harness::{Disk, Host};
use backstay_types::{ByteLen, Classified, CycleNo, DiskId, PointId, Sector, SectorRange};
use backstay_vault::encrypt::KeySettings;
use backstay_vault::format::document::encode;
use backstay_vault::format::key::{DiskFolder, ObjectKey, Piece};
use backstay_vault::frame::{Chunk, Compressor, SegmentBuilder};
use backstay_vault::remote::StoreSettings;
use backstay_vault::{
    Base, Consistency, CycleKind, GroupMember, GroupName, GroupPoint, GroupPointNo, Manifest, Pass,
    PointMeta, SectorSet, SegmentRef, Vault, VaultError, Vaults, verify_cycle,
};

use super::{MIB, Site, pin, write};

const RUN: SectorRange = SectorRange { start: Sector(64), end: Sector(128) };

/// A client with a source's certificate that does as it likes.
struct Liar<'a> {
    vault: Vault,
    disk: DiskId,
    size: ByteLen,
    before: Manifest,
    bundle: &'a Path,
    ca: PathBuf,
    writer: Option<&'a Path>,
}

impl<'a> Liar<'a> {
    fn new(site: &Site, gateway: &Gateway, bundle: &'a Path, writer: Option<&'a Path>) -> Self {
        let store = StoreSettings {
            client_cert: Some(bundle.into()),
            ca_file: Some(site.pki.ca()),
            retries: 0,
            retry_timeout: Duration::from_secs(1),
            ..StoreSettings::default()
        };
        let keys =
            KeySettings { writer_file: writer.map(Path::to_owned), ..KeySettings::default() };
        let vault =
            Vaults::default().with_store(store).with_keys(keys).open(&gateway.url()).unwrap();
        let disk = vault.disk_named(&"db".parse().unwrap()).unwrap();
        let newest = *vault.points(disk.disk).unwrap().last().unwrap();
        let before = vault.manifest(disk.disk, newest).unwrap();
        let (size, ca) = (before.size, site.pki.ca());
        Self { vault, disk: disk.disk, size, before, bundle, ca, writer }
    }

    fn cycle(&self) -> CycleNo {
        self.before.cycle.next()
    }

    /// A segment of the next cycle: true, or with a bit in it that its checksums do not know of.
    fn segment(&self, lies: bool) -> SegmentRef {
        let mut noise = vec![0; RUN.bytes().0 as usize];
        fastrand::Rng::with_seed(9).fill(&mut noise);
        let (mut chunk, mut compressor) = (Chunk::with_room(), Compressor::new(1).unwrap());
        chunk.push(RUN, &noise);
        let frame = compressor.seal(&mut chunk).unwrap();
        let mut builder = SegmentBuilder::new(self.disk, self.cycle(), fastrand::u64(..), 0);
        builder.push(if lies { frame.lying() } else { frame });
        self.vault.put_segment(builder.finish(&mut compressor).unwrap()).unwrap()
    }

    /// Commits what it ships, as a source does: it compares indexes, which are as they should be.
    fn commits(&self, lies: bool) -> Result<Manifest, VaultError> {
        let segments = vec![self.segment(lies)];
        let mut must_move = SectorSet::new();
        must_move.insert(RUN);
        let pass = Pass { must_move, segments };
        let verified =
            verify_cycle(&self.vault, self.disk, self.size, self.cycle(), vec![pass]).unwrap();
        let meta = PointMeta {
            term: self.before.term,
            predecessor: Some(self.before.clone()),
            base: Base::Newest,
            kind: CycleKind::Delta,
            point: PointId::random(),
            consistency: Consistency::Crash,
            cut_unix_ns: self.before.cut_unix_ns + 1,
            written: ByteLen(0),
        };
        self.vault.commit(verified, meta)
    }

    /// Puts a point of its own making, which says that twice as much had to move; what it is answered.
    fn says_that_more_moved(&self) -> (u16, String) {
        let own = self.segment(false);
        let mut said = SectorSet::new();
        said.insert(SectorRange::new(RUN.start.0, RUN.end.0 + 64));
        let point = Manifest {
            point: PointId::random(),
            cycle: self.cycle(),
            predecessor: Some((self.before.cycle, self.before.point)),
            kind: CycleKind::Delta,
            cut_unix_ns: self.before.cut_unix_ns + 1,
            committed_unix_ns: self.before.committed_unix_ns + 1,
            moved_sectors: said.count(),
            moved_digest: said.digest(),
            segments: self.before.segments.iter().copied().chain([own]).collect(),
            ..self.before.clone()
        };
        let key = Piece::Point(self.cycle()).of(self.disk).to_string();
        let bytes = match self.writer {
            Some(file) => signed(file, &key, point.encode()),
            None => point.encode(),
        };
        let address = self.vault.url().strip_prefix("https://").unwrap().parse().unwrap();
        let tls = &[&rustls::version::TLS13];
        let mut line = Line::open(address, &self.ca, Some(self.bundle), tls).unwrap();
        let path = format!("/v1/objects/{key}");
        let answer = line.ask("PUT", &path, &["If-None-Match: *"], &bytes).unwrap();
        (answer.status, answer.text())
    }
}

/// An object's bytes with a writer's signature behind, as docs/explanation/format-vault.md has it.
fn signed(writer: &Path, key: &str, bytes: Vec<u8>) -> Vec<u8> {
    use ring::signature::{Ed25519KeyPair, KeyPair};
    let file: serde_json::Value = serde_json::from_slice(&fs::read(writer).unwrap()).unwrap();
    let body = &file["body"];
    let raw = |name: &str| -> Vec<u8> {
        let text: String = body[name].as_str().unwrap().replace('-', "");
        let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
    };
    let pair = Ed25519KeyPair::from_seed_unchecked(&raw("secret")).unwrap();
    let len = (key.len() as u32).to_le_bytes();
    let of = [b"backstay object 1\0", &raw("vault")[..], &len, key.as_bytes(), &bytes].concat();
    let signature = pair.sign(&of);
    let public = pair.public_key().as_ref();
    [&bytes, &b"BSTYSIGN"[..], public, &raw("certificate"), signature.as_ref()].concat()
}

/// A vault behind gateways with a point in it, and its keys if it is encrypted.
struct Checked {
    site: Site,
    key: Option<PathBuf>,
    writer: Option<PathBuf>,
    bundle: PathBuf,
}

impl Checked {
    fn new(test: &str, sealed: bool) -> (Self, Disk) {
        let site = Site::new(test);
        let (key, writer) = (site.source.path("key"), site.source.path("writer"));
        let bundle = site.pki.source("src", &["db"]);
        if sealed {
            let store = format!("file://{}", site.vault.display());
            let args = ["key", "init", "--vault", &store, "--key-file", &pin(&key)];
            site.source.backstay(&args);
            let mut grant = site.source.command();
            grant.args(["key", "grant", "--vault", &store, "--to"]).arg(&writer);
            let granted = grant.env("BACKSTAY_KEY_FILE", &key).output().unwrap();
            assert!(granted.status.success(), "{}", said(&granted));
        }
        let [key, writer] = [key, writer].map(|path| sealed.then_some(path));
        let db = site.source.disk("db", 4 * MIB as u64);
        (Self { site, key, writer, bundle }, db)
    }

    /// What the source's configuration says besides.
    fn encryption(&self) -> String {
        let of = |path: &PathBuf| format!("[encryption]\nwriter_file = {path:?}\n");
        self.writer.as_ref().map_or(String::new(), of)
    }

    /// A gateway with the key, if there is one.
    fn gateway(&self, name: &str, settings: &str) -> Gateway {
        let of = |path: &PathBuf| format!("[encryption]\nkey_file = {path:?}\n");
        let key = self.key.as_ref().map_or(String::new(), of);
        self.site.gateway(name, &format!("{settings}\n{key}"))
    }

    fn ship(&self, gateway: &Gateway, db: &Disk) {
        self.site.configure(&self.site.source, &gateway.url(), &self.bundle, &self.encryption());
        db.mount(&[]);
        write(db, 0, MIB, 1);
        db.cycle();
    }

    fn points(&self) -> Vec<String> {
        let folder = self.site.segments().with_file_name("points");
        let mut all: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.len() == 20)
            .collect();
        all.sort();
        all
    }

    /// Somebody who recovers, with the key.
    fn recovery(&self, gateway: &Gateway) -> Arc<Host> {
        let recovery = Host::new("gateway-checks-recovery");
        let of = |path: &PathBuf| format!("[encryption]\nkey_file = {path:?}\n");
        let key = self.key.as_ref().map_or(String::new(), of);
        let bundle = self.site.pki.recovery("dr", &["*"]);
        self.site.configure(&recovery, &gateway.url(), &bundle, &key);
        recovery
    }
}

#[test]
fn what_a_client_lies_about_never_becomes_a_point() {
    for sealed in [false, true] {
        let (checked, db) = Checked::new("gateway-lies", sealed);
        let content = checked.gateway("content", "[gateway]\nverify = \"content\"\n");
        checked.ship(&content, &db);
        let liar =
            |gateway| Liar::new(&checked.site, gateway, &checked.bundle, checked.writer.as_deref());
        // I6: every sector is compared with its checksum before the point is there.
        let client = liar(&content);
        let why = client.commits(true).expect_err("must be refused").to_string();
        assert!(why.contains("checksum"), "sealed {sealed}: {why}");
        // I7: which sectors moved.
        let (status, why) = client.says_that_more_moved();
        assert_eq!(status, 422, "sealed {sealed}: {why}");
        assert!(why.contains("had to move"), "{why}");
        assert_eq!(checked.points().len(), 1);
        assert!(content.number("wrong_total") >= 2);
        client.commits(false).unwrap();
        assert_eq!(checked.points().len(), 2);

        // What the setting and the key are for: without them the same is taken, and found by who recovers.
        let index = checked.gateway("index", "");
        let (status, why) = liar(&index).says_that_more_moved();
        assert_eq!((status, why.contains("had to move")), (422, true), "{why}");
        if sealed {
            let blind = checked.site.gateway("blind", "[gateway]\nverify = \"content\"\n");
            liar(&blind).commits(true).unwrap();
        } else {
            liar(&index).commits(true).unwrap();
        }
        assert_eq!(checked.points().len(), 3);
        let recovery = checked.recovery(&index);
        let found = recovery.try_backstay(&["verify", "db", "--point", "latest"]);
        assert!(!found.status.success() && said(&found).contains("checksum"), "{}", said(&found));
        recovery.backstay(&["verify", "db", "--point", "2"]);
    }
}

/// Young points stay whatever the rules say, and nobody deletes one but retention.
#[test]
fn nothing_is_deleted_before_its_time() {
    for sealed in [false, true] {
        let (checked, db) = Checked::new("gateway-immutable", sealed);
        let settings = |immutable: &str| {
            format!(
                "keep = \"last 1\"\n[gateway]\nretention = \"200ms\"\nimmutable = \"{immutable}\"\n"
            )
        };
        let strict = checked.gateway("strict", &settings("1h"));
        checked.ship(&strict, &db);
        for round in 0..2 {
            write(&db, round * 8192, 4096, round as u64 + 2);
            db.cycle();
        }
        let rounds = strict.number("retention_total");
        strict.wait_for("retention_total", |now| now >= rounds + 2);
        assert_eq!(checked.points().len(), 3, "sealed {sealed}");
        assert_eq!(strict.number("retention_failed_total"), 0);
        // A maintainer's certificate is none for deleting: not now, and not by hand later.
        let maintainer = checked.site.pki.client("keeper", "maintainer", &["*"]);
        let deletes = |gateway: &Gateway| {
            let tls = &[&rustls::version::TLS13];
            let ca = checked.site.pki.ca();
            let mut line = Line::open(gateway.listen, &ca, Some(&maintainer), tls).unwrap();
            let disk = checked.site.segments().parent().unwrap().file_name().unwrap().to_owned();
            let disk = DiskId(disk.to_str().unwrap().parse().unwrap());
            let segment = fs::read_dir(checked.site.segments()).unwrap().next().unwrap().unwrap();
            let segment = segment.file_name().into_string().unwrap();
            for key in [
                Piece::Point(CycleNo(1)).of(disk).to_string(),
                format!("{}/{segment}", DiskFolder::Segments.of(disk)),
                Piece::Record.of(disk).to_string(),
                ObjectKey::Vault.to_string(),
            ] {
                let path = format!("/v1/objects/{key}");
                assert_eq!(line.ask("DELETE", &path, &[], b"").unwrap().status, 403, "{key}");
            }
        };
        deletes(&strict);
        strict.kill();
        // The same vault with a second instead of an hour. Ages count from the newest point's cut, so points are made.
        let goes_on = |gateway: &Gateway, until: &dyn Fn() -> bool| {
            let more = checked.encryption();
            checked.site.configure(&checked.site.source, &gateway.url(), &checked.bundle, &more);
            // The same vault by another gateway: said, as every change of a disk's vault.
            checked.site.source.backstay(&["set", "db", "--vault", &gateway.url()]);
            wait_for("retention", || {
                db.cycle();
                until()
            });
        };
        let first_is_there = || checked.points()[0].ends_with("01");
        if sealed {
            // Who has no key signs no ledger: nothing goes, and that is said.
            let blind = checked.site.gateway("blind", &settings("1s"));
            goes_on(&blind, &|| blind.number("retention_failed_total") > 0);
            assert!(first_is_there());
            blind.kill();
        }
        // A writer's key is enough to thin out; a vault that is not encrypted needs none.
        let more = format!("{}{}", settings("1s"), checked.encryption());
        let lax = checked.site.gateway("lax", &more);
        goes_on(&lax, &|| !first_is_there());
        deletes(&lax);
        assert_eq!(lax.number("retention_failed_total"), 0);
    }
}

/// A group's points are numbered one by one, by who owns all of its members: a source of another disk neither ends the
/// numbers nor puts its disk into the group.
#[test]
fn a_group_is_its_members_owners() {
    let (checked, db) = Checked::new("gateway-groups", false);
    let gateway = checked.gateway("groups", "");
    checked.ship(&gateway, &db);
    let site = &checked.site;
    let stranger = site.pki.source("stranger", &["web"]);
    site.configure(&site.source, &gateway.url(), &stranger, "");
    let web = site.source.disk("web", 4 * MIB as u64);
    web.mount(&[]);
    write(&web, 0, MIB, 2);
    web.cycle();

    let vault = Vaults::default().open(site.vault.to_str().unwrap()).unwrap();
    let group: GroupName = "shop".parse().unwrap();
    let member = |name: &str| {
        let disk = vault.disk_named(&name.parse().unwrap()).unwrap();
        let point = vault.manifest(disk.disk, CycleNo(1)).unwrap();
        GroupMember {
            host: None,
            disk: disk.disk,
            name: disk.name,
            cycle: point.cycle,
            point: point.point,
            cut_unix_ns: point.cut_unix_ns,
        }
    };
    let first = vault.commit_group(&group, vec![member("db")], 1).unwrap();
    let put = |bundle: &Path, number: u64, of: &str| {
        let point = GroupPoint {
            number: GroupPointNo(number),
            point: PointId::random(),
            members: vec![member(of)],
            ..first.clone()
        };
        let tls = &[&rustls::version::TLS13];
        let mut line = Line::open(gateway.listen, &site.pki.ca(), Some(bundle), tls).unwrap();
        let key = ObjectKey::GroupPoint("shop".parse().unwrap(), number);
        let path = format!("/v1/objects/{key}");
        let bytes = encode(&point).unwrap();
        line.ask("PUT", &path, &["If-None-Match: *"], &bytes).unwrap().status
    };
    for number in [2, 3, u64::MAX] {
        assert_eq!(
            put(&stranger, number, "web"),
            422,
            "{number}: a disk that is in no point of it"
        );
        assert_eq!(put(&stranger, number, "db"), 422, "{number}: another's disk");
    }
    assert_eq!(put(&checked.bundle, u64::MAX, "db"), 422, "not the next number");
    assert_eq!(put(&checked.bundle, 1, "db"), 409, "a number that was");
    assert_eq!(put(&checked.bundle, 2, "db"), 201);
    // What stands in a store already, the group is not stopped by in silence.
    let last = site.vault.join(ObjectKey::GroupPoint(group.clone(), u64::MAX).to_string());
    let end = GroupPoint { number: GroupPointNo(u64::MAX), ..first };
    fs::write(&last, encode(&end).unwrap()).unwrap();
    let stopped = vault.commit_group(&group, vec![member("db")], 2).unwrap_err();
    assert!(
        stopped.is_damage() && stopped.to_string().contains(&u64::MAX.to_string()),
        "{stopped}"
    );
}
