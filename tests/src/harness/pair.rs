//! Two hosts that have nothing in common but a vault: folders of their own, network namespaces of their
//! own. The vault lies where the target is; the source knows it by its URL.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use super::host::{Disk, FsMount, Host};
use super::netns::Cable;
use super::service::{Service, wait_for};
use super::{must, run};

/// A side: which of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where the disk is first.
    Source = 0,
    /// Where it goes.
    Target = 1,
}

/// The two.
pub struct Pair {
    hosts: [Arc<Host>; 2],
    cable: Cable,
    /// The vault's URL.
    pub vault: String,
}

impl Pair {
    /// Two hosts with these settings.
    ///
    /// # Panics
    /// Without root or network namespaces.
    pub fn new(test: &str, settings: &str) -> Self {
        let cable = Cable::new();
        let hosts = ["source", "target"].map(|side| Host::new(&format!("{test}-{side}")));
        let vault = hosts[1].vault();
        for host in &hosts {
            let config = format!("vault = \"{vault}\"\n{settings}");
            fs::write(host.path("backstay.toml"), config).unwrap();
        }
        Self { hosts, cable, vault }
    }

    /// One of them.
    #[must_use]
    pub fn host(&self, side: Side) -> &Arc<Host> {
        &self.hosts[side as usize]
    }

    /// A command as it runs in a host's network.
    #[must_use]
    pub fn on(&self, side: Side, command: &Command) -> Command {
        self.cable.on(side as usize, command)
    }

    /// The vault's folder.
    #[must_use]
    pub fn vault_folder(&self) -> PathBuf {
        self.hosts[1].path("vault")
    }
}

/// A disk that is in use on a host: served, attached, mounted.
pub struct InUse {
    /// The disk.
    pub disk: Disk,
    /// Its loop device.
    pub device: String,
    /// Where its file system is.
    pub mounted: Option<FsMount>,
    /// What ships it.
    pub sidecar: Option<Service>,
}

impl InUse {
    /// A new disk with ext4 on it.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new(host: &Arc<Host>, name: &str, size: u64) -> Self {
        let disk = host.disk(name, size);
        let device = disk.attach();
        must("mkfs.ext4", ["-q", &device]);
        let mut new = Self { disk, device, mounted: None, sidecar: None };
        new.mount();
        new
    }

    /// A recovery point of the vault, in use on a host that has nothing else of it.
    ///
    /// # Panics
    /// If it cannot be brought up.
    pub fn of_point(host: &Arc<Host>, name: &str, point: &str) -> Self {
        Self::of_point_with(host, name, &["--point", point])
    }

    /// The same, with further arguments.
    ///
    /// # Panics
    /// If it cannot be brought up.
    pub fn of_point_with(host: &Arc<Host>, name: &str, more: &[&str]) -> Self {
        // For its clean-up; the file is not used.
        let disk = host.disk(name, 512);
        let device = host.backstay(&[&["attach", "--disk", name, "--name", name], more].concat());
        let mut new = Self { disk, device: device.trim().into(), mounted: None, sidecar: None };
        new.mount();
        new
    }

    /// The disk of a host that is gone, brought up on this one; not committed yet.
    ///
    /// # Panics
    /// If it cannot be brought up.
    pub fn failed_over(host: &Arc<Host>, name: &str) -> Self {
        // For its clean-up; the file is not used.
        let disk = host.disk(name, 512);
        let device = host.backstay(&["failover", "unplanned", name, "--attach"]);
        let mut new = Self { disk, device: device.trim().into(), mounted: None, sidecar: None };
        new.mount();
        new
    }

    /// Brings the disk back to its first host while this one goes on serving it. Takes it down here when
    /// `quiet` has ended what uses it: nothing that was written until then may be lost.
    ///
    /// # Panics
    /// If any of it fails.
    pub fn fail_back(self, to: Disk, quiet: impl FnOnce()) -> Self {
        let Self { disk, mounted, sidecar, .. } = self;
        let backing = to.backing.to_string_lossy().into_owned();
        let mut follows = to.host.start(&["failback", &to.name, "--to", &backing]);
        // It follows: it holds a point here when it has begun.
        let holds = |kind: &str| {
            let holds = disk.host.json(&["holds", &disk.name]);
            holds.as_array().is_some_and(|all| all.iter().any(|hold| hold["kind"] == kind))
        };
        wait_for("the replica", || {
            assert_eq!(follows.try_wait().unwrap(), None, "failback ended");
            holds("replica")
        });
        quiet();
        drop(mounted);
        disk.host.backstay(&["failover", "handover", &disk.name]);
        drop(sidecar);
        let ended = follows.wait().unwrap();
        assert!(ended.success(), "failback: {ended}");
        let device = to.attach();
        let mut back = Self { disk: to, device, mounted: None, sidecar: None };
        back.mount();
        back
    }

    /// Mounts its file system.
    ///
    /// # Panics
    /// If that cannot be done.
    pub fn mount(&mut self) {
        self.mounted = Some(FsMount::new(&self.disk.host, &self.device, "mnt", "rw"));
    }

    /// Where its file system is.
    ///
    /// # Panics
    /// If it is not mounted.
    #[must_use]
    pub fn at(&self) -> PathBuf {
        self.mounted.as_ref().expect("it is mounted").at.clone()
    }

    /// Its host goes, as by a power loss: driver and sidecar are killed, nothing is flushed. What uses
    /// the disk is the caller's to kill.
    ///
    /// # Panics
    /// If there was no driver.
    pub fn host_is_gone(mut self) -> Disk {
        // First what would flush.
        self.disk.kill_driver();
        if let Some(mut sidecar) = self.sidecar.take() {
            sidecar.child.kill().unwrap();
            sidecar.child.wait().unwrap();
        }
        if let Some(mounted) = self.mounted.take() {
            run("umount", ["-l".as_ref(), mounted.at.as_os_str()]);
        }
        run("losetup", ["-d", &self.device]);
        self.disk
    }
}
