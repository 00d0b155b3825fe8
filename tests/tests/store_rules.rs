//! What a vault relies on, tried on real stores: of many that put one object one wins, also when answers are
//! lost; and a list that lags does not hide who writes.
//!
//! Needs what `scripts/setup stores` installs.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use backstay_tests::harness::proxy::{Fault, Proxy};
use backstay_tests::harness::store::{Kind, Store};
use backstay_types::{ByteLen, DiskId, Term};
use backstay_vault::remote::StoreSettings;
use backstay_vault::{DiskRecord, Vaults};

/// Writers at once, and how often.
const WRITERS: u64 = 8;
const ROUNDS: u64 = 12;

/// A file of variables, removed when dropped.
struct Variables(PathBuf);

impl Variables {
    fn of(all: &[(String, String)]) -> Self {
        let path = PathBuf::from(format!("/var/tmp/backstay-test-rules-{}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        file.set_permissions(Permissions::from_mode(0o600)).unwrap();
        for (name, value) in all {
            writeln!(file, "{name}={value}").unwrap();
        }
        Self(path)
    }
}

impl Drop for Variables {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn record(disk: DiskId, writer: u64) -> DiskRecord {
    DiskRecord {
        disk,
        name: "db".parse().unwrap(),
        size_bytes: ByteLen(1 << 20),
        sector_bytes: 512,
        created_unix_ns: writer,
    }
}

/// Has many put the same object with other content; the numbers of those who were told that they did.
fn race(vaults: &Vaults, url: &str, disk: DiskId) -> Vec<u64> {
    let barrier = Barrier::new(WRITERS as usize);
    let put = |writer| {
        let vault = vaults.open(url).unwrap();
        barrier.wait();
        vault.create_disk(&record(disk, writer)).is_ok()
    };
    thread::scope(|scope| {
        let put = &put;
        let all: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || put(writer))).collect();
        let told = all.into_iter().map(|thread| thread.join().unwrap()).enumerate();
        told.filter(|(_, won)| *won).map(|(writer, _)| writer as u64).collect()
    })
}

fn rules(vaults: &Vaults, store: &Store, proxy: &Proxy) {
    let (kind, url) = (store.kind, store.url());
    let vault = vaults.create(&url).unwrap();
    // I5: one wins, and what is there is what it put. Then with every third such put done and its answer
    // lost, so that it is sent again and finds itself.
    for round in 0..ROUNDS {
        let puts = AtomicU64::new(0);
        let lossy = round >= ROUNDS / 2;
        proxy.choose(move |request| {
            let this =
                request.only_if_absent && puts.fetch_add(1, Ordering::Relaxed).is_multiple_of(3);
            if lossy && this { Fault::LoseAnswer } else { Fault::Pass }
        });
        let disk = DiskId::random();
        let winners = race(vaults, &url, disk);
        let there = vault.disk(disk).unwrap().created_unix_ns;
        assert_eq!(winners, [there], "{kind:?}, round {round}");
    }
    // The list of terms stays as it was: the next term is seen all the same.
    let disk = DiskId::random();
    vault.create_disk(&record(disk, 0)).unwrap();
    vault.term_or_first(disk, "the old source").unwrap();
    proxy.choose(|request| match request.lists("/terms") {
        true => Fault::Stale,
        false => Fault::Pass,
    });
    let before = proxy.faults();
    assert_eq!(vault.newest_term(disk).unwrap().unwrap().term, Term(1));
    vault.claim_term(disk, "the new source").unwrap();
    let newest = vault.newest_term(disk).unwrap().unwrap();
    assert_eq!((newest.term, &newest.writer[..]), (Term(2), "the new source"), "{kind:?}");
    assert_eq!(vault.terms(disk).unwrap().len(), 2);
    assert!(proxy.faults() >= before + 3, "no list was stale");
    proxy.choose(|_| Fault::Pass);
}

#[test]
fn one_wins_and_lists_may_lag() {
    let stores = Kind::ALL.map(Store::start);
    let proxies = stores.each_ref().map(|store| Proxy::start(store.port));
    let all = stores.iter().zip(&proxies).flat_map(|(store, proxy)| store.variables_through(proxy));
    let file = Variables::of(&all.collect::<Vec<_>>());
    let settings =
        StoreSettings { credentials_file: Some(file.0.clone()), ..StoreSettings::default() };
    let vaults = Vaults::default().with_store(settings);
    for (store, proxy) in stores.iter().zip(&proxies) {
        rules(&vaults, store, proxy);
    }
}
