//! A drill from its beginning to its end: mount, try, write the verdict down, leave nothing behind.
//!
//! The point is mounted below `.drills` in the host's folders, where neither the sidecar nor people's
//! commands look for disks. What a killed drill left there is taken down by the next one of that disk.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_format::control::Request;
use backstay_front::control::ControlClient;
use backstay_front::life::lock_disk;
use backstay_front::paths::Roots;
use backstay_host::clock::{self, now_unix_ns};
use backstay_host::own_dir::own_dir;
use backstay_host::{lock, loop_device, mounts};
use backstay_types::{ByteLen, Classified, DiskName};
use backstay_vault::format::drill::shortened;
use backstay_vault::retain::Held;
use backstay_vault::{DrillRecord, VaultError, Vaults};
use nix::fcntl::Flock;

use super::{Check, DrillError, try_disk};
use crate::mount::{self, MountError, MountOptions, PointChoice};
use crate::run::tool;

/// Blocks that a drill keeps of what it fetched.
const CACHE: ByteLen = ByteLen(256 << 20);
/// How long taking down may take, each step of it.
const DOWN_MAX: Duration = Duration::from_secs(60);
/// How often, a tenth of a second each, a mount that is starting is waited for.
const STARTING_TRIES: u32 = 300;

/// A drill.
pub struct Drill<'a> {
    /// The `backstay` command.
    pub program: &'a Path,
    /// Its configuration, if one was named.
    pub config: Option<&'a Path>,
    /// The host's folders.
    pub roots: &'a Roots,
    /// What vaults are opened with.
    pub vaults: &'a Vaults,
    /// The vault.
    pub vault: &'a str,
    /// The disk, as the vault names it.
    pub name: &'a DiskName,
    /// Which point.
    pub point: PointChoice,
    /// How it is tried.
    pub check: &'a Check,
    /// How long the check may take.
    pub timeout: Duration,
    /// Whether to stop.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// Told what is being done.
    pub say: &'a (dyn Fn(&str) + Sync),
}

/// Where what is known of drills of a disk is that has no state on this host.
#[must_use]
pub fn records(roots: &Roots, name: &DiskName) -> PathBuf {
    let of_disk = roots.disk(name).state;
    match of_disk.is_dir() {
        true => of_disk,
        false => folder(&roots.state).join(format!("{name}.record")),
    }
}

fn folder(root: &Path) -> PathBuf {
    root.join(".drills")
}

/// Tries a point and puts the verdict beside it in the vault. Whatever happens, nothing of it stays on
/// this host.
///
/// # Errors
/// If the point could not be tried or the verdict not be put; nothing is said of the point then.
pub fn drill(job: &Drill<'_>) -> Result<DrillRecord, DrillError> {
    let place = DrillPlace::take(job)?;
    place.take_down()?;
    let began_unix_ns = now_unix_ns();
    let vault = job.vaults.open(job.vault)?;
    let disk = vault.disk_named(job.name)?;
    let point = mount::choose(&vault, disk.disk, job.point)?;
    (job.say)("mounting");
    let options = MountOptions {
        vault: Some(job.vault.into()),
        disk: Some(job.name.clone()),
        point: Some(PointChoice::Cycle(point.cycle)),
        cache: Some(CACHE),
        ..MountOptions::default()
    };
    let tried = mount::spawn(job.program, job.config, &place.roots, job.name, &options)
        .map_err(DrillError::from)
        .and_then(|served| {
            let environment: [(&str, OsString); 4] = [
                ("BACKSTAY_NAME", job.name.to_string().into()),
                ("BACKSTAY_VAULT", job.vault.into()),
                ("BACKSTAY_POINT", point.cycle.to_string().into()),
                ("BACKSTAY_CUT_UNIX_NS", point.cut_unix_ns.to_string().into()),
            ];
            (job.say)("checking");
            try_disk(&served, job.check, &place.work, &environment, job.timeout, job.stop)
        });
    // The verdict first: taking down may fail, and it is true all the same.
    let put = tried.and_then(|verdict| {
        // A disk that the vault did not give could not be read; that is not the point's fault.
        let held = Held::reading(&vault, disk.disk, point.cycle..=point.cycle, "a drill's verdict");
        drop(held.map_err(DrillError::Vault)?);
        let record = DrillRecord {
            drill: uuid::Uuid::new_v4(),
            disk: disk.disk,
            cycle: point.cycle,
            point: point.point,
            check: job.check.kind(),
            passed: verdict.passed,
            message: shortened(&verdict.message),
            by: shortened(&backstay_vault::retain::holder()),
            began_unix_ns,
            ended_unix_ns: now_unix_ns(),
        };
        match vault.put_drill(&record) {
            // Who has only a copy of the vault may try its points, too.
            Err(e @ VaultError::Denied { .. }) => tracing::warn!("the verdict is not kept: {e}"),
            put => put?,
        }
        Ok(record)
    });
    (job.say)("taking down");
    let down = place.take_down();
    match (put, down) {
        (Ok(record), Ok(())) => Ok(record),
        (Ok(record), Err(e)) => {
            tracing::warn!("drill of disk {}: {e}; the next drill tries again", job.name);
            Ok(record)
        }
        (Err(e), _) => Err(e),
    }
}

/// Where a disk is drilled: one drill at a time.
struct DrillPlace<'a> {
    vaults: &'a Vaults,
    roots: Roots,
    name: &'a DiskName,
    work: PathBuf,
    _lock: Flock<fs::File>,
}

impl<'a> DrillPlace<'a> {
    fn take(&Drill { vaults, roots, name, .. }: &Drill<'a>) -> Result<Self, DrillError> {
        let (state, runtime) = (folder(&roots.state), folder(&roots.runtime));
        for dir in [&state, &runtime] {
            own_dir(dir).map_err(|e| DrillError::Io(e.into()))?;
        }
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(state.join(format!("{name}.lock"))).map_err(DrillError::Io)?;
        let lock = lock::exclusive(lock, lock::LOOKED_AT_WAIT).map_err(DrillError::Io)?;
        let lock = lock.ok_or_else(|| DrillError::Busy(name.clone()))?;
        let work = runtime.join(format!("{name}.work"));
        Ok(Self { vaults, roots: Roots { state, runtime }, name, work, _lock: lock })
    }

    /// Takes down what is there of a drill: file systems, loop devices, the mounted point, its files.
    fn take_down(&self) -> Result<(), DrillError> {
        let paths = self.roots.disk(self.name);
        let io = DrillError::Io;
        let never = || false;
        for at in mounts_below(&self.work).map_err(io)? {
            tool("umount", &[&at.to_string_lossy()], DOWN_MAX, &never).map_err(io)?;
        }
        for device in loop_device::below(&paths.runtime).map_err(io)? {
            loop_device::detach(&device).map_err(io)?;
        }
        for _ in 0..STARTING_TRIES {
            if let Ok(mut driver) = ControlClient::connect(&paths.control_socket()) {
                match driver.ask(&Request::Stop) {
                    // The kernel is about to let go of a device's file.
                    Err(e) if e.is_refusal() => {}
                    asked => {
                        asked.map_err(|e| DrillError::Io(io::Error::other(e.to_string())))?;
                        driver.wait_until_gone();
                    }
                }
            }
            // A mount that a killed drill began may just be starting.
            if !paths.lock_file().exists() || lock_disk(self.name, &paths.lock_file()).is_ok() {
                break;
            }
            clock::sleep(Duration::from_millis(100));
        }
        // A driver that was killed leaves its mount.
        for at in mounts_below(&paths.runtime).map_err(io)? {
            tool("umount", &["-l", &at.to_string_lossy()], DOWN_MAX, &never).map_err(io)?;
        }
        if paths.state.exists() {
            match mount::forget(self.vaults, self.name, &paths) {
                // It was killed before there was a mounted point.
                Err(MountError::Refused { .. }) => {
                    fs::remove_dir_all(&paths.state).map_err(io)?;
                }
                done => done?,
            }
        }
        for left in [&paths.runtime, &self.work] {
            match fs::remove_dir_all(left) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_of(left, &e)),
                _ => {}
            }
        }
        own_dir(&self.work).map_err(|e| io(e.into()))
    }
}

impl Drop for DrillPlace<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.work);
    }
}

fn io_of(path: &Path, e: &io::Error) -> DrillError {
    DrillError::Io(io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

/// What is mounted below a folder, the last first.
fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let all = mounts::read()?.into_iter().rev().map(|mount| mount.at);
    Ok(all.filter(|at| at.starts_with(dir)).collect())
}
