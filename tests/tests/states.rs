//! docs/reference/failover-states.md says of every state what goes on from it, as the program does.

use std::fs;
use std::path::Path;

use backstay_recovery::failover::record::STATES;
use backstay_recovery::failover::{Kind, State, way_on};

/// Which states a failover of a kind comes through.
fn states(kind: Kind) -> Vec<State> {
    use State::*;
    let of = |state: &State| match kind {
        Kind::Test => matches!(state, Starting | Up | Removing),
        Kind::Planned | Kind::Unplanned => {
            matches!(state, Starting | Up | Removing | Committing | Committed)
        }
        Kind::Source => matches!(state, HandingOver | HandedOver | TakingBack | Removing),
        Kind::Failback => matches!(state, Seeding | TakingOver | Committing | Committed),
    };
    STATES.into_iter().filter(of).collect()
}

#[test]
fn the_table_says_what_the_program_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("docs/reference/failover-states.md");
    let text = fs::read_to_string(path).unwrap();
    let there: Vec<&str> =
        text.lines().skip_while(|line| *line != "<!-- states -->").skip(3).collect();
    let name = "NAME".parse().unwrap();
    let kinds = [Kind::Test, Kind::Planned, Kind::Unplanned, Kind::Source, Kind::Failback];
    let rows: Vec<String> = kinds
        .into_iter()
        .flat_map(|kind| states(kind).into_iter().map(move |state| (kind, state)))
        .map(|(kind, state)| {
            let kind_word = serde_json::to_value(kind).unwrap();
            let words = (kind_word.as_str().unwrap(), state.explain(), way_on(&name, kind, state));
            format!("| {} | {} | {} |", words.0, words.1, words.2)
        })
        .collect();
    let there: Vec<&str> = there.into_iter().take_while(|line| line.starts_with('|')).collect();
    assert_eq!(there, rows, "docs/reference/failover-states.md should have:\n{}", rows.join("\n"));
}
