//! A driver beside its writers in a small memory cgroup of version 2, with the right to be an I/O flusher and without it.
//!
//! In a machine of its own (QEMU), so that it does not matter which version of cgroups this host has. `e2e_tracking` has version
//! 1 on the host itself.
//!
//! Needs root, qemu-system-x86.

use std::fs::File;
use std::path::Path;

use backstay_tests::harness::guest::Guest;
use backstay_tests::harness::host::backstay;
use backstay_tests::harness::lab::Lab;

/// Writes more than the group may hold, again and again; a deadlock shows as silence.
const SCRIPT: &str = r#"
mke2fs -q /dev/vda >/dev/null && mount -t ext2 /dev/vda /disk || echo "GUEST failed: no disk"
mount -t tmpfs none /run
groups=/sys/fs/cgroup
mount -t cgroup2 none $groups
echo +memory >$groups/cgroup.subtree_control
mkdir $groups/small
echo 100663296 >$groups/small/memory.max
cat >/tmp/backstay.toml <<END
state_dir = "/disk/state"
runtime_dir = "/run/backstay"
END
truncate -s 256M /disk/backing
ours() { backstay --config /tmp/backstay.toml "$@"; }
without() { /programs/setpriv --bounding-set -sys_resource --inh-caps -sys_resource backstay --config /tmp/backstay.toml "$@"; }

# NAME, ENGINE, how to start it; then writers in the group for SECONDS.
try() {
    name=$1 engine=$2 start=$3
    (echo 0 >$groups/small/cgroup.procs
     $start mount /disk/backing --name d --engine $engine >/dev/null) || { echo "GUEST failed: $name does not start"; return; }
    until=$(($(cut -d . -f 1 /proc/uptime) + SECONDS))
    (echo 0 >$groups/small/cgroup.procs
     rounds=0
     while [ $(cut -d . -f 1 /proc/uptime) -lt $until ]; do
         for writer in 0 1; do
             dd if=/dev/zero of=/run/backstay/d/mnt/disk bs=1M seek=$((writer * 120)) count=120 conv=notrunc,fsync 2>/dev/null &
         done
         wait
         rounds=$((rounds + 1))
     done
     echo "GUEST wrote $name $rounds")
    driver=$(ours --json status d | tr ',' '\n' | sed -n 's/.*"pid": *\([0-9][0-9]*\).*/\1/p' | head -n 1)
    if grep -q /small /proc/$driver/cgroup; then echo "GUEST group $name small"; else echo "GUEST group $name root"; fi
    ours umount d || echo "GUEST failed: $name does not end"
}

try flusher buffered ours
try flusher-direct direct ours
try leaves buffered without
(echo 0 >$groups/small/cgroup.procs; mount -o remount,ro $groups; without mount /disk/backing --name d >/tmp/said 2>&1
 echo "GUEST refused-in-group $?"; cat /tmp/said)
echo "GUEST over"
"#;

#[test]
fn writers_and_driver_in_one_small_group_of_version_2_do_not_wait_for_each_other() {
    let seconds = if std::env::var_os("BACKSTAY_TEST_LONG").is_some() { "60" } else { "12" };
    let script = SCRIPT.replace("SECONDS))", &format!("{seconds}))"));
    let lab = Lab::new(&[&backstay(), Path::new("/usr/bin/setpriv")], &script);
    let disk = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    File::options().write(true).open(disk.path()).unwrap().set_len(1 << 30).unwrap();
    let guest = Guest::boot_lab(&lab, disk.path());
    for (name, group) in [("flusher", "small"), ("flusher-direct", "small"), ("leaves", "root")] {
        let rounds = guest.line(&format!("GUEST wrote {name} "));
        assert!(rounds.parse::<u32>().unwrap() >= 1, "{name}: {rounds}");
        assert_eq!(guest.line(&format!("GUEST group {name} ")), group);
    }
    assert_eq!(guest.line("GUEST refused-in-group "), "3");
    let _ = guest.line("GUEST over");
}
