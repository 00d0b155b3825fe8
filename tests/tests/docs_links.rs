//! The documentation holds together: no link leads nowhere, every page is reached from the index, and what the
//! source says about `docs/` is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file of the checkout that people write, by its path from the root.
fn files() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_str().unwrap();
            if path.is_dir() && ![".git", "target", "corpus", "golden"].contains(&name) {
                folders.push(path);
            } else if let Some(text) =
                path.is_file().then(|| fs::read_to_string(&path).ok()).flatten()
            {
                found.insert(path.strip_prefix(root()).unwrap().to_owned(), text);
            }
        }
    }
    found
}

fn is_page(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "md")
}

/// A page's text without its blocks of code, in which brackets are no links.
fn prose(text: &str) -> String {
    let mut code = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// Where the links of a page lead: path and anchor. Links to other sites are not looked at.
fn links(text: &str) -> Vec<(String, String)> {
    let text = prose(text).replace('\n', " ");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets
        .map(|(target, _)| target)
        .filter(|target| !target.contains("://") && !target.contains(' '))
        .map(|target| {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            (path.to_owned(), anchor.to_owned())
        })
        .collect()
}

/// The anchors of a page, made of its headings as GitHub does.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text);
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, part| {
        match part {
            Component::ParentDir => assert!(path.pop(), "a link leads out of the checkout"),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
        path
    })
}

/// The page or folder that a link on a page leads to.
fn target(page: &Path, path: &str) -> PathBuf {
    match path {
        "" => page.to_owned(),
        _ => plain(&page.parent().unwrap().join(path)),
    }
}

#[test]
fn no_link_leads_nowhere() {
    let files = files();
    let mut wrong = vec![];
    for (page, text) in files.iter().filter(|(path, _)| is_page(path)) {
        for (path, anchor) in links(text) {
            let to = target(page, &path);
            let there = match files.get(&to) {
                Some(text) => anchor.is_empty() || anchors(text).contains(&anchor),
                None => anchor.is_empty() && root().join(&to).exists(),
            };
            if !there {
                wrong.push(format!("{}: {path}#{anchor}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
}

#[test]
fn every_page_is_reached_from_the_index() {
    let files = files();
    let mut reached = BTreeSet::new();
    let mut next = vec![PathBuf::from("docs/README.md")];
    while let Some(page) = next.pop() {
        if let Some(text) =
            files.get(&page).filter(|_| is_page(&page) && reached.insert(page.clone()))
        {
            next.extend(links(text).iter().map(|(path, _)| target(&page, path)));
        }
    }
    let pages = files.keys().filter(|path| is_page(path) && path.starts_with("docs"));
    let lost: Vec<_> = pages.filter(|path| !reached.contains(*path)).collect();
    assert!(lost.is_empty(), "no way leads from docs/README.md to {lost:?}");
}

#[test]
fn pages_that_the_source_names_are_there() {
    let mut wrong = vec![];
    for (path, text) in files() {
        for piece in text.split("docs/").skip(1) {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "/-_.".contains(c);
            let name: String = piece.chars().take_while(|c| is_name(*c)).collect();
            let name = name.trim_end_matches('.');
            if name.ends_with(".md") && !root().join("docs").join(name).is_file() {
                wrong.push(format!("{}: docs/{name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "pages that are not there:\n{}", wrong.join("\n"));
}

#[test]
fn every_folder_of_pages_is_installed() {
    let list = fs::read_to_string(root().join("tools/packaging/files")).unwrap();
    let pages = files().into_keys().filter(|path| is_page(path) && path.starts_with("docs"));
    for folder in pages.map(|page| page.parent().unwrap().to_owned()).collect::<BTreeSet<_>>() {
        let line = format!("644 {0}/*.md share/doc/backstay/{0}", folder.display());
        assert!(list.lines().any(|l| l == line), "tools/packaging/files: {line}");
    }
}
