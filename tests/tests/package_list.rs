//! The Debian package and `scripts/install` install the same files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use backstay_tests::harness::command::said;
use backstay_tests::harness::host::backstay;

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What the list says: mode, files, folder.
fn listed() -> BTreeSet<(String, String, String)> {
    let text = fs::read_to_string(checkout().join("tools/packaging/files")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [mode, files, folder] = words[..] else { panic!("{line}") };
            (mode.to_owned(), files.to_owned(), folder.to_owned())
        })
        .collect()
}

#[test]
fn the_package_has_what_the_list_says() {
    let text = fs::read_to_string(checkout().join("tools/cli/Cargo.toml")).unwrap();
    let manifest: toml::Value = toml::from_str(&text).unwrap();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    let assets: BTreeSet<_> = assets
        .iter()
        .filter_map(|asset| {
            let word = |n: usize| asset[n].as_str().unwrap().to_owned();
            let from = word(0).strip_prefix("../")?.to_owned();
            let from = from.strip_prefix("../").map_or(format!("tools/{from}"), str::to_owned);
            let folder = word(1).strip_prefix("usr/")?.strip_suffix('/')?.to_owned();
            Some((word(2), from, folder))
        })
        .collect();
    assert_eq!(assets, listed());
}

#[test]
fn scripts_install_puts_all_of_it_in_place_and_takes_it_away() {
    let root = PathBuf::from(format!("/var/tmp/backstay-test-install-{}", std::process::id()));
    let install = |more: &[&str]| {
        let mut command = Command::new(checkout().join("scripts/install"));
        command.arg("--destdir").arg(&root).args(more);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    };
    install(&["--program", backstay().to_str().unwrap()]);
    for (_, files, folder) in listed() {
        let (from, pattern) = files.rsplit_once('/').unwrap_or(("", &files));
        let end = pattern.trim_start_matches('*');
        let is_meant = |name: &str| if end == pattern { name == end } else { name.ends_with(end) };
        for entry in fs::read_dir(checkout().join(from)).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if is_meant(&name) {
                let at = root.join("usr/local").join(&folder).join(&name);
                assert!(at.is_file(), "{}", at.display());
            }
        }
    }
    for page in ["man1/backstay.1.gz", "man5/backstay.toml.5.gz", "man8/mount.backstay.8.gz"] {
        assert!(root.join("usr/local/share/man").join(page).is_file(), "{page}");
    }
    let timer = root.join("usr/local/lib/systemd/system/backstay-drill.timer");
    assert!(timer.is_file() && root.join("usr/local/lib/backstay/read_point.py").is_file());
    // Where the docs and the settings in them say it is.
    let hook = root.join("usr/lib/backstay/hooks/postgresql");
    assert!(hook.symlink_metadata().is_ok(), "{}", hook.display());
    install(&["--uninstall"]);
    assert!(!timer.exists() && hook.symlink_metadata().is_err());
    fs::remove_dir_all(&root).unwrap();
}
