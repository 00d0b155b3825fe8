//! What a guardian is told, and the file that outlives it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_host::atomic::{self, Durability};
use backstay_host::lock;
use backstay_host::own_dir::own_dir;
use backstay_host::record;
use backstay_types::DiskName;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::command::{CommandError, Environment, run};

/// The most bytes a plan may have, as a document or a line.
pub const PLAN_BYTES_MAX: usize = 64 << 10;
/// The most that a time-out may be.
const TIME_MAX: Duration = Duration::from_secs(24 * 3600);

const FILE: &str = "frozen.json";
const LOCK: &str = "hooks.lock";
const RUN_DIR: &str = "hooks";

/// The work of one guardian.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The disk.
    pub disk: DiskName,
    /// Command lines before the freeze.
    pub pre: Vec<String>,
    /// File systems to freeze, by where they are mounted.
    pub freeze: Vec<PathBuf>,
    /// Paths whose file systems must not be frozen.
    pub avoid: Vec<PathBuf>,
    /// Command lines after the thaw.
    pub post: Vec<String>,
    /// The most each command may take.
    pub timeout_ms: u64,
    /// The most from the first freeze to the thaw.
    pub freeze_timeout_ms: u64,
    /// The disk's runtime directory.
    pub runtime: PathBuf,
    /// File systems that are frozen, or about to be: only in the file.
    #[serde(default)]
    pub frozen: Vec<PathBuf>,
}

impl Plan {
    /// The most each command may take; a day at most.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms).min(TIME_MAX)
    }

    /// The most from the first freeze to the thaw; a day at most.
    #[must_use]
    pub fn freeze_timeout(&self) -> Duration {
        Duration::from_millis(self.freeze_timeout_ms).min(TIME_MAX)
    }

    /// Runs the commands before the cut, up to the first that fails.
    ///
    /// # Errors
    /// That one's.
    pub fn run_pre(&self) -> Result<(), CommandError> {
        self.pre.iter().try_for_each(|line| run(line, &self.environment("pre"), self.timeout()))
    }

    /// Runs the commands after the cut, all of them, whatever they say; the first failure.
    ///
    /// # Errors
    /// If one failed.
    pub fn run_post(&self) -> Result<(), CommandError> {
        let post = |line: &String| run(line, &self.environment("post"), self.timeout());
        self.post.iter().map(post).fold(Ok(()), Result::and)
    }

    fn environment(&self, stage: &str) -> Environment {
        vec![
            ("BACKSTAY_DISK", self.disk.as_str().into()),
            ("BACKSTAY_STAGE", stage.into()),
            ("BACKSTAY_RUN_DIR", self.runtime.join(RUN_DIR).into()),
            ("BACKSTAY_TIMEOUT", self.timeout().as_secs().max(1).to_string().into()),
        ]
    }
}

/// The right to run a disk's hooks: one guardian at a time. It ends with the process.
#[derive(Debug)]
pub struct HookLock {
    _file: Flock<File>,
    runtime: PathBuf,
}

impl HookLock {
    /// Takes the lock; none if another process has it.
    ///
    /// # Errors
    /// If the runtime directory cannot be written.
    pub fn take(runtime: &Path) -> io::Result<Option<Self>> {
        // What is found here is carried out: it must be ours.
        own_dir(runtime)?;
        own_dir(&runtime.join(RUN_DIR))?;
        let path = runtime.join(LOCK);
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        let locked = lock::exclusive(file, Duration::ZERO)?;
        Ok(locked.map(|file| Self { _file: file, runtime: runtime.into() }))
    }

    /// The plan of a guardian that did not come to its end.
    ///
    /// # Errors
    /// If there is one and it cannot be read.
    pub fn left(&self) -> io::Result<Option<Plan>> {
        let bytes = record::read(&self.runtime.join(FILE), PLAN_BYTES_MAX as u64)?;
        Ok(bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose()?)
    }

    /// Writes the plan down: from now on others know what to undo. Only the death of processes
    /// must not lose it, so it is not synced.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note(&self, plan: &Plan) -> io::Result<()> {
        let bytes = serde_json::to_vec(plan)?;
        atomic::replace(&self.runtime.join(FILE), &bytes, Durability::Relaxed)
    }

    /// Forgets the plan: all is undone.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn forget(&self) -> io::Result<()> {
        match fs::remove_file(self.runtime.join(FILE)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// Whether there may be something to mend: without taking the lock.
#[must_use]
pub fn something_is_left(runtime: &Path) -> bool {
    runtime.join(FILE).exists()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn plan(runtime: &Path) -> Plan {
        Plan {
            disk: "db".parse().unwrap(),
            pre: vec![],
            freeze: vec![],
            avoid: vec![],
            post: vec![],
            timeout_ms: 20_000,
            freeze_timeout_ms: 20_000,
            runtime: runtime.into(),
            frozen: vec![],
        }
    }

    #[test]
    fn what_is_noted_is_found_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().join("db");
        let lock = HookLock::take(&runtime).unwrap().unwrap();
        assert!(HookLock::take(&runtime).unwrap().is_none(), "one at a time");
        assert_eq!(lock.left().unwrap(), None);
        let mut noted = plan(&runtime);
        noted.frozen = vec!["/mnt/db".into()];
        lock.note(&noted).unwrap();
        drop(lock);
        let lock = HookLock::take(&runtime).unwrap().unwrap();
        assert_eq!(lock.left().unwrap(), Some(noted));
        lock.forget().unwrap();
        lock.forget().unwrap();
        assert_eq!(lock.left().unwrap(), None);
        fs::write(runtime.join(FILE), b"{").unwrap();
        assert!(lock.left().is_err());
    }

    #[test]
    fn all_post_commands_run_and_the_first_failure_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let _lock = HookLock::take(dir.path()).unwrap().unwrap();
        let mut plan = plan(dir.path());
        plan.post =
            ["exit 3", "echo $BACKSTAY_DISK $BACKSTAY_STAGE > $BACKSTAY_RUN_DIR/x", "exit 4"]
                .map(String::from)
                .into();
        let error = plan.run_post().unwrap_err().to_string();
        assert!(error.contains("exit 3"), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join("hooks/x")).unwrap(), "db post\n");
        plan.pre = plan.post;
        fs::remove_file(dir.path().join("hooks/x")).unwrap();
        plan.post = vec![];
        assert!(plan.run_pre().is_err() && !dir.path().join("hooks/x").exists());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_plan_or_an_error(bytes: Vec<u8>) {
            let _ = serde_json::from_slice::<Plan>(&bytes);
        }
    }
}
