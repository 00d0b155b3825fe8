//! docs/reference/failover-states.md says of every state what works in it and what goes on from it, as the program does.

use std::fs;
use std::path::{Path, PathBuf};

use backstay_recovery::failover::record::STATES;
use backstay_recovery::failover::rules::{
    Goal, NameKind, NameState, Rule, VERBS, Verb, all, comes_to, next_step, rule,
};
use backstay_recovery::failover::{Kind, State, way_on};

fn kind_word(kind: Kind) -> String {
    serde_json::to_value(kind).unwrap().as_str().unwrap().into()
}

/// Which states a failover of a kind comes through, for people: a failback ends as a committed disk.
fn states(kind: Kind) -> Vec<State> {
    STATES.into_iter().filter(|&state| comes_to(kind, state)).collect()
}

fn ways_on() -> Vec<String> {
    let name = "NAME".parse().unwrap();
    let kinds = [Kind::Test, Kind::Planned, Kind::Unplanned, Kind::Source, Kind::Failback];
    kinds
        .into_iter()
        .flat_map(|kind| states(kind).into_iter().map(move |state| (kind, state)))
        .map(|(kind, state)| {
            format!(
                "| {} | {} | {} |",
                kind_word(kind),
                state.explain(),
                way_on(&name, kind, state)
            )
        })
        .collect()
}

fn state_word(NameState { what, at_work }: NameState) -> String {
    let word = match what {
        NameKind::Nothing => return "nothing".into(),
        NameKind::Disk => "disk".into(),
        NameKind::Elsewhere => "disk that another host has taken over".into(),
        NameKind::Point => "mounted point".into(),
        NameKind::TakenOver => "replica that was taken over, not committed".into(),
        NameKind::Replica => {
            return format!("replica, {}", if at_work { "kept by a process" } else { "not kept" });
        }
        NameKind::Failover(kind, state) => {
            let word = format!("{}: {}", kind_word(kind), state.explain());
            let serves = matches!(state, State::Up | State::Committed);
            if !serves {
                return word;
            }
            word
        }
        NameKind::Orphan(kind, state) => {
            return format!("{}: {}; its disk is gone", kind_word(kind), state.explain());
        }
    };
    format!("{word}, {}", if at_work { "served" } else { "not served" })
}

fn table() -> Vec<String> {
    all()
        .into_iter()
        .map(|standing| {
            let labels = |verbs: &[Verb]| {
                let labels: Vec<_> =
                    verbs.iter().map(|verb| verb.label().replace(' ', "\u{a0}")).collect();
                labels.join(", ")
            };
            // These two work everywhere.
            let verbs = VERBS.iter().filter(|verb| !matches!(verb, Verb::Test | Verb::Status));
            let (mut works, mut instead): (Vec<Verb>, Vec<(Verb, Vec<Verb>)>) = (vec![], vec![]);
            for &verb in verbs {
                match rule(standing, verb) {
                    Rule::Allowed => works.push(verb),
                    Rule::Refused { instead: other } => {
                        match instead.iter_mut().find(|(named, _)| *named == other) {
                            Some((_, of)) => of.push(verb),
                            None => instead.push((other, vec![verb])),
                        }
                    }
                }
            }
            let instead: Vec<_> = instead
                .iter()
                .map(|(named, of)| format!("**{}**: {}", named.label(), labels(of)))
                .collect();
            format!("| {} | {} | {} |", state_word(standing), labels(&works), instead.join("; "))
        })
        .collect()
}

/// What leads to each goal, as the program says it, state by state.
fn ways() -> Vec<String> {
    let step = |standing, goal| {
        next_step(standing, goal).map_or("–".into(), |verb| format!("`{}`", verb.command("NAME")))
    };
    all()
        .into_iter()
        .map(|standing| {
            let (nothing, protected) =
                (step(standing, Goal::Nothing), step(standing, Goal::Protected));
            format!("| {} | {nothing} | {protected} |", state_word(standing))
        })
        .collect()
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("docs/reference/failover-states.md")
}

/// The rows of the table that follows a mark.
fn check(mark: &str, rows: &[String]) {
    let text = fs::read_to_string(path()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mark_at = lines.iter().position(|line| *line == mark).expect(mark);
    let begin = mark_at + 3;
    let end = begin + lines[begin..].iter().take_while(|line| line.starts_with('|')).count();
    if std::env::var_os("BACKSTAY_GOLDEN_WRITE").is_some() {
        let rows = rows.iter().map(String::as_str);
        let new: Vec<&str> = lines[..begin]
            .iter()
            .copied()
            .chain(rows)
            .chain(lines[end..].iter().copied())
            .collect();
        fs::write(path(), new.join("\n") + "\n").unwrap();
        return;
    }
    assert_eq!(
        &lines[begin..end],
        rows,
        "BACKSTAY_GOLDEN_WRITE=1 writes docs/reference/failover-states.md"
    );
}

#[test]
fn the_tables_say_what_the_program_says() {
    check("<!-- states -->", &ways_on());
    check("<!-- rules -->", &table());
    check("<!-- goals -->", &ways());
}
