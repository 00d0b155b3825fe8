//! Groups of two hosts, in two network namespaces with a cable between them: a sequence number goes to
//! disk A of the one, is flushed, then to disk B of the other, while their sidecars make group points
//! back to back. At random moments the cable is pulled, or the member's sidecar is stopped or killed.
//! The vault is encrypted; B's host can only write into it. In no group point is B ahead of A, and no write waits much longer than the hold's deadline. Short
//! form some hundred points, long form (`BACKSTAY_TEST_LONG`) a thousand.
//!
//! Needs root, /dev/fuse, network namespaces.

use std::fs::{self, File};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use backstay_tests::harness::netns::{ADDRESSES, Authority, Cable};
use backstay_tests::harness::ordered::{Ordered, check_group, second_writer};
use backstay_tests::harness::{Disk, Host, must, run};
use backstay_vault::GroupName;
use fastrand::Rng;

const SIZE: u64 = 4 << 20;
const HOLD_DEADLINE: Duration = Duration::from_millis(300);
/// What the machine may add to a hold: waiting for writes in flight and for a processor.
const MARGIN: Duration = Duration::from_millis(500);

/// The other process of the workload.
#[test]
#[ignore = "it is a process of the other tests"]
fn second_writer_process() {
    second_writer();
}

/// Two hosts with a disk each.
struct Pair {
    cable: Cable,
    hosts: [Arc<Host>; 2],
    disks: [Disk; 2],
}

fn pair() -> Pair {
    let cable = Cable::new();
    let hosts = [Host::sealed("group0"), Host::new("group1")];
    let authority = Authority::new();
    let vault = hosts[0].vault();
    let config = |side: usize, name: &str, section: String| {
        let tls = authority.host(&hosts[side].dir, name);
        let text = format!(
            "vault = \"{vault}\"\ninterval = \"0s\"\nheartbeat = \"0s\"\n[group.shop]\ndisks = [\"{}\"]\n\
             hold_deadline = \"{}ms\"\nready_deadline = \"5s\"\n{section}\n{tls}",
            ["a", "b"][side],
            HOLD_DEADLINE.as_millis()
        );
        fs::write(hosts[side].path("backstay.toml"), text).unwrap();
    };
    let [first, _] = ADDRESSES;
    config(
        0,
        first,
        format!("[group.shop.coordinator]\nlisten = \"{first}:20004\"\nhosts = [\"web1.example\"]"),
    );
    // What the one ships, it can read; the other only writes.
    let writer = hosts[1].path("writer");
    hosts[0].backstay(&["key", "grant", "--to", &writer.to_string_lossy()]);
    config(
        1,
        "web1.example",
        format!("[group.shop.member]\ndial = \"{first}\"\n[encryption]\nwriter_file = {writer:?}"),
    );
    let disks = [hosts[0].disk("a", SIZE), hosts[1].disk("b", SIZE)];
    for disk in &disks {
        disk.mount(&[]);
    }
    Pair { cable, hosts, disks }
}

/// A sidecar that is gone when dropped.
struct Sidecar(Child);

impl Pair {
    fn sidecar(&self, side: usize) -> Sidecar {
        let mut command = self.hosts[side].command();
        command.args(["--verbose", "sidecar"]);
        let log = self.hosts[side].path("sidecar.log");
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut inside = self.cable.on(side, &command);
        Sidecar(inside.stdin(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn log(&self, side: usize) -> String {
        fs::read_to_string(self.hosts[side].path("sidecar.log")).unwrap_or_default()
    }

    fn held_max(&self, side: usize) -> Duration {
        let status = self.disks[side].status();
        let held = &status["driver"]["counters"]["cut_held_ns_max"];
        Duration::from_nanos(held.as_u64().unwrap_or_else(|| panic!("{status}")))
    }
}

impl Sidecar {
    fn signal(&self, signal: &str) {
        must("kill", [signal, &self.0.id().to_string()]);
    }
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        run("kill", ["-CONT", &self.0.id().to_string()]);
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn no_host_of_a_group_point_is_ahead() {
    let long = std::env::var_os("BACKSTAY_TEST_LONG").is_some();
    let seed = if long { fastrand::u64(..) } else { 0x6809 };
    let wanted = if long { 1_000 } else { 150 };
    println!("seed {seed:#x}");
    let mut rng = Rng::with_seed(seed);
    let pair = pair();
    // Both disks have been shipped once before the workload begins.
    for side in [0, 1] {
        pair.disks[side].cycle();
    }
    let [a, b] = &pair.disks;
    let work = Ordered::start(&a.served(), &b.served(), pair.hosts[0].path("ordered.sock"));
    let coordinator = pair.sidecar(0);
    let mut member = pair.sidecar(1);
    let vault = pair.hosts[0].open_vault();
    let shop: GroupName = "shop".parse().unwrap();
    let mut disturbed = [0; 3];
    let mut there = 0;
    while there < wanted {
        // Undisturbed until some more points were made.
        let enough = (there + rng.usize(1..if long { 16 } else { 8 })).min(wanted);
        while there < enough {
            work.wait_for(5);
            there = vault.group_points(&shop).unwrap().len();
        }
        work.wait_for(rng.u64(0..100));
        let what = rng.usize(0..3);
        disturbed[what] += 1;
        match what {
            0 => {
                pair.cable.plug(false);
                work.wait_for(rng.u64(1..300));
                pair.cable.plug(true);
            }
            1 => {
                member.signal("-STOP");
                work.wait_for(rng.u64(1..300));
                member.signal("-CONT");
            }
            _ => {
                member.kill();
                member = pair.sidecar(1);
            }
        }
    }
    drop(member);
    drop(coordinator);
    let (written, longest) = work.stop();

    let numbers = vault.group_points(&shop).unwrap();
    let points: Vec<_> =
        numbers.iter().map(|&number| vault.group_point(&shop, number).unwrap()).collect();
    let held = check_group(&vault, &points).unwrap_or_else(|e| panic!("seed {seed:#x}: {e}"));
    let different: std::collections::BTreeSet<u64> = held.iter().copied().collect();
    assert!(different.len() * 10 >= held.len() * 9, "the workload stood still: it proves nothing");
    for point in &points {
        let hosts: Vec<_> = point.members.iter().map(|m| (m.name.as_str(), &m.host)).collect();
        assert!(hosts.contains(&("b", &Some("web1.example".into()))), "{hosts:?}");
        assert!(hosts.contains(&("a", &None)), "{hosts:?}");
    }
    let log = pair.log(0);
    let void = log.lines().filter(|line| line.contains("no group point"));
    let mut why = std::collections::BTreeMap::<String, u32>::new();
    for line in void {
        let reason = line.split("no group point: ").nth(1).unwrap_or(line);
        let plain: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
        *why.entry(plain).or_default() += 1;
    }
    let max = [pair.held_max(0), pair.held_max(1)];
    println!(
        "{} group points, {written} numbers; cable pulled {}, member stopped {}, killed {}; held \
         at most {max:?}, longest write and flush {longest:?}",
        points.len(),
        disturbed[0],
        disturbed[1],
        disturbed[2],
    );
    why.iter().for_each(|(reason, times)| println!("  void {times} times: {reason}"));
    assert!(max.iter().all(|&held| held <= HOLD_DEADLINE + MARGIN), "held for {max:?}");
    // Two holds may meet one write: its own disk's and, by the flush before it, an earlier one.
    assert!(longest <= 2 * (HOLD_DEADLINE + MARGIN), "a write took {longest:?}");
    for disk in &pair.disks {
        pair.hosts[0].backstay(&["verify", &disk.name, "--point", "latest"]);
    }
}
