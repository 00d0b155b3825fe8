//! What all disks of this host suffer from.

use super::{Cause, Facts};

pub(super) fn causes(_facts: &Facts<'_>) -> Vec<Cause> {
    vec![]
}
