//! Serving a mounted point: in this process, in the background, by running the command.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use backstay_front::backing::{AnyBacking, RemoteBacking};
use backstay_front::life::{DriverError, DriverOptions, Outcome, in_background, run_with};
use backstay_front::paths::{DiskPaths, Roots};
use backstay_host::clock;
use backstay_host::own_dir::own_dir;
use backstay_types::{ByteLen, Class, Classified, DiskName};
use backstay_vault::retain::Held;
use backstay_vault::{Manifest, Vaults};

use super::MountError;
use super::backing::{Point, PointBacking};
use super::choice::{PointChoice, choose};
use super::heap;
use super::hydrate::Hydrator;
use super::keeper::Keeper;
use super::make::{MANIFEST, MAP, fresh, give_up, identity, overlay_path};
use super::medium::{OverlayFile, PlainFile};
use super::overlay::Overlay;
use super::record::{Hydration, HydrationStatus, Mounted, MountedPoint, folder};
use super::source::Source;

/// How often the status is written.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// What to mount, and how.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// What vaults are opened with.
    pub vaults: Vaults,
    /// The vault's URL. Of a point that is mounted already, it may be where the vault is now.
    pub vault: Option<String>,
    /// The disk's name in the vault; if not given, the name it is to have here.
    pub disk: Option<DiskName>,
    /// Which point; the newest if not given, or the one that is mounted already.
    pub point: Option<PointChoice>,
    /// Where to put the overlay; with the disk's state if not given.
    pub overlay: Option<PathBuf>,
    /// Most bytes of fetched blocks that are kept; 1 GiB if not given.
    pub cache: Option<ByteLen>,
    /// How long a read waits for the vault before it fails.
    pub timeout: Duration,
    /// Whether to hydrate; if not given, as it was.
    pub hydrate: Option<Hydration>,
}

impl MountOptions {
    /// The cache, unless told otherwise.
    pub const CACHE_DEFAULT: ByteLen = ByteLen(1 << 30);
    /// The wait for the vault, unless told otherwise.
    pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            vaults: Vaults::default(),
            vault: None,
            disk: None,
            point: None,
            overlay: None,
            cache: None,
            timeout: Self::TIMEOUT_DEFAULT,
            hydrate: None,
        }
    }
}

impl MountOptions {
    /// Sees that what is mounted under a name already is what is meant.
    ///
    /// # Errors
    /// [`MountError::Refused`] if it is not; or the vault cannot say.
    pub fn fits(&self, name: &DiskName, mounted: &MountedPoint) -> Result<(), MountError> {
        again(name, mounted.clone(), self).map(drop)
    }
}

/// Serves a recovery point until it is told to stop; `ready` is called once it can be used. A point that was
/// mounted under this name before goes on with what was written to it.
///
/// # Errors
/// If there is no such point, the disk on this host is something else, or it cannot be served.
pub fn serve(
    driver: DriverOptions,
    options: MountOptions,
    ready: impl FnOnce(),
) -> Result<(), DriverError> {
    heap::give_back_large_blocks();
    let mut keeper = None;
    let open = |driver: &mut DriverOptions| {
        let failed = |e: MountError| DriverError::RemoteBacking {
            name: driver.name.clone(),
            class: e.class(),
            source: e.into(),
        };
        let opened = open(&driver.name, &driver.paths, &options).map_err(failed)?;
        driver.base = opened.base;
        let (backing, kept) = opened.begin(&driver.name, &driver.paths).map_err(failed)?;
        keeper = Some(kept);
        Ok(AnyBacking::Remote(backing))
    };
    let ended = run_with(driver, open, ready);
    if let Some(keeper) = keeper {
        keeper.leave();
    }
    ended
}

/// As [`serve`], in the background; the file that is served. Must be called before any thread is started.
///
/// # Errors
/// As for [`serve`].
pub fn start(driver: DriverOptions, options: MountOptions) -> Result<PathBuf, MountError> {
    let (served, name) = (driver.mount_point.join("disk"), driver.name.clone());
    let (paths, state) = (driver.paths.clone(), &driver.paths.state);
    let is_new = !state.exists();
    own_dir(state).map_err(|e| MountError::io(state)(e.into()))?;
    let log = driver.paths.driver_log();
    let outcome = in_background(&log, |ready| serve(driver, options, ready));
    match outcome.map_err(MountError::io(log))? {
        Outcome::Serving => Ok(served),
        Outcome::Failed { class, said } => {
            // What damage ended is not to be. What a kill or a silent vault ended, the next mount goes on with.
            if is_new && class == Class::Damaged {
                leave_nothing(&paths);
            }
            Err(MountError::Driver { name, said, class })
        }
    }
}

/// Removes what a driver that never served has left of a disk that was not here before.
fn leave_nothing(paths: &DiskPaths) {
    give_up(paths);
    for file in [paths.driver_log(), paths.lock_file(), paths.control_socket()] {
        let _ = fs::remove_file(file);
    }
    // Only if nothing else is in them.
    for folder in [&paths.mount_point(), &paths.runtime, &paths.state] {
        let _ = fs::remove_dir(folder);
    }
}

/// Mounts a point by running the command `program` (`backstay` itself), from a process that has threads; the
/// file that is served. The configuration's file goes with it: it says how the vault's store is reached, and what opens it.
///
/// # Errors
/// What the command said.
pub fn spawn(
    program: &Path,
    config: Option<&Path>,
    roots: &Roots,
    name: &DiskName,
    options: &MountOptions,
) -> Result<PathBuf, MountError> {
    let mut command = Command::new(program);
    command.args(config.iter().flat_map(|file| ["--config".as_ref(), file.as_os_str()]));
    command.arg("--state-dir").arg(&roots.state).arg("--runtime-dir").arg(&roots.runtime);
    command.args(["mount", "--name", name.as_str()]);
    let mut flag = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            command.args([name, &value]);
        }
    };
    flag("--vault", options.vault.clone());
    flag("--disk", options.disk.as_ref().map(ToString::to_string));
    flag("--point", options.point.map(|point| point.to_string()));
    flag("--overlay", options.overlay.as_ref().map(|path| path.display().to_string()));
    flag("--cache", options.cache.map(|bytes| bytes.to_string()));
    flag("--vault-timeout", Some(format!("{}ms", options.timeout.as_millis())));
    if let Some(hydration) = options.hydrate.filter(|hydration| hydration.wanted) {
        let limit = hydration.limit_bytes;
        flag("--hydrate-limit", limit.map(|bytes| bytes.to_string()));
        command.arg("--hydrate");
    }
    let output = command.stdin(Stdio::null()).output().map_err(MountError::io(program))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout).into()),
        false => Err(MountError::Driver {
            name: name.clone(),
            said: text(&output.stderr),
            // As the command's exit codes say it.
            class: match output.status.code() {
                Some(3) => Class::Refused,
                Some(4) => Class::Damaged,
                _ => Class::Person,
            },
        }),
    }
}

/// A point, found and open.
struct Opened {
    vaults: Vaults,
    record: MountedPoint,
    base: Option<backstay_format::superblock::Base>,
    point: Point,
    /// Not asked for, or what became of it.
    held: Option<Option<Held>>,
}

fn open(name: &DiskName, paths: &DiskPaths, options: &MountOptions) -> Result<Opened, MountError> {
    let (record, vault, held) = match MountedPoint::load(name, paths)? {
        Some(record) => (again(name, record, options)?, None, None),
        None => {
            let (record, vault, held) = fresh(name, paths, options)?;
            (record, Some(vault), Some(held))
        }
    };
    if let Some(hydrate) = options.hydrate {
        hydrate.save(paths)?;
    }
    let folder = folder(paths);
    let damaged = |what: String| MountError::Damaged { name: name.clone(), what };
    let path = folder.join(MANIFEST);
    let bytes = fs::read(&path).map_err(MountError::io(&path))?;
    let manifest =
        Manifest::decode(&bytes).map_err(|e| damaged(format!("{}: {e}", path.display())))?;
    if (manifest.disk, manifest.point) != (record.disk, record.point) {
        return Err(damaged(format!("{} is of another point", path.display())));
    }
    let size = manifest.size;
    let path = overlay_path(&record, &folder);
    let data = OverlayFile::open(&path, size).map_err(|e| match e.is_refusal() {
        true => MountError::Refused { name: name.clone(), reason: e.to_string() },
        false => damaged(e.to_string()),
    })?;
    if identity(&data).map_err(MountError::io(&path))? != record.overlay_identity {
        return Err(damaged(format!("{} is not the overlay that was made for it", path.display())));
    }
    let map = folder.join(MAP);
    let file =
        OpenOptions::new().read(true).write(true).open(&map).map_err(MountError::io(&map))?;
    let overlay = Overlay::open(data, PlainFile(file), size, record.disk, record.point)
        .map_err(|e| damaged(format!("{}: {e}", map.display())))?;
    // Without a superblock nothing was ever written, unless somebody removed it.
    let base = (overlay.bytes_here().0 == 0).then(|| record.base());
    let url = options.vault.clone().unwrap_or_else(|| record.vault.clone());
    let cache = options.cache.unwrap_or(record.cache_bytes);
    let source = Source::open(
        &folder,
        (&options.vaults, &url),
        vault,
        Arc::new(manifest),
        cache,
        options.timeout,
    )
    .map_err(MountError::io(&folder))?;
    let point = Point::new(overlay, source, size).map_err(MountError::io(&folder))?;
    Ok(Opened { vaults: options.vaults.clone(), record, base, point, held })
}

/// A point that is mounted already: only if it is the one that is meant.
fn again(
    name: &DiskName,
    record: MountedPoint,
    options: &MountOptions,
) -> Result<MountedPoint, MountError> {
    let is_not = |what: String| {
        Err(MountError::Refused {
            name: name.clone(),
            reason: format!(
                "it is point {} of disk {} already, and keeps what was written to it; {what}. To go on with \
                 it, leave out --point; to give it up: backstay umount {name} --forget",
                record.cycle, record.disk_name
            ),
        })
    };
    if let Some(disk) = options.disk.as_ref().filter(|disk| **disk != record.disk_name) {
        return is_not(format!("disk {disk} was asked for"));
    }
    match options.point {
        None => Ok(record),
        Some(PointChoice::Cycle(cycle)) if cycle == record.cycle => Ok(record),
        Some(PointChoice::Cycle(cycle)) => is_not(format!("point {cycle} was asked for")),
        Some(choice) => {
            let url = options.vault.as_ref().unwrap_or(&record.vault);
            let chosen = choose(&options.vaults.open(url)?, record.disk, choice)?;
            if chosen.point == record.point {
                return Ok(record);
            }
            is_not(format!("{choice} is point {} by now", chosen.cycle))
        }
    }
}

impl Opened {
    /// Starts what goes on beside serving.
    fn begin(
        self,
        name: &DiskName,
        paths: &DiskPaths,
    ) -> Result<(Box<dyn RemoteBacking>, Arc<Keeper>), MountError> {
        let point = Arc::new(self.point);
        // A disk that is here as a whole needs no point.
        let held = if point.overlay.is_whole() { Some(None) } else { self.held };
        let keeper = Arc::new(Keeper::start(self.vaults, &self.record, name, held));
        let hydrator =
            Hydrator::new(Arc::clone(&point), paths.clone(), name.clone(), self.record.cycle);
        let hydrator = Arc::new(hydrator);
        let (hydrating, kept) = (Arc::clone(&hydrator), Arc::clone(&keeper));
        let hydrate = thread::Builder::new().name("hydrate".into()).spawn(move || {
            hydrating.run();
            if hydrating.status() == HydrationStatus::Done {
                kept.release();
            }
        });
        let hydrate: JoinHandle<()> = hydrate.map_err(MountError::io(&paths.state))?;
        let (of, kept, to) = (Arc::clone(&point), Arc::clone(&keeper), paths.clone());
        let tell = move || {
            let mut told = None;
            loop {
                let status = status(&of, &hydrator, &kept);
                if told.as_ref() != Some(&status) {
                    status.save(&to);
                    told = Some(status);
                }
                clock::sleep(STATUS_EVERY);
            }
        };
        thread::Builder::new()
            .name("status".into())
            .spawn(tell)
            .map_err(MountError::io(&paths.state))?;
        let hydrate = Mutex::new(Some(hydrate));
        let stop = move || {
            if let Some(hydrate) = hydrate.lock().ok().and_then(|mut hydrate| hydrate.take()) {
                let _ = hydrate.join();
            }
        };
        Ok((Box::new(PointBacking { point, stop: Box::new(stop) }), keeper))
    }
}

fn status(point: &Point, hydrator: &Hydrator, keeper: &Keeper) -> Mounted {
    let (cache_bytes, cache_limit_bytes) = point.source.cached();
    Mounted {
        pid: std::process::id(),
        local_bytes: point.overlay.bytes_here(),
        cache_bytes,
        cache_limit_bytes,
        hydrated_bytes: ByteLen((point.overlay.whole_to() * 512).min(point.size.0)),
        hydration: hydrator.status(),
        indexes: point.source.indexes(),
        first_read: point.source.first_read(),
        vault_trouble: point.source.vault_trouble(),
        held: keeper.held(),
    }
}
