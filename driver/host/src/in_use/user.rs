//! A user of a file or device, described so that a person can act on it.

use backstay_types::{Class, Classified};
use std::fmt;
use std::path::{Path, PathBuf};

/// Most users that a message names.
const NAMED_MAX: usize = 6;

/// Somebody who uses a file or device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User {
    /// How it is used.
    pub kind: UserKind,
    /// The process. For a mount in another namespace: one that is in that namespace.
    pub pid: Option<u32>,
    /// That process's command.
    pub command: Option<String>,
    /// The mount namespace (its inode number), if it is not ours.
    pub namespace: Option<u64>,
}

/// How something is used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UserKind {
    /// A driver has it as the backing of a disk, or serves it.
    Driver {
        /// The disk's name, if it can be told.
        disk: Option<String>,
    },
    /// Another program of ours has it for a disk: a replica, an export.
    Ours {
        /// The disk's name.
        disk: String,
    },
    /// A file system on it is mounted.
    Mounted {
        /// The device.
        device: PathBuf,
        /// Where, as seen in that namespace.
        at: PathBuf,
    },
    /// The kernel swaps to it.
    Swap {
        /// The device or file.
        what: PathBuf,
    },
    /// A stacked device (device mapper, md, btrfs) is made of it.
    Holder {
        /// The device it is made of.
        device: PathBuf,
        /// The stacked device.
        holder: String,
    },
    /// A loop device is attached to it.
    Loop {
        /// The loop device.
        device: PathBuf,
    },
    /// A process has it open.
    Open {
        /// What it has open.
        what: PathBuf,
        /// Whether for writing.
        writes: bool,
        /// Whether it has locked it.
        locks: bool,
    },
    /// A process has it locked that cannot be seen otherwise.
    Locked {
        /// What is locked.
        what: PathBuf,
    },
    /// A process is at work below a mount point.
    Inside {
        /// What it uses.
        what: PathBuf,
    },
    /// The kernel says that it is in use, and nobody can be seen.
    Hidden {
        /// What is in use.
        what: PathBuf,
        /// What is known.
        how: &'static str,
    },
}

impl UserKind {
    /// Those who say most first.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Driver { .. } => 0,
            Self::Ours { .. } => 1,
            Self::Mounted { .. } => 2,
            Self::Swap { .. } => 3,
            Self::Holder { .. } => 4,
            Self::Open { .. } => 5,
            Self::Inside { .. } => 6,
            Self::Locked { .. } => 7,
            Self::Loop { .. } => 8,
            Self::Hidden { .. } => 9,
        }
    }
}

impl User {
    /// `process 4242 (qemu-system-x86)`, and the namespace if it is another one.
    fn process(&self) -> String {
        let pid =
            self.pid.map_or_else(|| "an unknown process".into(), |pid| format!("process {pid}"));
        let command = self.command.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
        let namespace =
            self.namespace.map_or_else(String::new, |inode| format!(" in mount namespace {inode}"));
        format!("{pid}{command}{namespace}")
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            UserKind::Driver { disk: Some(disk) } => {
                write!(f, "it is served as disk {disk} by {}", self.process())
            }
            UserKind::Driver { disk: None } => {
                write!(f, "it is served as a disk by {}", self.process())
            }
            UserKind::Ours { disk } => write!(f, "{} uses it for disk {disk}", self.process()),
            UserKind::Mounted { device, at } => {
                write!(f, "{} is mounted at {}", device.display(), at.display())?;
                match self.namespace {
                    Some(inode) => {
                        let command = self.command.as_deref().unwrap_or("?");
                        let pid = self.pid.unwrap_or_default();
                        write!(f, " in mount namespace {inode} of process {pid} ({command})")
                    }
                    None => Ok(()),
                }
            }
            UserKind::Swap { what } => write!(f, "{} is used as swap", what.display()),
            UserKind::Holder { device, holder } => {
                write!(f, "{} is part of {holder}", device.display())
            }
            UserKind::Loop { device } => write!(f, "{} is attached to it", device.display()),
            UserKind::Open { what, writes, locks } => {
                let how = match (writes, locks) {
                    (true, true) => "open for writing and locked",
                    (true, false) => "open for writing",
                    (false, true) => "locked",
                    (false, false) => "open",
                };
                write!(f, "{} has {} {how}", self.process(), what.display())
            }
            UserKind::Locked { what } => {
                write!(f, "{} is locked by {}", what.display(), self.process())
            }
            UserKind::Inside { what } => write!(f, "{} uses {}", self.process(), what.display()),
            UserKind::Hidden { what, how } => write!(f, "{} {how}", what.display()),
        }
    }
}

/// Users as one sentence part, not more than a person reads.
#[must_use]
pub fn list(users: &[User]) -> String {
    let mut said: Vec<String> = users.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    if users.len() > NAMED_MAX {
        said.push(format!("and {} more", users.len() - NAMED_MAX));
    }
    said.join("; ")
}

/// A file or device that must not be touched because somebody uses it.
#[derive(Debug, Clone)]
pub struct InUse {
    /// The file or device.
    pub path: PathBuf,
    /// Everybody who uses it; never empty.
    pub users: Vec<User>,
}

impl InUse {
    /// What a person can do first.
    fn advice(&self) -> String {
        match self.users.first().map(|user| &user.kind) {
            Some(UserKind::Driver { disk: Some(disk) }) => {
                format!("run \"backstay detach {disk}\" first")
            }
            Some(UserKind::Mounted { at, .. }) if self.users[0].namespace.is_none() => {
                format!("run \"umount {}\" first", at.display())
            }
            Some(UserKind::Swap { what }) => format!("run \"swapoff {}\" first", what.display()),
            Some(UserKind::Loop { device }) => {
                format!("run \"losetup -d {}\" first", device.display())
            }
            _ => "stop that first".into(),
        }
    }

    /// As [`InUse`] for a path.
    #[must_use]
    pub fn new(path: &Path, users: Vec<User>) -> Self {
        Self { path: path.into(), users }
    }
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is in use: {}; {}", self.path.display(), list(&self.users), self.advice())
    }
}

impl std::error::Error for InUse {}
impl Classified for InUse {
    fn class(&self) -> Class {
        Class::Refused
    }
}
