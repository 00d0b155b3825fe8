//! What a failover does to this host, behind one seam: what decides and writes down is above it, and can be tested
//! without drivers; [`LocalHost`] is the real one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_engine::config::Config;
use backstay_engine::cycle::CycleReport;
use backstay_engine::jobs::JobHandle;
use backstay_engine::requests::{Asked, ask};
use backstay_engine::service::is_running;
use backstay_format::control::DriverStatus;
use backstay_front::paths::Roots;
use backstay_host::clock;
use backstay_types::{CycleNo, DiskName};
use serde::Serialize;

use super::rules::{self, NameState, Verb};
use super::{FailoverError, Result};
use crate::host::cycle::run_once;
use crate::host::devices::loop_devices;
use crate::host::replica::ReplicaOrder;
use crate::host::serve::{From, How};
use crate::host::{Doing, HostError, Listener, LocalHost, Serving, last};
use crate::run;

/// All that a failover does to a host.
pub trait Executor {
    /// Where state and sockets are.
    fn roots(&self) -> &Roots;
    /// The configuration.
    fn config(&self) -> &Config;
    /// Who hears how far it is.
    fn told(&self) -> &dyn Listener;
    /// The status of a disk's driver, if one answers.
    fn status(&self, name: &DiskName) -> Option<DriverStatus>;
    /// Refuses if anybody uses a served disk.
    ///
    /// # Errors
    /// A refusal with its users.
    fn refuse_if_used(&self, name: &DiskName, status: &DriverStatus) -> Result<(), HostError>;
    /// Has a disk served.
    ///
    /// # Errors
    /// Why it is not.
    fn serve(&self, name: &DiskName, from: From<'_>, how: &How<'_>) -> Result<(), HostError>;
    /// Has the replica of this host served as a disk.
    ///
    /// # Errors
    /// Why it is not.
    fn serve_replica(&self, name: &DiskName) -> Result<(), HostError>;
    /// Detaches devices and stops a driver, if it runs.
    ///
    /// # Errors
    /// A refusal with who uses it.
    fn stop(&self, name: &DiskName) -> Result<(), HostError>;
    /// Stops a driver after the cycle that runs; none can begin any more.
    ///
    /// # Errors
    /// A refusal with who uses it.
    fn stop_after_cycle(&self, name: &DiskName) -> Result<(), HostError>;
    /// How a disk is served to its users.
    ///
    /// # Errors
    /// If that cannot be seen.
    fn look(&self, name: &DiskName, status: &DriverStatus) -> Result<Serving, HostError>;
    /// Unmounts what is mounted from a disk.
    ///
    /// # Errors
    /// A refusal with who is at work there.
    fn unmount(&self, serving: &Serving) -> Result<(), HostError>;
    /// Serves a disk again as it was, with its devices and file systems.
    ///
    /// # Errors
    /// What is not as it was.
    fn put_back(&self, before: &Serving) -> Result<(), HostError>;
    /// The loop device over a served disk; a new one only if that is wished.
    ///
    /// # Errors
    /// If it cannot be attached.
    fn device(
        &self,
        name: &DiskName,
        served: &Path,
        attach: bool,
    ) -> Result<Option<String>, HostError>;
    /// Ships what a disk has: all that it holds, of one that nobody uses (`quiet`).
    ///
    /// # Errors
    /// If no recovery point was made.
    fn ship(
        &self,
        name: &DiskName,
        vault: &str,
        quiet: bool,
        job: &JobHandle,
    ) -> Result<(), HostError>;
    /// Whether a sidecar runs on this host.
    fn has_sidecar(&self) -> bool;
    /// Asks the sidecar of this host for something.
    ///
    /// # Errors
    /// If that cannot be left for it.
    fn ask(&self, what: &Asked) -> Result<(), HostError>;
    /// Makes a cycle here.
    ///
    /// # Errors
    /// If no recovery point was made.
    fn cycle(&self, name: &DiskName, vault: &str) -> Result<CycleReport, HostError>;
    /// Runs a command line of a person, which must succeed.
    ///
    /// # Errors
    /// How it ended.
    fn run(&self, line: &str, disks: &str, timeout: Duration) -> Result<(), HostError>;
    /// Brings a replica to the newest point, beginning it as told.
    ///
    /// # Errors
    /// Why it is not there.
    fn replica_once(&self, name: &DiskName, order: &ReplicaOrder<'_>) -> Result<()>;
    /// Waits before looking again what others did.
    fn wait(&self, interval: Duration);
    /// Called before every step that lasts; tests kill there.
    fn step(&self) {
        super::step();
    }
}

impl Executor for LocalHost<'_> {
    fn roots(&self) -> &Roots {
        self.roots
    }

    fn config(&self) -> &Config {
        self.config
    }

    fn told(&self) -> &dyn Listener {
        &*self.told
    }

    fn status(&self, name: &DiskName) -> Option<DriverStatus> {
        Self::status(self, name)
    }

    fn refuse_if_used(&self, name: &DiskName, status: &DriverStatus) -> Result<(), HostError> {
        Self::refuse_if_used(self, name, status)
    }

    fn serve(&self, name: &DiskName, from: From<'_>, how: &How<'_>) -> Result<(), HostError> {
        Self::serve(self, name, from, how).map(drop)
    }

    fn serve_replica(&self, name: &DiskName) -> Result<(), HostError> {
        self.take_over_replica(name).map(drop)
    }

    fn stop(&self, name: &DiskName) -> Result<(), HostError> {
        Self::stop(self, name)
    }

    fn stop_after_cycle(&self, name: &DiskName) -> Result<(), HostError> {
        Self::stop_after_cycle(self, name)
    }

    fn look(&self, name: &DiskName, status: &DriverStatus) -> Result<Serving, HostError> {
        Self::look(self, name, status)
    }

    fn unmount(&self, serving: &Serving) -> Result<(), HostError> {
        serving.unmount()
    }

    fn put_back(&self, before: &Serving) -> Result<(), HostError> {
        Self::put_back(self, before)
    }

    fn device(
        &self,
        name: &DiskName,
        served: &Path,
        attach: bool,
    ) -> Result<Option<String>, HostError> {
        match loop_devices(served)?.into_iter().next() {
            None if attach => Ok(Some(self.device_of(name, served, false)?.path)),
            device => Ok(device),
        }
    }

    fn ship(
        &self,
        name: &DiskName,
        vault: &str,
        quiet: bool,
        job: &JobHandle,
    ) -> Result<(), HostError> {
        last::ship(self, name, vault, quiet, job)
    }

    fn has_sidecar(&self) -> bool {
        is_running(self.roots)
    }

    fn ask(&self, what: &Asked) -> Result<(), HostError> {
        Ok(ask(&self.roots.state, what)?)
    }

    fn cycle(&self, name: &DiskName, vault: &str) -> Result<CycleReport, HostError> {
        run_once(self, name, Some(vault))
    }

    fn run(&self, line: &str, disks: &str, timeout: Duration) -> Result<(), HostError> {
        let mut command = run::shell(line);
        command.env("BACKSTAY_DISKS", disks);
        let (ended, said) = run::run(command, &mut run::scratch()?, timeout, &|| false)
            .doing(|| format!("running {line:?}"))?;
        match ended.is_success() {
            true => Ok(()),
            false => Err(HostError::Failed(format!("{line:?}: {}: {said}", ended.words(timeout)))),
        }
    }

    fn replica_once(&self, name: &DiskName, order: &ReplicaOrder<'_>) -> Result<()> {
        Self::replica_once(self, name, order)
    }

    fn wait(&self, interval: Duration) {
        clock::sleep(interval);
    }
}

/// Asks the rules before a verb changes anything.
pub(super) fn may(host: &dyn Executor, name: &DiskName, verb: Verb) -> Result<NameState> {
    rules::check(host.roots(), name, verb)
}

/// Where a disk is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServedDisk {
    /// Its name here.
    pub name: DiskName,
    /// The file.
    pub served: PathBuf,
    /// The loop device over it, if there is one.
    pub device: Option<String>,
    /// The point that it counts from.
    pub cycle: Option<CycleNo>,
}

/// Where a disk is served; attaches a device if that is wished and none is there.
///
/// # Errors
/// If it is not served, or a device cannot be attached.
pub fn place(host: &dyn Executor, name: &DiskName, attach: bool) -> Result<ServedDisk> {
    let status = host.status(name).doing(|| format!("disk {name} is not served"))?;
    let device = host.device(name, &status.served, attach).map_err(FailoverError::from)?;
    let cycle = status.base.map(|base| base.cycle);
    Ok(ServedDisk { name: name.clone(), served: status.served, device, cycle })
}
