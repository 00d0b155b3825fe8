//! Faults on the way to a gateway: certificates, names, the gateway itself, its store.

use std::fs;
use std::path::Path;

use backstay_tests::harness::Host;
use backstay_tests::harness::gateway::Gateway;
use backstay_tests::harness::must;
use backstay_tests::harness::pki::Pki;

use super::lab::{BASE, Fault, Lab, METRICS, Seen};

const STORE: &str = "[store]\nretries = 0\ntimeout = \"1s\"\nretry_timeout = \"1s\"\n";

/// A disk whose vault is behind a gateway.
pub fn lab() -> Lab {
    let host = Host::new("gauntlet-behind");
    let pki = Pki::new(&host.dir);
    pki.client("source", "source", &["d", "e"]);
    host.backstay(&["vault", "init", "--vault", &format!("file://{}", store(&host))]);
    let gateway =
        Gateway::start(&pki, &host.path("gateway"), &format!("file://{}", store(&host)), "");
    host.ship_to(&gateway.url(), &[]);
    write(&host, &gateway.url(), &pki, "source");
    let mut lab = Lab::new(host, String::new());
    (lab.gateway, lab.pki) = (Some(gateway), Some(pki));
    lab
}

fn store(host: &Host) -> String {
    host.path("store").display().to_string()
}

fn write(host: &Host, url: &str, pki: &Pki, who: &str) {
    put(host, url, &pki.bundle(who), &pki.ca());
}

fn put(host: &Host, url: &str, cert: &Path, ca: &Path) {
    let text = format!(
        "vault = \"{url}\"\n{BASE}{STORE}client_cert = {cert:?}\nca_file = {ca:?}\n{METRICS}"
    );
    fs::write(host.path("new.toml"), text).unwrap();
    fs::rename(host.path("new.toml"), host.path("backstay.toml")).unwrap();
}

fn as_client(lab: &Lab, who: &str) {
    let url = lab.gateway.as_ref().unwrap().url();
    write(&lab.host, &url, lab.pki.as_ref().unwrap(), who);
}

fn signal(lab: &Lab, signal: &str) {
    must("kill", [signal, &lab.gateway.as_ref().unwrap().child.id().to_string()]);
}

fn mended(lab: &mut Lab) {
    as_client(lab, "source");
}

const FAILED: &[&str] = &["cycle-failed", "cycle-stopped", "vault-gone", "store-refused"];

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "the gateway's store is away",
        seen: Seen::Itself,
        cause: FAILED,
        says: &[],
        inject: |lab| fs::rename(store(&lab.host), lab.host.path("aside")).unwrap(),
        mend: |lab| {
            must("rm", ["-rf", &store(&lab.host)]);
            fs::rename(lab.host.path("aside"), store(&lab.host)).unwrap();
        },
    },
    Fault {
        name: "the certificate is not there",
        seen: Seen::Itself,
        cause: FAILED,
        says: &["nobody.pem"],
        inject: |lab| as_client(lab, "nobody"),
        mend: mended,
    },
    Fault {
        name: "the certificate is for other disks",
        seen: Seen::Itself,
        cause: FAILED,
        says: &["certificate", "denied", "right"],
        inject: |lab| {
            lab.pki.as_ref().unwrap().client("stranger", "source", &["x"]);
            as_client(lab, "stranger");
        },
        mend: mended,
    },
    Fault {
        name: "the gateway is of another authority",
        seen: Seen::Itself,
        cause: FAILED,
        says: &["certificate"],
        inject: |lab| {
            let other = Pki::new(&lab.new_folder());
            let url = lab.gateway.as_ref().unwrap().url();
            put(&lab.host, &url, &lab.pki.as_ref().unwrap().bundle("source"), &other.ca());
        },
        mend: mended,
    },
    Fault {
        name: "the certificate was revoked",
        seen: Seen::Itself,
        cause: FAILED,
        says: &["revoked", "certificate"],
        inject: |lab| {
            let pki = lab.pki.as_ref().unwrap();
            pki.client("lost", "source", &["d", "e"]);
            pki.revoke("lost");
            lab.gateway.as_mut().unwrap().crash_and_restart();
            as_client(lab, "lost");
        },
        mend: mended,
    },
    Fault {
        name: "the certificate has expired",
        seen: Seen::Itself,
        cause: FAILED,
        says: &["expired", "run out", "ended"],
        inject: |lab| {
            let pki = lab.pki.as_ref().unwrap();
            let (old, url) = (pki.expired(Some(&["d", "e"])), lab.gateway.as_ref().unwrap().url());
            put(&lab.host, &url, &old, &pki.ca());
        },
        mend: mended,
    },
    Fault {
        name: "the gateway's certificate has expired",
        seen: Seen::Itself,
        cause: FAILED,
        says: &["expired", "Expired"],
        inject: |lab| {
            let pki = lab.pki.as_ref().unwrap();
            let (old, bundle) = (fs::read(pki.expired(None)).unwrap(), pki.bundle("gateway"));
            lab.hurt(&bundle, |bundle| fs::write(bundle, old).unwrap());
            lab.gateway.as_mut().unwrap().crash_and_restart();
        },
        mend: |lab| {
            lab.bring_back();
            lab.gateway.as_mut().unwrap().crash_and_restart();
        },
    },
    Fault {
        name: "the gateway does not run",
        seen: Seen::Itself,
        cause: FAILED,
        says: &[],
        inject: |lab| {
            let gateway = lab.gateway.as_mut().unwrap();
            gateway.child.kill().unwrap();
            gateway.child.wait().unwrap();
        },
        mend: |lab| lab.gateway.as_mut().unwrap().crash_and_restart(),
    },
    Fault {
        name: "the certificate is of another authority",
        seen: Seen::Itself,
        cause: FAILED,
        says: &["certificate"],
        inject: |lab| {
            let other = Pki::new(&lab.new_folder());
            let cert = other.client("source", "source", &["d", "e"]);
            let url = lab.gateway.as_ref().unwrap().url();
            put(&lab.host, &url, &cert, &lab.pki.as_ref().unwrap().ca());
        },
        mend: mended,
    },
    Fault {
        name: "the gateway is stopped",
        seen: Seen::Itself,
        cause: FAILED,
        says: &[],
        inject: |lab| signal(lab, "-STOP"),
        mend: |lab| signal(lab, "-CONT"),
    },
];
