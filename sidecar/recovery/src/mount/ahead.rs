//! Read-ahead: anyone who reads one piece after the other finds the next ones in the cache.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use backstay_types::SectorRange;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::source::Source;

/// Sectors that are fetched ahead of a reader: 4 MiB.
const AHEAD_SECTORS: u64 = 8192;
/// Sectors fetched as one.
const STEP_SECTORS: u64 = 2048;
/// Readers that are told apart.
const STREAMS: usize = 8;
const THREADS: usize = 2;
/// Without a cache of some size what was fetched ahead would be gone when it is wanted.
const CACHE_BYTES_MIN: u64 = 32 << 20;

/// One who reads in order.
#[derive(Clone, Copy, Default)]
struct Stream {
    /// Where it goes on.
    next: u64,
    /// Up to where was fetched ahead.
    fetched_to: u64,
}

pub(crate) struct Ahead {
    streams: Mutex<(usize, [Stream; STREAMS])>,
    wanted: Sender<SectorRange>,
    on: bool,
}

impl Ahead {
    pub fn start(source: &Arc<Source>) -> std::io::Result<Self> {
        let (wanted, queue) = bounded(16);
        for _ in 0..THREADS {
            let (source, queue) = (Arc::clone(source), queue.clone());
            thread::Builder::new().name("ahead".into()).spawn(move || fetch(&source, &queue))?;
        }
        let on = source.cached().1.0 >= CACHE_BYTES_MIN;
        Ok(Self { streams: Mutex::default(), wanted, on })
    }

    /// A run was read.
    pub fn read(&self, run: SectorRange, end: u64) {
        if !self.on {
            return;
        }
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let (turn, streams) = &mut *streams;
        let Some(stream) = streams.iter_mut().find(|stream| stream.next == run.start.0) else {
            streams[*turn] = Stream { next: run.end.0, fetched_to: run.end.0 };
            *turn = (*turn + 1) % STREAMS;
            return;
        };
        stream.next = run.end.0;
        let from = stream.fetched_to.max(run.end.0);
        let to = (run.end.0 + AHEAD_SECTORS).min(end);
        // Not for each small read: when half of it is used up.
        if from + AHEAD_SECTORS / 2 <= to {
            stream.fetched_to = to;
            for step in SectorRange::new(from, to).split_at_multiples(STEP_SECTORS) {
                // Those who wait for nothing may be skipped.
                let _ = self.wanted.try_send(step);
            }
        }
    }
}

fn fetch(source: &Source, queue: &Receiver<SectorRange>) {
    let mut bytes = vec![];
    while let Ok(run) = queue.recv() {
        if source.is_down() || source.has(run) {
            continue;
        }
        bytes.resize(run.bytes().0 as usize, 0);
        // Anyone who wants it will see what is wrong.
        let _ = source.read(run, &mut bytes);
    }
}
