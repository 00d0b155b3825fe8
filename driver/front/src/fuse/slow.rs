//! What may take long: flushes and discards, off the event loops; and the loops' read buffers.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::thread;

use backstay_track::ProtectedDisk;
use backstay_track::env::Env;
use backstay_types::{ByteLen, ByteOffset};
use crossbeam_channel::{Receiver, Sender, bounded};
use fuser::ReplyEmpty;

use super::{REQUEST_BYTES_MAX, errno};
use crate::backing::AnyBacking;

/// Requests that wait before an event loop waits with them.
const WAITING_MAX: usize = 256;

/// The two threads. They end once this is dropped and their queues are empty.
pub(super) struct Slow {
    flushes: Sender<ReplyEmpty>,
    clears: Sender<Clear>,
}

/// A range to read as zeroes from now on.
struct Clear {
    offset: ByteOffset,
    len: ByteLen,
    keep_space: bool,
    reply: ReplyEmpty,
}

impl Slow {
    pub fn start<E: Env>(disk: &Arc<ProtectedDisk<E, AnyBacking>>) -> io::Result<Self> {
        let (flushes, waiting) = bounded(WAITING_MAX);
        let flusher = Arc::clone(disk);
        thread::Builder::new().name("flush".into()).spawn(move || flush_all(&flusher, &waiting))?;
        let (clears, waiting) = bounded(WAITING_MAX);
        let clearer = Arc::clone(disk);
        thread::Builder::new()
            .name("discard".into())
            .spawn(move || clear_all(&clearer, &waiting))?;
        Ok(Self { flushes, clears })
    }

    pub fn flush(&self, reply: ReplyEmpty) {
        // The thread lives as long as the sender. If it were gone, dropping the reply answers EIO.
        let _ = self.flushes.send(reply);
    }

    pub fn discard(&self, offset: ByteOffset, len: ByteLen, reply: ReplyEmpty) {
        let _ = self.clears.send(Clear { offset, len, keep_space: false, reply });
    }

    pub fn zero(&self, offset: ByteOffset, len: ByteLen, reply: ReplyEmpty) {
        let _ = self.clears.send(Clear { offset, len, keep_space: true, reply });
    }
}

/// Group flush: every flush that waits when a sync begins is answered by it.
fn flush_all<E: Env>(disk: &ProtectedDisk<E, AnyBacking>, waiting: &Receiver<ReplyEmpty>) {
    let mut group = Vec::with_capacity(WAITING_MAX);
    while let Ok(first) = waiting.recv() {
        group.push(first);
        group.extend(waiting.try_iter().take(WAITING_MAX - 1));
        let flushed = disk.flush();
        for reply in group.drain(..) {
            match &flushed {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(errno(e)),
            }
        }
    }
}

fn clear_all<E: Env>(disk: &ProtectedDisk<E, AnyBacking>, waiting: &Receiver<Clear>) {
    while let Ok(Clear { offset, len, keep_space, reply }) = waiting.recv() {
        let cleared =
            if keep_space { disk.write_zeroes(offset, len) } else { disk.discard(offset, len) };
        match cleared {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }
}

thread_local! {
    /// An event loop's read buffer, made once.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(vec![]) };
}

/// Lends a thread's buffer.
pub(super) fn with_buffer<T>(len: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len.max(REQUEST_BYTES_MAX as usize), 0);
        }
        work(&mut buffer[..len])
    })
}
