//! `backstay failback`: an old source takes its disk back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use backstay_engine::jobs::{JobBook, JobHandle};
use backstay_engine::schedule::Work;
use backstay_host::atomic;
use backstay_host::clock;
use backstay_recovery::failover::rules::{self, Verb, What, refusal};
use backstay_recovery::failover::{
    FailoverRecord, Kind, NameLock, PointRef, State, now_unix_ns, step, stopped, vault, way_on,
};
use backstay_recovery::lazy;
use backstay_recovery::replica::{ReplicaRecord, Standing, folder, status};
use backstay_types::DiskName;
use backstay_vault::Vault;
use clap::Args;

use super::failover::{local, source, target};
use super::target::InVault;
use crate::context::Context;
use crate::exit::Refused;

/// Bring a disk back to its old source, while the other side goes on serving it
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay failback db --to /srv/db.img --vault file:///mnt/vault
  backstay failback db --to /srv/db.img --full    fetch everything
  backstay failback db --to /dev/sdc --new-disk   not on the old backing
  backstay failback db --to /srv/db.img --now     the other side is gone

Copies only what changed, if the old disk's state is whole; otherwise what differs by checksums. Then it follows \
the vault. Once the other side has run backstay failover handover, it becomes the disk again at exactly that \
point, commits at once and replicates. Run it again after a kill: it continues.")]
pub struct Failback {
    /// The disk's name
    name: DiskName,
    #[command(flatten)]
    vault: InVault,
    /// The file or block device that is to hold the disk
    #[arg(long, value_name = "BACKING")]
    to: PathBuf,
    /// Fetch everything; compare nothing
    #[arg(long)]
    full: bool,
    /// BACKING is not the old one: ignore the old state
    #[arg(long)]
    new_disk: bool,
    /// Overwrite BACKING: it is compared by checksums, and what differs is fetched
    #[arg(long)]
    force: bool,
    /// Do not wait for a handover, because the other side is gone. What it wrote after its newest point is lost
    #[arg(long, conflicts_with = "once")]
    now: bool,
    /// Go to the newest point, then exit; run again to continue
    #[arg(long)]
    once: bool,
    /// How often to look for newer points and for the handover
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = humantime::parse_duration)]
    interval: Duration,
}

impl Failback {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let root = &context.roots.state;
        let _lock = NameLock::take(root, &self.name, "failback")?;
        let before = FailoverRecord::load(root, &self.name)?;
        // Of a disk of this host, the vault says whether another host has it now.
        if rules::Standing::look(&context.roots, &self.name)?.what != What::Disk {
            context.may(&self.name, Verb::Failback)?;
        }
        self.refuse_another_target(context, before.as_ref())?;
        let record = match before {
            Some(record) if record.kind == Kind::Failback => match record.state {
                State::Committed if self.is_ours(context)? => {
                    if !context.globals.quiet {
                        eprintln!("{}: it is back already, and this host's", self.name);
                    }
                    return target::first_cycle(context, &self.name, &record.vault);
                }
                State::Committed => {
                    let begun = self.begin(context)?;
                    begun.begin(root)?;
                    begun
                }
                _ => record,
            },
            Some(old) if matches!(old.state, State::HandedOver | State::HandingOver) => {
                let begun = self.begin(context)?;
                old.become_another(root, &begun)?;
                begun
            }
            _ => {
                let begun = self.begin(context)?;
                begun.begin(root)?;
                begun
            }
        };
        let job = JobBook::below(root).begin(&self.name, Work::Failback);
        let ended = self.go_on(context, record, &job);
        job.end_at(ended.as_ref().map(|_| None).map_err(|e| format!("{e:#}")));
        match ended? {
            true => local::print_place(context, &self.name, false),
            false => Ok(()),
        }
    }

    /// An earlier start goes on with the backing it was given: another one now is refused, not left out.
    fn refuse_another_target(
        &self,
        context: &Context,
        before: Option<&FailoverRecord>,
    ) -> anyhow::Result<()> {
        let real = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path));
        let (name, to) = (&self.name, real(&self.to)?);
        let goes_on = before
            .filter(|record| record.kind == Kind::Failback && record.state != State::Committed);
        if let Some((record, backing)) = goes_on.and_then(|of| Some((of, of.backing.as_ref()?)))
            && real(backing)? != to
        {
            let begun = backing.display();
            return Err(Refused(format!(
                "disk {name} is {} on {} since an earlier start, not on {}. {}. Nothing was changed",
                record.state.explain(),
                begun,
                to.display(),
                way_on(name, record.kind, record.state).replace("BACKING", &begun.to_string())
            ))
            .into());
        }
        let paths = context.roots.disk(name);
        let replica = ReplicaRecord::load(&folder(&paths))?;
        let is_one = |replica: &ReplicaRecord| {
            let is_disk = paths.state.join("super").exists();
            !is_disk && !matches!(replica.standing, Standing::TakenOver { .. })
        };
        match replica.filter(is_one) {
            Some(replica) if real(&replica.target.path)? != to => Err(Refused(format!(
                "disk {name} has a replica on {} on this host, which is not {}. Go on with --to {0}; or give it up \
                 (the file stays): backstay failover cancel {name}, backstay unprotect {name} --keep-points, then \
                 begin anew",
                replica.target.path.display(),
                to.display()
            ))
            .into()),
            _ => Ok(()),
        }
    }

    /// Goes on from where it is; whether the disk is back.
    fn go_on(
        &self,
        context: &Context,
        mut record: FailoverRecord,
        job: &JobHandle,
    ) -> anyhow::Result<bool> {
        let root = &context.roots.state;
        if record.state == State::Seeding {
            let Some(point) = self.bring(context, &record, job)? else { return Ok(false) };
            job.came_to(point.cycle);
            let term = self.term(&record)?;
            (record.point, record.after) = (Some(point), term);
            target::not_replicated(&context.roots.disk(&self.name), &record)?;
            record.enter(root, State::TakingOver)?;
        }
        job.progress("taking over", 0, 0);
        if record.state == State::TakingOver {
            if local::driver(context, &self.name).is_none() {
                local::again(context, &["--quiet", "replica", self.name.as_str(), "--take-over"])?;
            }
            record.enter(root, State::Committing)?;
        }
        if record.state == State::Committing {
            if local::driver(context, &self.name).is_none() {
                self.serve(context, &record)?;
            }
            let how = target::Committing { policy: None, hydrate: false };
            target::commit(context, record, &how)?;
        }
        Ok(true)
    }

    /// Whether this host writes the disk, and has not handed it over.
    fn is_ours(&self, context: &Context) -> anyhow::Result<bool> {
        let (vault, disk) = self.vault.find(context, &self.name)?;
        let term = vault.newest_term(disk.disk)?.context("the disk has no term in the vault")?;
        let superblock = stopped::superblock(&context.roots.disk(&self.name));
        let ours = superblock.is_some_and(|ours| stopped::writer(ours.disk) == term.writer);
        Ok(ours && vault.handover(disk.disk)?.is_none())
    }

    /// Looks at everything; refuses a disk that is in use or still this host's.
    fn begin(&self, context: &Context) -> anyhow::Result<FailoverRecord> {
        let name = &self.name;
        let (vault, disk) = self.vault.find(context, name)?;
        // Before the disk is stopped: what cannot be read cannot be brought here.
        vault.check_readable()?;
        let term = vault.newest_term(disk.disk)?.context("the disk has no term in the vault")?;
        if self.is_ours(context)? {
            let standing = rules::Standing { what: What::Disk, at_work: false };
            let why =
                refusal(standing, name, Verb::Failback).map_or_else(String::new, |e| e.to_string());
            return Err(Refused(format!("{why} (term {} is this host's)", term.term)).into());
        }
        if let Some(status) = local::driver(context, name) {
            local::refuse_if_used(name, &status)?;
            local::stop(context, name)?;
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
            backing: Some(std::path::absolute(&self.to)?),
            next: None,
            group: None,
            since_unix_ns: now_unix_ns(),
        })
    }

    /// Brings the backing to the newest point until it is the one that was handed over.
    fn bring(
        &self,
        context: &Context,
        record: &FailoverRecord,
        job: &JobHandle,
    ) -> anyhow::Result<Option<PointRef>> {
        // How far that is says the job of the replica.
        job.progress("to the newest point", 0, 0);
        self.begin_replica(context, record)?;
        loop {
            step();
            let name = self.name.as_str();
            let said = local::again(context, &["replica", name, "--once"])?;
            if !context.globals.quiet && !said.is_empty() {
                eprintln!("{said}");
            }
            if self.once {
                return Ok(None);
            }
            let at = status::of(&context.roots.disk(&self.name))?.and_then(|status| status.at);
            let vault = Vault::open(&record.vault)?;
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
                clock::sleep(self.interval);
            }
        }
    }

    /// Begins the replica on the backing, with the least that has to move.
    fn begin_replica(&self, context: &Context, record: &FailoverRecord) -> anyhow::Result<()> {
        let paths = context.roots.disk(&self.name);
        let superblock = paths.state.join("super");
        let has_disk = superblock.exists();
        if !has_disk && ReplicaRecord::load(&folder(&paths))?.is_some() {
            return Ok(());
        }
        let old = source::backing(context, &self.name)?;
        if old.is_none() && paths.state.join("mounted").exists() {
            // What this host has is a mounted point: no backing that could be brought forward.
            step();
            lazy::forget(&self.name, &paths)?;
        }
        let has_disk = has_disk && superblock.exists();
        let to = self.to.canonicalize().unwrap_or(std::path::absolute(&self.to)?);
        let same = old.is_some_and(|old| old.canonicalize().unwrap_or(old) == to);
        let seed = match (has_disk && same && !self.new_disk, self.full) {
            (_, true) => "full",
            (true, false) => "changes",
            (false, false) => "auto",
        };
        if has_disk && seed != "changes" {
            if same && !self.full {
                bail!("{} is the old backing: leave out --new-disk", to.display());
            }
            // From here on the old state says nothing of what the backing will hold.
            step();
            atomic::rename_durably(&superblock, &paths.state.join("super.before-failback"))
                .with_context(|| format!("putting aside {}", superblock.display()))?;
        }
        let to = to.display().to_string();
        let mut args = vec![
            "replica",
            self.name.as_str(),
            "--vault",
            &record.vault,
            "--to",
            &to,
            "--once",
            "--seed",
            seed,
        ];
        // The old backing holds the old disk; another one must be empty or be said to be free.
        if seed != "changes" && (same || self.force) {
            args.push("--force");
        }
        let said = local::again(context, &args)?;
        if !context.globals.quiet && !said.is_empty() {
            eprintln!("{said}");
        }
        Ok(())
    }

    /// The newest term now: the commit takes the one after it.
    fn term(&self, record: &FailoverRecord) -> anyhow::Result<backstay_types::Term> {
        let vault = Vault::open(&record.vault)?;
        let term = vault.newest_term(record.disk)?.context("the disk has no term in the vault")?;
        Ok(term.term)
    }

    fn serve(&self, context: &Context, record: &FailoverRecord) -> anyhow::Result<()> {
        let backing = record.backing.as_ref().context("the backing was not written down")?;
        let backing = backing.display().to_string();
        local::again(context, &["--quiet", "mount", &backing, "--name", self.name.as_str()])?;
        Ok(())
    }
}
