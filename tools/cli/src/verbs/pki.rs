//! `backstay pki`: a small certificate authority for people who have none.

use std::path::{Path, PathBuf};

use backstay_gateway::pki::{
    Authority, CertificateRecord, Disks, HolderName, Issued, Kind, Request, Role,
};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::json;

use super::target::time;
use crate::context::Context;

/// Certificates for gateways, their clients, and hosts of groups: make an authority, issue, renew, revoke
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay pki init /root/pki --name 'Backstay of example.org'
  backstay pki issue /root/pki gw1 --server --host gateway.example --ip 10.0.0.1
  backstay pki issue /root/pki db-host --role source --disk db --disk wal
  backstay pki issue /root/pki dr-host --role recovery --disk '*'
  backstay pki revoke /root/pki db-host

The directory is the authority: whoever reads ca.key in it can make any certificate. Keep it on a machine of
its own, away from sources and gateways. Certificate and key of a holder are in one file,
issued/NAME.pem; `client_cert` and `client_key` (or a gateway's) may both name it.")]
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
    },
    /// Make a certificate with its key
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
    },
    /// Revoke certificates and sign a new list of revoked ones (revoked.crl)
    Revoke {
        /// The authority's directory
        dir: PathBuf,
        /// The holder's name (all its certificates), or one's serial number
        #[arg(value_name = "NAME|SERIAL")]
        which: String,
    },
    /// List what was issued
    List {
        /// The authority's directory
        dir: PathBuf,
    },
}

#[derive(Args)]
#[command(group = ArgGroup::new("kind").required(true).args(["role", "server", "group"]))]
struct Issue {
    /// The authority's directory
    dir: PathBuf,
    /// The holder's name: of a host, say
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
    /// A name the server or group host is reached by (may be repeated)
    #[arg(long, value_name = "NAME", conflicts_with = "role")]
    host: Vec<String>,
    /// An address it is reached by (may be repeated)
    #[arg(long, value_name = "ADDRESS", conflicts_with = "role")]
    ip: Vec<std::net::IpAddr>,
    /// How long it is valid
    #[arg(long, default_value_t = 398)]
    days: u32,
}

impl Pki {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        match self.verb {
            Verb::Init { dir, name, days } => init(context, &dir, &name, days),
            Verb::Issue(issue) => issue.run(context),
            Verb::Renew { dir, name, days } => {
                let mut authority = Authority::open(&dir)?;
                let issued = authority.renew(&name, days)?;
                tell(context, &issued)
            }
            Verb::Revoke { dir, which } => revoke(context, &dir, &which),
            Verb::List { dir } => list(context, &Authority::open(&dir)?),
        }
    }
}

impl Issue {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        let hosts = self.host.into_iter().chain(self.ip.iter().map(ToString::to_string)).collect();
        let kind = match self.role {
            Some(role) => Kind::Client { role, disks: self.disk },
            None if self.server => Kind::Server { hosts },
            None => Kind::Group { hosts },
        };
        let mut authority = Authority::open(&self.dir)?;
        let issued = authority.issue(&Request { name: self.name, kind, days: self.days })?;
        tell(context, &issued)
    }
}

fn init(context: &Context, dir: &Path, name: &str, days: u32) -> anyhow::Result<()> {
    let authority = Authority::init(dir, name, days)?;
    let (ca, crl) = (authority.certificate_file(), authority.revocations_file());
    if context.globals.json {
        return context.print_json(&json!({ "ca": ca, "crl": crl }));
    }
    println!("{name:?} is in {}. Its key never leaves that directory.", dir.display());
    println!("Give to everybody:  {}", ca.display());
    println!("Give to gateways:   {}", crl.display());
    Ok(())
}

fn tell(context: &Context, issued: &Issued) -> anyhow::Result<()> {
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

fn revoke(context: &Context, dir: &Path, which: &str) -> anyhow::Result<()> {
    let mut authority = Authority::open(dir)?;
    let revoked = authority.revoke(which)?;
    let crl = authority.revocations_file();
    if context.globals.json {
        return context.print_json(&json!({ "crl": crl, "revoked": revoked }));
    }
    for record in revoked {
        println!("Revoked: {} {} ({})", record.name, record.serial, rights(&record));
    }
    println!("Copy {} to every gateway now: until then they do not know.", crl.display());
    Ok(())
}

fn list(context: &Context, authority: &Authority) -> anyhow::Result<()> {
    let certificates = &authority.index().certificates;
    if context.globals.json {
        return context.print_json(certificates);
    }
    println!("{:16}  {:32}  {:8}  {:28}  RIGHTS", "NAME", "SERIAL", "STATE", "UNTIL");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
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
