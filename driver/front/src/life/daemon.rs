//! Going to the background: the one who called waits until the disk is mounted or has failed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use backstay_types::{Class, Classified};
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe, setsid};

use super::DriverError;

/// What became of a driver that went to the background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It serves its disk.
    Serving,
    /// It could not.
    Failed {
        /// What to do about it.
        class: Class,
        /// What it said.
        said: String,
    },
}

/// Splits the process: the child works in the background, the caller hears how it started.
///
/// `work` gets a function to call once, when it is ready; what it returns before is its failure.
/// Must be called before any thread is started.
///
/// # Errors
/// If the process cannot be split or the log not be opened.
pub fn in_background(
    log: &Path,
    work: impl FnOnce(Box<dyn FnOnce() + Send>) -> Result<(), DriverError>,
) -> std::io::Result<Outcome> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
    let null = File::open("/dev/null")?;
    let (read, write) = pipe()?;
    // SAFETY: no other thread exists yet (see above), so the child may run any code.
    match unsafe { fork()? } {
        ForkResult::Parent { .. } => {
            drop(write);
            let mut said = String::new();
            File::from(read).read_to_string(&mut said)?;
            Ok(match said.strip_prefix("ready") {
                Some(_) => Outcome::Serving,
                None => failed(&said),
            })
        }
        ForkResult::Child => {
            drop(read);
            setsid()?;
            std::env::set_current_dir("/")?;
            dup2_stdin(&null)?;
            dup2_stdout(&log)?;
            dup2_stderr(&log)?;
            // The caller waits until this end is closed: once ready, or by the end of the process.
            let report = Arc::new(Mutex::new(Some(File::from(write))));
            let say = |report: &Mutex<Option<File>>, text: &str| {
                let taken = report.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(mut report) = taken {
                    let _ = report.write_all(text.as_bytes());
                }
            };
            let ready = Arc::clone(&report);
            let code = match work(Box::new(move || say(&ready, "ready"))) {
                Ok(()) => 0,
                Err(e) => {
                    eprintln!("{e}");
                    say(&report, &format!("{} {e}", e.class().name()));
                    1
                }
            };
            std::process::exit(code);
        }
    }
}

/// What a driver said that did not start: the class of its failure comes across the fork as a word.
fn failed(said: &str) -> Outcome {
    match said.split_once(' ').and_then(|(class, said)| Some((Class::named(class)?, said))) {
        Some((class, said)) => Outcome::Failed { class, said: said.into() },
        None => Outcome::Failed {
            class: Class::Person,
            said: "the driver died while it started".into(),
        },
    }
}
