//! Shell completions and man pages, made of the command's own description.

use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;
use clap_complete::env::Shells;

use crate::complete::VARIABLE;
use crate::error::{Context as _, Result};
use crate::man;

/// Print the completion script of a shell
#[derive(Args)]
#[command(after_help = "\
Examples:
  source <(backstay completions bash)
  backstay completions fish >~/.config/fish/completions/backstay.fish

The script asks backstay for the words to complete: verbs, options, disks, points, groups and policies. Packages \
install it for bash, zsh and fish.")]
pub struct Completions {
    /// bash, zsh, fish, elvish or powershell
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<()> {
        let shell = self.shell.to_string();
        let shells = Shells::builtins();
        let writer = shells.completer(&shell).with_context(|| format!("{shell} is not known"))?;
        let mut script = vec![];
        writer.write_registration(VARIABLE, "backstay", "backstay", "backstay", &mut script)?;
        print!("{}", String::from_utf8_lossy(&script));
        if self.shell == Shell::Zsh {
            // Loaded by the first Tab, as a file of fpath is, it completes that one, too.
            println!(
                "[ \"$funcstack[1]\" != _backstay ] || _clap_dynamic_completer_backstay \"$@\""
            );
        }
        Ok(())
    }
}

/// Write man pages: an overview, one for each verb, and backstay.toml(5)
#[derive(Args)]
pub struct Man {
    /// Where to write them
    dir: PathBuf,
}

impl Man {
    pub fn run(self, command: Command) -> Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        Ok(man::write_all(command, &self.dir)?)
    }
}
