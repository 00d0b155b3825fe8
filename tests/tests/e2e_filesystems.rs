//! Real file systems on protected disks: a file tree is copied in and changed while cycles run;
//! every recovery point is restored and equals the disk at its cut; `fsck` finds nothing.
//!
//! Needs root, /dev/fuse, loop devices, e2fsprogs, xfsprogs.

use std::fs;
use std::path::Path;

use backstay_tests::harness::host::hash;
use backstay_tests::harness::{FsMount, Host, must};

const MIB: u64 = 1 << 20;

/// The size and checksum of every file below a folder.
fn tree(at: &Path) -> String {
    let script = "cd \"$0\" && find . -type f -print0 | sort -z | xargs -0 sha256sum";
    must("sh", ["-c", script, &at.to_string_lossy()])
}

fn every_point_is_the_disk_at_its_cut(fs_type: &str, mkfs: &[&str], fsck: &[&str]) {
    let host = Host::new(fs_type);
    let disk = host.disk("data", 1024 * MIB);
    let device = disk.attach();
    must(mkfs[0], mkfs[1..].iter().copied().chain([device.as_str()]));
    let mounted = FsMount::new(&host, &device, "mnt", "rw");
    let mut expected = vec![];
    for round in 0..4 {
        // A real tree, different each round: copied, changed, removed, discarded.
        let target = mounted.at.join(format!("round{round}"));
        must("cp", ["-r", "/usr/include/", &target.to_string_lossy()]);
        if round > 0 {
            let old = mounted.at.join(format!("round{}", round - 1));
            must(
                "sh",
                ["-c", "find \"$0\" -name '*.h' | head -200 | xargs rm -f", &old.to_string_lossy()],
            );
            fs::write(old.join("changed"), vec![round as u8; 300_000]).unwrap();
            must("fstrim", [&mounted.at]);
        }
        if round == 2 {
            // A cycle of a busy file system: its point must at least replay its journal.
            disk.cycle();
        }
        let files = tree(&mounted.at);
        must("fsfreeze", ["-f", &mounted.at.to_string_lossy()]);
        let before = hash(&disk.backing);
        let cycled = host.try_backstay(&["cycle", &disk.name]);
        must("fsfreeze", ["-u", &mounted.at.to_string_lossy()]);
        assert!(cycled.status.success(), "{}", backstay_tests::harness::command::said(&cycled));
        let newest = disk.points().last().expect("a point").cycle;
        expected.push((newest, before, files));
    }
    drop(mounted);
    host.backstay(&["detach", &disk.name]);
    host.backstay(&["verify", &disk.name]);

    for point in disk.points() {
        let image = disk.restore(point.cycle, "restored.img");
        let path = image.to_string_lossy();
        if let Some((_, content, files)) = expected.iter().find(|(cycle, ..)| *cycle == point.cycle)
        {
            assert_eq!(&hash(&image), content, "point {} is not the disk at its cut", point.cycle);
            let mounted = FsMount::new(&host, &path, "restored", "loop,ro,norecovery");
            assert_eq!(&tree(&mounted.at), files, "files of point {}", point.cycle);
        }
        // Mounting once replays the journal, as after a crash: XFS keeps one even when frozen.
        drop(FsMount::new(&host, &path, "restored", "loop"));
        must(fsck[0], fsck[1..].iter().copied().chain([path.as_ref()]));
        fs::remove_file(image).unwrap();
    }
}

#[test]
fn ext4() {
    every_point_is_the_disk_at_its_cut("ext4", &["mkfs.ext4", "-q"], &["e2fsck", "-fn"]);
}

#[test]
fn xfs() {
    every_point_is_the_disk_at_its_cut("xfs", &["mkfs.xfs", "-q"], &["xfs_repair", "-n"]);
}

#[test]
fn qemu_uses_the_served_file_as_a_raw_disk() {
    let host = Host::new("qemu");
    let disk = host.disk("vm", 64 * MIB);
    let served = disk.mount(&[]);
    let served = served.to_string_lossy();
    for command in ["write -P 0x5a 1M 2M", "write -z 2M 512k", "discard 1M 64k", "flush"] {
        must("qemu-io", ["-f", "raw", "-t", "none", "-c", command, &served]);
    }
    disk.cycle();
    let cycle = disk.points()[0].cycle;
    let image = disk.restore(cycle, "restored.img");
    let compared =
        must("qemu-img", ["compare", "-f", "raw", "-F", "raw", &served, &image.to_string_lossy()]);
    assert!(compared.contains("identical"), "{compared}");
    must("qemu-io", ["-f", "raw", "-c", "read -P 0x5a 1088k 960k", &image.to_string_lossy()]);
    host.backstay(&["umount", &disk.name]);
}
