//! What a failed cycle has put is used by the next one: whatever ends it, and wherever, hardly anything goes up twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;

use backstay_tests::harness::backend::{Backend, Role};
use backstay_tests::harness::command::said;
use backstay_tests::harness::host::{hash, wait_gone};
use backstay_tests::harness::proxy::{Fault, Proxy, Request};
use backstay_tests::harness::service::SOON;
use backstay_tests::harness::store::{Kind, Store};
use backstay_tests::harness::{Disk, Host};

use super::{MIB, noise};

const SETTINGS: &str = "interval = \"1d\"\n[ship]\nsegment_size = \"1MiB\"\nupload_parallel = 1\n";
const SEGMENTS: u64 = 16;

/// A disk whose first copy has so many segments, before a store with a proxy.
struct Lab {
    proxy: Proxy,
    host: Arc<Host>,
    disk: Disk,
    /// Segments that the store has taken.
    puts: Arc<AtomicU64>,
    _store: Store,
}

fn is_segment(request: &Request) -> bool {
    request.method == "PUT" && request.target.contains("/segments/")
}

impl Lab {
    fn new(test: &str) -> Self {
        let store = Store::start(Kind::Locking);
        let proxy = Proxy::start(store.port);
        let host = Host::new(test);
        let patience = "retries = 1\nretry_timeout = \"2s\"\n";
        Backend::through(&store, &proxy).connect(&host, Role::Source, SETTINGS, patience);
        let disk = host.disk("db", SEGMENTS * MIB + MIB);
        noise(&disk.backing, 0, SEGMENTS * MIB, 1);
        disk.mount(&[]);
        Self { proxy, host, disk, puts: Arc::default(), _store: store }
    }

    /// From now on, after so many segments, what is to be put meets a fault.
    fn after(&self, segments: u64, fault: Fault) {
        let (puts, seen) = (Arc::clone(&self.puts), AtomicU64::new(0));
        self.proxy.choose(move |request| {
            if !is_segment(request) {
                return Fault::Pass;
            }
            if seen.fetch_add(1, Ordering::SeqCst) >= segments {
                return fault;
            }
            puts.fetch_add(1, Ordering::SeqCst);
            Fault::Pass
        });
    }

    fn puts(&self) -> u64 {
        self.puts.load(Ordering::SeqCst)
    }

    fn is_whole(&self) {
        self.after(u64::MAX, Fault::Pass);
        self.disk.cycle();
        let newest = self.disk.points().pop().unwrap().cycle;
        assert_eq!(hash(&self.disk.restore(newest, "restored.img")), hash(&self.disk.served()));
        self.host.backstay(&["verify", "db"]);
    }
}

/// Each try gets one segment further, then the store answers that there is no such thing.
#[test]
fn a_first_copy_that_fails_at_each_segment_sends_nothing_twice() {
    let lab = Lab::new("stores-resumed");
    for n in 0..SEGMENTS - 2 {
        lab.after(1, Fault::Answer(404));
        let failed = lab.host.try_backstay(&["cycle", "db"]);
        assert_eq!(failed.status.code(), Some(1), "{n}: {}", said(&failed));
        // Written meanwhile: what was there is not what is kept any more.
        if n % 4 == 3 {
            noise(&lab.disk.served(), (n - 2) * MIB, 4096, n);
        }
    }
    lab.is_whole();
    assert!(lab.puts() <= SEGMENTS + 6, "{} puts of {SEGMENTS} segments", lab.puts());
    // A delta, too.
    let before = lab.puts();
    noise(&lab.disk.served(), 0, 8 * MIB, 99);
    for _ in 0..8 {
        lab.after(1, Fault::Answer(404));
        lab.host.try_backstay(&["cycle", "db"]);
    }
    lab.is_whole();
    assert!(lab.puts() - before <= 8 + 3, "{} puts of 8 segments", lab.puts() - before);
}

/// The same when it is killed, and the machine's driver, too.
#[test]
fn a_first_copy_that_is_killed_goes_on() {
    let lab = Lab::new("stores-killed");
    const KILLS: u64 = 5;
    for n in 0..KILLS {
        let (reached, in_the_middle) = channel();
        let (puts, seen) = (Arc::clone(&lab.puts), AtomicU64::new(0));
        lab.proxy.choose(move |request| {
            if is_segment(request) {
                if seen.fetch_add(1, Ordering::SeqCst) == 3 {
                    let _ = reached.send(());
                    return Fault::Stall;
                }
                puts.fetch_add(1, Ordering::SeqCst);
            }
            Fault::Pass
        });
        let mut cycle = lab.host.start(&["cycle", "db"]);
        in_the_middle.recv_timeout(SOON).unwrap();
        cycle.kill().unwrap();
        wait_gone(cycle.id() as i32);
        cycle.wait().unwrap();
        if n == 2 {
            lab.disk.kill_driver();
            lab.disk.mount(&[]);
        }
    }
    lab.is_whole();
    assert!(lab.puts() <= SEGMENTS + KILLS + 2, "{} puts of {SEGMENTS} segments", lab.puts());
}

/// A store that loses what it had taken: what is gone ships again, and the point is whole.
#[test]
fn what_was_kept_and_is_gone_ships_again() {
    let lab = Lab::new("stores-lost");
    lab.after(8, Fault::Answer(404));
    lab.host.try_backstay(&["cycle", "db"]);
    let (kept, gone) = (lab.puts(), AtomicU64::new(0));
    assert!(kept >= 7, "{kept}");
    let puts = Arc::clone(&lab.puts);
    let lost = std::sync::Mutex::new(None::<String>);
    lab.proxy.choose(move |request| {
        if is_segment(request) {
            puts.fetch_add(1, Ordering::SeqCst);
        }
        // The first segment that is read back is not there.
        let path = request.target.split('?').next().unwrap_or_default();
        if request.method == "GET" && path.contains("/segments/") {
            let mut lost = lost.lock().unwrap();
            if lost.get_or_insert_with(|| path.to_owned()) == path {
                gone.fetch_add(1, Ordering::SeqCst);
                return Fault::Answer(404);
            }
        }
        Fault::Pass
    });
    lab.disk.cycle();
    assert!((SEGMENTS + 1..=SEGMENTS + 3).contains(&lab.puts()), "{}", lab.puts());
    lab.after(u64::MAX, Fault::Pass);
    assert_eq!(hash(&lab.disk.restore(1, "restored.img")), hash(&lab.disk.served()));
}
