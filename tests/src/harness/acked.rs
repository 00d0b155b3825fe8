//! What an application was told is written: processes that write numbers, one after the other, and say
//! each when it is there for good; and the check that none of them is missing later.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use super::service::wait_for;
use super::stamp::now_ns;

/// Numbers that were acknowledged, each with when that was seen (ns since 1970, by this clock).
pub type Log = Arc<Mutex<Vec<(u64, u64)>>>;

/// A process that prints each number that it has made durable; killed when dropped.
pub struct Writer {
    child: Child,
    reader: Option<JoinHandle<()>>,
    log: Log,
}

impl Writer {
    /// Starts it. Numbers are added to a log, which may have some already.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(mut command: Command, log: &Log) -> Self {
        let spawned = command.stdout(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let into = Arc::clone(log);
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(number) = line.trim().parse() {
                    into.lock().unwrap().push((number, now_ns()));
                }
            }
        });
        Self { child, reader: Some(reader), log: Arc::clone(log) }
    }

    /// Feeds it lines, one for each number from `first`, as fast as it takes them.
    ///
    /// # Panics
    /// If its standard input is not a pipe.
    pub fn feed(&mut self, first: u64, line: impl Fn(u64) -> String + Send + 'static) {
        let mut to = self.child.stdin.take().expect("a pipe");
        // Ends when the process does.
        thread::spawn(move || (first..).try_for_each(|number| writeln!(to, "{}", line(number))));
    }

    /// Waits until so many more are acknowledged.
    ///
    /// # Panics
    /// If they are not, soon.
    #[track_caller]
    pub fn wait_for(&self, more: usize) {
        let from = self.log.lock().unwrap().len();
        wait_for("the next number", || self.log.lock().unwrap().len() >= from + more);
    }

    /// Ends it at once.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

/// The highest number that was acknowledged.
///
/// # Panics
/// Never, unless another thread has.
#[must_use]
pub fn highest(log: &Log) -> u64 {
    log.lock().unwrap().iter().map(|(number, _)| *number).max().unwrap_or(0)
}

/// Every number that was acknowledged before an instant is there, and none that nobody wrote. How many
/// had to be there, and how many more are.
///
/// # Panics
/// If that is not so.
#[track_caller]
pub fn check(log: &Log, before_ns: u64, found: &BTreeSet<u64>) -> (usize, usize) {
    let log = log.lock().unwrap();
    let must: BTreeSet<u64> =
        log.iter().filter(|(_, at)| *at < before_ns).map(|(number, _)| *number).collect();
    let missing: Vec<&u64> = must.difference(found).take(10).collect();
    assert!(missing.is_empty(), "acknowledged before the cut and missing: {missing:?}");
    // The one that was on its way is allowed.
    let highest = log.iter().map(|(number, _)| *number).max().unwrap_or(0);
    let from_nowhere: Vec<&u64> = found.iter().filter(|number| **number > highest + 1).collect();
    assert!(from_nowhere.is_empty(), "nobody wrote {from_nowhere:?}");
    (must.len(), found.len() - must.len())
}
