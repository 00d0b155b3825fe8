//! PostgreSQL servers of a test, run as its user; Debian's newest that is installed.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::command::said;
use super::host::wait_gone;
use super::{must, run};

/// Whom servers run as.
pub const USER: &str = "postgres";

/// A program of the newest PostgreSQL installed.
///
/// # Panics
/// If there is none: package postgresql.
#[must_use]
pub fn bin(program: &str) -> String {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("package postgresql is installed");
    let newest = versions
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let version: u32 = path.file_name()?.to_str()?.parse().ok()?;
            let program = path.join("bin").join(program);
            program.exists().then_some((version, program))
        })
        .max();
    newest.expect("package postgresql is installed").1.to_string_lossy().into_owned()
}

/// A command as the servers' user; its process is the program itself, so anyone who kills it kills that.
#[must_use]
pub fn as_user(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    let who = [format!("--reuid={USER}"), format!("--regid={USER}"), "--init-groups".into()];
    command.args(who).args(["--", program]).args(args);
    command
}

/// Makes the files of a server.
///
/// # Panics
/// If that cannot be done.
pub fn init(data: &Path) {
    fs::create_dir(data).unwrap();
    must("chown", [USER, text(data)]);
    let args = ["-D", text(data), "--no-locale", "-E", "UTF8", "-A", "trust"];
    must("runuser", [&["-u", USER, "--", &bin("initdb")][..], &args].concat());
}

/// How a command is changed so that it runs on a host.
pub type Where<'a> = &'a dyn Fn(&Command) -> Command;

/// A running server, stopped when dropped.
pub struct Server {
    data: PathBuf,
    sockets: PathBuf,
    first: String,
}

impl Server {
    /// Starts a server and waits until it serves.
    ///
    /// # Panics
    /// If it does not, with its log.
    pub fn start(data: &Path, sockets: &Path) -> Self {
        Self::start_on(&|command| same(command), data, sockets)
    }

    /// Starts a server on a host.
    ///
    /// # Panics
    /// If it does not start, with its log.
    pub fn start_on(on: Where<'_>, data: &Path, sockets: &Path) -> Self {
        fs::create_dir_all(sockets).unwrap();
        let id = |flag| must("id", [flag, USER]).trim().parse().unwrap();
        chown(sockets, Some(id("-u")), Some(id("-g"))).unwrap();
        let log = sockets.join("log");
        let options = format!("-c listen_addresses= -c unix_socket_directories={}", text(sockets));
        let args = ["-D", text(data), "-l", text(&log), "-o", &options, "-w", "start"];
        let mut start = on(&as_user(&bin("pg_ctl"), &args));
        let started = start.current_dir("/").stdout(Stdio::null()).status().unwrap();
        assert!(started.success(), "{}", fs::read_to_string(&log).unwrap_or_default());
        let mut server = Self { data: data.into(), sockets: sockets.into(), first: String::new() };
        server.first = server.pid();
        server
    }

    /// How to connect to it.
    #[must_use]
    pub fn connection(&self) -> String {
        format!("host={} dbname=postgres", text(&self.sockets))
    }

    /// A session that reads statements from its standard input.
    #[must_use]
    pub fn session(&self) -> Command {
        let connection = self.connection();
        let options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &connection];
        let mut command = as_user("psql", &options);
        command.current_dir("/");
        command
    }

    /// Runs statements; what came of them.
    ///
    /// # Panics
    /// If psql cannot be started.
    pub fn try_sql(&self, sql: &str) -> Output {
        self.session().args(["-c", sql]).output().unwrap()
    }

    /// Runs statements that must succeed; what they print.
    ///
    /// # Panics
    /// If they fail.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        let output = self.try_sql(sql);
        assert!(output.status.success(), "{sql}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A program of the server's own with its connection.
    #[must_use]
    pub fn client(&self, program: &str, args: &[&str]) -> Command {
        let mut command = as_user(&bin(program), args);
        command.env("PGHOST", &self.sockets).env("PGDATABASE", "postgres").current_dir("/");
        command
    }

    /// Runs a program of the server's own with its connection.
    ///
    /// # Panics
    /// If it fails, with all it said.
    #[track_caller]
    pub fn tool(&self, program: &str, args: &[&str]) -> String {
        let output = self.client(program, args).output().unwrap();
        assert!(output.status.success(), "{program}: {}", said(&output));
        said(&output)
    }

    /// The server's first process.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn pid(&self) -> String {
        let file = fs::read_to_string(self.data.join("postmaster.pid")).unwrap();
        file.lines().next().unwrap().to_owned()
    }

    /// Ends all its processes at once, as a power loss does; also where its disk is gone already.
    pub fn kill(self) {
        // No new ones come.
        run("kill", ["-STOP", &self.first]);
        let children = format!("/proc/{0}/task/{0}/children", self.first);
        let children = fs::read_to_string(children).unwrap_or_default();
        let all: Vec<&str> = children.split_whitespace().chain([self.first.as_str()]).collect();
        run("kill", ["-9"].iter().chain(&all));
        for pid in all {
            wait_gone(pid.parse().unwrap());
        }
        std::mem::forget(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stop = ["-u", USER, "--", &bin("pg_ctl"), "-D", text(&self.data), "-m", "fast", "stop"];
        run("runuser", stop);
    }
}

fn same(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    copy
}

/// A path of a test, which is text.
///
/// # Panics
/// If it is not.
#[must_use]
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
