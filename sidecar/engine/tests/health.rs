//! Causes of health: none is lost, and each is documented.

use std::collections::BTreeSet;

use backstay_engine::health::{Cause, Health, Level, ids};

#[test]
fn the_worst_cause_is_the_headline_and_none_is_lost() {
    assert_eq!(Health::of(vec![]).level, Level::Ok);
    let warning = Cause::warning(ids::DRILL, "drill").advise("look");
    let critical = Cause::critical(ids::CYCLE_STOPPED, "cycle").advise("mend").since(7);
    let note = Cause::note(ids::HANDED_OVER, "note");
    let mut health = Health::of(vec![note.clone(), warning.clone()]);
    assert_eq!((health.level, health.advice.as_deref()), (Level::Warning, Some("look")));
    health.add([critical.clone()]);
    assert_eq!(health.level, Level::Critical);
    assert_eq!((health.reason.as_deref(), health.since_unix_ns), (Some("cycle"), Some(7)));
    assert_eq!(health.causes, [critical, warning, note]);
}

/// Every id has a line in the table of causes, and every line an id.
#[test]
fn code_and_docs_list_the_same_causes() {
    let docs = include_str!("../../../docs/reference/operations.md");
    let section = docs.split("\n## Health\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let documented: BTreeSet<&str> =
        section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let known: BTreeSet<&str> = ids::ALL.iter().map(|id| id.as_str()).collect();
    assert_eq!(known.len(), ids::ALL.len(), "an id is used twice");
    assert_eq!(known, documented);
    assert!(known.iter().all(|id| id.chars().all(|c| c.is_ascii_lowercase() || c == '-')));
}
