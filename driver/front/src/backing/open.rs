//! Opening a backing for one driver alone.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use backstay_host::claim::{ClaimError, Claims, claim};
use backstay_host::in_use::InUse;
use backstay_host::lock::{self, HOLDER_GONE_WAIT};
use backstay_host::loop_device::LoopDevice;
use backstay_host::stack::{self, Ground, Layer};
use backstay_types::{ByteLen, Class, Classified};
use nix::fcntl::{Flock, FlockArg};

use crate::paths::Roots;

use super::watch::Watch;
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
    /// A file of a file system that a driver serves: the disk itself.
    #[error(
        "{file} leads to the disk that is served at {mount_point}: a second driver would write to it \
         behind the first; use the disk as it is served, or detach it first"
    )]
    Served {
        /// What was to be opened.
        file: PathBuf,
        /// Where the disk is served.
        mount_point: PathBuf,
    },
    /// Another driver uses the same bytes, through this path or another one.
    #[error("{path} cannot be opened for a driver alone: {source}; stop that one first")]
    Claimed {
        /// What was to be opened.
        path: PathBuf,
        /// Which part of it is in use, and by whom.
        source: ClaimError,
    },
    /// Neither a regular file nor a block device.
    #[error("{0} is neither a file nor a block device")]
    NotADisk(PathBuf),
    /// A system call failed.
    #[error("{path}: {source}")]
    Io {
        /// The backing.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
}

impl Classified for OpenError {
    fn class(&self) -> Class {
        match self {
            Self::Busy(_) | Self::Locked(_) | Self::Looped { .. } | Self::Served { .. } => {
                Class::Refused
            }
            Self::InUse(e) => e.class(),
            Self::Claimed { source, .. } => source.class(),
            Self::NotADisk(_) => Class::Person,
            Self::Io { source, .. } => source.class(),
        }
    }
}

/// A backing in exclusive use by this process until this is dropped.
pub(super) struct Own {
    file: Flock<File>,
    /// The files below a loop device, which are locked too.
    _below: Vec<Flock<File>>,
    _claims: Claims,
}

impl Deref for Own {
    type Target = File;
    fn deref(&self) -> &File {
        &self.file
    }
}

/// Opens a file or block device for exclusive use. The locks are released with the backing.
///
/// # Errors
/// If it is missing, in use, or not a disk.
pub fn open(path: &Path, engine: Engine) -> Result<AnyBacking, OpenError> {
    open_as(path, engine, "a command of Backstay")
}

/// Like [`open`]. `holder` names the user in the error that others get meanwhile.
///
/// # Errors
/// As for [`open`].
pub fn open_as(path: &Path, engine: Engine, holder: &str) -> Result<AnyBacking, OpenError> {
    let failed = |source| OpenError::Io { path: path.into(), source };
    let kind = fs::metadata(path).map_err(failed)?.file_type();
    let device = kind.is_block_device();
    if !device && !kind.is_file() {
        return Err(OpenError::NotADisk(path.into()));
    }
    let open_with = |flags: i32| {
        OpenOptions::new().read(true).write(true).custom_flags(flags | libc::O_CLOEXEC).open(path)
    };
    // On a block device O_EXCL fails if the device is mounted or claimed.
    let exclusive = if device { libc::O_EXCL } else { 0 };
    let file = open_with(exclusive).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => OpenError::Busy(path.into()),
        _ => failed(e),
    })?;
    // Check this before locking: a lock on a file that a hanging driver serves would wait for ever.
    let layers = stack::resolve(&file, path).map_err(failed)?;
    if let Some(mount_point) = layers.iter().find_map(|layer| layer.served_at.clone()) {
        return Err(OpenError::Served { file: path.into(), mount_point });
    }
    let file = lock::exclusive(file, HOLDER_GONE_WAIT).map_err(failed)?;
    let file = file.ok_or_else(|| OpenError::Locked(path.into()))?;
    if let Some(loop_device) = loop_device_beside(&layers).map_err(failed)? {
        return Err(OpenError::Looped { file: path.into(), device: loop_device });
    }
    let below = lock_below(path, &layers)?;
    let claimed = claim(&Roots::claims(), &layers, holder, HOLDER_GONE_WAIT);
    let claims = claimed.map_err(|source| OpenError::Claimed { path: path.into(), source })?;
    let size = size_of(&file, device).map_err(failed)?;
    let watch = Watch::new(path, &file, device).map_err(failed)?;
    let own = Own { file, _below: below, _claims: claims };
    let direct = match engine {
        Engine::Buffered => None,
        Engine::Direct => Some(open_with(libc::O_DIRECT).map_err(failed)?),
    };
    let buffered = Buffered::new(own, watch, size, device);
    Ok(match direct {
        None => AnyBacking::Buffered(buffered),
        Some(direct) => {
            let direct = Direct::new(buffered, direct);
            if let Some(objection) = direct.objection(size) {
                return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, objection)));
            }
            AnyBacking::Direct(direct)
        }
    })
}

/// Locks the files below a loop device if they can be reached, as a driver that serves them would. Unlike
/// claims, these locks work across mount namespaces. A device that needs only a part of a file takes a shared
/// lock.
fn lock_below(path: &Path, layers: &[Layer]) -> Result<Vec<Flock<File>>, OpenError> {
    let mut locked = vec![];
    for layer in layers.iter().skip(1).filter(|l| matches!(l.ground, Ground::File { .. })) {
        let Ok(file) = File::open(&layer.path) else { continue };
        if Ground::of(&file).ok() != Some(layer.ground) {
            continue;
        }
        let whole = layer.exact && layer.start == 0 && layer.end == u64::MAX;
        let how = match whole {
            true => FlockArg::LockExclusiveNonblock,
            false => FlockArg::LockSharedNonblock,
        };
        match Flock::lock(file, how) {
            Ok(lock) => locked.push(lock),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(OpenError::Locked(layer.path.clone()));
            }
            Err((_, e)) => return Err(OpenError::Io { path: path.into(), source: e.into() }),
        }
    }
    Ok(locked)
}

/// The format of the disk image in a file, if it is not raw.
///
/// # Errors
/// If it cannot be read.
pub fn image_format(path: &Path) -> io::Result<Option<&'static str>> {
    const MAGICS: [(&[u8], u64, &str); 8] = [
        (b"QFI\xfb", 0, "qcow2"),
        (b"QED\0", 0, "QED"),
        (b"KDMV", 0, "VMDK"),
        (b"# Disk DescriptorFile", 0, "VMDK"),
        (b"vhdxfile", 0, "VHDX"),
        (b"conectix", 0, "VHD"),
        (b"\x7f\x10\xda\xbe", 64, "VDI"),
        (b"WithoutFreeSpace", 0, "Parallels"),
    ];
    let mut head = vec![];
    let file = File::open(path)?;
    head.resize(128, 0);
    let mut filled = 0;
    while filled < head.len() {
        match file.read_at(&mut head[filled..], filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    let here = |(magic, at, _): &(&[u8], u64, &str)| head[*at as usize..].starts_with(magic);
    Ok(MAGICS.iter().find(|magic| here(magic)).map(|(_, _, name)| *name))
}

/// The current size of a file or device, found by seeking to its end for a device.
pub(super) fn size_of(file: &File, device: bool) -> io::Result<ByteLen> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    let size = if device { file.seek(SeekFrom::End(0))? } else { file.metadata()?.len() };
    Ok(ByteLen(size))
}

/// Another loop device that exposes bytes of the files below this backing.
fn loop_device_beside(layers: &[Layer]) -> io::Result<Option<String>> {
    let files = || layers.iter().filter(|layer| matches!(layer.ground, Ground::File { .. }));
    for device in LoopDevice::all()? {
        // The loop device that is our own backing.
        if layers.iter().any(|layer| is_device(layer, &device)) {
            continue;
        }
        let (start, end) = device.range();
        let its = Layer {
            ground: device.ground,
            path: device.file,
            start,
            end,
            exact: true,
            served_at: None,
        };
        if files().any(|ours| ours.overlaps(&its)) {
            return Ok(Some(device.device.display().to_string()));
        }
    }
    Ok(None)
}

fn is_device(layer: &Layer, device: &LoopDevice) -> bool {
    fs::metadata(&device.device).is_ok_and(|meta| Ground::of_metadata(&meta) == layer.ground)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn images_that_are_no_raw_disks_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let of = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            image_format(&path).unwrap()
        };
        assert_eq!(of(b"QFI\xfb\0\0\0\x03"), Some("qcow2"));
        assert_eq!(of(&[&[0; 64][..], b"\x7f\x10\xda\xbe"].concat()), Some("VDI"));
        assert_eq!(of(b""), None);
        assert_eq!(of(&[0; 4096]), None);
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
