//! Tests of what `--help` says, and docs/reference/verbs.md, which is made of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use clap::{Command, CommandFactory as _};

/// Every verb that is shown, and its verbs, by what a person types.
fn verbs() -> BTreeMap<String, Command> {
    fn add(all: &mut BTreeMap<String, Command>, path: &str, command: &Command) {
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            add(all, &format!("{path} {}", verb.get_name()), verb);
        }
        all.insert(path.to_owned(), command.clone());
    }
    let mut command = crate::Cli::command().disable_help_subcommand(true);
    command.build();
    let mut all = BTreeMap::new();
    add(&mut all, "backstay", &command);
    all
}

#[test]
fn each_verb_says_one_thing_of_its_own() {
    let mut said = BTreeMap::new();
    for (verb, command) in verbs() {
        let about =
            command.get_about().unwrap_or_else(|| panic!("{verb} says nothing")).to_string();
        assert!(!about.ends_with('.') && about.lines().count() == 1, "{verb}: {about}");
        let before = said.insert(about.clone(), verb.clone());
        assert_eq!(before, None, "{verb} says the same: {about}");
    }
}

#[test]
fn help_fits_a_terminal_and_is_wrapped_once() {
    let mut wrong = vec![];
    for (verb, command) in verbs() {
        let narrow = command.clone().term_width(80).render_long_help().to_string();
        wrong.extend(
            narrow.lines().filter(|line| line.chars().count() > 80).map(|l| format!("{verb}: {l}")),
        );
        // An example that has to be wrapped cannot be copied.
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines: Vec<&str> = help.lines().collect();
        wrong.extend(
            lines
                .iter()
                .filter(|l| l.starts_with(' ') && l.chars().count() > 80)
                .map(|l| format!("{verb}: {l}")),
        );
        // Prose is wrapped by clap alone.
        let is_prose =
            |line: &str| !line.is_empty() && !line.starts_with(' ') && !line.ends_with(':');
        let broken = lines.windows(2).filter(|two| is_prose(two[0]) && is_prose(two[1]));
        wrong.extend(broken.map(|two| format!("{verb}: wrapped twice: {}", two[0])));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// One line of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn reference() -> String {
    let mut page = String::from(
        "# Verbs\n\nMade of `--help`; a test compares it (`BACKSTAY_GOLDEN_WRITE=1` writes it). Options that every verb takes \
         are listed once, under `backstay`.\n",
    );
    for (verb, command) in verbs() {
        let usage = command.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ").replace("[OPTIONS]", "[options]");
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = write!(page, "\n## {verb}\n{about}.\n\n```\n{usage}\n```\n");
        let is_overview = verb == "backstay";
        let arguments = command.get_arguments().filter(|arg| {
            let is_global = arg.get_help_heading() == Some("Global options");
            !arg.is_hide_set() && arg.get_id() != "help" && (is_overview || !is_global)
        });
        let rows: Vec<_> = arguments
            .map(|arg| {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                format!(
                    "| `{}` | {} |\n",
                    cell(arg.to_string().trim_end_matches("...")),
                    cell(&help)
                )
            })
            .collect();
        if !rows.is_empty() {
            let _ = write!(page, "\n| | |\n|---|---|\n{}", rows.concat());
        }
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for block in help.split("\n\n").filter(|block| !block.is_empty()) {
            let _ = match block.contains("\n  ") {
                true => write!(page, "\n```\n{block}\n```\n"),
                false => write!(page, "\n{block}\n"),
            };
        }
    }
    page
}

#[test]
fn the_page_of_verbs_is_what_the_help_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/verbs.md");
    let page = reference();
    if std::env::var_os("BACKSTAY_GOLDEN_WRITE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == page,
        "docs/reference/verbs.md is old: run this test with BACKSTAY_GOLDEN_WRITE=1"
    );
}

#[test]
fn every_setting_has_its_line_in_the_reference() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/configuration.md");
    let page = std::fs::read_to_string(docs).unwrap();
    let all = serde_json::to_value(backstay_engine::config::Config::default()).unwrap();
    for key in all.as_object().unwrap().keys() {
        let named = [format!("`{key}`"), format!("`{key}."), format!("[{key}"), format!("`[{key}")];
        assert!(
            named.iter().any(|name| page.contains(name)),
            "{key} is not in docs/reference/configuration.md"
        );
    }
}
