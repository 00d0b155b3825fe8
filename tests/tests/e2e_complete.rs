//! Completion, as a person meets it: a real bash at a terminal, with the script that packages install, and the Tab key.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use backstay_tests::harness::Host;
use backstay_tests::harness::host::backstay;

/// What a shell may take to answer.
const SOON: Duration = Duration::from_secs(20);

/// A bash at a terminal of its own.
struct Shell {
    bash: Child,
    keys: File,
    shown: Receiver<Vec<u8>>,
}

impl Shell {
    fn start(host: &Host) -> Self {
        let (mut ours, mut its) = (0, 0);
        let none = std::ptr::null_mut();
        // SAFETY: both numbers are written by the call, and nothing is read from the null pointers.
        let made = unsafe { libc::openpty(&mut ours, &mut its, none, none.cast(), none.cast()) };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: both were just opened, and nobody else has them.
        let (ours, its) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(its)) };
        let path = format!(
            "{}:{}",
            backstay().parent().unwrap().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let bash = Command::new("bash")
            .args(["--norc", "--noprofile", "-i"])
            .env("PATH", path)
            .env("TERM", "dumb")
            .env("PS1", "ready> ")
            .env("BACKSTAY_CONFIG", host.path("backstay.toml"))
            .stdin(Stdio::from(its.try_clone().unwrap()))
            .stdout(Stdio::from(its.try_clone().unwrap()))
            .stderr(Stdio::from(its))
            .spawn()
            .unwrap();
        let keys = File::from(ours);
        let mut screen = keys.try_clone().unwrap();
        let (said, shown) = mpsc::channel();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut piece) {
                let _ = said.send(piece[..length].to_vec());
            }
        });
        let mut shell = Self { bash, keys, shown };
        shell.until("ready> ");
        // As a list at once, without a question and without pages.
        let settings = "bind 'set show-all-if-ambiguous on'; bind 'set completion-query-items 0'; \
                        bind 'set page-completions off'; bind 'set enable-bracketed-paste off'";
        shell.line(settings);
        shell.line("source <(backstay completions bash)");
        shell
    }

    fn line(&mut self, line: &str) {
        self.press(&format!("{line}\n"));
        self.until("ready> ");
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// What the terminal shows from now on until a text comes.
    fn until(&mut self, text: &str) -> String {
        let mut shown = String::new();
        while !shown.contains(text) {
            let more = self.shown.recv_timeout(SOON);
            let more = more.unwrap_or_else(|e| panic!("no {text:?} ({e}) in {shown:?}"));
            shown.push_str(&String::from_utf8_lossy(&more));
        }
        shown
    }

    /// Types a line up to Tab; what the shell shows until a word comes. The line is thrown away.
    fn tab(&mut self, typed: &str, word: &str) -> String {
        self.press(&format!("{typed}\t"));
        let shown = self.until(word);
        // Ctrl-U empties the line.
        self.press("\u{15}\n");
        shown + &self.until("ready> ")
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.bash.kill();
        let _ = self.bash.wait();
    }
}

#[test]
fn bash_completes_disks_points_groups_and_policies() {
    let host = Host::new("complete");
    let disk = host.disk("orders", 4 << 20);
    disk.mount(&[]);
    for _ in 0..2 {
        host.backstay(&["cycle", "orders"]);
    }
    let config = host.path("backstay.toml");
    let mut text = std::fs::read_to_string(&config).unwrap();
    text = format!(
        "state_dir = \"{}\"\nruntime_dir = \"{}\"\n{text}\n[policy.gold]\ninterval = \"5s\"\n\n\
         [group.shop]\ndisks = [\"orders\"]\n",
        host.path("state").display(),
        host.runtime.display()
    );
    std::fs::write(&config, text).unwrap();
    host.backstay(&["status", "orders"]);

    let mut shell = Shell::start(&host);
    // The one that there is, written out.
    shell.tab("backstay status o", "backstay status orders");
    let points = shell.tab("backstay restore orders --point ", "latest");
    assert!(points.contains('1') && points.contains('2'), "{points:?}");
    shell.tab("backstay protect /dev/null --policy g", "--policy gold");
    shell.tab("backstay group cycle s", "cycle shop");
    shell.tab("backstay resto", "backstay restore");
    shell.tab("backstay status --exi", "--exit-code");
    // A vault that is not there: what this host knows is offered all the same.
    shell.line("export BACKSTAY_VAULT=file:///nowhere/vault");
    shell.tab("backstay status o", "backstay status orders");
}
