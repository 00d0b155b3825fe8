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
    /// Where its state is.
    pub paths: DiskPaths,
    /// Where to mount it.
    pub mount_point: PathBuf,
    /// How to read and write the backing.
    pub engine: Engine,
    /// Most bytes of preserved blocks; half the disk if not given.
    pub change_log_limit: Option<ByteLen>,
    /// Off only to measure what tracking costs.
    pub tracking: bool,
    /// Accept a backing that is larger than the disk: the disk grows.
    pub grow: bool,
    /// Take the whole disk for changed: it is compared with its newest recovery point.
    pub compare: bool,
    /// Only for a new disk: the recovery point that the backing holds, so that nothing is dirty.
    pub base: Option<Base>,
    /// The size of that point's disk: what the backing has beyond it is dirty.
    pub base_size: Option<ByteLen>,
    /// Refuse writes.
    pub read_only: bool,
    /// Threads that read requests.
    pub event_loops: usize,
}

/// Why a driver did not start or did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Another driver serves this disk.
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
        /// Which backing it is, and which to mount.
        reason: String,
    },
    /// A path that cannot be said in the control protocol and in records, which are text.
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
    /// The backing that was to be made for the disk was not.
    #[error("{source}")]
    RemoteBacking {
        /// The disk.
        name: DiskName,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// What to do about it.
        class: Class,
    },
    /// The driver could hang those it serves.
    #[error("disk {name}: {reason}. Nothing was changed")]
    Unsafe {
        /// The disk.
        name: DiskName,
        /// Why, and what to do.
        reason: String,
    },
    /// There is no room for what a start needs.
    #[error(
        "disk {name}: {source}. Make room in the file systems of {} and {} (a start needs 1 MiB and what \
         the bitmaps take; logs and images of others may be deleted there, nothing of this disk but \
         driver.log) and try again. Nothing was changed",
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
    /// The system refused.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system answered.
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
    /// A signal: the disk ends when nobody has it open any more.
    Signal,
    /// Nobody has the disk open, and nobody gets it any more.
    Stop,
    /// A client wants it to end under its users.
    Abort,
    /// The mount is gone: unmounted by someone else, or by us, and closed.
    Ended,
}

/// Serves a disk until it is told to stop; `ready` is called once it can be used.
///
/// # Errors
/// If the disk cannot be served, or its last writes not be saved.
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

/// Serves a disk on a backing that `open` makes, alone with the disk's state; it may say what it found
/// out about the disk in the options. Otherwise as [`run`].
///
/// # Errors
/// What `open` answered; or as for [`run`].
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
    // One that was made is nowhere else: there is nothing it could be mistaken for.
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
            // Nowhere but here are its bytes together.
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
        // The event loops go with the process, and the file system with them.
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

/// An image of another format is not a disk's bytes. Only of a disk that is new here: what a guest writes to
/// its first sector must never keep its disk from being served. A part of a restore is none at all.
fn refuse_image(options: &DriverOptions) -> Result<(), DriverError> {
    let DriverOptions { name, backing, paths, .. } = options;
    if backing::is_part(backing) {
        return Err(DriverError::WrongBacking {
            name: name.clone(),
            reason: format!(
                "{} is a part of a restore or an export that was not finished, no disk: run that again, and use the \
                 file that it leaves",
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
                "{} is a {format} image, not a raw disk: served as it is, its users would see the image's \
                 own bytes. Import it into a vault (backstay import), or convert it with qemu-img convert \
                 -O raw",
                backing.display()
            ),
        }),
        // What else is wrong with it is said when it is opened.
        Ok(None) | Err(_) => Ok(()),
    }
}

/// Which backing this is. Refused: one that somebody else uses, one that a restore has not finished, one that
/// a move has left or not finished.
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
        identity.map_err(io_error(format!("finding out which one {} is", path.display())))?;
    let seen = Seen::new(path, identity);
    let refused = |reason| DriverError::WrongBacking { name: name.clone(), reason };
    let record = BackingRecord::load(state).map_err(|e| {
        refused(format!(
            "whether a move has left this backing behind cannot be read: {e}. If {} holds the disk as it is now, \
             remove that file",
            path.display()
        ))
    })?;
    match record.objection(&seen) {
        Some(reason) => Err(refused(reason)),
        None => Ok(seen),
    }
}

/// Notes where the disk is served from, for those who look for its backing later.
fn remember(seen: Seen, state: &Path) {
    let noted = BackingRecord::load(state).and_then(|mut record| {
        if record.backing.as_ref() == Some(&seen) {
            return Ok(());
        }
        record.backing = Some(seen);
        record.save(state)
    });
    if let Err(e) = noted {
        tracing::warn!("where the backing is could not be noted: {e}");
    }
}

/// How a disk's service ended.
enum End {
    /// Its file system is gone.
    Closed,
    /// Its file system goes with this process: its users get errors, or it has none.
    Abandoned,
}

/// How long the kernel may take to end a file system that nobody has open. A copy of its mount in another
/// mount namespace keeps it for ever; nobody can open the disk there any more.
const UNMOUNTED_WITHIN: Duration = Duration::from_secs(1);

/// What the control socket calls: ends the disk if nobody has it open, or under its users.
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

/// Waits until the disk ends. As long as somebody has it open it does not: its users must not see errors.
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
                "disk {name}: told to stop while it is in use: it is served until its last user closes it \
                 (\"backstay umount {name} --force\" ends it at once)"
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
                    "disk {name}: another mount namespace has a copy of its mount; it ends, too"
                );
                return End::Abandoned;
            }
            Ok(Event::Abort) => {
                tracing::warn!("disk {name}: ended under its users, as was asked for");
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

/// Locks the state of a disk: one driver, or another command that must be alone with it. The lock lasts as
/// long as the file.
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
    // In place: a full file system has no room for a file that was emptied first.
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
            tracing::info!("disk {name}: was stopped cleanly; {dirty} bytes are dirty, exactly");
        }
        FoundState::SameBoot => tracing::warn!(
            "disk {name}: the driver before this one died; its bitmap is whole: {dirty} bytes \
             are dirty, exactly"
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
