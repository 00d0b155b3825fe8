//! `backstay vault ls` and `forget`: which disks are in a vault, and the end of one.

use std::io::{IsTerminal, Write};

use backstay_types::{ByteLen, Classified, CycleNo, DiskId, DiskName};
use backstay_vault::retain::Time;
use backstay_vault::{DamagedDisk, DiskRecord, Vault, VaultError};
use clap::Args;
use console::Style;
use serde::Serialize;

use crate::context::Context;
use crate::error::{Result, damage, refused};
use crate::table::{Cell, Column, lines};
use crate::verbs::target::{size, time};
use crate::verbs::unprotect::behind_gateway;

/// List the disks of a vault: sizes, newest points, and the hosts that ship them
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay vault ls
  backstay vault ls --vault s3://backups/prod
  backstay --json vault ls | jq '.[] | select(.points == 0)'

A disk whose documents cannot be read is listed with the error. All verbs also accept a disk's identity instead of \
its name.")]
pub struct Ls {
    /// The vault's URL [default: the configuration's]
    #[arg(long, value_name = "URL")]
    vault: Option<String>,
}

/// Delete all recovery points of a disk that no host has any more
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay vault forget old-db --vault s3://backups/prod
  backstay vault forget old-db --yes

Use this command for the disk of a host that is gone. A disk of this host is refused: use backstay unprotect NAME \
--delete-points. If the source was behind a gateway, pass the URL of the gateway's store. Deleted points cannot be \
brought back, except in an S3 bucket that keeps versions (backstay vault undelete).")]
pub struct Forget {
    /// The disk's name, or its identity as backstay vault ls shows it
    name: DiskName,
    /// The vault's URL [default: the configuration's]
    #[arg(long, value_name = "URL")]
    vault: Option<String>,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    /// Delete points even if pins or other holds keep them
    #[arg(long)]
    even_if_held: bool,
}

/// A disk of a vault.
#[derive(Serialize)]
struct Listed {
    /// None if that cannot be read.
    name: Option<DiskName>,
    /// None if that cannot be read.
    disk: Option<DiskId>,
    /// Points that can be restored.
    points: usize,
    /// The newest of them.
    newest: Option<Newest>,
    /// Bytes of its segments.
    stored_bytes: u64,
    /// Who wrote last: the writer of its newest term.
    writer: Option<String>,
    /// What of it cannot be read.
    damaged: Option<String>,
}

/// The newest point of a disk.
#[derive(Serialize)]
struct Newest {
    cycle: CycleNo,
    cut_unix_ns: u64,
    size_bytes: ByteLen,
}

impl Listed {
    fn of(vault: &Vault, record: DiskRecord) -> Result<Self, VaultError> {
        let disk = record.disk;
        let mut listed = Self {
            name: Some(record.name),
            disk: Some(disk),
            points: 0,
            newest: None,
            stored_bytes: vault.stored_bytes(disk)?,
            writer: None,
            damaged: None,
        };
        match listed.read(vault, disk) {
            Err(e) if e.is_damage() => listed.damaged = Some(e.to_string()),
            read => read?,
        }
        Ok(listed)
    }

    /// One of whose documents is damaged; what else there is of it is counted as far as that can be read.
    fn damaged(vault: &Vault, found: DamagedDisk) -> Self {
        let DamagedDisk { name, disk, why } = found;
        Self {
            name,
            disk,
            points: disk.and_then(|disk| vault.points(disk).ok()).map_or(0, |points| points.len()),
            newest: None,
            stored_bytes: disk.and_then(|disk| vault.stored_bytes(disk).ok()).unwrap_or_default(),
            writer: None,
            damaged: Some(match why.damaged_document() {
                Some(_) => format!("{why}. Bring this object back from a copy of the vault"),
                None => why.to_string(),
            }),
        }
    }

    fn read(&mut self, vault: &Vault, disk: DiskId) -> Result<(), VaultError> {
        let points = vault.points(disk)?;
        self.points = points.len();
        self.writer = vault.newest_term(disk)?.map(|term| term.writer);
        if let Some(&cycle) = points.last() {
            let point = vault.manifest(disk, cycle)?;
            let (cut_unix_ns, size_bytes) = (point.cut_unix_ns, point.size);
            self.newest = Some(Newest { cycle, cut_unix_ns, size_bytes });
        }
        Ok(())
    }

    fn row(&self) -> Vec<Cell> {
        let newest = self.newest.as_ref();
        let none = || String::from("-");
        let writer = match &self.damaged {
            Some(damaged) => Cell { text: damaged.clone(), style: Style::new().red() },
            None => self.writer.clone().unwrap_or_else(none).into(),
        };
        vec![
            self.name.as_ref().map_or_else(none, DiskName::to_string).into(),
            newest.map_or_else(none, |newest| size(newest.size_bytes.0)).into(),
            self.points.to_string().into(),
            newest.map_or_else(none, |newest| time(newest.cut_unix_ns)).into(),
            size(self.stored_bytes).into(),
            self.disk.as_ref().map_or_else(none, DiskId::to_string).into(),
            writer,
        ]
    }
}

impl Ls {
    pub fn run(self, context: &Context) -> Result<()> {
        let vault =
            context.config.vaults.open(self.vault.as_deref().unwrap_or(&context.config.vault))?;
        let (disks, damaged) = vault.list_disks()?;
        let mut disks = disks
            .into_iter()
            .map(|record| Listed::of(&vault, record))
            .collect::<Result<Vec<_>, _>>()?;
        for found in damaged {
            // The document of a name may be damaged although the disk's own record is whole.
            let of = |listed: &Listed| match found.disk {
                Some(disk) => listed.disk == Some(disk),
                None => found.name.is_some() && listed.name == found.name,
            };
            let at = disks.iter().position(of);
            let damaged = Listed::damaged(&vault, found);
            match at {
                Some(at) => disks[at].damaged = damaged.damaged,
                None => disks.push(damaged),
            }
        }
        Self::print(context, &disks)?;
        match disks.iter().filter(|disk| disk.damaged.is_some()).count() {
            0 => Ok(()),
            n => Err(damage(format!("{}: {n} of {} disks are damaged", vault.url(), disks.len()))),
        }
    }

    fn print(context: &Context, disks: &[Listed]) -> Result<()> {
        if context.globals.json {
            return context.print_json(&disks);
        }
        let column = |title, right| Column { title, right, least: None };
        let columns = [
            column("NAME", false),
            column("SIZE", true),
            column("POINTS", true),
            column("NEWEST", false),
            column("STORED", true),
            column("DISK", false),
            column("WRITER", false),
        ];
        let rows: Vec<_> = disks.iter().map(Listed::row).collect();
        lines(&columns, &rows, usize::MAX).iter().for_each(|line| println!("{line}"));
        Ok(())
    }
}

impl Forget {
    pub fn run(self, context: &Context) -> Result<()> {
        let name = &self.name;
        let url = self.vault.as_deref().unwrap_or(&context.config.vault);
        if url.starts_with("https://") {
            return Err(behind_gateway(name, url));
        }
        let vault = context.config.vaults.open(url)?;
        let disk = vault.disk_named(name)?;
        let url = vault.url();
        if context.has_disk(name)? || context.has_disk(&disk.name)? {
            return unchanged(&format!(
                "disk {name} is on this host; backstay unprotect {name} --delete-points ends it"
            ));
        }
        let held: Vec<String> = Time::peek(&context.roots.state)
            .live(disk.disk, vault.holds(disk.disk)?, true)
            .into_iter()
            .map(|hold| format!("{} ({})", hold.name, hold.holder))
            .collect();
        if !held.is_empty() && !self.even_if_held {
            return unchanged(&format!(
                "disk {name} in {url}: its points are still held: {}. See backstay holds {name}; unpin \
                 them, or pass --even-if-held",
                held.join(", ")
            ));
        }
        let id = disk.disk;
        let listed = Listed::of(&vault, disk)?;
        if !self.yes {
            self.ask(context, &listed, url)?;
        }
        vault.remove_disk(id)?;
        if context.globals.json {
            return context.print_json(&serde_json::json!({
                "name": name, "disk": id, "points": listed.points,
                "stored_bytes": listed.stored_bytes,
            }));
        }
        if !context.globals.quiet {
            println!(
                "{name}: {} recovery points ({}) were deleted from {url}",
                listed.points,
                size(listed.stored_bytes)
            );
        }
        Ok(())
    }

    fn ask(&self, context: &Context, listed: &Listed, url: &str) -> Result<()> {
        if context.globals.json || !std::io::stdin().is_terminal() {
            return unchanged(&format!(
                "disk {} in {url}: pass --yes to delete it for good",
                self.name
            ));
        }
        let newest = listed.newest.as_ref().map_or_else(String::new, |newest| {
            format!(", the newest of {}", time(newest.cut_unix_ns))
        });
        eprint!(
            "Delete all {} recovery points of {} ({}{newest}) from {url}? Type its name: ",
            listed.points,
            self.name,
            size(listed.stored_bytes)
        );
        std::io::stderr().flush()?;
        let mut said = String::new();
        std::io::stdin().read_line(&mut said)?;
        match said.trim() == self.name.as_str() {
            true => Ok(()),
            false => unchanged("not confirmed"),
        }
    }
}

fn unchanged(why: &str) -> Result<()> {
    Err(refused(format!("{why}. Nothing was changed")))
}
