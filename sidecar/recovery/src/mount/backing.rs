//! The backing of a mounted point: the overlay where it has something, else the point.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use backstay_format::mark::Mark;
use backstay_format::superblock::BackingId;
use backstay_front::backing::{RemoteBacking, Seek};
use backstay_track::Backing;
use backstay_types::{ByteLen, ByteOffset, SECTOR_BYTES, SectorRange};

use super::Trouble;
use super::ahead::Ahead;
use super::medium::{OverlayFile, PlainFile};
use super::overlay::Overlay;
use super::source::Source;
use super::window::WINDOW_SECTORS;

/// Messages about what cannot be read that are remembered, so that each is said once.
const SAID_MAX: usize = 1000;

/// What serving, hydration and status share.
pub(crate) struct Point {
    pub overlay: Overlay<OverlayFile, PlainFile>,
    pub source: Arc<Source>,
    ahead: Ahead,
    pub size: ByteLen,
    /// Reads that wait for the vault; hydration stands back for them.
    pub waiting: AtomicU64,
    pub stop: AtomicBool,
    said: Mutex<HashSet<String>>,
}

impl Point {
    pub fn new(
        overlay: Overlay<OverlayFile, PlainFile>,
        source: Source,
        size: ByteLen,
    ) -> io::Result<Self> {
        let source = Arc::new(source);
        Ok(Self {
            overlay,
            ahead: Ahead::start(&source)?,
            source,
            size,
            waiting: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            said: Mutex::default(),
        })
    }

    /// Reads whole sectors of the point.
    fn fetch(&self, run: SectorRange, out: &mut [u8]) -> io::Result<()> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let read = self.source.read(run, out);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.ahead.read(run, SectorRange::whole(self.size).end.0);
        read.map_err(|trouble| self.error(run, &trouble))
    }

    /// The guest gets EIO; the log says why, each thing once.
    fn error(&self, run: SectorRange, trouble: &Trouble) -> io::Error {
        if !matches!(trouble, Trouble::Gone(_)) {
            let text = format!("{run} cannot be read: {trouble}");
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            if said.len() < SAID_MAX && said.insert(text.clone()) {
                tracing::error!("{text}. Everything else is served");
            }
        }
        io::Error::from_raw_os_error(libc::EIO)
    }

    fn read(&self, buf: &mut [u8], offset: ByteOffset) -> io::Result<()> {
        let end = offset.0 + buf.len() as u64;
        let run = SectorRange::covering(offset, ByteLen(buf.len() as u64));
        if self.overlay.has(run) {
            return self.overlay.read(buf, offset);
        }
        // Bytes of the request that a run of sectors holds.
        let part = |run: SectorRange| {
            let (from, to) = (run.start.byte_offset().0.max(offset.0), (run.end.0 * 512).min(end));
            ((from - offset.0) as usize..(to - offset.0) as usize, from)
        };
        // What is absent first: a write that comes between makes more present, never less.
        let absent = self.overlay.runs(run, false);
        for &run in &absent {
            let (range, from) = part(run);
            let skip = (from - run.start.byte_offset().0) as usize;
            if skip == 0 && range.len() as u64 == run.bytes().0 {
                self.fetch(run, &mut buf[range])?;
            } else {
                let mut sectors = vec![0; run.bytes().0 as usize];
                self.fetch(run, &mut sectors)?;
                let len = range.len();
                buf[range].copy_from_slice(&sectors[skip..skip + len]);
            }
        }
        let mut at = run.start.0;
        let ends = absent.iter().copied().chain([SectorRange::new(run.end.0, run.end.0)]);
        for gap in ends {
            if gap.start.0 > at {
                let (range, from) = part(SectorRange::new(at, gap.start.0));
                self.overlay.read(&mut buf[range], ByteOffset(from))?;
            }
            at = gap.end.0;
        }
        Ok(())
    }

    /// Finds data or a hole. What is in the overlay is data, whatever it is; so is what nobody can say
    /// anything about just now.
    fn seek(&self, offset: ByteOffset, what: Seek) -> io::Result<ByteOffset> {
        let end = SectorRange::whole(self.size).end.0;
        let mut at = offset.0 / SECTOR_BYTES;
        while at < end {
            let stop = ((at / WINDOW_SECTORS + 1) * WINDOW_SECTORS).min(end);
            let window = SectorRange::new(at, stop);
            let holes = self.holes(window);
            let found = match what {
                Seek::Hole => holes.first().map(|hole| hole.start.0),
                Seek::Data => {
                    let mut data = at;
                    for hole in &holes {
                        if hole.start.0 != data {
                            break;
                        }
                        data = hole.end.0;
                    }
                    Some(data).filter(|&data| data < stop)
                }
            };
            if let Some(sector) = found {
                return Ok(ByteOffset((sector * SECTOR_BYTES).max(offset.0)));
            }
            at = stop;
        }
        match what {
            Seek::Data => Err(io::Error::from_raw_os_error(libc::ENXIO)),
            Seek::Hole => Ok(ByteOffset(self.size.0)),
        }
    }

    /// The runs of a window that are known to be zero, in order.
    fn holes(&self, window: SectorRange) -> Vec<SectorRange> {
        let absent = self.overlay.runs(window, false);
        if absent.is_empty() {
            return vec![];
        }
        let zeroes = self.source.zeroes(window).unwrap_or_default();
        let mut holes: Vec<SectorRange> = vec![];
        for run in
            absent.iter().flat_map(|absent| zeroes.iter().map(|zero| zero.intersect(*absent)))
        {
            match holes.last_mut() {
                _ if run.is_empty() => {}
                Some(last) if last.end == run.start => last.end = run.end,
                _ => holes.push(run),
            }
        }
        holes
    }

    /// Fetches the sectors that a change covers only in part.
    fn prepare(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        for sector in self.overlay.edges(offset, len) {
            let mut bytes = [0; SECTOR_BYTES as usize];
            self.fetch(sector, &mut bytes)?;
            self.overlay.fill(sector, &bytes)?;
        }
        Ok(())
    }

    fn clear(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        let end = offset.0 + len.0;
        let first = offset.0.next_multiple_of(SECTOR_BYTES);
        // The disk's last sector may be shorter than a sector.
        let last = if end == self.size.0 { end.div_ceil(512) } else { end / SECTOR_BYTES };
        if last * SECTOR_BYTES <= first {
            return self.write(&vec![0; len.0 as usize], offset);
        }
        if first > offset.0 {
            self.write(&vec![0; (first - offset.0) as usize], offset)?;
        }
        self.overlay.clear(SectorRange::new(first / SECTOR_BYTES, last))?;
        if end > last * SECTOR_BYTES {
            let at = last * SECTOR_BYTES;
            self.write(&vec![0; (end - at) as usize], ByteOffset(at))?;
        }
        Ok(())
    }

    fn write(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        self.prepare(offset, ByteLen(data.len() as u64))?;
        self.overlay.write(data, offset)
    }
}

/// The point as the driver takes it.
pub(crate) struct PointBacking {
    pub point: Arc<Point>,
    /// Called when the disk is closed: waits for the threads of the point.
    pub stop: Box<dyn Fn() + Send + Sync>,
}

impl Backing for PointBacking {
    fn size(&self) -> ByteLen {
        self.point.size
    }
    fn identity(&self) -> io::Result<Option<BackingId>> {
        Ok(self.point.overlay.data().identities()?.into_iter().next().flatten())
    }
    fn mark(&self) -> io::Result<Option<Mark>> {
        self.point.overlay.data().mark()
    }
    fn set_mark(&self, mark: &Mark) -> io::Result<()> {
        self.point.overlay.data().set_mark(mark)
    }
    fn read_at(&self, buf: &mut [u8], offset: ByteOffset) -> io::Result<()> {
        self.point.read(buf, offset)
    }
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        self.point.write(data, offset)
    }
    fn punch(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.point.clear(offset, len)
    }
    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.point.clear(offset, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.point.overlay.sync()
    }
    fn mtime_unix_ns(&self) -> io::Result<u64> {
        self.point.overlay.data().mtime_unix_ns()
    }
}

impl RemoteBacking for PointBacking {
    fn name(&self) -> &'static str {
        "recovery point"
    }
    fn seek(&self, offset: ByteOffset, what: Seek) -> io::Result<ByteOffset> {
        self.point.seek(offset, what)
    }
    fn has(&self, offset: ByteOffset, len: ByteLen) -> bool {
        let run = SectorRange::covering(offset, len);
        let absent = self.point.overlay.runs(run, false);
        absent.into_iter().all(|run| self.point.source.has(run))
    }
    fn takes(&self, offset: ByteOffset, len: ByteLen) -> bool {
        self.point.overlay.edges(offset, len).is_empty()
    }
    fn prepare(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.point.prepare(offset, len)
    }
    fn stop(&self) {
        self.point.stop.store(true, Ordering::Release);
        (self.stop)();
    }
}
