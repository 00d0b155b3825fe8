//! Two hosts on one machine: network namespaces with a cable between them, and certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};

use super::command::{must, run};

static NETS: AtomicU32 = AtomicU32::new(0);

/// Two namespaces and the cable between them; gone when dropped.
pub struct Cable {
    /// The namespaces' names.
    pub spaces: [String; 2],
    device: [String; 2],
}

/// Their addresses.
pub const ADDRESSES: [&str; 2] = ["10.99.7.1", "10.99.7.2"];

impl Cable {
    /// Makes both and plugs them together.
    pub fn new() -> Self {
        let tag = format!("{:x}{}", std::process::id(), NETS.fetch_add(1, Ordering::Relaxed));
        let spaces = [0, 1].map(|side| format!("bs{tag}-{side}"));
        let device = [0, 1].map(|side| format!("bs{tag}{side}"));
        let cable = Self { spaces, device };
        for space in &cable.spaces {
            must("ip", ["netns", "add", space]);
        }
        let ([a, b], [x, y]) = (&cable.device, &cable.spaces);
        must("ip", ["link", "add", a, "netns", x, "type", "veth", "peer", "name", b, "netns", y]);
        for (side, address) in ADDRESSES.iter().enumerate() {
            let (space, device) = (&cable.spaces[side], &cable.device[side]);
            let address = format!("{address}/24");
            must("ip", ["-n", space, "addr", "add", &address, "dev", device]);
            must("ip", ["-n", space, "link", "set", "lo", "up"]);
            must("ip", ["-n", space, "link", "set", device, "up"]);
        }
        cable
    }

    /// Pulls the cable out, or puts it back.
    pub fn plug(&self, up: bool) {
        let state = if up { "up" } else { "down" };
        must("ip", ["-n", &self.spaces[1], "link", "set", &self.device[1], state]);
    }

    /// A command as it runs on one of the hosts.
    pub fn on(&self, side: usize, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.spaces[side]]);
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }
}

impl Default for Cable {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for space in &self.spaces {
            run("ip", ["netns", "del", space]);
        }
    }
}

/// An authority of a test.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self { issuer: CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    /// Makes a host's files in a folder; the `[tls]` section that names them.
    pub fn host(&self, dir: &Path, name: &str) -> String {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |what: &str, content: String| -> PathBuf {
            let path = dir.join(format!("{name}-{what}.pem"));
            fs::write(&path, content).unwrap();
            path
        };
        let ca = file("ca", self.issuer.pem());
        let cert = file("cert", certificate.pem());
        let key = file("key", key.serialize_pem());
        format!("[tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n")
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
