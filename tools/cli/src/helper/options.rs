//! The options of an fstab line: ours, and those of the file system on the disk.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use backstay_format::DiskName;
use clap::Parser;

use crate::context::Globals;
use crate::verbs::mount::How;

/// Options that are flags of `backstay mount` by another way of writing.
const FLAGS: [&str; 7] =
    ["config", "state-dir", "runtime-dir", "engine", "change-log-limit", "event-loops", "grow"];
/// Options for mount(8) and the init system, which mean nothing to a file system.
const NOT_FOR_FILE_SYSTEMS: [&str; 12] = [
    "_netdev", "auto", "noauto", "nofail", "user", "nouser", "users", "nousers", "owner",
    "noowner", "group", "nogroup",
];

/// An fstab line's options, sorted out.
pub struct Options {
    /// The disk.
    pub name: DiskName,
    /// Its backing, if it was named.
    pub backing: Option<PathBuf>,
    /// The file system on it; `auto` looks.
    pub fs: String,
    /// An existing mount is to be changed.
    pub remount: bool,
    /// For the file system.
    pub rest: Vec<String>,
    /// How to serve the disk.
    pub how: How,
    /// Where its state is.
    pub globals: Globals,
}

/// How a disk is served, in the words of the command line.
#[derive(Parser)]
#[command(name = "mount.backstay", no_binary_name = true)]
struct Served {
    #[command(flatten)]
    globals: Globals,
    #[command(flatten)]
    how: How,
}

/// Sorts out what stands in the first and the fourth column.
pub fn parse(spec: &str, options: &str) -> anyhow::Result<Options> {
    let (mut name, mut backing, mut fs) = (None, None, "auto".to_owned());
    let (mut flags, mut rest, mut remount) = (vec![], vec![], false);
    for option in split(options) {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        let needed = || value.with_context(|| format!("option {key}: it needs a value"));
        match key {
            "name" => name = Some(needed()?),
            "backing" => backing = Some(PathBuf::from(needed()?)),
            "fs" => needed()?.clone_into(&mut fs),
            "remount" => remount = true,
            key if FLAGS.contains(&key) => {
                flags.push(format!("--{option}"));
            }
            key if NOT_FOR_FILE_SYSTEMS.contains(&key) => {}
            key if key.starts_with("x-") || key.starts_with("X-") || key == "comment" => {}
            _ => rest.push(option.to_owned()),
        }
    }
    let name = match (name, spec.contains('/')) {
        (Some(name), true) => {
            backing = Some(PathBuf::from(spec));
            name
        }
        (None, true) => bail!(
            "{spec} is a backing: say which disk it is (name=NAME), or write the disk's name in its \
             place"
        ),
        (Some(name), false) if name != spec => bail!("is the disk {spec} or {name}? Name it once"),
        (_, false) => spec,
    };
    let served = Served::try_parse_from(flags).map_err(|e| {
        let text = e.to_string();
        anyhow::anyhow!("{}", text.lines().next().unwrap_or_default().trim_start_matches("error: "))
    })?;
    Ok(Options {
        name: name.parse()?,
        backing,
        fs,
        remount,
        rest,
        how: served.how,
        globals: served.globals,
    })
}

/// Splits at commas that are not inside double quotes.
fn split(options: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let at_comma = move |c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    };
    options.split(at_comma).filter(|option| !option.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_of_fstab() {
        let line = "rw,noatime,fs=xfs,engine=direct,change-log-limit=2GiB,_netdev,nofail,\
                    x-systemd.requires=backstay-disk@db.service";
        let options = parse("db", line).unwrap();
        assert_eq!(options.name.as_str(), "db");
        assert_eq!((options.fs.as_str(), options.backing), ("xfs", None));
        assert_eq!(options.rest, ["rw", "noatime"]);
        assert_eq!(options.how.change_log_limit().map(|s| s.as_u64()), Some(2 << 30));
        let options = parse("/srv/db.img", "name=db,context=\"a,b\",remount").unwrap();
        assert_eq!(options.backing, Some("/srv/db.img".into()));
        assert_eq!(options.rest, ["context=\"a,b\""]);
        assert!(options.remount);
    }

    #[test]
    fn mistakes_are_explained() {
        let why = |spec, line| parse(spec, line).err().expect("refused").to_string();
        assert!(why("/srv/db.img", "rw").contains("name=NAME"));
        assert!(why("db", "name=other").contains("db or other"));
        assert!(why("db", "engine=warp").contains("engine"), "{}", why("db", "engine=warp"));
        assert!(why("db", "fs").contains("needs a value"));
        assert!(why("", "rw").contains("disk name"));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_made_up(spec in "[a-z/]{0,8}", line in ".{0,200}") {
            if let Ok(options) = parse(&spec, &line) {
                for option in options.rest {
                    prop_assert!(line.contains(&option));
                }
            }
        }
    }
}
