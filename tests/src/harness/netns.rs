//! Two hosts on one machine: network namespaces with a cable between them, and certificates.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

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
        // Not "ip netns exec": what it starts keeps a copy of all mounts, and no other disk could be unmounted.
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net=/run/netns/{}", self.spaces[side])).arg("--");
        inside.arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside
    }

    /// Listens on one of the hosts, for a server in this process: its answers come from there, and what it dials
    /// itself goes out here.
    ///
    /// # Panics
    /// If that cannot be done.
    pub fn listen(&self, side: usize) -> TcpListener {
        let space = File::open(format!("/run/netns/{}", self.spaces[side])).unwrap();
        // A socket belongs to the network in which it was made; the thread's ends with it.
        let listening = thread::spawn(move || {
            nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            TcpListener::bind((ADDRESSES[side], 0)).unwrap()
        });
        listening.join().unwrap()
    }

    /// The sockets of one of the hosts, of all processes: the kernel's table of each protocol, a line a socket.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn sockets(&self, side: usize) -> Vec<Socket> {
        let mut all = vec![];
        for protocol in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6", "sctp/eps"] {
            let file = format!("/proc/net/{protocol}");
            let mut cat = Command::new("cat");
            let mut cat = self.on(side, cat.arg(&file));
            let table = cat.output().unwrap();
            assert!(table.status.success() || protocol.contains('/'), "{file}");
            for line in String::from_utf8_lossy(&table.stdout).lines().skip(1) {
                let mut fields = line.split_whitespace().skip(1).map(str::to_owned);
                let mut next = || fields.next().unwrap();
                let (local, remote, state) = (next(), next(), next());
                all.push(Socket { protocol, local, remote, listens: state == "0A" });
            }
        }
        all
    }
}

/// A socket, as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Of which table.
    pub protocol: &'static str,
    /// This end, in hexadecimal.
    pub local: String,
    /// The other end, in hexadecimal.
    pub remote: String,
    /// Whether it waits for connections.
    pub listens: bool,
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

    /// What a server needs that is reached by a name or an address.
    pub fn server(&self, name: &str) -> Arc<rustls::ServerConfig> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap())
    }

    /// Its own certificate, in a file.
    pub fn ca_file(&self, path: PathBuf) -> PathBuf {
        fs::write(&path, self.issuer.pem()).unwrap();
        path
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
