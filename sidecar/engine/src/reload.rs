//! Follows changes of the configuration file. It is read again when it changes, and on SIGHUP.
//!
//! An invalid file changes nothing: the previous settings stay in force, and the error is logged once. A
//! changed file is used only if it did not change again between two checks, so that a half-written file is
//! never used. SIGHUP skips this wait.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::{Config, PATH_DEFAULT};

/// Follows the configuration file.
#[derive(Debug)]
pub struct ConfigWatch {
    /// The file that was named; the one in `/etc`, if it is there, when none was.
    named: Option<PathBuf>,
    config: Arc<Config>,
    /// The file as it was when it was last taken or refused.
    taken: Option<Stamp>,
    /// The file as it was at the last look.
    looked: Option<Stamp>,
    asked: Arc<AtomicBool>,
    problem: Option<String>,
}

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of a file, if it is there.
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self {
            file: (meta.dev(), meta.ino()),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

impl ConfigWatch {
    /// Follows a file whose settings were read already.
    #[must_use]
    pub fn new(named: Option<PathBuf>, config: Config) -> Self {
        let stamp = Stamp::of(named.as_deref().unwrap_or(Path::new(PATH_DEFAULT)));
        Self {
            named,
            config: Arc::new(config),
            // What was read may be older than the file is by now: the first look reads it again.
            taken: None,
            looked: stamp,
            asked: Arc::default(),
            problem: None,
        }
    }

    /// Has SIGHUP ask for a look.
    ///
    /// # Errors
    /// If the signal cannot be caught.
    pub fn look_on_hangup(&self) -> io::Result<()> {
        signal_hook::flag::register(signal_hook::consts::SIGHUP, Arc::clone(&self.asked))?;
        Ok(())
    }

    /// The settings that hold.
    #[must_use]
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// Why the file as it is was refused, if it was: the settings are older than it then.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Looks at the file; the new settings, if there are some. To be called once in a while.
    pub fn look(&mut self) -> Option<Arc<Config>> {
        let stamp = Stamp::of(self.named.as_deref().unwrap_or(Path::new(PATH_DEFAULT)));
        let stands_still = stamp == self.looked;
        self.looked = stamp;
        let asked = self.asked.swap(false, Ordering::Relaxed);
        if !asked && (!stands_still || stamp == self.taken) {
            return None;
        }
        self.taken = stamp;
        match Config::load(self.named.as_deref()) {
            Ok(config) => {
                if self.problem.take().is_some() {
                    tracing::info!("the configuration is valid again");
                }
                self.take(config)
            }
            Err(e) => {
                tracing::error!("{e}\nthe previous settings stay in force");
                self.problem = Some(e.to_string());
                None
            }
        }
    }

    fn take(&mut self, mut new: Config) -> Option<Arc<Config>> {
        new.vaults.clone_from(&self.config.vaults);
        if *self.config == new {
            return None;
        }
        let old = &self.config;
        if (&old.state_dir, &old.runtime_dir) != (&new.state_dir, &new.runtime_dir) {
            tracing::warn!("restart the sidecar to apply the new state_dir and runtime_dir");
        }
        tracing::info!("the configuration has changed");
        new.reach(self.config.vaults.clone(), None);
        self.config = Arc::new(new);
        Some(Arc::clone(&self.config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn watch(path: &Path) -> ConfigWatch {
        ConfigWatch::new(Some(path.into()), Config::load(Some(path)).unwrap())
    }

    /// Looks until it stands still.
    fn look(watch: &mut ConfigWatch) -> Option<Arc<Config>> {
        let first = watch.look();
        first.or_else(|| watch.look())
    }

    #[test]
    fn a_changed_file_is_taken_once_it_stands_still() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backstay.toml");
        fs::write(&path, "interval = \"10s\"").unwrap();
        let mut watch = watch(&path);
        assert!(look(&mut watch).is_none() && look(&mut watch).is_none());
        fs::write(&path, "interval = \"20s\"").unwrap();
        assert!(watch.look().is_none(), "it may still be written");
        assert_eq!(watch.look().unwrap().interval, Duration::from_secs(20));
        assert!(look(&mut watch).is_none());
        // Replaced, as editors do.
        fs::write(dir.path().join("new"), "interval = \"30s\"").unwrap();
        backstay_host::atomic::rename(&dir.path().join("new"), &path).unwrap();
        assert_eq!(look(&mut watch).unwrap().interval, Duration::from_secs(30));
    }

    #[test]
    fn a_bad_file_changes_nothing_and_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backstay.toml");
        fs::write(&path, "interval = \"10s\"").unwrap();
        let mut watch = watch(&path);
        fs::write(&path, "interval = \"10s\"\nblackout = \"Mondy;7:00;7h\"").unwrap();
        assert!(look(&mut watch).is_none());
        let problem = watch.problem().unwrap();
        assert!(problem.contains("line 2") && problem.contains("Monday"), "{problem}");
        assert_eq!(watch.config().interval, Duration::from_secs(10));
        fs::remove_file(&path).unwrap();
        assert!(look(&mut watch).is_none());
        assert!(watch.problem().unwrap().contains("backstay.toml"));
        fs::write(&path, "interval = \"40s\"").unwrap();
        assert_eq!(look(&mut watch).unwrap().interval, Duration::from_secs(40));
        assert_eq!(watch.problem(), None);
    }

    #[test]
    fn a_hangup_takes_the_file_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backstay.toml");
        fs::write(&path, "slots = 1").unwrap();
        let mut watch = watch(&path);
        watch.look_on_hangup().unwrap();
        assert!(look(&mut watch).is_none());
        fs::write(&path, "slots = 3").unwrap();
        signal_hook::low_level::raise(signal_hook::consts::SIGHUP).unwrap();
        assert_eq!(watch.look().unwrap().slots, 3);
    }
}
