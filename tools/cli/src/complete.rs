//! What a shell offers while a command is typed: names of disks, groups and policies, and numbers of points.
//!
//! It only looks: it writes nothing, asks for no passphrase, and passes over a vault that does not answer in a moment.

use std::any::TypeId;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use backstay_engine::config::Config;
use backstay_front::paths::Roots;
use backstay_recovery::mount::PointChoice;
use backstay_types::DiskName;
use backstay_vault::{GroupName, Vault, Vaults};
use clap::Command;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};

use crate::context::{Context, Globals};
use crate::verbs::target::{PointName, time};

/// With the name of a shell in this variable, the command completes what follows `--`.
pub const VARIABLE: &str = "BACKSTAY_COMPLETE";

/// A person waits no longer for a vault.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The newest points are meant, not all of some years.
const POINTS_MAX: usize = 40;

/// Gives every argument that names something the words for it, by its type.
pub fn with_words(command: Command) -> Command {
    let with_words_of = |arg: clap::Arg| {
        let of = arg.get_value_parser().type_id();
        let offer: fn(&Typed) -> Vec<CompletionCandidate> = if of == TypeId::of::<DiskName>() {
            Typed::disks
        } else if of == TypeId::of::<PointName>() || of == TypeId::of::<PointChoice>() {
            Typed::points
        } else if of == TypeId::of::<GroupName>() {
            |typed| words(typed.context.config.group.keys())
        } else if arg.get_id() == "policy" {
            |typed| words(typed.context.config.policy.keys())
        } else {
            return arg;
        };
        arg.add(ArgValueCandidates::new(move || in_a_moment(offer)))
    };
    command.mut_args(with_words_of).mut_subcommands(with_words)
}

fn words<T: ToString>(all: impl IntoIterator<Item = T>) -> Vec<CompletionCandidate> {
    all.into_iter().map(|word| CompletionCandidate::new(word.to_string())).collect()
}

fn in_a_moment(offer: fn(&Typed) -> Vec<CompletionCandidate>) -> Vec<CompletionCandidate> {
    let (done, found) = mpsc::channel();
    std::thread::spawn(move || done.send(offer(&Typed::now())));
    found.recv_timeout(PATIENCE).unwrap_or_default()
}

/// The command line so far.
struct Typed {
    words: Vec<String>,
    context: Context,
}

impl Typed {
    fn now() -> Self {
        let words = std::env::args().skip_while(|word| word != "--").skip(2);
        Self::of(words.collect())
    }

    fn of(words: Vec<String>) -> Self {
        let path = |option| value(&words, option).map(PathBuf::from);
        let file =
            path("--config").or_else(|| std::env::var_os("BACKSTAY_CONFIG").map(PathBuf::from));
        let mut config = Config::load(file.as_deref()).unwrap_or_default();
        config.store.retry_timeout = PATIENCE;
        config.store.connect_timeout = PATIENCE;
        config.reach(Vaults::default(), None);
        let state = path("--state-dir").or(config.state_dir.clone());
        let runtime = path("--runtime-dir").or(config.runtime_dir.clone());
        let roots = Roots::new(state, runtime);
        let mut context = Context { globals: Globals::default(), config, roots };
        let disks = context.disks();
        context.config.add_protections(&context.roots, &disks);
        Self { words, context }
    }

    fn vault(&self, disk: Option<&DiskName>) -> Option<Vault> {
        let named = value(&self.words, "--vault").or_else(|| std::env::var("BACKSTAY_VAULT").ok());
        let url = named.unwrap_or_else(|| match disk {
            Some(disk) => self.context.config.vault_of(disk).to_owned(),
            None => self.context.config.vault.clone(),
        });
        self.context.config.vaults.open_to_look(&url).ok()
    }

    /// This host's disks, and those of the vault.
    fn disks(&self) -> Vec<CompletionCandidate> {
        let here = self.context.disks().into_iter();
        let there = self.vault(None).and_then(|vault| vault.disks().ok()).unwrap_or_default();
        let all: BTreeSet<_> = here.chain(there.into_iter().map(|disk| disk.name)).collect();
        words(all)
    }

    /// The newest points of the disk that was named before, the newest first, with the times of their cuts.
    fn points(&self) -> Vec<CompletionCandidate> {
        let mut offered = words(["latest"]);
        let names = self.words.iter().filter_map(|word| word.parse::<DiskName>().ok());
        let found = names.into_iter().rev().find_map(|name| {
            let vault = self.vault(Some(&name))?;
            let disk = vault.disk_named(&name).ok()?;
            Some((vault.points(disk.disk).ok()?, vault, disk))
        });
        if let Some((points, vault, disk)) = found {
            offered.extend(points.iter().rev().take(POINTS_MAX).enumerate().map(|(n, &cycle)| {
                let cut =
                    vault.manifest(disk.disk, cycle).ok().map(|point| time(point.cut_unix_ns));
                CompletionCandidate::new(cycle.to_string())
                    .help(cut.map(Into::into))
                    .display_order(Some(n))
            }));
        }
        offered
    }
}

/// The value of an option among words. Bash makes three words of `file:///path` and of `--option=value`.
fn value(words: &[String], option: &str) -> Option<String> {
    let at = words.iter().position(|word| {
        word == option || word.strip_prefix(option).is_some_and(|rest| rest.starts_with('='))
    })?;
    let joined = words[at][option.len()..].to_owned();
    let mut value = joined;
    for word in &words[at + 1..] {
        let joins = word == ":" || word == "=";
        if !value.is_empty() && !joins && !value.ends_with([':', '=']) {
            break;
        }
        value.push_str(word);
    }
    let value = value.trim_start_matches('=');
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn values_are_found_as_shells_split_them() {
        let of = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            value(&words, "--vault")
        };
        for line in [
            "restore db --vault file:///mnt/v --point",
            "restore db --vault file : ///mnt/v --point",
            "restore db --vault = file : ///mnt/v --point",
            "restore db --vault=file:///mnt/v --point",
        ] {
            assert_eq!(of(line).as_deref(), Some("file:///mnt/v"), "{line}");
        }
        assert_eq!(of("restore db --vault"), None);
        assert_eq!(of("restore db --vault-wait 3s"), None);
    }
}
