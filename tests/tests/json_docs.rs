//! docs/reference/json.md lists the fields of what each verb prints with `--json`: real output is compared with it.
//!
//! Needs root, /dev/fuse, loop devices. With `BACKSTAY_SHOW_FIELDS` set, the fields that were seen are printed as
//! rows of a table.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use backstay_tests::harness::Host;
use backstay_tests::harness::command::said;
use backstay_tests::harness::service::{Service, wait_for, write_config};
use serde_json::Value;

/// Paths of all fields, with `[]` for lists, and the types seen.
fn fields(value: &Value, path: &str, found: &mut BTreeMap<String, BTreeSet<&'static str>>) {
    let mut note = |kind| {
        if !path.is_empty() {
            found.entry(path.into()).or_default().insert(kind);
        }
    };
    match value {
        Value::Null => note("null"),
        Value::Bool(_) => note("boolean"),
        Value::Number(_) => note("number"),
        Value::String(_) => note("string"),
        Value::Array(all) => {
            note("list");
            all.iter().for_each(|one| fields(one, &format!("{path}[]"), found));
        }
        Value::Object(all) => {
            note("object");
            let dot = if path.is_empty() { "" } else { "." };
            all.iter().for_each(|(key, one)| fields(one, &format!("{path}{dot}{key}"), found));
        }
    }
}

/// What the page says: the fields of each verb, and their types.
fn documented() -> BTreeMap<String, BTreeMap<String, String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/json.md");
    let text = std::fs::read_to_string(page).unwrap();
    let mut all: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut verb = String::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## `") {
            verb = title.split('`').next().unwrap().into();
        } else if let Some(row) = line.strip_prefix("| `") {
            let (path, rest) = row.split_once("` | ").expect("a row");
            let kind = rest.split(" |").next().unwrap();
            all.entry(verb.clone()).or_default().insert(path.into(), kind.into());
        }
    }
    all
}

#[test]
fn real_output_has_the_fields_that_the_page_lists() {
    let host = Host::new("json-docs");
    write_config(&host, "interval = \"1d\"\n");
    let disk = host.disk("db", 4 << 20);
    disk.mount(&[]);
    let mut seen: Vec<(&str, Value)> = vec![("cycle", host.json(&["cycle", "db"]))];
    host.json(&["cycle", "db"]);
    seen.push(("pin", host.json(&["pin", "db", "1", "--name", "audit"])));
    let image = host.path("image");
    let restore = ["restore", "db", "--point", "1", "--to", image.to_str().unwrap()];
    seen.push(("restore", host.json(&restore)));
    let service = Service::start(&host);
    wait_for("the sidecar", || disk.causes().is_empty());
    seen.push(("status", host.json(&["status"])));
    drop(service);
    seen.push(("status", host.json(&["status"])));
    for verb in ["points db", "verify db", "jobs", "holds db", "vault ls", "doctor"] {
        let args: Vec<&str> = verb.split(' ').collect();
        let output = host.try_backstay(&[&["--json"], &args[..]].concat());
        let value = serde_json::from_slice(&output.stdout);
        let value = value.unwrap_or_else(|e| panic!("{verb}: {e}\n{}", said(&output)));
        seen.push((verb.strip_suffix(" db").unwrap_or(verb), value));
    }
    seen.push(("prune", host.json(&["prune", "db", "--dry-run", "--keep", "last 1"])));
    seen.push(("resume", host.json(&["resume", "db"])));
    let failed = host.try_backstay(&["--json", "status", "nobody"]);
    seen.push(("errors", serde_json::from_slice(&failed.stderr).unwrap()));

    let documented = documented();
    let mut real: BTreeMap<&str, BTreeMap<String, BTreeSet<&str>>> = BTreeMap::new();
    for (verb, value) in &seen {
        fields(value, "", real.entry(verb).or_default());
    }
    if std::env::var_os("BACKSTAY_SHOW_FIELDS").is_some() {
        for (verb, found) in &real {
            println!("## `{verb}`");
            for (path, kinds) in found {
                println!("| `{path}` | {} |", kinds.iter().copied().collect::<Vec<_>>().join(", "));
            }
        }
    }
    for (verb, found) in &real {
        let page = documented.get(*verb).unwrap_or_else(|| panic!("{verb} is not on the page"));
        let below = |path: &str| {
            page.keys().any(|of| of.strip_suffix('*').is_some_and(|of| path.starts_with(of)))
        };
        for (path, kinds) in found.iter().filter(|(path, _)| *path != "[]" && !below(path)) {
            let kind =
                page.get(path).unwrap_or_else(|| panic!("{verb}: {path} is not on the page"));
            let listed: BTreeSet<&str> = kind.split(", ").collect();
            let unlisted: Vec<_> = kinds.difference(&listed).collect();
            assert!(unlisted.is_empty(), "{verb}: {path} is {unlisted:?} and the page says {kind}");
        }
        // What is only there at times says so: its type can be null.
        for (path, kind) in page {
            assert!(
                found.contains_key(path) || kind.contains("null"),
                "{verb}: the page lists {path}, which is not there"
            );
        }
    }
}
