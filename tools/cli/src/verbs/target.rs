//! Which disk of which vault a verb means, and which point.

use std::time::SystemTime;

use backstay_engine::rollback_guard;
use backstay_host::clock;
use backstay_recovery::failover::stopped;
use backstay_recovery::mount::{PointChoice, choose};
use backstay_types::{CycleNo, DiskId, DiskName};
use backstay_vault::{DiskRecord, Vault, VaultError};
use clap::Args;

use crate::context::Context;
use crate::error::{Context as _, Result, bail};

/// Flags of verbs that read a vault.
#[derive(Args)]
pub struct InVault {
    /// The vault's URL [default: the disk's, from the configuration]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    pub vault: Option<String>,
}

impl InVault {
    /// The vault's URL.
    pub fn url<'a>(&'a self, context: &'a Context, name: &DiskName) -> &'a str {
        self.vault.as_deref().unwrap_or_else(|| context.config.vault_of(name))
    }

    /// Says what a person must know of the disk in the vault; what cannot be seen fails later.
    pub fn note(&self, context: &Context, name: &DiskName) {
        let _ = self.find(context, name);
    }

    /// Opens the vault and finds the disk. The disk's driver need not run: the name is enough.
    pub fn find(&self, context: &Context, name: &DiskName) -> Result<(Vault, DiskRecord)> {
        self.tell(context, name, self.open(context, name)?)
    }

    /// Opens the vault and finds the disk.
    pub fn open(
        &self,
        context: &Context,
        name: &DiskName,
    ) -> Result<(Vault, DiskRecord), VaultError> {
        let vault = context.config.vaults.open(self.url(context, name))?;
        let disk = vault.disk_named(name)?;
        Ok((vault, disk))
    }

    /// Says what a person must know of what was opened.
    pub fn tell(
        &self,
        context: &Context,
        name: &DiskName,
        (vault, disk): (Vault, DiskRecord),
    ) -> Result<(Vault, DiskRecord)> {
        let url = self.url(context, name);
        if let Some(here) = another(context, name, &disk) {
            eprintln!(
                "backstay: {name}: disk {name} in {url} is not disk {name} of this host ({here}), but another one of that \
                 name ({}). What follows is of the one in the vault",
                disk.disk
            );
        }
        if let Some(seen) = rollback_guard::taken_away(&context.roots.state, &vault, disk.disk)? {
            eprintln!(
                "backstay: {name}: this host has seen recovery point {seen} in {url}, and it ends before that now: newer points were \
                 taken away, or an older state of the vault is shown. What follows is of what is there"
            );
        }
        Ok((vault, disk))
    }
}

/// The identity of this host's disk of a name, if it is another one than the vault's and has nothing to do with it.
fn another(context: &Context, name: &DiskName, there: &DiskRecord) -> Option<DiskId> {
    let here = stopped::superblock(&context.roots.disk(name))?;
    let bases = here.base.into_iter().chain(here.announced);
    let is_known = bases.map(|base| base.vault_disk).chain([here.disk]).any(|id| id == there.disk);
    (!is_known).then_some(here.disk)
}

/// A recovery point as people name it, and as `mount` takes it: a number, latest, or a time.
#[derive(Clone, Copy)]
pub struct PointName(PointChoice);

impl std::str::FromStr for PointName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self)
    }
}

impl PointName {
    /// The point's cycle, which must exist.
    pub fn find(self, vault: &Vault, disk: &DiskRecord) -> Result<CycleNo> {
        let points = vault.points(disk.disk)?;
        match self.0 {
            PointChoice::Latest => {
                let newest = points.last().copied().with_context(|| {
                    format!("disk {} has no recovery point in {}", disk.name, vault.url())
                })?;
                vault.refuse_damaged(disk.disk, newest)?;
                Ok(newest)
            }
            PointChoice::Cycle(cycle) if points.contains(&cycle) => Ok(cycle),
            PointChoice::Cycle(cycle) => bail!(
                "disk {} has no recovery point {cycle} in {}; see backstay points {}",
                disk.name,
                vault.url(),
                disk.name
            ),
            PointChoice::Until(_) => Ok(choose(vault, disk.disk, self.0)?.cycle),
        }
    }
}

/// A time that has been: as it is written (2026-11-21T03:00:00Z), or how long ago (6h).
pub fn past(text: &str) -> Result<SystemTime, String> {
    let now = clock::now();
    if let Ok(ago) = humantime::parse_duration(text) {
        return now.checked_sub(ago).ok_or_else(|| format!("{text:?} ago is out of range"));
    }
    match humantime::parse_rfc3339_weak(text) {
        Ok(at) if at > now => Err(format!("{text:?} is in the future")),
        Ok(at) => Ok(at),
        Err(_) => Err(format!("{text:?} is not a time: 2026-11-21T03:00:00Z, or how long ago, 6h")),
    }
}

/// A time as people read it, in UTC.
pub fn time(unix_ns: u64) -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(unix_ns);
    humantime::format_rfc3339_seconds(at).to_string()
}

/// A length as people read it.
pub fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

/// A value as its JSON word.
pub fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}
