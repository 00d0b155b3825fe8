//! What a new slot is opened with: asked for, read from files, never an argument.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use backstay_vault::encrypt::settings::{read_key_file, read_passphrase};
use backstay_vault::encrypt::unlock::PASSPHRASE_CHARS_MIN;
use backstay_vault::encrypt::{Hardness, NewSlot};
use clap::Args;
use zeroize::Zeroizing;

use crate::error::{Context as _, Result, bail};

/// What a new slot is opened with.
#[derive(Args)]
pub struct NewSecret {
    #[command(flatten)]
    which: Which,
    /// A label for people
    #[arg(long, default_value = "")]
    label: String,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// A passphrase (asked for twice)
    #[arg(long)]
    passphrase: bool,
    /// A passphrase: the first line of a file that nobody else can read
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// A file of random bytes; created if it does not exist
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// An age recipient: anyone who has its identity opens the vault
    #[arg(long, value_name = "age1...")]
    recipient: Option<String>,
}

/// The name and value of a setting that opens it.
pub type Setting = Option<(&'static str, PathBuf)>;

impl NewSecret {
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The secret, and the setting that opens it.
    pub fn take(&self) -> Result<(NewSlot, Setting)> {
        let Which { passphrase_file, key_file, recipient, .. } = &self.which;
        if let Some(path) = key_file {
            let content =
                key_content(path).with_context(|| format!("key file {}", path.display()))?;
            return Ok((NewSlot::KeyFile(content), Some(("key_file", absolute(path)))));
        }
        if let Some(recipient) = recipient {
            return Ok((NewSlot::Recipient(recipient.clone()), None));
        }
        let (text, setting) = match passphrase_file {
            Some(path) => {
                let text = read_passphrase(path);
                let text = text.with_context(|| format!("passphrase file {}", path.display()))?;
                (text, Some(("passphrase_file", absolute(path))))
            }
            None => (ask_twice()?, None),
        };
        if text.chars().count() < PASSPHRASE_CHARS_MIN {
            bail!(
                "a passphrase has at least {PASSPHRASE_CHARS_MIN} characters; better, several words"
            );
        }
        Ok((NewSlot::Passphrase(text, Hardness::default()), setting))
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

fn key_content(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let mut options = std::fs::OpenOptions::new();
    match options.write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            let content = backstay_vault::encrypt::unlock::new_key_file();
            let content = content.context("the system has no random bytes to give")?;
            file.write_all(&content)?;
            file.sync_all()?;
            let folder =
                path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            std::fs::File::open(folder)?.sync_all()?;
            Ok(content)
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(read_key_file(path)?),
        Err(e) => Err(e.into()),
    }
}

fn ask_twice() -> Result<Zeroizing<String>> {
    if !std::io::stdin().is_terminal() {
        bail!(
            "cannot ask for a passphrase without a terminal; use --passphrase-file or --key-file"
        );
    }
    let first = Zeroizing::new(rpassword::prompt_password("New passphrase: ")?);
    let again = Zeroizing::new(rpassword::prompt_password("Once more: ")?);
    if first != again {
        bail!("the passphrases differ; nothing was changed");
    }
    Ok(first)
}
