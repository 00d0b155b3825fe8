//! A Linux system in memory for [`Guest::boot_lab`](super::guest::Guest::boot_lab): Debian's kernel, busybox, programs of this
//! host with their libraries, and a script. For what this host's own kernel is not set up for.

use std::fs;
use std::path::{Path, PathBuf};

use super::guest::image;
use super::must;

/// A system that a test has put together.
pub struct Lab {
    dir: tempfile::TempDir,
    parts: PathBuf,
}

impl Lab {
    /// A system with these programs in `/programs`, which runs `script` with busybox's shell when it has booted. The script finds `/dev/vda`
    /// and the module of FUSE, and prints what the test waits for; its end is the machine's.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn new(programs: &[&Path], script: &str) -> Self {
        // scripts/guest-image leaves the parts beside its image.
        let parts = image().parent().unwrap().join("lab");
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = dir.path().join("root");
        for folder in ["bin", "programs", "dev", "proc", "sys", "run", "tmp", "disk", "modules"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy(parts.join("busybox"), root.join("bin/busybox")).unwrap();
        for module in fs::read_dir(parts.join("modules")).unwrap().map(Result::unwrap) {
            fs::copy(module.path(), root.join("modules").join(module.file_name())).unwrap();
        }
        for program in programs {
            let name = program.file_name().unwrap();
            fs::copy(program, root.join("programs").join(name)).unwrap();
            for library in libraries(program) {
                let to = root.join(library.strip_prefix("/").unwrap());
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(&library, to).unwrap();
            }
        }
        let begin = "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/programs:/bin\n\
             mount -t devtmpfs none /dev; mount -t proc none /proc; mount -t sysfs none /sys\n\
             for round in 1 2 3 4; do for module in /modules/*; do insmod $module 2>/dev/null; done; done\n\
             while ! [ -b /dev/vda ]; do usleep 10000; done\nexec >/dev/ttyS0 2>&1\n";
        let init = root.join("init");
        fs::write(&init, format!("{begin}{script}\npoweroff -f\n")).unwrap();
        must("chmod", ["+x", init.to_str().unwrap()]);
        let pack =
            "cd \"$1\" && find . | ./bin/busybox cpio -o -H newc 2>/dev/null | gzip -1 >../initrd";
        must("bash", ["-o", "pipefail", "-c", pack, "pack", root.to_str().unwrap()]);
        Self { dir, parts }
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.parts.join("vmlinuz")
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.dir.path().join("initrd")
    }
}

/// The libraries that a program is loaded with, its loader among them.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let said = must("ldd", [program.to_str().unwrap()]);
    let path =
        |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    said.lines().filter_map(path).collect()
}
