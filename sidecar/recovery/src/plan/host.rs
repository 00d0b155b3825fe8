//! What a plan's run does on this host: failovers, by the same library as the command.

use std::time::Duration;

use backstay_host::clock::now_unix_ns;
use backstay_types::{CycleNo, DiskId, DiskName, PointId};
use backstay_vault::retain::{HoldRequest, holder};
use backstay_vault::{GroupName, HoldKind, HoldName, Manifest, Vault};

use super::parse::{Kind, Plan};
use super::run::{Answer, Executor};
use super::state::{Chosen, Run, Up};
use crate::failover::target::{self, Committing, Order, Wanted, Which};
use crate::failover::{FailoverRecord, Kind as Failover, NameLock, Result, State, failed};
use crate::host::{Doing, HostError, Listener, LocalHost};
use crate::mount::{PointChoice, choose};

/// How long a run that was killed keeps its points.
const HELD_FOR: Duration = Duration::from_secs(7 * 86_400);

/// Asks a person to do something.
pub type Ask<'a> = dyn Fn(&str) -> Answer + Sync + 'a;

/// Runs plans on this host.
pub struct HostExecutor<'a> {
    /// This host.
    pub host: &'a LocalHost<'a>,
    /// The plan.
    pub plan: &'a Plan,
    /// Whether only what would be done is wanted: no point is held then.
    pub dry: bool,
    /// Who hears how far the run is.
    pub told: &'a dyn Listener,
    /// Whom to ask.
    pub ask: &'a Ask<'a>,
    /// Whether to stop.
    pub stopped: &'a (dyn Fn() -> bool + Sync),
}

impl HostExecutor<'_> {
    fn hold(&self) -> Result<HoldName> {
        let mut hold = format!("plan-{}", self.plan.name);
        hold.truncate(HoldName::LEN_MAX);
        hold.parse().map_err(|e| HostError::Failed(format!("the name of a hold: {e}")).into())
    }

    fn url(&self, disk: &DiskName) -> &str {
        self.plan.vault.as_deref().unwrap_or_else(|| self.host.config.vault_of(disk))
    }

    /// The name of a disk on this host while it is tried.
    fn local(&self, kind: Kind, disk: &DiskName) -> Result<DiskName> {
        match kind {
            Kind::Test => format!("{disk}.plan")
                .parse()
                .map_err(|e| HostError::Failed(format!("{disk}.plan: {e}")).into()),
            Kind::Planned | Kind::Unplanned => Ok(disk.clone()),
        }
    }

    fn find(&self, disk: &DiskName, point: &str) -> Result<(Vault, Manifest)> {
        let vault = self.host.config.vaults.open(self.url(disk))?;
        let record = vault.disk_named(disk)?;
        let manifest = if point == "group" {
            let group = self.plan.consistency_group.as_ref();
            let group =
                group.doing(|| "--point group needs consistency_group in the plan".into())?;
            let (cycle, id) = of_group(&vault, group, record.disk)?;
            let manifest = vault.manifest(record.disk, cycle)?;
            if manifest.point != id {
                failed!("the point of group {group} is not there any more");
            }
            manifest
        } else {
            let choice: PointChoice = point.parse().map_err(HostError::Failed)?;
            choose(&vault, record.disk, choice)?
        };
        Ok((vault, manifest))
    }

    fn bring(
        &self,
        kind: Kind,
        disk: &DiskName,
        point: Option<Chosen>,
        attach: bool,
    ) -> Result<(Chosen, Up)> {
        let local = self.local(kind, disk)?;
        if kind == Kind::Planned {
            target::hand_over_here(self.host, disk, &local)?;
        }
        let choice = point.map_or(PointChoice::Latest, |point| PointChoice::Cycle(point.cycle));
        let order = Order {
            kind: match kind {
                Kind::Test => Failover::Test,
                Kind::Planned => Failover::Planned,
                Kind::Unplanned => Failover::Unplanned,
            },
            name: disk.clone(),
            local: local.clone(),
            which: match kind {
                Kind::Planned => Which::HandedOver,
                _ => Which::Choice(Wanted { point: choice, left_history: false }),
            },
            vault: Some(self.url(disk).to_owned()),
            attach,
            group: None,
            replica: false,
        };
        let lock = NameLock::take(&self.host.roots.state, &local, "plan")?;
        let place = target::bring_up(self.host, &order)?;
        drop(lock);
        let chosen = match (point, place.cycle) {
            (Some(point), _) => point,
            (None, Some(cycle)) => {
                let vault = self.host.config.vaults.open(self.url(disk))?;
                chosen(&vault.manifest(vault.disk_named(disk)?.disk, cycle)?)
            }
            (None, None) => failed!("it is up at no point"),
        };
        let up = Up {
            local: place.name,
            served: place.served,
            device: place.device,
            since_unix_ns: now_unix_ns(),
        };
        Ok((chosen, up))
    }

    fn down(&self, disk: &DiskName) -> Result<()> {
        let (local, root) = (self.local(Kind::Test, disk)?, &self.host.roots.state);
        if FailoverRecord::load(root, &local)?.is_none() {
            return Ok(());
        }
        let _lock = NameLock::take(root, &local, "plan cleanup")?;
        match FailoverRecord::load(root, &local)? {
            Some(record) => target::remove(self.host, record),
            None => Ok(()),
        }
    }
}

impl Executor for HostExecutor<'_> {
    fn choose(&self, kind: Kind, disk: &DiskName, point: &str) -> Result<Option<Chosen>, String> {
        if kind == Kind::Planned {
            return Ok(None);
        }
        let found = (|| -> Result<Chosen> {
            let (vault, manifest) = self.find(disk, point)?;
            if !self.dry {
                let until = now_unix_ns() + HELD_FOR.as_nanos() as u64;
                let request = HoldRequest {
                    name: self.hold()?,
                    kind: HoldKind::Failover,
                    holder: holder(),
                    reason: format!("plan {}", self.plan.name),
                    first_cycle: manifest.cycle,
                    last_cycle: manifest.cycle,
                    until_unix_ns: Some(until),
                };
                match vault.hold(manifest.disk, &request) {
                    // Anyone who has only a copy of the vault must be able to recover.
                    Err(e @ backstay_vault::VaultError::Denied { .. }) => {
                        tracing::warn!("point {} of disk {disk} is not held: {e}", manifest.cycle);
                    }
                    held => drop(held?),
                }
            }
            Ok(chosen(&manifest))
        })();
        found.map(Some).map_err(|e| e.to_string())
    }

    fn bring_up(
        &self,
        kind: Kind,
        disk: &DiskName,
        point: Option<Chosen>,
        attach: bool,
    ) -> Result<(Chosen, Up), String> {
        self.bring(kind, disk, point, attach).map_err(|e| e.to_string())
    }

    fn take_down(&self, disk: &DiskName) -> Result<(), String> {
        self.down(disk).map_err(|e| e.to_string())
    }

    fn let_go(&self, disk: &DiskName) {
        if self.dry {
            return;
        }
        let released = (|| -> Result<()> {
            let vault = self.host.config.vaults.open(self.url(disk))?;
            vault.release(vault.disk_named(disk)?.disk, &self.hold()?)?;
            Ok(())
        })();
        if let Err(e) = released {
            tracing::debug!("the hold of disk {disk} ends by itself: {e}");
        }
    }

    fn ask(&self, what: &str) -> Answer {
        (self.ask)(what)
    }

    fn say(&self, line: &str) {
        self.told.note(line);
    }

    fn stopped(&self) -> bool {
        (self.stopped)()
    }
}

/// Commits what a run brought up. Done again it goes on.
///
/// # Errors
/// The first disk that was not committed.
pub fn commit(host: &LocalHost<'_>, run: &Run) -> Result<()> {
    let root = &host.roots.state;
    for disk in &run.disks {
        let Some(up) = &disk.up else { continue };
        let mend = format!("disk {}: run this again when that is mended", disk.disk);
        let committed = (|| {
            let _lock = NameLock::take(root, &up.local, "plan commit")?;
            let record = FailoverRecord::load(root, &up.local)?;
            let record = record.doing(|| format!("there is no failover of disk {}", up.local))?;
            // The command before this one was killed after it.
            if record.state != State::Committed {
                target::commit(host, record, &Committing { policy: None, hydrate: true })?;
                host.told.note(&format!("{}: committed", disk.disk));
            }
            Ok(())
        })();
        committed.map_err(|e: crate::failover::FailoverError| e.while_doing(mend))?;
    }
    Ok(())
}

fn chosen(manifest: &Manifest) -> Chosen {
    let Manifest { cycle, point, cut_unix_ns, .. } = manifest;
    Chosen { cycle: *cycle, point: *point, cut_unix_ns: *cut_unix_ns }
}

/// The point that a disk has in the newest point of a group.
///
/// # Errors
/// If it is in none.
pub fn of_group(vault: &Vault, group: &GroupName, disk: DiskId) -> Result<(CycleNo, PointId)> {
    let newest = vault.group_points(group)?.last().copied();
    let newest = newest.doing(|| format!("group {group} has no points in {}", vault.url()))?;
    let point = vault.group_point(group, newest)?;
    let member = point.members.iter().find(|member| member.disk == disk);
    let member = member.doing(|| format!("it is not in point {newest} of group {group}"))?;
    Ok((member.cycle, member.point))
}
