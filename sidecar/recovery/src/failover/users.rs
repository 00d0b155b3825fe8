//! Who uses a served disk: found by looking, since the kernel only says that it is busy.

use std::fs;
use std::path::{Path, PathBuf};

/// Everybody who has a file or device open, or a file system mounted from it, in words; `spared` is the
/// driver's own process.
#[must_use]
pub fn of(paths: &[PathBuf], spared: u32) -> Vec<String> {
    let mut users = mounted(paths);
    users.extend(holders(paths));
    users.extend(processes(paths, spared));
    users
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
        let open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let uses =
            open.filter_map(|fd| fs::read_link(fd.path()).ok()).find(|at| paths.contains(at));
        if let Some(at) = uses {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("process {pid} ({}) has {} open", name.trim(), at.display()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_it_open_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("disk");
        let file = fs::File::create(&path).unwrap();
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
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
