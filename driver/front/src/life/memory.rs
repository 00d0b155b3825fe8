//! Memory groups: a driver must not share a limit with those who write to its disk.
//!
//! In a memory cgroup at its limit a writer waits for its dirty pages to be written, which the driver
//! does; and the driver, where it needs a page itself, waits for the same group. An I/O flusher does not
//! wait for I/O when it needs memory. Without that right (CAP_SYS_RESOURCE) the driver leaves the group,
//! and refuses to start where it cannot.

use std::fs;
use std::path::{Path, PathBuf};

use backstay_host::mounts::{self, Mount};

/// A limit above this is none (cgroup v1 says so with the largest number of pages).
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// A memory cgroup of this process.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    /// Where its hierarchy is mounted.
    root: PathBuf,
    /// Its folder.
    dir: PathBuf,
    /// Files that hold limits, in each folder from here to the root.
    limits: &'static [&'static str],
}

/// Leaves a memory group that has a limit.
///
/// # Errors
/// In words, if there is a limit and it cannot be left.
pub(super) fn leave_limited_group() -> Result<(), String> {
    let of_us = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for group in groups(&of_us, &mounts::read().unwrap_or_default()) {
        let Some((dir, limit)) = limit_of(&group) else { continue };
        let why = format!(
            "the driver is in a memory group with a limit of {limit} bytes ({}) and lacks CAP_SYS_RESOURCE: \
             together with those who write to the disk it could wait for memory for ever",
            dir.display()
        );
        let advice = "start it with that capability (systemd: AmbientCapabilities=CAP_SYS_RESOURCE), \
                      or outside of the group (systemd: no MemoryMax= and MemoryHigh=)";
        // A service manager looks after its services by their groups.
        if group
            .dir
            .components()
            .any(|part| part.as_os_str().to_string_lossy().ends_with(".service"))
        {
            return Err(format!("{why}; {advice}"));
        }
        let left = fs::write(group.root.join("cgroup.procs"), std::process::id().to_string());
        left.map_err(|e| format!("{why}, and cannot leave it ({e}); {advice}"))?;
        tracing::warn!("{why}; it has left the group");
    }
    Ok(())
}

/// The memory groups that a process is in, of both versions.
fn groups(cgroup: &str, mounts: &[Mount]) -> Vec<Group> {
    let mut found = vec![];
    for line in cgroup.lines() {
        // 4:memory:/a/b in version 1, 0::/a/b in version 2
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (kind, limits): (_, &'static [_]) = match controllers {
            "" => ("cgroup2", &["memory.max", "memory.high"]),
            all if all.split(',').any(|one| one == "memory") => {
                ("cgroup", &["memory.limit_in_bytes"])
            }
            _ => continue,
        };
        let of_memory = |mount: &&Mount| mount.of_file_system.split(',').any(|o| o == "memory");
        let mut of_kind = mounts.iter().filter(|mount| mount.kind == kind);
        let mount = match kind {
            "cgroup2" => of_kind.next(),
            _ => of_kind.find(of_memory),
        };
        let Some(mount) = mount else { continue };
        // In a container a part of the hierarchy is mounted.
        let path = Path::new(path).strip_prefix(&mount.root).unwrap_or(Path::new(path));
        let root = mount.at.clone();
        let dir = root.join(path.strip_prefix("/").unwrap_or(path));
        found.push(Group { root, dir, limits });
    }
    found
}

/// The tightest limit of a group or those above it, and whose it is.
fn limit_of(group: &Group) -> Option<(PathBuf, u64)> {
    let above = group.dir.ancestors().take_while(|dir| dir.starts_with(&group.root));
    let limits = above.flat_map(|dir| group.limits.iter().map(move |file| (dir, file)));
    let set = limits.filter_map(|(dir, file)| Some((dir.to_owned(), read_limit(&dir.join(file))?)));
    set.min_by_key(|(_, limit)| *limit)
}

fn read_limit(path: &Path) -> Option<u64> {
    let limit: u64 = fs::read_to_string(path).ok()?.trim().parse().ok()?;
    (limit < NO_LIMIT_BYTES).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_host::mounts::parse;

    #[test]
    fn limits_of_both_versions_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (v1, v2) = (dir.path().join("v1"), dir.path().join("v2"));
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(v1.join("memory.limit_in_bytes"), "9223372036854771712\n");
        write(v1.join("a/memory.limit_in_bytes"), "9223372036854771712\n");
        write(v2.join("s.slice/memory.max"), "100663296\n");
        write(v2.join("s.slice/x/memory.max"), "max\n");
        write(v2.join("s.slice/x/memory.high"), "200000000\n");
        let mountinfo = format!(
            "30 22 0:26 / {} rw,relatime - cgroup cgroup rw,memory\n\
             31 22 0:27 / /elsewhere rw - cgroup cgroup rw,cpu\n\
             32 22 0:28 / {} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n",
            v1.display(),
            v2.display()
        );
        let found = groups("4:memory:/a\n1:cpu:/z\n0::/s.slice/x\n", &parse(mountinfo.as_bytes()));
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(limit_of(&found[0]), None, "no limit is a very large one");
        assert_eq!(limit_of(&found[1]), Some((v2.join("s.slice"), 100_663_296)));
        write(v1.join("a/memory.limit_in_bytes"), "100663296\n");
        assert_eq!(limit_of(&found[0]), Some((v1.join("a"), 100_663_296)));
        assert_eq!(groups("garbage\n0::/\n", &[]), []);
    }

    #[test]
    fn of_a_container_a_part_is_mounted() {
        let mountinfo = b"32 22 0:28 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = groups("0::/docker/1/app\n", &parse(mountinfo));
        assert_eq!(found[0].dir, Path::new("/sys/fs/cgroup/app"));
    }
}
