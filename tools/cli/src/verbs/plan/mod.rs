//! `backstay plan`: recovery plans.

use std::io::{BufRead, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use backstay_engine::service::stop_on_signals;
use backstay_recovery::host::{Listener, LocalHost, Silent};
use backstay_recovery::plan::run::{clean_up, go_on, may_begin, prepare, read};
use backstay_recovery::plan::state::StepKind;
use backstay_recovery::plan::{
    Action, Answer, HostExecutor, Kind, Plan as Parsed, Report, Run, RunFolder, RunState, host,
};
use backstay_types::DiskName;
use clap::{Args, Subcommand};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::progress::Shown;
use crate::context::Context;
use crate::error::{Context as _, Result, bail, refused};

/// Recovery plans: many disks and machines, scripts and people, in order
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay plan check shop.toml
  backstay plan test shop.toml --dry-run
  backstay plan test shop.toml --point group
  backstay plan cleanup shop.toml
  backstay plan unplanned shop.toml --point 2026-02-03T04:05:06Z
  backstay plan resume shop.toml    after a kill or a failed step
  backstay plan commit shop.toml
  backstay plan report shop.toml --json

docs/reference/plans.md describes the format of a plan.")]
pub struct Plan {
    #[command(subcommand)]
    what: PlanVerb,
}

#[derive(Subcommand)]
enum PlanVerb {
    /// Check a plan and its requirements on this host; change nothing
    Check(File),
    /// Try a plan with test failovers of its disks; replication goes on
    Test(Go),
    /// Run a plan whose disks were handed over; nothing is lost
    Planned(Go),
    /// Run a plan without the sources
    Unplanned(Go),
    /// Continue the last run after a kill, a failed step or a manual step
    Resume(Resume),
    /// Remove what the last test run brought up
    Cleanup(File),
    /// Commit the failovers of the last run
    Commit(File),
    /// Print what the last run did, how long it took, and its RTO and RPO
    Report(File),
}

/// A plan's file.
#[derive(Args)]
pub struct File {
    /// The plan
    file: PathBuf,
}

/// How a plan is run.
#[derive(Args)]
pub struct Go {
    /// The plan
    file: PathBuf,
    /// Which points: latest, a time (each disk's newest cut by then), or group (the newest of the plan's
    /// consistency group); a planned run takes what was handed over
    #[arg(long, default_value = "latest")]
    point: String,
    /// Show what would be done; change nothing
    #[arg(long)]
    dry_run: bool,
}

/// How a run goes on.
#[derive(Args)]
pub struct Resume {
    /// The plan
    file: PathBuf,
    /// Skip the step that failed
    #[arg(long)]
    skip: bool,
}

/// A plan that was read.
struct Opened {
    text: String,
    plan: Parsed,
}

fn open(file: &Path) -> Result<Opened> {
    let text = read(file).with_context(|| format!("plan {}", file.display()))?;
    let plan = Parsed::parse(&text).with_context(|| format!("plan {}", file.display()))?;
    Ok(Opened { text, plan })
}

fn folder(context: &Context, plan: &DiskName) -> Result<RunFolder> {
    let taken = RunFolder::take(&context.roots.state, plan);
    let taken = taken.with_context(|| format!("plan {plan}"))?;
    taken
        .ok_or_else(|| refused(format!("plan {plan} is being run by another command on this host")))
}

/// The last run of a plan, and the plan as it was when it began.
fn last(context: &Context, plan: &DiskName) -> Result<(Run, Parsed)> {
    let run = RunFolder::last(&context.roots.state, plan)?
        .with_context(|| format!("plan {plan} was never run on this host"))?;
    let plan = Parsed::parse(&run.text).context("the plan of the last run")?;
    Ok((run, plan))
}

impl Plan {
    pub fn run(self, context: &Context) -> Result<()> {
        match self.what {
            PlanVerb::Check(verb) => check(context, &open(&verb.file)?.plan),
            PlanVerb::Test(verb) => begin(context, Kind::Test, &verb),
            PlanVerb::Planned(verb) => begin(context, Kind::Planned, &verb),
            PlanVerb::Unplanned(verb) => begin(context, Kind::Unplanned, &verb),
            PlanVerb::Resume(verb) => resume(context, &verb),
            PlanVerb::Cleanup(verb) => cleanup(context, &open(&verb.file)?.plan.name),
            PlanVerb::Commit(verb) => commit(context, &open(&verb.file)?.plan.name),
            PlanVerb::Report(verb) => {
                let (run, _) = last(context, &open(&verb.file)?.plan.name)?;
                print(context, &Report::of(&run))
            }
        }
    }
}

/// Whether all that a plan names is there.
fn check(context: &Context, plan: &Parsed) -> Result<()> {
    let (mut wrong, mut warnings) = (vec![], vec![]);
    for name in plan.disks() {
        let url = plan.vault.as_deref().unwrap_or_else(|| context.config.vault_of(name));
        let found = context.config.vaults.open(url).and_then(|vault| {
            let disk = vault.disk_named(name)?;
            Ok((vault.points(disk.disk)?.len(), disk.disk, vault))
        });
        match found {
            Ok((0, ..)) => wrong.push(format!("disk {name} has no recovery point in {url}")),
            Ok((_, disk, vault)) => {
                let group = plan.consistency_group.as_ref();
                if let Some(group) = group
                    && let Err(why) = host::of_group(&vault, group, disk)
                {
                    warnings.push(format!("disk {name} cannot come up with --point group: {why}"));
                }
            }
            Err(e) => wrong.push(format!("disk {name}: {e}")),
        }
    }
    if !wrong.is_empty() {
        bail!("plan {}: {}", plan.name, wrong.join("; "));
    }
    if !context.globals.quiet {
        warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    }
    let (groups, disks) = (plan.groups.len(), plan.disks().count());
    if context.globals.json {
        return context.print_json(&serde_json::json!({
            "plan": plan.name, "groups": groups, "disks": disks, "warnings": warnings,
        }));
    }
    if !context.globals.quiet {
        println!("{}: {groups} groups, {disks} disks, all of them with recovery points", plan.name);
    }
    Ok(())
}

fn begin(context: &Context, kind: Kind, go: &Go) -> Result<()> {
    let Opened { text, plan } = open(&go.file)?;
    with_executor(context, &plan, go.dry_run, |executor| {
        if go.dry_run {
            let run = prepare(&plan, &text, kind, &go.point, executor)?;
            return show_dry(context, &plan, &run);
        }
        let folder = folder(context, &plan.name)?;
        may_begin(RunFolder::last(&context.roots.state, &plan.name)?.as_ref())?;
        let mut run = prepare(&plan, &text, kind, &go.point, executor)?;
        folder.save(&run)?;
        let result = go_on(&plan, &mut run, &folder, executor, false);
        end(context, &folder, &run)?;
        Ok(result?)
    })
}

/// Does something with what runs a plan on this host, until a signal.
fn with_executor<T>(
    context: &Context,
    plan: &Parsed,
    dry: bool,
    work: impl FnOnce(&HostExecutor<'_>) -> Result<T>,
) -> Result<T> {
    let signals = stop_on_signals()?;
    let was_told = AtomicBool::new(false);
    let stopped = || {
        if signals.try_recv().is_ok() {
            was_told.store(true, Ordering::Relaxed);
        }
        was_told.load(Ordering::Relaxed)
    };
    // What each failover says is not for anyone who runs a plan.
    let host = LocalHost { told: Box::new(Silent), ..context.host() };
    let told: Box<dyn Listener> = match context.globals.json {
        true => Box::new(Silent),
        false => Box::new(Shown::new(context)),
    };
    let ask = |what: &str| ask(what, &stopped);
    work(&HostExecutor { host: &host, plan, dry, told: &*told, ask: &ask, stopped: &stopped })
}

/// Asks a person at the terminal, if there is one.
fn ask(what: &str, stopped: &dyn Fn() -> bool) -> Answer {
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
            if stopped() {
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

fn resume(context: &Context, verb: &Resume) -> Result<()> {
    let name = open(&verb.file)?.plan.name;
    let folder = folder(context, &name)?;
    let (mut run, plan) = last(context, &name)?;
    with_executor(context, &plan, false, |executor| {
        let result = go_on(&plan, &mut run, &folder, executor, verb.skip);
        end(context, &folder, &run)?;
        Ok(result?)
    })
}

fn cleanup(context: &Context, name: &DiskName) -> Result<()> {
    let folder = folder(context, name)?;
    let (mut run, plan) = last(context, name)?;
    with_executor(context, &plan, false, |executor| {
        Ok(clean_up(&plan, &mut run, &folder, executor)?)
    })?;
    if !context.globals.quiet && !context.globals.json {
        println!("{name}: its test was taken down; nothing of it is left");
    }
    Ok(())
}

fn commit(context: &Context, name: &DiskName) -> Result<()> {
    let _folder = folder(context, name)?;
    let (run, _) = last(context, name)?;
    if run.kind == Kind::Test || run.state != RunState::Done {
        return Err(refused(format!(
            "the last run of plan {name} is no failover that is done; nothing was committed"
        )));
    }
    Ok(host::commit(&context.host(), &run)?)
}

/// Keeps the report of a run, and shows it.
fn end(context: &Context, folder: &RunFolder, run: &Run) -> Result<()> {
    let report = Report::of(run);
    let path = folder
        .keep_report(run, &serde_json::to_vec_pretty(&report).map_err(std::io::Error::from)?)?;
    print(context, &report)?;
    if !context.globals.quiet && !context.globals.json {
        println!("\nreport: {}\nlog:    {}", path.display(), folder.log_path().display());
    }
    Ok(())
}

fn print(context: &Context, report: &Report) -> Result<()> {
    if context.globals.json {
        return context.print_json(report);
    }
    print!("{}", report.text());
    Ok(())
}

fn show_dry(context: &Context, plan: &Parsed, run: &Run) -> Result<()> {
    if context.globals.json {
        return context.print_json(&Report::of(run));
    }
    println!("plan {}: a {} run would do this, and nothing was done:", run.plan, run.kind.name());
    for (number, step) in run.steps.iter().enumerate() {
        let group = plan.groups.iter().find(|group| group.name == step.group);
        let more = match step.what {
            StepKind::Machine => {
                let machine = group.and_then(|group| {
                    group.machines.iter().find(|machine| machine.name == step.name)
                });
                let start = machine.and_then(|machine| machine.start.as_deref());
                let disks = run.disks.iter().filter(|disk| disk.machine == step.name);
                let disks = disks.map(|disk| match disk.point {
                    Some(point) => {
                        format!("{} at point {}", disk.disk, point.cycle)
                    }
                    None => format!("{} at what was handed over", disk.disk),
                });
                let disks = disks.collect::<Vec<_>>().join(", ");
                match start {
                    Some(start) => format!("{disks}; then: {start}"),
                    None => disks,
                }
            }
            StepKind::Script | StepKind::Manual => group
                .into_iter()
                .flat_map(|group| group.before.iter().chain(&group.after))
                .find(|of_plan| of_plan.name == step.name)
                .map(|of_plan| match &of_plan.action {
                    Action::Script(line) | Action::Manual(line) => line.clone(),
                })
                .unwrap_or_default(),
        };
        let what = super::target::word(&step.what);
        println!("{:>4}  {:12}  {what:8}  {}: {more}", number + 1, step.group, step.name);
    }
    Ok(())
}
