//! A driver that does not answer: seen from outside, and ended with a bounded wait.
//!
//! Its file system takes no writes, so anyone who calls sync(2) on this host waits for it. The kernel can end the
//! file system without the driver's help (fusectl, `abort`): anyone who waits then gets an error.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_host::doing::{Doing, doing};
use backstay_host::in_use::Namespaces;
use backstay_host::{clock, fuse_connection};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;

use crate::paths::DiskPaths;

/// How long a killed process may take to be gone. One that waits for a disk that does not answer is not.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// There is no event for the end of a process that is not ours and may be waiting in the kernel.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A driver, seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its process.
    pub pid: u32,
    /// What the kernel says it does.
    pub doing: Doing,
    /// The number of its file system's connection, if it is mounted.
    pub connection: Option<u32>,
}

/// The driver of a disk, without asking it anything; none if there is none.
#[must_use]
pub fn look(paths: &DiskPaths) -> Option<Seen> {
    let pid = listener(&paths.control_socket())?;
    let doing = Some(doing(pid)).filter(|doing| *doing != Doing::Gone)?;
    Some(Seen { pid, doing, connection: mount_of(paths, pid).map(|(_, minor)| minor) })
}

/// Ends a driver that does not answer: its file system first, so that nobody waits for it any more, then the
/// process. What its users wrote and did not sync is lost to them; what was acknowledged is in the backing, and
/// the bitmaps on tmpfs are exact. Takes a few seconds at most.
///
/// # Errors
/// If the kernel does not let us, or the process does not end: it waits for its backing.
pub fn end(paths: &DiskPaths, seen: &Seen) -> io::Result<()> {
    let mounted = mount_of(paths, seen.pid);
    if let Some((_, connection)) = &mounted {
        fuse_connection::abort(*connection)?;
    }
    let pid = Pid::from_raw(seen.pid as i32);
    match kill(pid, Signal::SIGKILL) {
        Err(nix::errno::Errno::ESRCH) => {}
        done => done?,
    }
    if let Some((at, _)) = &mounted {
        let _ = umount2(at, MntFlags::MNT_DETACH);
    }
    let until = clock::monotonic() + GONE_WITHIN;
    while doing(seen.pid) != Doing::Gone {
        if clock::monotonic() > until {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "its file system was ended, but process {} is still there: it waits for its backing, and \
                     ends when that answers or fails",
                    seen.pid
                ),
            ));
        }
        clock::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// The process that listens on a socket: the kernel knows it, and does not ask it.
fn listener(socket: &Path) -> Option<u32> {
    let stream = nonblocking(socket)?;
    let peer = getsockopt(&stream, PeerCredentials).ok()?;
    u32::try_from(peer.pid()).ok().filter(|&pid| pid != 0)
}

/// Connects without waiting: a listener that accepts nobody has a full queue at some time.
fn nonblocking(socket: &Path) -> Option<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket as make};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = make(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    connect(fd.as_raw_fd(), &UnixAddr::new(socket).ok()?).ok()?;
    Some(UnixStream::from(fd))
}

/// Where a driver has its disk mounted, and the number of the connection.
fn mount_of(paths: &DiskPaths, pid: u32) -> Option<(PathBuf, u32)> {
    let connection = fuse_connection::of_process(pid);
    let own = Namespaces::own().ok()?;
    let mut mounts = own.mounts.into_iter().filter(|mount| mount.kind == "fuse.backstay");
    let mount = mounts.find(|mount| match connection {
        Some(number) => mount.device.minor == number,
        // Kernels before 6.16 do not say which connection a process has.
        None => mount.at.starts_with(&paths.runtime),
    })?;
    Some((mount.at, mount.device.minor))
}
