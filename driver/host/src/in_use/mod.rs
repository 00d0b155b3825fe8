//! Is a file or block device in use, and by whom?
//!
//! One answer for everybody who is about to overwrite, read as a whole, serve or take away a disk:
//! [`users`] names the drivers, processes, loop devices, mounts (in any mount namespace), swap areas and
//! stacked devices that use the same bytes, also by another way: a loop device on the file, a partition
//! of the device, the file below a loop device, the whole disk of a partition.
//!
//! [`users`] waits for nobody; [`lasting_users`] and [`refuse`] wait a few seconds for those who are about to be
//! gone. Everything is read from `/proc` and `/sys`; no path that leads into a
//! FUSE or network file system of somebody else is looked at, because a hanging server would hang us.
//!
//! - `subject`: what is asked about, by identity
//! - `namespaces`: the tables of mounts of all namespaces
//! - `devices`: loop devices, partitions and stacked devices: what lies on top of what
//! - `processes`: who has it open or locked
//! - `patience`: who is about to be gone
//! - `probe`: what the kernel alone knows
//! - `user`: what is answered, in words

mod devices;
mod namespaces;
mod probe;
mod processes;
mod subject;
mod user;
mod wait;

use backstay_types::{Class, Classified};
use std::collections::HashSet;
use std::io;
use std::path::Path;

pub use crate::mounts::Mount;
pub use namespaces::{Namespace, Namespaces};
pub use subject::{DeviceNo, Subject};
pub use user::{InUse, User, UserKind, list};
pub use wait::lasting_users;

use devices::{Scope, Stack};
use namespaces::source_device;
use subject::Item;

/// Whom to count.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// Also processes that have it open only for reading. Our own readers (a sidecar's cycle) are
    /// never counted: they end by themselves.
    pub readers: bool,
    /// Processes that do not count, beside this one.
    pub spare: Vec<u32>,
}

/// Everybody who uses a file or device, those who matter most first.
///
/// # Errors
/// If `/proc` cannot be read: then nobody knows.
pub fn users(subject: &Subject, look: &Look) -> io::Result<Vec<User>> {
    let namespaces = Namespaces::read()?;
    let stack = Stack::of(subject, &namespaces);
    let mut found = stack.users();
    found.extend(mounted(&stack, &namespaces));
    found.extend(devices::swaps(&stack));
    let (open, spared_writes) = processes::users(&stack, &namespaces, look)?;
    found.extend(open);
    if let Item::Fuse(device) = subject.item() {
        found.extend(processes::server_of(device, &namespaces, look));
    }
    if found.is_empty() && !spared_writes {
        found.extend(probe::unknown_user(subject, &stack, namespaces.ours()));
    }
    found.sort_by_key(|user| user.kind.rank());
    let mut seen = HashSet::new();
    found.retain(|user| seen.insert(user.clone()));
    Ok(found)
}

/// Refuses a file or device that somebody uses, whatever `--force` says.
///
/// # Errors
/// [`InUse`] with everybody who uses it; or what the system answered.
pub fn refuse(path: &Path) -> Result<(), InUseError> {
    let subject = match Subject::at(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        subject => subject.map_err(|source| InUseError::Unknown { path: path.into(), source })?,
    };
    let users = lasting_users(&subject, &Look::default())
        .map_err(|source| InUseError::Unknown { path: path.into(), source })?;
    match users.is_empty() {
        true => Ok(()),
        false => Err(InUse { path: path.into(), users }.into()),
    }
}

/// The driver that serves the bytes of a loop device or of a file it serves itself, if there is one:
/// what is read there is a disk in use already.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn served_by(subject: &Subject) -> io::Result<Option<User>> {
    let namespaces = Namespaces::read()?;
    let stack = Stack::of(subject, &namespaces);
    let fuse = stack.nodes().iter().find_map(|node| match node.item {
        Item::Fuse(device) => Some(device),
        _ => None,
    });
    Ok(fuse.and_then(|device| processes::server_of(device, &namespaces, &Look::default())))
}

/// Every process that is at work in a file system (working folder, open file, program), in any mount
/// namespace: why it cannot be unmounted.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn inside(device: DeviceNo) -> io::Result<Vec<User>> {
    processes::inside(device, &Namespaces::read()?)
}

/// Why something is not done to a file or device.
#[derive(Debug, thiserror::Error)]
pub enum InUseError {
    /// Somebody uses it.
    #[error(transparent)]
    InUse(#[from] InUse),
    /// It cannot be found out whether somebody does.
    #[error("{}: cannot find out whether it is in use: {source}", path.display())]
    Unknown {
        /// The file or device.
        path: std::path::PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

impl Classified for InUseError {
    fn class(&self) -> Class {
        match self {
            Self::InUse(e) => e.class(),
            Self::Unknown { source, .. } => source.class(),
        }
    }
}

/// File systems that are mounted from one of these devices, one for each namespace.
fn mounted(stack: &Stack, namespaces: &Namespaces) -> Vec<User> {
    let mut found = vec![];
    for node in stack.nodes().iter().filter(|node| node.scope != Scope::Slave) {
        let Item::Device(device) = node.item else { continue };
        for namespace in namespaces.all() {
            let of =
                |mount: &&Mount| mount.device == device || source_device(mount) == Some(device);
            let Some(mount) = namespace.mounts.iter().find(of) else { continue };
            found.push(User {
                kind: UserKind::Mounted { device: node.label.clone(), at: mount.at.clone() },
                pid: namespace.foreign_pid(),
                command: namespace.foreign_command(),
                namespace: namespace.foreign_inode(),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests;
