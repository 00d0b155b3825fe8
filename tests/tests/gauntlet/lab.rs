//! A healthy protected disk to be hurt, and what is asked of it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_tests::harness::command::said;
use backstay_tests::harness::gateway::Gateway;
use backstay_tests::harness::pki::Pki;
use backstay_tests::harness::proxy::Proxy;
use backstay_tests::harness::store::Store;
use backstay_tests::harness::{Disk, Host, must};
use serde_json::Value;

const SIZE: u64 = 2 << 20;

/// A line of the table.
pub struct Fault {
    /// What is done.
    pub name: &'static str,
    /// Where it must be seen.
    pub seen: Seen,
    /// The cause: an id, or words of the message. One of them must be there wherever it is seen.
    pub says: &'static [&'static str],
    /// Does it.
    pub inject: fn(&mut Lab),
    /// Takes it away, with no more than the one command that was named.
    pub mend: fn(&mut Lab),
}

/// Where a fault must be seen.
pub enum Seen {
    /// After a cycle was tried: in status, in doctor, and in the exit code of one of them or of the cycle.
    Cycle,
    /// The same, when no cycle was tried.
    Look,
    /// By a command about the disk `d`, which ends with this exit code.
    By(&'static [&'static str], i32),
}

/// What a disk lives in.
pub struct Lab {
    pub host: Arc<Host>,
    pub disk: Disk,
    /// Another disk in the same vault.
    pub other: Disk,
    pub settings: &'static str,
    /// What status says of a healthy disk here.
    healthy: BTreeSet<String>,
    seed: u64,
    pub gateway: Option<Gateway>,
    pub pki: Option<Pki>,
    pub store: Option<(Store, Proxy)>,
}

/// One with its vault in a directory, which is a small file system.
pub fn on_a_directory() -> Lab {
    let host = Host::new("gauntlet");
    let vault = host.path("vault");
    fs::create_dir(&vault).unwrap();
    must("mount", ["-t", "tmpfs", "-o", "size=24m", "gauntlet", vault.to_str().unwrap()]);
    Lab::new(host, "interval = \"1h\"\nretry = [\"1s\"]\nkeep = \"last 3\"\n")
}

impl Lab {
    pub fn new(host: Arc<Host>, settings: &'static str) -> Self {
        let (disk, other) = (host.disk("d", SIZE), host.disk("e", SIZE));
        let mut lab = Self {
            host,
            disk,
            other,
            settings,
            healthy: BTreeSet::new(),
            seed: 0,
            gateway: None,
            pki: None,
            store: None,
        };
        if !settings.is_empty() {
            lab.configure("");
        }
        for disk in [&lab.disk, &lab.other] {
            disk.mount(&[]);
        }
        lab.write();
        for _ in 0..2 {
            for disk in [&lab.disk, &lab.other] {
                disk.cycle();
            }
            lab.write();
        }
        lab
    }

    /// One whose configuration is written already.
    pub fn on_store(host: Arc<Host>) -> Self {
        Self::new(host, "")
    }

    /// The configuration, with these lines more.
    pub fn configure(&self, more: &str) {
        if self.gateway.is_none() && self.store.is_none() {
            let text = format!("vault = \"{}\"\n{}{more}", self.host.vault(), self.settings);
            fs::write(self.host.path("backstay.toml"), text).unwrap();
        }
    }

    /// Changes both disks a little, so that the next cycle has something to ship.
    pub fn write(&mut self) {
        self.seed += 1;
        let mut bytes = vec![0; 8192];
        fastrand::Rng::with_seed(self.seed).fill(&mut bytes);
        for disk in [&self.disk, &self.other] {
            let served = disk.host.runtime.join(&disk.name);
            if !served.exists() || disk.driver_pid().is_none() {
                continue;
            }
            let file = fs::File::options().write(true).open(disk.served()).unwrap();
            file.write_all_at(&bytes, self.seed % 64 * 16_384).unwrap();
            file.sync_all().unwrap();
        }
    }

    /// The causes for worry that status gives, as `id: reason`; what it says if it fails.
    fn status(&self) -> (BTreeSet<String>, Option<i32>) {
        let output = self.host.try_backstay(&["--json", "status", "d"]);
        let code = output.status.code();
        if code != Some(0) {
            return ([format!("status: {}", said(&output))].into(), code);
        }
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        let causes = all[0]["health"]["causes"].as_array().cloned().unwrap_or_default();
        let worry = |cause: &&Value| cause["level"] != "ok";
        let text = |cause: &Value| {
            let part = |name: &str| cause[name].as_str().unwrap_or_default().to_owned();
            format!("{}: {}", part("id"), part("reason"))
        };
        (causes.iter().filter(worry).map(text).collect(), code)
    }

    /// What doctor is worried about, and its exit code.
    fn doctor(&self) -> (String, Option<i32>) {
        let output = self.host.try_backstay(&["--json", "doctor", "d"]);
        let findings: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let bad = findings.as_array().cloned().unwrap_or_default().into_iter();
        let bad = bad.filter(|finding| finding["verdict"] != "ok");
        let lines: Vec<String> = bad.map(|finding| finding.to_string()).collect();
        (lines.join("\n"), output.status.code())
    }

    /// What `--exit-code` makes of the status.
    fn monitored(&self) -> Option<i32> {
        self.host.try_backstay(&["status", "d", "--exit-code"]).status.code()
    }

    /// Ids alone: messages have times in them.
    fn ids(causes: &BTreeSet<String>) -> BTreeSet<String> {
        causes.iter().map(|c| c.split(": ").next().unwrap_or_default().to_owned()).collect()
    }

    fn check(&mut self, fault: &Fault) -> Result<(), String> {
        let named = |text: &str| fault.says.iter().any(|word| text.contains(word));
        if let Seen::By(args, code) = fault.seen {
            let output = self.host.try_backstay(args);
            let text = said(&output);
            return match output.status.code() == Some(code) && named(&text) {
                true => Ok(()),
                false => Err(format!("{args:?} ended with {}: {text}", output.status)),
            };
        }
        let mut cycle = (Some(0), String::new());
        if matches!(fault.seen, Seen::Cycle) {
            let output = self.host.try_backstay(&["cycle", "d"]);
            cycle = (output.status.code(), said(&output));
        }
        let (causes, status) = self.status();
        let new: Vec<&String> = causes.difference(&self.healthy).collect();
        if !new.iter().any(|cause| named(cause)) {
            return Err(format!("status says {causes:?}; the cycle: {cycle:?}"));
        }
        let (doctor, examined) = self.doctor();
        if !named(&doctor) {
            return Err(format!("doctor says {doctor}; status {causes:?}"));
        }
        let codes = [cycle.0, status, examined, self.monitored()];
        match codes.iter().any(|code| *code != Some(0)) {
            true => Ok(()),
            false => Err(format!("every exit code is 0, and status says {causes:?}")),
        }
    }

    fn is_healthy(&mut self) -> Result<(), String> {
        self.write();
        let output = self.host.try_backstay(&["cycle", "d"]);
        if !output.status.success() {
            return Err(format!("afterwards: {}", said(&output)));
        }
        let (causes, _) = self.status();
        match Self::ids(&causes) == Self::ids(&self.healthy) {
            true => Ok(()),
            false => Err(format!("afterwards status says {causes:?}")),
        }
    }

    /// A new folder of the host.
    pub fn new_folder(&mut self) -> PathBuf {
        self.seed += 1;
        let folder = self.host.path(&format!("folder-{}", self.seed));
        fs::create_dir(&folder).unwrap();
        folder
    }

    /// The folder of the vault.
    pub fn vault(&self) -> PathBuf {
        self.host.path("vault")
    }

    /// The folder of a disk in the vault: the one whose record has this name.
    pub fn of(&self, name: &str) -> PathBuf {
        let word = format!("\"name\": \"{name}\"");
        let disks = fs::read_dir(self.vault().join("disks")).unwrap().flatten();
        disks
            .map(|entry| entry.path())
            .find(|path| {
                fs::read_to_string(path.join("disk.json"))
                    .is_ok_and(|text| text.replace("\":\"", "\": \"").contains(&word))
            })
            .unwrap_or_else(|| panic!("no disk {name}"))
    }

    /// Objects below a folder of a disk, oldest first.
    pub fn objects(&self, name: &str, kind: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.of(name).join(kind)).into_iter().flatten().flatten();
        let mut all: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        all.sort();
        all
    }

    /// The newest object below a folder of a disk.
    pub fn newest(&self, name: &str, kind: &str) -> PathBuf {
        self.objects(name, kind).pop().unwrap_or_else(|| panic!("no {kind} of {name}"))
    }

    /// Keeps the vault as it is, for [`Self::bring_back`].
    pub fn keep_vault(&self) {
        copy(&self.vault(), &self.host.path("kept"));
    }

    /// Brings the vault back as it was kept: what a person does who has its file system again.
    pub fn bring_back(&mut self) {
        let vault = self.vault();
        for entry in fs::read_dir(&vault).unwrap().flatten() {
            must("rm", ["-rf", entry.path().to_str().unwrap()]);
        }
        copy(&self.host.path("kept"), &vault);
    }
}

fn copy(from: &Path, to: &Path) {
    must("rm", ["-rf", &format!("{}.new", to.display())]);
    fs::create_dir_all(to).unwrap();
    must("cp", ["-a", &format!("{}/.", from.display()), to.to_str().unwrap()]);
}

/// Changes a byte in the middle of a file.
pub fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

/// Cuts a file in half.
pub fn halve(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

/// Runs a table; all that did not hold is said at the end.
pub fn run(faults: &[Fault], make: fn() -> Lab) {
    let only = std::env::var("BACKSTAY_GAUNTLET").unwrap_or_default();
    let mut lab: Option<Lab> = None;
    let mut red = vec![];
    for fault in faults.iter().filter(|fault| fault.name.contains(&only)) {
        let began = backstay_host::clock::monotonic();
        let mut this = lab.take().unwrap_or_else(|| {
            let mut lab = make();
            lab.healthy = lab.status().0;
            lab
        });
        if this.gateway.is_none() && this.store.is_none() {
            must("rm", ["-rf", this.host.path("kept").to_str().unwrap()]);
            this.keep_vault();
        }
        (fault.inject)(&mut this);
        this.write_if_served();
        let mut done = this.check(fault);
        (fault.mend)(&mut this);
        done = done.and_then(|()| this.is_healthy());
        println!("{:6.1} s  {}  {done:?}", began.elapsed().as_secs_f64(), fault.name);
        match done {
            Ok(()) => lab = Some(this),
            // The next one begins with a new disk.
            Err(why) => red.push(format!("{}: {why}", fault.name)),
        }
    }
    assert!(red.is_empty(), "{} did not hold:\n{}", red.len(), red.join("\n"));
}

impl Lab {
    fn write_if_served(&mut self) {
        // A stopped driver would stop this test, too.
        if !self.host.path("frozen").exists() {
            self.write();
        }
    }
}
