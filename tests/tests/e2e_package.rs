//! The Debian package in a clean root, and under a systemd of its own: installed, started, switched off and
//! on, removed.
//!
//! Needs root, /dev/fuse, loop devices, debootstrap (and the network, the first time in a week), systemd-nspawn.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use backstay_tests::harness::command::{must, run, said};
use backstay_tests::harness::host::backstay;

/// The checkout.
fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn script(name: &str) -> String {
    checkout().join("scripts").join(name).to_string_lossy().into_owned()
}

/// Where cargo builds.
fn target() -> PathBuf {
    backstay().parent().and_then(Path::parent).unwrap().to_owned()
}

/// The package of the program that is tested; made once.
fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let built = backstay();
        let profile = match built.parent().unwrap().file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            other => other,
        };
        let output = target().join("package-test");
        let made = Command::new(script("package"))
            .env("CARGO_TARGET_DIR", target())
            .args(["--fast", "--profile", profile, "--output"])
            .arg(&output)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", said(&made));
        PathBuf::from(String::from_utf8(made.stdout).unwrap().lines().last().unwrap())
    })
}

/// A Debian in a folder; removed when dropped.
struct Root {
    dir: PathBuf,
}

impl Root {
    fn new(test: &str) -> Self {
        let dir = target().join(format!("root-{test}-{}", std::process::id()));
        let made = Command::new(script("clean-root"))
            .env("CARGO_TARGET_DIR", target())
            .arg(&dir)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", said(&made));
        let root = Self { dir };
        fs::copy(package(), root.path("root/backstay.deb")).unwrap();
        root
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    fn nspawn(&self, more: &[&str]) -> Command {
        let mut nspawn = Command::new("timeout");
        nspawn.args(["240", "systemd-nspawn", "--quiet", "--register=no", "--private-network"]);
        // Where systemd does not run, nobody could make a unit for the machine.
        if !Path::new("/run/systemd/system").exists() {
            nspawn.arg("--keep-unit");
        }
        // A name of its own: a machine that ends takes what it had below /run with it, by its name.
        nspawn.arg(format!("--machine={}", self.dir.file_name().unwrap().to_str().unwrap()));
        nspawn.args(["--capability=all", "--bind=/dev/fuse", "--bind=/dev/loop-control"]);
        nspawn.arg(format!("--bind-ro={}:/src", checkout().display()));
        nspawn.arg("--directory").arg(&self.dir).args(more);
        nspawn
    }

    /// Runs a script in the root, without its systemd.
    fn try_sh(&self, script: &str) -> Output {
        self.nspawn(&["--pipe", "sh", "-euxc", script]).output().unwrap()
    }

    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        assert!(output.status.success(), "{script}: {}\n{}", output.status, said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the machine, has a script run in it, switches it off; all of the journal of this start.
    #[track_caller]
    fn boot(&self, script: &str) -> String {
        fs::create_dir_all(self.path("var/log/journal")).unwrap();
        fs::write(self.path("root/script"), script).unwrap();
        let unit = |name: &str, text: &str| {
            let units = self.path("etc/systemd/system");
            fs::write(units.join(name), text).unwrap();
            let wants = units.join("multi-user.target.wants");
            fs::create_dir_all(&wants).unwrap();
            let link = wants.join(name);
            if !link.exists() {
                std::os::unix::fs::symlink(units.join(name), link).unwrap();
            }
        };
        // There is no udev in here.
        unit(
            "loops.service",
            "[Unit]\nDefaultDependencies=no\nBefore=sysinit.target remote-fs-pre.target\n[Service]\nType=oneshot\n\
             ExecStart=/bin/sh -c 'for n in $(seq 0 99); do mknod -m 660 /dev/loop$n b 7 $n; done'\n",
        );
        unit(
            "script.service",
            "[Unit]\nAfter=multi-user.target remote-fs.target\n[Service]\nType=oneshot\n\
             StandardOutput=file:/root/said\nStandardError=file:/root/said\n\
             ExecStart=/bin/sh -c 'if sh /root/script; then touch /root/passed; fi'\n\
             ExecStopPost=/bin/systemctl --no-block poweroff\n",
        );
        // What the start before said is not cut off by what this one says.
        for old in ["root/passed", "root/said"] {
            let _ = fs::remove_file(self.path(old));
        }
        let booted = self.nspawn(&["--boot", "--console=pipe"]).output().unwrap();
        let text = fs::read_to_string(self.path("root/said")).unwrap_or_default();
        let journal = must(
            "journalctl",
            ["-D", &self.path("var/log/journal").to_string_lossy(), "-b", "-o", "cat"],
        );
        assert!(
            self.path("root/passed").exists() && booted.status.success(),
            "{}\nthe script said:\n{text}\nthe journal:\n{journal}\nthe machine: {}",
            booted.status,
            said(&booted)
        );
        journal
    }

    /// All files that a package could have left. The checkout is left out: it is on the same file system, so
    /// `-xdev` alone would look into it, and into what cargo builds below it.
    fn files(&self) -> Vec<String> {
        let find = "find / -xdev \\( -path /src -o -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o \
                    -path /root -o -path /var/lib/dpkg -o -path /var/log -o -path /var/cache \\) -prune -o -print";
        let mut files: Vec<String> = self.sh(find).lines().map(str::to_owned).collect();
        files.sort();
        files
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        run("rm", ["-rf", "--one-file-system", &self.dir.to_string_lossy()]);
    }
}

#[test]
fn installed_in_a_clean_root_and_removed() {
    let root = Root::new("installed");
    let before = root.files();
    root.sh("dpkg --force-unsafe-io --install /root/backstay.deb; dpkg --verify backstay");
    let version = root.sh("backstay --version");
    assert_eq!(version.trim(), concat!("backstay ", env!("CARGO_PKG_VERSION")));
    // A page for each verb, and for each of theirs.
    root.sh("man -w backstay; man -w backstay-mount; man -w backstay-doctor; man -w backstay-group-cycle");
    root.sh("man -w 5 backstay.toml; man backstay | grep -q 'EXIT STATUS'; man backstay | grep -q 'SEE ALSO'");
    root.sh("man -w mount.backstay; man -w umount.backstay; man mount.backstay | grep -q fstab");
    root.sh("bash -n /usr/share/bash-completion/completions/backstay; test -s /usr/share/zsh/vendor-completions/_backstay");
    root.sh("test -s /usr/share/fish/vendor_completions.d/backstay.fish; sh -n /usr/lib/backstay/hooks/postgresql");
    root.sh("test \"$(stat -c %a /var/lib/backstay)\" = 700; test -s /usr/share/doc/backstay/docs/reference/operations.md");
    // mount(8) finds its helper; what is shipped as settings is understood.
    let refused = root.try_sh("mount -t backstay /srv/no.img /mnt");
    assert!(said(&refused).contains("name=NAME"), "{}", said(&refused));
    let doctor = root.sh("backstay --json doctor");
    let findings: serde_json::Value = serde_json::from_str(&doctor).unwrap();
    let verdict = |what: &str| {
        let all = findings.as_array().unwrap();
        all.iter().find(|f| f["what"] == what).unwrap_or_else(|| panic!("{what}: {doctor}"))["verdict"].clone()
    };
    for what in ["configuration", "version", "/dev/fuse", "service units", "mount helper"] {
        assert_eq!(verdict(what), "ok", "{what}: {doctor}");
    }
    // The host's loop devices are seen in the root, too, and with them those that a killed driver of another test left.
    assert_ne!(verdict("loop devices"), "failed", "{doctor}");
    // Nothing is enabled by itself; every unit makes sense to systemd, and is confined as far as it can be.
    root.sh("! find /etc/systemd/system -name '*backstay*' | grep .");
    let units = [
        "backstay-sidecar.service",
        "backstay-disk@db.service",
        "backstay-replica@db.service",
        "backstay-gateway.service",
    ];
    let verified = root.sh(&format!("systemd-analyze verify {} 2>&1", units.join(" ")));
    assert_eq!(verified, "", "{verified}");
    for (unit, most) in units.iter().zip(["35", "35", "35", "20"]) {
        let unit = unit.replace("@db", "@");
        root.sh(&format!(
            "systemd-analyze security --no-pager --offline=true --threshold={most} /usr/lib/systemd/system/{unit}"
        ));
    }
    root.sh("dpkg --remove backstay; test -e /etc/backstay/backstay.toml; dpkg --purge backstay");
    let after = root.files();
    let left: Vec<&String> =
        after.iter().filter(|file| before.binary_search(file).is_err()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");

    // The same host, from source: it works, and all but settings and state goes again.
    fs::copy(backstay(), root.path("root/program")).unwrap();
    root.sh("/src/scripts/install --program /root/program");
    let doctor = root.sh("backstay doctor; man -w backstay-mount; man -w umount.backstay");
    assert!(doctor.contains("/usr/local/lib/systemd/system"), "{doctor}");
    root.sh("test -L /sbin/mount.backstay; systemd-analyze verify backstay-disk@db.service 2>&1 | diff - /dev/null");
    root.sh("/src/scripts/install --uninstall");
    let after = root.files();
    let left: Vec<&String> =
        after.iter().filter(|file| before.binary_search(file).is_err()).collect();
    assert_eq!(left, ["/etc/backstay", "/etc/backstay/backstay.toml", "/var/lib/backstay"]);
}

#[test]
fn from_nothing_to_a_service_through_a_shutdown() {
    let root = Root::new("service");
    root.sh("dpkg --force-unsafe-io --install /root/backstay.deb");
    let journal = root.boot(include_str!("../src/package/first-boot.sh"));
    // When it was switched off the file system went first, then the driver, cleanly.
    let at = |what: &str| {
        journal.rfind(what).unwrap_or_else(|| panic!("the journal has no {what:?}:\n{journal}"))
    };
    let (unmounted, stopping) =
        (at("Unmounted mnt-db.mount"), at("Stopping backstay-disk@db.service"));
    assert!(unmounted < stopping, "{journal}");
    assert!(stopping < at("Stopped backstay-disk@db.service"), "{journal}");
    assert!(!journal.contains("backstay-disk@db.service: Failed"), "{journal}");
    assert!(!journal.contains("ordering cycle"), "{journal}");
    let journal = root.boot(include_str!("../src/package/second-boot.sh"));
    assert!(!journal.contains("ordering cycle"), "{journal}");
}

#[test]
fn installed_from_source_and_removed() {
    let to = target().join(format!("install-test-{}", std::process::id()));
    let install = |more: &[&str]| {
        let mut install = Command::new(script("install"));
        install.env("CARGO_TARGET_DIR", target()).arg("--destdir").arg(&to).args(more);
        let done = install.output().unwrap();
        assert!(done.status.success(), "{}", said(&done));
    };
    let program = backstay().to_string_lossy().into_owned();
    // Twice: the second one is an upgrade.
    for _ in 0..2 {
        install(&["--program", &program, "--prefix", "/opt/backstay"]);
        fs::write(to.join("etc/backstay/backstay.toml"), "interval = \"1h\"\n").unwrap();
    }
    let installed = to.join("opt/backstay/bin/backstay");
    assert_eq!(fs::metadata(&installed).unwrap().permissions().mode() & 0o777, 0o755);
    let helper = fs::read_link(to.join("usr/sbin/mount.backstay")).unwrap();
    assert_eq!(helper, Path::new("/opt/backstay/bin/backstay"));
    let unit = to.join("usr/local/lib/systemd/system/backstay-disk@.service");
    let unit = fs::read_to_string(unit).unwrap();
    assert!(
        unit.contains("ExecStart=/opt/backstay/bin/backstay mount") && !unit.contains("/usr/bin/")
    );
    install(&["--uninstall", "--prefix", "/opt/backstay"]);
    let left = must("find", [&*to.to_string_lossy(), "!", "-type", "d"]);
    let kept = to.join("etc/backstay/backstay.toml");
    assert_eq!(left.trim(), kept.to_string_lossy(), "settings are the host's");
    assert_eq!(fs::read_to_string(kept).unwrap(), "interval = \"1h\"\n");
    assert!(!to.join("opt").exists() && !to.join("usr").exists());
    fs::remove_dir_all(to).unwrap();
}
