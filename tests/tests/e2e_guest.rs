//! A machine in QEMU runs from a protected disk; it is replicated while it writes, and what comes back
//! boots with all that it knew to be written.
//!
//! Needs root, /dev/fuse, qemu-system-x86.

use std::collections::BTreeMap;

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
    let long = std::env::var_os("BACKSTAY_TEST_LONG").is_some();
    for (point, before) in points.iter().zip(before_each).rev() {
        let image = disk.restore(point.cycle, "restored.img");
        let back = Guest::boot(&image, Task::Check).checked();
        assert_eq!(back.get("0").map(String::len), Some(64), "the file of the image");
        for (name, hash) in &before {
            assert_eq!(back.get(name), Some(hash), "file {name} at point {}", point.cycle);
        }
        println!("point {}: {} files, at least {}", point.cycle, back.len(), before.len());
        if !long {
            break;
        }
    }
}
