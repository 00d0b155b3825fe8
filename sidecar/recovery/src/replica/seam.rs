//! Where tests let a replica fail: before and after each durable step.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{ReplicaError, io_error};

/// In programs with debug assertions: the process kills itself at the step of this number.
const DIE_AT: &str = "BACKSTAY_TEST_REPLICA_DIE_AT";

type Hook = dyn Fn(&'static str) -> io::Result<()> + Send + Sync;

/// Asked at each step whether to go on.
#[derive(Clone, Default)]
pub struct Seam {
    hook: Option<Arc<Hook>>,
}

impl fmt::Debug for Seam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.hook.is_some() { "Seam(hooked)" } else { "Seam" })
    }
}

impl Seam {
    /// A seam that asks a function.
    #[must_use]
    pub fn with(hook: impl Fn(&'static str) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { hook: Some(Arc::new(hook)) }
    }

    pub(super) fn step(&self, what: &'static str) -> Result<(), ReplicaError> {
        if cfg!(debug_assertions) {
            die_if_told(what);
        }
        match &self.hook {
            Some(hook) => hook(what).map_err(io_error(what)),
            None => Ok(()),
        }
    }
}

fn die_if_told(what: &str) {
    static STEPS: AtomicU64 = AtomicU64::new(0);
    let Some(at) = std::env::var(DIE_AT).ok().and_then(|at| at.parse::<u64>().ok()) else { return };
    if STEPS.fetch_add(1, Ordering::Relaxed) + 1 == at {
        eprintln!("killed at step {at}: {what}");
        let _ = nix::sys::signal::raise(nix::sys::signal::SIGKILL);
    }
}
