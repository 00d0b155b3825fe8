//! Man pages: section 1 is made of the command's own description, backstay.toml(5) of docs/reference/configuration.md.

use std::io;
use std::path::Path;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

use crate::exit;

const SETTINGS: &str = include_str!("../../../docs/reference/configuration.md");
const VERSION: &str = concat!("Backstay ", env!("CARGO_PKG_VERSION"));

/// What backstay(1) says besides the help.
const OVERVIEW: [&str; 3] = [
    "A driver, one process for each disk, stands between a backing (a file or block device) and its users, and notes \
     which sectors are written. The sidecar, one process for each host, ships them in cycles to a vault: a directory or a \
     prefix in an object store. Each cycle makes a recovery point, which is the disk exactly as it was at one instant.",
    "protect begins with a disk, sidecar makes the points, status says how things are and what to do, doctor checks the host.",
    "From the vault alone, on any host, restore writes a point to a file or device, mount and attach serve it at once, \
     and failover goes on working with it.",
];
const EXAMPLES: &str = "\
Protect a disk, and use it:
  backstay vault init --vault file:///mnt/backup/vault
  dev=$(backstay protect /srv/db.img --name db --attach \\
      --vault file:///mnt/backup/vault)
  mount $dev /mnt/db
  systemctl enable --now backstay-sidecar

See how it is:
  backstay status
  backstay points db

The host is lost. On another one:
  backstay vault ls --vault file:///mnt/backup/vault
  backstay failover unplanned db --attach --vault file:///mnt/backup/vault
  backstay failover commit db";
const FILES: [(&str, &str); 5] = [
    ("/etc/backstay/backstay.toml", "settings; see backstay.toml(5)"),
    ("/etc/backstay/disks/NAME.conf", "flags of the driver that backstay-disk@NAME starts"),
    (
        "/var/lib/backstay",
        "what lasts: a folder for each disk of this host, and what failovers and plans are doing",
    ),
    ("/run/backstay, or /dev/shm/backstay", "sockets and bitmaps, on tmpfs"),
    (
        "/usr/share/doc/backstay",
        "the documentation; docs/broken.md goes from the symptom to the command",
    ),
];
const ENVIRONMENT: [(&str, &str); 4] = [
    ("BACKSTAY_CONFIG, BACKSTAY_VAULT", "the same as --config and --vault"),
    ("BACKSTAY_LOG", "what to log: debug, or backstay_engine=trace"),
    (
        "BACKSTAY_KEY_FILE, BACKSTAY_IDENTITY_FILE, BACKSTAY_PASSPHRASE",
        "what opens an encrypted vault",
    ),
    ("AWS_..., AZURE_..., GOOGLE_...", "credentials of object stores"),
];

/// Writes a page for each verb, the overview, and backstay.toml(5).
pub fn write_all(command: Command, dir: &Path) -> io::Result<()> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    write_commands(&command, dir)?;
    std::fs::write(dir.join("backstay.toml.5"), settings().render())
}

fn write_commands(command: &Command, dir: &Path) -> io::Result<()> {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write_commands(verb, dir)?;
    }
    let name = command.get_display_name().unwrap_or(command.get_name());
    std::fs::write(dir.join(format!("{name}.1")), page(command)?)
}

fn page(command: &Command) -> io::Result<Vec<u8>> {
    let is_overview = command.get_name() == "backstay";
    let man = Man::new(command.clone()).source(VERSION).manual("Backstay");
    let mut page = vec![];
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    let mut more = Roff::new();
    if is_overview {
        for text in OVERVIEW {
            more.control("PP", []).text([roman(text)]);
        }
    }
    more.to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut rest = Roff::new();
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    match is_overview {
        true => {
            examples(&mut rest, EXAMPLES);
            list(&mut rest, "ENVIRONMENT", &ENVIRONMENT);
            list(&mut rest, "FILES", &FILES);
        }
        false => examples(&mut rest, &help),
    }
    let codes = exit::CODES.map(|(code, meaning)| (code.to_string(), meaning));
    list(
        &mut rest,
        "EXIT STATUS",
        &codes.each_ref().map(|(code, meaning)| (code.as_str(), *meaning)),
    );
    rest.control("SH", ["SEE ALSO"]);
    let overview = if is_overview { "mount.backstay(8)" } else { "backstay(1)" };
    rest.text([roman(format!("{overview}, backstay.toml(5)"))]);
    rest.to_writer(&mut page)?;
    Ok(page)
}

fn list(page: &mut Roff, title: &str, entries: &[(&str, &str)]) {
    page.control("SH", [title]);
    for (name, meaning) in entries {
        page.control("TP", []).text([bold(*name)]).text([roman(*meaning)]);
    }
}

/// What follows the options in a help: indented lines are commands, blocks without any are notes.
fn examples(page: &mut Roff, help: &str) {
    let (shown, notes): (Vec<_>, Vec<_>) = help
        .split("\n\n")
        .filter(|block| !block.is_empty())
        .partition(|block| block.contains("\n  "));
    for (title, blocks) in [("EXAMPLES", shown), ("NOTES", notes)] {
        if !blocks.is_empty() {
            page.control("SH", [title]);
        }
        for block in blocks {
            page.control("PP", []);
            let mut code = false;
            for line in block.lines().filter(|line| !line.starts_with("Example")) {
                fence(page, &mut code, line.starts_with("  "));
                page.text([roman(line)]);
            }
            fence(page, &mut code, false);
        }
    }
}

/// Lines that stay as they are begin, or end.
fn fence(page: &mut Roff, code: &mut bool, now: bool) {
    if *code != now {
        page.control(if now { "nf" } else { "fi" }, []);
        *code = now;
    }
}

fn settings() -> Roff {
    let mut page = Roff::new();
    page.control("TH", ["backstay.toml", "5", "", VERSION, "Backstay"]);
    page.control("SH", ["NAME"]).text([roman("backstay.toml - settings of Backstay")]);
    page.control("SH", ["DESCRIPTION"]);
    let (mut code, mut columns, mut paragraph) = (false, vec![], false);
    for line in SETTINGS.lines().skip(1) {
        if line.starts_with("```") {
            let now = !code;
            fence(&mut page, &mut code, now);
        } else if code {
            page.text([roman(format!("    {line}"))]);
        } else if let Some(title) = line.strip_prefix("## ") {
            page.control("SH", [title.to_uppercase().as_str()]);
        } else if let Some(row) = line.strip_prefix("| ") {
            let cells: Vec<&str> = row.trim_end_matches('|').split(" | ").map(str::trim).collect();
            match columns.is_empty() {
                true => columns = cells,
                false => setting(&mut page, &columns, &cells),
            }
        } else if !line.starts_with('|') {
            columns.clear();
            if !line.is_empty() && !paragraph {
                page.control("PP", []);
            }
            page.text(inline(line));
        }
        paragraph = !line.is_empty() && !code && !line.starts_with(['|', '#', '`']);
    }
    page.control("SH", ["SEE ALSO"])
        .text([roman("backstay(1), /usr/share/doc/backstay/docs/reference")]);
    page
}

/// A row of a table: what it is about, what it means, and what the columns between say.
fn setting(page: &mut Roff, columns: &[&str], cells: &[&str]) {
    let (Some((name, more)), Some(meaning)) = (cells.split_first(), cells.last()) else { return };
    page.control("TP", []).text(inline(name)).text(inline(meaning));
    let between = columns.iter().skip(1).zip(&more[..more.len().saturating_sub(1)]);
    let between: Vec<_> = between.map(|(column, cell)| format!("{column}: {cell}")).collect();
    if !between.is_empty() {
        page.control("br", [])
            .text([vec![roman("(")], inline(&between.join("; ")), vec![roman(")")]].concat());
    }
}

/// Text with code in bold, and links without where they lead.
fn inline(text: &str) -> Vec<Inline> {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("](") {
        plain.push_str(&before.replacen('[', "", 1));
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    let parts = plain.split('`').enumerate();
    parts
        .map(|(n, part)| if n % 2 == 1 { bold(part) } else { roman(part.replace("**", "")) })
        .collect()
}
