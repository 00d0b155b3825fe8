//! The proof with SQLite and with plain files: written and acknowledged on one host, which is killed; found on
//! another one, which has nothing but the vault. And the vault lost in the middle of it.
//!
//! Needs root, /dev/fuse, loop devices, network namespaces, e2fsprogs, python3.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;

use backstay_tests::harness::acked::{Log, Writer, check};
use backstay_tests::harness::must;
use backstay_tests::harness::pair::{InUse, Pair, Side};
use backstay_tests::harness::postgres::text;
use backstay_tests::harness::service::{Service, wait_for};

const MIB: u64 = 1 << 20;
/// Of the vault that is lost.
const FILES: u64 = 10;

/// An application that writes numbers below a folder, from one on, and prints each that is there for good.
trait Application {
    fn writer(&self, at: &Path, first: u64) -> Command;
    /// All is whole; the numbers that are there.
    fn whole(&self, at: &Path) -> BTreeSet<u64>;
}

/// Debian's own Python: others may come without SQLite.
fn python(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-u", "-c", program]).args(args);
    command
}

fn numbers(text: &str) -> BTreeSet<u64> {
    text.lines().map(|line| line.parse().expect(line)).collect()
}

/// Synchronous "extra": with less, SQLite does not sync the folder after it has removed a rollback
/// journal, and what it acknowledged may be rolled back after a power loss.
struct Sqlite {
    journal: &'static str,
}

impl Application for Sqlite {
    fn writer(&self, at: &Path, first: u64) -> Command {
        let program = "
import itertools, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute('PRAGMA journal_mode = ' + sys.argv[2])
db.execute('PRAGMA synchronous = EXTRA')
db.execute('CREATE TABLE IF NOT EXISTS numbers (n INTEGER PRIMARY KEY, filler TEXT)')
db.execute('CREATE INDEX IF NOT EXISTS fillers ON numbers (filler)')
for n in itertools.count(int(sys.argv[3])):
    db.execute('INSERT INTO numbers VALUES (?, hex(randomblob(300)))', (n,))
    print(n)
";
        python(program, &[text(&at.join("numbers.db")), self.journal, &first.to_string()])
    }

    fn whole(&self, at: &Path) -> BTreeSet<u64> {
        let program = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
found = db.execute('PRAGMA integrity_check').fetchall()
assert found == [('ok',)], found
for n, in db.execute('SELECT n FROM numbers'):
    print(n)
";
        numbers(&must("/usr/bin/python3", ["-c", program, text(&at.join("numbers.db"))]))
    }
}

/// A file for each number, made under another name, synced, renamed, its folder synced.
struct Files;

impl Application for Files {
    fn writer(&self, at: &Path, first: u64) -> Command {
        let program = "
import hashlib, itertools, os, random, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
for n in itertools.count(int(sys.argv[2])):
    content = random.Random(n).randbytes(random.Random(n).randrange(40000))
    name = os.path.join(sys.argv[1], 'new')
    with open(name, 'wb') as file:
        file.write(hashlib.sha256(content).digest() + content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(name, os.path.join(sys.argv[1], str(n)))
    os.fsync(folder)
    print(n)
";
        python(program, &[text(at), &first.to_string()])
    }

    fn whole(&self, at: &Path) -> BTreeSet<u64> {
        let program = "
import hashlib, os, sys
for name in os.listdir(sys.argv[1]):
    if name.isdigit():
        with open(os.path.join(sys.argv[1], name), 'rb') as file:
            content = file.read()
        assert hashlib.sha256(content[32:]).digest() == content[:32], name
        print(name)
";
        numbers(&must("/usr/bin/python3", ["-c", program, text(at)]))
    }
}

/// Written on the source, which is killed; found on the target, where work goes on; brought back.
fn survives(test: &str, application: &dyn Application) {
    let pair = Pair::new(test, "interval = \"0s\"\nheartbeat = \"0s\"\n");
    let start = |side, disk: &InUse, first, log: &Log| {
        Writer::start(pair.on(side, &application.writer(&disk.at(), first)), log)
    };
    let mut source = InUse::new(pair.host(Side::Source), "data", 128 * MIB);
    let log = Log::default();
    let writer = start(Side::Source, &source, 1, &log);
    source.sidecar = Some(Service::start(pair.host(Side::Source)));
    wait_for("some recovery points", || source.disk.points().len() >= 3);
    writer.wait_for(30);

    let disk = source.host_is_gone();
    writer.kill();
    let point = *disk.points().last().unwrap();
    let mut target = InUse::failed_over(pair.host(Side::Target), "data");
    let survived = application.whole(&target.at());
    let (must, more) = check(&log, point.cut_unix_ns, &survived);
    println!("point {}: {must} acknowledged before its cut, {more} more", point.cycle);
    assert!(must > 0);

    pair.host(Side::Target).backstay(&["failover", "commit", "data"]);
    let log = Log::default();
    let writer = start(Side::Target, &target, survived.last().unwrap() + 1, &log);
    target.sidecar = Some(Service::start(pair.host(Side::Target)));
    writer.wait_for(30);
    let source = target.fail_back(disk, || writer.kill());
    let found = application.whole(&source.at());
    let (must, more) = check(&log, u64::MAX, &found);
    println!("back: {must} acknowledged, {more} more");
    assert!(found.is_superset(&survived), "numbers of before the failback are missing");
}

#[test]
fn sqlite_with_a_rollback_journal() {
    survives("sqlite", &Sqlite { journal: "DELETE" });
}

#[test]
fn sqlite_with_a_write_ahead_log() {
    survives("sqlite-wal", &Sqlite { journal: "WAL" });
}

#[test]
fn plain_files() {
    survives("files", &Files);
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut content = vec![];
    File::open(path)?.read_to_end(&mut content)?;
    Ok(content)
}

/// The vault goes away under a file system that was brought up from it: what is here goes on, also for
/// writing; what is not gets a clear error; nothing is remembered wrong; when the vault is back, all is.
#[test]
fn a_vault_that_is_lost_in_the_middle_damages_nothing() {
    let pair = Pair::new("vault-lost", "");
    let source = InUse::new(pair.host(Side::Source), "data", 256 * MIB);
    let mut wanted = vec![];
    for n in 0..FILES {
        let mut content = vec![0; 4 << 20];
        fastrand::Rng::with_seed(n).fill(&mut content);
        fs::write(source.at().join(format!("file{n}")), &content).unwrap();
        wanted.push(content);
    }
    must("sync", ["-f", text(&source.at())]);
    source.disk.cycle();
    drop(source.host_is_gone());

    let target = InUse::of_point_with(
        pair.host(Side::Target),
        "data",
        &["--point", "latest", "--vault-timeout", "1s"],
    );
    let file = |n: usize| target.at().join(format!("file{n}"));
    assert_eq!(read(&file(0)).unwrap(), wanted[0]);
    // Its names and where they are, which the file system reads but once.
    for n in 0..FILES as usize {
        assert_eq!(fs::metadata(file(n)).unwrap().len(), 4 << 20);
        let _ = File::open(file(n)).unwrap().read(&mut [0; 1]).unwrap();
    }
    let gone = pair.vault_folder().with_extension("gone");
    fs::rename(pair.vault_folder(), &gone).unwrap();
    // Past the page cache, so that it is the disk that answers.
    must("sync", ["-f", text(&target.at())]);
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    let mut failed = 0;
    for (n, wanted) in wanted.iter().enumerate().skip(1) {
        match read(&file(n)) {
            Ok(content) => assert!(&content == wanted, "file{n} is wrong"),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EIO), "file{n}: {e}");
                failed += 1;
            }
        }
    }
    assert!(failed > 5, "{failed} files needed the vault");
    assert_eq!(read(&file(0)).unwrap(), wanted[0], "what was read is here");
    fs::write(target.at().join("new"), &wanted[5]).unwrap();
    File::open(target.at().join("new")).unwrap().sync_all().unwrap();
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    assert!(read(&target.at().join("new")).unwrap() == wanted[5]);

    fs::rename(&gone, pair.vault_folder()).unwrap();
    wait_for("the vault", || read(&file(1)).is_ok());
    for (n, content) in wanted.iter().enumerate() {
        assert!(&read(&file(n)).unwrap() == content, "file{n} is wrong");
    }
    assert!(read(&target.at().join("new")).unwrap() == wanted[5]);
    let InUse { disk, device, mounted, .. } = target;
    drop(mounted);
    must("e2fsck", ["-fn", &device]);
    drop(disk);
}
