//! Waits for users that are about to end.

use std::io;
use std::time::Duration;

use super::{Look, Subject, User, UserKind, users};
use crate::{clock, lock};

/// How often to look for somebody who is about to be gone: nothing tells.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long programs that look at a new disk (udev, blkid) or have just set one up (losetup) may have it open.
const PASSING_WAIT: Duration = Duration::from_secs(1);

/// Everybody who uses a file or device and goes on using it: those who only pass by, and processes that were
/// just killed, are waited for, for a few seconds at most.
///
/// # Errors
/// As for [`users`].
pub fn lasting_users(subject: &Subject, look: &Look) -> io::Result<Vec<User>> {
    let began = clock::monotonic();
    loop {
        let found = users(subject, look)?;
        match found.iter().map(may_take).min() {
            Some(wait) if clock::since(began) <= wait => clock::sleep(LOOK_EVERY),
            _ => return Ok(found),
        }
    }
}

/// How long a user may take to be gone by itself: a driver or command of ours that was killed, while its memory
/// is taken apart; a program that has it open for a moment.
fn may_take(user: &User) -> Duration {
    let is_ours = matches!(user.kind, UserKind::Driver { .. } | UserKind::Ours { .. })
        || user.command.as_deref().is_some_and(|name| name.starts_with("backstay"));
    match user.kind {
        _ if is_ours => lock::HOLDER_GONE_WAIT,
        UserKind::Open { locks: false, .. } => PASSING_WAIT,
        _ => Duration::ZERO,
    }
}
