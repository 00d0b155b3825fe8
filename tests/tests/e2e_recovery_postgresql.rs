//! The proof with a database: PostgreSQL under load on a protected disk, its host killed, and the database
//! brought up on another host from the vault alone.
//!
//! Two hosts with folders and network namespaces of their own. A writer notes each row when its commit was
//! acknowledged, and pgbench keeps the server busy. What was acknowledged before the recovery point's cut must
//! be there; pg_amcheck must find nothing.
//!
//! Needs root, /dev/fuse, loop devices, network namespaces, e2fsprogs, postgresql.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Stdio};

use backstay_tests::harness::acked::{Log, Writer, check};
use backstay_tests::harness::pair::{InUse, Pair, Side};
use backstay_tests::harness::postgres::{Server, init};
use backstay_tests::harness::service::{Service, wait_for};

const SIZE: u64 = 512 << 20;

/// A server on a disk in use, with a writer and pgbench at work.
struct Busy {
    server: Server,
    writer: Writer,
    load: Child,
}

impl Busy {
    fn start(server: Server, first: u64, log: &Log) -> Self {
        let mut command = server.session();
        command.stdin(Stdio::piped()).stderr(Stdio::null());
        let mut writer = Writer::start(command, log);
        writer.feed(first, |n| {
            format!("INSERT INTO numbers (n, filler) VALUES ({n}, repeat('x', 200)) RETURNING n;")
        });
        let mut load = server.client("pgbench", &["-n", "-c", "2", "-T", "600"]);
        let load = load.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { server, writer, load }
    }

    /// All its processes at once.
    fn kill(mut self) {
        self.writer.kill();
        self.load.kill().unwrap();
        self.load.wait().unwrap();
        self.server.kill();
    }
}

fn start(pair: &Pair, side: Side, disk: &InUse) -> Server {
    let data = disk.at().join("data");
    // It is of a server on another host, or of one that was killed.
    let _ = fs::remove_file(data.join("postmaster.pid"));
    Server::start_on(&|command| pair.on(side, command), &data, &pair.host(side).path("sockets"))
}

/// The database is whole; the numbers in it.
fn whole(server: &Server) -> BTreeSet<u64> {
    server.tool("pg_amcheck", &["--install-missing", "--heapallindexed", "postgres"]);
    server.sql("SELECT n FROM numbers").lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn a_database_under_load_fails_over_and_back_with_all_that_was_acknowledged() {
    let pair = Pair::new("pg", "interval = \"0s\"\nheartbeat = \"0s\"\n");
    let mut source = InUse::new(pair.host(Side::Source), "db", SIZE);
    init(&source.at().join("data"));
    let server = start(&pair, Side::Source, &source);
    server.tool("pgbench", &["-i", "-q", "-s", "2"]);
    server.sql("CREATE TABLE numbers (n bigint PRIMARY KEY, filler text)");
    let log = Log::default();
    let busy = Busy::start(server, 1, &log);
    source.sidecar = Some(Service::start(pair.host(Side::Source)));
    wait_for("some recovery points", || source.disk.points().len() >= 3);
    busy.writer.wait_for(50);

    let disk = source.host_is_gone();
    busy.kill();
    let point = *disk.points().last().unwrap();
    let mut target = InUse::failed_over(pair.host(Side::Target), "db");
    let server = start(&pair, Side::Target, &target);
    let survived = whole(&server);
    let (must, more) = check(&log, point.cut_unix_ns, &survived);
    println!("point {}: {must} acknowledged rows before its cut, {more} more", point.cycle);
    assert!(must > 0);

    // Work goes on here, and back: nothing at all may be missing then.
    pair.host(Side::Target).backstay(&["failover", "commit", "db"]);
    let log = Log::default();
    let busy = Busy::start(server, survived.last().unwrap() + 1, &log);
    let before = target.disk.points().len();
    target.sidecar = Some(Service::start(pair.host(Side::Target)));
    wait_for("points of the target", || target.disk.points().len() >= before + 2);
    busy.writer.wait_for(50);
    let source = target.fail_back(disk, || busy.kill());
    let server = start(&pair, Side::Source, &source);
    let found = whole(&server);
    let (must, more) = check(&log, u64::MAX, &found);
    println!("back: {must} acknowledged rows, {more} more");
    assert!(found.is_superset(&survived), "rows of before the failback are missing");
    source.disk.cycle();
}
