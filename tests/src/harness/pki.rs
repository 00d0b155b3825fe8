//! An authority with certificates for a gateway and its clients, made by the `backstay` command.

use std::path::{Path, PathBuf};

use super::host::backstay;
use super::must;

/// A certificate authority in a folder of a test.
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// A new authority below a folder, with a server's certificate for localhost, gateway.example and
    /// 127.0.0.1 (`gateway`).
    pub fn new(below: &Path) -> Self {
        let pki = Self { dir: below.join("pki") };
        pki.run("init", &["--no-passphrase"]);
        let names = ["--host", "localhost", "--host", "gateway.example", "--ip", "127.0.0.1"];
        pki.run("issue", &[&["gateway", "--server"], &names[..]].concat());
        pki
    }

    /// Runs `backstay pki VERB DIR …`, which must succeed.
    pub fn run(&self, verb: &str, args: &[&str]) -> String {
        let dir = self.dir.to_string_lossy();
        let backstay = backstay().to_string_lossy().into_owned();
        must(&backstay, [&["pki", verb, &*dir], args].concat())
    }

    /// A source's certificate with its key, for some disks.
    pub fn source(&self, name: &str, disks: &[&str]) -> PathBuf {
        self.client(name, "source", disks)
    }

    /// A recovery host's certificate with its key.
    pub fn recovery(&self, name: &str, disks: &[&str]) -> PathBuf {
        self.client(name, "recovery", disks)
    }

    /// A client's certificate with its key: one file, which is both.
    pub fn client(&self, name: &str, role: &str, disks: &[&str]) -> PathBuf {
        let disks = disks.iter().flat_map(|disk| ["--disk", disk]);
        let args: Vec<&str> = [name, "--role", role].into_iter().chain(disks).collect();
        self.run("issue", &args);
        self.bundle(name)
    }

    /// The file with somebody's certificate and key.
    pub fn bundle(&self, name: &str) -> PathBuf {
        self.dir.join("issued").join(format!("{name}.pem"))
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The list of revoked certificates.
    pub fn crl(&self) -> PathBuf {
        self.dir.join("revoked.crl")
    }

    /// Revokes by name or serial number; the list is new when this returns.
    pub fn revoke(&self, which: &str) {
        self.run("revoke", &[which]);
    }
}
