//! Groups of one host: two processes write a sequence number to disk A, flush, then to disk B, while
//! group points are made back to back. Every one of them is read back from the vault: in none is B
//! ahead of A. Short form some hundred points, long form (`BACKSTAY_TEST_LONG`) a thousand.
//!
//! Needs root, /dev/fuse.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;

use backstay_tests::harness::ordered::{
    Ordered, check_group, check_pair, number_in, second_writer,
};
use backstay_tests::harness::{Disk, Host};
use backstay_types::CycleNo;
use backstay_vault::{GroupName, GroupPoint, Vault};

const SIZE: u64 = 4 << 20;

fn points_wanted() -> usize {
    if std::env::var_os("BACKSTAY_TEST_LONG").is_some() { 1_000 } else { 150 }
}

/// The other process of the workload.
#[test]
#[ignore = "it is a process of the other tests"]
fn second_writer_process() {
    second_writer();
}

fn host_with_group(test: &str, settings: &str) -> (Arc<Host>, Disk, Disk) {
    let host = Host::new(test);
    let config = format!(
        "vault = \"{}\"\nallow_local_vault = true\n[group.shop]\ndisks = [\"a\", \"b\"]\n{settings}",
        host.vault()
    );
    fs::write(host.path("backstay.toml"), config).unwrap();
    let (a, b) = (host.disk("a", SIZE), host.disk("b", SIZE));
    a.mount(&[]);
    b.mount(&[]);
    (host, a, b)
}

fn group_points(vault: &Vault) -> Vec<GroupPoint> {
    let shop: GroupName = "shop".parse().unwrap();
    let numbers = vault.group_points(&shop).unwrap();
    numbers.into_iter().map(|number| vault.group_point(&shop, number).unwrap()).collect()
}

#[test]
fn no_disk_of_a_group_point_is_ahead() {
    let (host, a, b) = host_with_group("group", "hold_deadline = \"2s\"\n");
    let work = Ordered::start(&a.served(), &b.served(), host.path("ordered.sock"));
    let mut points = vec![];
    while points.len() < points_wanted() {
        let count = (points_wanted() - points.len()).to_string();
        // A round on a busy machine may be void; what counts is what there is.
        let _ = host
            .command()
            .args(["--json", "group", "cycle", "shop", "--count", &count])
            .stdout(Stdio::null())
            .status();
        points = group_points(&host.open_vault());
    }
    let (written, longest) = work.stop();
    let vault = host.open_vault();
    let held = check_group(&vault, &points).unwrap();
    println!("{} group points, {written} numbers, longest write {longest:?}", points.len());
    let different: std::collections::BTreeSet<u64> = held.iter().copied().collect();
    assert!(different.len() * 10 >= held.len() * 9, "the workload stood still: it proves nothing");

    // The library that read them agrees with what a person restores.
    for point in points.iter().step_by(points.len().div_ceil(5)) {
        for (disk, member) in [&a, &b].into_iter().zip(["a", "b"]) {
            let member = point.members.iter().find(|m| m.name.as_str() == member).unwrap();
            let image = disk.restore(member.cycle.0, "restored.img");
            let block = fs::read(image).unwrap()[..4096].to_vec();
            let restored = backstay_tests::harness::stamp::read_stamp(0, &block).unwrap();
            assert_eq!(restored, number_in(&vault, member.disk, member.cycle).unwrap());
        }
    }
    let listed = host.json(&["group", "points", "shop"]);
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), points.len());
    assert!(listed.iter().all(|point| point["complete"] == true), "{listed:?}");
    // The commands it names restore it.
    let commands = listed[0]["restore"].as_array().unwrap();
    for command in commands.iter().map(|command| command.as_str().unwrap()) {
        let mut words: Vec<&str> = command.split(' ').skip(1).collect();
        let to = host.path(words.pop().unwrap()).with_extension("back");
        words.push(to.to_str().unwrap());
        host.backstay(&words);
        assert_eq!(fs::metadata(&to).unwrap().len(), SIZE);
    }
    assert_eq!(commands.len(), 2);
    host.backstay(&["verify", "a"]);
    host.backstay(&["verify", "b"]);
}

/// The oracle must be able to fail: cycles of both disks at the same time, without a hold.
#[test]
fn cuts_without_a_hold_are_found() {
    let (host, a, b) = host_with_group("nohold", "");
    let work = Ordered::start(&a.served(), &b.served(), host.path("ordered.sock"));
    let mut found = None;
    for _ in 0..200 {
        let mut both = [&a, &b].map(|disk| {
            host.command()
                .args(["--quiet", "cycle", &disk.name])
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        });
        both.iter_mut().for_each(|cycle| assert!(cycle.wait().unwrap().success()));
        let vault = host.open_vault();
        let [in_a, in_b] = [&a, &b].map(|disk| {
            let id = vault.disk_named(&disk.name.parse().unwrap()).unwrap().disk;
            let newest: CycleNo = *vault.points(id).unwrap().last().unwrap();
            number_in(&vault, id, newest).unwrap()
        });
        if let Err(wrong) = check_pair(in_a, in_b)
            && in_b > in_a
        {
            found = Some(wrong);
            break;
        }
    }
    work.stop();
    println!("found: {}", found.expect("200 pairs of cuts without a hold, and B never ahead"));
}

/// A round that cannot be: a disk of the group has no driver. The other still gets its point.
#[test]
fn a_void_round_leaves_points_of_their_own() {
    let (host, a, b) = host_with_group("void", "ready_deadline = \"5s\"\n");
    host.backstay(&["group", "cycle", "shop"]);
    host.backstay(&["umount", "b"]);
    let before = a.points().len();
    let failed = host.try_backstay(&["group", "cycle", "shop"]);
    assert_eq!(failed.status.code(), Some(1));
    let vault = host.open_vault();
    assert_eq!(group_points(&vault).len(), 1);
    b.mount(&[]);
    // Somebody else is at the disk's cycle: it is busy, A is not.
    let mut lease = busy(&b);
    let report = host.try_backstay(&["--json", "group", "cycle", "shop"]);
    assert_eq!(report.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    assert!(report["void"].as_str().unwrap().contains("disk b"), "{report}");
    assert!(report["point"].is_null());
    assert!(a.points().len() > before, "A went on alone");
    assert_eq!(group_points(&vault).len(), 1);
    // The lease ends with its connection.
    lease.status().unwrap();
    drop(lease);
    host.backstay(&["group", "cycle", "shop"]);
    assert_eq!(group_points(&vault).len(), 2);
}

fn busy(disk: &Disk) -> backstay_front::control::ControlClient {
    use backstay_format::control::Request;
    let mut client =
        backstay_front::control::ControlClient::connect(&disk.control_socket()).unwrap();
    client.ask(&Request::Lease { client: "the test".into() }).unwrap();
    client
}

/// Applications wait for their own disk's cut: their hooks run once all disks have come to it, and the
/// point of the disk that has them is application-consistent.
#[test]
fn hooks_run_around_the_cut_of_a_group() {
    let (host, a, b) = host_with_group("hooks", "");
    let (pre, post) = (host.path("pre"), host.path("post"));
    let config = fs::read_to_string(host.path("backstay.toml")).unwrap();
    let hooks = format!(
        "[disk.a.hooks]\npre = [\"echo x >> {}\"]\npost = [\"echo x >> {}\"]\n",
        pre.display(),
        post.display()
    );
    fs::write(host.path("backstay.toml"), config + &hooks).unwrap();
    host.backstay(&["group", "cycle", "shop"]);
    let vault = host.open_vault();
    let point = group_points(&vault).pop().expect("a group point");
    for (disk, consistency) in [(&a, "application"), (&b, "crash")] {
        let member = point.members.iter().find(|m| m.name.as_str() == disk.name).unwrap();
        let listed = host.json(&["points", &disk.name]);
        let listed = listed.as_array().unwrap().iter().find(|p| p["cycle"] == member.cycle.0);
        assert_eq!(listed.unwrap()["consistency"], consistency, "disk {}", disk.name);
    }
    let runs = |path: &std::path::Path| fs::read_to_string(path).unwrap().lines().count();
    assert_eq!(runs(&pre), runs(&post), "anyone who was told to wait is told to go on");
}

/// The service makes rounds; what somebody waits for is not left to the next one, and a group whose
/// disk is in a blackout window makes none.
#[test]
fn the_service_makes_rounds_and_cycles_on_demand() {
    let (host, a, b) = host_with_group("service", "interval = \"1h\"\n");
    a.cycle();
    b.cycle();
    let mut service = host.start(&["sidecar"]);
    let ends = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let wait_until = |what: &str, done: &dyn Fn() -> bool| {
        while !done() {
            assert!(std::time::Instant::now() < ends, "waiting for {what}");
        }
    };
    let vault = host.open_vault();
    wait_until("the first round", &|| !group_points(&vault).is_empty());
    let before = a.points().len();
    host.backstay(&["cycle", "a", "--by-sidecar", "--no-wait"]);
    wait_until("the cycle on demand", &|| a.points().len() > before);
    assert_eq!(b.points().len(), before, "B is left to the group's next round, in an hour");
    assert_eq!(group_points(&vault).len(), 1);
    service.kill().unwrap();
    service.wait().unwrap();

    // A's blackout lasts the whole week: no rounds, and B goes on alone.
    let config = format!(
        "vault = \"{}\"\nallow_local_vault = true\ninterval = \"1s\"\nheartbeat = \"0s\"\n\
         [group.shop]\ndisks = [\"a\", \"b\"]\n\
         [disk.a]\nblackout = \"Sunday;0:00;7d\"\n",
        host.vault()
    );
    fs::write(host.path("backstay.toml"), config).unwrap();
    let (of_a, of_b) = (a.points().len(), b.points().len());
    let mut service = host.start(&["sidecar"]);
    wait_until("B's own points", &|| b.points().len() > of_b + 1);
    assert_eq!((a.points().len(), group_points(&vault).len()), (of_a, 1));
    service.kill().unwrap();
    service.wait().unwrap();
}
