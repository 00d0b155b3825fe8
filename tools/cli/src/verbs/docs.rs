//! Shell completions and man pages, made of the command's own description.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Print completions for a shell
#[derive(Args)]
pub struct Completions {
    /// bash, zsh, fish, elvish or powershell
    shell: Shell,
}

impl Completions {
    pub fn run<C: CommandFactory>(self) -> anyhow::Result<()> {
        let mut script = vec![];
        clap_complete::generate(self.shell, &mut C::command(), "backstay", &mut script);
        print!("{}", String::from_utf8_lossy(&script));
        Ok(())
    }
}

/// Write man pages, one for each verb
#[derive(Args)]
pub struct Man {
    /// Where to write them
    dir: PathBuf,
}

impl Man {
    pub fn run<C: CommandFactory>(self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        Ok(clap_mangen::generate_to(C::command(), &self.dir)?)
    }
}
