//! Reads and writes that may have to wait for what is far away, off the event loops: so whatever is here
//! is served meanwhile, however long the other takes.

use std::io;
use std::sync::Arc;
use std::thread;

use backstay_track::ProtectedDisk;
use backstay_track::env::Env;
use backstay_types::{ByteLen, ByteOffset};
use crossbeam_channel::{Receiver, Sender, unbounded};
use fuser::{ReplyData, ReplyLseek, ReplyWrite};

use super::errno;
use super::slow::with_buffer;
use crate::backing::{AnyBacking, Seek};

/// Requests that wait for far bytes at the same time; more of them queue.
const THREADS: usize = 16;

/// The threads; they end when this is dropped and their queue is empty.
pub(super) struct BlockingPool {
    /// Without a bound of its own: the kernel has one for what it asks at a time.
    requests: Sender<Request>,
}

enum Request {
    Read { offset: ByteOffset, len: usize, reply: ReplyData },
    Write { offset: ByteOffset, data: Vec<u8>, reply: ReplyWrite },
    Seek { offset: ByteOffset, what: Seek, reply: ReplyLseek },
}

impl BlockingPool {
    pub fn start<E: Env>(disk: &Arc<ProtectedDisk<E, AnyBacking>>) -> io::Result<Self> {
        let (requests, waiting) = unbounded();
        for _ in 0..THREADS {
            let (disk, waiting) = (Arc::clone(disk), waiting.clone());
            thread::Builder::new().name("remote".into()).spawn(move || serve(&disk, &waiting))?;
        }
        Ok(Self { requests })
    }

    pub fn read(&self, offset: ByteOffset, len: usize, reply: ReplyData) {
        // The threads live as long as the sender. If they were gone, dropping the reply answers EIO.
        let _ = self.requests.send(Request::Read { offset, len, reply });
    }

    pub fn write(&self, offset: ByteOffset, data: &[u8], reply: ReplyWrite) {
        let _ = self.requests.send(Request::Write { offset, data: data.to_vec(), reply });
    }

    pub fn seek(&self, offset: ByteOffset, what: Seek, reply: ReplyLseek) {
        let _ = self.requests.send(Request::Seek { offset, what, reply });
    }
}

fn serve<E: Env>(disk: &ProtectedDisk<E, AnyBacking>, waiting: &Receiver<Request>) {
    while let Ok(request) = waiting.recv() {
        match request {
            Request::Read { offset, len, reply } => {
                with_buffer(len, |buf| match disk.read(offset, buf) {
                    Ok(()) => reply.data(buf),
                    Err(e) => reply.error(errno(&e)),
                });
            }
            Request::Seek { offset, what, reply } => {
                let size = disk.size().0;
                match disk.backing().seek(offset, what) {
                    Ok(found) => reply.offset(found.0.min(size) as i64),
                    Err(e) => reply.error(errno(&e)),
                }
            }
            Request::Write { offset, data, reply } => match write(disk, offset, &data) {
                Ok(()) => reply.written(data.len() as u32),
                Err(e) => reply.error(errno(&e)),
            },
        }
    }
}

/// Fetches first: a write that waits would keep a cut waiting.
fn write<E: Env>(
    disk: &ProtectedDisk<E, AnyBacking>,
    offset: ByteOffset,
    data: &[u8],
) -> io::Result<()> {
    if let Some(remote) = disk.backing().remote() {
        remote.prepare(offset, ByteLen(data.len() as u64))?;
    }
    disk.write(offset, data)
}
