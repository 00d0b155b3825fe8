//! The options of an fstab line: ours, and those of the file system on the disk.

use clap::Parser;

use crate::context::Globals;
use crate::error::{Context as _, Result, bail, failed};
use crate::verbs::attach::Attach;

/// Options that are flags of `backstay attach` by another way of writing.
const FLAGS: [&str; 15] = [
    "config",
    "state-dir",
    "runtime-dir",
    "engine",
    "change-log-limit",
    "event-loops",
    "grow",
    "read-only",
    "vault",
    "disk",
    "point",
    "overlay",
    "cache",
    "vault-timeout",
    "hydrate",
];
/// Options for mount(8) and the init system, which mean nothing to a file system.
const NOT_FOR_FILE_SYSTEMS: [&str; 12] = [
    "_netdev", "auto", "noauto", "nofail", "user", "nouser", "users", "nousers", "owner",
    "noowner", "group", "nogroup",
];

/// An fstab line's options, sorted out.
pub struct Options {
    /// Where state is.
    pub globals: Globals,
    /// Which disk it is, and how it is served.
    pub attach: Attach,
    /// The file system on it; `auto` looks.
    pub fs: String,
    /// An existing mount is to be changed.
    pub remount: bool,
    /// For the file system.
    pub rest: Vec<String>,
}

/// A disk and how it is served, in the words of the command line.
#[derive(Parser)]
#[command(name = "mount.backstay", no_binary_name = true)]
struct Line {
    #[command(flatten)]
    globals: Globals,
    #[command(flatten)]
    attach: Attach,
}

/// Sorts out what stands in the first and the fourth column.
pub fn parse(spec: &str, options: &str) -> Result<Options> {
    let (mut name, mut backing, mut fs) = (None, None::<&str>, "auto".to_owned());
    let (mut flags, mut rest, mut remount) = (vec![], vec![], false);
    for option in split(options) {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        let needed = || value.with_context(|| format!("option {key}: it needs a value"));
        match key {
            "name" => name = Some(needed()?),
            "backing" => backing = Some(needed()?),
            "fs" => needed()?.clone_into(&mut fs),
            "remount" => remount = true,
            key if FLAGS.contains(&key) => flags.push(format!("--{option}")),
            key if NOT_FOR_FILE_SYSTEMS.contains(&key) => {}
            key if key.starts_with("x-") || key.starts_with("X-") || key == "comment" => {}
            _ => rest.push(option.to_owned()),
        }
    }
    let name = match (name, spec.contains('/')) {
        (Some(name), true) => {
            backing = Some(spec);
            name
        }
        (None, true) => bail!(
            "{spec} is a backing: say which disk it is (name=NAME), or write the disk's name in its \
             place"
        ),
        (Some(name), false) if name != spec => bail!("is the disk {spec} or {name}? Name it once"),
        (_, false) => spec,
    };
    let name = format!("--name={name}");
    let words = flags.iter().map(String::as_str).chain([name.as_str(), "--"]).chain(backing);
    let line = Line::try_parse_from(words).map_err(|e| {
        let text = e.to_string();
        failed!("{}", text.lines().next().unwrap_or_default().trim_start_matches("error: "))
    })?;
    Ok(Options { globals: line.globals, attach: line.attach, fs, remount, rest })
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
        assert_eq!(options.fs, "xfs");
        assert_eq!(options.rest, ["rw", "noatime"]);
        assert!(!options.remount && !options.attach.is_read_only());
        let options = parse("db", "ro,read-only,disk=db,point=7,vault=file:///v").unwrap();
        assert_eq!(options.rest, ["ro"]);
        assert!(options.attach.is_read_only());
        let options = parse("/srv/db.img", "name=db,context=\"a,b\",remount").unwrap();
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
        assert!(why("", "rw").contains("name"), "{}", why("", "rw"));
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
