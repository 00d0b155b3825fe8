//! Opening a backing for one driver alone.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use backstay_host::in_use::InUse;
use backstay_host::lock;
use backstay_types::ByteLen;

use super::{AnyBacking, buffered::Buffered, direct::Direct};

/// How a backing is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// pread and pwrite through the page cache.
    #[default]
    Buffered,
    /// O_DIRECT through io_uring with registered buffers.
    Direct,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Buffered => "buffered",
            Self::Direct => "direct",
        })
    }
}

impl FromStr for Engine {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" | "buffered" => Ok(Self::Buffered),
            "direct" => Ok(Self::Direct),
            _ => Err(format!("{text:?} is not an engine: auto, buffered or direct")),
        }
    }
}

/// Why a backing was not opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another driver has it.
    #[error("{0} is in use by another driver or program that locked it; stop that one first")]
    Locked(PathBuf),
    /// The device is mounted or otherwise claimed.
    #[error("{0} is in use (mounted, or claimed by the kernel); unmount it first")]
    Busy(PathBuf),
    /// A loop device writes to the file behind a driver's back.
    #[error(
        "{file} is attached to {device}, which would write to it behind the driver's back; \
         detach it first (losetup -d {device})"
    )]
    Looped {
        /// The file.
        file: PathBuf,
        /// The loop device.
        device: String,
    },
    /// Somebody uses the same bytes.
    #[error(transparent)]
    InUse(#[from] InUse),
    /// Neither a regular file nor a block device.
    #[error("{0} is neither a file nor a block device")]
    NotADisk(PathBuf),
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The backing.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

impl OpenError {
    /// Whether nothing is wrong but someone else uses it.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Busy(_) | Self::Locked(_) | Self::Looped { .. } | Self::InUse(_) => true,
            Self::NotADisk(_) | Self::Io { .. } => false,
        }
    }
}

/// Opens a file or block device for this driver alone. The lock lasts as long as the backing.
///
/// # Errors
/// If it is missing, in use, or not a disk.
pub fn open(path: &Path, engine: Engine) -> Result<AnyBacking, OpenError> {
    let failed = |source| OpenError::Io { path: path.into(), source };
    let kind = fs::metadata(path).map_err(failed)?.file_type();
    let device = kind.is_block_device();
    if !device && !kind.is_file() {
        return Err(OpenError::NotADisk(path.into()));
    }
    let open_with = |flags: i32| {
        OpenOptions::new().read(true).write(true).custom_flags(flags | libc::O_CLOEXEC).open(path)
    };
    // On a block device O_EXCL asks the kernel that nobody has it mounted or claimed.
    let exclusive = if device { libc::O_EXCL } else { 0 };
    let file = open_with(exclusive).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => OpenError::Busy(path.into()),
        _ => failed(e),
    })?;
    let file = lock::exclusive(file, lock::HOLDER_GONE_WAIT).map_err(failed)?;
    let file = file.ok_or_else(|| OpenError::Locked(path.into()))?;
    if !device && let Some(loop_device) = loop_device_on(&file).map_err(failed)? {
        return Err(OpenError::Looped { file: path.into(), device: loop_device });
    }
    let size = size_of(&file, device).map_err(failed)?;
    Ok(match engine {
        Engine::Buffered => AnyBacking::Buffered(Buffered::new(file, size, device)),
        Engine::Direct => {
            let direct = open_with(libc::O_DIRECT).map_err(failed)?;
            AnyBacking::Direct(Direct::new(file, direct, size, device))
        }
    })
}

/// The size of a file or device now. A device's is where its end is.
pub(super) fn size_of(file: &File, device: bool) -> io::Result<ByteLen> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    let size = if device { file.seek(SeekFrom::End(0))? } else { file.metadata()?.len() };
    Ok(ByteLen(size))
}

/// A loop device attached to this very file, if there is one.
fn loop_device_on(file: &File) -> io::Result<Option<String>> {
    let ours = file.metadata()?;
    let mut fuse = None;
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let Ok(backing) = fs::read_to_string(entry.path().join("loop/backing_file")) else {
            continue;
        };
        let mounts = match &fuse {
            Some(mounts) => mounts,
            None => fuse.insert(Mounts::read(BufReader::new(File::open("/proc/self/mountinfo")?))?),
        };
        if mounts.is_on_another_fuse(Path::new(backing.trim_end()), ours.dev()) {
            continue;
        }
        if let Ok(theirs) = fs::metadata(backing.trim_end())
            && (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino())
        {
            return Ok(Some(format!("/dev/{}", entry.file_name().to_string_lossy())));
        }
    }
    Ok(None)
}

/// Mount points, in their order: the number of their file system, and whether it is FUSE.
struct Mounts(Vec<(PathBuf, String, bool)>);

impl Mounts {
    fn read(mountinfo: impl BufRead) -> io::Result<Self> {
        let mut mounts = vec![];
        for line in mountinfo.lines() {
            let line = line?;
            // 36 35 98:0 /root /mount/point options - type source options
            let mut fields = line.split(' ');
            let number = fields.nth(2).unwrap_or_default().to_owned();
            let at = fields.nth(1).unwrap_or_default();
            let kind = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').next());
            let fuse = kind.is_some_and(|kind| kind.starts_with("fuse"));
            mounts.push((at.into(), number, fuse));
        }
        Ok(Self(mounts))
    }

    /// Whether a path leads into a FUSE mount that is not the file system `dev`. Such a path must
    /// not be looked at: it is most likely another driver's disk, and if that driver hangs, so would
    /// we.
    fn is_on_another_fuse(&self, path: &Path, dev: u64) -> bool {
        let here = format!("{}:{}", libc::major(dev), libc::minor(dev));
        let (mut longest, mut found) = (0, false);
        for (at, number, fuse) in &self.0 {
            let len = at.as_os_str().len();
            if path.starts_with(at) && len >= longest {
                longest = len;
                found = *fuse && *number != here;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_drivers_mounts_are_not_looked_into() {
        let mounts = "\
22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:40 / /run rw,nosuid shared:2 - tmpfs tmpfs rw
31 30 0:51 / /run/backstay/db/mnt rw - fuse.backstay backstay rw
";
        let mounts = Mounts::read(mounts.as_bytes()).unwrap();
        let skipped = |path, dev| mounts.is_on_another_fuse(Path::new(path), dev);
        assert!(skipped("/run/backstay/db/mnt/disk", libc::makedev(254, 0)));
        assert!(!skipped("/run/backstay/db/mnt/disk", libc::makedev(0, 51)));
        assert!(!skipped("/run/backstay/db/mnt2", libc::makedev(254, 0)));
        assert!(!skipped("/srv/db.img", libc::makedev(254, 0)));
    }

    #[test]
    fn a_backing_is_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, [0; 4096]).unwrap();
        let first = open(&path, Engine::Buffered).unwrap();
        assert!(matches!(open(&path, Engine::Buffered), Err(OpenError::Locked(_))));
        drop(first);
        open(&path, Engine::Direct).unwrap();
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(open(dir.path(), Engine::Buffered), Err(OpenError::NotADisk(_))));
        let missing = dir.path().join("missing");
        let Err(error) = open(&missing, Engine::Buffered) else { panic!("opened {missing:?}") };
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
