//! Words that this project does not use, because readers stumble over them; and internal names in the pages of users.

use std::fs;
use std::path::{Path, PathBuf};

/// What is not written, and what is written in its place.
const WORDS: &[(&str, &str)] = &[
    ("whoever", "anyone who, or a noun"),
    ("anew", "again"),
    ("of before", "earlier"),
    ("leave away", "remove"),
    ("say --", "pass --"),
    ("put if absent", "conditional put"),
    ("hang on each other", "depend on each other"),
    ("hangs on", "depends on"),
];

/// Where internal names such as those of requirements and invariants have no place.
const FOR_USERS: &[&str] =
    &["docs/tutorial.md", "docs/broken.md", "docs/howto", "docs/reference", "README.md"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}

/// Files of a kind below a path, in order.
fn files(below: &Path, kind: &str) -> Vec<PathBuf> {
    if below.is_file() {
        return vec![below.into()];
    }
    let entries = fs::read_dir(below).unwrap().map(|entry| entry.unwrap().path());
    let mut found = vec![];
    for path in entries.filter(|path| !path.ends_with("target")) {
        match path.is_dir() {
            true => found.extend(files(&path, kind)),
            false if path.extension().is_some_and(|ext| ext == kind) => found.push(path),
            false => {}
        }
    }
    found.sort();
    found
}

/// Whether a text has a word on its own, not as a part of another one.
fn has(text: &str, word: &str) -> bool {
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).any(|(at, _)| {
        let after = text[at + word.len()..].chars().next();
        !letter(text[..at].chars().next_back()) && (word.ends_with('-') || !letter(after))
    })
}

#[test]
fn plain_words() {
    let root = root();
    let mut texts = files(&root.join("README.md"), "md");
    for folder in ["docs", "driver", "sidecar", "tools", "tests/src"] {
        texts.extend(files(&root.join(folder), "md"));
        texts.extend(files(&root.join(folder), "rs"));
    }
    assert!(texts.len() > 300, "{} files", texts.len());
    let mut found = vec![];
    for path in texts {
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let line = line.to_lowercase();
            for (word, better) in WORDS.iter().filter(|(word, _)| has(&line, word)) {
                found.push(format!("{}:{}: {word:?}: write {better}", path.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn pages_of_users_have_no_internal_names() {
    let root = root();
    let mut found = vec![];
    for path in FOR_USERS.iter().flat_map(|page| files(&root.join(page), "md")) {
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
            let internal = |word: &&str| {
                let digits = word.strip_prefix("R-").or_else(|| word.strip_prefix('I'));
                digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))
            };
            if let Some(word) = words.into_iter().find(internal) {
                found.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
