//! Kill points: tests kill a process around each durable step.
//!
//! Code that must survive a kill at any instant calls [`step`] between its durable steps. A test starts the
//! program with [`DIE_AT`] set to `AREA:N`, and the program kills itself at step N of that area, counted
//! from 0. The test tries N = 0, 1, 2, … until the program finishes, so a new step is always covered.
//! Without debug assertions [`step`] does nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The variable with which a test says where the process is to die.
pub const DIE_AT: &str = "BACKSTAY_TEST_DIE_AT";

/// An area's next step has come.
pub fn step(area: &'static str, what: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    static STEPS: Mutex<BTreeMap<&str, u64>> = Mutex::new(BTreeMap::new());
    let Some(at) = told(area) else { return };
    let mut steps = STEPS.lock().unwrap_or_else(PoisonError::into_inner);
    let count = steps.entry(area).or_default();
    if *count == at {
        eprintln!("killed at step {at} of {area}: {what}");
        let _ = nix::sys::signal::raise(nix::sys::signal::SIGKILL);
    }
    *count += 1;
}

/// At which step of an area a test wants this process to die.
#[must_use]
pub fn told(area: &str) -> Option<u64> {
    parse(&std::env::var(DIE_AT).ok()?, area)
}

fn parse(told: &str, area: &str) -> Option<u64> {
    told.split_once(':').filter(|(of, _)| *of == area)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_area_that_was_named_dies() {
        assert_eq!(parse("failover:3", "failover"), Some(3));
        assert_eq!(parse("failover:3", "mount"), None);
        assert_eq!(parse("3", "mount"), None);
        step("mount", "nobody was told");
    }
}
