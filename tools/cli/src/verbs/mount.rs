//! `backstay mount`: serve a protected disk, or a recovery point as one.

use std::path::{Path, PathBuf};

use backstay_front::backing::Engine;
use backstay_front::backing::record::BackingRecord;
use backstay_front::life::{DriverOptions, Outcome, Traces, in_background, run};
use backstay_host::own_dir::own_dir;
use backstay_recovery::failover::Starting;
use backstay_recovery::failover::rules::{NameKind, NameState, Verb};
use backstay_recovery::mount::{self, Hydration, MountOptions, MountedPoint, PointChoice};
use backstay_recovery::replica::Replica;
use backstay_types::{ByteLen, DiskName};
use bytesize::ByteSize;
use clap::Args;

use crate::context::Context;
use crate::error::{Context as _, Error, Result, bail, failed, refused};

/// Serve a file, a block device or a recovery point as a disk whose writes are tracked
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay mount /srv/vm.img --name vm1   prints the file that it serves
  backstay mount --vault file:///mnt/vault --disk db --name db-test
  backstay mount --name db-test      serve that point again
  file=$(backstay mount /srv/vm.img --name vm1)
  qemu-system-x86_64 -drive file=$file,format=raw
  backstay mount /dev/sdb --name db --change-log-limit 20GiB
  backstay mount /dev/vg/db --name db --grow   after lvextend
  backstay mount --name db --foreground      as the service does

The backing must not be used in any other way while it is served. A recovery point is usable at once: its blocks are \
fetched from the vault when they are read, and writes stay on this host. To discard them, \
run backstay umount NAME --forget.")]
pub struct Mount {
    /// The file or block device that holds the disk [default: the one that held it last; with --vault, --disk or --point,
    /// a recovery point is served]
    #[arg(conflicts_with_all = ["vault", "disk", "point", "overlay", "cache", "hydrate"])]
    backing: Option<PathBuf>,
    /// The disk's name on this host [default: --disk]
    #[arg(long, required_unless_present = "disk")]
    name: Option<DiskName>,
    #[command(flatten)]
    of: Of,
    #[command(flatten)]
    how: How,
    /// Stay in the foreground (for systemd, with sd_notify)
    #[arg(long)]
    foreground: bool,
}

/// How a disk is served; also for `attach`.
#[derive(Args, Clone)]
pub struct How {
    /// How to read and write the backing: auto, buffered or direct
    #[arg(long, default_value = "auto")]
    engine: Engine,
    /// Where to mount the served file [default: mnt in the disk's runtime directory]
    #[arg(long, value_name = "DIR")]
    mount_point: Option<PathBuf>,
    /// Space for blocks preserved during a cycle [default: half the disk]
    #[arg(long, value_name = "SIZE")]
    change_log_limit: Option<ByteSize>,
    /// Threads that serve requests
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    event_loops: u16,
    /// Let the disk grow if its backing has grown
    #[arg(long)]
    grow: bool,
    /// Compare the whole disk with its newest recovery point, in case something wrote to the backing while it
    /// was not served
    #[arg(long)]
    compare: bool,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
    /// Track nothing: only to measure what tracking costs
    #[arg(long, hide = true)]
    no_tracking: bool,
    /// Serve a disk that is being handed over, for its last cycle
    #[arg(long, hide = true)]
    handing_over: bool,
    /// The backing is the target of a replica that was taken over
    #[arg(long, hide = true)]
    taken_over: bool,
}

impl How {
    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether the disk is to be compared with its newest point.
    pub fn compares(&self) -> bool {
        self.compare
    }

    /// The most space for preserved blocks, if it was said.
    pub fn change_log_limit(&self) -> Option<ByteSize> {
        self.change_log_limit
    }
}

/// Which recovery point is served; also for `attach`.
#[derive(Args, Clone)]
pub struct Of {
    /// The vault of a recovery point to serve [default: the disk's, from the configuration]
    #[arg(long, value_name = "URL")]
    vault: Option<String>,
    /// The disk's name in the vault [default: --name]
    #[arg(long, value_name = "NAME")]
    disk: Option<DiskName>,
    /// Which point: a number, latest, or the newest not after a time (2026-02-03T04:05:06Z) [default:
    /// latest, or the one that is mounted under this name already]
    #[arg(long)]
    point: Option<PointChoice>,
    /// File that holds the writes [default: in the disk's state directory]
    #[arg(long, value_name = "FILE")]
    overlay: Option<PathBuf>,
    /// Space for fetched blocks [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    cache: Option<ByteSize>,
    /// How long a read waits for a vault that does not answer
    #[arg(long, value_name = "TIME", default_value = "30s")]
    vault_timeout: humantime::Duration,
    /// Fetch the whole disk in the background; after that the vault is not needed
    #[arg(long)]
    hydrate: bool,
    /// Download limit, in bytes per second
    #[arg(long, value_name = "SIZE", requires = "hydrate")]
    hydrate_limit: Option<ByteSize>,
}

impl Of {
    /// Whether a recovery point was asked for.
    pub fn is_asked_for(&self) -> bool {
        self.vault.is_some() || self.disk.is_some() || self.point.is_some()
    }

    /// What to mount as a disk of this host, and under which name.
    pub fn options(
        &self,
        context: &Context,
        name: Option<&DiskName>,
    ) -> Result<(DiskName, MountOptions)> {
        let Some(name) = name.or(self.disk.as_ref()) else {
            return Err(failed!("no disk was named: use --name"));
        };
        let known = MountedPoint::load(name, &context.roots.disk(name))?;
        if known.is_none()
            && !self.is_asked_for()
            && NameState::look(&context.roots, name)?.what == NameKind::Nothing
        {
            // An old point, writable and protected nowhere, must not be served for a disk whose state was lost.
            return Err(refused(format!(
                "disk {name} is not on this host, and no backing was named. To serve it from its backing, name that, too: \
                 backstay attach BACKING --name {name}. To serve a recovery point from the vault: --disk {name}. Nothing \
                 was changed"
            )));
        }
        let in_vault = self.disk.as_ref().unwrap_or(name);
        let vault = match (&self.vault, &known) {
            (Some(url), _) => Some(url.clone()),
            (None, Some(_)) => None,
            // By the variable only where a point is meant: a backing needs no vault to be served.
            (None, None) => Some(
                std::env::var("BACKSTAY_VAULT")
                    .unwrap_or_else(|_| context.config.vault_of(in_vault).to_owned()),
            ),
        };
        let bytes = |size: ByteSize| ByteLen(size.as_u64());
        let options = MountOptions {
            vaults: context.config.vaults.clone(),
            vault,
            disk: self.disk.clone(),
            point: self.point,
            overlay: self.overlay.clone(),
            cache: self.cache.map(bytes),
            timeout: self.vault_timeout.into(),
            hydrate: self
                .hydrate
                .then(|| Hydration { wanted: true, limit_bytes: self.hydrate_limit.map(bytes) }),
        };
        Ok((name.clone(), options))
    }
}

impl Mount {
    pub fn run(self, context: &Context) -> Result<()> {
        let name = self.name.as_ref().filter(|_| !self.foreground);
        let _starting = name.map(|name| Starting::say(&context.roots.state, name)).transpose()?;
        let Some(backing) = backing_of(context, &self.backing, self.name.as_ref(), &self.of)?
        else {
            return self.run_point(context);
        };
        let Some(name) = &self.name else { bail!("no disk was named: use --name") };
        let options = options(context, &backing, name, &self.how)?;
        refuse_mounted_point(context, name)?;
        if self.foreground {
            return Ok(run(options, || ())?);
        }
        let served = start(options)?;
        Self::print(context, name, &served)
    }

    fn run_point(&self, context: &Context) -> Result<()> {
        let (name, of) = self.of.options(context, self.name.as_ref())?;
        let driver = options(context, Path::new(""), &name, &self.how)?;
        if self.foreground {
            return Ok(mount::serve(driver, of, || ())?);
        }
        let served = mount::start(driver, of)?;
        Self::print(context, &name, &served)
    }

    fn print(context: &Context, name: &DiskName, served: &Path) -> Result<()> {
        if context.globals.json {
            return context.print_json(&serde_json::json!({ "name": name, "served": served }));
        }
        println!("{}", served.display());
        Ok(())
    }
}

/// The backing that was named, or else the one the disk was served from or moved to last; none if a recovery
/// point is meant.
pub fn backing_of(
    context: &Context,
    named: &Option<PathBuf>,
    name: Option<&DiskName>,
    of: &Of,
) -> Result<Option<PathBuf>> {
    if named.is_some() || of.is_asked_for() {
        return Ok(named.clone());
    }
    let Some(name) = name else { return Ok(None) };
    let paths = context.roots.disk(name);
    if MountedPoint::load(name, &paths)?.is_some() {
        return Ok(None);
    }
    Ok(BackingRecord::load(&paths.state)?.backing.map(|seen| seen.path))
}

/// A mounted point has its own overlay: no other backing, size or name may be given to it.
pub fn refuse_mounted_point(context: &Context, name: &DiskName) -> Result<()> {
    match MountedPoint::load(name, &context.roots.disk(name))? {
        None => Ok(()),
        Some(of) => Err(refused(format!(
            "disk {name} is recovery point {} of disk {}, mounted on this host: it keeps its backing, size \
             and name. Nothing was changed",
            of.cycle, of.disk_name
        ))),
    }
}

/// Makes the driver's options of what was asked.
pub fn options(
    context: &Context,
    backing: &Path,
    name: &DiskName,
    how: &How,
) -> Result<DriverOptions> {
    if !how.handing_over {
        let verb = if how.taken_over { Verb::TakeOver } else { Verb::Mount };
        context.may(name, verb)?;
    }
    let paths = context.roots.disk(name);
    let taken = match how.taken_over {
        true => Some(Replica::taken_over(&paths)?.context("no replica of it was taken over")?),
        false => None,
    };
    let mount_point = match &how.mount_point {
        Some(dir) => std::path::absolute(dir)?,
        None => paths.mount_point(),
    };
    Ok(DriverOptions {
        name: name.clone(),
        backing: match backing.as_os_str().is_empty() {
            true => PathBuf::new(),
            false => std::path::absolute(backing)?,
        },
        paths,
        mount_point,
        engine: how.engine,
        change_log_limit: how.change_log_limit.map(|size| ByteLen(size.as_u64())),
        tracking: !how.no_tracking,
        grow: how.grow,
        compare: how.compare,
        base: taken.as_ref().map(|taken| taken.base),
        base_size: taken.map(|taken| taken.point.size_bytes),
        read_only: how.read_only,
        event_loops: how.event_loops.into(),
    })
}

/// Starts a driver in the background; the file it serves.
pub fn start(options: DriverOptions) -> Result<PathBuf> {
    let served = options.mount_point.join("disk");
    let name = options.name.clone();
    let traces = Traces::before(&name, &options.paths);
    own_dir(&options.paths.state)?;
    let log = options.paths.driver_log();
    match in_background(&log, |ready| run(options, ready))? {
        Outcome::Serving => Ok(served),
        Outcome::Failed { class, said } => {
            traces.remove();
            Err(Error::new(class, format!("disk {name} was not mounted: {said}")))
        }
    }
}
