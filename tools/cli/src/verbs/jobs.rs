//! `backstay jobs`: what runs, and how what ran ended.

use std::io::IsTerminal;
use std::time::Duration;

use backstay_engine::jobs::{Job, JobBook, JobState};
use backstay_host::clock;
use backstay_types::DiskName;
use clap::Args;

use super::target::{size, time, word};
use crate::context::Context;
use crate::error::Result;

/// Show jobs: initial copies, resyncs, on-demand cycles, failovers, replicas, hydrations, and deltas that were slow
/// or failed
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay jobs                  running jobs, and the last twenty that ended
  backstay jobs db --all
  backstay jobs --watch
  backstay --json jobs | jq '.[] | select(.state == \"failed\")'")]
pub struct Jobs {
    /// Only the jobs of this disk
    name: Option<DiskName>,
    /// Also older jobs
    #[arg(long)]
    all: bool,
    /// Repeat every two seconds, until interrupted
    #[arg(long)]
    watch: bool,
}

/// Ended jobs that are shown without `--all`.
const SHOWN: usize = 20;

impl Jobs {
    pub fn run(self, context: &Context) -> Result<()> {
        context.visible_disks()?;
        if let Some(name) = &self.name
            && !JobBook::below(&context.roots.state).list().iter().any(|job| job.disk == *name)
        {
            context.expect_disk(name)?;
        }
        loop {
            let mut jobs = JobBook::below(&context.roots.state).list();
            jobs.retain(|job| self.name.as_ref().is_none_or(|name| *name == job.disk));
            let mut ended = 0;
            jobs.retain(|job| {
                ended += usize::from(job.state != JobState::Running);
                self.all || ended <= SHOWN
            });
            if context.globals.json {
                context.print_json(&jobs)?;
            } else {
                if self.watch && std::io::stdout().is_terminal() {
                    print!("\x1b[2J\x1b[H");
                }
                print(&jobs);
            }
            if !self.watch {
                return Ok(());
            }
            clock::sleep(Duration::from_secs(2));
        }
    }
}

fn print(jobs: &[Job]) {
    println!(
        "{:>5}  {:16}  {:18}  {:11}  {:20}  PROGRESS",
        "JOB", "DISK", "WORK", "STATE", "BEGAN"
    );
    for job in jobs {
        let progress = match (job.state, &job.message) {
            (JobState::Running, _) => {
                let left = job.left().map_or_else(String::new, |left| {
                    let left = Duration::from_secs(left.as_secs());
                    format!(", {} left", humantime::format_duration(left))
                });
                let at = job.point.map_or_else(String::new, |point| format!(", at point {point}"));
                match job.all_bytes {
                    0 => format!("{}{at}", job.stage),
                    all => {
                        format!(
                            "{}: {} of {}{left}{at}",
                            job.stage,
                            size(job.done_bytes),
                            size(all)
                        )
                    }
                }
            }
            (_, Some(message)) => message.clone(),
            (_, None) => job.point.map_or_else(String::new, |point| format!("point {point}")),
        };
        println!(
            "{:>5}  {:16}  {:18}  {:11}  {:20}  {progress}",
            job.id,
            job.disk.as_str(),
            word(&job.work),
            word(&job.state),
            time(job.began_unix_ns)
        );
    }
}
