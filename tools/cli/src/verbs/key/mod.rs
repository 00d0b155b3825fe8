//! `backstay key`: encrypted vaults: making one, who can open it, whether that still works.

mod check;
mod secret;
mod writers;

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use backstay_vault::Vault;
use backstay_vault::encrypt::Keyring;
use backstay_vault::format::document::encode;
use clap::{Args, Subcommand};
use serde_json::json;

use super::target::time;
use super::vault::InPlace;
use crate::context::Context;
use crate::error::{Context as _, Result};
use secret::NewSecret;

/// Encrypted vaults: make one, manage its keys, check that they open it
#[derive(Args)]
pub struct Key {
    #[command(subcommand)]
    what: Action,
}

#[derive(Subcommand)]
enum Action {
    Init(Init),
    Add(Add),
    Remove(Remove),
    List(List),
    Rotate(Rotate),
    Check(check::Check),
    Grant(Grant),
    Sign(writers::Sign),
}

/// Make a new encrypted vault, which its store cannot read
#[derive(Args)]
#[command(override_usage = "backstay key init [OPTIONS] <--key-file|--passphrase|--recipient>")]
#[command(after_help = "\
Examples:
  backstay key init --vault s3://backups --key-file /etc/backstay/vault.key
  backstay key init --vault file:///mnt/backup/vault --passphrase
  backstay key init --vault az://backups --recipient age1...

A missing key file is created. Put the printed lines into [encryption] of the configuration. Keep a copy of the key \
away from this host: without a key nobody can read the vault. An existing vault cannot be encrypted later.")]
struct Init {
    #[command(flatten)]
    vault: OfVault,
    #[command(flatten)]
    secret: NewSecret,
    #[command(flatten)]
    place: InPlace,
}

/// Add a way to open the vault
#[derive(Args)]
#[command(override_usage = "backstay key add [OPTIONS] <--key-file|--passphrase|--recipient>")]
#[command(after_help = "\
Examples:
  backstay key add --vault s3://backups --passphrase --label 'office safe'
  backstay key add --vault s3://backups --recipient age1... --label team

Needs a key that already opens the vault: [encryption] in the configuration, BACKSTAY_KEY_FILE, \
BACKSTAY_IDENTITY_FILE, BACKSTAY_PASSPHRASE, or a passphrase that is asked for.")]
struct Add {
    #[command(flatten)]
    vault: OfVault,
    #[command(flatten)]
    secret: NewSecret,
}

/// Remove a way to open the vault, or a host that writes into it
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay key remove 2 --vault s3://backups/prod
  backstay key rotate --vault s3://backups/prod
  backstay key remove --writer db1           a compromised host

Anyone who had that secret can still read the data that is in the store now. Run key rotate afterwards, so that they \
cannot read new data.

After --writer, new records with that key's signature are refused; data that it shipped before stays readable. \
Nothing is encrypted again. If there is a gateway, first revoke the host's certificate (backstay pki revoke).")]
struct Remove {
    /// The slot, as backstay key list shows it
    #[arg(required_unless_present = "writer")]
    slot: Option<u32>,
    /// A writer, by its label or the beginning of its id, as backstay key list shows them
    #[arg(long, value_name = "LABEL|ID", conflicts_with = "slot")]
    writer: Option<String>,
    #[command(flatten)]
    vault: OfVault,
}

/// List the ways to open the vault
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay key list --vault s3://backups/prod
  backstay key list --json

Needs no key. PROVED is when backstay key check last opened the slot.")]
struct List {
    #[command(flatten)]
    vault: OfVault,
}

/// Encrypt with a new key from now on
#[derive(Args)]
#[command(after_help = "\
Example:
  backstay key rotate --vault s3://backups/prod

All slots stay, and old points stay readable. Running sidecars that can open the vault encrypt with the new key from \
their next cycle on; hosts with a writer's key need a new one for that (backstay key grant).")]
struct Rotate {
    #[command(flatten)]
    vault: OfVault,
}

/// Make a key for a host that may write but not read
#[derive(Args)]
#[command(after_help = "\
Example:
  backstay key grant --vault s3://backups/prod --to db1.writer --label db1

Copy the file to the host over a secure channel, and set writer_file in [encryption] there to its path. That host \
can ship and commit points. It cannot read segments: no comparing resync, no merging, no restore.")]
struct Grant {
    #[command(flatten)]
    vault: OfVault,
    /// The file to make
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Who it is for
    #[arg(long, default_value = "")]
    label: String,
}

/// Which vault.
#[derive(Args)]
struct OfVault {
    /// The vault's URL [default: the configuration's]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
}

impl OfVault {
    fn url<'a>(&'a self, context: &'a Context) -> &'a str {
        self.vault.as_deref().unwrap_or(&context.config.vault)
    }

    fn open(&self, context: &Context) -> Result<Vault> {
        Ok(context.config.vaults.open(self.url(context))?)
    }
}

impl Key {
    pub fn run(self, context: &Context) -> Result<()> {
        match self.what {
            Action::Init(verb) => verb.run(context),
            Action::Add(verb) => verb.run(context),
            Action::Remove(verb) => verb.run(context),
            Action::List(verb) => verb.run(context),
            Action::Rotate(verb) => verb.run(context),
            Action::Check(verb) => verb.run(context),
            Action::Grant(verb) => verb.run(context),
            Action::Sign(verb) => verb.run(context),
        }
    }
}

impl Init {
    fn run(self, context: &Context) -> Result<()> {
        let url = self.vault.url(context);
        self.place.prepare(context, url)?;
        let (slot, setting) = self.secret.take()?;
        let (_, keyring) =
            context.config.vaults.create_encrypted(url, self.secret.label(), &slot)?;
        if context.globals.json {
            return context.print_json(&json!({
                "vault": url, "id": keyring.vault, "slot": 1, "owner": keyring.owner,
            }));
        }
        println!("{url} is a new, encrypted vault. In the configuration of hosts that read it:\n");
        println!("vault = {url:?}\n\n[encryption]");
        if let Some((name, path)) = setting {
            println!("{name} = {:?}", path.display().to_string());
        }
        println!("owner = {:?}", keyring.owner);
        if !context.globals.quiet {
            eprintln!(
                "\nThere is one way to open it. Keep a copy of it away from this host, or add another \
                 (backstay key add): without one, nobody can read the vault."
            );
        }
        Ok(())
    }
}

impl Add {
    fn run(self, context: &Context) -> Result<()> {
        let vault = self.vault.open(context)?;
        let (keyring, opened) = vault.open_keyring()?;
        let (new, _) = self.secret.take()?;
        let (keyring, slot) = keyring.with_slot(&opened, self.secret.label(), &new)?;
        put(&vault, &keyring)?;
        said(context, &json!({ "slot": slot }), || format!("slot {slot} opens {} now", vault.url()))
    }
}

impl Remove {
    fn run(self, context: &Context) -> Result<()> {
        let vault = self.vault.open(context)?;
        let Some(slot) = self.slot else {
            return writers::remove(context, &vault, self.writer.as_deref().unwrap_or_default());
        };
        let (keyring, opened) = vault.open_keyring()?;
        put(&vault, &keyring.without_slot(&opened, slot)?)?;
        said(context, &json!({ "removed": slot }), || {
            format!(
                "slot {slot} is gone. Anyone who had its secret may have kept what it opened: run backstay \
                 key rotate, so that what is shipped from now on is not readable to them"
            )
        })
    }
}

impl Rotate {
    fn run(self, context: &Context) -> Result<()> {
        let vault = self.vault.open(context)?;
        let (keyring, opened) = vault.open_keyring()?;
        let (keyring, _) = keyring.rotated(opened)?;
        put(&vault, &keyring)?;
        let generation = keyring.generations.len();
        said(context, &json!({ "generation": generation }), || {
            format!(
                "generation {generation} encrypts what is shipped from now on; all {} slots open it. \
                 Hosts with a writer's key seal to the one they were given until they get a new one",
                keyring.slots.len()
            )
        })
    }
}

impl Grant {
    fn run(self, context: &Context) -> Result<()> {
        let vault = self.vault.open(context)?;
        let key = vault.new_writer(&self.label)?;
        let path = &self.to;
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(path);
        let mut file = file.with_context(|| format!("{}", path.display()))?;
        file.write_all(&zeroize::Zeroizing::new(encode(&key)?))?;
        file.sync_all()?;
        let writer = writers::id(&key);
        let value = json!({ "file": path, "generation": key.generation, "writer": writer });
        said(context, &value, || {
            format!(
                "{}: writer {}: a host that has it writes into {} and reads nothing of it. There it is writer_file \
                 in [encryption]; remove it here",
                path.display(),
                writers::short(&writer),
                vault.url()
            )
        })
    }
}

impl List {
    fn run(self, context: &Context) -> Result<()> {
        let vault = self.vault.open(context)?;
        let Some(keyring) = vault.keyring()? else {
            return said(context, &json!({ "encrypted": false }), || {
                format!("{} is not encrypted", vault.url())
            });
        };
        let proofs = keyring.slots.iter().map(|slot| vault.last_proof(slot.slot));
        let proofs = proofs.collect::<Result<Vec<_>, _>>()?;
        if context.globals.json {
            let slots = keyring.slots.iter().zip(&proofs).map(|(slot, proof)| {
                json!({
                    "slot": slot.slot, "kind": slot.kind, "label": slot.label,
                    "since_unix_ns": slot.since_unix_ns, "recipient": slot.recipient,
                    "proved_unix_ns": proof.as_ref().map(|proof| proof.proved_unix_ns),
                    "proved_by": proof.as_ref().map(|proof| &proof.by),
                })
            });
            return context.print_json(&json!({
                "encrypted": true, "vault": keyring.vault, "revision": keyring.revision,
                "owner": keyring.owner, "generation": keyring.generations.len(),
                "slots": slots.collect::<Vec<_>>(),
                "documents_signed": keyring.documents_signed,
                "writers": writers::all(&vault, &keyring)?,
            }));
        }
        println!("owner       {}", keyring.owner);
        println!("generation  {}", keyring.generations.len());
        println!("\n{:>4}  {:13}  {:20}  {:20}  LABEL", "SLOT", "KIND", "SINCE", "PROVED");
        for (slot, proof) in keyring.slots.iter().zip(proofs) {
            let proved = proof.map_or("never".into(), |proof| time(proof.proved_unix_ns));
            let line = format!(
                "{:>4}  {:13}  {:20}  {proved:20}  {}",
                slot.slot,
                slot.kind.to_string(),
                time(slot.since_unix_ns),
                if slot.label.is_empty() {
                    slot.recipient.as_deref().unwrap_or("")
                } else {
                    &slot.label
                }
            );
            println!("{}", line.trim_end());
        }
        writers::print(&writers::all(&vault, &keyring)?);
        if !keyring.documents_signed {
            println!(
                "\nTerms, names and holds of this vault are not signed: it was made before they could be. \
                 backstay key sign has them be."
            );
        }
        Ok(())
    }
}

fn put(vault: &Vault, keyring: &Keyring) -> Result<()> {
    vault.put_keyring(keyring).context(
        "the keyring was not changed: somebody else may have changed it at the same time; look with \
         backstay key list and try again",
    )
}

fn said(context: &Context, value: &serde_json::Value, text: impl FnOnce() -> String) -> Result<()> {
    if context.globals.json {
        return context.print_json(value);
    }
    if !context.globals.quiet {
        println!("{}", text());
    }
    Ok(())
}
