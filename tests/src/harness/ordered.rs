//! Two processes that write one number after the other: the first to disk A, then, when that is
//! flushed, the second to disk B, and when that is flushed, the next number to A. So at every instant
//! A holds the number that B holds, or the next one; and so must every group point.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use backstay_types::{ByteLen, ByteOffset, CycleNo, DiskId};
use backstay_vault::read::{RestoreTarget, read_index, restore};
use backstay_vault::{GroupPoint, Manifest, Vault};

use super::stamp::{BLOCK_BYTES, open_direct, read_stamp, stamp};

/// Tells the second process where the first one listens, and which disk is its.
const SOCKET: &str = "BACKSTAY_ORDERED_SOCKET";
const DISK: &str = "BACKSTAY_ORDERED_DISK";

/// The workload while it runs.
pub struct Ordered {
    stop: Arc<AtomicBool>,
    done: Arc<Done>,
    first: Option<JoinHandle<Duration>>,
    second: Child,
    socket: PathBuf,
}

/// The last number that is on both disks; told to anyone who waits for it.
#[derive(Default)]
struct Done {
    number: Mutex<u64>,
    more: Condvar,
    ended: AtomicBool,
}

/// Says, also when it panics, that the workload has ended.
struct Ended(Arc<Done>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
        self.0.more.notify_all();
    }
}

/// Writes a number to the disk's first block and flushes it; how long that took.
fn write(disk: &File, number: u64) -> Duration {
    let began = Instant::now();
    disk.write_all_at(&stamp(0, number).0, 0).expect("the guest's write");
    disk.sync_data().expect("the guest's flush");
    began.elapsed()
}

/// The second process, when this test binary was started as it. Every test file with an [`Ordered`]
/// workload has an ignored test `second_writer_process` that calls this.
pub fn second_writer() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let disk = open_direct(Path::new(&std::env::var_os(DISK).expect("a disk")));
    let mut stream = UnixStream::connect(socket).expect("the first process");
    let mut bytes = [0; 8];
    while stream.read_exact(&mut bytes).is_ok() {
        let took = write(&disk, u64::from_le_bytes(bytes));
        stream.write_all(&(took.as_nanos() as u64).to_le_bytes()).expect("the first process");
    }
}

impl Ordered {
    /// Starts the two processes.
    pub fn start(a: &Path, b: &Path, socket: PathBuf) -> Self {
        let listener = UnixListener::bind(&socket).expect("a socket");
        let second = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "second_writer_process", "--ignored"])
            .env(SOCKET, &socket)
            .env(DISK, b)
            .stdout(Stdio::null())
            .spawn()
            .expect("the second process");
        let (mut stream, _) = listener.accept().expect("the second process");
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(Done::default()));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&done));
        let disk = open_direct(a);
        let first = thread::spawn(move || {
            let _ended = Ended(Arc::clone(&count));
            let mut longest = Duration::ZERO;
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                number += 1;
                longest = longest.max(write(&disk, number));
                stream.write_all(&number.to_le_bytes()).expect("the second process");
                let mut took = [0; 8];
                stream.read_exact(&mut took).expect("the second process");
                longest = longest.max(Duration::from_nanos(u64::from_le_bytes(took)));
                *count.number.lock().unwrap() = number;
                count.more.notify_all();
            }
            longest
        });
        Self { stop, done, first: Some(first), second, socket }
    }

    /// Numbers that are on both disks.
    pub fn written(&self) -> u64 {
        *self.done.number.lock().unwrap()
    }

    /// Waits until so many more were written: an event, not a time.
    pub fn wait_for(&self, more: u64) {
        let mut number = self.done.number.lock().unwrap();
        let until = *number + more;
        while *number < until {
            assert!(!self.done.ended.load(Ordering::Relaxed), "the workload ended");
            let patience = Duration::from_secs(1);
            number = self.done.more.wait_timeout(number, patience).unwrap().0;
        }
    }

    /// Ends it: numbers written, and the longest time a write and its flush took.
    pub fn stop(mut self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.first.take().expect("it runs").join().expect("the first process");
        assert!(self.second.wait().expect("the second process").success());
        (self.written(), longest)
    }
}

impl Drop for Ordered {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.second.kill();
        let _ = self.second.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Keeps a disk's first block and nothing else.
struct FirstBlock(Mutex<[u8; BLOCK_BYTES]>);

impl RestoreTarget for FirstBlock {
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> std::io::Result<()> {
        let at = (offset.0 as usize).min(BLOCK_BYTES);
        let len = data.len().min(BLOCK_BYTES - at);
        self.0.lock().unwrap()[at..at + len].copy_from_slice(&data[..len]);
        Ok(())
    }
    fn zero(&self, offset: ByteOffset, len: ByteLen) -> std::io::Result<()> {
        let at = (offset.0 as usize).min(BLOCK_BYTES);
        let end = ((offset.0 + len.0) as usize).min(BLOCK_BYTES);
        self.0.lock().unwrap()[at..end].fill(0);
        Ok(())
    }
    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn name(&self) -> String {
        "the first block".into()
    }
}

/// The number that a recovery point holds.
///
/// # Errors
/// If the first block is torn.
pub fn number_in(vault: &Vault, disk: DiskId, cycle: CycleNo) -> Result<u64, String> {
    let point = vault.manifest(disk, cycle).map_err(|e| e.to_string())?;
    // What lies between the first cycle and this one is only read if this one did not ship the
    // block, or was merged: reading all segments of all points would take the square of their number.
    if own_holds_first_block(vault, &point)? {
        let mut short = point.clone();
        short.segments.retain(|segment| segment.cycle.0 <= 1 || segment.cycle == cycle);
        let block = FirstBlock(Mutex::new([0; BLOCK_BYTES]));
        if restore(vault, &short, &block, 1, &|_, _| {}).is_ok() {
            return read_stamp(0, &block.0.into_inner().unwrap());
        }
    }
    let block = FirstBlock(Mutex::new([0; BLOCK_BYTES]));
    restore(vault, &point, &block, 1, &|_, _| {}).map_err(|e| e.to_string())?;
    read_stamp(0, &block.0.into_inner().unwrap())
}

fn own_holds_first_block(vault: &Vault, point: &Manifest) -> Result<bool, String> {
    for segment in point.own_segments() {
        let index =
            read_index(vault, point.disk, point.size, segment).map_err(|e| e.to_string())?;
        let block = (BLOCK_BYTES / 512) as u64;
        let covered: u64 = index
            .extents
            .iter()
            .map(|extent| extent.range.end.0.min(block).saturating_sub(extent.range.start.0))
            .sum();
        if covered == block {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Checks what a group point, or any pair of points, holds: A is B or one ahead.
///
/// # Errors
/// What they hold instead.
pub fn check_pair(a: u64, b: u64) -> Result<(), String> {
    if b > a {
        return Err(format!("B is ahead: A holds {a}, B holds {b}"));
    }
    if a > b + 1 {
        return Err(format!("A is too far ahead: A holds {a}, B holds {b}"));
    }
    Ok(())
}

/// Reads every group point and checks it; the numbers that A held, in the order of the points.
///
/// # Errors
/// The first point that is wrong.
pub fn check_group(vault: &Vault, points: &[GroupPoint]) -> Result<Vec<u64>, String> {
    let mut held = vec![];
    for point in points {
        let of = |name: &str| {
            let member = point.members.iter().find(|member| member.name.as_str() == name);
            let member = member.ok_or_else(|| format!("point {}: no {name}", point.number))?;
            number_in(vault, member.disk, member.cycle)
                .map_err(|e| format!("point {}, {name}: {e}", point.number))
        };
        let (a, b) = (of("a")?, of("b")?);
        check_pair(a, b).map_err(|e| format!("group point {}: {e}", point.number))?;
        held.push(a);
    }
    Ok(held)
}
