//! Thaws what a guardian that was killed has left, and runs its post commands.
//!
//! The guardian has written down what it was about to freeze and holds a lock as long as it lives:
//! who gets the lock and finds the file knows that nobody else will.

use std::path::{Path, PathBuf};

use super::freeze::{self, Frozen};
use super::plan::{HookLock, something_is_left};

/// Mends what is left in a disk's runtime directory, if something is; what that was, in words.
/// Nothing is done while a guardian lives.
#[must_use]
pub fn mend(runtime: &Path) -> Option<String> {
    if !something_is_left(runtime) {
        return None;
    }
    match HookLock::take(runtime) {
        Ok(lock) => mend_with(&lock?),
        Err(e) => Some(format!("{}: {e}", runtime.display())),
    }
}

/// The same, for who has the lock.
pub(super) fn mend_with(lock: &HookLock) -> Option<String> {
    let plan = match lock.left() {
        Ok(plan) => plan?,
        Err(e) => {
            return Some(format!(
                "what a killed guardian was at cannot be read ({e}): see whether something is \
                 frozen (fsfreeze --unfreeze) or an application waits"
            ));
        }
    };
    let mut did = vec!["a guardian was killed during a cut".to_owned()];
    did.extend(thaw_all(&plan.frozen));
    if let Err(e) = plan.run_post() {
        did.push(e.to_string());
    }
    if let Err(e) = lock.forget() {
        did.push(e.to_string());
    }
    Some(did.join("; "))
}

/// Thaws file systems as far as they are frozen; what was done.
pub(super) fn thaw_all(mounts: &[PathBuf]) -> Vec<String> {
    let mut did = vec![];
    for mount in mounts.iter().rev() {
        // Only what is mounted there: the path alone may lie on another file system by now.
        match Frozen::check(mount, &[]).map(|root| freeze::thaw(&root)) {
            Ok(Ok(true)) => did.push(format!("{} was frozen and is thawed", mount.display())),
            Ok(Ok(false)) => {}
            Ok(Err(e)) => did.push(format!("thawing {}: {e}", mount.display())),
            Err(e) => did.push(e.to_string()),
        }
    }
    did
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::plan;
    use super::*;

    #[test]
    fn post_runs_once_for_a_guardian_that_was_killed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(mend(dir.path()), None);
        let lock = HookLock::take(dir.path()).unwrap().unwrap();
        let mut plan = plan(dir.path());
        let ran = dir.path().join("ran");
        plan.post = vec![format!("echo post >> {}", ran.display())];
        plan.frozen = vec!["/no/such/mount".into()];
        lock.note(&plan).unwrap();
        assert_eq!(mend(dir.path()), None, "its guardian lives");
        drop(lock);
        let did = mend(dir.path()).unwrap();
        assert!(did.contains("was killed") && did.contains("/no/such/mount"), "{did}");
        assert_eq!(mend(dir.path()), None);
        assert_eq!(std::fs::read_to_string(ran).unwrap(), "post\n");
    }
}
