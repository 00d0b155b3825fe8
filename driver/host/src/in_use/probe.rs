//! Finds users that only the kernel knows: asks it for a read lease (files) or an exclusive open (devices).
//!
//! Used only if no other user was found and no hanging server could block the open.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::devices::Stack;
use super::namespaces::Namespace;
use super::subject::{Item, Subject};
use super::user::{User, UserKind};

/// A user that cannot be seen.
pub(super) fn unknown_user(subject: &Subject, stack: &Stack, ours: &Namespace) -> Option<User> {
    let by_server = stack.nodes().iter().any(|node| matches!(node.item, Item::Fuse(_)));
    if by_server || ours.mount_of(subject.path()).is_some_and(super::Mount::is_remote) {
        return None;
    }
    let how = match subject.item() {
        Item::File(_) => is_written(subject.path()).then_some(
            "is open for writing somewhere that cannot be seen from here (mapped into memory, or \
             served by the kernel)",
        ),
        Item::Device(_) => is_claimed(subject.path()).then_some(
            "is claimed by the kernel: mounted in a mount namespace without processes, or part of another \
             device",
        ),
        Item::Fuse(_) => None,
    }?;
    let kind = UserKind::Hidden { what: subject.path().into(), how };
    Some(User { kind, pid: None, command: None, namespace: None })
}

/// Whether the kernel counts somebody who may write: it then gives no read lease.
fn is_written(path: &Path) -> bool {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(path) else {
        return false;
    };
    let fd = file.as_raw_fd();
    // SAFETY: takes numbers only. Anyone who opens the file for writing in this instant has us sent a signal:
    // one that is ignored by default.
    let lease = unsafe {
        libc::fcntl(fd, F_SETSIG, libc::SIGURG);
        libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK)
    };
    // Where there are no leases, nothing is known.
    let refused = lease != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
    if lease == 0 {
        // SAFETY: takes numbers only.
        unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
    }
    refused
}

/// From linux/fcntl.h; not in the libc crate for this target.
const F_SETSIG: libc::c_int = 10;

/// Whether the kernel refuses a device to anyone who wants it alone.
fn is_claimed(path: &Path) -> bool {
    let flags = libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    opened.is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY))
}
