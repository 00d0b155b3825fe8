//! A member's sidecar under a coordinator that this test plays: whatever the coordinator does after it
//! had the disks held, writes go on within the hold's deadline, and the disks are shipped alone. And
//! without any coordinator, too.
//!
//! Needs root, /dev/fuse.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_engine::group::TlsConfig;
use backstay_engine::group::link::Link;
use backstay_engine::group::tls::Tls;
use backstay_engine::group::wire::{Ask, Tell};
use backstay_tests::harness::netns::Authority;
use backstay_tests::harness::stamp::{open_direct, stamp};
use backstay_tests::harness::{Disk, Host, run};

const LONG: Duration = Duration::from_secs(20);
const HOLD: Duration = Duration::from_millis(500);
/// What a busy machine may add to any wait.
const MARGIN: Duration = Duration::from_secs(2);

struct Lab {
    host: Arc<Host>,
    disk: Disk,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    member: Child,
}

impl Drop for Lab {
    fn drop(&mut self) {
        run("kill", ["-CONT", &self.member.id().to_string()]);
        let _ = self.member.kill();
        let _ = self.member.wait();
    }
}

fn lab(test: &str, verb: &[&str]) -> Lab {
    let host = Host::new(test);
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let own = authority.host(&host.dir, "127.0.0.1");
    let files: std::collections::BTreeMap<String, TlsConfig> = toml::from_str(&own).unwrap();
    let config = format!(
        "vault = \"{}\"\ninterval = \"1s\"\nheartbeat = \"0s\"\n[group.shop]\ndisks = [\"b\"]\nhold_deadline = \"{}ms\"\n\
         [group.shop.member]\ndial = \"127.0.0.1:{port}\"\n{}",
        host.vault(),
        HOLD.as_millis(),
        authority.host(&host.dir, "web1.example")
    );
    fs::write(host.path("backstay.toml"), config).unwrap();
    let disk = host.disk("b", 4 << 20);
    disk.mount(&[]);
    disk.cycle();
    let member = host.command().args(verb).stdin(Stdio::null()).spawn().unwrap();
    Lab { host, disk, listener, tls: Tls::load(&files["tls"]).unwrap().server(), member }
}

impl Lab {
    /// Lets the member in, up to a hold of its disk, in a round of this number.
    fn held(&self, round: u64, hold: Duration) -> Link {
        let mut link = self.welcome();
        link.send(&Ask::Prepare { round }, LONG).unwrap();
        self.until(&mut link, &Tell::Here { round });
        link.send(&Ask::Quiesce { round }, LONG).unwrap();
        self.until(&mut link, &Tell::Ready { round });
        link.send(&Ask::Cut { round, hold_ns: hold.as_nanos() as u64 }, LONG).unwrap();
        self.until(&mut link, &Tell::Cut { round });
        link
    }

    fn welcome(&self) -> Link {
        let (tcp, _) = self.listener.accept().unwrap();
        let mut link = Link::accept(Arc::clone(&self.tls), tcp).unwrap();
        match link.receive(LONG).unwrap() {
            Tell::Hello { group } => assert_eq!(group.as_str(), "shop"),
            other => panic!("{other:?}"),
        }
        link.send(&Ask::Welcome, LONG).unwrap();
        link
    }

    fn until(&self, link: &mut Link, wanted: &Tell) {
        loop {
            match link.receive::<Tell>(LONG).unwrap() {
                Tell::Working { .. } => {}
                told => return assert_eq!(told, *wanted),
            }
        }
    }

    /// How long a write takes now.
    fn write(&self, number: u64) -> Duration {
        let file = open_direct(&self.disk.served());
        let began = Instant::now();
        file.write_all_at(&stamp(0, number).0, 0).unwrap();
        began.elapsed()
    }

    /// Waits until the disk has more than so many points.
    fn wait_for_more_points_than(&self, before: usize) {
        let ends = Instant::now() + LONG;
        while self.disk.points().len() <= before {
            assert!(Instant::now() < ends, "no point was made");
        }
    }
}

#[test]
fn a_coordinator_that_falls_silent_or_hangs_up_stops_no_writes() {
    let lab = lab("member", &["group", "join", "shop"]);
    // Silent: the hold ends by itself. Longer holds than the member's own setting are not granted.
    for (round, asked) in [(1, HOLD), (2, Duration::from_secs(5))] {
        let before = lab.disk.points().len();
        let link = lab.held(round, asked);
        let took = lab.write(round);
        assert!(took < HOLD + MARGIN, "held for {took:?}");
        lab.wait_for_more_points_than(before);
        drop(link);
    }
    // Hangs up: the member lets go at once.
    let before = lab.disk.points().len();
    drop(lab.held(3, HOLD));
    assert!(lab.write(3) < HOLD + MARGIN);
    lab.wait_for_more_points_than(before);
    // Aborts, and goes on with another round on the same connection.
    let mut link = lab.held(4, HOLD);
    link.send(&Ask::Abort { round: 4 }, LONG).unwrap();
    lab.until(&mut link, &Tell::Aborted { round: 4 });
    assert!(lab.write(4) < MARGIN);
    // A thaw of a round that is over, or never was, is refused.
    link.send(&Ask::Thaw { round: 4 }, LONG).unwrap();
    assert!(matches!(link.receive(LONG).unwrap(), Tell::Failed { round: 4, .. }));
    let held = lab.disk.status()["driver"]["counters"]["cut_held_ns_max"].as_u64().unwrap();
    assert!(Duration::from_nanos(held) < HOLD + MARGIN, "held for {held} ns");
}

#[test]
fn a_thaw_after_the_deadline_is_not_in_force() {
    let lab = lab("latethaw", &["group", "join", "shop"]);
    let mut link = lab.held(1, HOLD);
    // The write waits until the hold has ended by itself.
    lab.write(1);
    // The member has hung up, or says that the hold was not in force; never that it was.
    let told = link
        .send(&Ask::Thaw { round: 1 }, LONG)
        .and_then(|()| link.receive::<Tell>(Duration::from_secs(5)));
    assert!(!matches!(told, Ok(Tell::Thawed { in_force: true, .. })), "{told:?}");
}

#[test]
fn a_member_that_is_stopped_while_it_holds_stops_no_writes() {
    let lab = lab("stopped", &["group", "join", "shop"]);
    let _link = lab.held(1, HOLD);
    run("kill", ["-STOP", &lab.member.id().to_string()]);
    let took = lab.write(1);
    assert!(took < HOLD + MARGIN, "held for {took:?}: the driver's own deadline must end it");
}

#[test]
fn a_member_that_is_killed_while_it_holds_stops_no_writes() {
    let mut lab = lab("killed", &["group", "join", "shop"]);
    let _link = lab.held(1, HOLD);
    lab.member.kill().unwrap();
    assert!(lab.write(1) < HOLD + MARGIN);
    lab.member.wait().unwrap();
    lab.disk.cycle();
}

/// The service of a member ships its disks alone while no coordinator makes rounds.
#[test]
fn without_a_coordinator_the_service_ships_alone() {
    let lab = lab("alone", &["sidecar"]);
    lab.wait_for_more_points_than(lab.disk.points().len());
    // One comes, makes a round, and is gone: after some missed rounds the disk goes on alone.
    let mut link = lab.welcome();
    let mut round = 1;
    loop {
        link.send(&Ask::Prepare { round }, LONG).unwrap();
        let told = loop {
            match link.receive::<Tell>(LONG).unwrap() {
                Tell::Working { .. } => {}
                told => break told,
            }
        };
        match told {
            Tell::Here { .. } => break,
            // Its disk is in a cycle of its own.
            Tell::Failed { .. } => round += 1,
            other => panic!("{other:?}"),
        }
    }
    drop(link);
    let before = lab.disk.points().len();
    lab.wait_for_more_points_than(before + 2);
    assert!(lab.host.path("vault").exists());
}
