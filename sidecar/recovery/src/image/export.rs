//! A recovery point as an image: to a file, or to a pipe.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use backstay_host::atomic;
use backstay_host::lock;
use backstay_types::{ByteLen, ByteOffset};
use backstay_vault::read::ordered::{InOrder, in_order};
use backstay_vault::read::{FileTarget, Progress, RestoreTarget, restore};
use backstay_vault::{Manifest, Vault};
use nix::fcntl::Flock;

use super::qemu::{self, Served};
use super::{Format, ImageError};

/// Writes a point to a new image. It is made beside its place and gets its name when it is whole and
/// durable: killed, or failing, an export leaves no image that could be mistaken for one.
///
/// # Errors
/// If something of that name is there and `replace` is not set, the vault cannot be read or is damaged, or
/// the image cannot be written. What was half made is removed.
pub fn export_to_file(
    vault: &Vault,
    point: &Manifest,
    to: &Path,
    format: Format,
    replace: bool,
    threads: usize,
    progress: Progress<'_>,
) -> Result<(), ImageError> {
    match fs::symlink_metadata(to) {
        Ok(meta) if meta.file_type().is_block_device() || meta.is_dir() => {
            return Err(ImageError::Refused(format!(
                "{} is no file; backstay restore writes points to devices",
                to.display()
            )));
        }
        Ok(_) if !replace => {
            return Err(ImageError::Refused(format!(
                "{} exists and would be overwritten; use --force if it may be. Nothing was written",
                to.display()
            )));
        }
        _ => {}
    }
    let part = Part::begin(to)?;
    let made = match format {
        Format::Raw => FileTarget::open(&part.path, point.size)
            .map_err(ImageError::io(format!("making {}", part.path.display())))
            .and_then(|target| {
                restore(vault, point, &target, threads, progress).map_err(Into::into)
            }),
        Format::Qcow2 => to_qcow2(vault, point, &part.path, threads, progress),
    };
    made.and_then(|()| part.finish(to, replace))
}

fn to_qcow2(
    vault: &Vault,
    point: &Manifest,
    path: &Path,
    threads: usize,
    progress: Progress<'_>,
) -> Result<(), ImageError> {
    qemu::create(path, point.size)?;
    let target = Qcow2Target { served: Mutex::new(Served::open(path, true)?), path: path.into() };
    let restored = restore(vault, point, &target, threads, progress);
    let served = target.served.into_inner().unwrap_or_else(PoisonError::into_inner);
    match restored {
        Ok(()) => served.close(),
        Err(e) => {
            served.forget();
            Err(e.into())
        }
    }
}

/// A fresh qcow2, through `qemu-nbd`.
struct Qcow2Target {
    served: Mutex<Served>,
    path: PathBuf,
}

impl RestoreTarget for Qcow2Target {
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = data.len() - data.len() % 512;
        served.nbd().write_at(&data[..whole], offset.0)?;
        match &data[whole..] {
            [] => Ok(()),
            // The disk ends within its last sector, the image after it.
            rest => {
                let mut last = [0; 512];
                last[..rest.len()].copy_from_slice(rest);
                served.nbd().write_at(&last, offset.0 + whole as u64)
            }
        }
    }

    /// Nothing was there before.
    fn zero(&self, _: ByteOffset, _: ByteLen) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).nbd().flush()
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// An image in the making; removed unless it is finished.
struct Part {
    path: PathBuf,
    /// Nobody else makes the same one.
    _lock: Flock<File>,
    finished: bool,
}

impl Part {
    fn begin(to: &Path) -> Result<Self, ImageError> {
        let name = to
            .file_name()
            .ok_or_else(|| ImageError::Refused(format!("{} is no name of a file", to.display())))?;
        let mut part = name.to_owned();
        part.push(".backstay-part");
        let path = to.with_file_name(part);
        // One that a killed export left is emptied and used again; a link is not followed.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(ImageError::io(format!("making {}", path.display())))?;
        let lock = lock::exclusive(file, lock::LOOKED_AT_WAIT)
            .map_err(ImageError::io(format!("locking {}", path.display())))?;
        let lock = lock.ok_or_else(|| {
            ImageError::Refused(format!("{} is being written by another export", path.display()))
        })?;
        Ok(Self { path, _lock: lock, finished: false })
    }

    fn finish(mut self, to: &Path, replace: bool) -> Result<(), ImageError> {
        let said = || ImageError::io(format!("finishing {}", to.display()));
        File::open(&self.path).and_then(|file| file.sync_all()).map_err(said())?;
        let moved = if replace {
            atomic::rename(&self.path, to)
        } else {
            atomic::rename_to_free_name(&self.path, to)
        };
        moved.map_err(said())?;
        self.finished = true;
        atomic::sync_folder_of(to).map_err(said())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes a point to a pipe, from its first byte to its last.
///
/// # Errors
/// If the vault cannot be read or is damaged, or the pipe is closed: whoever reads it has a
/// beginning of the disk then, right but not all.
pub fn export_to_pipe(
    vault: &Vault,
    point: &Manifest,
    to: &mut dyn Write,
    threads: usize,
    progress: Progress<'_>,
) -> Result<(), ImageError> {
    let mut pipe = Pipe { to, zeroes: vec![0; 1 << 20] };
    in_order(vault, point, &mut pipe, threads, progress)?;
    pipe.to.flush().map_err(ImageError::io("writing to standard output"))
}

struct Pipe<'a> {
    to: &'a mut dyn Write,
    zeroes: Vec<u8>,
}

impl InOrder for Pipe<'_> {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)
    }

    fn zero(&mut self, len: ByteLen) -> io::Result<()> {
        let mut left = len.0;
        while left > 0 {
            let now = left.min(self.zeroes.len() as u64);
            self.to.write_all(&self.zeroes[..now as usize])?;
            left -= now;
        }
        Ok(())
    }

    fn name(&self) -> String {
        "standard output".into()
    }
}
