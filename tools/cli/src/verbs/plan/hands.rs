//! What a plan's run does on this host: it runs this command's own failovers.

use std::io::{BufRead, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use backstay_host::clock::now_unix_ns;
use backstay_recovery::failover::FailoverRecord;
use backstay_recovery::lazy::{PointChoice, choose};
use backstay_recovery::plan::{Answer, Chosen, Hands, Kind, Plan, RunFolder, Up};
use backstay_types::{DiskId, DiskName};
use backstay_vault::retain::{HoldRequest, holder};
use backstay_vault::{GroupName, HoldKind, HoldName, Manifest, Vault};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;

use crate::context::Context;

/// How long a run that was killed keeps its points.
const HELD_FOR: Duration = Duration::from_secs(7 * 86_400);

/// The hands of this host.
pub struct HostHands<'a> {
    context: &'a Context,
    plan: &'a Plan,
    hold: HoldName,
    /// Where the run is kept; without, nothing is done and no point held.
    folder: Option<&'a RunFolder>,
    stopped: AtomicBool,
    signals: &'a (dyn Fn() -> bool + Sync),
}

/// What `backstay failover` prints of a disk that is up.
#[derive(Deserialize)]
struct BroughtUp {
    name: DiskName,
    served: std::path::PathBuf,
    device: Option<String>,
    cycle: Option<backstay_types::CycleNo>,
}

impl<'a> HostHands<'a> {
    pub fn new(
        context: &'a Context,
        plan: &'a Plan,
        folder: Option<&'a RunFolder>,
        signals: &'a (dyn Fn() -> bool + Sync),
    ) -> anyhow::Result<Self> {
        let mut hold = format!("plan-{}", plan.name);
        hold.truncate(HoldName::LEN_MAX);
        let hold = hold.parse().context("the name of a hold")?;
        Ok(Self { context, plan, hold, folder, stopped: AtomicBool::new(false), signals })
    }

    fn url(&self, disk: &DiskName) -> &str {
        self.plan.vault.as_deref().unwrap_or_else(|| self.context.config.vault_of(disk))
    }

    /// The name of a disk on this host while it is tried.
    fn local(&self, kind: Kind, disk: &DiskName) -> anyhow::Result<DiskName> {
        match kind {
            Kind::Test => Ok(format!("{disk}.plan").parse()?),
            Kind::Planned | Kind::Unplanned => Ok(disk.clone()),
        }
    }

    fn failover(&self, args: &[&str]) -> anyhow::Result<String> {
        failover_again(self.context, self.folder.context("this is a dry run")?, args)
    }

    fn find(&self, disk: &DiskName, point: &str) -> anyhow::Result<(Vault, Manifest)> {
        let vault = Vault::open(self.url(disk))?;
        let record = vault.disk_named(disk)?;
        let manifest = if point == "group" {
            let group = self.plan.consistency_group.as_ref();
            let group = group.context("--point group needs consistency_group in the plan")?;
            let (cycle, id) = of_group(&vault, group, record.disk)?;
            let manifest = vault.manifest(record.disk, cycle)?;
            anyhow::ensure!(
                manifest.point == id,
                "the point of group {group} is not there any more"
            );
            manifest
        } else {
            let choice: PointChoice = point.parse().map_err(anyhow::Error::msg)?;
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
    ) -> anyhow::Result<(Chosen, Up)> {
        let local = self.local(kind, disk)?;
        let url = self.url(disk);
        let cycle = point.map(|point| point.cycle.to_string());
        let mut args = vec!["--json", "failover", kind.name(), disk.as_str(), "--vault", url];
        args.extend(["--as", local.as_str()]);
        if let Some(cycle) = &cycle {
            args.extend(["--point", cycle]);
        }
        if attach {
            args.push("--attach");
        }
        let said = self.failover(&args)?;
        let up: BroughtUp = serde_json::from_str(&said)
            .with_context(|| format!("backstay failover {} said {said:?}", kind.name()))?;
        let chosen = match (point, up.cycle) {
            (Some(point), _) => point,
            (None, Some(cycle)) => {
                let vault = Vault::open(url)?;
                let record = vault.disk_named(disk)?;
                chosen(&vault.manifest(record.disk, cycle)?)
            }
            (None, None) => anyhow::bail!("it is up at no point"),
        };
        let up = Up {
            local: up.name,
            served: up.served,
            device: up.device,
            since_unix_ns: now_unix_ns(),
        };
        Ok((chosen, up))
    }
}

impl Hands for HostHands<'_> {
    fn choose(&self, kind: Kind, disk: &DiskName, point: &str) -> Result<Option<Chosen>, String> {
        if kind == Kind::Planned {
            return Ok(None);
        }
        let found = (|| {
            let (vault, manifest) = self.find(disk, point)?;
            if self.folder.is_some() {
                let until = now_unix_ns() + HELD_FOR.as_nanos() as u64;
                let request = HoldRequest {
                    name: self.hold.clone(),
                    kind: HoldKind::Failover,
                    holder: holder(),
                    reason: format!("plan {}", self.plan.name),
                    first_cycle: manifest.cycle,
                    last_cycle: manifest.cycle,
                    until_unix_ns: Some(until),
                };
                match vault.hold(manifest.disk, &request) {
                    // Whoever has only a copy of the vault must be able to recover.
                    Err(e @ backstay_vault::VaultError::Denied { .. }) => {
                        tracing::warn!("point {} of disk {disk} is not held: {e}", manifest.cycle);
                    }
                    held => drop(held?),
                }
            }
            anyhow::Ok(chosen(&manifest))
        })();
        found.map(Some).map_err(|e| format!("{e:#}"))
    }

    fn bring_up(
        &self,
        kind: Kind,
        disk: &DiskName,
        point: Option<Chosen>,
        attach: bool,
    ) -> Result<(Chosen, Up), String> {
        self.bring(kind, disk, point, attach).map_err(|e| format!("{e:#}"))
    }

    fn take_down(&self, disk: &DiskName) -> Result<(), String> {
        let down = (|| {
            let local = self.local(Kind::Test, disk)?;
            if FailoverRecord::load(&self.context.roots.state, &local)?.is_some() {
                self.failover(&["failover", "cleanup", local.as_str()])?;
            }
            anyhow::Ok(())
        })();
        down.map_err(|e| format!("{e:#}"))
    }

    fn let_go(&self, disk: &DiskName) {
        if self.folder.is_none() {
            return;
        }
        let released = (|| {
            let vault = Vault::open(self.url(disk))?;
            vault.release(vault.disk_named(disk)?.disk, &self.hold)
        })();
        if let Err(e) = released {
            tracing::debug!("hold {} of disk {disk} ends by itself: {e}", self.hold);
        }
    }

    fn ask(&self, what: &str) -> Answer {
        let input = std::io::stdin();
        if !input.is_terminal() || !std::io::stderr().is_terminal() {
            return Answer::Nobody;
        }
        loop {
            eprint!("\n{what}\n  Is that done? [y: yes, n: it failed, l: later] ");
            let _ = std::io::stderr().flush();
            // Reading would not end on a signal.
            let mut typed = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
            while poll(&mut typed, PollTimeout::from(200_u8)).is_ok_and(|ready| ready == 0) {
                if self.stopped() {
                    return Answer::Nobody;
                }
            }
            let mut line = String::new();
            match input.lock().read_line(&mut line) {
                Ok(0) | Err(_) => return Answer::Nobody,
                Ok(_) => {}
            }
            match line.trim() {
                "y" | "yes" => return Answer::Done,
                "n" | "no" => return Answer::Failed,
                "l" | "later" => return Answer::Nobody,
                _ => {}
            }
        }
    }

    fn say(&self, line: &str) {
        if !self.context.globals.quiet && !self.context.globals.json {
            eprintln!("{line}");
        }
    }

    fn stopped(&self) -> bool {
        if (self.signals)() {
            self.stopped.store(true, Ordering::Relaxed);
        }
        self.stopped.load(Ordering::Relaxed)
    }
}

fn chosen(manifest: &Manifest) -> Chosen {
    let Manifest { cycle, point, cut_unix_ns, .. } = manifest;
    Chosen { cycle: *cycle, point: *point, cut_unix_ns: *cut_unix_ns }
}

/// Runs this command once more, with the same flags; what it printed. If we are killed it goes on, and the next
/// command of the plan waits for it: `flock` holds the lock for it, and lets nothing that it starts inherit it.
pub fn failover_again(
    context: &Context,
    folder: &RunFolder,
    args: &[&str],
) -> anyhow::Result<String> {
    let again = context.program().command(&context.roots);
    let mut command = Command::new("flock");
    command.args(["--shared", "--close"]).arg(folder.helpers_path());
    command.arg(again.get_program()).args(again.get_args());
    let output = command.args(args).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("running backstay {}", args.join(" ")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = text(&output.stderr);
    anyhow::bail!("{}", said.strip_prefix("backstay: ").unwrap_or(&said))
}

/// The point that a disk has in the newest point of a group.
pub fn of_group(
    vault: &Vault,
    group: &GroupName,
    disk: DiskId,
) -> anyhow::Result<(backstay_types::CycleNo, backstay_types::PointId)> {
    let newest = vault.group_points(group)?.last().copied();
    let newest =
        newest.with_context(|| format!("group {group} has no points in {}", vault.url()))?;
    let point = vault.group_point(group, newest)?;
    let member = point.members.iter().find(|member| member.disk == disk);
    let member = member.with_context(|| format!("it is not in point {newest} of group {group}"))?;
    Ok((member.cycle, member.point))
}
