//! What the system knows of Backstay: units, helpers of mount(8), lines of fstab.

use std::fs;
use std::path::{Path, PathBuf};

use crate::prerequisites::Checked::{self, Bad, Good, Odd};

/// Where systemd looks for units, the strongest first.
const UNITS: [&str; 4] = [
    "etc/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];
/// The units of the package.
const SIDECAR: &str = "backstay-sidecar.service";
const DISK: &str = "backstay-disk@.service";

/// The system's own folders.
pub struct System {
    root: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

/// A line of fstab.
struct Line<'a> {
    spec: &'a str,
    options: Vec<&'a str>,
    check: &'a str,
}

impl System {
    /// Whether systemd runs here.
    pub fn has_systemd(&self) -> bool {
        self.root.join("run/systemd/system").is_dir()
    }

    /// Whether the units are there and start a program that is there.
    pub fn units(&self) -> Checked {
        let unit = |name: &str| {
            UNITS.iter().map(|dir| self.root.join(dir).join(name)).find(|p| p.is_file())
        };
        let (Some(sidecar), Some(disk)) = (unit(SIDECAR), unit(DISK)) else {
            return match self.has_systemd() {
                true => Odd("not installed: nothing is started with the machine; install the package, or run \
                             scripts/install"
                    .into()),
                false => Good("systemd does not run here, and there are none".into()),
            };
        };
        for path in [&sidecar, &disk] {
            let text = fs::read_to_string(path).unwrap_or_default();
            let program = text.lines().find_map(|line| line.strip_prefix("ExecStart="));
            let program =
                program.and_then(|line| line.split_whitespace().next()).unwrap_or_default();
            if !self.root.join(program.trim_start_matches('/')).is_file() {
                return Bad(format!(
                    "{} starts {program:?}, which is not there; install it again",
                    path.display()
                ));
            }
        }
        Good(format!("in {}", sidecar.parent().unwrap_or(&sidecar).display()))
    }

    /// Whether mount(8) and umount(8) find this program.
    pub fn helpers(&self) -> Checked {
        let ours = std::env::current_exe().and_then(fs::canonicalize).unwrap_or_default();
        for name in ["mount.backstay", "umount.backstay"] {
            let path = self.root.join("sbin").join(name);
            match fs::canonicalize(&path) {
                Ok(found) if found == ours => {}
                Ok(found) => {
                    return Odd(format!(
                        "{} is of another installation: {}; remove one of them",
                        path.display(),
                        found.display()
                    ));
                }
                Err(_) => {
                    return Odd(format!(
                        "{} is missing: mount -t backstay and lines of fstab do not work; install the \
                         package, or run scripts/install",
                        path.display()
                    ));
                }
            }
        }
        Good("mount -t backstay works".into())
    }

    /// Lines of fstab that are about protected disks.
    pub fn fstab(&self) -> Vec<Checked> {
        let text = fs::read_to_string(self.root.join("etc/fstab")).unwrap_or_default();
        lines(&text).map(|line| line.judge(self.has_systemd())).collect()
    }

    /// Whether a disk is served after the next start of the machine: by its unit or by fstab.
    pub fn starts(&self, name: &str) -> bool {
        let unit = format!("backstay-disk@{name}.service");
        let wanted =
            fs::read_dir(self.root.join("etc/systemd/system")).into_iter().flatten().flatten();
        // A link to what may be missing is still a wish.
        let mut wanted = wanted.map(|dir| dir.path().join(&unit));
        let fstab = fs::read_to_string(self.root.join("etc/fstab")).unwrap_or_default();
        wanted.any(|link| link.symlink_metadata().is_ok())
            || lines(&fstab).any(|line| {
                line.spec == name
                    || line.options.iter().any(|o| o.strip_prefix("name=") == Some(name))
            })
    }
}

/// The lines of fstab of our type.
fn lines(fstab: &str) -> impl Iterator<Item = Line<'_>> {
    fstab.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().take_while(|field| !field.starts_with('#'));
        let (spec, _, fs_type) = (fields.next()?, fields.next()?, fields.next()?);
        let options = fields.next().unwrap_or_default().split(',').collect();
        (fs_type == "backstay").then_some(Line {
            spec,
            options,
            check: fields.nth(1).unwrap_or("0"),
        })
    })
}

impl Line<'_> {
    fn judge(&self, systemd: bool) -> Checked {
        let spec = self.spec;
        let has = |start: &str| self.options.iter().any(|option| option.starts_with(start));
        if spec.contains('/') && !has("name=") {
            Bad(format!("{spec}: it is not said which disk it is: add name=NAME"))
        } else if self.check != "0" {
            Odd(format!(
                "{spec}: the last column must be 0: fsck cannot check what is not served yet"
            ))
        } else if systemd && !has("_netdev") {
            Odd(format!("{spec}: without _netdev it is mounted before local file systems are"))
        } else if systemd && !has("x-systemd.requires=backstay-disk@") {
            Odd(format!(
                "{spec}: without x-systemd.requires=backstay-disk@NAME.service the driver may be told to \
                 stop before the file system is unmounted"
            ))
        } else {
            Good(format!("{spec} is mounted and unmounted in order"))
        }
    }
}

/// Whether a program is on the path or where administrators' programs are.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).any(|dir| is_file(&dir.join(program)))
}

fn is_file(path: &Path) -> bool {
    path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prerequisites::Verdict;

    fn system() -> (tempfile::TempDir, System) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        for folder in
            ["etc/systemd/system/multi-user.target.wants", "run/systemd/system", "usr/bin"]
        {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        (dir, System { root })
    }

    fn verdict(found: Checked) -> (Verdict, String) {
        found.split()
    }

    #[test]
    fn units_must_start_a_program_that_is_there() {
        let (_dir, system) = system();
        assert_eq!(verdict(system.units()).0, Verdict::Warning);
        for unit in [SIDECAR, DISK] {
            let path = system.root.join("etc/systemd/system").join(unit);
            fs::write(path, "[Service]\nExecStart=/usr/bin/backstay sidecar\n").unwrap();
        }
        let (found, why) = verdict(system.units());
        assert!(found == Verdict::Failed && why.contains("/usr/bin/backstay"), "{why}");
        fs::write(system.root.join("usr/bin/backstay"), "").unwrap();
        assert_eq!(verdict(system.units()).0, Verdict::Ok);
    }

    #[test]
    fn lines_of_fstab_are_judged() {
        let (_dir, system) = system();
        let fstab = "# db /mnt backstay a 0 0\n/dev/sda1 / ext4 defaults 0 1\n\
            db /mnt/db backstay _netdev,x-systemd.requires=backstay-disk@db.service 0 0\n\
            /srv/x.img /mnt/x backstay ro 0 0\n\
            y /mnt/y backstay _netdev 0 2\n\
            z /mnt/z backstay ro\n\
            /srv/w.img /mnt/w backstay name=w,_netdev\n";
        fs::write(system.root.join("etc/fstab"), fstab).unwrap();
        let found: Vec<(Verdict, String)> = system.fstab().into_iter().map(verdict).collect();
        let expected = [
            (Verdict::Ok, "db"),
            (Verdict::Failed, "name=NAME"),
            (Verdict::Warning, "last column"),
            (Verdict::Warning, "_netdev"),
            (Verdict::Warning, "x-systemd.requires"),
        ];
        assert_eq!(found.len(), expected.len());
        for ((found, why), (verdict, word)) in found.iter().zip(expected) {
            assert!(*found == verdict && why.contains(word), "{why}");
        }
        assert!(system.starts("z") && system.starts("w") && !system.starts("v"));
        let link = "etc/systemd/system/multi-user.target.wants/backstay-disk@v.service";
        std::os::unix::fs::symlink("/nowhere", system.root.join(link)).unwrap();
        assert!(system.starts("v"));
    }
}
