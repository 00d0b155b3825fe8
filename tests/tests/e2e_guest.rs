//! A machine in QEMU runs from a protected disk; it is replicated while it writes, and what comes back
//! boots with all that it knew to be written.
//!
//! Needs root, /dev/fuse, qemu-system-x86.

use std::collections::BTreeMap;
use std::path::Path;

use backstay_tests::harness::Host;
use backstay_tests::harness::guest::{Guest, Task, copy_image, image};

#[test]
fn a_machine_on_a_protected_disk_boots_from_every_point_with_what_it_had_written() {
    let host = Host::new("guest");
    let size = std::fs::metadata(image()).unwrap().len();
    let disk = host.disk("machine", size);
    copy_image(&disk.backing);
    let served = disk.mount(&[]);
    let guest = Guest::boot(&served, Task::Write);
    let mut files = BTreeMap::new();
    let mut before_each = vec![];
    for _ in 0..3 {
        guest.write(3, &mut files);
        guest.written(&mut files);
        before_each.push(files.clone());
        disk.cycle();
    }
    // As when its host loses power.
    drop(guest);
    let points = disk.points();
    assert_eq!(points.len(), before_each.len());
    // From the newest point at once, as it is in the vault.
    let (newest, before) = (points[2], &before_each[2]);
    let other = Host::new("guest-other");
    // For its clean-up; the file is not used.
    other.disk("back", 512);
    let point = newest.cycle.to_string();
    let mount = ["mount", "--vault", &host.vault(), "--disk", "machine", "--point", &point];
    let mounted = other.backstay(&[&mount[..], &["--name", "back"]].concat());
    must_have(Guest::boot(Path::new(mounted.trim()), Task::Check), before, newest.cycle);
    // The long form: every point, restored.
    let long = std::env::var_os("BACKSTAY_TEST_LONG").is_some();
    for (point, before) in points.iter().zip(&before_each).filter(|_| long) {
        let image = disk.restore(point.cycle, "restored.img");
        must_have(Guest::boot(&image, Task::Check), before, point.cycle);
    }
}

fn must_have(guest: Guest, before: &BTreeMap<String, String>, cycle: u64) {
    let back = guest.checked();
    assert_eq!(back.get("0").map(String::len), Some(64), "the file of the image");
    for (name, hash) in before {
        assert_eq!(back.get(name), Some(hash), "file {name} at point {cycle}");
    }
    println!("point {cycle}: {} files, at least {}", back.len(), before.len());
}
