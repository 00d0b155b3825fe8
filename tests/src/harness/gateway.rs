//! A running `backstay gateway` before a directory or a store.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::backend::Backend;
use super::host::backstay;
use super::pki::Pki;
use super::vaults;

/// How long anything may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// A gateway; killed when dropped.
pub struct Gateway {
    /// Its process.
    pub child: Child,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where it tells how it is.
    pub health: SocketAddr,
    /// The folder of segments on their way.
    pub cache: PathBuf,
    /// What it was started by.
    start: Start,
}

/// What a gateway is started by, but for where it listens.
struct Start {
    /// Where its files are.
    dir: PathBuf,
    /// What it stands before.
    store: Backend,
    /// Its certificate, its authority's and the list of revoked ones.
    pki: [PathBuf; 3],
}

impl Start {
    /// A command of its host.
    fn plain_command(&self, config: &Path) -> Command {
        let mut command = Command::new(backstay());
        command.arg("--config").arg(config).arg("--state-dir").arg(self.dir.join("state"));
        command.arg("--runtime-dir").arg(self.dir.join("run"));
        command.envs(self.store.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn command(&self) -> Command {
        let Self { dir, store, pki: [cert, ca, crl] } = self;
        let mut command = self.plain_command(&dir.join("gateway.toml"));
        command.args(["--json", "--verbose", "gateway"]);
        command.args(["--health", "127.0.0.1:0", "--store", &store.url]);
        command.arg("--cert").arg(cert).arg("--client-ca").arg(ca).arg("--revoked").arg(crl);
        command.arg("--cache").arg(dir.join("cache"));
        command
    }
}

/// Starts it; its process, where it listens, and where it tells how it is.
fn up(start: &Start, listen: &str) -> (Child, SocketAddr, SocketAddr) {
    let mut command = start.command();
    command.args(["--listen", listen]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let said = BufReader::new(child.stderr.take().unwrap());
    thread::spawn(move || {
        said.lines().map_while(Result::ok).for_each(|line| println!("gateway: {line}"));
    });
    let text = BufReader::new(child.stdout.take().unwrap());
    let mut values = serde_json::Deserializer::from_reader(text).into_iter();
    let up: serde_json::Value = values.next().expect("it came up").unwrap();
    let address = |name: &str| up[name].as_str().unwrap().parse().unwrap();
    (child, address("listen"), address("health"))
}

impl Gateway {
    /// Starts one before `store`, with its files in a folder of its own and these lines below `[gateway]` (and
    /// others) in its configuration.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(pki: &Pki, dir: &Path, store: &str, more: &str) -> Self {
        Self::start_at(pki, dir, store, more, "127.0.0.1:0")
    }

    /// The same, at an address.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_at(pki: &Pki, dir: &Path, store: &str, more: &str, listen: &str) -> Self {
        Self::spawn(&Backend::at(store), pki, dir, more, listen)
    }

    /// Starts one before a vault that needs environment variables to be reached.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn before(store: &Backend, pki: &Pki, dir: &Path, more: &str) -> Self {
        Self::spawn(store, pki, dir, more, "127.0.0.1:0")
    }

    fn spawn(store: &Backend, pki: &Pki, dir: &Path, more: &str, listen: &str) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("gateway.toml"), more).unwrap();
        let pki = [pki.bundle("gateway"), pki.ca(), pki.crl()];
        let start = Start { dir: dir.into(), store: store.clone(), pki };
        vaults::init(&mut start.plain_command(Path::new("/dev/null")), &store.url);
        let (child, listen, health) = up(&start, listen);
        Self { child, listen, health, cache: dir.join("cache"), start }
    }

    /// Kills it as a crash would and starts it again, at the same address and with the same files.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn crash_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        (self.child, self.listen, self.health) = up(&self.start, &self.listen.to_string());
    }

    /// The vault's URL through it.
    pub fn url(&self) -> String {
        format!("https://{}", self.listen)
    }

    /// Kills it as a crash would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What it answers on a path of its plain listener: status and text.
    pub fn told(&self, path: &str) -> (u16, String) {
        let mut line = TcpStream::connect(self.health).unwrap();
        line.set_read_timeout(Some(SOON)).unwrap();
        write!(line, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut all = String::new();
        line.read_to_string(&mut all).unwrap();
        let status = all.split(' ').nth(1).unwrap().parse().unwrap();
        (status, all.split_once("\r\n\r\n").unwrap().1.into())
    }

    /// One of its numbers.
    ///
    /// # Panics
    /// If there is none of this name.
    pub fn number(&self, name: &str) -> u64 {
        let start = format!("backstay_gateway_{name} ");
        let text = self.told("/metrics").1;
        let found = text.lines().find_map(|line| line.strip_prefix(&start));
        found.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
    }

    /// The most memory it had so far, in KiB.
    ///
    /// # Panics
    /// If it does not run.
    pub fn memory_high(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let high = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        high.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Waits until one of its numbers is as it should be.
    ///
    /// # Panics
    /// If it does not become so soon.
    #[track_caller]
    pub fn wait_for(&self, name: &str, fits: impl Fn(u64) -> bool) -> u64 {
        let began = Instant::now();
        loop {
            let number = self.number(name);
            if fits(number) {
                return number;
            }
            assert!(began.elapsed() < SOON, "{name} is still {number}");
            // Nobody tells when a number changes.
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
