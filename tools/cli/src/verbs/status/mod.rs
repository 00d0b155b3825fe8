//! `backstay status`: how disks are.

mod details;
mod overview;

use std::cmp::Reverse;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use backstay_engine::health::Level;
use backstay_host::clock;
use backstay_types::DiskName;
use clap::Args;
use console::Term as Screen;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::health::{Shown, for_each_at_once, look};
use details::details;
use overview::overview;

/// Show state, recovery point objective, dirty bytes and health of disks
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay status                  all disks, the worst first
  backstay status db               everything about one disk
  backstay status --watch
  backstay status --exit-code --quiet || alert
  backstay --json status db | jq .[0].health

RPO is the age of the newest verified recovery point; for a replica, of the point that it holds. With --exit-code: 0 \
if all disks are well, 10 if the worst is a warning, 20 if the worst is critical; any other code means that their \
health is unknown.")]
pub struct Status {
    /// The disk's name [default: all disks of this host]
    name: Option<DiskName>,
    /// Repeat every two seconds, until interrupted
    #[arg(long)]
    watch: bool,
    /// Exit with 10 for a warning and 20 for a critical disk, for monitoring
    #[arg(long, conflicts_with = "watch")]
    exit_code: bool,
}

/// How often `--watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// What lines fit in where there is no terminal.
const WIDTH: usize = 80;

impl Status {
    pub fn run(self, context: &Context) -> Result<()> {
        let screen = Screen::stdout();
        let on_screen = std::io::stdout().is_terminal();
        loop {
            let all = self.collect(context)?;
            if context.globals.json {
                context.print_json(&all)?;
            } else if !context.globals.quiet {
                let text = text(&all, on_screen.then(|| usize::from(screen.size().1)));
                match self.watch && on_screen {
                    true => repaint(&text, usize::from(screen.size().0))?,
                    false => print!("{text}"),
                }
            }
            if !self.watch {
                return self.verdict(&all);
            }
            clock::sleep(WATCH_EVERY);
        }
    }

    /// All that was asked for, the worst first.
    fn collect(&self, context: &Context) -> Result<Vec<Shown>> {
        let names = match &self.name {
            Some(name) => {
                context.expect_disk(name)?;
                vec![name.clone()]
            }
            None => all(context)?,
        };
        let all = for_each_at_once(&names, |name| look(context, name));
        let mut all = all.into_iter().collect::<Result<Vec<Shown>>>()?;
        all.sort_by_key(|shown| Reverse(shown.disk.health.level));
        Ok(all)
    }

    fn verdict(&self, all: &[Shown]) -> Result<()> {
        let worst = all.iter().map(|shown| shown.disk.health.level).max().unwrap_or(Level::Ok);
        match worst {
            Level::Warning if self.exit_code => Err(Error::silent(10)),
            Level::Critical if self.exit_code => Err(Error::silent(20)),
            _ => Ok(()),
        }
    }
}

/// What people read; lines are not longer than the screen is wide, if there is one.
fn text(all: &[Shown], width: Option<usize>) -> String {
    match all {
        [] => "no disks on this host; see backstay protect --help\n".into(),
        // Programs that read the details of one disk find a line for each.
        [one] => details(one, width.unwrap_or(usize::MAX)),
        many => overview(many, width.unwrap_or(WIDTH)),
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Warning => "WARNING",
        Level::Critical => "CRITICAL",
    }
}

/// Disks and replicas of this host.
pub fn all(context: &Context) -> Result<Vec<DiskName>> {
    let disks = context.visible_disks()?;
    let state = std::fs::read_dir(&context.roots.state).into_iter().flatten().flatten();
    let replicas = state
        .filter(|entry| entry.path().join("replica/replica.json").exists())
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut names: Vec<DiskName> = disks.into_iter().chain(replicas).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Shows a text in the place of the one before, as much as fits the screen.
fn repaint(text: &str, rows: usize) -> std::io::Result<()> {
    let lines: Vec<&str> = text.lines().collect();
    let fits = lines.len() < rows.max(2);
    let shown = if fits { lines.len() } else { rows.max(2) - 2 };
    let mut frame = String::from("\x1b[H");
    for line in &lines[..shown] {
        frame += &format!("{line}\x1b[K\n");
    }
    if !fits {
        frame += &format!("… {} more lines\x1b[K\n", lines.len() - shown);
    }
    frame += "\x1b[J";
    let mut out = std::io::stdout().lock();
    out.write_all(frame.as_bytes())?;
    out.flush()
}
