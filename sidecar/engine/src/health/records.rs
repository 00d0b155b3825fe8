//! Whether what this host remembers of a disk can be read.

use backstay_front::backing::record::BackingRecord;

use super::{Cause, Facts, ids};

pub(super) fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    let (name, record) = (facts.name, facts.record);
    let protection = record.protection_unreadable.as_ref().map(|e| {
        Cause::critical(ids::RECORD_UNREADABLE, format!("the vault of its points is unknown: {e}"))
            .advise("protect it again: backstay protect")
    });
    let cycles = record.unreadable.as_ref().map(|e| {
        let reason = format!("the result of its cycles is unknown: {e}");
        Cause::warning(ids::RECORD_UNREADABLE, reason)
            .advise(format!("the next cycle writes it again: backstay cycle {name}"))
    });
    let backing = BackingRecord::load(&facts.paths.state).err().map(|e| {
        let reason =
            format!("which backings it has had is not known, so it cannot be mounted: {e}");
        Cause::warning(ids::RECORD_UNREADABLE, reason)
            .advise("if you know which one holds the disk, remove that file and mount it")
    });
    [protection, cycles, backing].into_iter().flatten().collect()
}
