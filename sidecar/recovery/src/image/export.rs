//! A recovery point as an image: to a file, or to a pipe.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use backstay_types::{ByteLen, ByteOffset};
use backstay_vault::read::ordered::{InOrder, in_order};
use backstay_vault::read::{Fetch, FileTarget, Progress, RestoreTarget};
use backstay_vault::{Manifest, Vault};

use super::qemu::{self, Served};
use super::{Format, ImageError};
use crate::restore::{Goal, Occupied, Part};

/// An export to a file.
pub struct Export<'a> {
    /// The vault.
    pub vault: &'a Vault,
    /// The point.
    pub point: &'a Manifest,
    /// The image to make.
    pub to: &'a Path,
    /// What it is to be.
    pub format: Format,
    /// Whether what is there may be overwritten, if nobody uses it.
    pub replace: bool,
    /// Threads that fetch, check and write.
    pub threads: usize,
    /// Told how far it is.
    pub progress: Progress<'a>,
    /// Set from outside to end it.
    pub stop: &'a AtomicBool,
}

/// Writes a point to a new image. It is made beside its place and gets its name when it is whole and
/// durable: killed, or failing, an export leaves no image that could be mistaken for one.
///
/// # Errors
/// If something of that name is in use, or is there and `replace` is not set; the vault cannot be read or
/// is damaged; the image cannot be written; or it was told to stop. What was half made is removed.
pub fn export_to_file(job: &Export<'_>) -> Result<(), ImageError> {
    let occupied = if job.replace { Occupied::Overwrite } else { Occupied::RefuseAny };
    let goal = Goal::at(job.to, occupied)?;
    if let Goal::Device { path } = &goal {
        return Err(ImageError::Refused(format!(
            "{} is a device; use \"backstay restore\" to write a point to a device. Nothing was written",
            path.display()
        )));
    }
    let part = Part::begin(&goal)?;
    let made = match job.format {
        Format::Raw => FileTarget::open(part.path(), job.point.size)
            .map_err(ImageError::io(format!("making {}", part.path().display())))
            .and_then(|target| write(job, &target)),
        Format::Qcow2 => to_qcow2(job, part.path()),
    };
    match made {
        _ if job.stop.load(Ordering::Relaxed) => Err(ImageError::Stopped),
        Ok(()) => Ok(part.finish(&goal, None)?),
        Err(e) => Err(e),
    }
}

/// Fetches all of the point.
fn write(job: &Export<'_>, target: &dyn RestoreTarget) -> Result<(), ImageError> {
    let mut fetch = Fetch::whole(job.vault, job.point, 0)?;
    fetch.step(target, job.threads, u64::MAX, job.progress, job.stop)?;
    fetch.finish()?;
    target.sync().map_err(ImageError::io(format!("making {} durable", target.name())))
}

fn to_qcow2(job: &Export<'_>, path: &Path) -> Result<(), ImageError> {
    qemu::create(path, job.point.size)?;
    let target = Qcow2Target { served: Mutex::new(Served::open(path, true)?), path: path.into() };
    let restored = write(job, &target);
    let served = target.served.into_inner().unwrap_or_else(PoisonError::into_inner);
    match restored {
        Ok(()) => served.close(),
        Err(e) => {
            served.forget();
            Err(e)
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

/// Writes a point to a pipe, from its first byte to its last.
///
/// # Errors
/// If the vault cannot be read or is damaged, or the pipe is closed: anyone who reads it has a
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
