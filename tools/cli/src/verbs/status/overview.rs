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
    for shown in all {
        let (health, name) = (&shown.disk.health, &shown.disk.name);
        for cause in health.causes.iter().filter(|cause| cause.level > Level::Ok) {
            let text = format!("{name}: {}: {}", level(cause.level), cause.reason);
            out.extend(wrapped(&text, "  ", width));
            if let Some(advice) = &cause.advice {
                out.extend(wrapped(&format!("  to do: {advice}"), "    ", width));
            }
        }
    }
    out.join("\n") + "\n"
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
    let ships = last.map(|last| {
        let seconds = last.duration.as_secs_f64().max(1e-3);
        format!("{}/s", compact((last.moved.0 as f64 / seconds) as u64))
    });
    let vault = vaults.iter().position(|url| *url == disk.vault);
    vec![
        disk.name.to_string().into(),
        Cell { text: shown.headline.clone(), style: style(disk.health.level) },
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
    fn durations_are_short() {
        let text = |seconds| short(Duration::from_secs(seconds));
        let all = [0, 119, 120, 7_199, 7_200, 172_800].map(text);
        assert_eq!(all, ["0s", "119s", "2m", "119m", "2h", "2d"]);
    }
}
