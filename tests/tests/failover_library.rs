//! Every failover by the library alone: what the command does is done by `backstay-recovery`, and the program is
//! only run to serve disks.
//!
//! Needs root, /dev/fuse and loop devices.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstay_engine::config::Config;
use backstay_front::paths::Roots;
use backstay_recovery::failover::back::{Back, Failback};
use backstay_recovery::failover::source::{Stopping, handover};
use backstay_recovery::failover::target::{
    Committing, Order, Wanted, Which, bring_up, change, commit, remove,
};
use backstay_recovery::failover::{FailoverRecord, Kind, NameLock, ServedDisk, State};
use backstay_recovery::host::cycle::run_once;
use backstay_recovery::host::serve::{From, How};
use backstay_recovery::host::{LocalHost, Program, Silent};
use backstay_recovery::mount::PointChoice;
use backstay_tests::harness::Host;
use backstay_tests::harness::host::{backstay, hash};
use backstay_types::{Classified, CycleNo, DiskName};

const SIZE: u64 = 8 << 20;
const HOW: Committing<'static> = Committing { policy: None, hydrate: false };

/// A host, as a program that uses the library has it.
struct Side {
    host: Arc<Host>,
    roots: Roots,
    config: Config,
}

impl Side {
    fn new(host: Arc<Host>) -> Self {
        // This writes the configuration, and makes the vault.
        drop(host.command());
        let config = Config::load(Some(&host.path("backstay.toml"))).unwrap();
        let roots = Roots::new(Some(host.path("state")), Some(host.runtime.clone()));
        Self { host, roots, config }
    }

    fn here(&self) -> LocalHost<'_> {
        let flags = vec!["--config".into(), self.host.path("backstay.toml").into()];
        let program = Program { path: backstay(), flags };
        LocalHost { roots: &self.roots, config: &self.config, program, told: Box::new(Silent) }
    }

    fn bring_up(&self, kind: Kind, which: Which) -> ServedDisk {
        let local: DiskName = if kind == Kind::Test { "db.test" } else { "db" }.parse().unwrap();
        let order = Order {
            kind,
            name: db(),
            local: local.clone(),
            which,
            vault: None,
            attach: false,
            group: None,
            replica: false,
        };
        let _lock = NameLock::take(&self.roots.state, &local, "test").unwrap();
        bring_up(&self.here(), &order).unwrap()
    }

    fn record(&self, name: &str) -> Option<FailoverRecord> {
        FailoverRecord::load(&self.roots.state, &name.parse().unwrap()).unwrap()
    }

    fn commit(&self) {
        let _lock = NameLock::take(&self.roots.state, &db(), "test").unwrap();
        let report = commit(&self.here(), self.record("db").unwrap(), &HOW).unwrap();
        assert!(report.is_some(), "without a sidecar the first cycle is made at once");
        assert_eq!(self.record("db").unwrap().state, State::Committed);
    }

    fn hand_over(&self) {
        let done = handover(&self.here(), &[db()], None, &Stopping::default()).unwrap();
        assert_eq!(done[0].state, State::HandedOver);
    }

    fn cycle(&self) -> CycleNo {
        run_once(&self.here(), &db(), None).unwrap().cycle
    }
}

fn db() -> DiskName {
    "db".parse().unwrap()
}

fn write(served: &Path, at: u64, what: &str) -> String {
    let file = OpenOptions::new().write(true).open(served).unwrap();
    file.write_all_at(what.as_bytes(), at).unwrap();
    file.sync_all().unwrap();
    hash(served)
}

fn served(side: &Side) -> PathBuf {
    side.here().status(&db()).unwrap().served
}

#[test]
fn there_and_back_without_the_command() {
    let source = Host::new("library-source");
    let target = source.another("library-target");
    let vault = format!("vault = \"{}\"\nallow_local_vault = true\n", source.vault());
    std::fs::write(target.path("backstay.toml"), vault).unwrap();
    // What the harness takes down when the test fails.
    let disk = source.disk("db", SIZE);
    let _others = [target.disk("db", SIZE), target.disk("db.test", SIZE)];
    let (a, b) = (Side::new(source), Side::new(target));

    let from = From::Backing(Some(&disk.backing));
    let file = a.here().serve(&db(), from, &How::default()).unwrap();
    let first = write(&file, 4096, "first");
    let first_point = a.cycle();
    let second = write(&file, 8192, "second");
    a.cycle();

    // A test; and another of its points instead.
    let test = b.bring_up(
        Kind::Test,
        Which::Choice(Wanted { point: PointChoice::Latest, left_history: false }),
    );
    assert_eq!(hash(&test.served), second);
    let record = b.record("db.test").unwrap();
    let to = Wanted { point: PointChoice::Cycle(first_point), left_history: false };
    let lock = NameLock::take(&b.roots.state, &record.name, "test").unwrap();
    let test = change(&b.here(), record, to, true).unwrap();
    assert_eq!(hash(&test.served), first);
    assert!(test.device.is_some());
    remove(&b.here(), b.record("db.test").unwrap()).unwrap();
    drop(lock);
    assert!(
        b.record("db.test").is_none() && !b.roots.disk(&"db.test".parse().unwrap()).state.exists()
    );

    // Planned: nothing is lost, not even what no point had.
    let third = write(&file, 12288, "third");
    a.hand_over();
    assert!(a.here().status(&db()).is_none());
    let up = b.bring_up(Kind::Planned, Which::HandedOver);
    assert_eq!(hash(&up.served), third);
    b.commit();
    let fourth = write(&up.served, 16384, "fourth");

    // Back: it follows, and finishes when the other side hands over.
    let back = |once| Failback {
        name: db(),
        to: disk.backing.clone(),
        vault: None,
        full: false,
        new_disk: false,
        force: false,
        now: false,
        once,
        interval: Duration::from_millis(100),
    };
    assert!(matches!(back(true).run(&a.here()).unwrap(), Back::Following));
    b.hand_over();
    let Back::Done(place, Some(_)) = back(false).run(&a.here()).unwrap() else {
        panic!("the failback is not done")
    };
    assert_eq!(hash(&place.served), fourth);
    assert!(matches!(back(false).run(&a.here()).unwrap(), Back::Already(Some(_))));

    // Unplanned: what no point has is lost, and the old source is told so.
    write(&served(&a), 20480, "lost");
    let up = b.bring_up(
        Kind::Unplanned,
        Which::Choice(Wanted { point: PointChoice::Latest, left_history: false }),
    );
    assert_eq!(hash(&up.served), fourth);
    b.commit();
    let told = run_once(&a.here(), &db(), None).unwrap_err().to_string();
    assert!(told.contains("failed over to another host"), "{told}");
    let refused = commit(&b.here(), b.record("db").unwrap(), &HOW).unwrap_err();
    assert!(refused.is_refusal(), "{refused}");
}
