//! The FUSE file system: a folder with one file, `disk`.
//!
//! Several event loops read and answer requests. Slow requests go to other threads, so that they never
//! delay a read or write: one thread answers all waiting flushes with a single sync of the backing,
//! another one serves discards.

mod attr;
mod blocking_pool;
mod mount;
mod opens;
mod slow;

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backstay_host::clock;
use backstay_track::ProtectedDisk;
use backstay_track::env::Env;
use backstay_types::{ByteLen, ByteOffset};
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

pub use mount::{Access, Mounted, drop_stale, mount};
pub use opens::Opens;

use crate::backing::{AnyBacking, Seek};
use attr::{DISK, DISK_NAME, ROOT, Times};
use blocking_pool::BlockingPool;
use slow::Slow;

/// The kernel may cache names and attributes: only this driver changes them.
const TTL: Duration = Duration::from_secs(3600);
/// Size of the largest request, and of the buffer of each event loop.
const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// The file system that serves one disk.
pub struct DiskFs<E: Env> {
    disk: Arc<ProtectedDisk<E, AnyBacking>>,
    slow: Slow,
    /// Only for a remote backing, whose reads and writes may have to fetch data first.
    pool: Option<BlockingPool>,
    times: Times,
    opens: Arc<Opens>,
    /// Called when the last user closes a disk that waits for that to stop.
    on_end: Box<dyn Fn() + Send + Sync>,
}

impl<E: Env> DiskFs<E> {
    /// Serves a disk. `on_end` is called when the last user closes a disk that waits for that to stop.
    ///
    /// # Errors
    /// If the threads for flushes and discards cannot be started.
    pub fn new(
        disk: Arc<ProtectedDisk<E, AnyBacking>>,
        opens: Arc<Opens>,
        on_end: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let slow = Slow::start(&disk)?;
        let pool = disk.backing().remote().map(|_| BlockingPool::start(&disk)).transpose()?;
        let times = Times { started: clock::now() };
        Ok(Self { disk, slow, pool, times, opens, on_end: Box::new(on_end) })
    }

    fn attr(&self, ino: INodeNo) -> fuser::FileAttr {
        self.times.attr(ino, self.disk.size())
    }

    /// How many of the `len` bytes at `offset` lie inside the disk.
    fn bytes_inside(&self, offset: u64, len: u64) -> usize {
        self.disk.size().0.saturating_sub(offset).min(len) as usize
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

impl<E: Env> Filesystem for DiskFs<E> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wish in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP] {
            // Optional: without them the kernel sends fewer requests in parallel.
            let _ = config.add_capabilities(wish);
        }
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        let _ = config.set_max_background(256);
        let _ = config.set_congestion_threshold(192);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == ROOT && name == DISK_NAME {
            reply.entry(&TTL, &self.attr(DISK), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    /// Refuses to change size, mode and owner. Accepts new times, which `touch` and `cp` set, and
    /// ignores them.
    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let resized = size.is_some_and(|size| ino != DISK || size != self.disk.size().0);
        if resized || mode.is_some() || uid.is_some() || gid.is_some() {
            reply.error(Errno::EPERM);
        } else {
            reply.attr(&TTL, &self.attr(ino));
        }
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    /// There are no extended attributes. ENOSYS stops the kernel from asking before each write.
    fn getxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: fuser::ReplyXattr,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: fuser::ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if ino != DISK {
            return reply.error(Errno::EISDIR);
        }
        if !self.opens.open() {
            return reply.error(Errno::from_i32(libc::ESHUTDOWN));
        }
        let flags = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), flags);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let ends = self.opens.close();
        reply.ok();
        if ends {
            (self.on_end)();
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = self.bytes_inside(offset, size.into());
        if len == 0 {
            return reply.data(&[]);
        }
        if let (Some(pool), AnyBacking::Remote(remote)) = (&self.pool, self.disk.backing())
            && !remote.has(ByteOffset(offset), ByteLen(len as u64))
        {
            return pool.read(ByteOffset(offset), len, reply);
        }
        slow::with_buffer(len, |buf| match self.disk.read(ByteOffset(offset), buf) {
            Ok(()) => reply.data(buf),
            Err(e) => reply.error(errno(&e)),
        });
    }

    /// Behaves like a block device: writes the part that fits, and fails with ENOSPC at the end.
    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let fits = match self.bytes_inside(offset, data.len() as u64) {
            0 if !data.is_empty() => return reply.error(Errno::ENOSPC),
            len => &data[..len],
        };
        if let (Some(pool), AnyBacking::Remote(remote)) = (&self.pool, self.disk.backing())
            && !remote.takes(ByteOffset(offset), ByteLen(fits.len() as u64))
        {
            return pool.write(ByteOffset(offset), fits, reply);
        }
        match self.disk.write(ByteOffset(offset), fits) {
            Ok(()) => reply.written(fits.len() as u32),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // FUSE sends this for close(2), which does not promise durability.
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.slow.flush(reply);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (zero, keep) = (libc::FALLOC_FL_ZERO_RANGE, libc::FALLOC_FL_KEEP_SIZE);
        let (offset, len) = (ByteOffset(offset), ByteLen(length));
        if ino != DISK {
            reply.error(Errno::EISDIR);
        } else if offset.0.checked_add(len.0).is_none_or(|end| end > self.disk.size().0) {
            reply.error(Errno::EFBIG);
        } else if mode == punch {
            self.slow.discard(offset, len, reply);
        } else if mode == zero || mode == zero | keep {
            self.slow.zero(offset, len, reply);
        } else {
            reply.error(Errno::EOPNOTSUPP);
        }
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        // The kernel answers SEEK_SET, SEEK_CUR and SEEK_END itself.
        let target = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let size = self.disk.size().0 as i64;
        if !(0..size).contains(&offset) {
            return reply.error(Errno::ENXIO);
        }
        if let Some(pool) = &self.pool {
            return pool.seek(ByteOffset(offset as u64), target, reply);
        }
        match self.disk.backing().seek(ByteOffset(offset as u64), target) {
            Ok(found) => reply.offset((found.0 as i64).min(size)),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if ino != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (ROOT, FileType::Directory, "."),
            (ROOT, FileType::Directory, ".."),
            (DISK, FileType::RegularFile, DISK_NAME),
        ];
        for (i, (ino, kind, name)) in entries.into_iter().enumerate().skip(offset as usize) {
            if reply.add(ino, i as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let blocks = self.disk.size().0.div_ceil(512);
        reply.statfs(blocks, 0, 0, 1, 0, 512, 255, 512);
    }
}
