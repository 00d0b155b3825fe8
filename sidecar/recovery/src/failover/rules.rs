//! What each verb does in each state: one function, [`rule`], which the verbs ask before they change anything.
//! docs/reference/failover-states.md shows the rules as a table, and a test compares the two.
//!
//! A refusal names a verb that is allowed in that state, so that messages never lead in circles.

use backstay_engine::record::Record;
use backstay_front::control::ControlClient;
use backstay_front::paths::{DiskPaths, Roots};
use backstay_types::DiskName;

use super::lock::is_lent;
use super::record::STATES;
use super::{FailoverError, FailoverRecord, Kind, State, way_on};
use crate::replica::{self, ReplicaRecord, ReplicaState as Held};

/// What this host has under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NameKind {
    /// Nothing.
    Nothing,
    /// A disk with a backing: protected, or only served.
    Disk,
    /// The same, and another host has taken it over.
    Elsewhere,
    /// A mounted recovery point that is not part of a failover.
    Point,
    /// A replica.
    Replica,
    /// A replica that was taken over and not committed: a disk whose writer is another host.
    TakenOver,
    /// The state of a failover.
    Failover(Kind, State),
    /// A failover's record without any disk, point or replica.
    Orphan(Kind, State),
}

/// A name's state on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NameState {
    /// What is there.
    pub what: NameKind,
    /// Whether a driver serves the name; for a replica, whether its process runs.
    pub at_work: bool,
}

/// A command whose permission depends on the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// `failover test` under the same name.
    TestAs,
    /// `failover test` under a separate name.
    Test,
    /// `failover planned`.
    Planned,
    /// `failover unplanned`.
    Unplanned,
    /// `failover unplanned --replica`.
    UnplannedReplica,
    /// `failover change`.
    Change,
    /// `failover commit`.
    Commit,
    /// `failover cancel`.
    Cancel,
    /// `failover cleanup`.
    Cleanup,
    /// `failover handover`.
    Handover,
    /// `failback`.
    Failback,
    /// `protect`.
    Protect,
    /// `unprotect --keep-points`.
    Unprotect,
    /// `unprotect --delete-points`.
    Delete,
    /// `replica`, to begin or continue one.
    Replica,
    /// `replica --stop`.
    StopReplica,
    /// `replica --take-over`.
    TakeOver,
    /// `mount`.
    Mount,
    /// `umount`.
    Umount,
    /// `umount --forget`.
    Forget,
    /// `attach`.
    Attach,
    /// `detach`.
    Detach,
    /// `cycle`.
    Cycle,
    /// `failover status`.
    Status,
}

/// All verbs, in the order of the table.
pub const VERBS: [Verb; 24] = [
    Verb::Test,
    Verb::TestAs,
    Verb::Planned,
    Verb::Unplanned,
    Verb::UnplannedReplica,
    Verb::Change,
    Verb::Commit,
    Verb::Cancel,
    Verb::Cleanup,
    Verb::Handover,
    Verb::Failback,
    Verb::Protect,
    Verb::Unprotect,
    Verb::Delete,
    Verb::Replica,
    Verb::StopReplica,
    Verb::TakeOver,
    Verb::Mount,
    Verb::Umount,
    Verb::Forget,
    Verb::Attach,
    Verb::Detach,
    Verb::Cycle,
    Verb::Status,
];

/// What a verb does in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The state allows the verb.
    Allowed,
    /// The verb changes nothing and names another verb that is allowed.
    Refused {
        /// The allowed verb.
        instead: Verb,
    },
}

impl Verb {
    /// The command line to type. The reader replaces the words in capitals.
    #[must_use]
    pub fn command(self, name: &str) -> String {
        let words = match self {
            Self::TestAs => "failover test DISK --as {}",
            Self::Test => "failover test {}",
            Self::Planned => "failover planned {}",
            Self::Unplanned => "failover unplanned {}",
            Self::UnplannedReplica => "failover unplanned {} --replica",
            Self::Change => "failover change {}",
            Self::Commit => "failover commit {}",
            Self::Cancel => "failover cancel {}",
            Self::Cleanup => "failover cleanup {}",
            Self::Handover => "failover handover {}",
            Self::Failback => "failback {} --to BACKING",
            Self::Protect => "protect BACKING --name {}",
            Self::Unprotect => "unprotect {} --keep-points",
            Self::Delete => "unprotect {} --delete-points",
            Self::Replica => "replica {} --to FILE",
            Self::StopReplica => "replica {} --stop",
            Self::TakeOver => "replica {} --take-over",
            Self::Mount => "mount --name {}",
            Self::Umount => "umount {}",
            Self::Forget => "umount {} --forget",
            Self::Attach => "attach --name {}",
            Self::Detach => "detach {}",
            Self::Cycle => "cycle {}",
            Self::Status => "failover status",
        };
        format!("backstay {}", words.replace("{}", name))
    }

    /// A short name for the table.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::TestAs => "test --as NAME",
            Self::Test => "test",
            Self::Planned => "planned",
            Self::Unplanned => "unplanned",
            Self::UnplannedReplica => "unplanned --replica",
            Self::Change => "change",
            Self::Commit => "commit",
            Self::Cancel => "cancel",
            Self::Cleanup => "cleanup",
            Self::Handover => "handover",
            Self::Failback => "failback",
            Self::Protect => "protect",
            Self::Unprotect => "unprotect --keep-points",
            Self::Delete => "unprotect --delete-points",
            Self::Replica => "replica",
            Self::StopReplica => "replica --stop",
            Self::TakeOver => "replica --take-over",
            Self::Mount => "mount",
            Self::Umount => "umount",
            Self::Forget => "umount --forget",
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Cycle => "cycle",
            Self::Status => "status",
        }
    }

    /// What the verb does, in a few words.
    fn does(self) -> &'static str {
        match self {
            Self::TestAs | Self::Test => "tries a recovery point, under another name",
            Self::Planned | Self::Unplanned => "brings a recovery point up on this host",
            Self::UnplannedReplica => "makes it a disk that can be committed",
            Self::Change => "brings another recovery point up",
            Self::Commit => "makes it this host's",
            Self::Cancel => "gives it up",
            Self::Cleanup => "removes it",
            Self::Handover => "gives it to another host",
            Self::Failback => "brings it back",
            Self::Protect => "protects a disk under this name",
            Self::Unprotect => {
                "removes it from this host, and keeps its backing and recovery points"
            }
            Self::Delete => "ends its protection and deletes its recovery points",
            Self::Replica => "begins one",
            Self::StopReplica => "stops the process that keeps it",
            Self::TakeOver => "serves it",
            Self::Mount | Self::Attach => "serves it",
            Self::Umount | Self::Detach => "stops serving it",
            Self::Forget => "removes it, with what was written to it",
            Self::Cycle => "makes a recovery point",
            Self::Status => "shows what is under way on this host",
        }
    }
}

impl NameKind {
    /// In words, as what "it" is.
    #[must_use]
    pub fn explain(self) -> String {
        match self {
            Self::Nothing => "not on this host, nor in a failover of it".into(),
            Self::Disk => "a disk of this host".into(),
            Self::Elsewhere => "a disk that was failed over to another host".into(),
            Self::Point => "a mounted recovery point".into(),
            Self::Replica => "a replica".into(),
            Self::TakenOver => "a replica that was taken over".into(),
            Self::Failover(Kind::Test, state) => format!("a test failover, {}", state.explain()),
            Self::Failover(_, State::Committed) => {
                "committed, and what was written to it is kept with its state: it is the disk"
                    .into()
            }
            Self::Failover(_, state) => state.explain().into(),
            Self::Orphan(_, state) => {
                format!(
                    "gone from this host; only the record of its failover is left ({})",
                    state.explain()
                )
            }
        }
    }
}

impl NameState {
    /// Finds out the state of a name.
    ///
    /// # Errors
    /// If a record cannot be read: then the state is unknown.
    pub fn look(roots: &Roots, name: &DiskName) -> Result<Self, FailoverError> {
        let paths = roots.disk(name);
        let served = ControlClient::connect(&paths.control_socket()).is_ok();
        let is_point =
            paths.state.join("mounted").exists() || paths.state.join("mounted.unfinished").exists();
        let is_disk = paths.state.join("super").exists();
        let what = match FailoverRecord::load(&roots.state, name)? {
            Some(record) if is_orphan(&record, &paths) => {
                NameKind::Orphan(record.kind, record.state)
            }
            // After a committed failover the disk is an ordinary one. But the writes to a mounted point are part of
            // the failover's state.
            Some(record) if record.state == State::Committed && !is_point => disk(&paths),
            Some(record) => NameKind::Failover(record.kind, record.state),
            None if is_point => NameKind::Point,
            None if is_disk && is_taken_over(&paths) => NameKind::TakenOver,
            None if is_disk => disk(&paths),
            None if is_replica(&paths) => NameKind::Replica,
            None if served => NameKind::Disk,
            None => NameKind::Nothing,
        };
        let at_work = match what {
            NameKind::Replica => replica::status::runner(&paths).is_some(),
            _ => served,
        };
        Ok(Self { what, at_work })
    }
}

/// This host learns of another writer only when the vault refuses a cycle.
fn disk(paths: &DiskPaths) -> NameKind {
    match Record::load(&paths.state).failure {
        Some(failure) if failure.fenced => NameKind::Elsewhere,
        _ => NameKind::Disk,
    }
}

/// An unreadable record counts as a replica: the verb `replica` reports the error.
fn is_replica(paths: &DiskPaths) -> bool {
    !matches!(ReplicaRecord::load(&replica::folder(paths)), Ok(None))
}

/// A replica that was taken over becomes an ordinary disk with its first cycle, and that needs a commit.
fn is_taken_over(paths: &DiskPaths) -> bool {
    let record = ReplicaRecord::load(&replica::folder(paths)).ok().flatten();
    record.is_some_and(|record| matches!(record.standing, Held::TakenOver { .. }))
        && Record::load(&paths.state).last.is_none()
}

/// Whether a record has no disk, point or replica left, and only reserves the name. This does not include a target
/// that never came up: `cancel` and `cleanup` remove it.
#[must_use]
pub fn is_orphan(record: &FailoverRecord, paths: &DiskPaths) -> bool {
    let held = ["super", "mounted", "mounted.unfinished"].map(|part| paths.state.join(part));
    let empty = !held.iter().any(|part| part.exists()) && !is_replica(paths);
    let unbacked = record.backing.as_ref().is_some_and(|backing| !backing.exists());
    match (record.kind, record.state) {
        (Kind::Failback, State::Committed) => empty,
        // A failback that has no target file yet creates it.
        (Kind::Failback, State::Seeding) => {
            unbacked && !held.iter().any(|part| part.exists()) && is_replica(paths)
        }
        (Kind::Failback, _) => empty || unbacked,
        (Kind::Source, State::Removing) => false,
        (Kind::Source, _) | (_, State::Committing | State::Committed) => empty,
        _ => false,
    }
}

/// The rule for a verb in a state.
#[must_use]
pub fn rule(standing: NameState, verb: Verb) -> Rule {
    use Verb::*;
    if matches!(verb, Test | Status) {
        return Rule::Allowed;
    }
    let (allowed, instead) = in_state(standing, verb);
    match allowed {
        true => Rule::Allowed,
        false => Rule::Refused { instead },
    }
}

/// The rule for verbs that start or stop serving; none for other verbs.
fn serving(at_work: bool, verb: Verb) -> Option<(bool, Verb)> {
    match verb {
        Verb::Mount => Some((!at_work, Verb::Umount)),
        Verb::Attach => Some((true, Verb::Umount)),
        Verb::Umount | Verb::Detach => Some((at_work, Verb::Mount)),
        _ => None,
    }
}

/// Whether a verb is allowed, and which verb to use instead.
fn in_state(NameState { what, at_work }: NameState, verb: Verb) -> (bool, Verb) {
    use Verb::*;
    let is = |verbs: &[Verb]| verbs.contains(&verb);
    if let (
        NameKind::Disk | NameKind::Elsewhere | NameKind::Point | NameKind::TakenOver,
        Some(serving),
    ) = (what, serving(at_work, verb))
    {
        return serving;
    }
    match what {
        NameKind::Nothing => {
            let instead = match verb {
                Change | Commit => Unplanned,
                TakeOver | UnplannedReplica | StopReplica => Replica,
                Handover | Cycle => Protect,
                _ => Status,
            };
            (is(&[TestAs, Planned, Unplanned, Failback, Protect, Replica, Mount, Attach]), instead)
        }
        NameKind::Disk => match verb {
            Unprotect | Delete | Handover => (true, Status),
            Cycle => (at_work, Mount),
            Protect => (!at_work, Umount),
            TestAs => (false, Test),
            Forget => (false, Unprotect),
            Planned | Unplanned | UnplannedReplica | Replica => (false, Handover),
            _ => (false, Status),
        },
        NameKind::Elsewhere => match verb {
            Unprotect | Failback => (true, Status),
            TestAs => (false, Test),
            Forget | Delete => (false, Unprotect),
            _ => (false, Failback),
        },
        NameKind::Point => (verb == Forget, Forget),
        NameKind::Replica => match verb {
            TakeOver | UnplannedReplica => (true, Status),
            StopReplica => (at_work, Unprotect),
            Unprotect | Replica | Failback => (!at_work, StopReplica),
            TestAs => (false, Test),
            Planned | Unplanned | Commit | Handover | Mount | Attach | Cycle | Protect => {
                (false, UnplannedReplica)
            }
            _ if at_work => (false, StopReplica),
            _ => (false, Unprotect),
        },
        NameKind::TakenOver => match verb {
            UnplannedReplica | Unprotect => (true, Status),
            TakeOver => (!at_work, Umount),
            TestAs => (false, Test),
            Delete | Forget => (false, Unprotect),
            _ => (false, UnplannedReplica),
        },
        NameKind::Failover(kind, state) => in_failover(kind, state, at_work, verb),
        NameKind::Orphan(kind, state) => {
            let more: &[Verb] = match (kind, state) {
                (_, State::Committed) => &[Unprotect],
                (_, State::HandedOver) => &[Unprotect, Failback],
                _ => &[],
            };
            (verb == Cancel || is(more), Cancel)
        }
    }
}

fn in_failover(kind: Kind, state: State, at_work: bool, verb: Verb) -> (bool, Verb) {
    use Verb::*;
    let is = |verbs: &[Verb]| verbs.contains(&verb);
    let is_target = !matches!(kind, Kind::Source | Kind::Failback);
    if is_target
        && let (State::Up | State::Committed, Some(serving)) = (state, serving(at_work, verb))
    {
        return serving;
    }
    // A served disk can be stopped in every state except during a handover.
    if at_work && is(&[Umount, Detach]) && state != State::HandingOver {
        return (true, Status);
    }
    let begun: &[Verb] = match kind {
        Kind::Planned => &[Planned],
        _ => &[Unplanned, UnplannedReplica],
    };
    match (kind, state) {
        (Kind::Test, State::Starting) => (is(&[TestAs, Cleanup, Cancel]), Cleanup),
        (Kind::Test, State::Up) => (is(&[TestAs, Change, Cleanup, Cancel]), Cleanup),
        (Kind::Test, _) => (is(&[Cleanup, Cancel]), Cleanup),
        (Kind::Source, State::HandingOver) => (is(&[Handover, Cancel]), Cancel),
        (Kind::Source, State::HandedOver) => {
            let instead = match verb {
                Planned | Unplanned | UnplannedReplica | Replica => Failback,
                Delete | Forget => Unprotect,
                TestAs => Test,
                _ => Cancel,
            };
            (is(&[Handover, Cancel, Failback, Unprotect]), instead)
        }
        (Kind::Source, State::Removing) => {
            (is(&[Unprotect, Planned, Unplanned, TestAs]), Unprotect)
        }
        (Kind::Source, _) => (verb == Cancel, Cancel),
        (Kind::Failback, State::Seeding) => {
            let instead = match verb {
                Unprotect | Delete | Forget | Replica | Protect => Cancel,
                _ => Failback,
            };
            (is(&[Failback, Cancel]), instead)
        }
        (Kind::Failback, State::Committing) => (is(&[Failback, Commit]), Failback),
        (Kind::Failback, _) => (verb == Failback, Failback),
        (_, State::Starting) => (verb == Cancel || is(begun), Cancel),
        (_, State::Up) => {
            let instead = match verb {
                Cycle | Protect | Handover => Commit,
                _ => Cancel,
            };
            (is(&[Change, Commit, Cancel]) || is(begun), instead)
        }
        // The vault knows whether the term is already taken. If it is, `cancel` is refused later.
        (_, State::Committing) => (is(&[Commit, Cancel]), Commit),
        (_, State::Committed) => {
            let instead = match verb {
                TestAs => Test,
                Change | Commit | Cleanup | StopReplica | TakeOver => Status,
                Cycle => Mount,
                _ => Handover,
            };
            (verb == Handover || (verb == Cycle && at_work), instead)
        }
        (_, State::Removing | State::TakingBack) => (verb == Cancel, Cancel),
        _ => (verb == Cancel, Cancel),
    }
}

/// A person's goal for a name on this host, from any state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Nothing of the disk is left on this host, except backings and files.
    Nothing,
    /// The name is a disk of this host and gets recovery points.
    Protected,
}

/// The next command on the way to a goal; none if the goal is reached. Following it from state to state takes at most
/// [`STEPS_MAX`] commands; docs/reference/failover-states.md has it as a table. A `failback` on the way waits for the
/// other host's `failover handover`.
#[must_use]
pub fn next_step(standing: NameState, goal: Goal) -> Option<Verb> {
    use Verb::*;
    let to_protected = goal == Goal::Protected;
    Some(match (standing.what, standing.at_work) {
        (NameKind::Nothing, _) if to_protected => Protect,
        (NameKind::Nothing, _) => return None,
        (NameKind::Disk, served) if to_protected => match served {
            true => return None,
            false => Mount,
        },
        (NameKind::Elsewhere, _) if to_protected => Failback,
        (NameKind::Disk | NameKind::Elsewhere, _) => Unprotect,
        (NameKind::Point, _) => Forget,
        (NameKind::Replica | NameKind::TakenOver, _) if to_protected => UnplannedReplica,
        (NameKind::Replica, true) => StopReplica,
        (NameKind::Replica | NameKind::TakenOver, _) => Unprotect,
        (NameKind::Orphan(..), _) => Cancel,
        (NameKind::Failover(kind, state), served) => match (kind, state) {
            (Kind::Test, _) => Cleanup,
            (Kind::Source, State::Removing) if to_protected => Planned,
            (Kind::Source, State::HandedOver) if !to_protected => Unprotect,
            (Kind::Source, State::Removing) => Unprotect,
            (Kind::Failback, State::Seeding) if !to_protected => Cancel,
            (Kind::Failback, _) => Failback,
            (_, State::Committing) => Commit,
            (Kind::Planned | Kind::Unplanned, State::Committed) => match (to_protected, served) {
                (true, true) => return None,
                (true, false) => Mount,
                (false, _) => Handover,
            },
            (Kind::Planned, State::Starting) if to_protected => Planned,
            (Kind::Unplanned, State::Starting) if to_protected => Unplanned,
            (Kind::Planned | Kind::Unplanned, State::Up) if to_protected => Commit,
            _ => Cancel,
        },
    })
}

/// The largest number of commands on the way to a goal.
pub const STEPS_MAX: usize = 3;

/// Why a verb is refused in a state, and which command leads on; none if the verb is allowed.
#[must_use]
pub fn refusal(standing: NameState, name: &DiskName, verb: Verb) -> Option<FailoverError> {
    let Rule::Refused { instead } = rule(standing, verb) else { return None };
    let command = instead.command(name.as_str());
    let known = match standing.what {
        NameKind::Failover(kind, state) => Some(way_on(name, kind, state)),
        NameKind::Orphan(..) => Some(format!("{command} frees the name")),
        _ => None,
    };
    let ways = match known.filter(|ways| ways.contains(&command)) {
        Some(ways) => ways,
        None => format!("{command} {}", instead.does()),
    };
    let at_work = match (standing.what, standing.at_work) {
        (NameKind::Replica, true) => ", and a process keeps it",
        (NameKind::Replica, false) => "",
        (_, true) => ", and it is served",
        (NameKind::Disk | NameKind::Elsewhere | NameKind::Point | NameKind::TakenOver, false) => {
            ", and it is not served"
        }
        _ => "",
    };
    let reason = format!("it is {}{at_work}: {ways}", standing.what.explain());
    Some(FailoverError::Refused { name: name.clone(), reason })
}

/// Checks the rule before a verb changes anything. A command that another command started for the same name is not
/// checked: the other one already was.
///
/// # Errors
/// A refusal that names the next command, or a record that cannot be read.
pub fn check(roots: &Roots, name: &DiskName, verb: Verb) -> Result<NameState, FailoverError> {
    let standing = NameState::look(roots, name)?;
    match refusal(standing, name, verb) {
        Some(refusal) if !is_lent(&roots.state, name) => Err(refusal),
        _ => Ok(standing),
    }
}

/// All possible standings, for the table and for tests.
#[must_use]
pub fn all() -> Vec<NameState> {
    let both = |what| [true, false].map(|at_work| NameState { what, at_work });
    let mut all = vec![NameState { what: NameKind::Nothing, at_work: false }];
    for what in [
        NameKind::Disk,
        NameKind::Elsewhere,
        NameKind::Point,
        NameKind::Replica,
        NameKind::TakenOver,
    ] {
        all.extend(both(what));
    }
    for kind in [Kind::Test, Kind::Planned, Kind::Unplanned, Kind::Source, Kind::Failback] {
        for state in STATES.into_iter().filter(|&state| comes_to(kind, state)) {
            let what = NameKind::Failover(kind, state);
            match (kind, state) {
                (Kind::Test | Kind::Planned | Kind::Unplanned, State::Up | State::Committed) => {
                    all.extend(both(what));
                }
                _ => all.push(NameState { what, at_work: false }),
            }
        }
    }
    for (kind, state) in [
        (Kind::Planned, State::Committing),
        (Kind::Planned, State::Committed),
        (Kind::Unplanned, State::Committing),
        (Kind::Unplanned, State::Committed),
        (Kind::Source, State::HandingOver),
        (Kind::Source, State::HandedOver),
        (Kind::Source, State::TakingBack),
        (Kind::Failback, State::Seeding),
        (Kind::Failback, State::TakingOver),
        (Kind::Failback, State::Committing),
    ] {
        all.push(NameState { what: NameKind::Orphan(kind, state), at_work: false });
    }
    all
}

/// Whether a kind of failover passes through a state. A disk whose failback is committed is an ordinary disk.
#[must_use]
pub fn comes_to(kind: Kind, state: State) -> bool {
    use State::*;
    match kind {
        Kind::Test => matches!(state, Starting | Up | Removing),
        Kind::Planned | Kind::Unplanned => {
            matches!(state, Starting | Up | Removing | Committing | Committed)
        }
        Kind::Source => matches!(state, HandingOver | HandedOver | TakingBack | Removing),
        Kind::Failback => matches!(state, Seeding | TakingOver | Committing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_refusal_names_is_allowed_there() {
        for standing in all() {
            for verb in VERBS {
                let Rule::Refused { instead } = rule(standing, verb) else { continue };
                assert_eq!(
                    rule(standing, instead),
                    Rule::Allowed,
                    "{standing:?} {verb:?} {instead:?}"
                );
                let name = "db".parse().unwrap();
                let said = refusal(standing, &name, verb).unwrap().to_string();
                assert!(said.contains(&instead.command("db")), "{standing:?} {verb:?}: {said}");
            }
        }
    }

    /// Every command on the way to a goal is allowed where it is named, and is a new one.
    #[test]
    fn every_step_to_a_goal_is_allowed() {
        for standing in all() {
            for goal in [Goal::Nothing, Goal::Protected] {
                let reached = match goal {
                    Goal::Nothing => standing.what == NameKind::Nothing,
                    Goal::Protected => rule(standing, Verb::Cycle) == Rule::Allowed,
                };
                match next_step(standing, goal) {
                    None => assert!(reached, "{standing:?} {goal:?}"),
                    Some(verb) => {
                        assert_eq!(rule(standing, verb), Rule::Allowed, "{standing:?} {goal:?}");
                    }
                }
            }
        }
    }

    /// Every command that the way on from a state names is allowed in it.
    #[test]
    fn every_way_on_is_allowed() {
        let name: DiskName = "db".parse().unwrap();
        for standing in all() {
            let NameKind::Failover(kind, state) = standing.what else { continue };
            let ways = way_on(&name, kind, state);
            for verb in VERBS {
                // Given up after it was handed over, as the sentence says.
                let later = state == State::Committed && verb == Verb::Unprotect;
                if ways.contains(&verb.command("db")) && !later {
                    assert_eq!(
                        rule(standing, verb),
                        Rule::Allowed,
                        "{standing:?} {verb:?}: {ways}"
                    );
                }
            }
        }
    }
}
