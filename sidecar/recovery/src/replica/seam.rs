//! Where tests let a replica fail: before and after each durable step.

use std::fmt;
use std::io;
use std::sync::Arc;

use backstay_host::kill_point;

use super::error::{ReplicaError, io_error};

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
        kill_point::step("replica", what);
        match &self.hook {
            Some(hook) => hook(what).map_err(io_error(what)),
            None => Ok(()),
        }
    }
}
