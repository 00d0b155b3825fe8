//! Moving a disk to another backing: copy, compare, then one superblock.
//!
//! Until that superblock is durable the old backing is the disk's, and the new one, whatever it holds,
//! is refused by the note of the move and would lead to a resync without it. Afterwards it is the other
//! way round. The dirty set is the saved bitmap of the clean stop before and after: nothing is lost and
//! nothing ships that would not have.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use backstay_format::unfinished::{UnfinishedRestore, Writer};
use backstay_host::clock::now_unix_ns;
use backstay_track::{Backing, Binding, FsEnv, Offline};
use backstay_types::{ByteLen, CycleNo, DiskName, PointId};

use super::{OfflineError, io_error};
use crate::backing::copy::{Progress, copy};
use crate::backing::record::{BackingRecord, Seen};
use crate::backing::{AnyBacking, Engine, open, refuse_users};
use crate::life::lock_disk;
use crate::paths::DiskPaths;

/// What is to be moved where.
#[derive(Debug, Clone)]
pub struct Relocation {
    /// The disk.
    pub name: DiskName,
    /// Where its state is.
    pub paths: DiskPaths,
    /// Its backing now; where it was mounted from last if not given.
    pub from: Option<PathBuf>,
    /// The file or device to move it to.
    pub to: PathBuf,
    /// What the file or device holds may be overwritten.
    pub overwrite: bool,
    /// A device that is larger is taken whole: the disk grows when it is mounted next.
    pub grow: bool,
}

/// What a move did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// What it left behind.
    pub from: PathBuf,
    /// Where the disk is now.
    pub to: PathBuf,
    /// Its size.
    pub size: ByteLen,
    /// The size it gets when it is mounted next.
    pub growing_to: Option<ByteLen>,
    /// Bytes of data that were copied; none if an earlier move had done it.
    pub copied_bytes: u64,
}

/// Moves a disk that nobody serves to another backing. Run again after a kill, it finishes.
///
/// # Errors
/// If it cannot be done safely or fails; the disk then has its old backing.
pub fn relocate(order: &Relocation, progress: Progress<'_>) -> Result<Moved, OfflineError> {
    let Relocation { name, paths, .. } = order;
    if !paths.state.join("super").exists() {
        let state = paths.state.display().to_string();
        return Err(OfflineError::NoDisk { name: name.clone(), state });
    }
    let _lock = lock_disk(name, &paths.lock_file()).map_err(OfflineError::Served)?;
    let env = FsEnv::open(&paths.state, &paths.runtime)
        .map_err(io_error(format!("opening the state of disk {name}")))?;
    let of_state = |source| OfflineError::State { name: name.clone(), source };
    let mut disk = Offline::open(&env).map_err(of_state)?;
    let mut record = BackingRecord::load(&paths.state).map_err(|e| {
        OfflineError::Refused(format!("which backings disk {name} has had cannot be read: {e}"))
    })?;
    let from = match (&order.from, &record.backing) {
        (Some(path), _) => path.clone(),
        (None, Some(seen)) => seen.path.clone(),
        (None, None) => {
            return Err(OfflineError::Refused(format!(
                "the backing of disk {name} is unknown; pass --from PATH"
            )));
        }
    };
    if let Some(done) = finished_before(order, &disk, &record, &from)? {
        record.moved_from = record.backing.take();
        record.backing = record.moving_to.take();
        save(&record, paths)?;
        return Ok(done);
    }
    let source = open(&from, Engine::Buffered)?;
    let binding = disk.binding(&env, &source).map_err(of_state)?;
    if binding == Binding::Bound && is_same_file(&from, &order.to) {
        return Ok(already_there(order, &disk, &record));
    }
    if binding != Binding::Bound {
        return Err(OfflineError::Refused(format!(
            "{} is not the backing of disk {name} as it was left: another one, or changed since. \
             Mount the disk once, so that its state knows what to do about that",
            from.display()
        )));
    }
    disk.note(&source).map_err(of_state)?;
    let size = disk.superblock().geometry.size;
    let target = Target::prepare(order, &from, size)?;
    let copied = target.open().and_then(|to| {
        // From here on it is not to be mounted by mistake.
        record.backing = Some(Seen::new(&from, identity(&source, &from)?));
        record.moving_to = Some(Seen::new(&order.to, identity(&to, &order.to)?));
        record.moved_from =
            record.moved_from.take().filter(|was| Some(was) != record.moving_to.as_ref());
        save(&record, paths)?;
        let sb = disk.superblock();
        let mark = UnfinishedRestore {
            writer: Writer::Move,
            disk: sb.disk,
            name: name.clone(),
            cycle: CycleNo(0),
            point: PointId::from_bytes([0; 16]),
            size,
            started_unix_ns: now_unix_ns(),
        };
        let copied = copy(&source, &to, &order.to, size, target.is_empty, &mark, progress)?;
        Ok((to, copied))
    });
    let (to, copied_bytes) = match copied {
        Ok(copied) => copied,
        Err(e) => {
            target.give_up();
            return Err(e);
        }
    };
    if disk.binding(&env, &source).map_err(of_state)? != Binding::Bound {
        target.give_up();
        return Err(OfflineError::Refused(format!(
            "{} was changed by someone else while it was copied",
            from.display()
        )));
    }
    sync_name(&order.to)?;
    // The step that counts.
    disk.bind(&env, &to).map_err(of_state)?;
    record.moved_from = record.backing.take();
    record.backing = record.moving_to.take();
    save(&record, paths)?;
    let growing_to = disk.superblock().growing_to;
    Ok(Moved { from, to: order.to.clone(), size, growing_to, copied_bytes })
}

/// The disk is where it is to be moved to: an earlier run has done all of it.
fn already_there(order: &Relocation, disk: &Offline<FsEnv>, record: &BackingRecord) -> Moved {
    let left = record.moved_from.as_ref().map_or_else(|| order.to.clone(), |was| was.path.clone());
    Moved {
        from: left,
        to: order.to.clone(),
        size: disk.superblock().geometry.size,
        growing_to: disk.superblock().growing_to,
        copied_bytes: 0,
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let id =
        |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino(), meta.rdev()));
    id(one).is_some() && id(one) == id(other)
}

/// A move that was killed between its superblock and its note: the target is the disk's already.
fn finished_before(
    order: &Relocation,
    disk: &Offline<FsEnv>,
    record: &BackingRecord,
    from: &Path,
) -> Result<Option<Moved>, OfflineError> {
    let Some(moving) = &record.moving_to else { return Ok(None) };
    if !order.to.exists() || Seen::new(&order.to, None).path != moving.path {
        return Ok(None);
    }
    let to = open(&order.to, Engine::Buffered)?;
    let sb = disk.superblock();
    if sb.backing.is_none() || identity(&to, &order.to)? != sb.backing {
        return Ok(None);
    }
    Ok(Some(Moved {
        from: from.into(),
        to: order.to.clone(),
        size: sb.geometry.size,
        growing_to: sb.growing_to,
        copied_bytes: 0,
    }))
}

/// The file or device to copy to.
struct Target {
    path: PathBuf,
    /// It was made for this and reads as zeroes.
    is_empty: bool,
    is_new: bool,
}

impl Target {
    /// Checks that it may be used, and makes or empties a file.
    fn prepare(order: &Relocation, from: &Path, size: ByteLen) -> Result<Self, OfflineError> {
        let path = order.to.clone();
        let shown = path.display();
        let there = match fs::metadata(&path) {
            Ok(meta) => Some(meta),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(io_error(format!("{shown}"))(e)),
        };
        let Some(meta) = there else {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let file = file.map_err(io_error(format!("making {shown}")))?;
            let target = Self { path, is_empty: true, is_new: true };
            if let Err(e) = file.set_len(size.0) {
                let error = io_error(format!("giving {} its size", target.path.display()))(e);
                target.give_up();
                return Err(error);
            }
            return Ok(target);
        };
        if is_same_file(from, &path) {
            return Err(OfflineError::Refused(format!("{shown} is the disk's backing already")));
        }
        let device = meta.file_type().is_block_device();
        if (device || meta.len() > 0) && !order.overwrite {
            return Err(OfflineError::Refused(format!(
                "{shown} exists and would be overwritten; use --force if it may be"
            )));
        }
        // Used by nobody, and locked: looked at before anything of it is changed.
        refuse_users(&path)?;
        let opened = open(&path, Engine::Buffered)?;
        let there = opened.size();
        if device && there < size {
            return Err(OfflineError::Refused(format!(
                "{shown} has {there} bytes, the disk {size}: it does not fit"
            )));
        }
        if device && there > size && !order.grow {
            return Err(OfflineError::Refused(format!(
                "{shown} has {there} bytes, the disk {size}; use --grow if the disk should become \
                 as large, or a partition or volume of its size"
            )));
        }
        if !device {
            let file = OpenOptions::new().write(true).open(&path);
            file.and_then(|file| file.set_len(0).and_then(|()| file.set_len(size.0)))
                .map_err(io_error(format!("giving {shown} its size")))?;
        }
        drop(opened);
        Ok(Self { path, is_empty: !device, is_new: false })
    }

    fn open(&self) -> Result<AnyBacking, OfflineError> {
        Ok(open(&self.path, Engine::Buffered)?)
    }

    /// Takes away a file that was made in vain.
    fn give_up(&self) {
        if self.is_new
            && let Err(e) = fs::remove_file(&self.path)
        {
            tracing::warn!("{} is left behind: {e}", self.path.display());
        }
    }
}

fn identity(
    backing: &AnyBacking,
    path: &Path,
) -> Result<Option<backstay_format::superblock::BackingId>, OfflineError> {
    backing.identity().map_err(io_error(format!("finding out which one {} is", path.display())))
}

fn save(record: &BackingRecord, paths: &DiskPaths) -> Result<(), OfflineError> {
    let doing = format!("noting the backing in {}", paths.state.display());
    record.save(&paths.state).map_err(|e| io_error(doing)(e.into()))
}

/// Makes the name of a new file durable.
fn sync_name(path: &Path) -> Result<(), OfflineError> {
    let Some(dir) = path.parent() else { return Ok(()) };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error(format!("making {} durable", path.display())))
}
