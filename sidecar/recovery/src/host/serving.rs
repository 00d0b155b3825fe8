//! How a disk is served to its users: taken from them for a handover, and put back if that fails.

use std::path::{Path, PathBuf};

use backstay_format::control::DriverStatus;
use backstay_host::child::program;
use backstay_host::loop_device;
use backstay_host::mounts::{self, Mount};
use backstay_types::DiskName;

use super::devices::{loop_devices, mounted, unmount_one, users_of};
use super::error::Doing;
use super::serve::{From, How};
use super::{HostError, LocalHost, backing};

/// How a disk was served.
#[derive(Debug, Clone)]
pub struct Serving {
    name: DiskName,
    /// None of a mounted point: it knows its own.
    backing: Option<PathBuf>,
    served: PathBuf,
    engine: String,
    /// The service that its driver is the process of.
    unit: Option<String>,
    devices: Vec<Device>,
    mounts: Vec<Mount>,
}

#[derive(Debug, Clone)]
struct Device {
    path: String,
    read_only: bool,
}

impl LocalHost<'_> {
    /// Looks at a disk that is served.
    ///
    /// # Errors
    /// If its devices and mounts cannot be seen.
    pub fn look(&self, name: &DiskName, status: &DriverStatus) -> Result<Serving, HostError> {
        let paths = loop_devices(&status.served)?;
        let mounts = mounted(&paths)?;
        let read_only = |path: &str| loop_device::is_read_only(Path::new(path));
        let devices = paths.into_iter();
        let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", status.pid));
        Ok(Serving {
            name: name.clone(),
            backing: backing(self.roots, name)?,
            served: status.served.clone(),
            engine: status.engine.clone(),
            unit: unit_of(&cgroup.unwrap_or_default()),
            devices: devices.map(|path| Device { read_only: read_only(&path), path }).collect(),
            mounts,
        })
    }

    /// Serves the disk again where it was, with its devices and file systems. What is as it was is left alone.
    ///
    /// # Errors
    /// What is not as it was.
    pub fn put_back(&self, before: &Serving) -> Result<(), HostError> {
        if self.status(&before.name).is_none() {
            self.serve_as_before(before)?;
        }
        for device in &before.devices {
            let path = Path::new(&device.path);
            if loop_device::file_of(path).is_none() {
                let status = self.status(&before.name);
                let sector_bytes = status.and_then(|status| status.sector_bytes);
                loop_device::attach(&before.served, Some(path), device.read_only, sector_bytes)
                    .doing(|| format!("losetup {}", device.path))?;
            }
        }
        let table = mounts::read().doing(|| "reading the table of mounts".into())?;
        for entry in &before.mounts {
            if mounts::at(&table, &entry.at).is_some_and(|now| now.source == entry.source) {
                continue;
            }
            let mut mount = program("mount");
            mount.args(["-t", &entry.kind, "-o", &entry.options]);
            said(mount.arg(&entry.source).arg(&entry.at), "mount")?;
        }
        Ok(())
    }

    fn serve_as_before(&self, before: &Serving) -> Result<(), HostError> {
        if let Some(unit) = &before.unit {
            return said(program("systemctl").args(["start", unit]), "systemctl");
        }
        let how = How {
            mount_point: before.served.parent(),
            engine: Some(engine_flag(&before.engine)),
            handing_over: false,
        };
        self.serve(&before.name, From::Backing(before.backing.as_deref()), &how).map(drop)
    }
}

impl Serving {
    /// Unmounts what is mounted from the disk's devices, the newest first.
    ///
    /// # Errors
    /// A refusal with who is at work there.
    pub fn unmount(&self) -> Result<(), HostError> {
        let devices: Vec<String> = self.devices.iter().map(|device| device.path.clone()).collect();
        for entry in mounted(&devices)?.into_iter().rev() {
            let Err(why) = unmount_one(&entry)? else { continue };
            let (name, at, by) = (&self.name, entry.at.display(), users_of(&entry).unwrap_or(why));
            let message = format!("disk {name} is in use: {at} cannot be unmounted: {by}");
            return Err(HostError::Refused(message));
        }
        Ok(())
    }
}

fn said(command: &mut std::process::Command, what: &str) -> Result<(), HostError> {
    let done = command.output().doing(|| format!("{what} could not be started"))?;
    if !done.status.success() {
        let why = String::from_utf8_lossy(&done.stderr);
        return Err(HostError::Failed(format!("{what}: {}", why.trim())));
    }
    Ok(())
}

/// A driver says its engine with what is special about it; what is not known again is chosen again.
fn engine_flag(engine: &str) -> &str {
    match engine.split([' ', ',', '(']).next() {
        Some("buffered") => "buffered",
        Some("direct") => "direct",
        _ => "auto",
    }
}

/// The unit of `backstay-disk@.service` that a process belongs to, from `/proc/PID/cgroup`.
fn unit_of(cgroup: &str) -> Option<String> {
    let units = cgroup.lines().filter_map(|line| line.rsplit('/').next());
    let mut units =
        units.filter(|unit| unit.starts_with("backstay-disk@") && unit.ends_with(".service"));
    units.next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_of_systemd_is_known_by_its_group() {
        let line = "0::/system.slice/system-backstay\\x2ddisk.slice/backstay-disk@db.service\n";
        assert_eq!(unit_of(line).as_deref(), Some("backstay-disk@db.service"));
        assert_eq!(unit_of("0::/user.slice/user-0.slice/session-1.scope\n"), None);
        assert_eq!(unit_of("0::/system.slice/backstay-sidecar.service\n"), None);
    }

    #[test]
    fn an_engine_is_chosen_as_it_was() {
        for (says, flag) in
            [("direct (io_uring)", "direct"), ("buffered", "buffered"), ("", "auto")]
        {
            assert_eq!(engine_flag(says), flag);
        }
    }
}
