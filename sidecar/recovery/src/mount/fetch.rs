//! Threads that fetch indexes and frames from the vault, so that anyone who waits for one can stop waiting.
//!
//! A thread that hangs in the vault holds up nothing but what else was asked of the vault; each wait has its
//! end. Some fetch frames and others indexes, which are many and small, so that neither waits for the other.
//! While nobody waits for an index, a few of these fetch the ones that are missing.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use backstay_host::clock;
use backstay_types::{ByteLen, Classified};
use backstay_vault::format::segment::FrameEntry;
use backstay_vault::read::cache::Recent;
use backstay_vault::read::random::FrameReader;
use backstay_vault::read::read_index_admitted;
use backstay_vault::{Manifest, Vault, VaultError, Vaults};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::Trouble;
use super::index::IndexStore;
use super::single_flight::Flights;

const FRAME_THREADS: usize = 16;
/// A store answers after some 50 ms: a thousand indexes are here within a second.
const INDEX_THREADS: usize = 64;
/// Threads that fetch indexes nobody waits for.
const BACKGROUND_THREADS: usize = 4;
/// Uncompressed frames kept in memory.
const FRAMES_BYTES: usize = 32 << 20;
/// Indexes unpacked at the same time; they take some three times as much memory.
const INDEXES_BYTES: u64 = 32 << 20;
/// After a failure in the background.
const BREATH: Duration = Duration::from_secs(1);

/// A frame of a segment.
pub(crate) type FrameKey = (u32, u32);
/// An uncompressed frame, and the extents (by their offset) that were found right.
pub(crate) struct Frame {
    pub bytes: Vec<u8>,
    pub checked: Mutex<Vec<u32>>,
}

/// Frames of a segment that are fetched with one request.
type Frames = (u32, Vec<(u32, FrameEntry)>);

/// What the vault is like.
#[derive(Default)]
pub(crate) struct Health {
    down: AtomicBool,
    said: Mutex<Option<String>>,
}

pub(crate) struct Fetcher {
    shared: Arc<Shared>,
    indexes: Sender<u32>,
    frames: Sender<Frames>,
}

struct Shared {
    vaults: Vaults,
    url: String,
    point: Arc<Manifest>,
    vault: OnceLock<Vault>,
    index: Arc<IndexStore>,
    indexes: Flights<u32, ()>,
    frames: Flights<FrameKey, Arc<Frame>>,
    kept: Recent<FrameKey, Frame>,
    health: Arc<Health>,
    stop: AtomicBool,
    looking: Mutex<()>,
    room: Room,
    /// Indexes that are still to be fetched in the background, the newest last.
    missing: Mutex<Vec<usize>>,
    /// Requests for frames.
    frames_fetched: AtomicU64,
    /// Requests for indexes that nobody waited for.
    background: AtomicU64,
    /// A segment holds what its bounds say it does not: they are not to be believed.
    false_bounds: OnceLock<String>,
}

impl Fetcher {
    pub fn start(
        (vaults, url): (&Vaults, &str),
        vault: Option<Vault>,
        point: Arc<Manifest>,
        index: Arc<IndexStore>,
        health: Arc<Health>,
    ) -> std::io::Result<Self> {
        let mut missing = index.missing();
        missing.reverse();
        let shared = Arc::new(Shared {
            vaults: vaults.clone(),
            url: url.into(),
            point,
            vault: vault.map_or_else(OnceLock::new, OnceLock::from),
            index,
            indexes: Flights::new(),
            frames: Flights::new(),
            kept: Recent::new(FRAMES_BYTES),
            health,
            stop: AtomicBool::new(false),
            looking: Mutex::new(()),
            room: Room::default(),
            missing: Mutex::new(missing),
            frames_fetched: AtomicU64::new(0),
            background: AtomicU64::new(0),
            false_bounds: OnceLock::new(),
        });
        let (frames, queue) = unbounded();
        for _ in 0..FRAME_THREADS {
            let (shared, queue) = (Arc::clone(&shared), queue.clone());
            let work = move || shared.fetch_frames(&queue);
            thread::Builder::new().name("frames".into()).spawn(work)?;
        }
        let (indexes, queue) = unbounded();
        for number in 0..INDEX_THREADS.min(shared.point.segments.len()) {
            let (shared, queue) = (Arc::clone(&shared), queue.clone());
            let work = move || shared.fetch_indexes(&queue, number < BACKGROUND_THREADS);
            thread::Builder::new().name("indexes".into()).spawn(work)?;
        }
        Ok(Self { shared, indexes, frames })
    }

    /// Requests of the vault so far, how many of them nobody waited for, and the bytes of all; `None` while no
    /// frame was read from it.
    pub fn asked(&self) -> Option<(u64, u64, ByteLen)> {
        let frames = self.shared.frames_fetched.load(Ordering::Relaxed);
        let vault = self.shared.vault.get().filter(|_| frames > 0)?;
        let background = self.shared.background.load(Ordering::Relaxed);
        Some((vault.requests(), background, vault.fetched()))
    }

    /// Fails if the bounds in the point's list are not to be believed: nobody knows then where anything is.
    pub fn trusted(&self) -> Result<(), Trouble> {
        self.shared.false_bounds.get().map_or(Ok(()), |why| Err(Trouble::Damaged(why.clone())))
    }

    /// Sees that the indexes of segments are here.
    pub fn indexes(&self, segments: &[u32], until: Instant) -> Result<(), Trouble> {
        self.again_until(until, || {
            let missing = segments.iter().filter(|&&s| !self.shared.index.has(s as usize));
            let flights: Vec<_> = missing
                .map(|&segment| {
                    let (flight, new) = self.shared.indexes.join(segment);
                    if new {
                        let _ = self.indexes.send(segment);
                    }
                    flight
                })
                .collect();
            flights.iter().try_for_each(|flight| flight.wait(until).unwrap_or(Err(late())))
        })
    }

    /// Frames, in the order they were asked for.
    pub fn frames(
        &self,
        keys: &[FrameKey],
        until: Instant,
    ) -> Result<HashMap<FrameKey, Arc<Frame>>, Trouble> {
        let mut found = HashMap::new();
        self.again_until(until, || {
            let mut flights = vec![];
            let mut new: BTreeMap<u32, Vec<(u32, FrameEntry)>> = BTreeMap::new();
            for &key in keys {
                if found.contains_key(&key) {
                    continue;
                }
                if let Some(frame) = self.shared.kept.get(&key) {
                    found.insert(key, frame);
                    continue;
                }
                let Ok(entry) = self.shared.index.frame(key.0 as usize, key.1) else {
                    self.shared.index.forget(key.0 as usize);
                    return Err(Trouble::IndexLost);
                };
                let (flight, is_new) = self.shared.frames.join(key);
                if is_new {
                    new.entry(key.0).or_default().push((key.1, entry));
                }
                flights.push((key, flight));
            }
            for (segment, mut frames) in new {
                frames.sort_unstable_by_key(|(_, entry)| entry.offset);
                while !frames.is_empty() {
                    let entries: Vec<FrameEntry> = frames.iter().map(|(_, entry)| *entry).collect();
                    let rest =
                        frames.split_off(backstay_vault::read::random::one_request(&entries));
                    let _ = self.frames.send((segment, frames));
                    frames = rest;
                }
            }
            for (key, flight) in flights {
                found.insert(key, flight.wait(until).unwrap_or(Err(late()))?);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Tries until it works, is known never to work, or the time is over.
    fn again_until(
        &self,
        until: Instant,
        mut attempt: impl FnMut() -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        const PAUSE: Duration = Duration::from_millis(200);
        loop {
            match attempt() {
                Err(Trouble::Gone(why)) if clock::monotonic() + PAUSE >= until => {
                    self.shared.health.is_down(&why);
                    return Err(Trouble::Gone(why));
                }
                Err(Trouble::Gone(_)) => clock::sleep(PAUSE),
                result => return result,
            }
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        // The threads leave when their queue has ended; one that hangs in the vault is not waited for.
        self.shared.stop.store(true, Ordering::Release);
    }
}

fn late() -> Trouble {
    Trouble::Gone("it does not answer".into())
}

impl Shared {
    /// Fetches frames that are asked for; while none are, looks after a vault that is gone.
    fn fetch_frames(&self, queue: &Receiver<Frames>) {
        let mut reader = None;
        loop {
            let job = queue.recv_timeout(BREATH);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            match job {
                Ok((segment, frames)) => self.fetch_frames_of(segment, &frames, &mut reader),
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Fetches indexes that are asked for; in the background those that are missing, too.
    fn fetch_indexes(&self, queue: &Receiver<u32>, background: bool) {
        loop {
            let asked = match background {
                // Nobody waits for one now: the next that is missing, or whichever is asked for.
                true => queue.try_recv().map_err(|_| self.next_missing()),
                false => Err(None),
            };
            let (segment, asked) = match asked {
                Ok(segment) => (segment, true),
                Err(Some(segment)) => (segment, false),
                Err(None) => match queue.recv_timeout(BREATH) {
                    Ok(segment) => (segment, true),
                    Err(RecvTimeoutError::Timeout) if self.stop.load(Ordering::Acquire) => return,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            };
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            self.fetch_index(segment, asked);
        }
    }

    /// Looks whether the vault is back, one thread at a time.
    fn look(&self) {
        if self.health.down()
            && let Ok(_alone) = self.looking.try_lock()
            && self.vault().and_then(|vault| vault.disk(self.point.disk)).is_ok()
        {
            self.health.is_up();
        }
    }

    /// An index to fetch while nobody wants anything. Not while the vault is down.
    fn next_missing(&self) -> Option<u32> {
        if self.health.down.load(Ordering::Acquire) {
            return None;
        }
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let segment = missing.pop()?;
            let (_, new) = if self.index.has(segment) {
                continue;
            } else {
                self.indexes.join(segment as u32)
            };
            if new {
                return Some(segment as u32);
            }
        }
    }

    fn vault(&self) -> Result<&Vault, VaultError> {
        if let Some(vault) = self.vault.get() {
            return Ok(vault);
        }
        let vault = self.vaults.open(&self.url)?;
        Ok(self.vault.get_or_init(|| vault))
    }

    /// From now on nothing more is read from the vault for this point.
    fn distrust(&self, why: &VaultError) {
        if self.false_bounds.set(why.to_string()).is_ok() {
            tracing::error!(
                "{why}. What was read of this point so far may be wrong; nothing more is read from the vault \
                 for it. Unmount it, and take another point"
            );
        }
    }

    fn fetch_index(&self, segment: u32, asked: bool) {
        let of = &self.point.segments[segment as usize];
        if !asked {
            self.background.fetch_add(1, Ordering::Relaxed);
        }
        let mut room = None;
        let fetched = self.vault().and_then(|vault| {
            let admit = |bytes| room = Some(self.room.take(bytes));
            read_index_admitted(vault, self.point.disk, self.point.size, of, admit)
        });
        let result = match fetched {
            Ok(index) => {
                self.health.is_up();
                self.index
                    .put(segment as usize, of.index_digest, index)
                    .map_err(|e| Trouble::Local(format!("keeping an index: {e}")))
            }
            Err(e) => {
                if matches!(e, VaultError::OutOfBounds { .. }) {
                    self.distrust(&e);
                }
                Err(self.trouble(e))
            }
        };
        drop(room);
        // Damage does not heal: every later reader gets the same error.
        let later = !asked && matches!(result, Err(Trouble::Gone(_) | Trouble::Local(_)));
        self.indexes.land(segment, result);
        if later {
            self.missing.lock().unwrap_or_else(PoisonError::into_inner).push(segment as usize);
            clock::sleep(BREATH);
        }
    }

    fn fetch_frames_of(
        &self,
        segment: u32,
        frames: &[(u32, FrameEntry)],
        reader: &mut Option<FrameReader>,
    ) {
        let of = &self.point.segments[segment as usize];
        let entries: Vec<FrameEntry> = frames.iter().map(|(_, entry)| *entry).collect();
        let fetched = self.vault().and_then(|vault| {
            let reader = match reader {
                Some(reader) => reader,
                None => reader.insert(FrameReader::new()?),
            };
            reader.read(vault, self.point.disk, of, &entries)
        });
        match fetched {
            Ok(fetched) => {
                self.health.is_up();
                self.frames_fetched.fetch_add(1, Ordering::Relaxed);
                for (&(number, _), bytes) in frames.iter().zip(fetched) {
                    let key = (segment, number);
                    let frame = bytes
                        .map(|bytes| Arc::new(Frame { bytes, checked: Mutex::default() }))
                        .map_err(|e| self.trouble(e));
                    if let Ok(frame) = &frame {
                        self.kept.put(key, Arc::clone(frame), frame.bytes.len());
                    }
                    self.frames.land(key, frame);
                }
            }
            Err(e) => {
                let trouble = self.trouble(e);
                for &(number, _) in frames {
                    self.frames.land((segment, number), Err(trouble.clone()));
                }
            }
        }
    }

    /// What an error of the vault means: whether the vault is gone, or what it holds is damaged.
    fn trouble(&self, error: VaultError) -> Trouble {
        match error {
            e if e.is_damage() => Trouble::Damaged(e.to_string()),
            // One object missing in a vault that is there is damage.
            VaultError::NotFound { .. }
                if self.vault.get().is_some_and(|vault| vault.disk(self.point.disk).is_ok()) =>
            {
                Trouble::Damaged(error.to_string())
            }
            e => Trouble::Gone(e.to_string()),
        }
    }
}

/// Room for indexes that are unpacked at the same time.
#[derive(Default)]
struct Room {
    used: Mutex<u64>,
    freed: Condvar,
}

/// Room that is given back when this is dropped.
struct Taken<'a>(&'a Room, u64);

impl Room {
    /// Waits until there is room; one alone always has.
    fn take(&self, bytes: u64) -> Taken<'_> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        while *used > 0 && *used + bytes > INDEXES_BYTES {
            used = self.freed.wait(used).unwrap_or_else(PoisonError::into_inner);
        }
        *used += bytes;
        Taken(self, bytes)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.used.lock().unwrap_or_else(PoisonError::into_inner) -= self.1;
        self.0.freed.notify_all();
    }
}

impl Health {
    /// Whether the vault was there when it was last asked, and what it said if not.
    pub fn trouble(&self) -> Option<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    fn is_down(&self, why: &str) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.into());
        if !self.down.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "the vault cannot be reached ({why}): what is not local cannot be read until it is back; \
                 writes, and reads of what is local, go on"
            );
        }
    }

    fn is_up(&self) {
        if self.down.swap(false, Ordering::AcqRel) {
            *self.said.lock().unwrap_or_else(PoisonError::into_inner) = None;
            tracing::warn!("the vault is back");
        }
    }
}
