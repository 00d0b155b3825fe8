//! The configuration: one TOML file, every setting with a default.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstay_front::paths::Roots;
use backstay_types::{ByteLen, Class, Classified, DiskName};
use backstay_vault::encrypt::settings::Prompt;
use backstay_vault::format::segment::CHUNK_SHIFTS;
use backstay_vault::retain::Keep;
use backstay_vault::{GroupName, Vaults};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::drills::DrillSettings;
use crate::encryption::Encryption;
use crate::gateway::GatewayConfig;
use crate::group::{GroupConfig, TlsConfig};
use crate::home::{Home, same_url};
use crate::hooks::HookSettings;
use crate::metrics::MetricsConfig;
use crate::protection::Protection;
use crate::schedule::Retry;
use crate::scrub::Every;
use crate::store::Store;
use crate::throttle::{Rate, ThrottleSettings};
use crate::windows::{WeeklyWindows, Zone};

/// Where the file is, unless told otherwise.
pub const PATH_DEFAULT: &str = "/etc/backstay/backstay.toml";
/// Where recovery points go, unless told otherwise.
pub const VAULT_DEFAULT: &str = "file:///var/lib/backstay/vault";

/// Bytes a second at which points are read back, unless told otherwise.
const SCRUB_LIMIT: u64 = 20_000_000;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },
    /// It says something that makes no sense; the message shows where.
    #[error("configuration {path}: {}", with_example(source))]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        source: Box<toml::de::Error>,
    },
    /// A disk follows a policy that is not there.
    #[error(
        "configuration {path}: disk {disk} follows policy {policy:?}, which is not there; add \
             [policy.{policy}]"
    )]
    NoPolicy {
        /// The file.
        path: PathBuf,
        /// The disk.
        disk: DiskName,
        /// The policy.
        policy: String,
    },
}

impl Classified for ConfigError {
    fn class(&self) -> Class {
        match self {
            Self::Read { source, .. } => source.class(),
            Self::Parse { .. } | Self::NoPolicy { .. } => Class::Person,
        }
    }
}

/// The configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where state that lasts is kept.
    pub state_dir: Option<PathBuf>,
    /// Where sockets and bitmaps are, on tmpfs.
    pub runtime_dir: Option<PathBuf>,
    /// Where recovery points go.
    pub vault: String,
    /// Whether vaults on this host are meant: then that they are is no warning.
    pub allow_local_vault: bool,
    /// From one cut to the next.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// From one point of a disk to the next while nobody writes to it; `None`: it gets none.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Option<Duration>,
    /// Cycles at a time in the service.
    pub slots: usize,
    /// Cycles at a time of disks whose backings are on one device.
    pub slots_per_device: usize,
    /// When a resync may begin by itself; any time if there are no windows.
    pub resync_window: WeeklyWindows,
    /// How long to wait after failures; the last one repeats.
    pub retry: Retry,
    /// Which points stay: `all 2h, hourly 2d, daily 30d`; all of them if it says nothing.
    pub keep: Option<Keep>,
    /// Most space for blocks preserved during a cycle; half of each disk if it says nothing.
    pub change_log_limit: Option<ByteSize>,
    /// What points have to be; whatever the disk's hooks can do if it says nothing.
    pub consistency: Option<Consistency>,
    /// How points are tried by themselves; not at all if it says nothing.
    pub drill: Option<DrillSettings>,
    /// How often points are read back in the background; never if it says nothing.
    pub scrub: Option<Every>,
    /// How fast points are read back.
    pub scrub_limit: Rate,
    /// Settings for many disks, by name.
    pub policy: BTreeMap<String, Policy>,
    /// Whose clock windows follow; the host's if none is named.
    pub time_zone: Option<Zone>,
    /// When no cycle begins by itself.
    pub blackout: WeeklyWindows,
    /// How much all disks together may send.
    pub throttle: ThrottleSettings,
    /// How to ship.
    pub ship: Ship,
    /// How object stores are reached.
    pub store: Store,
    /// What vaults are opened with, as [`Config::reach`] made it.
    #[serde(skip)]
    pub vaults: Vaults,
    /// The gateway on this host.
    pub gateway: GatewayConfig,
    /// Where the sidecar tells its metrics.
    pub metrics: MetricsConfig,
    /// What this host has to open vaults with.
    pub encryption: Encryption,
    /// Settings of single disks.
    pub disk: BTreeMap<DiskName, DiskConfig>,
    /// Consistency groups.
    pub group: BTreeMap<GroupName, GroupConfig>,
    /// How hosts know each other.
    pub tls: Option<TlsConfig>,
}

/// What points have to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As after a power loss: hooks are not run.
    Crash,
    /// Quiet: without its hooks there is no point.
    Application,
}

/// How to ship.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ship {
    /// zstd level; negative ones are faster.
    pub zstd_level: i32,
    /// About how large a segment becomes.
    pub segment_size: ByteSize,
    /// Threads that checksum and compress; 0 for one a processor.
    pub compress_threads: usize,
    /// Segments uploaded at a time.
    pub upload_parallel: usize,
    /// What one checksum of a resync stands for: a power of two, 4 KiB to 256 KiB.
    pub chunk_size: ByteSize,
}

/// Settings for the disks that follow it; what it does not say is as for all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// From one cut to the next.
    #[serde(with = "humantime_serde")]
    pub interval: Option<Duration>,
    /// From one point to the next while nobody writes to the disk.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Option<Duration>,
    /// When no cycle begins by itself.
    pub blackout: Option<WeeklyWindows>,
    /// When a resync may begin by itself.
    pub resync_window: Option<WeeklyWindows>,
    /// How long to wait after failures.
    pub retry: Option<Retry>,
    /// Which points stay.
    pub keep: Option<Keep>,
    /// Most space for blocks preserved during a cycle.
    pub change_log_limit: Option<ByteSize>,
    /// What points have to be.
    pub consistency: Option<Consistency>,
    /// How points are tried by themselves.
    pub drill: Option<DrillSettings>,
    /// How often points are read back.
    pub scrub: Option<Every>,
}

/// Settings of one disk, where they differ from its policy's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskConfig {
    /// Where its recovery points go.
    pub vault: Option<String>,
    /// The vault that was set for it although its points are in another one.
    #[serde(skip)]
    pub vault_ignored: Option<String>,
    /// The policy it follows.
    pub policy: Option<String>,
    /// From one cut to the next.
    #[serde(with = "humantime_serde")]
    pub interval: Option<Duration>,
    /// From one point to the next while nobody writes to the disk.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Option<Duration>,
    /// When no cycle begins by itself.
    pub blackout: Option<WeeklyWindows>,
    /// When a resync may begin by itself.
    pub resync_window: Option<WeeklyWindows>,
    /// How long to wait after failures.
    pub retry: Option<Retry>,
    /// Which points stay.
    pub keep: Option<Keep>,
    /// Most space for blocks preserved during a cycle.
    pub change_log_limit: Option<ByteSize>,
    /// What points have to be.
    pub consistency: Option<Consistency>,
    /// How points are tried by themselves.
    pub drill: Option<DrillSettings>,
    /// How often points are read back.
    pub scrub: Option<Every>,
    /// What makes its points application-consistent.
    pub hooks: HookSettings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: None,
            runtime_dir: None,
            vault: VAULT_DEFAULT.into(),
            allow_local_vault: false,
            interval: Duration::from_secs(300),
            heartbeat: None,
            slots: 2,
            slots_per_device: 2,
            resync_window: WeeklyWindows::outside_business_hours(),
            retry: Retry::default(),
            keep: None,
            change_log_limit: None,
            consistency: None,
            drill: None,
            scrub: None,
            scrub_limit: Rate::bytes_per_second(SCRUB_LIMIT),
            policy: BTreeMap::new(),
            time_zone: None,
            blackout: WeeklyWindows::default(),
            throttle: ThrottleSettings::default(),
            ship: Ship::default(),
            store: Store::default(),
            vaults: Vaults::default(),
            gateway: GatewayConfig::default(),
            metrics: MetricsConfig::default(),
            encryption: Encryption::default(),
            disk: BTreeMap::new(),
            group: BTreeMap::new(),
            tls: None,
        }
    }
}

impl Default for Ship {
    fn default() -> Self {
        Self {
            zstd_level: 1,
            segment_size: ByteSize::mib(32),
            compress_threads: 0,
            upload_parallel: 2,
            chunk_size: ByteSize::kib(64),
        }
    }
}

impl Ship {
    /// Threads that checksum and compress.
    #[must_use]
    pub fn compress_threads(&self) -> usize {
        match self.compress_threads {
            0 => std::thread::available_parallelism().map_or(2, usize::from).min(8),
            n => n.min(64),
        }
    }

    /// log2 of the sectors in a checksum chunk; what is not allowed becomes the nearest that is.
    #[must_use]
    pub fn chunk_shift(&self) -> u32 {
        let sectors = (self.chunk_size.as_u64() / 512).clamp(1, 1 << 40);
        sectors.ilog2().clamp(*CHUNK_SHIFTS.start(), *CHUNK_SHIFTS.end())
    }
}

/// A setting of a disk: its own, or its policy's.
macro_rules! setting {
    ($config:ident, $name:ident, $field:ident) => {
        $config.disk.get($name).and_then(|disk| {
            let policy = disk.policy.as_ref().and_then(|policy| $config.policy.get(policy));
            disk.$field.as_ref().or_else(|| policy?.$field.as_ref())
        })
    };
}

/// What is wrong, and how a duration is written: the parser says only that one was expected.
fn with_example(source: &toml::de::Error) -> String {
    let text = source.to_string();
    match source.message().ends_with("expected a duration") {
        true => format!("{}, such as 30s, 5m, 2h or 1d\n", text.trim_end()),
        false => text,
    }
}

impl Config {
    /// Has vaults be opened from now on as this configuration says; `from` is what they were opened with before.
    pub fn reach(&mut self, from: Vaults, prompt: Option<Arc<Prompt>>) {
        let keys = self.encryption.settings(prompt);
        self.vaults = from.with_store(self.store.settings()).with_keys(keys);
    }

    /// Reads the configuration: the file given, or the one in `/etc` if it is there, or none.
    ///
    /// # Errors
    /// If a file that was given is missing, or what it says makes no sense.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, must_exist) = match path {
            Some(path) => (path, true),
            None => (Path::new(PATH_DEFAULT), false),
        };
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
                    path: path.into(),
                    source: Box::new(source),
                })?;
                config.check(path)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must_exist => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read { path: path.into(), source }),
        }
    }

    /// Policies that disks follow must be there.
    fn check(self, path: &Path) -> Result<Self, ConfigError> {
        for (disk, settings) in &self.disk {
            if let Some(policy) = settings.policy.as_ref().filter(|p| !self.policy.contains_key(*p))
            {
                return Err(ConfigError::NoPolicy {
                    path: path.into(),
                    disk: disk.clone(),
                    policy: policy.clone(),
                });
            }
        }
        Ok(self)
    }

    /// Where a disk's recovery points go.
    #[must_use]
    pub fn vault_of(&self, name: &DiskName) -> &str {
        self.disk.get(name).and_then(|disk| disk.vault.as_deref()).unwrap_or(&self.vault)
    }

    /// Whose clock windows follow.
    #[must_use]
    pub fn zone(&self) -> Zone {
        self.time_zone.clone().unwrap_or_default()
    }

    /// The policy a disk follows.
    #[must_use]
    pub fn policy_of(&self, name: &DiskName) -> Option<&str> {
        self.disk.get(name)?.policy.as_deref()
    }

    /// When no cycle of a disk begins by itself.
    #[must_use]
    pub fn blackout_of(&self, name: &DiskName) -> &WeeklyWindows {
        setting!(self, name, blackout).unwrap_or(&self.blackout)
    }

    /// When a resync of a disk may begin by itself; any time if there are no windows.
    #[must_use]
    pub fn resync_window_of(&self, name: &DiskName) -> &WeeklyWindows {
        setting!(self, name, resync_window).unwrap_or(&self.resync_window)
    }

    /// How long a disk waits after failures.
    #[must_use]
    pub fn retry_of(&self, name: &DiskName) -> &Retry {
        setting!(self, name, retry).unwrap_or(&self.retry)
    }

    /// Which of a disk's points stay.
    #[must_use]
    pub fn keep_of(&self, name: &DiskName) -> Option<&Keep> {
        setting!(self, name, keep).or(self.keep.as_ref())
    }

    /// How a disk's points are tried by themselves, if they are.
    #[must_use]
    pub fn drill_of(&self, name: &DiskName) -> Option<&DrillSettings> {
        setting!(self, name, drill).or(self.drill.as_ref()).filter(|drill| !drill.every.is_zero())
    }

    /// From one time that a disk's points are read back to the next, if they are.
    #[must_use]
    pub fn scrub_of(&self, name: &DiskName) -> Option<Duration> {
        setting!(self, name, scrub).or(self.scrub.as_ref()).and_then(|every| every.interval())
    }

    /// Adds what `backstay protect` was told of the disks of this host, below what the file says, and where their
    /// points are, above it. Where either cannot be read, nothing is shipped ([`crate::home::check`]).
    pub fn add_protections(&mut self, roots: &Roots, names: &[DiskName]) {
        for name in names {
            let state = roots.disk(name).state;
            if let Ok(Some(protection)) = Protection::load(&state) {
                let disk = self.disk.entry(name.clone()).or_default();
                disk.vault = disk.vault.take().or(Some(protection.vault));
                disk.policy = disk.policy.take().or(protection.policy);
            }
            // Where its points are counts before all that: a setting does not move them. One that cannot be read
            // stops its cycles ([`crate::home::check`]).
            if let Ok(Some(home)) = Home::load(&state) {
                let disk = self.disk.entry(name.clone()).or_default();
                let set = disk.vault.take().filter(|set| !same_url(set, &home.url));
                disk.vault_ignored = set.or(disk.vault_ignored.take());
                disk.vault = Some(home.url);
            }
        }
    }

    /// What makes a disk's points application-consistent. Where they have to be, a hook that fails
    /// costs the point; where crash-consistent ones are wanted, none is run.
    #[must_use]
    pub fn hooks_of(&self, name: &DiskName) -> HookSettings {
        let hooks = self.disk.get(name).map(|disk| disk.hooks.clone()).unwrap_or_default();
        match setting!(self, name, consistency).or(self.consistency.as_ref()) {
            None => hooks,
            Some(Consistency::Crash) => HookSettings::default(),
            Some(Consistency::Application) => HookSettings { require: true, ..hooks },
        }
    }

    /// Most space for a disk's preserved blocks, if it is set here.
    #[must_use]
    pub fn change_log_limit_of(&self, name: &DiskName) -> Option<ByteLen> {
        let limit = setting!(self, name, change_log_limit).or(self.change_log_limit.as_ref());
        limit.map(|limit| ByteLen(limit.as_u64()))
    }

    /// From one cut of a disk to the next.
    #[must_use]
    pub fn interval_of(&self, name: &DiskName) -> Duration {
        setting!(self, name, interval).copied().unwrap_or(self.interval)
    }

    /// From one point of a disk to the next while nobody writes to it; `None`: it gets none.
    #[must_use]
    pub fn heartbeat_of(&self, name: &DiskName) -> Option<Duration> {
        setting!(self, name, heartbeat).copied().or(self.heartbeat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_durations_and_sizes_as_they_like() {
        let config: Config = toml::from_str(
            "interval = \"30s\"\n[ship]\nsegment_size = \"8MiB\"\n[disk.db1]\ninterval = \"5s\"",
        )
        .unwrap();
        assert_eq!(config.interval, Duration::from_secs(30));
        assert_eq!(config.ship.segment_size, ByteSize::mib(8));
        let db1 = "db1".parse().unwrap();
        assert_eq!(config.interval_of(&db1), Duration::from_secs(5));
        assert_eq!(config.vault_of(&db1), VAULT_DEFAULT);
    }

    #[test]
    fn a_disk_may_keep_other_points_than_the_rest() {
        let config: Config =
            toml::from_str("keep = \"all 2h, daily 30d\"\n[disk.db1]\nkeep = \"last 3\"").unwrap();
        let of = |name: &str| config.keep_of(&name.parse().unwrap()).unwrap().to_string();
        assert_eq!((of("db1"), of("db2")), ("last 3".into(), "all 2h, daily 30days".into()));
        assert_eq!(Config::default().keep_of(&"db1".parse().unwrap()), None);
        let wrong = toml::from_str::<Config>("interval = \"5s\"\nkeep = \"all 2h, dayly 30d\"");
        let text = wrong.unwrap_err().to_string();
        assert!(text.contains("line 2") && text.contains("character 9"), "{text}");
    }

    #[test]
    fn a_mistake_is_shown_where_it_is() {
        let error = toml::from_str::<Config>("vault = \"/v\"\nintervall = \"5s\"").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("line 2") && text.contains("intervall"), "{text}");
        assert!(toml::from_str::<Config>("[disk.\"../x\"]\n").is_err());
        let text = "slots = 1\nblackout = \"Monday;7:00;7h | Tuesday;25:00;1h\"\n";
        let error = toml::from_str::<Config>(text).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("character 26"), "{error}");
    }

    #[test]
    fn a_wrong_duration_is_answered_with_an_example() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "slots = 1\ninterval = \"5 parsecs\"\n").unwrap();
        let text = Config::load(Some(&path)).unwrap_err().to_string();
        assert!(text.contains("line 2") && text.contains("such as 30s, 5m"), "{text}");
    }

    #[test]
    fn policies_are_for_many_disks() {
        let text = "interval = \"1h\"\n[policy.gold]\ninterval = \"5s\"\nkeep = \"all 1h\"\n\
                    retry = [\"10s\", \"1m\"]\n[disk.a]\npolicy = \"gold\"\n\
                    [disk.b]\npolicy = \"gold\"\ninterval = \"7s\"\n[disk.c]\n";
        let config: Config = toml::from_str(text).unwrap();
        let of = |name: &str| config.interval_of(&name.parse().unwrap()).as_secs();
        assert_eq!([of("a"), of("b"), of("c"), of("d")], [5, 7, 3600, 3600]);
        let a = "a".parse().unwrap();
        assert_eq!(config.keep_of(&a).unwrap().to_string(), "all 1h");
        assert_eq!(config.retry_of(&a).wait(9).as_secs(), 60);
        let text = "[policy.p]\nconsistency = \"application\"\nchange_log_limit = \"1GiB\"\n\
                    [disk.a]\npolicy = \"p\"\nhooks.pre = [\"x\"]\n\
                    [disk.b]\npolicy = \"p\"\nconsistency = \"crash\"\nhooks.pre = [\"x\"]\n";
        let config: Config = toml::from_str(text).unwrap();
        let b = "b".parse().unwrap();
        assert_eq!(config.change_log_limit_of(&a), Some(ByteLen(1 << 30)));
        assert!(config.hooks_of(&a).require && config.hooks_of(&b).is_none());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "[disk.a]\npolicy = \"silver\"\n").unwrap();
        let error = Config::load(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("silver") && error.contains("disk a"), "{error}");
        std::fs::write(&path, "[disk.a]\nintervall = \"5s\"\n").unwrap();
        let error = Config::load(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("intervall"), "{error}");
    }

    #[test]
    fn windows_limits_and_hooks() {
        let config: Config = toml::from_str(
            "time_zone = \"Europe/Berlin\"\nblackout = \"Monday;7:00;7h\"\n\
             [throttle]\nlimit = \"50MiB/s\"\n\
             [[throttle.timetable]]\nwhen = \"Monday;8:00;10h\"\nlimit = \"5MiB/s\"\n\
             [disk.db]\nblackout = \"\"\n\
             [disk.db.hooks]\nfreeze = [\"/mnt/db\"]\ntimeout = \"5s\"\n",
        )
        .unwrap();
        let (db, web) = ("db".parse().unwrap(), "web".parse().unwrap());
        assert_eq!(config.zone().to_string(), "Europe/Berlin");
        assert!(config.blackout_of(&db).is_empty());
        assert_eq!(config.blackout_of(&web).to_string(), "Monday;7:00;7h");
        assert_eq!(config.hooks_of(&db).timeout, Duration::from_secs(5));
        assert!(!config.hooks_of(&db).is_none() && config.hooks_of(&web).is_none());
        let again: Config = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }
}
