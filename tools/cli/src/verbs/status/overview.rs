//! Many disks on one screen: a line for each, the worst first, then what is wrong.

use std::time::Duration;

use backstay_engine::health::Level;
use backstay_host::clock;
use console::Style;

use super::level;
use crate::health::Shown;
use crate::table::{Cell, Column, lines, wrapped};
use crate::verbs::target::size;

/// A table of many disks, then why those are not well that are not.
pub fn overview(all: &[Shown], width: usize) -> String {
    let column = |title, right, least| Column { title, right, least };
    let columns = [
        column("NAME", false, Some(6)),
        column("STATE", false, Some(13)),
        column("RPO", true, None),
        column("POINT", true, None),
        column("PROVEN", true, None),
        column("DIRTY", true, None),
        column("SHIPS", true, None),
        column("NEXT", true, None),
        column("VAULT", false, None),
    ];
    let mut vaults: Vec<&str> = all.iter().map(|shown| shown.disk.vault.as_str()).collect();
    vaults.sort_unstable();
    vaults.dedup();
    let rows: Vec<Vec<Cell>> = all.iter().map(|shown| row(shown, &vaults)).collect();
    let mut out = lines(&columns, &rows, width);
    out.push(String::new());
    for (n, vault) in vaults.iter().enumerate() {
        out.push(format!("vault {}: {vault}", n + 1));
    }
    for told in troubles(all) {
        out.extend(wrapped(&told.headline(), "  ", width));
        if let Some(advice) = told.advice() {
            out.extend(wrapped(&format!("  to do: {advice}"), "    ", width));
        }
    }
    out.join("\n") + "\n"
}

/// Most names that a line lists.
const NAMES_MAX: usize = 4;

/// What is wrong with one disk, or with several in the same words: a clock or a vault is not told thirty times.
struct Trouble<'a> {
    names: Vec<&'a str>,
    level: Level,
    reason: &'a str,
    /// What to do, with `NAME` for the disk.
    advice: Option<String>,
}

impl Trouble<'_> {
    fn headline(&self) -> String {
        let level = level(self.level);
        let names = match &self.names[..] {
            [name] => (*name).to_owned(),
            names if names.len() <= NAMES_MAX => names.join(", "),
            names => format!("{} disks ({}, …)", names.len(), names[..NAMES_MAX].join(", ")),
        };
        format!("{names}: {level}: {}", self.reason)
    }

    fn advice(&self) -> Option<String> {
        let advice = self.advice.as_ref()?;
        Some(match &self.names[..] {
            [name] => with_name(advice, "NAME", name),
            _ => advice.clone(),
        })
    }
}

fn troubles(all: &[Shown]) -> Vec<Trouble<'_>> {
    let mut told: Vec<Trouble<'_>> = vec![];
    for shown in all {
        let name = shown.disk.name.as_str();
        let causes = shown.disk.health.causes.iter().filter(|cause| cause.level > Level::Ok);
        for cause in causes {
            let advice = cause.advice.as_ref().map(|advice| of_any(advice, name));
            let same = told.iter_mut().find(|known| {
                known.level == cause.level && known.reason == cause.reason && known.advice == advice
            });
            match same {
                Some(known) => known.names.push(name),
                None => {
                    told.push(Trouble {
                        names: vec![name],
                        level: cause.level,
                        reason: &cause.reason,
                        advice,
                    });
                }
            }
        }
    }
    told
}

/// The advice for any disk: the word `NAME` where it names this one.
fn of_any(advice: &str, name: &str) -> String {
    with_name(advice, name, "NAME")
}

fn with_name(text: &str, name: &str, other: &str) -> String {
    let word = |word: &str| match word.trim_end_matches([',', ';', '.', ':', ')']) {
        bare if bare == name => word.replacen(name, other, 1),
        _ => word.to_owned(),
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn row(shown: &Shown, vaults: &[&str]) -> Vec<Cell> {
    let disk = &shown.disk;
    let none = || String::from("-");
    let target = if disk.only_looked_at { none() } else { short(disk.interval) };
    let rpo = disk.rpo_ns.map_or_else(none, |rpo| short(Duration::from_nanos(rpo)));
    let last = disk.record.last.as_ref();
    let proven = disk.drill.as_ref().and_then(|drill| drill.verdict.as_ref());
    let now = clock::now_unix_ns();
    let next = disk.next_unix_ns.map(|next| match next.saturating_sub(now) {
        0 => "now".into(),
        wait => short(Duration::from_nanos(wait)),
    });
    let compact = |bytes: u64| size(bytes).replace(' ', "");
    // Of a disk that nobody serves nothing is shipped.
    let ships = last.filter(|_| disk.dirty.is_some()).map(|last| {
        let seconds = last.duration.as_secs_f64().max(1e-3);
        format!("{}/s", compact((last.moved.0 as f64 / seconds) as u64))
    });
    let vault = vaults.iter().position(|url| *url == disk.vault);
    vec![
        disk.name.to_string().into(),
        Cell { text: state(shown), style: style(disk.health.level) },
        format!("{rpo}/{target}").into(),
        last.map_or_else(none, |last| last.cycle.to_string()).into(),
        proven
            .filter(|verdict| verdict.passed)
            .map_or_else(none, |verdict| verdict.cycle.to_string())
            .into(),
        disk.dirty.map_or_else(none, |dirty| compact(dirty.0)).into(),
        ships.unwrap_or_else(none).into(),
        next.unwrap_or_else(none).into(),
        vault.map_or_else(none, |n| (n + 1).to_string()).into(),
    ]
}

/// The state, with what the colour says: not everybody sees colours.
fn state(shown: &Shown) -> String {
    match shown.disk.health.level {
        Level::Warning => format!("! {}", shown.headline),
        Level::Ok | Level::Critical => shown.headline.clone(),
    }
}

fn style(level: Level) -> Style {
    match level {
        Level::Ok => Style::new().green(),
        Level::Warning => Style::new().yellow(),
        Level::Critical => Style::new().red().bold(),
    }
}

/// A duration in its largest unit: 13s, 2m, 5h, 40d.
fn short(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7_200 => format!("{}m", seconds / 60),
        seconds @ 7_200..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_disks_have_is_told_once() {
        let advice = "if it is right: backstay prune a --accept-clock; see backstay points a.";
        let any = of_any(advice, "a");
        assert_eq!(
            any,
            "if it is right: backstay prune NAME --accept-clock; see backstay points NAME."
        );
        let trouble = |names: &[&'static str]| Trouble {
            names: names.to_vec(),
            level: Level::Warning,
            reason: "the clock jumped",
            advice: Some(any.clone()),
        };
        assert_eq!(trouble(&["a"]).advice().as_deref(), Some(advice));
        assert_eq!(trouble(&["a", "b"]).advice(), Some(any.clone()));
        let many = trouble(&["a", "b", "c", "d", "e"]).headline();
        assert_eq!(many, "5 disks (a, b, c, d, …): WARNING: the clock jumped");
    }

    #[test]
    fn durations_are_short() {
        let text = |seconds| short(Duration::from_secs(seconds));
        let all = [0, 119, 120, 7_199, 7_200, 172_800].map(text);
        assert_eq!(all, ["0s", "119s", "2m", "119m", "2h", "2d"]);
    }
}
