//! Who uses a served disk: found by looking, since the kernel only says that it is busy.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Everybody who has a file or device open, or a file system mounted from it, in words; `spared` is the
/// driver's own process. Backstay's own readers are spared, too: a sidecar reads a mounted point through the
/// served file, and lets go of it when its cycle ends.
#[must_use]
pub fn of(paths: &[PathBuf], spared: u32) -> Vec<String> {
    let mut users = mounted(paths);
    users.extend(holders(paths));
    users.extend(processes(paths, spared));
    users
}

/// Every process that is at work below a folder, in words: why it cannot be unmounted.
#[must_use]
pub fn below(folder: &Path) -> Vec<String> {
    let mut found = vec![];
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let places = ["cwd", "root", "exe"].map(|at| process.path().join(at)).into_iter();
        let at = places
            .chain(open.map(|fd| fd.path()))
            .filter_map(|link| fs::read_link(link).ok())
            .find(|at| at.starts_with(folder));
        if let Some(at) = at {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("process {pid} ({}) uses {}", name.trim(), at.display()));
        }
    }
    found
}

fn mounted(paths: &[PathBuf]) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let of = |line: &str| {
        let mut words = line.split(' ');
        let (what, at) = (words.next()?, words.next()?);
        paths
            .iter()
            .any(|path| path == Path::new(what))
            .then(|| format!("{what} is mounted on {at}"))
    };
    mounts.lines().filter_map(of).collect()
}

/// Device mapper, md and the like on top of a device.
fn holders(paths: &[PathBuf]) -> Vec<String> {
    let mut found = vec![];
    for path in paths {
        let Some(name) = path.strip_prefix("/dev").ok().and_then(Path::to_str) else { continue };
        let holders = fs::read_dir(format!("/sys/block/{name}/holders")).into_iter().flatten();
        for holder in holders.flatten() {
            let holder = holder.file_name().to_string_lossy().into_owned();
            found.push(format!("{} is part of {holder}", path.display()));
        }
    }
    found
}

fn processes(paths: &[PathBuf], spared: u32) -> Vec<String> {
    let mut found = vec![];
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if pid == spared || pid == std::process::id() {
            continue;
        }
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        let ours = name.trim() == "backstay";
        let open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let uses = open
            .filter(|fd| !(ours && only_reads(&process.path(), &fd.file_name())))
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .find(|at| paths.contains(at));
        if let Some(at) = uses {
            found.push(format!("process {pid} ({}) has {} open", name.trim(), at.display()));
        }
    }
    found
}

/// Whether a process has a file open for reading only; not if that cannot be told.
fn only_reads(process: &Path, fd: &OsStr) -> bool {
    let info = fs::read_to_string(process.join("fdinfo").join(fd)).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    // The access mode: 0 is O_RDONLY.
    flags.is_some_and(|flags| flags & 3 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_it_open_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("disk");
        let (file, path_of) = (fs::File::create(&path).unwrap(), path.clone());
        assert!(of(std::slice::from_ref(&path), 0).is_empty(), "this process is spared");
        // It has the file open until its input ends.
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(file)
            .spawn()
            .unwrap();
        let users = of(std::slice::from_ref(&path), 0);
        assert!(users.len() == 1 && users[0].contains(&child.id().to_string()), "{users:?}");
        assert!(of(&[dir.path().join("other")], 0).is_empty());
        assert!(of(&[path], child.id()).is_empty());
        // Open for writing, as any user of a disk has it; our own readers are told from that.
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        assert!(!only_reads(&process, OsStr::new("1")));
        let below = below(path_of.parent().unwrap());
        assert!(below.iter().any(|of| of.contains(&child.id().to_string())), "{below:?}");
        drop(child.stdin.take());
        child.wait().unwrap();
        let reader = fs::File::open(dir.path().join("disk")).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&reader).to_string();
        assert!(only_reads(Path::new("/proc/self"), OsStr::new(&fd)));
        assert!(!only_reads(Path::new("/proc/self"), OsStr::new("none")));
    }
}
