//! How a source's disk is served to its users: taken from them for a handover, and put back if that fails.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use backstay_format::control::DriverStatus;
use backstay_host::child::program;
use backstay_host::loop_device;
use backstay_host::mounts::{self, Mount};
use backstay_types::DiskName;

use super::super::attach::loop_devices;
use super::super::detach::{mounted, users_of};
use super::{local, source};
use crate::context::Context;
use crate::exit::Refused;

/// How a disk was served.
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

struct Device {
    path: String,
    read_only: bool,
}

impl Serving {
    /// Looks at a disk that is served.
    pub fn look(context: &Context, name: &DiskName, status: &DriverStatus) -> anyhow::Result<Self> {
        let paths = loop_devices(&status.served)?;
        let mounts = mounted(&paths)?;
        let read_only = |path: &str| loop_device::is_read_only(Path::new(path));
        let devices = paths.into_iter();
        let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", status.pid));
        Ok(Self {
            name: name.clone(),
            backing: source::backing(context, name)?,
            served: status.served.clone(),
            engine: status.engine.clone(),
            unit: unit_of(&cgroup.unwrap_or_default()),
            devices: devices.map(|path| Device { read_only: read_only(&path), path }).collect(),
            mounts,
        })
    }

    /// Unmounts what is mounted from the disk's devices, the newest first.
    pub fn unmount(&self) -> anyhow::Result<()> {
        let devices: Vec<String> = self.devices.iter().map(|device| device.path.clone()).collect();
        for entry in mounted(&devices)?.into_iter().rev() {
            let done = program("umount").arg(&entry.at).output();
            let done = done.context("umount could not be started (package mount)")?;
            if done.status.success() {
                continue;
            }
            let by = users_of(&entry)
                .unwrap_or_else(|| String::from_utf8_lossy(&done.stderr).trim().to_owned());
            let (name, at) = (&self.name, entry.at.display());
            return Err(
                Refused(format!("disk {name} is in use: {at} cannot be unmounted: {by}")).into()
            );
        }
        Ok(())
    }

    /// Serves the disk again where it was, with its devices and file systems. What is as it was is left alone.
    pub fn put_back(&self, context: &Context) -> anyhow::Result<()> {
        if local::driver(context, &self.name).is_none() {
            self.serve(context)?;
        }
        for device in &self.devices {
            let path = Path::new(&device.path);
            if loop_device::file_of(path).is_none() {
                let status = local::driver(context, &self.name);
                let sector_bytes = status.and_then(|status| status.sector_bytes);
                loop_device::attach(&self.served, Some(path), device.read_only, sector_bytes)
                    .map_err(|e| anyhow!("losetup {}: {e}", device.path))?;
            }
        }
        let table = mounts::read().context("reading the table of mounts")?;
        for entry in &self.mounts {
            if mounts::at(&table, &entry.at).is_some_and(|now| now.source == entry.source) {
                continue;
            }
            let mut mount = program("mount");
            mount.args(["-t", &entry.kind, "-o", &entry.options]);
            said(mount.arg(&entry.source).arg(&entry.at), "mount")?;
        }
        Ok(())
    }

    fn serve(&self, context: &Context) -> anyhow::Result<()> {
        if let Some(unit) = &self.unit {
            return said(program("systemctl").args(["start", unit]), "systemctl");
        }
        let at = self.served.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        let (at, engine) = (at.display().to_string(), engine_flag(&self.engine));
        let backing = self.backing.as_ref().map(|backing| backing.display().to_string());
        let mut args = vec!["--quiet", "mount", "--name", self.name.as_str(), "--mount-point", &at];
        args.extend(["--engine", engine]);
        args.extend(backing.as_deref());
        local::again(context, &args).map(drop)
    }
}

/// A driver says its engine with what is special about it; what is not known again is chosen anew.
fn engine_flag(engine: &str) -> &str {
    match engine.split([' ', ',', '(']).next() {
        Some("buffered") => "buffered",
        Some("direct") => "direct",
        _ => "auto",
    }
}

fn said(command: &mut std::process::Command, what: &str) -> anyhow::Result<()> {
    let done = command.output().with_context(|| format!("{what} could not be started"))?;
    if !done.status.success() {
        bail!("{what}: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
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
