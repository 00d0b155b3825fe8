//! A machine in memory, and the steps that change it.

use std::collections::BTreeMap;

use backstay_format::mark::Mark;

/// What a disk writes whole: nothing smaller is ever torn.
pub const ATOM_BYTES: usize = 512;

/// A file, whatever its name.
pub type FileId = u32;

/// One step done to a machine, in the order it happened.
#[derive(Debug, Clone)]
pub enum Step {
    /// A name was given to a file, in place of any other.
    Link(String, FileId),
    /// A name was taken away.
    Unlink(String),
    /// Bytes were written; in memory only until a sync.
    Write(FileId, u64, Vec<u8>),
    /// Everything written to a file before is durable.
    SyncFile(FileId),
    /// The one write at this step of the log is durable.
    SyncWrite(usize),
    /// Every name given or taken before is durable.
    SyncNames,
    /// Bits were made, with their header.
    NewBits(String, Vec<u8>),
    /// Bits were set in a word.
    Or(String, u64, u64),
    /// Bits were removed.
    DropBits(String),
    /// Whole sectors of the backing were written.
    Backing(u64, Vec<u8>),
    /// The backing was extended.
    Extend(u64),
    /// Every backing write before is durable, and its size.
    SyncBacking,
    /// The backing was marked; durable once it is synced.
    Mark(Mark),
    /// The backing's mark is durable.
    SyncMark,
    /// Something the workload wants to remember at this point; changes nothing.
    Remember(usize),
}

/// Shared bits: their header and their non-zero words.
#[derive(Debug, Clone, Default)]
pub struct Bits {
    /// The header.
    pub header: Vec<u8>,
    /// Words by number.
    pub words: BTreeMap<u64, u64>,
}

/// A machine: what its disks and its memory hold.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Files by identity.
    pub files: BTreeMap<FileId, Vec<u8>>,
    /// Names of the state directory.
    pub names: BTreeMap<String, FileId>,
    /// Shared bits by name: what tmpfs holds.
    pub bits: BTreeMap<String, Bits>,
    /// Sectors of the backing that are not zero.
    pub backing: BTreeMap<u64, Vec<u8>>,
    /// The backing's size in bytes.
    pub backing_bytes: u64,
    /// The backing's mark.
    pub mark: Option<Mark>,
    /// Which boot this is.
    pub boot: u8,
}

impl Machine {
    /// Does a step as a machine that stays up does it.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Link(name, file) => {
                self.files.entry(*file).or_default();
                self.names.insert(name.clone(), *file);
            }
            Step::Unlink(name) => {
                self.names.remove(name);
            }
            Step::Write(file, at, data) => self.write(*file, *at, data),
            Step::NewBits(name, header) => {
                let bits = Bits { header: header.clone(), words: BTreeMap::new() };
                self.bits.insert(name.clone(), bits);
            }
            Step::Or(name, word, mask) => {
                if let Some(bits) = self.bits.get_mut(name) {
                    *bits.words.entry(*word).or_default() |= mask;
                }
            }
            Step::DropBits(name) => {
                self.bits.remove(name);
            }
            Step::Backing(sector, data) => self.write_backing(*sector, data),
            Step::Extend(bytes) => self.backing_bytes = *bytes,
            Step::Mark(mark) => self.mark = Some(*mark),
            Step::SyncFile(_)
            | Step::SyncWrite(_)
            | Step::SyncNames
            | Step::SyncBacking
            | Step::SyncMark
            | Step::Remember(_) => {}
        }
    }

    /// Writes bytes of a file, growing it with zeroes.
    pub fn write(&mut self, file: FileId, at: u64, data: &[u8]) {
        let content = self.files.entry(file).or_default();
        let (at, end) = (at as usize, at as usize + data.len());
        if content.len() < end {
            content.resize(end, 0);
        }
        content[at..end].copy_from_slice(data);
    }

    /// Writes whole sectors of the backing.
    pub fn write_backing(&mut self, sector: u64, data: &[u8]) {
        for (i, bytes) in data.chunks(ATOM_BYTES).enumerate() {
            let sector = sector + i as u64;
            if bytes.iter().all(|&b| b == 0) {
                self.backing.remove(&sector);
            } else {
                self.backing.insert(sector, bytes.to_vec());
            }
        }
    }
}
