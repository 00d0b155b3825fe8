//! Object stores that answer on this machine: real servers, started by `scripts/store`.
//!
//! Each caller has a prefix of its own in the bucket. A server ends when it is dropped, and in any case
//! soon after the test process.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::proxy::Proxy;

/// Kinds of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ceph's gateway.
    S3,
    /// Azurite.
    Azure,
    /// fake-gcs-server, with the XML API before it.
    Google,
    /// moto's S3, whose bucket keeps versions and locks objects; it keeps nothing itself and lets everybody in.
    Locking,
}

impl Kind {
    /// What is tried on stores is tried on each of these.
    pub const ALL: [Self; 3] = [Self::S3, Self::Azure, Self::Google];

    /// What `scripts/store` calls it.
    fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Azure => "azurite",
            Self::Google => "gcs",
            Self::Locking => "moto",
        }
    }
}

static PREFIXES: AtomicU32 = AtomicU32::new(0);

/// A server; ended, with what it holds, when it is dropped.
pub struct Store {
    /// What it is.
    pub kind: Kind,
    /// Where it answers, on 127.0.0.1.
    pub port: u16,
    dir: PathBuf,
    variables: Vec<(String, String)>,
    /// Whether it overwrites where it was told to put only if absent.
    forgets: bool,
}

impl Store {
    /// The server of a kind that all tests of this process share.
    pub fn shared(kind: Kind) -> &'static Self {
        static RUNNING: [OnceLock<Store>; Kind::ALL.len()] =
            [const { OnceLock::new() }; Kind::ALL.len()];
        RUNNING[kind as usize].get_or_init(|| Self::start(kind))
    }

    /// Starts one.
    ///
    /// # Panics
    /// If it is not installed (`scripts/setup stores`) or does not come up.
    pub fn start(kind: Kind) -> Self {
        Self::run(kind, false)
    }

    /// Starts one that overwrites where it was told to put only if absent; Google's alone can be like that.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_without_conditions(kind: Kind) -> Self {
        assert_eq!(kind, Kind::Google);
        Self::run(kind, true)
    }

    fn run(kind: Kind, forgets: bool) -> Self {
        let port = free_ports();
        let dir = format!("/var/tmp/backstay-test-{}-{port}", kind.name());
        let mut store = Self { kind, port, dir: dir.into(), variables: vec![], forgets };
        store.variables = store.bring_back();
        store
    }

    /// Kills what answers, as a crash would; [`Self::bring_back`] starts it again with what it held.
    pub fn kill(&self) {
        self.script("kill");
    }

    /// Starts what was killed.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn bring_back(&self) -> Vec<(String, String)> {
        let said = self.script("start");
        let pairs = said.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        pairs.map(|(name, value)| (name.into(), value.trim_matches('\'').into())).collect()
    }

    fn script(&self, verb: &str) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/store");
        let mut command = Command::new(&script);
        command.args([self.kind.name(), verb, "--port", &self.port.to_string(), "--dir"]);
        command.arg(&self.dir).args(["--until", &std::process::id().to_string()]);
        command.stdin(Stdio::null()).stderr(Stdio::inherit());
        if self.forgets {
            command.env("STORE_FORGETS", "1");
        }
        let output = command.output().unwrap_or_else(|e| panic!("{}: {e}", script.display()));
        assert!(output.status.success(), "{command:?}: {}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// The URL of a vault of its own for each caller.
    pub fn url(&self) -> String {
        let (_, bucket) = self.variables.iter().find(|(name, _)| name == "STORE_URL").unwrap();
        format!("{bucket}/vault-{}", PREFIXES.fetch_add(1, Ordering::Relaxed))
    }

    /// The variables that reach it.
    pub fn variables(&self) -> &[(String, String)] {
        &self.variables
    }

    /// The variables that reach it through a proxy in front of it.
    pub fn variables_through(&self, proxy: &Proxy) -> Vec<(String, String)> {
        self.variables_at(&format!("http://127.0.0.1:{}", proxy.port()))
    }

    /// The variables that reach it at another address, `scheme://host:port`. Over TLS it is not allowed to be reached
    /// without.
    pub fn variables_at(&self, origin: &str) -> Vec<(String, String)> {
        let here = format!("http://127.0.0.1:{}", self.port);
        let replaced = |(name, value): &(String, String)| match name.ends_with("ENDPOINT")
            || name.ends_with("BASE_URL")
        {
            true => Some((name.clone(), value.replace(&here, origin))),
            false if name.ends_with("ALLOW_HTTP") && origin.starts_with("https:") => None,
            false => Some((name.clone(), value.clone())),
        };
        self.variables.iter().filter_map(replaced).collect()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.script("stop");
    }
}

/// A free port whose next one is free, too.
fn free_ports() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}
