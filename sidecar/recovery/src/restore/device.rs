//! A point to a block device: marked from its first byte until all others are right.
//!
//! Order of what lasts: the mark, and zeroes over what else file systems and partition tables are known
//! by (first and last MiB); everything between; the last MiB; the first one but for its first block;
//! that block, in which the mark is, with one write.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use backstay_format::unfinished::{UnfinishedRestore, Writer};
use backstay_host::clock::now_unix_ns;
use backstay_host::in_use::{Look, Subject, users};
use backstay_host::kill_point;
use backstay_types::{ByteLen, ByteOffset, SectorRange};
use backstay_vault::SectorSet;
use backstay_vault::read::{Fetch, FileTarget, RestoreTarget};

use super::goal::GoalError;
use super::{Restore, RestoreError, Restored, target_error};

/// What is written last at each end.
const EDGE_BYTES: u64 = 1 << 20;

pub(super) fn restore(job: &Restore<'_>) -> Result<Restored, RestoreError> {
    let path = job.goal.path();
    let device = open(path, job.point.size)?;
    let edges = Edges::of(job.point.size);
    let failed = |doing: &str| {
        let what = format!("{doing} {}", path.display());
        move |source| RestoreError::from(GoalError::Io { what, source })
    };
    let mark = UnfinishedRestore {
        writer: Writer::Restore,
        disk: job.point.disk,
        name: job.name.clone(),
        cycle: job.point.cycle,
        point: job.point.point,
        size: job.point.size,
        started_unix_ns: now_unix_ns(),
    };
    edges.mark(&device, &mark).map_err(failed("marking"))?;
    let file = device.try_clone().map_err(failed("opening"))?;
    let body = Body { device: FileTarget::on(file, path.into(), false), edges: &edges };
    let mut fetch = Fetch::whole(job.vault, job.point, 0)?;
    fetch.step(&body, job.threads, u64::MAX, job.progress, job.stop)?;
    fetch.finish()?;
    body.sync().map_err(target_error(&body))?;
    kill_point::step("restore", "the ends of the device");
    let wanted = edges.sectors();
    let mut fetch = Fetch::part(job.vault, job.point, &wanted, 0)?;
    fetch.step(&edges, job.threads, u64::MAX, &|_, _| {}, job.stop)?;
    fetch.finish()?;
    job.go_on()?;
    edges.write(&device).map_err(failed("finishing"))?;
    Ok(Restored { resumed: ByteLen(0) })
}

/// Opens a device for this process alone.
fn open(path: &Path, size: ByteLen) -> Result<File, GoalError> {
    let shown = path.display();
    let failed = || GoalError::io(format!("opening {shown}"));
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(path);
    let device = match opened {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            let who = Subject::at(path).and_then(|of| users(&of, &Look::default()));
            let who = who.map(|users| backstay_host::in_use::list(&users)).unwrap_or_default();
            return Err(GoalError::Refused(format!(
                "{shown} is in use: {who}; stop that first. Nothing was written"
            )));
        }
        opened => opened.map_err(failed())?,
    };
    let there = io::Seek::seek(&mut &device, io::SeekFrom::End(0)).map_err(failed())?;
    if there < size.0 {
        return Err(GoalError::Refused(format!(
            "{shown} has {there} bytes, the disk {size}; use a larger device. Nothing was written"
        )));
    }
    Ok(device)
}

/// The first and the last part of the disk.
struct Edges {
    size: u64,
    head: Mutex<Vec<u8>>,
    tail: Mutex<Vec<u8>>,
}

impl Edges {
    fn of(size: ByteLen) -> Self {
        let head = size.0.min(EDGE_BYTES);
        let tail = (size.0 - head).min(EDGE_BYTES);
        let zeroes = |len: u64| Mutex::new(vec![0; len as usize]);
        Self { size: size.0, head: zeroes(head), tail: zeroes(tail) }
    }

    /// Where the part between them begins and ends.
    fn between(&self) -> (u64, u64) {
        (len(&self.head), self.size - len(&self.tail))
    }

    fn sectors(&self) -> SectorSet {
        let mut set = SectorSet::new();
        let (head_end, tail_start) = self.between();
        for (start, end) in [(0, head_end), (tail_start, self.size)] {
            if start < end {
                set.insert(SectorRange::covering(ByteOffset(start), ByteLen(end - start)));
            }
        }
        set
    }

    fn mark(&self, device: &File, mark: &UnfinishedRestore) -> io::Result<()> {
        let (head_end, tail_start) = self.between();
        let mut head = vec![0; head_end as usize];
        let bytes = mark.encode();
        // A disk that is smaller than its mark bears what fits.
        let fits = bytes.len().min(head.len());
        head[..fits].copy_from_slice(&bytes[..fits]);
        device.write_all_at(&head, 0)?;
        device.write_all_at(&vec![0; (self.size - tail_start) as usize], tail_start)?;
        device.sync_all()
    }

    /// Writes them, the mark's place last.
    fn write(&self, device: &File) -> io::Result<()> {
        let (_, tail_start) = self.between();
        let block = (block_bytes(device)?).min(len(&self.head)) as usize;
        let head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        device.write_all_at(&tail, tail_start)?;
        device.write_all_at(&head[block..], block as u64)?;
        device.sync_all()?;
        kill_point::step("restore", "taking the mark away");
        device.write_all_at(&head[..block], 0)?;
        device.sync_all()
    }
}

fn len(part: &Mutex<Vec<u8>>) -> u64 {
    part.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
}

nix::ioctl_read_bad!(block_size, libc::BLKSSZGET, libc::c_int);

/// Bytes that the device writes as a whole.
fn block_bytes(device: &File) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int, which outlives the call.
    unsafe { block_size(device.as_raw_fd(), &raw mut bytes) }?;
    Ok(u64::try_from(bytes).unwrap_or(512).max(512))
}

impl RestoreTarget for Edges {
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        let (_, tail_start) = self.between();
        for (start, part) in [(0, &self.head), (tail_start, &self.tail)] {
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            let end = start + part.len() as u64;
            let (from, to) = (offset.0.max(start), (offset.0 + data.len() as u64).min(end));
            if from < to {
                part[(from - start) as usize..(to - start) as usize]
                    .copy_from_slice(&data[(from - offset.0) as usize..(to - offset.0) as usize]);
            }
        }
        Ok(())
    }

    /// They are zeroes from the start.
    fn zero(&self, _: ByteOffset, _: ByteLen) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn name(&self) -> String {
        "the first and last part of the device".into()
    }
}

/// Everything between the edges.
struct Body<'a> {
    device: FileTarget,
    edges: &'a Edges,
}

impl RestoreTarget for Body<'_> {
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        let (from, to) = self.clip(offset.0, data.len() as u64);
        if from >= to {
            return Ok(());
        }
        let data = &data[(from - offset.0) as usize..(to - offset.0) as usize];
        self.device.write_at(data, ByteOffset(from))
    }

    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        let (from, to) = self.clip(offset.0, len.0);
        if from >= to {
            return Ok(());
        }
        self.device.zero(ByteOffset(from), ByteLen(to - from))
    }

    fn sync(&self) -> io::Result<()> {
        self.device.sync()
    }

    fn name(&self) -> String {
        self.device.name()
    }
}

impl Body<'_> {
    /// The part of a range that lies between the edges.
    fn clip(&self, offset: u64, len: u64) -> (u64, u64) {
        let (start, end) = self.edges.between();
        (offset.max(start), (offset + len).min(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_take_what_lies_in_them_and_nothing_else() {
        for size in [1, 512, EDGE_BYTES - 1, EDGE_BYTES + 7, 2 * EDGE_BYTES + 512, 9 * EDGE_BYTES] {
            let edges = Edges::of(ByteLen(size));
            let (head, tail) = edges.between();
            assert!(head <= tail && tail <= size, "{size}");
            let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            edges.write_at(&data, ByteOffset(0)).unwrap();
            assert!(*edges.head.lock().unwrap() == data[..head as usize]);
            assert!(*edges.tail.lock().unwrap() == data[tail as usize..]);
            let sectors = edges.sectors().count();
            assert!(sectors * 512 >= head + (size - tail) && sectors <= 2 * (EDGE_BYTES / 512) + 1);
        }
    }
}
