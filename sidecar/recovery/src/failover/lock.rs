//! One command a name: two that fail over, fail back or replicate the same disk at once would each believe
//! what the other is just changing.
//!
//! A lock of the process (`fcntl(2)`, `F_SETLK`), not of the open file: a driver that the command starts is a
//! fork of it, and must not keep the lock. Such a lock goes with its process, however that ends. A command that
//! runs another for the same name (failback runs `replica`) lends it the lock: anyone who was started by the holder
//! goes on without one of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backstay_host::clock;
use backstay_types::DiskName;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::FailoverError;
use super::record::make_folder;

/// Lock files that this process has locked. Closing any descriptor of such a file would give its lock back, so none
/// is opened a second time.
static HELD: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn held() -> MutexGuard<'static, Vec<PathBuf>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name that no other command of this host is at work on, until this is dropped.
#[derive(Debug)]
pub struct NameLock {
    /// None if it is the lock of the command that started this one.
    _file: Option<File>,
    path: PathBuf,
    /// Whose it is: a fork that drops it must not remove it.
    pid: u32,
}

impl NameLock {
    /// Takes the lock of a name for what a command does. Take it once in a process: the first that is dropped
    /// gives it back.
    ///
    /// # Errors
    /// [`FailoverError::Busy`] if another command has it; or the state directory cannot be written.
    pub fn take(state_root: &Path, name: &DiskName, doing: &str) -> Result<Self, FailoverError> {
        let path = state_root.join(".failover").join(format!("{name}.lock"));
        let failed = |source| FailoverError::State { path: path.clone(), source };
        make_folder(state_root).map_err(failed)?;
        if held().contains(&path) {
            let (doing, pid) = ("in this very process".into(), std::process::id() as i32);
            return Err(FailoverError::Busy { name: name.clone(), doing, pid });
        }
        loop {
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).read(true).write(true).mode(0o600);
            let mut file = options.open(&path).map_err(failed)?;
            if lock(&file).map_err(failed)? {
                // Anyone who had it may have removed the file since it was opened.
                if !is_still_there(&file, &path) {
                    continue;
                }
                let _ = file.set_len(0).and_then(|()| file.write_all(doing.as_bytes()));
                held().push(path.clone());
                if let Err((pid, doing)) = Starting::wait(state_root, name).map_err(failed)? {
                    held().retain(|held| *held != path);
                    return Err(FailoverError::Busy { name: name.clone(), doing, pid });
                }
                return Ok(Self { _file: Some(file), path, pid: std::process::id() });
            }
            let Some(pid) = holder(&file).map_err(failed)? else { continue };
            if pid == nix::unistd::getppid().as_raw() {
                return Ok(Self { _file: None, path, pid: 0 });
            }
            let doing = fs::read_to_string(&path).unwrap_or_default();
            return Err(FailoverError::Busy { name: name.clone(), doing, pid });
        }
    }
}

/// How long a killed command's driver may take to come up.
const STARTS_WITHIN: Duration = Duration::from_secs(120);
/// How often that is looked for: nothing tells.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A driver of a name is being started. Anyone who was to be told may be killed meanwhile; the next command waits until
/// it is known what became of it. It is not inherited by the driver.
#[derive(Debug)]
pub struct Starting {
    /// The lock goes with it.
    _file: File,
    path: PathBuf,
}

impl Drop for Starting {
    fn drop(&mut self) {
        // Before the lock goes: who opens the file meanwhile still sees that.
        let _ = fs::remove_file(&self.path);
    }
}

impl Starting {
    fn path(state_root: &Path, name: &DiskName) -> PathBuf {
        state_root.join(".failover").join(format!("{name}.starting"))
    }

    /// Says so until it is dropped. Nobody waits where nothing was ever failed over.
    ///
    /// # Errors
    /// If the state directory cannot be written.
    pub fn say(state_root: &Path, name: &DiskName) -> Result<Option<Self>, FailoverError> {
        let path = Self::path(state_root, name);
        if !path.parent().is_some_and(Path::is_dir) {
            return Ok(None);
        }
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let opened = options.open(&path).and_then(|file| {
            fcntl(&file, FcntlArg::F_SETLKW(&whole_file(libc::F_RDLCK)))?;
            Ok(Some(Self { _file: file, path: path.clone() }))
        });
        opened.map_err(|source| FailoverError::State { path, source })
    }

    /// Waits until no driver of a name is being started; who still does it in the end.
    fn wait(state_root: &Path, name: &DiskName) -> io::Result<Result<(), (i32, String)>> {
        let path = Self::path(state_root, name);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Ok(())),
            file => file?,
        };
        let until = clock::monotonic() + STARTS_WITHIN;
        while let Some(pid) = holder(&file)? {
            if clock::monotonic() > until {
                return Ok(Err((pid, "mount".into())));
            }
            clock::sleep(LOOK_EVERY);
        }
        let _ = fs::remove_file(&path);
        Ok(Ok(()))
    }
}

/// Whether the command that started this one is at work on a name, and has lent it its lock.
#[must_use]
pub fn is_lent(state_root: &Path, name: &DiskName) -> bool {
    at_work(state_root, name).is_some_and(|(_, pid)| pid == nix::unistd::getppid().as_raw())
}

/// Which other command is at work on a name now, and as which process; none if none is.
#[must_use]
pub fn at_work(state_root: &Path, name: &DiskName) -> Option<(String, i32)> {
    let path = state_root.join(".failover").join(format!("{name}.lock"));
    if held().contains(&path) {
        return None;
    }
    let file = File::open(&path).ok()?;
    let pid = holder(&file).ok()??;
    Some((fs::read_to_string(&path).unwrap_or_default(), pid))
}

impl Drop for NameLock {
    fn drop(&mut self) {
        // Before it is given back: who opens the file meanwhile sees that it is gone.
        if self.pid == std::process::id() {
            let _ = fs::remove_file(&self.path);
            held().retain(|path| *path != self.path);
        }
    }
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn lock(file: &File) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_SETLK(&whole_file(libc::F_WRLCK))) {
        Ok(_) => Ok(true),
        Err(Errno::EACCES | Errno::EAGAIN) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The process that has the lock; none if it is free by now.
fn holder(file: &File) -> io::Result<Option<i32>> {
    let mut found = whole_file(libc::F_WRLCK);
    fcntl(file, FcntlArg::F_GETLK(&mut found))?;
    Ok((i32::from(found.l_type) != libc::F_UNLCK).then_some(found.l_pid))
}

fn is_still_there(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    const ROOT: &str = "BACKSTAY_TEST_LOCK_ROOT";

    /// What another process is told: this very test, started again.
    fn other(root: &Path, between: bool) -> String {
        let me = std::env::current_exe().unwrap();
        let test = "failover::lock::tests::one_command_a_name_and_its_helpers";
        let mut command = match between {
            // A shell that does not become the command: it is the parent then.
            true => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", "\"$0\" \"$@\"; exit $?"]).arg(&me);
                shell
            }
            false => Command::new(&me),
        };
        let said = command.args(["--exact", test, "--nocapture"]).env(ROOT, root).output().unwrap();
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    #[test]
    fn one_command_a_name_and_its_helpers() {
        let name: DiskName = "db".parse().unwrap();
        if let Some(root) = std::env::var_os(ROOT) {
            let taken = NameLock::take(Path::new(&root), &name, "failover commit");
            println!("TAKEN {}", taken.map_or_else(|e| e.to_string(), |_| "yes".into()));
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let file = root.join(".failover/db.lock");
        let lock = NameLock::take(root, &name, "failback").unwrap();
        // One's own lock is not seen by oneself: nobody asks.
        assert_eq!(at_work(root, &name), None);
        let said = other(root, true);
        assert!(said.contains("failback"), "{said}");
        assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
        // Whom the holder started works for it, and leaves the lock alone.
        assert!(other(root, false).contains("TAKEN yes"));
        assert!(file.exists() && !other(root, true).contains("TAKEN yes"));
        // A daemon that it started does not keep it.
        let mut daemon = Command::new("/bin/cat");
        let mut daemon =
            daemon.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        drop(lock);
        assert!(!file.exists());
        assert!(other(root, true).contains("TAKEN yes"));
        drop(daemon.stdin.take());
        daemon.wait().unwrap();
        // One that was killed has left its file: that alone keeps nobody out.
        fs::write(&file, b"failback").unwrap();
        drop(NameLock::take(root, &name, "failover status").unwrap());
        assert!(!file.exists());
    }
}
