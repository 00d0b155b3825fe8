//! `backstay resume`: what was wrong is mended.

use backstay_engine::record::Record;
use backstay_engine::requests::{Asked, ask};
use backstay_types::DiskName;
use clap::Args;

use crate::context::Context;
use crate::error::{Context as _, Result};

/// Continue with a disk that was stopped, after its cause was fixed
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay resume db
  backstay resume --all        every disk that waits for a person

After a failure that only a person can fix, the sidecar does not retry automatically. backstay status says what \
failed.")]
pub struct Resume {
    /// The disk's name
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    name: Option<DiskName>,
    /// All stopped disks of this host
    #[arg(long)]
    all: bool,
}

impl Resume {
    pub fn run(self, context: &Context) -> Result<()> {
        let names = match self.name {
            Some(name) => {
                context.expect_disk(&name)?;
                vec![name]
            }
            None => waiting(context)?,
        };
        for name in &names {
            resume(context, name).with_context(|| format!("disk {name}"))?;
        }
        if context.globals.json {
            return context.print_json(&serde_json::json!({ "resumed": names }));
        }
        if self.all && !context.globals.quiet {
            match names.is_empty() {
                true => println!("no disk waits for a person"),
                false => names.iter().for_each(|name| println!("{name}: resumed")),
            }
        }
        Ok(())
    }
}

/// The disks whose last failure only a person can mend.
fn waiting(context: &Context) -> Result<Vec<DiskName>> {
    let waits = |name: &DiskName| {
        let failure = Record::load(&context.roots.disk(name).state).failure;
        failure.is_some_and(|failure| failure.person_must_act)
    };
    Ok(context.visible_disks()?.into_iter().filter(waits).collect())
}

fn resume(context: &Context, name: &DiskName) -> Result<()> {
    let state = context.roots.disk(name).state;
    let mut record = Record::load(&state);
    record.resume();
    record.save(&state)?;
    Ok(ask(&context.roots.state, &Asked::Look(name.clone()))?)
}
