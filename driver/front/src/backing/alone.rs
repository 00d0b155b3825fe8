//! Whether a backing is for this process alone, whatever way others could reach it.

use std::path::Path;
use std::time::Duration;

use backstay_format::unfinished::{MARK_BYTES, UnfinishedRestore};
use backstay_host::in_use::{self, InUse, InUseError, Look, Subject, User, UserKind};
use backstay_host::{clock, lock};
use backstay_track::Backing;
use backstay_types::ByteOffset;

use super::{AnyBacking, OpenError};

/// How often to look for somebody who is about to be gone.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long programs that look at a new disk (udev, blkid) or have just set one up (losetup) may have it open.
const PASSING_WAIT: Duration = Duration::from_secs(1);

/// Refuses a file or device that anybody else uses. A process that was just killed is waited for.
///
/// # Errors
/// [`OpenError::InUse`] with everybody who uses it.
pub fn refuse_users(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Io { path: path.into(), source };
    let began = clock::monotonic();
    let look = Look::default();
    loop {
        let users = in_use::users(&Subject::at(path).map_err(failed)?, &look).map_err(failed)?;
        if users.is_empty() {
            return Ok(());
        }
        if users.iter().map(may_take).min().unwrap_or_default() < clock::since(began) {
            return Err(InUse::new(path, users).into());
        }
        clock::sleep(LOOK_EVERY);
    }
}

/// How long a user may take to be gone by itself: a driver or command of ours that was killed, while its memory is
/// taken apart; a program that has it open for a moment.
fn may_take(user: &User) -> Duration {
    let is_ours = matches!(user.kind, UserKind::Driver { .. } | UserKind::Ours { .. })
        || user.command.as_deref().is_some_and(|name| name.starts_with("backstay"));
    match user.kind {
        _ if is_ours => lock::HOLDER_GONE_WAIT,
        UserKind::Open { locks: false, .. } => PASSING_WAIT,
        _ => Duration::ZERO,
    }
}

/// Why a backing must not be served, if it holds only a part of a recovery point.
///
/// # Errors
/// If it cannot be read.
pub fn unfinished(path: &Path, backing: &AnyBacking) -> Result<Option<String>, OpenError> {
    let mut first = [0; MARK_BYTES];
    if backing.size().0 < MARK_BYTES as u64 {
        return Ok(None);
    }
    let read = backing.read_at(&mut first, ByteOffset(0));
    read.map_err(|source| OpenError::Io { path: path.into(), source })?;
    if !UnfinishedRestore::is_mark(&first) {
        return Ok(None);
    }
    let of = match UnfinishedRestore::decode(&first) {
        Ok(mark) => format!("recovery point {} of disk {}", mark.cycle, mark.name),
        Err(e) => format!("an unknown recovery point ({e})"),
    };
    Ok(Some(format!(
        "{} holds only a part of {of}: a restore to it was not finished. Run \"backstay restore\" to it \
         again. If it was overwritten since, remove the mark by zeroing its first 512 bytes",
        path.display()
    )))
}

impl From<InUseError> for OpenError {
    fn from(error: InUseError) -> Self {
        match error {
            InUseError::InUse(users) => Self::InUse(users),
            InUseError::Unknown { path, source } => Self::Io { path, source },
        }
    }
}
