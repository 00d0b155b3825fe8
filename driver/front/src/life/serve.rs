//! Serving one disk from start to stop.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstay_format::control::FoundState;
use backstay_format::superblock::Base;
use backstay_host::clock;
use backstay_host::lock;
use backstay_host::own_dir::own_dir;
use backstay_track::{
    Backing, FsEnv, Identity, OpenOptions as TrackOptions, ProtectedDisk, TrackError,
};
use backstay_types::{ByteLen, Class, Classified, DiskName};
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::fcntl::Flock;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::harden::harden;
use super::traces::Traces;
use crate::backing::record::{BackingRecord, Seen};
use crate::backing::{self, AnyBacking, Engine, OpenError};
use crate::control::{Died, Server, Stopping};
use crate::fuse::{Access, DiskFs, Mounted, Opens, mount};
use crate::paths::DiskPaths;

/// How a driver serves its disk.
#[derive(Debug, Clone)]
pub struct DriverOptions {
    /// The disk's name.
    pub name: DiskName,
    /// The backing file or device.
    pub backing: PathBuf,
    /// The folders and sockets of the disk.
    pub paths: DiskPaths,
    /// Where to mount the disk.
    pub mount_point: PathBuf,
    /// How to read and write the backing.
    pub engine: Engine,
    /// Limit for preserved blocks, in bytes. Default: half the disk.
    pub change_log_limit: Option<ByteLen>,
    /// Off only to measure the cost of tracking.
    pub tracking: bool,
    /// Accept a backing that is larger than the disk: the disk grows.
    pub grow: bool,
    /// Treat the whole disk as changed, so that a cycle compares it with its newest recovery point.
    pub compare: bool,
    /// Only for a new disk: the recovery point that the backing equals. Nothing is dirty then.
    pub base: Option<Base>,
    /// The size of the disk at that point. Sectors of the backing beyond that size are dirty.
    pub base_size: Option<ByteLen>,
    /// Refuse writes.
    pub read_only: bool,
    /// Number of FUSE event loops (threads).
    pub event_loops: usize,
}

/// Why a driver did not start or did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Another driver already serves this disk.
    #[error("disk {0} is served by another driver already (its state directory is locked)")]
    Running(DiskName),
    /// The backing cannot be used.
    #[error("backing: {0}")]
    Backing(#[from] OpenError),
    /// The backing must not be mounted as this disk.
    #[error("disk {name}: {reason}. Nothing was changed")]
    WrongBacking {
        /// The disk.
        name: DiskName,
        /// Why not, and what to do.
        reason: String,
    },
    /// The control protocol and the records are text, so a path must be UTF-8.
    #[error(
        "disk {name}: the path {} is not UTF-8; rename the file or folder. Nothing was changed",
        path.display()
    )]
    Path {
        /// The disk.
        name: DiskName,
        /// The path.
        path: PathBuf,
    },
    /// The program that starts the driver could not make the backing.
    #[error("{source}")]
    RemoteBacking {
        /// The disk.
        name: DiskName,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// What to do about it.
        class: Class,
    },
    /// The driver could hang the users of its disk.
    #[error("disk {name}: {reason}. Nothing was changed")]
    Unsafe {
        /// The disk.
        name: DiskName,
        /// Why, and what to do.
        reason: String,
    },
    /// The state or runtime directory is full.
    #[error(
        "disk {name}: {source}. Free space in the file systems of {} and {} and try again (a start needs \
         1 MiB and the size of the bitmaps). Of this disk's files you may delete only driver.log. \
         Nothing was changed",
        state.display(), runtime.display()
    )]
    Full {
        /// The disk.
        name: DiskName,
        /// Its state directory.
        state: PathBuf,
        /// Its runtime directory.
        runtime: PathBuf,
        /// What failed.
        source: TrackError,
    },
    /// The disk's state cannot be used.
    #[error("disk {name}: {source}")]
    Track {
        /// The disk.
        name: DiskName,
        /// Why.
        source: TrackError,
    },
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The error of the system call.
        source: io::Error,
    },
}

impl Classified for DriverError {
    fn class(&self) -> Class {
        match self {
            Self::Running(_) | Self::WrongBacking { .. } | Self::Unsafe { .. } => Class::Refused,
            Self::Backing(e) => e.class(),
            Self::RemoteBacking { class, .. } => *class,
            Self::Path { .. } => Class::Person,
            Self::Full { source, .. } | Self::Track { source, .. } => source.class(),
            Self::Io { source, .. } => source.class(),
        }
    }
}

/// What makes a driver stop.
enum Event {
    /// A signal: stop once nobody has the disk open.
    Signal,
    /// Nobody has the disk open, and new opens are refused.
    Stop,
    /// A client asked to stop at once, although the disk is in use.
    Abort,
    /// The mount is gone: this driver or somebody else unmounted it, and it is closed.
    Ended,
}

/// Serves a disk until a signal or a client stops it. Calls `ready` once the disk can be used.
///
/// # Errors
/// If the disk cannot be served, or if the clean stop fails.
pub fn run(options: DriverOptions, ready: impl FnOnce()) -> Result<(), DriverError> {
    let open = |options: &mut DriverOptions| {
        refuse_image(options)?;
        let holder = format!("disk {}", options.name);
        Ok(backing::open_as(&options.backing, options.engine, &holder)?)
    };
    let traces = Traces::before(&options.name, &options.paths);
    let ran = run_with(options, open, ready);
    if ran.is_err() {
        traces.remove();
    }
    ran
}

/// Like [`run`], on a backing that `open` makes. `open` runs under the lock of the disk's state, and may
/// fill in the options.
///
/// # Errors
/// The error of `open`; or as for [`run`].
pub fn run_with(
    mut options: DriverOptions,
    open: impl FnOnce(&mut DriverOptions) -> Result<AnyBacking, DriverError>,
    ready: impl FnOnce(),
) -> Result<(), DriverError> {
    let DriverOptions { name, paths, .. } = &options;
    let backing = fs::canonicalize(&options.backing).unwrap_or_else(|_| options.backing.clone());
    for path in [&options.backing, &backing, &options.mount_point, &paths.state, &paths.runtime] {
        if path.to_str().is_none() {
            return Err(DriverError::Path { name: name.clone(), path: path.clone() });
        }
    }
    for dir in [&paths.state, &paths.runtime] {
        own_dir(dir).map_err(|e| io_error(format!("disk {name}"))(e.into()))?;
    }
    let _lock = lock_disk(name, &paths.lock_file())?;
    let backing = open(&mut options)?;
    let DriverOptions { name, paths, .. } = &options;
    // A remote backing has no path on this host, so it cannot be the wrong file or device.
    let seen = match backing.remote() {
        None => Some(identify(name, &options.backing, &backing, &paths.state)?),
        Some(_) => None,
    };
    let engine = backing.engine().to_string();
    let env = FsEnv::open(&paths.state, &paths.runtime)
        .map_err(io_error(format!("opening the state of disk {name}")))?;
    harden().map_err(|reason| DriverError::Unsafe { name: name.clone(), reason })?;
    let track = TrackOptions {
        change_log_limit: options.change_log_limit,
        tracking: options.tracking,
        grow: options.grow,
        compare: options.compare,
        base: options.base,
        base_size: options.base_size,
        ..TrackOptions::default()
    };
    let disk = ProtectedDisk::open(env, backing, track).map_err(|source| {
        let (name, state) = (name.clone(), paths.state.clone());
        match source.is_full() {
            true => DriverError::Full { name, state, runtime: paths.runtime.clone(), source },
            false => DriverError::Track { name, source },
        }
    })?;
    let disk = Arc::new(disk);
    if let Some(seen) = seen.clone() {
        remember(seen, &paths.state);
    }

    let (events, happened) = bounded(8);
    let opens = Arc::new(Opens::default());
    let closed = sender(&events, || Event::Stop);
    let fs = DiskFs::new(Arc::clone(&disk), Arc::clone(&opens), closed)
        .map_err(io_error("starting threads"))?;
    let ended = sender(&events, || Event::Ended);
    let access = if options.read_only { Access::Read } else { Access::Write };
    let mounted = mount(fs, &options.mount_point, options.event_loops, access, ended)
        .map_err(io_error(format!("mounting on {}", options.mount_point.display())))?;
    let served = options.mount_point.join("disk");
    let identity = Identity {
        name: name.clone(),
        backing: match seen {
            Some(_) => fs::canonicalize(&options.backing).unwrap_or(options.backing.clone()),
            // The bytes of a remote backing are complete only in the served file.
            None => served.clone(),
        },
        served_on: fs::metadata(&options.mount_point).map_or(0, |meta| meta.dev()),
        served,
        engine,
    };
    say_what_was_found(name, disk.found(), disk.status(&identity).dirty_sectors);
    let stop = stopper(&opens, &events);
    let grown = mounted.size_changed();
    Server::start(&paths.control_socket(), Arc::clone(&disk), identity, stop, grown)
        .map_err(io_error("opening the control socket"))?;
    Died::is_over(paths);
    stop_on_signals(sender(&events, || Event::Signal)).map_err(io_error("waiting for signals"))?;

    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    ready();
    let end = wait_for_end(name, &opens, &mounted, &happened);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let ended = match end {
        End::Closed => mounted.join(),
        // The event loops and the file system end with this process.
        End::Abandoned => Ok(()),
    };
    if let Some(remote) = disk.backing().remote() {
        remote.stop();
    }
    let closed = disk.close();
    let _ = fs::remove_file(paths.control_socket());
    closed.map_err(|source| DriverError::Track { name: name.clone(), source })?;
    tracing::info!("disk {name}: stopped cleanly");
    ended.map_err(io_error("serving"))
}

/// Refuses the unfinished file of a restore. For a disk that is new on this host, also refuses an image
/// in a format other than raw. A known disk is not checked for formats: a guest may write anything to
/// its first sector, and that must never keep the disk from being served.
fn refuse_image(options: &DriverOptions) -> Result<(), DriverError> {
    let DriverOptions { name, backing, paths, .. } = options;
    if backing::is_part(backing) {
        return Err(DriverError::WrongBacking {
            name: name.clone(),
            reason: format!(
                "{} is the unfinished part of a restore or an export, not a disk: run that command again, and use \
                 the file that it makes",
                backing.display()
            ),
        });
    }
    if paths.state.join("super").exists() {
        return Ok(());
    }
    match backing::image_format(backing) {
        Ok(Some(format)) => Err(DriverError::WrongBacking {
            name: name.clone(),
            reason: format!(
                "{} is a {format} image, not a raw disk: its users would see the bytes of the image format. \
                 Import it into a vault (backstay import), or convert it with qemu-img convert -O raw",
                backing.display()
            ),
        }),
        // Opening the backing reports any other problem.
        Ok(None) | Err(_) => Ok(()),
    }
}

/// Identifies the backing. Refuses it if somebody else uses it, if a restore has not finished it, or if a
/// move has left it behind or not finished it.
fn identify(
    name: &DiskName,
    path: &Path,
    backing: &AnyBacking,
    state: &Path,
) -> Result<Seen, DriverError> {
    backing::refuse_users(path)?;
    if let Some(reason) = backing::unfinished(path, backing)? {
        return Err(DriverError::WrongBacking { name: name.clone(), reason });
    }
    let identity = backing.identity();
    let identity =
        identity.map_err(io_error(format!("reading the identity of {}", path.display())))?;
    let seen = Seen::new(path, identity);
    let refused = |reason| DriverError::WrongBacking { name: name.clone(), reason };
    let record = BackingRecord::load(state).map_err(|e| {
        refused(format!(
            "cannot check whether a move has left this backing behind: {e}. If {} holds the newest state of the \
             disk, remove that record file",
            path.display()
        ))
    })?;
    match record.objection(&seen) {
        Some(reason) => Err(refused(reason)),
        None => Ok(seen),
    }
}

/// Records the backing, so that it can be found while no driver runs.
fn remember(seen: Seen, state: &Path) {
    let noted = BackingRecord::load(state).and_then(|mut record| {
        if record.backing.as_ref() == Some(&seen) {
            return Ok(());
        }
        record.backing = Some(seen);
        record.save(state)
    });
    if let Err(e) = noted {
        tracing::warn!("cannot record the path of the backing: {e}");
    }
}

/// How a disk's service ended.
enum End {
    /// The file system has ended.
    Closed,
    /// The file system ends with this process. Any users left get errors.
    Abandoned,
}

/// How long to wait for the kernel to end an unmounted file system. A copy of the mount in another mount
/// namespace keeps the file system alive; the disk cannot be opened there any more.
const UNMOUNTED_WITHIN: Duration = Duration::from_secs(1);

/// The stop function for the control socket.
fn stopper(
    opens: &Arc<Opens>,
    events: &Sender<Event>,
) -> impl Fn(Stopping) -> Result<(), u64> + Send + Sync + 'static + use<> {
    let (opens, stop) = (Arc::clone(opens), sender(events, || Event::Stop));
    let abort = sender(events, || Event::Abort);
    move |how| {
        match how {
            Stopping::IfUnused => {
                opens.end()?;
                stop();
            }
            Stopping::UnderItsUsers => abort(),
        }
        Ok(())
    }
}

/// Waits for the end of service. A disk that is open stays in service, so that its users see no errors;
/// only an abort ends it at once.
fn wait_for_end(
    name: &DiskName,
    opens: &Opens,
    mounted: &Mounted,
    happened: &Receiver<Event>,
) -> End {
    loop {
        match happened.recv() {
            Ok(Event::Ended) | Err(_) => return End::Closed,
            Ok(Event::Signal) if !opens.end_when_closed() => tracing::warn!(
                "disk {name}: got a stop signal while the disk is in use; the driver stops when the last user \
                 closes it (\"backstay umount {name} --force\" stops it at once)"
            ),
            Ok(Event::Signal | Event::Stop) => {
                if let Err(e) = mounted.unmount() {
                    tracing::warn!("disk {name}: unmounting: {e}");
                }
                let until = clock::monotonic() + UNMOUNTED_WITHIN;
                while let Ok(event) = happened.recv_deadline(until) {
                    if matches!(event, Event::Ended) {
                        return End::Closed;
                    }
                }
                tracing::info!(
                    "disk {name}: another mount namespace has a copy of the mount; that copy ends with the driver"
                );
                return End::Abandoned;
            }
            Ok(Event::Abort) => {
                tracing::warn!("disk {name}: stopped on request while it was in use");
                return End::Abandoned;
            }
        }
    }
}

fn stop_on_signals(stop: impl Fn() + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            stop();
        }
    })?;
    Ok(())
}

fn sender(
    events: &Sender<Event>,
    event: fn() -> Event,
) -> impl Fn() + Send + Sync + 'static + use<> {
    let events = events.clone();
    move || {
        let _ = events.try_send(event());
    }
}

/// Locks the state of a disk for one driver, or for a command that needs the disk without a driver. The
/// lock is released when the returned file is dropped.
///
/// # Errors
/// [`DriverError::Running`] if somebody else has it.
pub fn lock_disk(name: &DiskName, path: &Path) -> Result<Flock<File>, DriverError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(io_error(format!("opening {}", path.display())))?;
    let lock = lock::exclusive(file, lock::HOLDER_GONE_WAIT);
    let lock = lock.map_err(io_error(format!("locking {}", path.display())))?;
    let mut lock = lock.ok_or_else(|| DriverError::Running(name.clone()))?;
    // Overwrite first, then shorten: on a full file system a truncated file could not be written again.
    let pid = format!("{}\n", std::process::id());
    let write_pid = lock.write_all(pid.as_bytes()).and_then(|()| lock.set_len(pid.len() as u64));
    write_pid.map_err(io_error(format!("writing {}", path.display())))?;
    Ok(lock)
}

fn say_what_was_found(name: &DiskName, found: FoundState, dirty_sectors: u64) {
    let dirty = dirty_sectors * backstay_types::SECTOR_BYTES;
    match found {
        FoundState::New => tracing::info!("disk {name}: new"),
        FoundState::Clean => {
            tracing::info!("disk {name}: was stopped cleanly; exactly {dirty} bytes are dirty");
        }
        FoundState::SameBoot => tracing::warn!(
            "disk {name}: the previous driver died; its bitmap is complete: exactly {dirty} bytes \
             are dirty"
        ),
        FoundState::OtherBoot => tracing::warn!(
            "disk {name}: the machine went down; {dirty} bytes in regions with write intents \
             count as dirty"
        ),
        FoundState::Damaged => tracing::error!(
            "disk {name}: its change log is damaged; the whole disk counts as dirty and will be \
             resynced"
        ),
    }
}

fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> DriverError {
    let doing = doing.into();
    move |source| DriverError::Io { doing, source }
}
