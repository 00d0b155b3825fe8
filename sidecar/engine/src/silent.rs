//! Detects a vault that has stopped answering, long before a request times out.
//!
//! A request over a slow line may take minutes, so a missing answer alone proves nothing. If a cycle has
//! made no progress for some seconds, this module sends small requests to its vault over a separate
//! connection. If these get no answer either, it records that beside the disk's record, for the health,
//! until there is progress or an answer. The cycle itself is not affected.

use backstay_types::{Class, Classified};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use backstay_host::atomic::Durability;
use backstay_host::clock::{self, now_unix_ns};
use backstay_host::record;
use backstay_vault::Vaults;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use serde::{Deserialize, Serialize};

use crate::jobs::{JobHandle, Process};

/// Only there while the vault is silent.
const FILE: &str = "vault-silent.json";
/// How often one looks whether something moved.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After how long without a move the vault is asked.
const QUIET: Duration = Duration::from_secs(8);
/// How long an answer to that may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// After how long without a move and without an answer it is silent.
const SILENT: Duration = Duration::from_secs(20);
/// Questions that have no answer yet, at most: those to a network file system may hang for ever.
const OPEN_MAX: usize = 4;

/// A vault that says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Silent {
    /// The vault.
    pub url: String,
    /// Since when, nanoseconds since 1970.
    pub since_unix_ns: u64,
    /// What the last question came to, if it came to anything.
    pub why: Option<String>,
    /// The process that waits for it.
    process: Process,
}

impl Silent {
    /// What is known of the vault of a disk, if somebody waits for it.
    pub fn load(state: &Path) -> Option<Self> {
        let silent: Self = record::load(&state.join(FILE)).ok().flatten()?;
        silent.process.is_alive().then_some(silent)
    }
}

/// Does the work of a cycle, with an eye on its vault.
pub(crate) fn watched<T>(
    (vaults, url): (&Vaults, &str),
    state: &Path,
    job: &JobHandle,
    work: impl FnOnce() -> T,
) -> T {
    thread::scope(|scope| {
        let (ended, wait) = bounded::<()>(0);
        let watch = thread::Builder::new().name("vault-watch".into());
        let _ = watch.spawn_scoped(scope, move || watch_vault((vaults, url), state, job, &wait));
        let result = work();
        drop(ended);
        result
    })
}

fn watch_vault(
    (vaults, url): (&Vaults, &str),
    state: &Path,
    job: &JobHandle,
    ended: &Receiver<()>,
) {
    let (answer, answers) = unbounded();
    let open = Arc::new(AtomicUsize::new(0));
    let (mut heard, mut heard_unix_ns, mut moves) =
        (clock::monotonic(), now_unix_ns(), job.moves());
    let (mut asked, mut told, mut why) = (None, false, None);
    while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
        let mut answered = false;
        for came in answers.try_iter() {
            match came {
                Ok(()) => answered = true,
                Err(text) => why = Some(text),
            }
        }
        if answered || job.moves() != moves {
            (heard, heard_unix_ns, moves) = (clock::monotonic(), now_unix_ns(), job.moves());
            (asked, why) = (None, None);
            if std::mem::take(&mut told) {
                tracing::info!("vault {url} answers again");
                let _ = fs::remove_file(state.join(FILE));
            }
        }
        let quiet = clock::since(heard);
        let due = asked.is_none_or(|at| clock::since(at) >= ANSWERS_WITHIN / 2);
        if quiet >= QUIET && due && open.load(Ordering::Relaxed) < OPEN_MAX {
            asked = Some(clock::monotonic());
            ask(vaults, url, &answer, &open);
        }
        if quiet >= SILENT && !told {
            told = true;
            tracing::warn!("vault {url} has not answered for {} s", quiet.as_secs());
            let (url, since_unix_ns) = (url.into(), heard_unix_ns);
            let silent = Silent { url, since_unix_ns, why: why.clone(), process: Process::me() };
            if let Err(e) = record::save(&state.join(FILE), &silent, Durability::Relaxed) {
                tracing::warn!("{e}");
            }
        }
    }
    if told {
        let _ = fs::remove_file(state.join(FILE));
    }
}

/// Asks for the vault's own record, on a thread that nobody waits for.
fn ask(vaults: &Vaults, url: &str, answer: &Sender<Result<(), String>>, open: &Arc<AtomicUsize>) {
    let vaults = vaults.answering_within(ANSWERS_WITHIN);
    let (url, answer, of_thread) = (url.to_owned(), answer.clone(), Arc::clone(open));
    open.fetch_add(1, Ordering::Relaxed);
    let asks = move || {
        let came = vaults.open_to_look(&url);
        let _ = answer.send(match came {
            Err(e) if e.class() == Class::Retry => Err(e.to_string()),
            // A refusal is an answer: the cycle will say what it is.
            Ok(_) | Err(_) => Ok(()),
        });
        of_thread.fetch_sub(1, Ordering::Relaxed);
    };
    if thread::Builder::new().name("vault-ask".into()).spawn(asks).is_err() {
        open.fetch_sub(1, Ordering::Relaxed);
    }
}
