//! Loop devices: which there are, on which file, attaching and detaching.
//!
//! A device belongs to a file by what the kernel says that it stands on, not by the name it was attached under:
//! the name may lead elsewhere by now, or in another mount namespace.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statfs::statfs;

use ioctl::{loop_clr_fd, loop_get_status64, loop_set_status64};

use crate::child::program;
use crate::mounts;
use crate::stack::{Ground, served_at};

/// How long the file system of a loop device's file may take to say which file it is: a FUSE file system
/// whose process hangs never does.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// A loop device that has a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopDevice {
    /// The device.
    pub device: PathBuf,
    /// Its file, as the kernel writes it: seen from another mount namespace it may lead elsewhere.
    pub file: PathBuf,
    /// Which file that is.
    pub ground: Ground,
    /// The first byte of the file.
    pub offset: u64,
    /// How many bytes of it; 0: up to its end.
    pub size_limit: u64,
    /// The mount point, if its file is one that a driver of Backstay serves.
    pub served_at: Option<PathBuf>,
}

impl LoopDevice {
    /// A loop device by its name (`loop0`); none if it has no file.
    ///
    /// # Errors
    /// If it cannot be examined, or the file system of its file does not answer in time.
    pub fn named(name: &OsStr) -> io::Result<Option<Self>> {
        let Some(file) = backing_file(name)? else { return Ok(None) };
        let device = Path::new("/dev").join(name);
        let Some(info) = loop_info(&device)? else { return Ok(None) };
        Ok(Some(Self {
            device,
            file,
            ground: Ground::File { dev: info.lo_device, ino: info.lo_inode },
            offset: info.lo_offset,
            size_limit: info.lo_sizelimit,
            served_at: served_at(info.lo_device)?,
        }))
    }

    /// All of this host that have a file. One whose file system does not answer is left out: it is not
    /// on any file whose file system does.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn all() -> io::Result<Vec<Self>> {
        let mut found = vec![];
        for name in names()? {
            match Self::named(&name) {
                Ok(device) => found.extend(device),
                Err(e) => tracing::debug!("/dev/{}: {e}", name.to_string_lossy()),
            }
        }
        Ok(found)
    }

    /// The bytes of the file that it gives: the first, and the one after the last.
    #[must_use]
    pub fn range(&self) -> (u64, u64) {
        let end = match self.size_limit {
            0 => u64::MAX,
            limit => self.offset.saturating_add(limit),
        };
        (self.offset, end)
    }
}

/// Linux's `struct loop_info64` (linux/loop.h).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LoopInfo {
    pub(crate) lo_device: u64,
    pub(crate) lo_inode: u64,
    pub(crate) lo_rdevice: u64,
    lo_offset: u64,
    lo_sizelimit: u64,
    lo_number: u32,
    lo_encrypt_type: u32,
    lo_encrypt_key_size: u32,
    lo_flags: u32,
    lo_file_name: [u8; 64],
    lo_crypt_name: [u8; 64],
    lo_encrypt_key: [u8; 32],
    lo_init: [u64; 2],
}

const _: () = assert!(size_of::<LoopInfo>() == 232);

/// From linux/loop.h.
mod ioctl {
    nix::ioctl_none_bad!(loop_clr_fd, 0x4C01);
    nix::ioctl_read_bad!(loop_get_status64, 0x4C05, super::LoopInfo);
    nix::ioctl_write_ptr_bad!(loop_set_status64, 0x4C04, super::LoopInfo);
}

/// The flag that has a device detached when it is closed: what `losetup --detach` leaves on one that is in use.
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// What the kernel knows of a loop device; none if it has no file by now. Asked by another thread, since
/// the file's own file system answers in the end.
pub(crate) fn loop_info(device: &Path) -> io::Result<Option<LoopInfo>> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(device);
    let file = match opened {
        Err(e) if has_no_file(&e) => return Ok(None),
        opened => opened?,
    };
    let (answer, answered) = mpsc::channel();
    let asking = thread::Builder::new().name("loop-status".into()).spawn(move || {
        let result = status(&file);
        // Anyone who asked may not wait any more.
        let _ = answer.send(result);
    })?;
    match answered.recv_timeout(ANSWERS_WITHIN) {
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the file system of its file does not answer",
        )),
        Ok(result) => {
            let _ = asking.join();
            match result {
                Err(e) if has_no_file(&e) => Ok(None),
                result => result.map(Some),
            }
        }
    }
}

fn status(device: &File) -> io::Result<LoopInfo> {
    // SAFETY: all-zero bytes are a valid loop_info64: it is numbers only.
    let mut info: LoopInfo = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a loop_info64 of ours, as large as the kernel's.
    unsafe { loop_get_status64(device.as_raw_fd(), &raw mut info)? };
    Ok(info)
}

/// Takes back that a loop device is detached when its last user closes it.
///
/// # Errors
/// If it is not attached, or the kernel refuses.
pub fn keep_attached(device: &Path) -> io::Result<()> {
    let device = File::open(device)?;
    let mut info = status(&device)?;
    info.lo_flags &= !LO_FLAGS_AUTOCLEAR;
    // SAFETY: the pointer is to a loop_info64 of ours, as large as the kernel's.
    unsafe { loop_set_status64(device.as_raw_fd(), &raw const info)? };
    Ok(())
}

/// The names of all loop devices, attached or not, in the order of their numbers.
fn names() -> io::Result<Vec<OsString>> {
    let mut names = vec![];
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse::<u32>().ok());
        names.extend(number.map(|number| (number, name)));
    }
    names.sort();
    Ok(names.into_iter().map(|(_, name)| name).collect())
}

fn backing_file(name: &OsStr) -> io::Result<Option<PathBuf>> {
    match fs::read(Path::new("/sys/block").join(name).join("loop/backing_file")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound || has_no_file(&e) => Ok(None),
        file => {
            let mut file = file?;
            if file.last() == Some(&b'\n') {
                file.pop();
            }
            Ok(Some(OsString::from_vec(file).into()))
        }
    }
}

/// Whether an error says that a device has no file: somebody may have detached or removed it while it was looked at.
fn has_no_file(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENXIO | libc::ENODEV))
}

/// The file that a device is attached to, as the kernel writes it; none if it is no loop device with a file.
#[must_use]
pub fn file_of(device: &Path) -> Option<PathBuf> {
    backing_file(device.file_name()?).ok().flatten()
}

/// Whether a block device refuses writes.
#[must_use]
pub fn is_read_only(device: &Path) -> bool {
    let flag = device.file_name().map(|name| Path::new("/sys/block").join(name).join("ro"));
    flag.and_then(|flag| fs::read_to_string(flag).ok()).is_some_and(|flag| flag.trim() == "1")
}

/// The loop devices on a file that a driver serves, also where another mount namespace attached them. A driver
/// that does not answer cannot say which its devices are: then the name decides.
///
/// # Errors
/// If devices or mounts cannot be listed.
pub fn on_served(served: &Path) -> io::Result<Vec<String>> {
    let table = mounts::read()?;
    let own = served.parent().and_then(|dir| mounts::at(&table, dir)).filter(|of| of.is_driver());
    let is_own = |name: &OsStr, file: &Path| {
        let Some(own) = own else { return file == served };
        let is_another = mounts::of(&table, file).is_some_and(|of| of.is_driver() && of != own);
        // Not asked of another driver, which may hang.
        match if is_another { Ok(None) } else { LoopDevice::named(name) } {
            Ok(of) => of.is_some_and(
                |of| matches!(of.ground, Ground::File { dev, .. } if own.device == dev.into()),
            ),
            Err(_) => file == served,
        }
    };
    let mut found = vec![];
    for name in names()? {
        if backing_file(&name)?.is_some_and(|file| is_own(&name, &file)) {
            found.push(format!("/dev/{}", name.display()));
        }
    }
    Ok(found)
}

/// The loop devices on a served file whose driver died, as long as its mount is still there: they answer I/O errors
/// for ever, and only detaching ends that. Only for who knows that no driver is at work: one that hangs is waited for.
///
/// # Errors
/// If devices or mounts cannot be listed.
pub fn on_dead(served: &Path) -> io::Result<Vec<String>> {
    // Not stat(2): what the kernel remembers of the attributes outlives the driver.
    match served.parent().map(statfs) {
        Some(Err(Errno::ENOTCONN)) => on_served(served),
        _ => Ok(vec![]),
    }
}

/// The loop devices over disks of which even the mount is gone: the kernel then knows no folder above the file, and
/// whose they were cannot be told any more.
///
/// # Errors
/// If devices cannot be listed.
pub fn without_mount() -> io::Result<Vec<PathBuf>> {
    let devices = names()?.into_iter().map(|name| Path::new("/dev").join(name));
    Ok(devices.filter(|of| file_of(of).is_some_and(|file| file == Path::new("/disk"))).collect())
}

/// Detaches a loop device without another process, as a driver does. One that is in use goes when it is closed.
///
/// # Errors
/// If the kernel refuses.
pub fn free(device: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(device)?;
    // SAFETY: the call takes no argument.
    match unsafe { loop_clr_fd(file.as_raw_fd()) } {
        // Somebody was quicker.
        Ok(_) | Err(Errno::ENXIO) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The loop devices on files below a folder, as their names are written. Nobody is asked, so it waits for nobody.
///
/// # Errors
/// If devices cannot be listed.
pub fn below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let devices = names()?.into_iter().map(|name| Path::new("/dev").join(name));
    Ok(devices.filter(|of| file_of(of).is_some_and(|file| file.starts_with(folder))).collect())
}

/// Attaches a loop device to a file that a driver serves, and waits for it; which one. `device` says which, if that
/// matters. It reads past the page cache, since the guest's page cache is enough; with its partitions; and with the
/// sectors that its backing device has (`sector_bytes`), or that its partition table counts in.
///
/// # Errors
/// What losetup says.
pub fn attach(
    served: &Path,
    device: Option<&Path>,
    read_only: bool,
    sector_bytes: Option<u32>,
) -> io::Result<String> {
    let mut command = program("losetup");
    command.args(["--direct-io=on", "--partscan"]);
    if read_only {
        command.arg("--read-only");
    }
    let sector_bytes = sector_bytes.or_else(|| sectors_of_table(served)).unwrap_or(512);
    if sector_bytes != 512 {
        command.arg(format!("--sector-size={sector_bytes}"));
    }
    match device {
        Some(device) => command.arg(device),
        None => command.args(["--find", "--show"]),
    };
    let said = losetup(command.arg(served))?;
    Ok(device.map_or(said, |device| device.display().to_string()))
}

/// The sectors that a disk's GPT counts in: its header is in the second one.
fn sectors_of_table(served: &Path) -> Option<u32> {
    let file = File::open(served).ok()?;
    let mut magic = [0; 8];
    [512, 4096].into_iter().find(|&bytes| {
        file.read_exact_at(&mut magic, u64::from(bytes)).is_ok() && &magic == b"EFI PART"
    })
}

/// Detaches a loop device, if it is attached. One that is in use is detached by the kernel when it is closed:
/// unmounted, for one.
///
/// # Errors
/// What losetup says.
pub fn detach(device: &Path) -> io::Result<()> {
    // Anyone who unmounts at this instant may be quicker.
    if file_of(device).is_none() {
        return Ok(());
    }
    match losetup(program("losetup").arg("--detach").arg(device)) {
        Err(e) if file_of(device).is_some() => Err(e),
        _ => Ok(()),
    }
}

/// Has a loop device take over the size of its file.
///
/// # Errors
/// What losetup says.
pub fn follow_size(device: &Path) -> io::Result<()> {
    losetup(program("losetup").arg("--set-capacity").arg(device)).map(drop)
}

fn losetup(command: &mut Command) -> io::Result<String> {
    let done = command.output().map_err(|e| {
        io::Error::new(e.kind(), format!("losetup could not be started (package mount): {e}"))
    })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match done.status.success() {
        true => Ok(text(&done.stdout)),
        false => Err(io::Error::other(text(&done.stderr))),
    }
}
