//! `backstay doctor`: what this host has and lacks.

use backstay_engine::Config;
use backstay_engine::config::{ConfigError, PATH_DEFAULT};
use backstay_engine::doctor::{self, Finding, HOST};
use backstay_engine::prerequisites::Verdict;
use backstay_types::DiskName;
use clap::Args;

use crate::certificates;
use crate::context::{Context, Globals};
use crate::error::{Result, bail};
use crate::health::{for_each_at_once, look};

/// Check this host: kernel, rights, memory, services, vaults, and every disk
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay doctor                 everything
  backstay doctor db              the host, and only this disk
  backstay --json doctor | jq '.[] | select(.verdict != \"ok\")'

The command writes a small object to each existing vault, reads it back and deletes it. It changes nothing else. \
Each finding says what to do. The exit code is 1 if anything FAILED; warnings do not count.")]
pub struct Doctor {
    /// Only these disks
    names: Vec<DiskName>,
}

impl Doctor {
    pub fn run(self, globals: Globals) -> Result<()> {
        let read = Config::load(globals.config.as_deref());
        let mut findings = vec![configuration(&globals, read.as_ref().err())];
        let context = Context::with(globals, read.unwrap_or_default());
        let names = if self.names.is_empty() { context.disks() } else { self.names };
        findings.extend(doctor::host(&context.roots, &names));
        findings.extend(doctor::vaults(&context.roots, &context.config, &names));
        findings.extend(certificates::findings(&context.config));
        let of_disk = |name: &DiskName| {
            let mut found = doctor::disk(&context.roots, &context.config, name);
            found.extend(health(&context, name));
            found
        };
        findings.extend(for_each_at_once(&names, of_disk).into_iter().flatten());
        if context.globals.json {
            context.print_json(&findings)?;
        } else {
            let shown =
                |finding: &&Finding| !context.globals.quiet || finding.verdict != Verdict::Ok;
            findings.iter().filter(shown).for_each(print);
        }
        let failed = findings.iter().filter(|f| f.verdict == Verdict::Failed).count();
        if failed > 0 {
            bail!("{failed} of {} findings are failures", findings.len());
        }
        Ok(())
    }
}

/// Everything that is wrong with a disk, as `status` shows it.
fn health(context: &Context, name: &DiskName) -> Vec<Finding> {
    match look(context, name) {
        Ok(shown) => {
            shown.disk.health.causes.iter().map(|cause| Finding::of_cause(name, cause)).collect()
        }
        Err(e) => vec![Finding {
            of: name.to_string(),
            what: "health",
            verdict: Verdict::Failed,
            found: format!("the state of the disk is unknown: {e}"),
            id: None,
        }],
    }
}

fn configuration(globals: &Globals, error: Option<&ConfigError>) -> Finding {
    let path = globals.config.clone().unwrap_or_else(|| PATH_DEFAULT.into());
    let (verdict, found) = match error {
        Some(e) => (Verdict::Failed, format!("{e}; the findings below assume that there is none")),
        None if path.exists() => (Verdict::Ok, path.display().to_string()),
        None => (
            Verdict::Ok,
            format!("there is no {}: all settings have their defaults", path.display()),
        ),
    };
    Finding { of: HOST.into(), what: "configuration", verdict, found, id: None }
}

fn print(finding: &Finding) {
    let verdict = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Failed => "FAILED",
    };
    println!("{verdict:8} {:12} {:18} {}", finding.of, finding.what, finding.found);
}
