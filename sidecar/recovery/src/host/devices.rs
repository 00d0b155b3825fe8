//! Loop devices and file systems on a served disk.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use backstay_format::control::DriverStatus;
use backstay_host::child::program;
use backstay_host::in_use::{self, Look, Subject};
use backstay_host::mounts::{self, Mount};
use backstay_host::{clock, lock, loop_device};
use backstay_types::DiskName;

use super::ending::{self, Devices, Ending};
use super::error::Doing;
use super::{HostError, LocalHost};

/// How long one that attaches waits for another that does the same.
const ATTACHED_WITHIN: Duration = Duration::from_secs(30);
/// How long to wait before looking again whether a file system is still used: nothing tells.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long the kernel may take to detach a device that nobody uses.
const DETACHED_WITHIN: Duration = Duration::from_secs(5);

/// A loop device over a served disk.
pub struct Device {
    /// The device.
    pub path: String,
    /// Whether it was attached just now.
    pub is_new: bool,
}

/// The loop devices attached to a served disk.
///
/// # Errors
/// If they cannot be listed.
pub fn loop_devices(served: &Path) -> Result<Vec<String>, HostError> {
    loop_device::on_served(served).doing(|| "looking for loop devices".into())
}

impl LocalHost<'_> {
    /// The loop device over a served disk: the one it has, or a new one. Never a second: two devices are two page
    /// caches that know nothing of each other, and a file system mounted on both is destroyed.
    ///
    /// # Errors
    /// If there is one that refuses writes, and they are wanted; or it cannot be attached.
    pub fn device_of(
        &self,
        name: &DiskName,
        served: &Path,
        read_only: bool,
    ) -> Result<Device, HostError> {
        let path = self.roots.disk(name).runtime.join("attach.lock");
        let mut options = File::options();
        let opened = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = opened.and_then(|file| lock::exclusive(file, ATTACHED_WITHIN));
        let _lock = lock
            .doing(|| path.display().to_string())?
            .doing(|| format!("disk {name}: another command is attaching it; try again"))?;
        if let Some(device) = loop_devices(served)?.into_iter().next() {
            if loop_device::is_read_only(Path::new(&device)) && !read_only {
                return Err(HostError::Refused(format!(
                    "disk {name} is attached to {device} already, read-only; detach it first (losetup -d \
                     {device}). Nothing was changed"
                )));
            }
            return Ok(Device { path: device, is_new: false });
        }
        let sector_bytes = self.driver(name)?.status()?.sector_bytes;
        let path = loop_device::attach(served, None, read_only, sector_bytes).map_err(|e| {
            HostError::Failed(format!("losetup {}: {e}; the disk stays mounted", served.display()))
        })?;
        Ok(Device { path, is_new: true })
    }

    /// Refuses if anybody uses a served disk or a loop device on it, in any mount namespace.
    ///
    /// # Errors
    /// A refusal with its users.
    pub fn refuse_if_used(&self, name: &DiskName, status: &DriverStatus) -> Result<(), HostError> {
        let users = ending::users(status, Devices::Spare)?;
        if users.is_empty() {
            return Ok(());
        }
        Err(HostError::Refused(format!(
            "disk {name} is in use: {}. Stop that first; nothing was changed",
            in_use::list(&users)
        )))
    }
}

/// Unmounts all that is mounted from these devices, the newest first, and waits while it is used.
///
/// # Errors
/// A refusal with who is at work there.
pub fn unmount(name: &DiskName, devices: &[String], how: Ending) -> Result<(), HostError> {
    let until = clock::monotonic() + how.wait;
    let mut said = false;
    while let Some(entry) = mounted(devices)?.pop() {
        let Err(why) = unmount_one(&entry)? else { continue };
        let by = users_of(&entry);
        let at = entry.at.display();
        if clock::monotonic() > until {
            return Err(HostError::Refused(format!(
                "disk {name} is in use: {at} cannot be unmounted: {}. Nothing else was changed",
                by.unwrap_or(why)
            )));
        }
        if !std::mem::replace(&mut said, true) {
            let by = by.map_or_else(String::new, |by| format!(": {by}"));
            tracing::warn!("disk {name}: waiting until {at} can be unmounted{by}");
        }
        clock::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// Unmounts a file system; what umount said, if it did not.
pub(super) fn unmount_one(entry: &Mount) -> Result<Result<(), String>, HostError> {
    let done = program("umount").arg(&entry.at).output();
    let done = done.doing(|| "umount could not be started (package mount)".into())?;
    Ok(match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
    })
}

/// Who is at work in a mounted file system, in words.
#[must_use]
pub fn users_of(entry: &Mount) -> Option<String> {
    let users = in_use::inside(entry.device).unwrap_or_default();
    (!users.is_empty()).then(|| in_use::list(&users))
}

/// Detaches a device that nobody used a moment ago. If somebody has come meanwhile, it stays attached: the
/// kernel would otherwise detach it later, when that one closes it.
///
/// # Errors
/// A refusal with its users.
pub fn detach_free(name: &DiskName, device: &str) -> Result<(), HostError> {
    let path = Path::new(device);
    loop_device::detach(path)?;
    let until: Instant = clock::monotonic() + DETACHED_WITHIN;
    while loop_device::file_of(path).is_some() {
        if clock::monotonic() > until {
            let look = Look { readers: true, ..Look::default() };
            let users = Subject::at(path).and_then(|of| in_use::users(&of, &look));
            loop_device::keep_attached(path)
                .doing(|| format!("disk {name}: keeping {device} attached"))?;
            return Err(ending::refused(name, &users.unwrap_or_default()));
        }
        clock::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// What is mounted from these devices or their partitions, the newest last.
///
/// # Errors
/// If the table of mounts cannot be read.
pub fn mounted(devices: &[String]) -> Result<Vec<Mount>, HostError> {
    let is_of = |source: &Path, device: &str| {
        let rest = source.to_str().and_then(|source| source.strip_prefix(device));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('p'))
    };
    let mut table = mounts::read().doing(|| "reading the table of mounts".into())?;
    table.retain(|entry| devices.iter().any(|device| is_of(&entry.source, device)));
    Ok(table)
}
