//! A recovery point, read in any order: from the local cache, else from the vault.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use backstay_host::clock;
use backstay_types::{ByteLen, SECTOR_BYTES, SectorRange};
use backstay_vault::format::segment::Place;
use backstay_vault::read::cache::Recent;
use backstay_vault::read::random::check_extent;
use backstay_vault::{Manifest, Vault, Vaults};

use super::Trouble;
use super::cache::{Cache, PAGE_BYTES, PAGE_SECTORS};
use super::fetch::{Fetcher, Frame, FrameKey, Health};
use super::index::IndexStore;
use super::record::FirstRead;
use super::single_flight::Flights;
use super::window::{Builder, VisibleRun, WINDOW_SECTORS, Window};

/// Most pieces of windows kept in memory (some 56 bytes each).
const PIECES_MAX: usize = 1 << 20;
/// Around what was read, what came along with it is cached as well: as far as a frame reaches.
const ALONG_SECTORS: u64 = 512;
/// While the vault is known to be gone, how long a read waits for it.
const DOWN_WAIT: Duration = Duration::from_millis(700);

pub(crate) struct Source {
    point: Arc<Manifest>,
    index: Arc<IndexStore>,
    fetcher: Fetcher,
    health: Arc<Health>,
    cache: Cache,
    windows: Recent<u64, Window>,
    resolving: Flights<u64, Arc<Window>>,
    timeout: Duration,
    first_read: OnceLock<FirstRead>,
}

impl Source {
    /// Opens a point; its local files are in `dir`. The vault need not be there.
    pub fn open(
        dir: &Path,
        at: (&Vaults, &str),
        vault: Option<Vault>,
        point: Arc<Manifest>,
        cache: ByteLen,
        timeout: Duration,
    ) -> std::io::Result<Self> {
        let index = Arc::new(IndexStore::open(dir, &point)?);
        let health = Arc::new(Health::default());
        let cache = Cache::open(dir, point.point, cache)?;
        let fetcher =
            Fetcher::start(at, vault, Arc::clone(&point), Arc::clone(&index), Arc::clone(&health))?;
        Ok(Self {
            point,
            index,
            fetcher,
            health,
            cache,
            windows: Recent::new(PIECES_MAX),
            resolving: Flights::new(),
            timeout,
            first_read: OnceLock::new(),
        })
    }

    /// What the vault last said, if it could not be reached.
    pub fn vault_trouble(&self) -> Option<String> {
        self.health.trouble()
    }

    /// Whether the vault is known to be gone.
    pub fn is_down(&self) -> bool {
        self.health.down()
    }

    /// Indexes that are here, and all there are.
    pub fn indexes(&self) -> (usize, usize) {
        (self.index.loaded(), self.point.segments.len())
    }

    /// What the first read of the vault took.
    pub fn first_read(&self) -> Option<FirstRead> {
        self.first_read.get().copied()
    }

    /// Bytes in the cache, and the most there may be.
    pub fn cached(&self) -> (ByteLen, ByteLen) {
        (self.cache.used(), self.cache.limit())
    }

    /// Whether a run is in the cache or known to be zero: nothing has to be fetched to read it.
    pub fn has(&self, run: SectorRange) -> bool {
        pages(run, self.end())
            .split_at_multiples(PAGE_SECTORS)
            .all(|page| self.cache.has(page.start.0 / PAGE_SECTORS) || self.is_known_zero(page))
    }

    fn is_known_zero(&self, page: SectorRange) -> bool {
        let window = self.windows.get(&(page.start.0 / WINDOW_SECTORS));
        window.is_some_and(|window| {
            let zero = window.within(page).filter(|piece| piece.extent.place.is_none());
            zero.map(|piece| piece.run.sectors()).sum::<u64>() == page.sectors()
        })
    }

    /// Reads whole sectors; those past the disk's end are zero.
    pub fn read(&self, run: SectorRange, out: &mut [u8]) -> Result<(), Trouble> {
        self.read_with(run, out, true)
    }

    /// As [`Self::read`], for what is kept elsewhere: it does not push anything out of the cache.
    pub fn read_through(&self, run: SectorRange, out: &mut [u8]) -> Result<(), Trouble> {
        self.read_with(run, out, false)
    }

    /// The end of what is zero from a sector on, as far as one look reaches; the sector itself if it is
    /// not zero.
    pub fn zero_from(&self, sector: u64) -> Result<u64, Trouble> {
        let number = sector / WINDOW_SECTORS;
        let window = self.window(number, clock::monotonic() + self.wait())?;
        let end = ((number + 1) * WINDOW_SECTORS).min(self.end());
        let mut at = sector;
        for piece in window.within(SectorRange::new(sector, end)) {
            if piece.run.start.0 != at || piece.extent.place.is_some() {
                break;
            }
            at = piece.run.end.0;
        }
        Ok(at)
    }

    /// The runs of a part of a window that are zero, in order.
    pub fn zeroes(&self, part: SectorRange) -> Result<Vec<SectorRange>, Trouble> {
        let window =
            self.window(part.start.0 / WINDOW_SECTORS, clock::monotonic() + self.wait())?;
        let zero = window.within(part).filter(|piece| piece.extent.place.is_none());
        Ok(zero.map(|piece| piece.run).collect())
    }

    fn wait(&self) -> Duration {
        if self.health.down() { DOWN_WAIT.min(self.timeout) } else { self.timeout }
    }

    fn read_with(&self, run: SectorRange, out: &mut [u8], keep: bool) -> Result<(), Trouble> {
        let begun = clock::monotonic();
        let until = begun + self.wait();
        for part in run.split_at_multiples(WINDOW_SECTORS) {
            let from = ((part.start.0 - run.start.0) * SECTOR_BYTES) as usize;
            let out = &mut out[from..from + part.bytes().0 as usize];
            loop {
                match self.read_in_window(part, out, until, keep) {
                    // A local index was damaged: it is fetched again.
                    Err(Trouble::IndexLost) if clock::monotonic() < until => {
                        self.windows.forget(&(part.start.0 / WINDOW_SECTORS));
                    }
                    result => break result?,
                }
            }
        }
        if self.first_read.get().is_none()
            && let Some((requests, in_background, fetched_bytes)) = self.fetcher.asked()
        {
            let waited_ms = clock::since(begun).as_millis() as u64;
            let first = self.first_read.get_or_init(|| FirstRead {
                requests,
                in_background,
                fetched_bytes,
                waited_ms,
            });
            tracing::info!("the first read waited {waited_ms} ms; {first:?}");
        }
        Ok(())
    }

    fn read_in_window(
        &self,
        run: SectorRange,
        out: &mut [u8],
        until: Instant,
        keep: bool,
    ) -> Result<(), Trouble> {
        let whole = pages(run, self.end());
        let mut bytes = vec![0; whole.sectors().next_multiple_of(PAGE_SECTORS) as usize * 512];
        let at = |sector: u64| ((sector - whole.start.0) * SECTOR_BYTES) as usize;
        let missing: Vec<SectorRange> = whole
            .split_at_multiples(PAGE_SECTORS)
            .filter(|page| {
                let from = at(page.start.0);
                !self.cache.read(page.start.0 / PAGE_SECTORS, &mut bytes[from..from + PAGE_BYTES])
            })
            .collect();
        if !missing.is_empty() {
            let window = self.window(run.start.0 / WINDOW_SECTORS, until)?;
            let frames = self.frames_of(&window, &missing, until)?;
            for page in &missing {
                let from = at(page.start.0);
                self.assemble(&window, &frames, *page, &mut bytes[from..from + PAGE_BYTES])?;
            }
            if keep {
                self.keep(&window, &frames, &missing, &bytes, whole);
            }
        }
        let from = at(run.start.0);
        out.copy_from_slice(&bytes[from..from + out.len()]);
        Ok(())
    }

    /// The frames that hold pages.
    fn frames_of(
        &self,
        window: &Window,
        pages: &[SectorRange],
        until: Instant,
    ) -> Result<HashMap<FrameKey, Arc<Frame>>, Trouble> {
        let mut keys = vec![];
        let mut seen = HashSet::new();
        for piece in pages.iter().flat_map(|page| window.within(*page)) {
            if let Some(key) = key_of(&piece)
                && seen.insert(key)
            {
                keys.push(key);
            }
        }
        if let Some(hole) = window
            .holes
            .iter()
            .find(|hole| pages.iter().any(|page| !hole.intersect(*page).is_empty()))
        {
            return Err(Trouble::Damaged(format!(
                "none of the segments of recovery point {} holds {hole}",
                self.point.cycle
            )));
        }
        self.fetcher.frames(&keys, until)
    }

    /// Puts a page together from frames, each run of it checked (I6).
    fn assemble(
        &self,
        window: &Window,
        frames: &HashMap<FrameKey, Arc<Frame>>,
        page: SectorRange,
        out: &mut [u8],
    ) -> Result<(), Trouble> {
        for piece in window.within(page) {
            let at = ((piece.run.start.0 - page.start.0) * SECTOR_BYTES) as usize;
            let out = &mut out[at..at + piece.run.bytes().0 as usize];
            let Some((key, place)) = key_of(&piece).zip(piece.extent.place) else {
                out.fill(0);
                continue;
            };
            let Some(frame) = frames.get(&key) else { return Err(Trouble::IndexLost) };
            let bytes = self.checked(&piece, &place, frame)?;
            let from = ((piece.run.start.0 - piece.extent.range.start.0) * SECTOR_BYTES) as usize;
            out.copy_from_slice(&bytes[from..from + out.len()]);
        }
        Ok(())
    }

    fn checked<'a>(
        &self,
        piece: &VisibleRun,
        place: &Place,
        frame: &'a Frame,
    ) -> Result<&'a [u8], Trouble> {
        let mut checked = frame.checked.lock().unwrap_or_else(PoisonError::into_inner);
        let at = place.offset as usize;
        let len = piece.extent.range.bytes().0 as usize;
        if let (true, Some(bytes)) =
            (checked.contains(&place.offset), frame.bytes.get(at..at + len))
        {
            return Ok(bytes);
        }
        let segment = &self.point.segments[piece.segment as usize];
        let right = check_extent(self.point.disk, segment, &piece.extent, place, &frame.bytes)
            .map_err(|e| Trouble::Damaged(e.to_string()))?;
        checked.push(place.offset);
        Ok(right)
    }

    /// Caches what was read, and what came along with it.
    fn keep(
        &self,
        window: &Window,
        frames: &HashMap<FrameKey, Arc<Frame>>,
        missing: &[SectorRange],
        bytes: &[u8],
        whole: SectorRange,
    ) {
        let from_vault = |page: SectorRange| {
            let mut keys = window.within(page).filter_map(|piece| key_of(&piece)).peekable();
            keys.peek().is_some() && keys.all(|key| frames.contains_key(&key))
        };
        for page in missing.iter().filter(|page| from_vault(**page)) {
            let at = ((page.start.0 - whole.start.0) * SECTOR_BYTES) as usize;
            self.cache.put(page.start.0 / PAGE_SECTORS, &bytes[at..at + PAGE_BYTES]);
        }
        let base = whole.start.0 / WINDOW_SECTORS * WINDOW_SECTORS;
        let along = SectorRange::new(
            whole.start.0.saturating_sub(ALONG_SECTORS).max(base),
            (whole.end.0 + ALONG_SECTORS).min(base + WINDOW_SECTORS).min(self.end()),
        );
        let mut buffer = vec![0; PAGE_BYTES];
        for page in pages(along, self.end()).split_at_multiples(PAGE_SECTORS) {
            let number = page.start.0 / PAGE_SECTORS;
            if !whole.intersect(page).is_empty() || !from_vault(page) || self.cache.has(number) {
                continue;
            }
            buffer.fill(0);
            if self.assemble(window, frames, page, &mut buffer).is_ok() {
                self.cache.put(number, &buffer);
            }
        }
    }

    /// What a window is made of; anyone who asks first finds out.
    fn window(&self, number: u64, until: Instant) -> Result<Arc<Window>, Trouble> {
        self.fetcher.trusted()?;
        if let Some(window) = self.windows.get(&number) {
            return Ok(window);
        }
        let (flight, new) = self.resolving.join(number);
        if !new {
            return flight
                .wait(until)
                .unwrap_or_else(|| Err(Trouble::Gone("its index has not come".into())));
        }
        let resolved = self.resolve(number, until).map(Arc::new);
        if let Ok(window) = &resolved {
            self.windows.put(number, Arc::clone(window), window.pieces.len() + 8);
        }
        self.resolving.land(number, resolved.clone());
        resolved
    }

    fn resolve(&self, number: u64, until: Instant) -> Result<Window, Trouble> {
        let start = number * WINDOW_SECTORS;
        let window = SectorRange::new(start, (start + WINDOW_SECTORS).min(self.end()));
        let missing = self.index.missing_near(window).into_iter().map(|s| s as u32);
        self.fetcher.indexes(&missing.collect::<Vec<_>>(), until)?;
        let mut builder = Builder::new(window);
        for segment in self.index.near(window) {
            if builder.is_done() {
                break;
            }
            let extents = self.index.extents(segment, window).map_err(|_| {
                self.index.forget(segment);
                Trouble::IndexLost
            })?;
            extents.into_iter().for_each(|extent| builder.add(segment as u32, extent));
        }
        // An index that was forgotten meanwhile would be missing in it.
        if !self.index.missing_near(window).is_empty() {
            return Err(Trouble::IndexLost);
        }
        Ok(builder.finish())
    }

    /// Sectors of the disk.
    fn end(&self) -> u64 {
        SectorRange::whole(self.point.size).end.0
    }
}

fn key_of(piece: &VisibleRun) -> Option<FrameKey> {
    piece.extent.place.map(|place| (piece.segment, place.frame))
}

/// The pages that hold a run; the disk's last one may be shorter.
fn pages(run: SectorRange, end: u64) -> SectorRange {
    SectorRange::new(
        run.start.0 / PAGE_SECTORS * PAGE_SECTORS,
        run.end.0.next_multiple_of(PAGE_SECTORS).min(end),
    )
}
