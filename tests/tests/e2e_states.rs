//! Every state and every command: a host is brought into each state of docs/reference/failover-states.md by real means, and every
//! command is tried in it. What the table allows works; what it refuses ends with exit code 3, changes nothing, and
//! names a command that the table allows, which is therefore tried, too.
//!
//! Needs root, /dev/fuse and loop devices, and a build with debug assertions (they hold the place where commands
//! are killed).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;

use backstay_front::paths::Roots;
use backstay_recovery::failover::rules::{
    Goal, NameKind, NameState, Rule, STEPS_MAX, VERBS, Verb, all, next_step, rule,
};
use backstay_recovery::failover::{FailoverRecord, Kind, State};
use backstay_tests::harness::command::said;
use backstay_tests::harness::service::wait_for;
use backstay_tests::harness::{Disk, Host};

const SIZE: u64 = 1 << 20;

/// A host in a state, and what else has to be there.
struct Made {
    /// The host that is tried.
    host: Arc<Host>,
    /// The other one.
    other: Arc<Host>,
    /// What the failback of this state was given, or may be.
    to: PathBuf,
    /// The backing of the disk, if it is the source.
    backing: PathBuf,
    _others: Vec<Disk>,
    follower: Option<Child>,
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(mut follower) = self.follower.take() {
            let _ = follower.kill();
            let _ = follower.wait();
        }
    }
}

/// A source with a point, and another host with the same vault.
struct Site {
    a: Arc<Host>,
    b: Arc<Host>,
    source: Disk,
    disks: Vec<Disk>,
}

impl Site {
    fn new() -> Self {
        let a = Host::new("states-a");
        let b = a.another("states-b");
        let config = format!("vault = \"{}\"\nallow_local_vault = true\n", a.vault());
        fs::write(b.path("backstay.toml"), config).unwrap();
        let source = a.disk("db", SIZE);
        let served = source.mount(&[]);
        let file = fs::File::options().write(true).open(served).unwrap();
        file.write_all_at(b"something", 4096).unwrap();
        drop(file);
        source.cycle();
        // For their clean-up.
        let disks = vec![a.disk("db.test", 512), b.disk("db", SIZE), b.disk("db.test", 512)];
        Self { a, b, source, disks }
    }

    fn made(self, target: bool) -> Made {
        let (host, other) = if target { (&self.b, &self.a) } else { (&self.a, &self.b) };
        let (host, other) = (Arc::clone(host), Arc::clone(other));
        let backing = match target {
            true => host.path("new.img"),
            false => self.source.backing.clone(),
        };
        let mut others = self.disks;
        others.push(self.source);
        Made { to: backing.clone(), backing, host, other, _others: others, follower: None }
    }

    fn planned(&self) {
        self.a.backstay(&["failover", "handover", "db"]);
        self.b.backstay(&["failover", "planned", "db"]);
    }

    /// Another host has the disk.
    fn migrate(&self) {
        self.planned();
        self.b.backstay(&["failover", "commit", "db"]);
    }
}

fn record(host: &Host) -> Option<FailoverRecord> {
    FailoverRecord::load(&host.path("state"), &"db".parse().unwrap()).unwrap()
}

fn standing(host: &Host) -> NameState {
    let roots = Roots::new(Some(host.path("state")), Some(host.runtime.clone()));
    NameState::look(&roots, &"db".parse().unwrap()).unwrap()
}

/// Has a command killed at its steps until its record is in a state.
fn killed_in(host: &Host, state: State, args: &[&str]) {
    // A command that goes on comes to its end in fewer steps than from the beginning.
    for step in (0..40).flat_map(|step| [step, step]) {
        let mut command = host.command();
        command.args(args).env("BACKSTAY_TEST_DIE_AT", format!("failover:{step}"));
        let output = command.stdin(Stdio::null()).output().unwrap();
        if record(host).is_some_and(|record| record.state == state) {
            return;
        }
        assert!(said(&output).contains("killed at step"), "{state:?} {args:?}: {}", said(&output));
    }
    panic!("{args:?} does not come to {state:?}");
}

/// Brings a target to a state.
fn target(site: &Site, kind: Kind, state: State) {
    let b = &site.b;
    let up: &[&str] = match kind {
        Kind::Test => &["failover", "test", "db", "--as", "db"],
        Kind::Planned => &["failover", "planned", "db"],
        _ => &["failover", "unplanned", "db"],
    };
    if kind == Kind::Planned {
        site.a.backstay(&["failover", "handover", "db"]);
    }
    match state {
        State::Starting => return killed_in(b, state, up),
        _ => drop(b.backstay(up)),
    }
    let cancel = if kind == Kind::Test { "cleanup" } else { "cancel" };
    match state {
        State::Removing => killed_in(b, state, &["failover", cancel, "db"]),
        State::Committing => killed_in(b, state, &["failover", "commit", "db"]),
        State::Committed => drop(b.backstay(&["failover", "commit", "db"])),
        _ => {}
    }
}

/// Brings a host into a state.
fn make(wanted: NameState) -> Made {
    let site = Site::new();
    let (a, b) = (Arc::clone(&site.a), Arc::clone(&site.b));
    let new = b.path("new.img").to_string_lossy().into_owned();
    let stop = |host: &Host| {
        if !wanted.at_work && standing(host).at_work {
            host.backstay(&["umount", "db"]);
        }
    };
    let made = match wanted.what {
        NameKind::Nothing => {
            a.backstay(&["failover", "handover", "db"]);
            site.made(true)
        }
        NameKind::Disk => {
            stop(&a);
            site.made(false)
        }
        NameKind::Elsewhere => {
            b.backstay(&["failover", "unplanned", "db"]);
            b.backstay(&["failover", "commit", "db"]);
            assert!(!a.try_backstay(&["cycle", "db"]).status.success());
            stop(&a);
            site.made(false)
        }
        NameKind::Point => {
            b.backstay(&["mount", "--disk", "db", "--name", "db", "--point", "latest"]);
            stop(&b);
            site.made(true)
        }
        NameKind::Replica => {
            b.backstay(&["replica", "db", "--to", &new, "--once"]);
            let follower = wanted.at_work.then(|| b.start(&["replica", "db", "--follow"]));
            wait_for("the follower", || standing(&b).at_work == wanted.at_work);
            let mut made = site.made(true);
            made.follower = follower;
            made
        }
        NameKind::TakenOver => {
            b.backstay(&["replica", "db", "--to", &new, "--once"]);
            b.backstay(&["replica", "db", "--take-over"]);
            stop(&b);
            site.made(true)
        }
        NameKind::Failover(Kind::Source, state) => {
            of_source(&site, state);
            site.made(false)
        }
        NameKind::Failover(Kind::Failback, state) => {
            let to = site.source.backing.clone();
            of_failback(&site, state, &to);
            site.made(false)
        }
        NameKind::Failover(kind, state) => {
            target(&site, kind, state);
            if matches!(state, State::Up | State::Committed) {
                stop(&b);
            }
            site.made(true)
        }
        NameKind::Orphan(Kind::Source, state) => {
            of_source(&site, state);
            lose(&a);
            let mut made = site.made(false);
            made.to = a.path("new.img");
            made
        }
        NameKind::Orphan(Kind::Failback, state) => {
            let to = a.path("new.img");
            of_failback(&site, state, &to);
            if standing(&a).at_work {
                a.backstay(&["umount", "db"]);
            }
            fs::remove_file(&to).unwrap();
            let mut made = site.made(false);
            made.to = to;
            made
        }
        NameKind::Orphan(kind, state) => {
            target(&site, kind, state);
            lose(&b);
            site.made(true)
        }
    };
    let is = standing(&made.host);
    // On the way to a state, a driver may serve already.
    assert_eq!(is.what, wanted.what);
    if all().iter().filter(|one| one.what == wanted.what).count() == 2 {
        assert_eq!(is, wanted);
    }
    made
}

/// All that a host had of the disk is gone, but for the record.
fn lose(host: &Host) {
    if standing(host).at_work {
        host.backstay(&["umount", "db"]);
    }
    fs::remove_dir_all(host.path("state/db")).unwrap();
    let _ = fs::remove_dir_all(host.runtime.join("db"));
}

fn of_source(site: &Site, state: State) {
    let a = &site.a;
    match state {
        State::HandingOver => killed_in(a, state, &["failover", "handover", "db"]),
        State::Removing => {
            site.migrate();
            killed_in(a, state, &["unprotect", "db", "--keep-points"]);
            // So that it can come here again.
            site.b.backstay(&["failover", "handover", "db"]);
        }
        _ => {
            a.backstay(&["failover", "handover", "db"]);
            if state == State::TakingBack {
                killed_in(a, state, &["failover", "cancel", "db"]);
            }
        }
    }
}

fn of_failback(site: &Site, state: State, to: &std::path::Path) {
    site.migrate();
    let to = to.to_string_lossy().into_owned();
    let failback = ["failback", "db", "--to", &to];
    match state {
        State::Seeding => drop(site.a.backstay(&[&failback[..], &["--once"]].concat())),
        _ => {
            site.b.backstay(&["failover", "handover", "db"]);
            killed_in(&site.a, state, &failback);
        }
    }
}

/// A command as a person would type it in this state.
fn args(made: &Made, wanted: NameState, verb: Verb) -> Vec<String> {
    let (to, backing) = (made.to.to_string_lossy(), made.backing.to_string_lossy());
    let elsewhere = format!("file://{}", made.host.path("other-vault").display());
    let words: Vec<&str> = match verb {
        Verb::Test => vec!["failover", "test", "db"],
        Verb::TestAs => vec!["failover", "test", "db", "--as", "db"],
        Verb::Planned => vec!["failover", "planned", "db"],
        Verb::Unplanned => vec!["failover", "unplanned", "db"],
        Verb::UnplannedReplica => vec!["failover", "unplanned", "db", "--replica"],
        Verb::Change => vec!["failover", "change", "db", "--point", "1"],
        Verb::Commit => vec!["failover", "commit", "db"],
        Verb::Cancel => vec!["failover", "cancel", "db"],
        Verb::Cleanup => vec!["failover", "cleanup", "db"],
        Verb::Handover => vec!["failover", "handover", "db"],
        Verb::Failback => vec!["failback", "db", "--to", &to, "--once"],
        Verb::Protect if wanted.what == NameKind::Nothing => {
            fs::File::create(&made.backing).unwrap().set_len(SIZE).unwrap();
            vec!["protect", &backing, "--name", "db", "--vault", &elsewhere]
        }
        Verb::Protect => vec!["protect", &backing, "--name", "db"],
        Verb::Unprotect => vec!["unprotect", "db", "--keep-points"],
        Verb::Delete => vec!["unprotect", "db", "--delete-points", "--yes"],
        Verb::Replica if wanted.what == NameKind::Nothing => {
            vec!["replica", "db", "--to", &backing, "--once"]
        }
        Verb::Replica => vec!["replica", "db", "--once"],
        Verb::StopReplica => vec!["replica", "db", "--stop"],
        Verb::TakeOver => vec!["replica", "db", "--take-over"],
        // A point of the vault is only served when it is asked for.
        Verb::Mount if wanted.what == NameKind::Nothing => vec!["mount", "--disk", "db"],
        Verb::Attach if wanted.what == NameKind::Nothing => vec!["attach", "--disk", "db"],
        Verb::Mount => vec!["mount", "--name", "db"],
        Verb::Umount => vec!["umount", "db"],
        Verb::Forget => vec!["umount", "db", "--forget"],
        Verb::Attach => vec!["attach", "--name", "db"],
        Verb::Detach => vec!["detach", "db"],
        Verb::Cycle => vec!["cycle", "db"],
        Verb::Status => vec!["failover", "status"],
    };
    words.into_iter().map(str::to_owned).collect()
}

/// Follows the commands to a goal, from state to state.
fn reach(wanted: NameState, goal: Goal) -> Result<usize, String> {
    let made = make(wanted);
    for steps in 0..=STEPS_MAX {
        let now = standing(&made.host);
        let Some(verb) = next_step(now, goal) else {
            return match goal {
                Goal::Nothing if record(&made.host).is_some() => Err("a record is left".into()),
                Goal::Nothing if made.host.path("state/db").exists() => Err("state is left".into()),
                Goal::Nothing => Ok(steps),
                // What it leads to is protected: it gets a point.
                Goal::Protected => {
                    let cycle = made.host.try_backstay(&["cycle", "db"]);
                    cycle.status.success().then_some(steps).ok_or_else(|| said(&cycle))
                }
            };
        };
        if verb == Verb::Failback {
            // The other host gives it, unless it did already.
            let _ = made.other.try_backstay(&["failover", "handover", "db"]);
        }
        let mut words = args(&made, now, verb);
        words.retain(|word| word != "--once" || verb != Verb::Failback);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = made.host.try_backstay(&words);
        if !output.status.success() {
            return Err(format!("{now:?}: {words:?}: {}", said(&output)));
        }
    }
    Err(format!("not there in {STEPS_MAX} commands, but {:?}", standing(&made.host)))
}

fn try_it(made: &Made, wanted: NameState, verb: Verb) -> (Option<i32>, String) {
    let args = args(made, wanted, verb);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = made.host.try_backstay(&args);
    (output.status.code(), said(&output))
}

/// Tries every command in a state.
fn walk(wanted: NameState) {
    let mut wrong = vec![];
    let made = make(wanted);
    let before = (standing(&made.host), record(&made.host));
    let (mut works, mut tried) = (vec![], 0);
    for verb in VERBS {
        tried += 1;
        let Rule::Refused { instead } = rule(wanted, verb) else {
            works.push(verb);
            continue;
        };
        // A driver that serves on the way to a state can be stopped.
        if before.0 != wanted && rule(before.0, verb) == Rule::Allowed {
            continue;
        }
        let (code, said) = try_it(&made, wanted, verb);
        let command = instead.command("db");
        // A cycle of a disk that another host has asks the vault, and fails.
        let asks = matches!(wanted.what, NameKind::Elsewhere | NameKind::TakenOver);
        let fails = asks && verb == Verb::Cycle && code == Some(1);
        if !(code == Some(3) || fails) || !said.contains(&command) {
            wrong.push(format!("{verb:?}: exit {code:?}, not 3 with {command:?}: {said}"));
        }
        let after = (standing(&made.host), record(&made.host));
        if after != before {
            wrong.push(format!("{verb:?} was refused and changed {before:?} to {after:?}: {said}"));
        }
    }
    // These change nothing that the next one needs.
    let (free, works): (Vec<_>, Vec<_>) =
        works.into_iter().partition(|verb| matches!(verb, Verb::Status | Verb::Test));
    let mut made = Some(made);
    for verb in free.into_iter().chain(works) {
        let made = made.take().unwrap_or_else(|| make(wanted));
        let (code, said) = try_it(&made, wanted, verb);
        if code != Some(0) {
            wrong.push(format!("{verb:?} is allowed and failed with {code:?}: {said}"));
        }
    }
    for goal in [Goal::Nothing, Goal::Protected] {
        match reach(wanted, goal) {
            Ok(steps) => println!("{wanted:?}: {goal:?} in {steps} commands"),
            Err(why) => wrong.push(format!("{goal:?} is not reached: {why}")),
        }
    }
    assert!(wrong.is_empty(), "{wanted:?}:\n{}", wrong.join("\n"));
    println!("{wanted:?}: {tried} commands");
}

fn walk_all(of: impl Fn(NameKind) -> bool) {
    let one = std::env::var("BACKSTAY_TEST_STATE").ok();
    let mut wrong = vec![];
    for wanted in all().into_iter().filter(|standing| of(standing.what)) {
        if one.as_ref().is_some_and(|one| !format!("{wanted:?}").contains(one.as_str())) {
            continue;
        }
        if let Err(panic) = std::panic::catch_unwind(|| walk(wanted)) {
            let said = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            wrong.push(format!("{wanted:?}: {said}"));
        }
    }
    assert!(wrong.is_empty(), "{} states: {}", wrong.len(), wrong.join("\n\n"));
}

#[test]
fn every_command_where_no_failover_is() {
    walk_all(|what| !matches!(what, NameKind::Failover(..) | NameKind::Orphan(..)));
}

#[test]
fn every_command_in_a_test_failover() {
    walk_all(|what| matches!(what, NameKind::Failover(Kind::Test, _)));
}

#[test]
fn every_command_in_a_planned_failover() {
    walk_all(|what| matches!(what, NameKind::Failover(Kind::Planned, _)));
}

#[test]
fn every_command_in_an_unplanned_failover() {
    walk_all(|what| matches!(what, NameKind::Failover(Kind::Unplanned, _)));
}

#[test]
fn every_command_on_the_source_of_a_failover() {
    walk_all(|what| matches!(what, NameKind::Failover(Kind::Source, _)));
}

#[test]
fn every_command_in_a_failback() {
    walk_all(|what| matches!(what, NameKind::Failover(Kind::Failback, _)));
}

#[test]
fn every_command_where_only_a_record_is_left() {
    walk_all(|what| matches!(what, NameKind::Orphan(..)));
}
