//! A store that takes connections and says nothing.

use std::time::{Duration, Instant};

use backstay_tests::harness::Host;
use backstay_tests::harness::backend::{Backend, Role};
use backstay_tests::harness::proxy::{Fault, Proxy};
use backstay_tests::harness::service::{Service, wait_for};
use backstay_tests::harness::store::{Kind, Store};

use super::{MIB, noise};

/// How long it may take until it is told, with time for a busy machine. The settings are those of every day: requests are
/// waited for much longer.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn a_silent_store_is_told_and_taken_back() {
    let store = Store::start(Kind::Locking);
    let proxy = Proxy::start(store.port);
    let host = Host::new("stores-silent");
    Backend::through(&store, &proxy).connect(&host, Role::Source, "interval = \"1s\"\n", "");
    let disk = host.disk("db", 16 * MIB);
    let served = disk.mount(&[]);
    disk.cycle();
    let _service = Service::start(&host);
    wait_for("the sidecar", || disk.causes().is_empty());
    proxy.choose(|_| Fault::Stall);
    noise(&served, 0, 4 * MIB, 1);
    let began = Instant::now();
    wait_for("the cause", || disk.causes() == ["vault-silent"]);
    assert!(began.elapsed() < TOLD_WITHIN, "{:?}", began.elapsed());
    let before = disk.status()["health"]["causes"][0].clone();
    assert!(before["reason"].as_str().unwrap().contains("has not answered"), "{before}");
    // It is tried on: nobody has to do anything. What hangs already is not answered any more.
    proxy.choose(|_| Fault::Pass);
    wait_for("it to be taken back", || disk.causes().is_empty());
    proxy.release();
    wait_for("a point", || disk.points().len() == 2);
    assert!(disk.causes().is_empty());
}
