//! `backstay drill`: try a recovery point.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstay_engine::drills::{DrillSettings, Drilled};
use backstay_engine::jobs::{JobBook, JobKind};
use backstay_engine::service::stop_on_signals;
use backstay_host::own_dir::own_dir;
use backstay_recovery::drill::{Boot, Check, Drill as Job, DrillError, drill, records};
use backstay_recovery::mount::PointChoice;
use backstay_types::DiskName;
use backstay_vault::{DrillCheck, DrillRecord};
use bytesize::ByteSize;
use clap::Args;

use super::target::{time, word};
use crate::context::Context;
use crate::drilling::next;
use crate::error::{Context as _, Error, Result, bail};

/// How long a check may take, unless told otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);

/// Try a recovery point: mount it, check it, record the verdict, clean up
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay drill db             as the configuration says, or --check fsck
  backstay drill db --vault file:///mnt/backup/vault --point 17 --check fsck
  backstay drill db --command 'mount -o ro $BACKSTAY_DEVICE $BACKSTAY_WORK &&
      ls $BACKSTAY_WORK/data; umount $BACKSTAY_WORK'
  backstay drill vm --boot --expect 'login:' --memory 1GiB
  backstay drill vm --boot --kernel vmlinuz --expect ready \\
      --append 'root=/dev/vda1 console=ttyS0'

The point is mounted from the vault. Writes of the check go to an overlay, which is discarded. backstay points shows \
the verdicts, backstay status the last one. To run drills on a schedule, set drill = { every = \"1d\", check = \
\"fsck\" } in the configuration. The exit code is 1 if the point failed or could not be tried.")]
pub struct Drill {
    /// The disk's name in the vault
    #[arg(required_unless_present = "due")]
    name: Option<DiskName>,
    /// Run all drills that the configuration makes due, one after the other (for a timer)
    #[arg(long, exclusive = true)]
    due: bool,
    /// The vault's URL [default: the disk's, from the configuration]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
    /// Which point: a number, latest, or a time
    #[arg(long, default_value = "latest")]
    point: PointChoice,
    /// Check: fsck mounts and checks all file systems
    #[arg(long, value_name = "fsck", value_parser = ["fsck"], conflicts_with_all = ["command", "boot"])]
    check: Option<String>,
    /// Check: a shell command that must exit with 0; it gets BACKSTAY_DISK, BACKSTAY_DEVICE and BACKSTAY_WORK
    #[arg(long, value_name = "LINE", conflicts_with = "boot")]
    command: Option<String>,
    /// Check: boot the point in QEMU and wait for a text on its serial console
    #[arg(long)]
    boot: bool,
    /// The text to wait for [default: login:]
    #[arg(long, value_name = "TEXT", requires = "boot")]
    expect: Option<String>,
    /// The machine's memory [default: 512 MiB]
    #[arg(long, value_name = "SIZE", requires = "boot")]
    memory: Option<ByteSize>,
    /// The kernel to boot
    #[arg(long, value_name = "FILE", requires = "boot")]
    kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "LINE", requires = "kernel")]
    append: Option<String>,
    /// How long the check may take [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

impl Drill {
    pub fn run(self, context: &Context) -> Result<()> {
        let Some(name) = &self.name else { return all_due(context) };
        let settings = context.config.drill_of(name);
        let check = self.how(name, settings)?;
        let timeout = self.timeout.or(settings.and_then(|drill| drill.timeout));
        let program = std::env::current_exe().context("where this program is")?;
        let url = self.vault.as_deref().unwrap_or_else(|| context.config.vault_of(name));
        let stopping = AtomicBool::new(false);
        let stopped = stop_on_signals()?;
        let stop = || {
            if stopped.try_recv().is_ok() {
                stopping.store(true, Ordering::Relaxed);
            }
            stopping.load(Ordering::Relaxed)
        };
        let jobs = JobBook::below(&context.roots.state);
        let job = jobs.begin(name, JobKind::Drill);
        let result = drill(&Job {
            vaults: &context.config.vaults,
            program: &program,
            config: context.globals.config.as_deref(),
            roots: &context.roots,
            vault: url,
            name,
            point: self.point,
            check: &check,
            timeout: timeout.unwrap_or(TIMEOUT_DEFAULT),
            stop: &stop,
            say: &|stage| {
                job.progress(stage, 0, 0);
                tracing::info!("disk {name}: drill: {stage}");
            },
        });
        job.end(match &result {
            Ok(verdict) if verdict.passed => Ok(verdict.cycle),
            Ok(verdict) => Err(format!("point {} failed: {}", verdict.cycle, verdict.message)),
            Err(e) => Err(e.to_string()),
        });
        remember(context, name, &result);
        let verdict = result.with_context(|| {
            format!("disk {name}: the point was not tested; its state is unknown")
        })?;
        if context.globals.json {
            context.print_json(&verdict)?;
        } else if verdict.passed && !context.globals.quiet {
            println!(
                "{name}: recovery point {} passed ({}), {}: {}",
                verdict.cycle,
                word(&verdict.check),
                time(verdict.ended_unix_ns),
                verdict.message
            );
        }
        if !verdict.passed {
            bail!(
                "disk {name}: recovery point {} failed its drill ({}): {}. Look at it with backstay mount \
                 --disk {name} --point {0}; other points may be whole: backstay points {name}",
                verdict.cycle,
                word(&verdict.check),
                verdict.message
            );
        }
        Ok(())
    }

    /// What was said here, or else in the configuration, or else fsck.
    fn how(&self, name: &DiskName, settings: Option<&DrillSettings>) -> Result<Check> {
        if self.check.is_some() {
            return Ok(Check::Fsck);
        }
        if let Some(line) = &self.command {
            return Ok(Check::Command(line.clone()));
        }
        let settings = match (self.boot, settings) {
            (false, None) => return Ok(Check::Fsck),
            (false, Some(settings)) => settings,
            (true, _) => &DrillSettings {
                every: Duration::ZERO,
                check: DrillCheck::Boot,
                command: None,
                timeout: None,
                expect: self.expect.clone(),
                memory: self.memory,
                kernel: self.kernel.clone(),
                initrd: self.initrd.clone(),
                append: self.append.clone(),
            },
        };
        Ok(match settings.check {
            // Refused when the settings are read.
            DrillCheck::Scrub | DrillCheck::Fsck => Check::Fsck,
            DrillCheck::Command => match &settings.command {
                Some(line) => Check::Command(line.clone()),
                None => bail!("the drill of {name} in the configuration has no command"),
            },
            DrillCheck::Boot => {
                let usual = Boot::default();
                Check::Boot(Boot {
                    expect: settings.expect.clone().unwrap_or(usual.expect),
                    memory: settings.memory.map_or(usual.memory, |memory| memory.as_u64()),
                    kernel: settings.kernel.clone(),
                    initrd: settings.initrd.clone(),
                    append: settings.append.clone(),
                    qemu: usual.qemu,
                })
            }
        })
    }
}

/// Writes down how it went, for `status` and for when the next one is due.
fn remember(context: &Context, name: &DiskName, result: &Result<DrillRecord, DrillError>) {
    let dir = records(&context.roots, name);
    let before = Drilled::load(&dir);
    let now = backstay_host::clock::now_unix_ns();
    let drilled = match result {
        Ok(verdict) => Drilled { tried_unix_ns: now, error: None, verdict: Some(verdict.clone()) },
        // Somebody else's will be remembered; one that was stopped is due as it was.
        Err(DrillError::Busy(_) | DrillError::Stopped) => return,
        Err(e) => Drilled {
            tried_unix_ns: now,
            error: Some(e.to_string()),
            verdict: before.and_then(|before| before.verdict),
        },
    };
    let saved = own_dir(&dir).map_err(Error::from);
    if let Err(e) = saved.and_then(|()| Ok(drilled.save(&dir)?)) {
        tracing::warn!("cannot record the drill: {e}");
    }
}

/// Makes every drill that is due; one that fails stops none.
fn all_due(context: &Context) -> Result<()> {
    let mut tried = BTreeSet::new();
    let mut failed = vec![];
    while let Some(name) = next(&context.config, &context.roots, |name| tried.contains(name)) {
        let mut again = context.program().command(&context.roots);
        let status = again.args(["--quiet", "drill", name.as_str()]).status();
        if !status.context("running backstay drill")?.success() {
            failed.push(name.to_string());
        }
        tried.insert(name);
    }
    match failed.as_slice() {
        [] => Ok(()),
        failed => bail!("drills failed or could not be made: {} (see above)", failed.join(", ")),
    }
}
