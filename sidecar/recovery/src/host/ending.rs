//! Ending a disk's service: only when nobody uses it, after a bounded wait; or, if a person insists, under
//! its users.

use std::time::Duration;

use backstay_format::control::{BackingFault, BackingFaultKind, DriverStatus, Request};
use backstay_front::control::ControlClient;
use backstay_front::life::hung;
use backstay_front::paths::DiskPaths;
use backstay_host::clock;
use backstay_host::doing::Doing as ProcessDoing;
use backstay_host::in_use::{self, Look, Subject, User, UserKind};
use backstay_types::{Classified, DiskName};

use super::devices::{detach_free, loop_devices};
use super::error::Doing;
use super::{HostError, LocalHost};

/// How long commands wait by themselves for users to go: somebody closes a disk while we look, udev looks at
/// a device, the kernel lets go of a loop device's file.
const WAIT_DEFAULT: Duration = Duration::from_secs(10);
/// How long a driver may take to save what it knows.
const SAVED_WITHIN: Duration = Duration::from_secs(60);
/// How often to look who uses a disk: nothing tells.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How a disk's service is ended.
#[derive(Debug, Clone, Copy)]
pub struct Ending {
    /// How long to wait for users.
    pub wait: Duration,
}

impl Default for Ending {
    fn default() -> Self {
        Self { wait: WAIT_DEFAULT }
    }
}

/// Whether an attached loop device counts as a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// It does.
    Count,
    /// It is detached next, if nobody uses it.
    Spare,
}

/// Everybody who uses a served disk or a device on it, in whatever mount namespace.
///
/// # Errors
/// If that cannot be seen.
pub fn users(status: &DriverStatus, devices: Devices) -> Result<Vec<User>, HostError> {
    let look = Look { readers: true, spare: vec![status.pid] };
    let found = Subject::at(&status.served).and_then(|subject| in_use::users(&subject, &look));
    let mut found = found.doing(|| format!("disk {}: checking who uses it", status.name))?;
    if devices == Devices::Spare {
        found.retain(|user| !matches!(user.kind, UserKind::Loop { .. }));
    }
    Ok(found)
}

/// The refusal to end a disk that is in use.
#[must_use]
pub fn refused(name: &DiskName, users: &[User]) -> HostError {
    HostError::Refused(format!(
        "disk {name} is in use: {}. Nothing was changed. Stop that first; --force ends the disk under its \
         users, who get I/O errors and lose what they have not synced",
        match users {
            [] => "its driver says that it is open, and this process cannot see who has it".into(),
            users => in_use::list(users),
        }
    ))
}

/// Says, once for each new list, who is waited for.
struct Waiting<'a> {
    name: &'a DiskName,
    until: std::time::Instant,
    said: Vec<User>,
}

impl<'a> Waiting<'a> {
    fn new(name: &'a DiskName, wait: Duration) -> Self {
        Self { name, until: clock::monotonic() + wait, said: vec![] }
    }

    /// Waits a little; an error once the time is over.
    fn for_users(&mut self, users: Vec<User>) -> Result<(), HostError> {
        let left = self.until.saturating_duration_since(clock::monotonic());
        if left.is_zero() {
            return Err(refused(self.name, &users));
        }
        let lasting = |user: &User| user.command.as_deref() != Some("(udev-worker)");
        if !users.is_empty() && users != self.said && users.iter().any(lasting) {
            tracing::warn!(
                "disk {}: waiting up to {} s until nobody uses it: {}",
                self.name,
                left.as_secs() + 1,
                in_use::list(&users)
            );
            self.said = users;
        }
        clock::sleep(LOOK_EVERY.min(left));
        Ok(())
    }
}

/// Waits until nobody uses a disk.
///
/// # Errors
/// A refusal with everybody who uses it, once the time is over.
pub fn wait_until_free(
    status: &DriverStatus,
    devices: Devices,
    how: Ending,
) -> Result<(), HostError> {
    let mut waiting = Waiting::new(&status.name, how.wait);
    loop {
        let users = users(status, devices)?;
        if users.is_empty() {
            return Ok(());
        }
        waiting.for_users(users)?;
    }
}

/// Refuses to end a driver that has the last way to the disk's bytes: its backing was deleted.
fn refuse_if_lost(status: &DriverStatus) -> Result<(), HostError> {
    let deleted = |fault: &&BackingFault| fault.kind == BackingFaultKind::Deleted;
    let Some(fault) = status.backing_fault.as_ref().filter(deleted) else { return Ok(()) };
    Err(HostError::Refused(format!(
        "disk {0}: {1}. To do: {2}. --force ends it, and what it holds is lost. Nothing was changed",
        status.name,
        fault.message,
        fault.advice(&status.name)
    )))
}

/// Stops a driver when nobody has its disk open, and waits until it is gone. What is refused is not done
/// later.
///
/// # Errors
/// A refusal with its users, or because its backing was deleted; or the driver does not end.
pub fn stop(name: &DiskName, mut driver: ControlClient, how: Ending) -> Result<(), HostError> {
    let status = driver.status().doing(|| format!("disk {name}"))?;
    refuse_if_lost(&status)?;
    let mut waiting = Waiting::new(name, how.wait);
    loop {
        let users = users(&status, Devices::Count)?;
        if users.is_empty() {
            match driver.ask(&Request::Stop) {
                Err(e) if e.is_refusal() => {}
                done => {
                    done.doing(|| format!("disk {name}"))?;
                    return gone(&status, driver);
                }
            }
        }
        waiting.for_users(users)?;
    }
}

impl LocalHost<'_> {
    /// Connects to the driver of a disk that is to be ended; one that somebody has stopped cannot answer.
    ///
    /// # Errors
    /// If there is none that answers.
    pub fn driver_to_end(&self, name: &DiskName) -> Result<ControlClient, HostError> {
        if let Some(seen) = hung::look(&self.roots.disk(name))
            && seen.doing == ProcessDoing::Stopped
        {
            return Err(HostError::Failed(format!(
                "disk {name}: its driver, process {0}, does not answer: {1}. Let it go on with \"kill -CONT {0}\"; \
                 --force ends the disk without it. Nothing was changed",
                seen.pid, seen.doing
            )));
        }
        self.driver(name)
    }

    /// Detaches devices and stops a driver, if it runs. Nobody uses the disk.
    ///
    /// # Errors
    /// A refusal with its users; or the driver does not end.
    pub fn stop(&self, name: &DiskName) -> Result<(), HostError> {
        let Some(status) = self.status(name) else { return Ok(()) };
        wait_until_free(&status, Devices::Spare, Ending::default())?;
        for device in loop_devices(&status.served)? {
            detach_free(name, &device)?;
        }
        stop(name, self.driver(name)?, Ending::default())
    }

    /// Stops a driver after the cycle that runs; none can begin any more.
    ///
    /// # Errors
    /// As for [`LocalHost::stop`].
    pub fn stop_after_cycle(&self, name: &DiskName) -> Result<(), HostError> {
        let Ok(mut driver) = self.driver(name) else { return Ok(()) };
        // The lease is free when the cycle that runs has ended, and there is no event for that.
        while let Err(e) = driver.ask(&Request::Lease { client: "failover".into() }) {
            if !e.is_refusal() {
                return Err(e).doing(|| format!("disk {name}"));
            }
            clock::sleep(Duration::from_millis(100));
            driver = self.driver(name)?;
        }
        stop(name, driver, Ending::default())
    }

    /// Ends a disk under its users, after saying what that means.
    ///
    /// # Errors
    /// If it is not served, or cannot be ended.
    pub fn abort(&self, name: &DiskName) -> Result<(), HostError> {
        let paths = self.roots.disk(name);
        let seen = hung::look(&paths).doing(|| {
            let socket = paths.control_socket();
            format!("disk {name} is not served: nobody listens on {}", socket.display())
        })?;
        if seen.doing == ProcessDoing::Stopped {
            return self.abort_hung(name, &paths, &seen);
        }
        let status = self.driver(name).and_then(|mut driver| Ok((driver.status()?, driver)));
        let Ok((status, mut driver)) = status else {
            return self.abort_hung(name, &paths, &seen);
        };
        let users = users(&status, Devices::Count)?;
        if !users.is_empty() {
            self.say_what_is_lost(name, &in_use::list(&users));
        }
        // A driver whose backing does not answer cannot save anything, and would keep its users waiting.
        if status.io_waits.is_none() {
            let ended = driver.ask(&Request::Abort).map_err(HostError::from);
            match ended.and_then(|_| gone(&status, driver)) {
                Ok(()) => return Ok(()),
                Err(e) => {
                    tracing::warn!("disk {name}: {e}; its file system is ended by the kernel");
                }
            }
        }
        // As it is now.
        let seen = hung::look(&paths).unwrap_or(seen);
        self.abort_hung(name, &paths, &seen)
    }

    fn abort_hung(
        &self,
        name: &DiskName,
        paths: &DiskPaths,
        seen: &hung::Seen,
    ) -> Result<(), HostError> {
        let (pid, doing) = (seen.pid, &seen.doing);
        let who = format!("its driver, process {pid}, does not answer them ({doing})");
        self.say_what_is_lost(name, &who);
        hung::end(paths, seen).doing(|| format!("disk {name}"))
    }

    fn say_what_is_lost(&self, name: &DiskName, users: &str) {
        self.told.warn(&format!(
            "disk {name} is ended under its users ({users}): they get I/O errors, and what they have not synced is \
             lost. Recovery points stay as they are"
        ));
    }
}

fn gone(status: &DriverStatus, driver: ControlClient) -> Result<(), HostError> {
    if !driver.is_gone_within(SAVED_WITHIN) {
        return Err(HostError::Failed(format!(
            "disk {}: its driver, process {}, was told to stop and has not ended after {} s; it may be saving \
             its state. Look again with backstay status {}",
            status.name,
            status.pid,
            SAVED_WITHIN.as_secs(),
            status.name
        )));
    }
    Ok(())
}
