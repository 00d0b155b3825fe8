//! Where a disk's state, sockets and mount are.

use std::path::{Path, PathBuf};

use backstay_host::own_dir::{OwnDirError, check_trusted};
use backstay_types::DiskName;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

/// The two roots below which every disk has a folder of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// On a disk: superblock, change log, what the sidecar remembers.
    pub state: PathBuf,
    /// On tmpfs: bitmaps, socket, mount point.
    pub runtime: PathBuf,
}

impl Roots {
    /// State that lasts, by default.
    pub const STATE_DEFAULT: &str = "/var/lib/backstay";

    /// Roots as given, or the defaults: `/var/lib/backstay`, and `/run/backstay` if `/run` is
    /// tmpfs, `/dev/shm/backstay` if not. Anybody may have made the latter: [`Roots::check`] finds out.
    #[must_use]
    pub fn new(state: Option<PathBuf>, runtime: Option<PathBuf>) -> Self {
        let runtime = runtime.unwrap_or_else(|| {
            let on_tmpfs = statfs("/run").is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC);
            Path::new(if on_tmpfs { "/run" } else { "/dev/shm" }).join("backstay")
        });
        Self { state: state.unwrap_or_else(|| Self::STATE_DEFAULT.into()), runtime }
    }

    /// Checks that what lies below the roots may be believed: nobody but us or root made them or can
    /// change what is in them.
    ///
    /// # Errors
    /// If somebody else may have.
    pub fn check(&self) -> Result<(), OwnDirError> {
        check_trusted(&self.state)?;
        check_trusted(&self.runtime)
    }

    /// Where all drivers of this host claim the bytes they stand on, whatever their roots.
    #[must_use]
    pub fn claims() -> PathBuf {
        Self::new(None, None).runtime.join(".claims")
    }

    /// The paths of one disk.
    #[must_use]
    pub fn disk(&self, name: &DiskName) -> DiskPaths {
        DiskPaths {
            state: self.state.join(name.as_str()),
            runtime: self.runtime.join(name.as_str()),
        }
    }

    /// Names of the disks that have a control socket, running or left over.
    #[must_use]
    pub fn disks_with_socket(&self) -> Vec<DiskName> {
        let Ok(entries) = std::fs::read_dir(&self.runtime) else { return vec![] };
        let mut names: Vec<DiskName> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|name| self.disk(name).control_socket().exists())
            .collect();
        names.sort();
        names
    }
}

/// The paths of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPaths {
    /// Its folder that lasts.
    pub state: PathBuf,
    /// Its folder on tmpfs.
    pub runtime: PathBuf,
}

impl DiskPaths {
    /// Where its driver answers.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }
    /// Where it is mounted unless told otherwise.
    #[must_use]
    pub fn mount_point(&self) -> PathBuf {
        self.runtime.join("mnt")
    }
    /// Where it is mounted while it is handed over: nobody uses it there.
    #[must_use]
    pub fn handover_point(&self) -> PathBuf {
        self.runtime.join("handover")
    }
    /// Held by its driver as long as it lives.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.state.join("lock")
    }
    /// Where a driver in the background writes what it has to say.
    #[must_use]
    pub fn driver_log(&self) -> PathBuf {
        self.state.join("driver.log")
    }
}
