//! The driver's seams over a [`Machine`] in memory, with a log of every step.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use backstay_format::mark::Mark;
use backstay_format::superblock::BackingId;
use backstay_track::Backing;
use backstay_track::env::{Env, SharedBits, StateFile};
use backstay_types::{ByteLen, ByteOffset, SECTOR_BYTES, SectorRange};

use super::state::{FileId, Machine, Step};

/// A driver broken on purpose: the tests must see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Works as it should.
    None,
    /// Intents are answered as durable but only written to memory.
    IntentsNotSynced,
    /// Intents are answered as durable but never written.
    IntentsNotWritten,
    /// The superblock is answered as durable but only written to memory.
    SuperblockNotSynced,
    /// Flushes of the backing are answered but not done.
    BackingNotSynced,
    /// The backing is answered as extended but may be as short as before.
    ExtensionNotSynced,
    /// Bits are set in the driver's memory only, and lost with it.
    BitsNotShared,
    /// The backing's mark is answered as durable but only written to memory.
    MarkNotSynced,
    /// The backing's mark is not changed once it is there.
    MarkNotChanged,
}

/// What fails from now on.
#[derive(Debug, Default, Clone)]
pub struct Faults {
    /// Files whose name starts with one of these cannot be written or made.
    pub files: Vec<&'static str>,
    /// After so many more changes of its files the state directory is dead: nothing in it can be
    /// changed any more.
    pub dead_after: Option<u64>,
    /// The backing has no place for a mark.
    pub no_mark: bool,
    /// The backing's mark cannot be changed.
    pub mark: bool,
    /// No memory for bits.
    pub no_memory: bool,
    /// The backing cannot be read.
    pub backing_read: bool,
    /// The backing cannot be written.
    pub backing_write: bool,
    /// The backing cannot be flushed.
    pub backing_sync: bool,
    /// The backing cannot be extended.
    pub backing_grow: bool,
    /// Which backing it says it is.
    pub identity: Option<u8>,
    /// When the backing says it was modified.
    pub mtime_unix_ns: u64,
}

fn io_error(fails: bool) -> io::Result<()> {
    // EIO, as a broken disk answers.
    if fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
}

/// A machine and what was done to it since it was made.
#[derive(Debug)]
pub struct Recording {
    /// The machine as it was at the start of the log.
    pub start: Machine,
    /// The machine now.
    pub now: Machine,
    /// Every step since the start.
    pub log: Vec<Step>,
    next_file: FileId,
    clock: u64,
}

/// The driver's seams; clones share one recording.
#[derive(Debug, Clone)]
pub struct Recorder {
    shared: Arc<Mutex<Recording>>,
    sabotage: Sabotage,
    faults: Arc<Mutex<Faults>>,
}

impl Recorder {
    /// Starts recording on a machine; a new one gets a backing of this size.
    pub fn new(mut start: Machine, size: ByteLen, sabotage: Sabotage) -> Self {
        if start.backing_bytes == 0 {
            start.backing_bytes = size.0;
        }
        let next_file = start.files.keys().max().map_or(1, |id| id + 1);
        let recording =
            Recording { now: start.clone(), start, log: vec![], next_file, clock: 1_000 };
        Self { shared: Arc::new(Mutex::new(recording)), sabotage, faults: Arc::default() }
    }

    /// The recording.
    pub fn recording(&self) -> MutexGuard<'_, Recording> {
        self.shared.lock().unwrap()
    }

    /// What fails; changes hold from now on.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap()
    }

    fn check_file(&self, name: &str) -> io::Result<()> {
        let mut faults = self.faults();
        io_error(faults.files.iter().any(|start| name.starts_with(start)))?;
        match &mut faults.dead_after {
            Some(0) => io_error(true),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether the state directory is dead.
    pub fn is_dead(&self) -> bool {
        self.faults().dead_after == Some(0)
    }

    /// Remembers a point of the workload in the log.
    pub fn mark(&self, mark: usize) {
        self.recording().record(Step::Remember(mark));
    }

    /// The machine goes down and comes up again, all of its writes safe.
    pub fn reboot(&self) {
        let mut recording = self.recording();
        recording.now.boot += 1;
        recording.now.bits.clear();
        recording.start = recording.now.clone();
        recording.log.clear();
    }
}

impl Recording {
    fn new_file(&mut self, content: &[u8]) -> FileId {
        let id = self.next_file;
        self.next_file += 1;
        self.record(Step::Write(id, 0, content.to_vec()));
        id
    }

    fn record(&mut self, step: Step) -> usize {
        self.now.apply(&step);
        self.log.push(step);
        self.log.len() - 1
    }
}

impl Env for Recorder {
    type File = RecordedFile;
    type Bits = RecordedBits;

    fn create(&self, name: &str, content: &[u8]) -> io::Result<RecordedFile> {
        self.check_file(name)?;
        let mut recording = self.recording();
        let id = recording.new_file(content);
        recording.record(Step::SyncFile(id));
        recording.record(Step::Link(name.into(), id));
        recording.record(Step::SyncNames);
        drop(recording);
        Ok(RecordedFile { recorder: self.clone(), id, name: name.into() })
    }

    fn create_scratch(&self, name: &str, content: &[u8]) -> io::Result<RecordedFile> {
        self.check_file(name)?;
        let mut recording = self.recording();
        if recording.now.names.contains_key(name) {
            recording.record(Step::Unlink(name.into()));
        }
        let id = recording.new_file(content);
        recording.record(Step::Link(name.into(), id));
        drop(recording);
        Ok(RecordedFile { recorder: self.clone(), id, name: name.into() })
    }

    fn make_durable(&self, file: &RecordedFile, name: &str) -> io::Result<()> {
        self.check_file(name)?;
        let mut recording = self.recording();
        recording.record(Step::SyncFile(file.id));
        recording.record(Step::SyncNames);
        Ok(())
    }

    fn open(&self, name: &str) -> io::Result<Option<RecordedFile>> {
        let id = self.recording().now.names.get(name).copied();
        Ok(id.map(|id| RecordedFile { recorder: self.clone(), id, name: name.into() }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.check_file(name)?;
        let mut recording = self.recording();
        if recording.now.names.contains_key(name) {
            recording.record(Step::Unlink(name.into()));
        }
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.recording().now.names.keys().cloned().collect())
    }

    fn create_bits(&self, name: &str, header: &[u8], _words: u64) -> io::Result<RecordedBits> {
        self.recording().record(Step::NewBits(name.into(), header.to_vec()));
        Ok(RecordedBits { recorder: self.clone(), name: name.into() })
    }

    fn open_bits(
        &self,
        name: &str,
        words: &dyn Fn(&[u8]) -> Option<u64>,
    ) -> io::Result<Option<RecordedBits>> {
        let header = self.recording().now.bits.get(name).map(|bits| bits.header.clone());
        let words = header.and_then(|header| words(&header));
        Ok(words.map(|_| RecordedBits { recorder: self.clone(), name: name.into() }))
    }

    fn remove_bits(&self, name: &str) -> io::Result<()> {
        let mut recording = self.recording();
        if recording.now.bits.contains_key(name) {
            recording.record(Step::DropBits(name.into()));
        }
        Ok(())
    }

    fn list_bits(&self) -> io::Result<Vec<String>> {
        Ok(self.recording().now.bits.keys().cloned().collect())
    }

    fn boot_id(&self) -> [u8; 16] {
        [self.recording().now.boot + 1; 16]
    }

    fn now_unix_ns(&self) -> u64 {
        let mut recording = self.recording();
        recording.clock += 1;
        recording.clock
    }
}

/// A file of a recorded machine.
#[derive(Debug)]
pub struct RecordedFile {
    recorder: Recorder,
    id: FileId,
    name: String,
}

impl StateFile for RecordedFile {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.recorder.recording().now.files[&self.id].len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let recording = self.recorder.recording();
        let content = &recording.now.files[&self.id];
        let at = offset as usize;
        match content.get(at..at + buf.len()) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.recorder.check_file(&self.name)?;
        self.recorder.recording().record(Step::Write(self.id, offset, data.to_vec()));
        Ok(())
    }

    fn write_durable(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.recorder.check_file(&self.name)?;
        let intents = self.name.starts_with("intents-");
        let superblock = self.name == "super";
        let mut recording = self.recorder.recording();
        if intents && self.recorder.sabotage == Sabotage::IntentsNotWritten {
            return Ok(());
        }
        let at = recording.record(Step::Write(self.id, offset, data.to_vec()));
        let lie = (intents && self.recorder.sabotage == Sabotage::IntentsNotSynced)
            || (superblock && self.recorder.sabotage == Sabotage::SuperblockNotSynced);
        if !lie {
            recording.record(Step::SyncWrite(at));
        }
        Ok(())
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(&self.name)
    }
}

/// Bits of a recorded machine.
#[derive(Debug)]
pub struct RecordedBits {
    recorder: Recorder,
    name: String,
}

impl SharedBits for RecordedBits {
    fn load(&self, word: u64) -> u64 {
        let recording = self.recorder.recording();
        let bits = recording.now.bits.get(&self.name);
        bits.and_then(|bits| bits.words.get(&word)).copied().unwrap_or(0)
    }

    fn or(&self, word: u64, mask: u64) -> u64 {
        let before = self.load(word);
        let mut recording = self.recorder.recording();
        if self.recorder.sabotage == Sabotage::BitsNotShared {
            let step = Step::Or(self.name.clone(), word, mask);
            recording.now.apply(&step);
        } else {
            recording.record(Step::Or(self.name.clone(), word, mask));
        }
        before
    }

    fn reserve(&self, _words: Range<u64>) -> io::Result<()> {
        if self.recorder.faults().no_memory {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn touched(&self) -> io::Result<Vec<Range<u64>>> {
        let recording = self.recorder.recording();
        let words = recording.now.bits.get(&self.name).map(|bits| bits.words.keys().copied());
        Ok(words.into_iter().flatten().map(|word| word..word + 1).collect())
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(&self.name)
    }
}

impl Backing for Recorder {
    fn size(&self) -> ByteLen {
        ByteLen(self.recording().now.backing_bytes)
    }

    fn grow(&self, to: ByteLen) -> io::Result<()> {
        io_error(self.faults().backing_grow)?;
        let mut recording = self.recording();
        if recording.now.backing_bytes < to.0 {
            recording.record(Step::Extend(to.0));
            if self.sabotage != Sabotage::ExtensionNotSynced {
                recording.record(Step::SyncBacking);
            }
        }
        Ok(())
    }

    fn identity(&self) -> io::Result<Option<BackingId>> {
        Ok(self.faults().identity.map(|byte| BackingId([byte; 16])))
    }

    fn mark(&self) -> io::Result<Option<Mark>> {
        if self.faults().no_mark {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(self.recording().now.mark)
    }

    fn set_mark(&self, mark: &Mark) -> io::Result<()> {
        if self.faults().no_mark {
            return Err(io::ErrorKind::Unsupported.into());
        }
        io_error(self.faults().mark)?;
        let mut recording = self.recording();
        if self.sabotage == Sabotage::MarkNotChanged && recording.now.mark.is_some() {
            return Ok(());
        }
        recording.record(Step::Mark(*mark));
        if self.sabotage != Sabotage::MarkNotSynced {
            recording.record(Step::SyncMark);
        }
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], offset: ByteOffset) -> io::Result<()> {
        io_error(self.faults().backing_read)?;
        let recording = self.recording();
        let range = SectorRange::covering(offset, ByteLen(buf.len() as u64));
        let whole = sectors_of(&recording.now, range);
        let skip = (offset.0 - range.start.byte_offset().0) as usize;
        buf.copy_from_slice(&whole[skip..skip + buf.len()]);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        io_error(self.faults().backing_write)?;
        let mut recording = self.recording();
        let range = SectorRange::covering(offset, ByteLen(data.len() as u64));
        let mut whole = sectors_of(&recording.now, range);
        let skip = (offset.0 - range.start.byte_offset().0) as usize;
        whole[skip..skip + data.len()].copy_from_slice(data);
        recording.record(Step::Backing(range.start.0, whole));
        Ok(())
    }

    fn punch(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.write_at(&vec![0; len.0 as usize], offset)
    }

    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.punch(offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        io_error(self.faults().backing_sync)?;
        if self.sabotage != Sabotage::BackingNotSynced {
            self.recording().record(Step::SyncBacking);
        }
        Ok(())
    }

    fn mtime_unix_ns(&self) -> io::Result<u64> {
        Ok(self.faults().mtime_unix_ns)
    }
}

fn sectors_of(machine: &Machine, range: SectorRange) -> Vec<u8> {
    let mut out = vec![0; range.bytes().0 as usize];
    for (i, sector) in range.as_range().enumerate() {
        if let Some(bytes) = machine.backing.get(&sector) {
            let at = i * SECTOR_BYTES as usize;
            out[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
    out
}
