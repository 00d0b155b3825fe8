//! Which crate may import which: the table in docs/ARCHITECTURE.md, the Cargo.toml files and the one
//! direction (tools → sidecar → driver) say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The folder of each crate of the workspace by its name, without those of the tests.
fn crates() -> BTreeMap<String, String> {
    let workspace: toml::Table = read(&root().join("Cargo.toml")).parse().unwrap();
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let folders = members.iter().map(|folder| folder.as_str().unwrap().to_owned());
    folders.filter(|folder| folder != "tests").map(|folder| (name(&folder), folder)).collect()
}

fn manifest(folder: &str) -> toml::Table {
    read(&root().join(folder).join("Cargo.toml")).parse().unwrap()
}

fn name(folder: &str) -> String {
    manifest(folder)["package"]["name"].as_str().unwrap().to_owned()
}

/// What a crate imports, ours and others', but for its tests.
fn imports(folder: &str) -> BTreeSet<String> {
    manifest(folder)["dependencies"].as_table().unwrap().keys().cloned().collect()
}

/// The rows of the table of crates: folder → what it may import.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let text = read(&root().join("docs/ARCHITECTURE.md"));
    let rows = text.lines().skip_while(|line| !line.starts_with("| crate | may import"));
    let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
    let names = |cell: &str| -> Vec<String> {
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    rows.map(|row| {
        let mut cells = row.split('|').skip(1);
        let folder = names(cells.next().unwrap()).remove(0);
        let may = names(cells.next().unwrap()).into_iter().map(|folder| name(&folder)).collect();
        (folder, may)
    })
    .collect()
}

#[test]
fn crates_import_what_the_architecture_says() {
    let (crates, table) = (crates(), table());
    let folders: BTreeSet<_> = crates.values().cloned().collect();
    assert_eq!(table.keys().cloned().collect::<BTreeSet<_>>(), folders, "a row for each crate");
    for (folder, may) in &table {
        let ours: BTreeSet<String> =
            imports(folder).into_iter().filter(|name| crates.contains_key(name)).collect();
        assert_eq!(&ours, may, "what {folder} imports is not what docs/ARCHITECTURE.md says");
    }
}

/// What a file of a crate imports of its other files: `crate::name` with a small letter.
fn files_imported(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]").next().unwrap();
    let uses = code.split("\nuse crate::").skip(1).map(|rest| rest.split(';').next().unwrap());
    let paths = uses.flat_map(|list| list.trim_start_matches('{').split(", ").map(str::to_owned));
    let names = paths.map(|path| path.split(&[':', '}'][..]).next().unwrap().trim().to_owned());
    names.filter(|name| name.starts_with(|first: char| first.is_lowercase())).collect()
}

/// The tracker's state is in a file that knows nothing of what is done with it.
#[test]
fn files_of_the_tracker_import_in_no_circle() {
    let folder = root().join("driver/track/src");
    let mut left: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_some_and(|end| end == "rs") && name != "lib" {
            left.insert(name, files_imported(&read(&path)));
        }
    }
    assert!(left["cut"].contains("state") && left["recover"].contains("grow"), "{left:?}");
    loop {
        let known: BTreeSet<String> = left.keys().cloned().collect();
        let before = left.len();
        left.retain(|_, imports| !imports.is_disjoint(&known));
        if left.len() == before {
            break;
        }
    }
    assert!(
        left.is_empty(),
        "these files import each other in a circle, or one that does: {left:?}"
    );
}

#[test]
fn imports_point_one_way() {
    let rank = |folder: &str| match folder.split('/').next().unwrap() {
        "driver" => 0,
        "sidecar" => 1,
        "tools" => 2,
        other => panic!("{other} is a new kind of folder: say where it stands"),
    };
    let (crates, all) = (crates(), table());
    for folder in all.keys() {
        for import in imports(folder).iter().filter_map(|name| crates.get(name)) {
            assert!(rank(import) <= rank(folder), "{folder} imports {import}");
        }
    }
    assert!(all["driver/types"].is_empty(), "driver/types is at the bottom");
    assert!(all["driver/host"].iter().all(|import| import == "backstay-types"), "the next");
    // What it parses comes from anywhere; it asks for nothing itself.
    let pure = ["backstay-types", "blake3", "crc32c", "serde", "serde_json", "thiserror", "uuid"];
    for import in imports("driver/format") {
        assert!(pure.contains(&import.as_str()), "driver/format knows no I/O: not {import}");
    }
}
