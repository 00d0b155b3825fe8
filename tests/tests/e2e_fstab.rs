//! `mount -t backstay`, lines of fstab, and umount: with the system's own mount(8) and umount(8).
//!
//! Needs root, /dev/fuse, loop devices. The helpers have to be in /sbin: each test's shell has a mount
//! namespace of its own with a layer over /usr/sbin, so that the machine keeps its own.

use std::fs;
use std::process::{Command, Output};
use std::sync::Arc;

use backstay_tests::harness::command::said;
use backstay_tests::harness::host::{backstay, wait_gone};
use backstay_tests::harness::{Host, must};

const MIB: u64 = 1 << 20;

/// A host whose mount(8) knows the type.
struct Mounts {
    host: Arc<Host>,
}

impl Mounts {
    fn new(test: &str) -> Self {
        let host = Host::new(test);
        for dir in ["mnt", "other", "layer"] {
            fs::create_dir(host.path(dir)).unwrap();
        }
        // So that the configuration is there.
        host.command();
        Self { host }
    }

    /// The options that say where this host's state is.
    fn at(&self) -> String {
        let dir = self.host.dir.display();
        let runtime = self.host.runtime.display();
        format!("config={dir}/backstay.toml,state-dir={dir}/state,runtime-dir={runtime}")
    }

    /// Runs a script in a namespace with the helpers; `$M` and `$O` are mount points, `$AT` the options.
    fn sh(&self, script: &str) -> Output {
        let script = format!(
            "set -eu; export PATH=$PATH:/usr/sbin:/sbin
             mount -t tmpfs none $DIR/layer; mkdir $DIR/layer/upper $DIR/layer/work
             mount -t overlay none -o lowerdir=/usr/sbin,upperdir=$DIR/layer/upper,workdir=$DIR/layer/work \
             /usr/sbin
             ln -s $BACKSTAY /usr/sbin/mount.backstay; ln -s $BACKSTAY /usr/sbin/umount.backstay
             {script}"
        );
        let dir = &self.host.dir;
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        shell.env("DIR", dir).env("BACKSTAY", backstay()).env("AT", self.at());
        shell.env("M", dir.join("mnt")).env("O", dir.join("other"));
        shell.output().unwrap()
    }

    #[track_caller]
    fn must(&self, script: &str) -> String {
        let output = self.sh(script);
        println!("{}", said(&output));
        assert!(output.status.success(), "{script}: {}\n{}", output.status, said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Nothing is served any more, no loop device is left.
    #[track_caller]
    fn nothing_is_left(&self, name: &str) {
        let socket = self.host.runtime.join(name).join("control.sock");
        assert!(!socket.exists(), "its driver still runs");
        let devices = must("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"]);
        assert!(!devices.contains(&*self.host.dir.to_string_lossy()), "{devices}");
        assert!(!devices.contains(&*self.host.runtime.to_string_lossy()), "{devices}");
    }
}

/// A disk with a file system on it.
fn with_ext4(host: &Arc<Host>, name: &str) -> backstay_tests::harness::Disk {
    let disk = host.disk(name, 64 * MIB);
    must("mkfs.ext4", ["-q", &disk.backing.to_string_lossy()]);
    disk
}

#[test]
fn mount_serves_and_umount_ends_it() {
    let mounts = Mounts::new("fstab-mount");
    let disk = with_ext4(&mounts.host, "d");
    mounts.must(&format!(
        "mount -t backstay {} $M -o name=d,noatime,_netdev,x-some.thing=1,$AT
         grep -q \"/dev/loop.* $M ext4 rw,noatime\" /proc/mounts
         echo one >$M/one; umount $M
         mount -t backstay d $M -o $AT; grep one $M/one; mountpoint -q $M
         umount $M",
        disk.backing.display()
    ));
    mounts.nothing_is_left("d");
    // It was stopped cleanly: what is dirty is known exactly.
    mounts.host.backstay(&["mount", "--name", "d"]);
    assert_eq!(disk.status()["found"], "clean");
}

#[test]
fn lines_of_fstab() {
    let mounts = Mounts::new("fstab-lines");
    let _disk = with_ext4(&mounts.host, "d");
    let fstab = mounts.host.path("fstab");
    let (dir, at) = (mounts.host.dir.display(), mounts.at());
    let line = |options: &str| {
        format!("{dir}/d.img {dir}/mnt backstay name=d,fs=ext4,{options},{at} 0 0\n")
    };
    fs::write(&fstab, line("_netdev,nofail,x-systemd.requires=backstay-disk@d.service")).unwrap();
    mounts.must(
        "F=$DIR/fstab
         mount -a -T $F; mountpoint -q $M
         before=$(cat /proc/self/mountinfo); mount -a -T $F
         [ \"$before\" = \"$(cat /proc/self/mountinfo)\" ]   # a second one changes nothing
         mount -T $F -o remount,ro $M; grep -q \"$M ext4 ro\" /proc/mounts
         umount $M; ! mountpoint -q $M
         mount -T $F $M; umount -l $M",
    );
    // After a lazy one the driver may take its time; nothing waits for it, nothing is left.
    if let Some(pid) = mounts.host.json(&["status", "d"])[0]["driver"]["pid"].as_i64() {
        wait_gone(i32::try_from(pid).unwrap());
    }
    mounts.nothing_is_left("d");
}

/// Somebody who only looks at the device for a moment (losetup, udev) does not keep the driver of a lazy umount.
#[test]
fn a_lazy_umount_waits_for_those_who_are_about_to_be_gone() {
    let mounts = Mounts::new("fstab-lazy");
    let disk = with_ext4(&mounts.host, "d");
    mounts.must(&format!(
        "mkfifo $DIR/said
         mount -t backstay {} $M -o name=d,$AT; exec 9<>$(findmnt -no SOURCE $M)
         umount -l $M 9>&- 2>$DIR/said &
         exec 8<$DIR/said; read -r line <&8; echo \"$line\" | grep \"waiting up to\"
         exec 9>&-; cat <&8; wait $!",
        disk.backing.display()
    ));
    mounts.nothing_is_left("d");
}

#[test]
fn a_driver_that_was_there_stays_and_one_device_is_enough() {
    let mounts = Mounts::new("fstab-stays");
    let disk = with_ext4(&mounts.host, "d");
    disk.mount(&[]);
    let pid = disk.driver_pid();
    mounts.must(
        "mount -t backstay d $M -o $AT; mount -t backstay d $O -o $AT
         echo one >$M/one; grep one $O/one           # one page cache
         umount $M; echo two >$O/two; umount $O",
    );
    assert_eq!(disk.driver_pid(), pid);
    // Started by a mount it lives until the last mount is gone.
    mounts.host.backstay(&["umount", "d"]);
    mounts.must(
        "mount -t backstay d $M -o $AT; mount -t backstay d $O -o $AT
         umount $M; grep two $O/two; umount $O",
    );
    mounts.nothing_is_left("d");
}

#[test]
fn what_fails_leaves_nothing() {
    let mounts = Mounts::new("fstab-fails");
    let empty = mounts.host.disk("e", 8 * MIB);
    let fails = |script: &str, why: &str, code: i32| {
        let output = mounts.sh(script);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(why), "{text}");
        mounts.nothing_is_left("e");
    };
    let path = empty.backing.display().to_string();
    fails(&format!("mount -t backstay {path} $M -o $AT"), "name=NAME", 32);
    fails(&format!("mount -t backstay {path} $M -o name=e,fs=ext4,$AT"), "mkfs.ext4", 32);
    fails("mount -t backstay nobody $M -o $AT", "nobody", 32);
    fails(&format!("mount -t backstay {path} $M -o name=e,engine=warp,$AT"), "engine", 32);
    fails(&format!("mount -t backstay {path} $M/none -o name=e,$AT"), "none", 32);
    fails("umount $M", "not mounted", 32);
    // A fake mount does nothing.
    mounts.must(&format!("mount -f -t backstay {path} $M -o name=e,$AT; ! mountpoint -q $M"));
    mounts.nothing_is_left("e");
    // In use: umount says so and everything goes on.
    let disk = with_ext4(&mounts.host, "d");
    mounts.must(&format!(
        "mount -t backstay {} $M -o name=d,$AT
         cd $M; ! umount $M; echo on >$M/on; cd /; umount $M",
        disk.backing.display()
    ));
    mounts.nothing_is_left("d");
}
