//! FUSE connections in the kernel: finds their servers, and aborts a connection without a server.
//!
//! Normally the kernel ends a connection with the last file descriptor of its server, and pending requests
//! fail. There is one exception: the last process of a mount namespace unmounts the namespace's file
//! systems *before* the kernel closes its descriptors. If one of them is on a disk that the process serves
//! itself, it waits for itself for ever, and so does every sync(2) on the host. This happens when a
//! container is killed together with its driver.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Where the kernel's switches for FUSE file systems are.
pub const CONNECTIONS: &str = "/sys/fs/fuse/connections";
/// The number of the first process namespace (`PROC_PID_INIT_INO` of Linux): all processes are seen from it.
const ALL_PROCESSES: &str = "pid:[4026531836]";

/// Ends a file system of FUSE: who waits for it gets an error.
///
/// # Errors
/// If the kernel does not let us.
pub fn abort(connection: u32) -> io::Result<()> {
    let switch = Path::new(CONNECTIONS).join(connection.to_string()).join("abort");
    if switch.exists() {
        return fs::write(switch, b"1");
    }
    // Not mounted on this host, for example in a container.
    mount_switches()?;
    let done = fs::write(switch, b"1");
    let _ = umount2(CONNECTIONS, MntFlags::MNT_DETACH);
    done
}

fn mount_switches() -> io::Result<()> {
    let none = None::<&str>;
    Ok(mount(Some("fusectl"), CONNECTIONS, Some("fusectl"), MsFlags::empty(), none)?)
}

/// The connection that a process serves. Kernels before 6.16 do not say it.
#[must_use]
pub fn of_process(pid: u32) -> Option<u32> {
    all_of_process(pid).next()
}

/// All connections that a process serves: another program may have several.
fn all_of_process(pid: u32) -> impl Iterator<Item = u32> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let fuse = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|link| link == Path::new("/dev/fuse"))
    };
    links.filter(fuse).filter_map(move |entry| {
        let info = PathBuf::from(format!("/proc/{pid}/fdinfo")).join(entry.file_name());
        let info = fs::read_to_string(info).ok()?;
        let line = info.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?;
        line.trim().parse().ok()
    })
}

/// Connections that have requests and no process: nobody will ever answer, and they do not end by themselves. `None` if
/// requests wait and this host cannot show who serves them: in a container, or with an older kernel.
///
/// # Errors
/// If the connections cannot be read.
pub fn abandoned() -> io::Result<Option<Vec<u32>>> {
    let before = waiting()?;
    if before.is_empty() {
        return Ok(Some(before));
    }
    let sees_all =
        fs::read_link("/proc/self/ns/pid").is_ok_and(|it| it == Path::new(ALL_PROCESSES));
    let processes = fs::read_dir("/proc")?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let served: BTreeSet<u32> = pids.flat_map(all_of_process).collect();
    if !sees_all || (served.is_empty() && !says_connections()) {
        return Ok(None);
    }
    // One whose process ended meanwhile is gone by now.
    let still = waiting()?;
    let abandoned = |number: &u32| !served.contains(number) && still.contains(number);
    Ok(Some(before.into_iter().filter(abandoned).collect()))
}

/// Whether this kernel says which connection a descriptor serves.
fn says_connections() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 16)
}

/// The connections with requests that were not answered yet.
fn waiting() -> io::Result<Vec<u32>> {
    if let Some(found) = read_waiting()? {
        return Ok(found);
    }
    // Mounted for this look alone, in a mount namespace that ends with its thread.
    let look = thread::spawn(|| {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        mount_switches()?;
        read_waiting()
    });
    let found = look.join().map_err(|_| io::Error::other("looking at FUSE connections"))??;
    Ok(found.unwrap_or_default())
}

/// None if the switches are not mounted, or there is no connection.
fn read_waiting() -> io::Result<Option<Vec<u32>>> {
    let entries: Vec<_> = fs::read_dir(CONNECTIONS)?.flatten().collect();
    let number = |entry: &fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let asked = |entry: &fs::DirEntry| {
        let count = fs::read_to_string(entry.path().join("waiting"));
        count.is_ok_and(|count| count.trim() != "0")
    };
    let waiting = entries.iter().filter(|entry| asked(entry)).filter_map(number).collect();
    Ok((!entries.is_empty()).then_some(waiting))
}
