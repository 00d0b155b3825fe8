//! `backstay pki`: a small certificate authority for people who have none.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use backstay_gateway::pki::{
    Authority, AuthorityKind, CertificateRecord, Disks, HolderName, Issued, Passphrase, Request,
    Role,
};
use backstay_host::clock;
use backstay_vault::encrypt::settings::read_passphrase;
use clap::{ArgGroup, Args, Subcommand};
use serde_json::json;
use zeroize::Zeroizing;

use super::target::time;
use crate::context::Context;
use crate::error::{Context as _, Result, bail};

/// Certificates for gateways, their clients, and hosts of groups: make an authority, issue, renew, revoke
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay pki init /root/pki --name 'Backstay of example.org'
  backstay pki issue /root/pki gw1 --server --host gateway.example
  backstay pki issue /root/pki db-host --role source --disk db --disk wal
  backstay pki issue /root/pki dr-host --role recovery --disk '*'
  backstay pki revoke /root/pki db-host

The directory is the authority: anyone who reads ca.key in it, and knows its passphrase, can make any certificate. \
Keep it on a separate machine, away from sources and gateways. The passphrase is asked for, or read from \
--passphrase-file. Certificate and key of a holder are in one file, issued/NAME.pem; `client_cert` and `client_key` \
(or a gateway's) may both name it.")]
pub struct Pki {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make an authority in a new directory
    Init {
        /// The directory
        dir: PathBuf,
        /// The authority's name, as certificates show it
        #[arg(long, default_value = "Backstay")]
        name: String,
        /// How long it is valid
        #[arg(long, default_value_t = 3650)]
        days: u32,
        #[command(flatten)]
        protection: Protection,
    },
    /// Make a certificate with its key
    #[command(
        override_usage = "backstay pki issue [OPTIONS] <--role|--server|--group> <DIR> <NAME>"
    )]
    Issue(Issue),
    /// Make another certificate with a new key and the same rights
    Renew {
        /// The authority's directory
        dir: PathBuf,
        /// The holder's name
        name: HolderName,
        /// How long it is valid
        #[arg(long, default_value_t = 398)]
        days: u32,
        #[command(flatten)]
        opens: Opens,
    },
    /// Revoke certificates and sign a new revocation list (revoked.crl)
    Revoke {
        /// The authority's directory
        dir: PathBuf,
        /// The holder's name (for all its certificates), or the serial number of one
        #[arg(value_name = "NAME|SERIAL")]
        which: String,
        #[command(flatten)]
        opens: Opens,
    },
    /// Set, change or remove the passphrase of the authority's key
    Passphrase {
        /// The authority's directory
        dir: PathBuf,
        #[command(flatten)]
        opens: Opens,
        /// The new passphrase: the first line of a file that nobody else can read [default: it is asked for]
        #[arg(long, value_name = "FILE", conflicts_with = "no_passphrase")]
        new_passphrase_file: Option<PathBuf>,
        /// Use no passphrase: anyone who reads the file has the key
        #[arg(long)]
        no_passphrase: bool,
    },
    /// List the issued certificates
    List {
        /// The authority's directory
        dir: PathBuf,
    },
}

/// What a new authority's key opens with.
#[derive(Args)]
struct Protection {
    /// The key's passphrase: the first line of a file that nobody else can read [default: it is asked for]
    #[arg(long, value_name = "FILE", conflicts_with = "no_passphrase")]
    passphrase_file: Option<PathBuf>,
    /// Use no passphrase: anyone who reads the file has the key
    #[arg(long)]
    no_passphrase: bool,
}

impl Protection {
    fn take(&self) -> Result<Option<Passphrase>> {
        match &self.passphrase_file {
            Some(file) => from_file(file).map(Some),
            None if self.no_passphrase => Ok(None),
            None => ask_twice().map(Some),
        }
    }
}

/// What opens an authority's key.
#[derive(Args)]
struct Opens {
    /// The passphrase of the authority's key, if it has one: the first line of a file that nobody else can read
    /// [default: it is asked for]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Opens {
    /// The authority, ready to sign.
    fn open(&self, dir: &Path) -> Result<Authority> {
        let mut authority = Authority::open(dir)?;
        if authority.is_locked()? {
            let passphrase = match &self.passphrase_file {
                Some(file) => from_file(file)?,
                None => ask("Passphrase of the authority's key: ")?,
            };
            authority.unlock(passphrase)?;
        }
        Ok(authority)
    }
}

fn from_file(file: &Path) -> Result<Passphrase> {
    let text = read_passphrase(file);
    long_enough(text.with_context(|| format!("passphrase file {}", file.display()))?)
}

fn ask(what: &str) -> Result<Passphrase> {
    if !std::io::stdin().is_terminal() {
        bail!(
            "cannot ask for a passphrase without a terminal; use --passphrase-file. Nothing was done"
        );
    }
    long_enough(Zeroizing::new(rpassword::prompt_password(what)?))
}

fn ask_twice() -> Result<Passphrase> {
    if !std::io::stdin().is_terminal() {
        bail!(
            "cannot ask for a passphrase without a terminal; use --passphrase-file, or --no-passphrase if the key \
             is safe without one. Nothing was done"
        );
    }
    let first = Zeroizing::new(rpassword::prompt_password("New passphrase: ")?);
    let again = Zeroizing::new(rpassword::prompt_password("Once more: ")?);
    if first != again {
        bail!("the passphrases differ; nothing was done");
    }
    long_enough(first)
}

fn long_enough(text: Zeroizing<String>) -> Result<Passphrase> {
    Passphrase::new(text).with_context(|| {
        format!(
            "a passphrase has at least {} characters; better, several words. Nothing was done",
            Passphrase::CHARS_MIN
        )
    })
}

#[derive(Args)]
#[command(group = ArgGroup::new("kind").required(true).args(["role", "server", "group"]))]
struct Issue {
    /// The authority's directory
    dir: PathBuf,
    /// The holder's name, for example that of a host
    name: HolderName,
    /// A client of a gateway: source, recovery or maintainer
    #[arg(long, requires = "disk")]
    role: Option<Role>,
    /// A disk it may touch (may be repeated; '*' is all, not for sources)
    #[arg(long, value_name = "DISK", conflicts_with_all = ["server", "group"])]
    disk: Vec<String>,
    /// A gateway
    #[arg(long)]
    server: bool,
    /// A host of a consistency group
    #[arg(long)]
    group: bool,
    /// A DNS name of the server or group host (may be repeated)
    #[arg(long, value_name = "NAME", conflicts_with = "role")]
    host: Vec<String>,
    /// An IP address of the server or group host (may be repeated)
    #[arg(long, value_name = "ADDRESS", conflicts_with = "role")]
    ip: Vec<std::net::IpAddr>,
    /// How long it is valid
    #[arg(long, default_value_t = 398)]
    days: u32,
    #[command(flatten)]
    opens: Opens,
}

impl Pki {
    pub fn run(self, context: &Context) -> Result<()> {
        match self.verb {
            Verb::Init { dir, name, days, protection } => {
                init(context, &dir, &name, days, protection.take()?)
            }
            Verb::Issue(issue) => issue.run(context),
            Verb::Renew { dir, name, days, opens } => {
                let mut authority = opens.open(&dir)?;
                let issued = authority.renew(&name, days)?;
                tell(context, &issued)
            }
            Verb::Revoke { dir, which, opens } => revoke(context, opens.open(&dir)?, &which),
            Verb::Passphrase { dir, opens, new_passphrase_file, no_passphrase } => {
                let mut authority = opens.open(&dir)?;
                let new = Protection { passphrase_file: new_passphrase_file, no_passphrase };
                authority.change_passphrase(new.take()?)?;
                if !context.globals.quiet && !context.globals.json {
                    println!(
                        "The key in {} opens {} now. Older copies of the key still open as they did.",
                        dir.display(),
                        if no_passphrase {
                            "without a passphrase"
                        } else {
                            "with the new passphrase"
                        }
                    );
                }
                Ok(())
            }
            Verb::List { dir } => list(context, &Authority::open(&dir)?),
        }
    }
}

impl Issue {
    fn run(self, context: &Context) -> Result<()> {
        let hosts = self.host.into_iter().chain(self.ip.iter().map(ToString::to_string)).collect();
        let kind = match self.role {
            Some(role) => AuthorityKind::Client { role, disks: self.disk },
            None if self.server => AuthorityKind::Server { hosts },
            None => AuthorityKind::Group { hosts },
        };
        let mut authority = self.opens.open(&self.dir)?;
        let issued = authority.issue(&Request { name: self.name, kind, days: self.days })?;
        tell(context, &issued)
    }
}

fn init(
    context: &Context,
    dir: &Path,
    name: &str,
    days: u32,
    passphrase: Option<Passphrase>,
) -> Result<()> {
    let authority = Authority::init(dir, name, days, passphrase)?;
    let (ca, crl) = (authority.certificate_file(), authority.revocations_file());
    if context.globals.json {
        return context.print_json(&json!({ "ca": ca, "crl": crl }));
    }
    println!("{name:?} is in {}. Its key never leaves that directory.", dir.display());
    println!("Give to everybody:  {}", ca.display());
    println!("Give to gateways:   {}", crl.display());
    Ok(())
}

fn tell(context: &Context, issued: &Issued) -> Result<()> {
    if context.globals.json {
        return context.print_json(&json!({ "file": issued.file, "certificate": issued.record }));
    }
    let record = &issued.record;
    println!("{}: {} (serial {})", record.name, rights(record), record.serial);
    println!("Valid until {}.", at(record.until_unix_s));
    println!("Certificate and key: {}", issued.file.display());
    println!("Move it to its holder by a way nobody else reads, and keep no copy.");
    Ok(())
}

fn revoke(context: &Context, mut authority: Authority, which: &str) -> Result<()> {
    let revoked = authority.revoke(which)?;
    let crl = authority.revocations_file();
    if context.globals.json {
        return context.print_json(&json!({ "crl": crl, "revoked": revoked }));
    }
    for record in revoked {
        println!("Revoked: {} {} ({})", record.name, record.serial, rights(&record));
    }
    println!(
        "Copy {} to every gateway now: until then they still accept the certificate.",
        crl.display()
    );
    Ok(())
}

fn list(context: &Context, authority: &Authority) -> Result<()> {
    let certificates = &authority.index().certificates;
    if context.globals.json {
        return context.print_json(certificates);
    }
    println!("{:16}  {:32}  {:8}  {:28}  RIGHTS", "NAME", "SERIAL", "STATE", "UNTIL");
    let now = clock::now_unix_ns() / 1_000_000_000;
    for record in certificates {
        let state = match record.revoked_unix_s {
            Some(_) => "revoked",
            None if record.is_good_at(now as i64) => "good",
            None => "over",
        };
        let (name, serial) = (record.name.as_str(), record.serial.to_string());
        let until = at(record.until_unix_s);
        println!("{name:16}  {serial:32}  {state:8}  {until:28}  {}", rights(record));
    }
    Ok(())
}

fn rights(record: &CertificateRecord) -> String {
    match (record.role, &record.disks) {
        (Some(role), Some(Disks::All)) => format!("{role} of all disks"),
        (Some(role), Some(Disks::Named(names))) => {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            format!("{role} of {}", names.join(", "))
        }
        _ if record.client => format!("group host {}", record.hosts.join(", ")),
        _ => format!("server {}", record.hosts.join(", ")),
    }
}

fn at(unix_s: i64) -> String {
    time(u64::try_from(unix_s).unwrap_or(0).saturating_mul(1_000_000_000))
}
