//! State and backing in memory; every access takes one of the explorer's locks or atomics, which is
//! a point where others may go on. (Not `yield_now`: it would tell the scheduler to prefer others
//! each time, and the rare schedules would become rarer.)

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use backstay_format::intents::{BLOCK_BYTES, Block, block_of, block_offset, decode_block};
use backstay_format::superblock::Superblock;
use backstay_track::Backing;
use backstay_track::env::{Env, SharedBits, StateFile};
use backstay_track::sync::atomic::{AtomicU64, Ordering};
use backstay_track::sync::{Arc, Mutex, lock};
use backstay_types::{ByteLen, ByteOffset, Region};

/// Sectors of the disk: two regions; the most that a small one grows to.
pub const SECTORS: u64 = 128;

/// A write of the guest.
#[derive(Debug, Clone, Copy)]
pub struct Write {
    pub sector: u64,
    pub begun: u64,
    pub acknowledged: Option<u64>,
}

/// A machine; clones share it.
#[derive(Clone)]
pub struct Machine {
    shared: Arc<Shared>,
    keeps_intents: bool,
}

const SMALL_BYTES: u64 = 64 * 512;

struct Shared {
    files: Mutex<BTreeMap<String, Arc<Mutex<Vec<u8>>>>>,
    bits: Mutex<BTreeMap<String, Arc<Words>>>,
    /// The first word of each sector.
    sectors: Vec<AtomicU64>,
    clock: AtomicU64,
    backing_bytes: AtomicU64,
    /// Every write by its stamp.
    writes: Mutex<BTreeMap<u64, Write>>,
}

struct Words {
    header: Vec<u8>,
    words: Vec<AtomicU64>,
}

impl Machine {
    pub fn new() -> Self {
        let shared = Shared {
            files: Mutex::default(),
            bits: Mutex::default(),
            sectors: (0..SECTORS).map(|_| AtomicU64::new(0)).collect(),
            clock: AtomicU64::new(1),
            backing_bytes: AtomicU64::new(SECTORS * 512),
            writes: Mutex::default(),
        };
        Self { shared: Arc::new(shared), keeps_intents: true }
    }

    /// One with a disk of one region.
    pub fn small() -> Self {
        let machine = Self::new();
        machine.shared.backing_bytes.store(SMALL_BYTES, Ordering::SeqCst);
        machine
    }

    /// Answers for intents without writing them.
    pub fn without_intents(mut self) -> Self {
        self.keeps_intents = false;
        self
    }

    /// The next instant.
    pub fn tick(&self) -> u64 {
        self.shared.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// A write begins; its stamp.
    pub fn begin(&self, sector: u64) -> u64 {
        let stamp = self.tick();
        let write = Write { sector, begun: stamp, acknowledged: None };
        lock(&self.shared.writes).insert(stamp, write);
        stamp
    }

    /// A write was answered.
    pub fn acknowledge(&self, stamp: u64) {
        let now = self.tick();
        lock(&self.shared.writes).get_mut(&stamp).expect("begun").acknowledged = Some(now);
    }

    /// Every write by its stamp.
    pub fn writes(&self) -> BTreeMap<u64, Write> {
        lock(&self.shared.writes).clone()
    }

    /// What a sector holds.
    pub fn sector(&self, sector: u64) -> u64 {
        self.shared.sectors[sector as usize].load(Ordering::SeqCst)
    }

    /// A word of named bits.
    pub fn word(&self, name: &str, word: u64) -> u64 {
        let bits = Arc::clone(&lock(&self.shared.bits)[name]);
        bits.words[word as usize].load(Ordering::SeqCst)
    }

    /// Sets a bit of named bits.
    pub fn set_bit(&self, name: &str, sector: u64) {
        let bits = Arc::clone(&lock(&self.shared.bits)[name]);
        bits.words[sector as usize / 64].fetch_or(1 << (sector % 64), Ordering::SeqCst);
    }

    /// The content of a file.
    pub fn file(&self, name: &str) -> Vec<u8> {
        let file = Arc::clone(&lock(&self.shared.files)[name]);
        let content = lock(&file);
        content.clone()
    }

    /// I1: asserts what must be true when a write reaches the backing.
    fn check_i1(&self, sector: u64) {
        let sb = Superblock::newest(&self.file("super")).expect("a superblock");
        let region = Region((sector / 64) as u32);
        let has_intent = sb.live.iter().any(|epoch| {
            let name = format!("intents-{epoch}");
            let Some(file) = lock(&self.shared.files).get(&name).cloned() else { return false };
            let content = lock(&file);
            let at = block_offset(block_of(region)) as usize;
            let block = content[at..at + BLOCK_BYTES].try_into().expect("a block");
            match decode_block(*epoch, block) {
                Block::Intents(map) => map[region.0 as usize / 8] & (1 << (region.0 % 8)) != 0,
                Block::Unwritten | Block::Damaged => false,
            }
        });
        assert!(has_intent, "I1: sector {sector} is written without a durable intent");
        let names: BTreeSet<String> = sb.live.iter().map(|e| format!("dirty-{e}")).collect();
        let all = lock(&self.shared.bits).clone();
        let dirty = all.iter().filter(|(name, _)| names.contains(*name)).any(|(_, bits)| {
            bits.words[sector as usize / 64].load(Ordering::SeqCst) & (1 << (sector % 64)) != 0
        });
        assert!(dirty, "I1: sector {sector} is written and not dirty");
    }
}

impl Env for Machine {
    type File = File;
    type Bits = Bits;

    fn create(&self, name: &str, content: &[u8]) -> io::Result<File> {
        let file = Arc::new(Mutex::new(content.to_vec()));
        lock(&self.shared.files).insert(name.into(), Arc::clone(&file));
        let lies = name.starts_with("intents-") && !self.keeps_intents;
        Ok(File { file, name: name.into(), lies })
    }
    fn create_scratch(&self, name: &str, content: &[u8]) -> io::Result<File> {
        self.create(name, content)
    }
    fn make_durable(&self, _file: &File, _name: &str) -> io::Result<()> {
        Ok(())
    }
    fn open(&self, name: &str) -> io::Result<Option<File>> {
        let file = lock(&self.shared.files).get(name).cloned();
        Ok(file.map(|file| File { file, name: name.into(), lies: false }))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        lock(&self.shared.files).remove(name);
        Ok(())
    }
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.shared.files).keys().cloned().collect())
    }
    fn create_bits(&self, name: &str, header: &[u8], words: u64) -> io::Result<Bits> {
        let words = (0..words.min(SECTORS / 64)).map(|_| AtomicU64::new(0)).collect();
        let bits = Arc::new(Words { header: header.to_vec(), words });
        lock(&self.shared.bits).insert(name.into(), Arc::clone(&bits));
        Ok(Bits { bits, name: name.into() })
    }
    fn open_bits(
        &self,
        name: &str,
        words: &dyn Fn(&[u8]) -> Option<u64>,
    ) -> io::Result<Option<Bits>> {
        let bits = lock(&self.shared.bits).get(name).cloned();
        let bits = bits.filter(|bits| words(&bits.header).is_some());
        Ok(bits.map(|bits| Bits { bits, name: name.into() }))
    }
    fn remove_bits(&self, name: &str) -> io::Result<()> {
        lock(&self.shared.bits).remove(name);
        Ok(())
    }
    fn list_bits(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.shared.bits).keys().cloned().collect())
    }
    fn boot_id(&self) -> [u8; 16] {
        [1; 16]
    }
    fn now_unix_ns(&self) -> u64 {
        self.tick()
    }
}

/// A file in memory.
pub struct File {
    file: Arc<Mutex<Vec<u8>>>,
    name: String,
    lies: bool,
}

impl StateFile for File {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(lock(&self.file).len() as u64)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let at = offset as usize;
        buf.copy_from_slice(&lock(&self.file)[at..at + buf.len()]);
        Ok(())
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if !self.lies {
            let mut content = lock(&self.file);
            let end = offset as usize + data.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[offset as usize..end].copy_from_slice(data);
        }
        Ok(())
    }
    fn write_durable(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(data, offset)
    }
    fn path(&self) -> PathBuf {
        PathBuf::from(&self.name)
    }
}

/// Bits in memory.
pub struct Bits {
    bits: Arc<Words>,
    name: String,
}

impl SharedBits for Bits {
    fn load(&self, word: u64) -> u64 {
        self.bits.words[word as usize].load(Ordering::SeqCst)
    }
    fn or(&self, word: u64, mask: u64) -> u64 {
        self.bits.words[word as usize].fetch_or(mask, Ordering::SeqCst)
    }
    fn reserve(&self, _words: Range<u64>) -> io::Result<()> {
        Ok(())
    }
    fn touched(&self) -> io::Result<Vec<Range<u64>>> {
        Ok(std::iter::once(0..SECTORS / 64).collect())
    }
    fn path(&self) -> PathBuf {
        PathBuf::from(&self.name)
    }
}

impl Backing for Machine {
    fn size(&self) -> ByteLen {
        ByteLen(self.shared.backing_bytes.load(Ordering::SeqCst))
    }
    fn grow(&self, to: ByteLen) -> io::Result<()> {
        self.shared.backing_bytes.store(to.0, Ordering::SeqCst);
        Ok(())
    }
    fn read_at(&self, buf: &mut [u8], offset: ByteOffset) -> io::Result<()> {
        for (i, bytes) in buf.chunks_mut(512).enumerate() {
            bytes.fill(0);
            bytes[..8].copy_from_slice(&self.sector(offset.0 / 512 + i as u64).to_le_bytes());
        }
        Ok(())
    }
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        for (i, bytes) in data.chunks(512).enumerate() {
            let sector = offset.0 / 512 + i as u64;
            self.check_i1(sector);
            let stamp = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
            self.shared.sectors[sector as usize].store(stamp, Ordering::SeqCst);
        }
        Ok(())
    }
    fn punch(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.write_at(&vec![0; len.0 as usize], offset)
    }
    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.punch(offset, len)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn mtime_unix_ns(&self) -> io::Result<u64> {
        Ok(0)
    }
}
