//! Failback: an old source takes its disk back, while the other side goes on serving it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_engine::cycle::CycleReport;
use backstay_engine::jobs::{JobBook, JobHandle, JobKind};
use backstay_host::atomic;
use backstay_types::{DiskId, DiskName};
use backstay_vault::{DiskRecord, TermRecord, Vault};

use super::executor::{Executor, ServedDisk, may, place};
use super::rules::{self, NameKind, Verb, refusal};
use super::target;
use super::{
    FailoverError, FailoverRecord, Kind, NameLock, PointRef, Result, State, failed, now_unix_ns,
    stopped, vault, way_on,
};
use crate::host::replica::{ReplicaOrder, Seed, real};
use crate::host::serve::{From, How};
use crate::host::{Doing, HostError, backing};
use crate::mount;
use crate::replica::{ReplicaRecord, ReplicaState, folder, status};

/// How a disk is brought back.
#[derive(Debug, Clone)]
pub struct Failback {
    /// The disk's name.
    pub name: DiskName,
    /// The file or block device that is to hold the disk.
    pub to: PathBuf,
    /// The vault, if not the configuration's.
    pub vault: Option<String>,
    /// Fetch everything; compare nothing.
    pub full: bool,
    /// The backing is not the old one: ignore the old state.
    pub new_disk: bool,
    /// Overwrite the backing: it is compared by checksums, and what differs is fetched.
    pub force: bool,
    /// Do not wait for a handover, because the other side is gone.
    pub now: bool,
    /// Go to the newest point, and no further.
    pub once: bool,
    /// How often to look for newer points and for the handover.
    pub interval: Duration,
}

/// Where a failback is.
#[derive(Debug)]
pub enum Back {
    /// At the newest point; it was not to go further.
    Following,
    /// The disk is back already, and this host's.
    Already(Option<CycleReport>),
    /// The disk is back.
    Done(ServedDisk, Option<CycleReport>),
}

impl Failback {
    /// Brings the disk back, or goes on with that.
    ///
    /// # Errors
    /// Why it is not back; run again it goes on.
    pub fn run(&self, host: &dyn Executor) -> Result<Back> {
        let root = &host.roots().state;
        let _lock = NameLock::take(root, &self.name, "failback")?;
        let before = FailoverRecord::load(root, &self.name)?;
        // Of a disk of this host, the vault says whether another host has it now.
        if rules::NameState::look(host.roots(), &self.name)?.what != NameKind::Disk {
            may(host, &self.name, Verb::Failback)?;
        }
        self.refuse_another_target(host, before.as_ref())?;
        let record = match before {
            Some(record) if record.kind == Kind::Failback => match record.state {
                State::Committed if self.is_ours(host)? => {
                    host.told()
                        .note(&format!("{}: it is back already, and this host's", self.name));
                    let cycle = target::first_cycle(host, &self.name, &record.vault)?;
                    return Ok(Back::Already(cycle));
                }
                State::Committed => {
                    let begun = self.begin(host)?;
                    begun.begin(root)?;
                    begun
                }
                _ => record,
            },
            Some(old) if matches!(old.state, State::HandedOver | State::HandingOver) => {
                let begun = self.begin(host)?;
                old.become_another(root, &begun)?;
                begun
            }
            _ => {
                let begun = self.begin(host)?;
                begun.begin(root)?;
                begun
            }
        };
        let job = JobBook::below(root).begin(&self.name, JobKind::Failback);
        let ended = self.go_on(host, record, &job);
        job.end_at(ended.as_ref().map(|_| None).map_err(ToString::to_string));
        match ended? {
            Some(cycle) => Ok(Back::Done(place(host, &self.name, false)?, cycle)),
            None => Ok(Back::Following),
        }
    }

    /// An earlier start goes on with the backing it was given: another one now is refused, not left out.
    fn refuse_another_target(
        &self,
        host: &dyn Executor,
        before: Option<&FailoverRecord>,
    ) -> Result<()> {
        let (name, to) = (&self.name, self.real(&self.to)?);
        let goes_on = before
            .filter(|record| record.kind == Kind::Failback && record.state != State::Committed);
        if let Some((record, backing)) = goes_on.and_then(|of| Some((of, of.backing.as_ref()?)))
            && self.real(backing)? != to
        {
            let begun = backing.display();
            return Err(FailoverError::NotSafe(format!(
                "disk {name} is {} on {} since an earlier start, not on {}. {}. Nothing was changed",
                record.state.explain(),
                begun,
                to.display(),
                way_on(name, record.kind, record.state).replace("BACKING", &begun.to_string())
            )));
        }
        let paths = host.roots().disk(name);
        let replica = ReplicaRecord::load(&folder(&paths)).map_err(HostError::from)?;
        let is_one = |replica: &ReplicaRecord| {
            let is_disk = paths.state.join("super").exists();
            !is_disk && !matches!(replica.standing, ReplicaState::TakenOver { .. })
        };
        match replica.filter(is_one) {
            Some(replica) if self.real(&replica.target.path)? != to => {
                Err(FailoverError::NotSafe(format!(
                    "disk {name} has a replica on {} on this host, which is not {}. Go on with --to {0}; or give it up \
                     (the file stays): backstay failover cancel {name}, backstay unprotect {name} --keep-points, then \
                     begin again",
                    replica.target.path.display(),
                    to.display()
                )))
            }
            _ => Ok(()),
        }
    }

    /// A path without links, also of what is not there yet.
    fn real(&self, path: &Path) -> Result<PathBuf> {
        Ok(real(path).doing(|| format!("disk {}: {}", self.name, path.display()))?)
    }

    /// Goes on from where it is; the disk's first cycle once it is back, none before.
    fn go_on(
        &self,
        host: &dyn Executor,
        mut record: FailoverRecord,
        job: &JobHandle,
    ) -> Result<Option<Option<CycleReport>>> {
        let root = &host.roots().state;
        if record.state == State::Seeding {
            let Some(point) = self.bring(host, &record, job)? else { return Ok(None) };
            job.came_to(point.cycle);
            let term = newest_term(&host.config().vaults.open(&record.vault)?, record.disk)?.term;
            (record.point, record.after) = (Some(point), term);
            target::not_replicated(&host.roots().disk(&self.name), &record)?;
            record.enter(root, State::TakingOver)?;
        }
        job.progress("taking over", 0, 0);
        if record.state == State::TakingOver {
            if host.status(&self.name).is_none() {
                host.serve_replica(&self.name)?;
            }
            record.enter(root, State::Committing)?;
        }
        if record.state != State::Committing {
            return Ok(Some(None));
        }
        if host.status(&self.name).is_none() {
            let backing = record.backing.as_deref();
            let backing = backing.doing(|| "the backing was not written down".into())?;
            host.serve(&self.name, From::Backing(Some(backing)), &How::default())?;
        }
        let how = target::Committing { policy: None, hydrate: false };
        target::commit(host, record, &how).map(Some)
    }

    fn find(&self, host: &dyn Executor) -> Result<(Vault, DiskRecord)> {
        let url = self.vault.as_deref().unwrap_or_else(|| host.config().vault_of(&self.name));
        let vault = host.config().vaults.open(url)?;
        let disk = vault.disk_named(&self.name)?;
        Ok((vault, disk))
    }

    /// Whether this host writes the disk, and has not handed it over.
    fn is_ours(&self, host: &dyn Executor) -> Result<bool> {
        let (vault, disk) = self.find(host)?;
        let term = newest_term(&vault, disk.disk)?;
        let superblock = stopped::superblock(&host.roots().disk(&self.name));
        let ours = superblock.is_some_and(|ours| stopped::writer(ours.disk) == term.writer);
        Ok(ours && vault.handover(disk.disk)?.is_none())
    }

    /// Looks at everything; refuses a disk that is in use or still this host's.
    fn begin(&self, host: &dyn Executor) -> Result<FailoverRecord> {
        let name = &self.name;
        let (vault, disk) = self.find(host)?;
        // Before the disk is stopped: what cannot be read cannot be brought here.
        vault.check_readable()?;
        let term = newest_term(&vault, disk.disk)?;
        if self.is_ours(host)? {
            let at_work = host.status(name).is_some();
            let standing = rules::NameState { what: NameKind::Disk, at_work };
            let why =
                refusal(standing, name, Verb::Failback).map_or_else(String::new, |e| e.to_string());
            let message = format!("{why} (term {} is this host's)", term.term);
            return Err(FailoverError::NotSafe(message));
        }
        if let Some(status) = host.status(name) {
            host.refuse_if_used(name, &status)?;
            host.stop(name)?;
        }
        Ok(FailoverRecord {
            name: name.clone(),
            kind: Kind::Failback,
            state: State::Seeding,
            vault: vault.url().into(),
            disk: disk.disk,
            disk_name: disk.name,
            point: None,
            after: term.term,
            backing: Some(std::path::absolute(&self.to).map_err(HostError::from)?),
            next: None,
            group: None,
            since_unix_ns: now_unix_ns(),
        })
    }

    /// Brings the backing to the newest point until it is the one that was handed over.
    fn bring(
        &self,
        host: &dyn Executor,
        record: &FailoverRecord,
        job: &JobHandle,
    ) -> Result<Option<PointRef>> {
        // How far that is says the job of the replica.
        job.progress("to the newest point", 0, 0);
        self.begin_replica(host, record)?;
        let go_on = ReplicaOrder::go_on(&host.config().vaults, &record.vault);
        loop {
            host.step();
            host.replica_once(&self.name, &go_on)?;
            if self.once {
                return Ok(None);
            }
            let at = status::of(&host.roots().disk(&self.name)).map_err(HostError::from)?;
            let at = at.and_then(|status| status.at);
            let vault = host.config().vaults.open(&record.vault)?;
            let wanted = match (vault.handover(record.disk)?, self.now) {
                (Some(handover), _) => Some(handover.cycle),
                (None, true) => Some(vault::newest_on_line(&vault, record.disk)?.cycle),
                (None, false) => None,
            };
            if let Some(cycle) = wanted.filter(|&wanted| at == Some(wanted)) {
                return Ok(Some(PointRef::from(&vault.manifest(record.disk, cycle)?)));
            }
            if let Some(at) = at {
                job.came_to(at);
            }
            if wanted.is_none() {
                job.progress("following, until the other side hands over", 0, 0);
                // Only a look tells whether something has come.
                host.wait(self.interval);
            }
        }
    }

    /// Begins the replica on the backing, with the least that has to move.
    fn begin_replica(&self, host: &dyn Executor, record: &FailoverRecord) -> Result<()> {
        let paths = host.roots().disk(&self.name);
        let superblock = paths.state.join("super");
        let has_disk = superblock.exists();
        let replica = ReplicaRecord::load(&folder(&paths)).map_err(HostError::from)?;
        if !has_disk && replica.is_some() {
            return Ok(());
        }
        let old = backing(host.roots(), &self.name)?;
        if old.is_none() && paths.state.join("mounted").exists() {
            // What this host has is a mounted point: no backing that could be brought forward.
            host.step();
            mount::forget(&host.config().vaults, &self.name, &paths)?;
        }
        let has_disk = has_disk && superblock.exists();
        let to = self.real(&self.to)?;
        let same = old.is_some_and(|old| old.canonicalize().unwrap_or(old) == to);
        let seed = match (has_disk && same && !self.new_disk, self.full) {
            (_, true) => Seed::Full,
            (true, false) => Seed::Changes,
            (false, false) => Seed::Auto,
        };
        if has_disk && seed != Seed::Changes {
            if same && !self.full {
                failed!("{} is the old backing: leave out --new-disk", to.display());
            }
            // From here on the old state says nothing of what the backing will hold.
            host.step();
            atomic::rename_durably(&superblock, &paths.state.join("super.before-failback"))
                .doing(|| format!("putting aside {}", superblock.display()))?;
        }
        let order = ReplicaOrder {
            to: Some(&to),
            seed,
            // The old backing holds the old disk; another one must be empty or be said to be free.
            force: seed != Seed::Changes && (same || self.force),
            ..ReplicaOrder::go_on(&host.config().vaults, &record.vault)
        };
        host.replica_once(&self.name, &order)
    }
}

/// The newest term now: the commit takes the one after it.
fn newest_term(vault: &Vault, disk: DiskId) -> Result<TermRecord> {
    Ok(vault.newest_term(disk)?.doing(|| "the disk has no term in the vault".into())?)
}
