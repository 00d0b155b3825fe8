//! What is known of a run, kept so that it can go on after a kill or a step that failed.
//!
//! One file a plan, `<state>/.plans/<plan>/run.json`, replaced as a whole and synced after each change;
//! what scripts print is in `log` beside it. A lock says that somebody is at it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use backstay_host::atomic::{self, Durability};
use backstay_host::lock;
use backstay_host::own_dir::own_dir;
use backstay_host::record;
use backstay_types::{CycleNo, DiskName, PointId};
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::parse::Kind;

const FORMAT: &str = "backstay-plan-run";
const VERSION: u32 = 1;
/// Longest file of a run.
const RUN_BYTES_MAX: u64 = 16 << 20;
/// Reports that are kept.
const REPORTS_KEPT: usize = 100;

/// A run of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its identity, random.
    pub run: PointId,
    /// The plan's name.
    pub plan: DiskName,
    /// The plan as it was when it began: what goes on is what was begun.
    pub text: String,
    /// For what.
    pub kind: Kind,
    /// Which points were asked for.
    pub point: String,
    /// When it began, nanoseconds since 1970.
    pub began_unix_ns: u64,
    /// When it ended, well or not.
    pub ended_unix_ns: Option<u64>,
    /// How it is.
    pub state: RunState,
    /// Its steps in their order.
    pub steps: Vec<StepRun>,
    /// Its disks, as they came up.
    pub disks: Vec<DiskRun>,
}

/// How a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// It runs, or was killed.
    Running,
    /// A step failed.
    Failed,
    /// A person has to do something.
    Waiting,
    /// All is done.
    Done,
    /// A test that is being taken down, or whose taking down failed or was killed.
    CleaningUp,
    /// A test that was taken down.
    CleanedUp,
}

/// A step of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRun {
    /// The group it is in.
    pub group: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub what: StepKind,
    /// How it is.
    pub state: StepState,
    /// How often it was begun.
    pub tries: u32,
    /// When it was begun last, nanoseconds since 1970.
    pub began_unix_ns: Option<u64>,
    /// When it ended.
    pub ended_unix_ns: Option<u64>,
    /// What it said last, or why it failed.
    pub message: Option<String>,
}

/// What a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// A script.
    Script,
    /// A person does it.
    Manual,
    /// A machine comes up.
    Machine,
}

/// How a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// Not begun.
    Open,
    /// It runs, or its run was killed.
    Running,
    /// A person was asked.
    Waiting,
    /// It is done.
    Done,
    /// It failed.
    Failed,
    /// It failed, and may.
    Passed,
    /// A person said to go on without it.
    Skipped,
}

impl StepState {
    /// Whether the plan may go on after it.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Passed | Self::Skipped)
    }
}

/// A disk of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRun {
    /// The disk, as the vault names it.
    pub disk: DiskName,
    /// Its machine.
    pub machine: String,
    /// The point it comes up at, as soon as that is known.
    pub point: Option<Chosen>,
    /// As soon as it is up.
    pub up: Option<Up>,
}

/// A recovery point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// Its cycle.
    pub cycle: CycleNo,
    /// Its identity.
    pub point: PointId,
    /// The instant it shows, nanoseconds since 1970.
    pub cut_unix_ns: u64,
}

/// A disk that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Up {
    /// Its name on this host.
    pub local: DiskName,
    /// The file it is served as.
    pub served: PathBuf,
    /// Its loop device.
    pub device: Option<String>,
    /// Since when, nanoseconds since 1970.
    pub since_unix_ns: u64,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    format: String,
    version: u32,
    crc32c: u32,
    body: serde_json::Value,
}

/// The bytes of a run's file.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn encode(run: &Run) -> io::Result<Vec<u8>> {
    let body = serde_json::to_value(run)?;
    let crc32c = crc32c::crc32c(&serde_json::to_vec(&body)?);
    let envelope = Envelope { format: FORMAT.into(), version: VERSION, crc32c, body };
    Ok(serde_json::to_vec_pretty(&envelope)?)
}

/// Reads a run's file.
///
/// # Errors
/// Anything but a whole run of a known version.
pub fn decode(bytes: &[u8]) -> io::Result<Run> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let envelope: Envelope = serde_json::from_slice(bytes)?;
    if (envelope.format.as_str(), envelope.version) != (FORMAT, VERSION) {
        let found = format!("{} version {}", envelope.format, envelope.version);
        return Err(wrong(format!("it is {found}, not {FORMAT} version {VERSION}")));
    }
    if crc32c::crc32c(&serde_json::to_vec(&envelope.body)?) != envelope.crc32c {
        return Err(wrong("its checksum differs".into()));
    }
    Ok(serde_json::from_value(envelope.body)?)
}

/// Where runs of a plan are kept, held by one process.
#[derive(Debug)]
pub struct RunFolder {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl RunFolder {
    fn of(state_root: &Path, plan: &DiskName) -> PathBuf {
        state_root.join(".plans").join(plan.as_str())
    }

    /// Takes the folder of a plan; `None` if somebody else is at it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn take(state_root: &Path, plan: &DiskName) -> io::Result<Option<Self>> {
        let dir = Self::of(state_root, plan);
        own_dir(&dir)?;
        atomic::tidy(&dir);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(dir.join("lock"))?;
        Ok(lock::exclusive(lock, lock::LOOKED_AT_WAIT)?.map(|lock| Self { dir, _lock: lock }))
    }

    /// The last run of a plan, anyone who is at it.
    ///
    /// # Errors
    /// If its file is damaged.
    pub fn last(state_root: &Path, plan: &DiskName) -> io::Result<Option<Run>> {
        let path = Self::of(state_root, plan).join("run.json");
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let Some(bytes) = record::read(&path, RUN_BYTES_MAX)? else { return Ok(None) };
        decode(&bytes).map_err(named).map(Some)
    }

    /// Replaces what is known of the run, durably.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, run: &Run) -> io::Result<()> {
        self.replace("run.json", &encode(run)?)
    }

    /// Keeps a report; the oldest go.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_report(&self, run: &Run, report: &[u8]) -> io::Result<PathBuf> {
        // In the order of their beginnings.
        let name = format!("report-{:020}-{}.json", run.began_unix_ns, run.run);
        self.replace(&name, report)?;
        let mut reports: Vec<PathBuf> = fs::read_dir(&self.dir)?
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("report-"))
            .map(|entry| entry.path())
            .collect();
        reports.sort();
        for old in &reports[..reports.len().saturating_sub(REPORTS_KEPT)] {
            fs::remove_file(old)?;
        }
        Ok(self.dir.join(name))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        atomic::replace(&self.dir.join(name), bytes, Durability::Durable)
    }

    /// What scripts print; emptied for a new run.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn log(&self, new: bool) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(self.log_path())
            .and_then(|file| if new { file.set_len(0).map(|()| file) } else { Ok(file) })
    }

    /// Where that is.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Where the run's file is, for scripts.
    #[must_use]
    pub fn run_path(&self) -> PathBuf {
        self.dir.join("run.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn sample() -> Run {
        Run {
            run: PointId::from_bytes([5; 16]),
            plan: "shop".parse().unwrap(),
            text: "name = \"shop\"".into(),
            kind: Kind::Test,
            point: "latest".into(),
            began_unix_ns: 1_700_000_000_000_000_000,
            ended_unix_ns: None,
            state: RunState::Waiting,
            steps: vec![StepRun {
                group: "db".into(),
                name: "network".into(),
                what: StepKind::Manual,
                state: StepState::Waiting,
                tries: 1,
                began_unix_ns: Some(1_700_000_000_000_000_001),
                ended_unix_ns: None,
                message: None,
            }],
            disks: vec![DiskRun {
                disk: "db".parse().unwrap(),
                machine: "db".into(),
                point: Some(Chosen {
                    cycle: CycleNo(7),
                    point: PointId::from_bytes([7; 16]),
                    cut_unix_ns: 1_699_999_999_000_000_000,
                }),
                up: None,
            }],
        }
    }

    #[test]
    fn round_trip_and_golden() {
        let bytes = encode(&sample()).unwrap();
        assert_eq!(decode(&bytes).unwrap(), sample());
        let golden = include_str!("../../tests/golden/plan-run.json");
        assert_eq!(String::from_utf8(bytes).unwrap(), golden.trim_end());
    }

    #[test]
    fn one_at_a_time_and_the_last_run_stays() {
        let dir = tempfile::tempdir().unwrap();
        let plan = sample().plan;
        assert_eq!(RunFolder::last(dir.path(), &plan).unwrap(), None);
        let folder = RunFolder::take(dir.path(), &plan).unwrap().unwrap();
        assert!(RunFolder::take(dir.path(), &plan).unwrap().is_none());
        folder.save(&sample()).unwrap();
        assert_eq!(RunFolder::last(dir.path(), &plan).unwrap(), Some(sample()));
        for began_unix_ns in 0..REPORTS_KEPT as u64 + 5 {
            folder.keep_report(&Run { began_unix_ns, ..sample() }, b"{}").unwrap();
        }
        let reports = fs::read_dir(&folder.dir).unwrap().flatten();
        let reports = reports.filter(|e| e.file_name().to_string_lossy().starts_with("report"));
        assert_eq!(reports.count(), REPORTS_KEPT);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_run_or_an_error(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }

        #[test]
        fn a_flipped_byte_is_seen(at in 0usize..1000, bit in 0u8..8) {
            let mut bytes = encode(&sample()).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(read) = decode(&bytes) {
                // White space, or a letter of a key that says the same.
                prop_assert_eq!(read, sample());
            }
        }
    }
}
