//! The ready-made hook with a real PostgreSQL on a protected disk: points taken under load start as a
//! server, with every row that was committed before the cut; a server that hangs is not waited for.
//!
//! Needs root, /dev/fuse, loop devices, e2fsprogs, postgresql.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use backstay_tests::harness::command::said;
use backstay_tests::harness::postgres::{Server, bin, init, text};
use backstay_tests::harness::stamp::StopOnDrop;
use backstay_tests::harness::{Disk, FsMount, Host, must};

/// Sessions of the hook.
fn sessions(server: &Server) -> u64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backstay'";
    server.sql(sql).parse().unwrap()
}

fn hook() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sidecar/hooks/postgresql")
        .canonicalize()
        .unwrap()
}

/// A server whose data lies on a protected disk, with the hook set up.
struct Lab {
    server: Server,
    _mounted: FsMount,
    disk: Disk,
    host: Arc<Host>,
}

impl Lab {
    fn new(test: &str, more: &str) -> Self {
        let host = Host::new(test);
        let disk = host.disk("db", 512 << 20);
        let device = disk.attach();
        must("mkfs.ext4", ["-q", &device]);
        let mounted = FsMount::new(&host, &device, "mnt", "rw");
        let data = mounted.at.join("data");
        init(&data);
        let server = Server::start(&data, &host.path("sockets"));
        let command = |stage| {
            let connection = server.connection();
            format!("[\"BACKSTAY_PG_CONNECTION='{connection}' {} {stage}\"]", text(&hook()))
        };
        let (pre, post) = (command("pre"), command("post"));
        let hooks =
            format!("pre = {pre}\nfreeze = [{:?}]\npost = {post}\n{more}", text(&mounted.at));
        let config = format!("vault = \"{}\"\n[disk.db.hooks]\n{hooks}", host.vault());
        fs::write(host.path("backstay.toml"), config).unwrap();
        server.sql("CREATE TABLE numbers (n bigint PRIMARY KEY, filler text)");
        Self { server, _mounted: mounted, disk, host }
    }

    fn consistencies(&self) -> Vec<String> {
        let points = self.host.json(&["points", "db"]);
        let consistency =
            |point: &serde_json::Value| point["consistency"].as_str().unwrap().to_owned();
        points.as_array().unwrap().iter().map(consistency).collect()
    }
}

#[test]
fn points_of_a_busy_server_start_with_every_row_committed_before_the_cut() {
    let lab = Lab::new("postgresql", "require = true\n");
    let (stop, committed) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut before = vec![];
    thread::scope(|scope| {
        let ends = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let first = committed.load(Ordering::Relaxed) + 1;
                let last = first + 99;
                lab.server.sql(&format!(
                    "INSERT INTO numbers SELECT n, repeat('x', 200) FROM generate_series({first}, {last}) n"
                ));
                committed.store(last, Ordering::Relaxed);
            }
        });
        for _ in 0..3 {
            let from = committed.load(Ordering::Relaxed);
            while committed.load(Ordering::Relaxed) < from + 200 {
                thread::yield_now();
            }
            let began = lab.server.sql("SELECT floor(extract(epoch FROM now()))::bigint");
            before.push((committed.load(Ordering::Relaxed), began.parse::<i64>().unwrap()));
            lab.disk.cycle();
            assert_eq!(sessions(&lab.server), 0, "the hook's session is over");
        }
        drop(ends);
    });
    assert_eq!(lab.consistencies(), ["application"; 3]);
    let all = committed.load(Ordering::Relaxed);
    for (point, (least, began)) in lab.disk.points().iter().zip(before) {
        let image = lab.disk.restore(point.cycle, "restored.img");
        let mounted = FsMount::new(&lab.host, text(&image), "back", "loop");
        let data = mounted.at.join("data");
        // The hook had the server write a checkpoint for this very cut.
        let control = must(&bin("pg_controldata"), [text(&data)]);
        let checkpoint = "Time of latest checkpoint:";
        let at = control.lines().find_map(|line| line.strip_prefix(checkpoint)).unwrap();
        let at: i64 = must("date", ["-d", at.trim(), "+%s"]).trim().parse().unwrap();
        assert!(at >= began, "point {}: {at} is before {began}", point.cycle);
        fs::remove_file(data.join("postmaster.pid")).unwrap();
        let back = Server::start(&data, &lab.host.path("back-sockets"));
        let rows: u64 = back.sql("SELECT count(*) FROM numbers").parse().unwrap();
        let highest: u64 = back.sql("SELECT max(n) FROM numbers").parse().unwrap();
        println!("point {}: {rows} rows of {all}, at least {least}", point.cycle);
        assert!(rows == highest && rows >= least && rows <= all + 100);
        assert!(rows.is_multiple_of(100), "a part of a transaction");
        back.sql("INSERT INTO numbers VALUES (0, 'goes on')");
    }
}

/// A server that does not answer: the hook is killed, the point is crash-consistent, and when the
/// server comes back nothing of the hook is left in it.
#[test]
fn a_server_that_hangs_is_not_waited_for() {
    let lab = Lab::new("pghang", "timeout = \"2s\"\n");
    lab.server.sql("INSERT INTO numbers VALUES (1, 'before')");
    let pid = lab.server.pid();
    // Connections come and are never served.
    must("kill", ["-STOP", &pid]);
    let output = lab.host.try_backstay(&["cycle", "db"]);
    must("kill", ["-CONT", &pid]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("did not end within 2s and was killed"), "{}", said(&output));
    lab.server.sql("INSERT INTO numbers VALUES (2, 'after')");
    while sessions(&lab.server) > 0 {
        thread::yield_now();
    }
    lab.disk.cycle();
    assert_eq!(lab.consistencies(), ["crash", "application"]);
    assert_eq!(sessions(&lab.server), 0);
}

/// By hand: what the hook does in the server, and what it says when it cannot.
#[test]
fn the_hook_holds_a_session_from_pre_to_post() {
    let lab = Lab::new("pghook", "");
    let run_dir = lab.host.path("run");
    fs::create_dir(&run_dir).unwrap();
    let hook_with = |stage: &str, connection: &str| {
        let mut command = Command::new(hook());
        command.arg(stage).env("BACKSTAY_RUN_DIR", &run_dir);
        command.env("BACKSTAY_PG_CONNECTION", connection).current_dir("/").output().unwrap()
    };
    let connection = lab.server.connection();
    let hook = |stage: &str| hook_with(stage, &connection);
    let done = |output: Output| assert!(output.status.success(), "{}", said(&output));
    let in_backup = || {
        let sql = "SELECT query FROM pg_stat_activity WHERE application_name = 'backstay'";
        let query = lab.server.sql(sql);
        query.contains("pg_backup_start") || query.contains("pg_start_backup")
    };
    done(hook("post"));
    done(hook("pre"));
    assert!(in_backup());
    // Once more, as after a post that never came: the old session goes.
    done(hook("pre"));
    while sessions(&lab.server) > 1 {
        thread::yield_now();
    }
    done(hook("post"));
    assert_eq!(sessions(&lab.server), 0);
    done(hook("post"));
    assert_eq!(fs::read_dir(&run_dir).unwrap().count(), 0, "nothing is left");

    done(hook("pre"));
    lab.server.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'backstay'",
    );
    let lost = hook("post");
    assert!(!lost.status.success(), "the session was lost");
    done(hook("post"));

    let nobody = hook_with("pre", "host=/no/such/folder");
    assert!(!nobody.status.success() && said(&nobody).contains("/no/such/folder"), "{nobody:?}");
    done(hook_with("post", "host=/no/such/folder"));
    assert_eq!(fs::read_dir(&run_dir).unwrap().count(), 0, "nothing is left");
}
