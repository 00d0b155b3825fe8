//! Ending a disk's service: only when nobody uses it, after a bounded wait; or, if a person insists, under
//! its users.

use std::time::Duration;

use anyhow::{Context as _, bail};
use backstay_format::control::{DriverStatus, Request};
use backstay_front::control::ControlClient;
use backstay_front::life::hung;
use backstay_front::paths::DiskPaths;
use backstay_host::clock;
use backstay_host::doing::Doing;
use backstay_host::in_use::{self, Look, Subject, User, UserKind};
use backstay_types::DiskName;
use clap::Args;

use crate::context::Context;
use crate::exit::Refused;

/// How long commands wait by themselves for users to go: somebody closes a disk while we look, udev looks at
/// a device, the kernel lets go of a loop device's file.
const WAIT_DEFAULT: Duration = Duration::from_secs(10);
/// How long a driver may take to save what it knows.
const SAVED_WITHIN: Duration = Duration::from_secs(60);
/// How often to look who uses a disk: nothing tells.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How a disk's service is ended.
#[derive(Args, Clone, Copy)]
pub struct Ending {
    /// How long to wait while somebody uses the disk
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Stop serving although the disk is in use: its users get I/O errors and lose what they have not synced.
    /// Also stops a driver that does not answer
    #[arg(long)]
    pub force: bool,
}

impl Default for Ending {
    fn default() -> Self {
        Self { wait: WAIT_DEFAULT, force: false }
    }
}

impl Ending {
    /// How long to wait for users.
    pub fn wait(self) -> Duration {
        self.wait
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
pub fn users(status: &DriverStatus, devices: Devices) -> anyhow::Result<Vec<User>> {
    let look = Look { readers: true, spare: vec![status.pid] };
    let found = Subject::at(&status.served).and_then(|subject| in_use::users(&subject, &look));
    let mut found = found.with_context(|| format!("disk {}: looking who uses it", status.name))?;
    if devices == Devices::Spare {
        found.retain(|user| !matches!(user.kind, UserKind::Loop { .. }));
    }
    Ok(found)
}

/// The refusal to end a disk that is in use.
pub fn refused(name: &DiskName, users: &[User]) -> Refused {
    Refused(format!(
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
    fn for_users(&mut self, users: Vec<User>) -> anyhow::Result<()> {
        let left = self.until.saturating_duration_since(clock::monotonic());
        if left.is_zero() {
            return Err(refused(self.name, &users).into());
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
pub fn wait_until_free(status: &DriverStatus, devices: Devices, how: Ending) -> anyhow::Result<()> {
    let mut waiting = Waiting::new(&status.name, how.wait);
    loop {
        let users = users(status, devices)?;
        if users.is_empty() {
            return Ok(());
        }
        waiting.for_users(users)?;
    }
}

/// Stops a driver when nobody has its disk open, and waits until it is gone. What is refused is not done
/// later.
pub fn stop(name: &DiskName, mut driver: ControlClient, how: Ending) -> anyhow::Result<()> {
    let status = driver.status().with_context(|| format!("disk {name}"))?;
    let mut waiting = Waiting::new(name, how.wait);
    loop {
        let users = users(&status, Devices::Count)?;
        if users.is_empty() {
            match driver.ask(&Request::Stop) {
                Err(e) if e.is_busy() => {}
                done => {
                    done.with_context(|| format!("disk {name}"))?;
                    return gone(&status, driver);
                }
            }
        }
        waiting.for_users(users)?;
    }
}

/// Connects to the driver of a disk that is to be ended; one that somebody has stopped cannot answer.
pub fn driver(context: &Context, name: &DiskName) -> anyhow::Result<ControlClient> {
    if let Some(seen) = hung::look(&context.roots.disk(name))
        && seen.doing == Doing::Stopped
    {
        bail!(
            "disk {name}: its driver, process {0}, does not answer: {1}. Let it go on with \"kill -CONT {0}\"; \
             --force ends the disk without it. Nothing was changed",
            seen.pid,
            seen.doing
        );
    }
    context.driver(name)
}

/// Ends a disk under its users, after saying what that means.
pub fn abort(context: &Context, name: &DiskName) -> anyhow::Result<()> {
    let paths = context.roots.disk(name);
    let seen = hung::look(&paths).with_context(|| {
        format!("disk {name} is not served: nobody listens on {}", paths.control_socket().display())
    })?;
    if seen.doing == Doing::Stopped {
        return abort_hung(name, &paths, &seen);
    }
    let status = context.driver(name).and_then(|mut driver| Ok((driver.status()?, driver)));
    let Ok((status, mut driver)) = status else { return abort_hung(name, &paths, &seen) };
    let users = users(&status, Devices::Count)?;
    if !users.is_empty() {
        say_what_is_lost(name, &in_use::list(&users));
    }
    // A driver whose backing does not answer cannot save anything, and would keep its users waiting.
    if status.io_waits.is_none() {
        let ended = driver.ask(&Request::Abort).map_err(anyhow::Error::from);
        match ended.and_then(|_| gone(&status, driver)) {
            Ok(()) => return Ok(()),
            Err(e) => tracing::warn!("disk {name}: {e:#}; its file system is ended by the kernel"),
        }
    }
    // As it is now.
    let seen = hung::look(&paths).unwrap_or(seen);
    abort_hung(name, &paths, &seen)
}

fn abort_hung(name: &DiskName, paths: &DiskPaths, seen: &hung::Seen) -> anyhow::Result<()> {
    let who = format!("its driver, process {}, does not answer them ({})", seen.pid, seen.doing);
    say_what_is_lost(name, &who);
    hung::end(paths, seen).with_context(|| format!("disk {name}"))
}

fn say_what_is_lost(name: &DiskName, users: &str) {
    eprintln!(
        "backstay: disk {name} is ended under its users ({users}): they get I/O errors, and what they have \
         not synced is lost. Recovery points stay as they are"
    );
}

fn gone(status: &DriverStatus, driver: ControlClient) -> anyhow::Result<()> {
    if !driver.is_gone_within(SAVED_WITHIN) {
        bail!(
            "disk {}: its driver, process {}, was told to stop and has not ended after {} s; it may be saving \
             its state. Look again with backstay status {}",
            status.name,
            status.pid,
            SAVED_WITHIN.as_secs(),
            status.name
        );
    }
    Ok(())
}
