//! Odd answers of an object store, and none.

use std::net::TcpListener;
use std::time::Duration;

use backstay_tests::harness::Host;
use backstay_tests::harness::backend::{Backend, Role};
use backstay_tests::harness::proxy::{Fault as Answer, Proxy};
use backstay_tests::harness::store::{Kind, Store};

use super::lab::{BASE, Fault, Lab, METRICS, Seen};

const STORE: &str = "retries = 0\ntimeout = \"500ms\"\nretry_timeout = \"1s\"\n";

/// A disk whose vault is in a store behind a proxy.
pub fn lab() -> Lab {
    let host = Host::new("gauntlet-store");
    let store = Store::start(Kind::Locking);
    let proxy = Proxy::start(store.port);
    Backend::through(&store, &proxy).connect(
        &host,
        Role::Source,
        BASE,
        &format!("{STORE}{METRICS}"),
    );
    let mut lab = Lab::new(host, String::new());
    lab.store = Some((store, proxy));
    lab
}

fn passes(lab: &mut Lab) {
    let proxy = &lab.store.as_ref().unwrap().1;
    proxy.choose(|_| Answer::Pass);
    proxy.release();
}

/// A line whose fault is an answer to all requests of a method.
macro_rules! answers {
    ($name:literal, $method:literal, $answer:expr, $cause:expr) => {
        Fault {
            name: $name,
            seen: Seen::Itself,
            cause: $cause,
            says: &[],
            inject: |lab| {
                lab.store.as_ref().unwrap().1.choose(|request| {
                    match $method == "*" || request.method == $method {
                        true => $answer,
                        false => Answer::Pass,
                    }
                });
            },
            mend: passes,
        }
    };
}

const FAILED: &[&str] = &["cycle-failed", "cycle-stopped", "vault-gone", "store-refused"];

pub const FAULTS: &[Fault] = &[
    answers!("a store answers 500", "*", Answer::Answer(500), FAILED),
    answers!("a store answers puts with 503", "PUT", Answer::Answer(503), FAILED),
    answers!("a store answers 429", "*", Answer::Answer(429), FAILED),
    answers!("a store answers 401", "*", Answer::Answer(401), FAILED),
    answers!("a store answers 403", "*", Answer::Answer(403), FAILED),
    answers!("a store answers puts with 403", "PUT", Answer::Answer(403), FAILED),
    answers!("a store answers puts with 400", "PUT", Answer::Answer(400), FAILED),
    answers!("a store answers puts with 301", "PUT", Answer::Answer(301), FAILED),
    answers!("a store answers puts with 404", "PUT", Answer::Answer(404), FAILED),
    answers!("a store answers reads with 404", "GET", Answer::Answer(404), FAILED),
    answers!("a store closes connections", "*", Answer::Close, FAILED),
    answers!("a store says nothing", "*", Answer::Stall, FAILED),
    answers!("a store's answers break off", "GET", Answer::Half, FAILED),
    answers!("puts break off", "PUT", Answer::Tear, FAILED),
    answers!("a store is slow", "GET", Answer::Trickle(Duration::from_secs(1)), FAILED),
    Fault {
        name: "nobody listens where the store is",
        seen: Seen::Itself,
        cause: FAILED,
        says: &[],
        inject: |lab| {
            let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            lab.edit(&format!("endpoint = \"http://{nowhere}\"\n"));
        },
        mend: |lab| lab.edit(""),
    },
];
