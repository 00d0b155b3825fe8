//! Is a file or block device in use, and by whom?
//!
//! Every command that overwrites, serves or removes a disk, or reads all of it, checks here first. [`users`]
//! finds the drivers, processes, loop devices, mounts (in any mount namespace), swap areas and stacked
//! devices that use the same bytes. It also finds indirect users: a loop device on the file, a partition of
//! the device, the file below a loop device, the whole disk of a partition.
//!
//! [`users`] answers at once. [`lasting_users`] and [`refuse`] wait a few seconds for users that are about
//! to end. All facts come from `/proc` and `/sys`. No path inside somebody else's FUSE or network file
//! system is opened, because a hanging server would block this process.
//!
//! - `subject`: the identity of the file or device in question
//! - `namespaces`: the mount tables of all namespaces
//! - `devices`: loop devices, partitions and stacked devices
//! - `processes`: processes that have it open or locked
//! - `wait`: waiting for users that are about to end
//! - `probe`: a lease or an exclusive open, for users that only the kernel knows
//! - `user`: the description of a user

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

/// Which users to report.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// Also report processes that have it open only for reading. Backstay's own readers (the cycle of a
    /// sidecar) are never reported, because they end soon.
    pub readers: bool,
    /// Processes to ignore, in addition to this one.
    pub spare: Vec<u32>,
}

/// All users of a file or device, the most important first.
///
/// # Errors
/// If `/proc` cannot be read.
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
    let mut distinct = HashSet::new();
    found.retain(|user| distinct.insert(user.clone()));
    Ok(found)
}

/// Refuses a file or device that is in use. `--force` does not override this.
///
/// # Errors
/// [`InUse`] with all users; or the error that kept them from being found.
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

/// The driver that serves this file, or the file below this loop device. If there is one, the bytes are
/// those of a protected disk that is already served.
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

/// The processes that keep a file system from being unmounted, in any mount namespace: through their
/// working folder, an open file or their program.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn inside(device: DeviceNo) -> io::Result<Vec<User>> {
    processes::inside(device, &Namespaces::read()?)
}

/// Why a file or device must not be touched.
#[derive(Debug, thiserror::Error)]
pub enum InUseError {
    /// It is in use.
    #[error(transparent)]
    InUse(#[from] InUse),
    /// The check for users failed.
    #[error("{}: cannot find out whether it is in use: {source}", path.display())]
    Unknown {
        /// The file or device.
        path: std::path::PathBuf,
        /// The error of the system call.
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

/// File systems mounted from one of these devices, one per namespace.
fn mounted(stack: &Stack, namespaces: &Namespaces) -> Vec<User> {
    let mut found = vec![];
    for node in stack.nodes().iter().filter(|node| node.scope != Scope::Slave) {
        let Item::Device(device) = node.item else { continue };
        for namespace in namespaces.all() {
            let is_from =
                |mount: &&Mount| mount.device == device || source_device(mount) == Some(device);
            let Some(mount) = namespace.mounts.iter().find(is_from) else { continue };
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
