//! What one disk needs.

use std::fs;
use std::time::{Duration, UNIX_EPOCH};

use backstay_format::control::DriverStatus;
use backstay_front::backing::record::BackingRecord;
use backstay_front::control::{ControlClient, Silence};
use backstay_front::paths::Roots;
use backstay_host::loop_device::LoopDevice;
use backstay_host::stack::Ground;
use backstay_types::{ByteLen, DiskName};

use super::system::System;
use super::{Finding, beside};
use crate::Config;
use crate::prerequisites::Checked::{self, Bad, Good, Odd};
use crate::prerequisites::{backing_size, looked, room_for_bitmaps, room_for_log, usable};

/// Looks at a disk.
#[must_use]
pub fn disk(roots: &Roots, config: &Config, name: &DiskName) -> Vec<Finding> {
    let paths = roots.disk(name);
    let status = ControlClient::connect(&paths.control_socket()).and_then(|mut c| c.status()).ok();
    let remembered = BackingRecord::load(&paths.state).map(|record| record.backing);
    let unreadable = remembered.as_ref().err().map(ToString::to_string);
    let record = remembered.ok().flatten().map(|seen| seen.path);
    let known = paths.state.join("super").exists();
    let bytes = match (&status, &record) {
        (Some(status), _) => status.size.0,
        (None, Some(path)) => backing_size(path).unwrap_or_default(),
        (None, None) => 0,
    };
    let mut found = vec![("driver", driver(name, status.as_ref(), Silence::of(&paths), known))];
    if let Some(e) = unreadable {
        found.push(("backing", Bad(format!("the backing's path cannot be read: {e}"))));
    }
    // The backing of a driver that does not answer may not answer either.
    if let (None, Some(path)) = (&status, &record)
        && Silence::of(&paths).is_none()
    {
        found.push(looked("backing", usable(path)));
    }
    if let Some(status) = &status {
        found.push(("backing", backing(status)));
        found.push(("program", program(status)));
    }
    if let Some(path) = status.as_ref().map(|s| &s.backing).or(record.as_ref()) {
        found.extend(beside::look(path).into_iter().map(|found| ("other ways to it", found)));
    }
    if status.is_some() || record.is_some() {
        let limit = match (&status, config.change_log_limit_of(name)) {
            (_, Some(limit)) => limit,
            (Some(status), None) => status.change_log_limit,
            (None, None) => ByteLen(bytes / 2),
        };
        found.push(looked("change log", room_for_log(&roots.state, limit)));
        found.push(looked("memory for bitmaps", room_for_bitmaps(&roots.runtime, bytes)));
        found.extend(starts(name).map(|found| ("start", found)));
    }
    let of_disk = |found| Finding::new(name.as_str(), found);
    found.into_iter().map(of_disk).collect()
}

fn driver(
    name: &DiskName,
    status: Option<&DriverStatus>,
    silence: Option<Silence>,
    known: bool,
) -> Checked {
    match status {
        Some(status) => Good(format!(
            "process {} serves {} as {}",
            status.pid,
            status.backing.display(),
            status.served.display()
        )),
        None if silence.is_some() => {
            let since = |s: &Silence| UNIX_EPOCH + Duration::from_nanos(s.since_unix_ns);
            Bad(silence.map_or_else(String::new, |s| {
                format!(
                    "{s}, since {}; {}",
                    humantime::format_rfc3339_seconds(since(&s)),
                    s.advice()
                )
            }))
        }
        None if known => Odd(format!(
            "it is not served; systemctl start backstay-disk@{name}, or backstay mount --name {name}"
        )),
        None => Bad(format!("there is no disk {name} on this host; see backstay status")),
    }
}

/// Whether the backing is still what the driver serves, and nobody else writes to it.
fn backing(status: &DriverStatus) -> Checked {
    let path = status.backing.display();
    if let Some(fault) = &status.backing_fault {
        let text = format!("{}; {}", fault.message, fault.advice(&status.name));
        return if fault.kind.spoils_points() { Bad(text) } else { Odd(text) };
    }
    let ground = match fs::metadata(&status.backing) {
        Ok(meta) => Ground::of_metadata(&meta),
        Err(e) => return Bad(format!("{path}: {e}")),
    };
    // The file that is served is the backing of a mounted point: that is to be attached.
    let beside = match LoopDevice::all() {
        _ if status.backing == status.served => None,
        Ok(devices) => devices.into_iter().find(|device| device.ground == ground),
        Err(e) => return Odd(format!("which loop devices there are cannot be seen: {e}")),
    };
    match beside {
        Some(device) => Bad(format!(
            "{path} is attached to {0}, too: what is written there is in no recovery point, and destroys \
             the disk. Unmount and detach it (losetup -d {0}), then compare the disk: backstay resync {1} \
             --now",
            device.device.display(),
            status.name
        )),
        None => Good(format!("{path} is what the driver serves")),
    }
}

/// Whether the driver runs the program that is installed.
fn program(status: &DriverStatus) -> Checked {
    match fs::read_link(format!("/proc/{}/exe", status.pid)) {
        Ok(path) if path.to_string_lossy().ends_with(" (deleted)") => Odd(
            "its driver runs a program that was replaced since; it takes the new one when the disk is \
             served next: stop its users, then detach and mount it"
                .into(),
        ),
        Ok(path) => Good(path.display().to_string()),
        Err(e) => Odd(format!("which program its driver runs cannot be seen: {e}")),
    }
}

/// Whether it is served again after the machine has started.
fn starts(name: &DiskName) -> Option<Checked> {
    let system = System::default();
    if !system.has_systemd() {
        return None;
    }
    Some(match system.starts(name.as_str()) {
        true => Good("it is served when the machine starts".into()),
        false => Odd(format!(
            "nothing serves it when the machine starts: systemctl enable backstay-disk@{name}"
        )),
    })
}
