//! Hosts that write into an encrypted vault and read nothing of it: which there are, and taking one out.

use backstay_vault::Vault;
use backstay_vault::encrypt::{Keyring, WriterKey};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::super::target::time;
use super::{OfVault, said};
use crate::context::Context;
use crate::error::{Context as _, Result, bail};

/// Sign the records of a vault that an older version made
#[derive(Args)]
#[command(after_help = "\
Example:
  backstay key sign --vault s3://backups/prod

Only vaults of older versions need this. Existing records stay valid without a signature of their own; new records \
need one. Older versions cannot open the vault afterwards: upgrade all hosts first.")]
pub struct Sign {
    #[command(flatten)]
    vault: OfVault,
}

impl Sign {
    pub fn run(self, context: &Context) -> Result<()> {
        let vault = self.vault.open(context)?;
        let changed = vault.sign_documents()?;
        said(context, &json!({ "documents_signed": true, "changed": changed }), || match changed {
            true => format!("{}: terms, names and holds are signed from now on", vault.url()),
            false => format!("{}: terms, names and holds are signed already", vault.url()),
        })
    }
}

/// A writer.
#[derive(Serialize)]
pub struct Writer {
    /// Its public half.
    writer: String,
    label: String,
    granted_unix_ns: Option<u64>,
    removed_unix_ns: Option<u64>,
}

/// All that are known, the oldest first.
pub fn all(vault: &Vault, keyring: &Keyring) -> Result<Vec<Writer>> {
    let removed = |id: &str| keyring.removed.iter().find(|one| one.writer == id);
    let mut all: Vec<Writer> = vault
        .writers()?
        .into_iter()
        .map(|granted| Writer {
            removed_unix_ns: removed(&granted.writer).map(|one| one.removed_unix_ns),
            writer: granted.writer,
            label: granted.label,
            granted_unix_ns: Some(granted.granted_unix_ns),
        })
        .collect();
    for one in &keyring.removed {
        if !all.iter().any(|writer| writer.writer == one.writer) {
            all.push(Writer {
                writer: one.writer.clone(),
                label: one.label.clone(),
                granted_unix_ns: None,
                removed_unix_ns: Some(one.removed_unix_ns),
            });
        }
    }
    Ok(all)
}

pub fn print(all: &[Writer]) {
    if all.is_empty() {
        return;
    }
    println!("\n{:16}  {:20}  {:20}  LABEL", "WRITER", "GRANTED", "REMOVED");
    let at = |at: Option<u64>| at.map_or("-".into(), time);
    for one in all {
        let (granted, removed) = (at(one.granted_unix_ns), at(one.removed_unix_ns));
        let line = format!("{:16}  {granted:20}  {removed:20}  {}", short(&one.writer), one.label);
        println!("{}", line.trim_end());
    }
}

/// What a writer is known by.
pub fn id(key: &WriterKey) -> String {
    let public = key.public().unwrap_or_default();
    public.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Enough of it to tell.
pub fn short(id: &str) -> &str {
    id.get(..16).unwrap_or(id)
}

/// Takes a writer out of a vault.
pub fn remove(context: &Context, vault: &Vault, which: &str) -> Result<()> {
    let keyring = vault.keyring()?.context("the vault is not encrypted: it has no writers")?;
    let known = all(vault, &keyring)?;
    let is_it = |one: &&Writer| {
        one.label == which || (which.len() >= 8 && one.writer.starts_with(&which.to_lowercase()))
    };
    let found: Vec<&Writer> = known.iter().filter(is_it).collect();
    let (id, label) = match found[..] {
        [one] => (one.writer.clone(), one.label.clone()),
        // One that was granted behind a gateway, or before that was noted.
        [] if which.len() == 64 => (which.to_lowercase(), String::new()),
        [] => bail!(
            "{which:?} is no writer that this vault knows of; nothing was changed. backstay key list shows \
             them; one that is not among them can be named by its whole id"
        ),
        _ => bail!(
            "{which:?} may be any of {}; nothing was changed. Name one by its id",
            found.iter().map(|one| short(&one.writer)).collect::<Vec<_>>().join(", ")
        ),
    };
    let public =
        Vault::writer_named(&id).with_context(|| format!("{id:?} is not the id of a writer"))?;
    let revision = vault.remove_writer(&public, &label)?;
    said(context, &json!({ "removed": id, "label": label, "revision": revision }), || {
        format!(
            "writer {} is out: what its key signs from now on counts for nothing, here and at gateways; what it \
             shipped before is read as ever",
            short(&id)
        )
    })
}
