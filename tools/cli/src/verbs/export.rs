//! `backstay export`: a recovery point as an image.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use backstay_recovery::host::ours::refuse_ours;
use backstay_recovery::image::{self as export, Format, export_to_file, export_to_pipe};
use backstay_recovery::mount::{PointChoice, choose};
use backstay_types::DiskName;
use backstay_vault::retain::Held;
use clap::Args;

use super::progress::Progress;
use super::stopping::until_signal;
use super::target::{InVault, size};
use crate::context::Context;
use crate::error::{Context as _, Result, bail};

/// Make an image of a recovery point: raw or qcow2, to a file or to a pipe
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay export db --point latest --to /srv/db.qcow2
  backstay export db --point 17 --to /srv/db.raw --vault file:///mnt/vault
  backstay export db --point latest --to - | ssh other 'dd of=/dev/vg/db bs=1M'

Needs only the vault. Every block is checked before it is written. An image file gets its name when it is complete. \
If a pipe ends early, the exit code is not 0, and its output so far is a correct beginning of the disk. qcow2 needs \
qemu-utils.")]
pub struct Export {
    /// The disk's name
    name: DiskName,
    /// Which point: a number, latest, or a time (the newest that was cut by then)
    #[arg(long)]
    point: PointChoice,
    /// The image to make, or - for standard output
    #[arg(long, value_name = "FILE|-")]
    to: PathBuf,
    /// raw or qcow2 [default: qcow2 if the file's name ends so, else raw]
    #[arg(long)]
    format: Option<Format>,
    /// Overwrite existing data that is not in use
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    vault: InVault,
}

impl Export {
    pub fn run(self, context: &Context) -> Result<()> {
        let pipe = self.to == Path::new("-");
        let by_name = match self.to.extension().is_some_and(|end| end == "qcow2") {
            true => Format::Qcow2,
            false => Format::Raw,
        };
        let format = self.format.unwrap_or(by_name);
        if pipe && format != Format::Raw {
            bail!("a qcow2 cannot be written to a pipe: its parts are not in order");
        }
        if pipe && std::io::stdout().is_terminal() {
            bail!("standard output is a terminal: pipe it into something, or use --to FILE");
        }
        if !pipe {
            refuse_ours(&context.roots, &self.name, &self.to)
                .with_context(|| format!("disk {}: cannot export", self.name))?;
        }
        let (vault, disk) = self.vault.find(context, &self.name)?;
        vault.check_readable()?;
        let cycle = choose(&vault, disk.disk, self.point)?.cycle;
        let why = format!("export to {}", self.to.display());
        let _held = Held::reading(&vault, disk.disk, cycle..=cycle, &why)?;
        let point = vault.manifest(disk.disk, cycle)?;
        let bar = Progress::new(context);
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let progress = |done, all| bar.show("exporting", done, all);
        let exported = if pipe {
            // Not locked and line-buffered as `stdout()` is: these are not lines.
            let stdout = std::io::stdout();
            let file = nix::unistd::dup(&stdout).map_err(std::io::Error::from);
            let mut out = std::fs::File::from(file.context("standard output")?);
            export_to_pipe(&vault, &point, &mut out, threads, &progress)
        } else {
            until_signal(|stop| {
                export_to_file(&export::Export {
                    vault: &vault,
                    point: &point,
                    to: &self.to,
                    format,
                    replace: self.force,
                    threads,
                    progress: &progress,
                    stop,
                })
            })?
        };
        bar.end();
        exported.with_context(|| match pipe {
            true => format!(
                "what was written is not recovery point {cycle} of disk {}, only its beginning; do not \
                 use it",
                self.name
            ),
            false => format!(
                "recovery point {cycle} of disk {} was not exported to {}",
                self.name,
                self.to.display()
            ),
        })?;
        if pipe {
            return Ok(());
        }
        if context.globals.json {
            return context.print_json(&serde_json::json!({
                "name": self.name, "cycle": cycle, "to": self.to, "format": format.name(),
                "size_bytes": point.size,
            }));
        }
        if !context.globals.quiet {
            println!(
                "{}: recovery point {cycle} exported to {} ({}, {})",
                self.name,
                self.to.display(),
                format.name(),
                size(point.size.0)
            );
        }
        Ok(())
    }
}
