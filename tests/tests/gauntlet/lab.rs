//! A healthy protected disk with a running sidecar, to be hurt, and what is asked of it.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstay_host::clock;
use backstay_tests::harness::command::said;
use backstay_tests::harness::gateway::Gateway;
use backstay_tests::harness::metrics::{Metrics, scrape_within};
use backstay_tests::harness::pki::Pki;
use backstay_tests::harness::proxy::Proxy;
use backstay_tests::harness::service::Service;
use backstay_tests::harness::store::Store;
use backstay_tests::harness::{Disk, Host, must};
use serde_json::Value;

const SIZE: u64 = 2 << 20;
/// An interval of the sidecar is a second: no fault may need longer than this to be seen, or to be gone.
const SOON: Duration = Duration::from_secs(40);
/// How often somebody writes.
const OFTEN: Option<Duration> = Some(Duration::from_secs(2));
/// How long a scrape is waited for.
const SCRAPE: Duration = Duration::from_secs(3);
/// Rows at a time: most of their time is waiting.
const AT_ONCE: usize = 3;
/// What every sidecar here is told.
pub const BASE: &str = "interval = \"1s\"\nretry = [\"500ms\"]\n";
/// No port of its own is taken by two.
pub const METRICS: &str = "[metrics]\nlisten = \"127.0.0.1:0\"\n";

/// A line of the table.
pub struct Fault {
    /// What is done.
    pub name: &'static str,
    /// How it is seen.
    pub seen: Seen,
    /// The cause: status, doctor and metrics must have one of these ids.
    pub cause: &'static [&'static str],
    /// Words of which status and doctor (or the command that sees it) must say one; none: the id says it.
    pub says: &'static [&'static str],
    /// Does it.
    pub inject: fn(&mut Lab),
    /// Takes it away, with no more than the one command that was named.
    pub mend: fn(&mut Lab),
}

/// How a fault is seen.
pub enum Seen {
    /// By the sidecar, in an interval: in status, doctor, the exit code and the metrics.
    Itself,
    /// The same, and nobody writes to the disk meanwhile.
    Idle,
    /// The same, after this command, which ends with this exit code and names it.
    After(&'static [&'static str], i32),
    /// The same while the sidecar is stopped, which would mend it at once.
    Before(&'static [&'static str], i32),
    /// Nothing can be told at all: status, doctor and metrics fail and name it, and the running sidecar tells that
    /// its configuration makes no sense.
    Refused,
}

/// What a disk lives in.
pub struct Lab {
    pub host: Arc<Host>,
    pub disk: Disk,
    /// Another disk in the same vault.
    pub other: Disk,
    /// The host that is asked about the disk `d`, if another one.
    pub asked: Option<Arc<Host>>,
    pub service: Option<Service>,
    /// Where its metrics are.
    metrics: String,
    /// What was hurt, as it was before.
    kept: Vec<(PathBuf, Option<Vec<u8>>)>,
    moved: Vec<(PathBuf, PathBuf)>,
    seed: u64,
    pub settings: String,
    pub gateway: Option<Gateway>,
    pub pki: Option<Pki>,
    pub store: Option<(Store, Proxy)>,
    pub child: Option<std::process::Child>,
}

/// One with its vault in a directory, which is a small file system.
pub fn on_a_directory() -> Lab {
    let host = Host::new("gauntlet");
    small(&host.path("vault"), "24m");
    Lab::new(host, format!("{BASE}keep = \"last 3\"\n"))
}

/// A small file system of its own.
pub fn small(at: &Path, size: &str) {
    fs::create_dir_all(at).unwrap();
    let options = format!("mode=700,size={size}");
    must("mount", ["-t", "tmpfs", "-o", &options, "gauntlet", at.to_str().unwrap()]);
}

impl Lab {
    /// With these settings; empty ones: the configuration is written already.
    pub fn new(host: Arc<Host>, settings: String) -> Self {
        let (disk, other) = (host.disk("d", SIZE), host.disk("e", SIZE));
        let mut lab = Self {
            host,
            disk,
            other,
            asked: None,
            service: None,
            metrics: String::new(),
            kept: vec![],
            moved: vec![],
            seed: 0,
            settings,
            gateway: None,
            pki: None,
            store: None,
            child: None,
        };
        if !lab.settings.is_empty() {
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
        lab.start();
        lab
    }

    /// Starts the sidecar.
    pub fn start(&mut self) {
        let service = Service::start(&self.host);
        let line = service.says("metrics are at http://");
        let at = line.split("http://").nth(1).unwrap_or_default();
        self.metrics = at.trim().trim_end_matches("/metrics").into();
        self.service = Some(service);
    }

    /// Starts the sidecar again: vaults are looked after once a minute, and by one that was started just now.
    pub fn begin_again(&mut self) {
        self.service = None;
        self.start();
    }

    /// Sends the sidecar a signal.
    pub fn signal(&self, signal: &str) {
        self.service.as_ref().expect("a sidecar").signal(signal);
    }

    /// The configuration, with these lines more.
    pub fn configure(&self, more: &str) {
        let text = format!(
            "vault = \"{}\"\nallow_local_vault = true\n{}{more}{METRICS}",
            self.host.vault(),
            self.settings
        );
        fs::write(self.host.path("new.toml"), text).unwrap();
        fs::rename(self.host.path("new.toml"), self.host.path("backstay.toml")).unwrap();
    }

    /// Puts lines at the head of the section of the store, in the place of those that were put before.
    pub fn edit(&self, lines: &str) {
        let path = self.host.path("backstay.toml");
        let text = fs::read_to_string(&path).unwrap();
        let (head, tail) = text.split_once("[store]\n").expect("a store");
        let tail = tail.split_once("# put\n").map_or(tail, |(_, tail)| tail);
        let text = format!("{head}[store]\n{lines}# put\n{tail}");
        fs::write(self.host.path("new.toml"), text).unwrap();
        fs::rename(self.host.path("new.toml"), path).unwrap();
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

    /// The host that is asked.
    fn asked(&self) -> &Host {
        self.asked.as_ref().unwrap_or(&self.host)
    }

    /// What status says of the disk; what it says if it fails.
    pub fn status(&self) -> Result<Value, String> {
        let output = self.asked().try_backstay(&["--json", "status", "d"]);
        if output.status.code() != Some(0) {
            return Err(format!("status ended with {}: {}", output.status, said(&output)));
        }
        let mut all: Value = serde_json::from_slice(&output.stdout).unwrap();
        Ok(all[0].take())
    }

    /// The causes for worry that a status has, as `id: reason`.
    fn worries(status: &Value) -> BTreeSet<String> {
        let causes = status["health"]["causes"].as_array().into_iter().flatten();
        let text = |cause: &Value| {
            let part = |name: &str| cause[name].as_str().unwrap_or_default().to_owned();
            format!("{}: {}", part("id"), part("reason"))
        };
        causes.filter(|cause| cause["level"] != "ok").map(text).collect()
    }

    /// What doctor is worried about.
    fn doctor(&self) -> String {
        let output = self.asked().try_backstay(&["--json", "doctor", "d"]);
        let findings: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let bad = findings.as_array().into_iter().flatten();
        let lines = bad.filter(|finding| finding["verdict"] != "ok").map(ToString::to_string);
        lines.collect::<Vec<_>>().join("\n")
    }

    /// What `--exit-code` makes of the status.
    fn monitored(&self) -> Option<i32> {
        self.asked().try_backstay(&["status", "d", "--exit-code"]).status.code()
    }

    /// The metrics that are printed.
    fn printed(&self) -> Result<Metrics, String> {
        let output = self.asked().try_backstay(&["metrics"]);
        match output.status.success() {
            true => Ok(Metrics::parse(&String::from_utf8_lossy(&output.stdout))),
            false => Err(said(&output)),
        }
    }

    /// The metrics that the sidecar tells; none if it does not answer, which Prometheus knows as `up == 0`.
    fn told(&self) -> Option<Metrics> {
        self.service.as_ref().filter(|_| self.asked.is_none())?;
        scrape_within(&self.metrics, SCRAPE).ok()
    }

    /// Whether the fault is seen, and its cause named, by everybody.
    fn is_seen(&self, fault: &Fault) -> Result<(), String> {
        let named = |text: &str| fault.says.iter().any(|word| text.contains(word));
        let id = |text: &str| fault.cause.contains(&text.split(": ").next().unwrap_or_default());
        if matches!(fault.seen, Seen::Refused) {
            let failed = self.status().err().ok_or("status succeeds")?;
            let doctor = said(&self.asked().try_backstay(&["doctor", "d"]));
            let printed = self.printed().err().ok_or("metrics are printed")?;
            for text in [&failed, &doctor, &printed] {
                named(text).then_some(()).ok_or_else(|| format!("not named: {text}"))?;
            }
            let told = self.told().ok_or("the sidecar does not tell")?;
            return match told.of("backstay_configuration_valid", &[]) {
                0.0 => Ok(()),
                other => Err(format!("the configuration's metric is {other}")),
            };
        }
        let causes = Self::worries(&self.status()?);
        let is_it = |cause: &String| id(cause) && (fault.says.is_empty() || named(cause));
        if !causes.iter().any(is_it) {
            return Err(format!("status says {causes:?}"));
        }
        let doctor = self.doctor();
        let in_doctor = if fault.says.is_empty() {
            causes.iter().filter(|cause| is_it(cause)).any(|cause| {
                // Ages and counts in a reason go on.
                let reason = cause.split_once(": ").map_or("", |(_, reason)| reason);
                let begin: String = reason.chars().take(24).collect();
                doctor.replace('\\', "").contains(&begin.replace('\\', ""))
            })
        } else {
            named(&doctor)
        };
        if !in_doctor {
            return Err(format!("doctor says {doctor}; status {causes:?}"));
        }
        match self.monitored() {
            Some(10 | 20) => {}
            other => return Err(format!("the exit code is {other:?}; status {causes:?}")),
        }
        let mut all = vec![("printed", self.printed()?)];
        all.extend(self.told().map(|told| ("told", told)));
        for (how, metrics) in all {
            let hot = metrics.causes("d");
            if !hot.iter().any(|cause| fault.cause.contains(cause)) {
                return Err(format!("metrics {how}: {hot:?}; status {causes:?}"));
            }
            let health = metrics.health("d");
            if !matches!(health, "warning" | "critical") {
                return Err(format!("metrics {how}: the health is {health}"));
            }
        }
        Ok(())
    }

    /// Whether all is well: nothing that anybody would look at says otherwise.
    fn is_healthy(&self) -> Result<(), String> {
        let status = self.status()?;
        let causes = Self::worries(&status);
        if !causes.is_empty() {
            return Err(format!("afterwards status says {causes:?}"));
        }
        // What was written is in a point.
        if self.asked.is_none() && (status["dirty_bytes"] != 0 || status["state"] != "protected") {
            let (dirty, state) = (&status["dirty_bytes"], &status["state"]);
            return Err(format!("afterwards the disk is {state}, and {dirty} bytes are dirty"));
        }
        let code = self.monitored();
        if code != Some(0) {
            return Err(format!("afterwards the exit code is {code:?}"));
        }
        if self.asked.is_none() {
            let told = self.told().ok_or("afterwards the sidecar does not answer")?;
            let (health, causes) = (told.health("d"), told.causes("d"));
            if health != "ok" || !causes.is_empty() {
                return Err(format!("afterwards metrics say {health}, {causes:?}"));
            }
        }
        Ok(())
    }

    /// Does the one thing that status says, if it says that nothing goes on without it.
    fn resume_if_told(&self) {
        let Ok(status) = self.status() else { return };
        let failure = &status["record"]["failure"];
        if failure["person_must_act"] == true && failure["tried_again"] == false {
            let causes = status["health"]["causes"].to_string();
            let named = causes.contains("backstay resume d") || causes.contains("fenced");
            assert!(named, "nobody says how to go on: {causes}");
            self.host.backstay(&["resume", "d"]);
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
        // What is being written.
        all.retain(|path| !path.file_name().unwrap().to_string_lossy().contains(['#', '.']));
        all.sort();
        all
    }

    /// The newest object below a folder of a disk.
    pub fn newest(&self, name: &str, kind: &str) -> PathBuf {
        self.objects(name, kind).pop().unwrap_or_else(|| panic!("no {kind} of {name}"))
    }

    /// Pins the newest point of a disk; the pin's object.
    pub fn pin(&mut self, disk: &str) -> PathBuf {
        self.seed += 1;
        let name = format!("pin-{}", self.seed);
        let before = self.objects(disk, "holds");
        self.host.backstay(&["pin", disk, "latest", "--name", &name]);
        // Readers hold points for a moment, too.
        let mut new = self.objects(disk, "holds");
        new.retain(|path| {
            !before.contains(path) && fs::read_to_string(path).is_ok_and(|t| t.contains(&name))
        });
        new.pop().expect("the pin is there")
    }

    /// Remembers a file as it is, for [`Self::bring_back`].
    pub fn keep(&mut self, path: &Path) {
        self.kept.push((path.into(), fs::read(path).ok()));
    }

    /// Does something to a file; [`Self::bring_back`] undoes it.
    pub fn hurt(&mut self, path: &Path, how: impl FnOnce(&Path)) {
        self.keep(path);
        how(path);
    }

    /// Moves a file or folder away; [`Self::bring_back`] moves it back.
    pub fn take_away(&mut self, path: &Path) {
        self.seed += 1;
        // In the same file system, and not where anybody looks.
        let name = format!(".aside-{}", self.seed);
        let aside = path.parent().unwrap().join(name);
        fs::rename(path, &aside).unwrap();
        self.moved.push((path.into(), aside));
    }

    /// Brings back what was hurt or moved: what a person does who has its file system again.
    pub fn bring_back(&mut self) {
        for (path, before) in self.kept.drain(..).rev() {
            match before {
                // A link is not written through.
                Some(bytes) => {
                    let _ = fs::remove_file(&path);
                    fs::write(&path, bytes).unwrap();
                }
                None => drop(fs::remove_file(&path)),
            }
        }
        for (path, aside) in self.moved.drain(..).rev() {
            must("rm", ["-rf", path.to_str().unwrap()]);
            fs::rename(aside, path).unwrap();
        }
    }

    /// Whether a stopped driver would stop this test, too.
    fn can_write(&self) -> bool {
        !self.host.path("frozen").exists()
    }

    /// Tries until it holds, or no longer. Somebody writes to the disks once in a while, or nobody does.
    fn until<T>(
        &mut self,
        writes: Option<Duration>,
        mut holds: impl FnMut(&mut Self) -> Result<T, String>,
    ) -> Result<T, String> {
        let began = clock::monotonic();
        let mut written = began;
        loop {
            match holds(self) {
                Err(why) if clock::since(began) > SOON => return Err(why),
                Err(_) => {}
                done => return done,
            }
            if writes.is_some_and(|every| clock::since(written) > every) && self.can_write() {
                written = clock::monotonic();
                self.write();
            }
            // Nobody tells when a status changes.
            clock::sleep(Duration::from_millis(150));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.service = None;
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
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

/// A line of the table, tried.
fn try_one(lab: &mut Lab, fault: &Fault) -> Result<(), String> {
    // Nothing is under way.
    lab.until(OFTEN, |lab| lab.is_healthy()).map_err(|why| format!("before: {why}"))?;
    (fault.inject)(lab);
    let mut done = Ok(());
    if matches!(fault.seen, Seen::Before(..)) {
        lab.signal("-STOP");
    }
    if let Seen::After(args, code) | Seen::Before(args, code) = fault.seen {
        let output = lab.asked().try_backstay(args);
        let text = said(&output);
        let named = fault.says.is_empty() || fault.says.iter().any(|word| text.contains(word));
        if output.status.code() != Some(code) || !named {
            done = Err(format!("{args:?} ended with {}: {text}", output.status));
        }
    }
    let writes = matches!(fault.seen, Seen::Itself);
    if writes && lab.can_write() {
        lab.write();
    }
    done =
        done.and_then(|()| lab.until(writes.then_some(OFTEN).flatten(), |lab| lab.is_seen(fault)));
    (fault.mend)(lab);
    if matches!(fault.seen, Seen::Before(..)) {
        lab.signal("-CONT");
    }
    lab.bring_back();
    if lab.can_write() {
        lab.write();
    }
    done.and_then(|()| {
        lab.until(OFTEN, |lab| {
            lab.resume_if_told();
            lab.is_healthy()
        })
    })
}

/// Runs a table, some rows at a time; all that did not hold is said at the end.
pub fn run(faults: &[Fault], make: fn() -> Lab) {
    let only = std::env::var("BACKSTAY_GAUNTLET").unwrap_or_default();
    let rows: VecDeque<&Fault> = faults.iter().filter(|fault| fault.name.contains(&only)).collect();
    let (rows, red) = (Mutex::new(rows), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let mut lab: Option<Lab> = None;
                loop {
                    let Some(fault) = rows.lock().unwrap().pop_front() else { return };
                    let began = clock::monotonic();
                    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        let mut this = lab.take().unwrap_or_else(make);
                        let done = try_one(&mut this, fault);
                        // After a row that did not hold, the next one begins with a new disk.
                        lab = done.is_ok().then_some(this);
                        done
                    }));
                    let done = tried.unwrap_or_else(|_| Err("panicked; see above".into()));
                    println!(
                        "{:6.1} s  {}  {done:?}",
                        clock::since(began).as_secs_f64(),
                        fault.name
                    );
                    if let Err(why) = done {
                        red.lock().unwrap().push(format!("{}: {why}", fault.name));
                    }
                }
            });
        }
    });
    let red = red.into_inner().unwrap();
    assert!(red.is_empty(), "{} did not hold:\n{}", red.len(), red.join("\n"));
}
