//! What every verb gets: the global flags, the configuration, and where things are.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backstay_engine::config::Config;
use backstay_engine::reload::ConfigWatch;
use backstay_front::control::ControlClient;
use backstay_front::paths::Roots;
use backstay_recovery::failover::rules::{self, NameState, Verb};
use backstay_recovery::host::{self, LocalHost, Program};
use backstay_types::DiskName;
use backstay_vault::Vaults;
use backstay_vault::encrypt::settings::Prompt;
use clap::Args;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use zeroize::Zeroizing;

use crate::error::{Context as _, Result, bail};
use crate::verbs::progress::Shown;

/// Flags of every verb.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Configuration file [default: /etc/backstay/backstay.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE", env = "BACKSTAY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Directory of persistent state [default: /var/lib/backstay]
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Directory of sockets and bitmaps, on tmpfs [default: /run/backstay or /dev/shm/backstay]
    #[arg(long, global = true, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
    /// Log more (twice: everything)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Print errors only
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// How long to retry when the object store does not answer [default: the configuration's; at most 30s for
    /// commands that only look or decide]
    #[arg(long, global = true, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub vault_wait: Option<Duration>,
}

/// Connecting to a store that is there takes no longer, when somebody waits for it.
const CONNECTS_WITHIN: Duration = Duration::from_secs(5);
/// How long a command that only looks or decides tries a store again.
const LOOKS_FOR: Duration = Duration::from_secs(30);

impl Globals {
    /// Messages go to standard error; `BACKSTAY_LOG` overrides the flags. Somebody who waits is told what for.
    pub fn start_logging(&self, somebody_waits: bool) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => "error",
            (_, 0) => "warn",
            (_, 1) => "info",
            _ => "debug",
        };
        let filter_of_user =
            EnvFilter::try_from_env("BACKSTAY_LOG").unwrap_or_else(|_| level.into());
        // What these say below that level may hold secrets: a proxy's password, headers, signed URLs.
        // Whatever is asked for, they do not say it.
        let quiet = ["reqwest", "hyper", "hyper_util", "h2", "rustls", "object_store"];
        let filter = quiet.into_iter().filter_map(|of| format!("{of}=warn").parse().ok());
        let filter = filter.fold(filter_of_user, EnvFilter::add_directive);
        let said = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .with_filter(filter);
        let waits = (somebody_waits && !self.quiet).then(crate::waiting::layer);
        tracing_subscriber::registry().with(said).with(waits).init();
    }
}

/// How to ask for a vault's passphrase, if there is somebody to ask.
fn prompt() -> Option<Arc<Prompt>> {
    let ask = |vault: &str| {
        rpassword::prompt_password(format!("Passphrase of vault {vault}: ")).map(Zeroizing::new)
    };
    (std::io::stdin().is_terminal() && std::io::stderr().is_terminal())
        .then(|| Arc::new(ask) as Arc<Prompt>)
}

/// What a verb works with.
pub struct Context {
    /// The global flags.
    pub globals: Globals,
    /// The configuration.
    pub config: Config,
    /// Where state and sockets are.
    pub roots: Roots,
}

impl Context {
    /// Reads the configuration; flags win over it. What lies where state and sockets are must not be
    /// somebody else's: it is believed, and partly carried out.
    pub fn new(globals: Globals) -> Result<Self> {
        let config = Config::load(globals.config.as_deref())?;
        let context = Self::with(globals, config);
        context.roots.check()?;
        Ok(context)
    }

    /// With a configuration that was read already; flags win over it.
    pub fn with(globals: Globals, mut config: Config) -> Self {
        if let Some(wait) = globals.vault_wait {
            config.store.retry_timeout = wait;
            config.store.connect_timeout = config.store.connect_timeout.min(wait);
        }
        let state = globals.state_dir.clone().or(config.state_dir.clone());
        let runtime = globals.runtime_dir.clone().or(config.runtime_dir.clone());
        let roots = Roots::new(state, runtime);
        config.reach(Vaults::default().remembering_in(&roots.state), prompt());
        let mut context = Self { roots, globals, config };
        let disks = context.disks();
        context.config.add_protections(&context.roots, &disks);
        context
    }

    /// Somebody waits for a command that moves no data: a store that does not answer is not tried for minutes.
    pub fn somebody_waits(&mut self) {
        if self.globals.vault_wait.is_none() {
            let store = &mut self.config.store;
            store.retry_timeout = store.retry_timeout.min(LOOKS_FOR);
            store.connect_timeout = store.connect_timeout.min(CONNECTS_WITHIN);
            let settings = store.settings();
            self.config.vaults = self.config.vaults.clone().with_store(settings);
        }
    }

    /// The same for a thread that goes on looking, with the settings of the file alone.
    pub fn of_service(&self) -> Self {
        let config = Config::clone(self.watch().config());
        Self { globals: self.globals.clone(), config, roots: self.roots.clone() }
    }

    /// The configuration, as it changes.
    pub fn watch(&self) -> ConfigWatch {
        // It adds what `backstay protect` was told itself, as disks come and go.
        let config = Config::load(self.globals.config.as_deref()).unwrap_or(self.config.clone());
        let config = Config { vaults: self.config.vaults.clone(), ..config };
        ConfigWatch::new(self.globals.config.clone(), config)
    }

    /// The configuration's file, if one was named.
    pub fn config_file(&self) -> Option<PathBuf> {
        self.globals.config.clone()
    }

    /// Connects to the driver of a disk.
    pub fn driver(&self, name: &DiskName) -> Result<ControlClient> {
        ControlClient::connect(&self.roots.disk(name).control_socket())
            .with_context(|| format!("disk {name}"))
    }

    /// Asks whether a verb may be carried out in the state that a name is in, before anything is changed.
    pub fn may(&self, name: &DiskName, verb: Verb) -> Result<NameState> {
        Ok(rules::check(&self.roots, name, verb)?)
    }

    /// Whether a progress bar should be drawn.
    pub fn shows_progress(&self) -> bool {
        !self.globals.quiet && !self.globals.json && std::io::stderr().is_terminal()
    }

    /// This host, for work on its disks; a person who waits sees how far it is.
    pub fn host(&self) -> LocalHost<'_> {
        LocalHost {
            roots: &self.roots,
            config: &self.config,
            program: self.program(),
            told: Box::new(Shown::new(self)),
        }
    }

    /// This program, with the same configuration.
    pub fn program(&self) -> Program {
        let flag = |file: &PathBuf| ["--config".into(), file.into()];
        Program {
            path: std::env::current_exe().unwrap_or_else(|_| "backstay".into()),
            flags: self.globals.config.iter().flat_map(flag).collect(),
        }
    }

    /// Prints a value as JSON.
    pub fn print_json(&self, value: &impl serde::Serialize) -> Result<()> {
        let value = crate::json::with_units(serde_json::to_value(value).map_err(io::Error::from)?);
        println!("{}", serde_json::to_string_pretty(&value).map_err(io::Error::from)?);
        Ok(())
    }
}

impl Context {
    /// The same, or why they cannot be seen: a reader without rights must not take that for "none".
    ///
    /// # Errors
    /// If a folder of disks is there and cannot be looked into.
    pub fn visible_disks(&self) -> Result<Vec<DiskName>> {
        for dir in [&self.roots.state, &self.roots.runtime] {
            match std::fs::read_dir(dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| {
                        format!("the disks of this host cannot be seen: {}", dir.display())
                    });
                }
                _ => {}
            }
        }
        Ok(self.disks())
    }

    /// Whether this host has a disk of that name.
    ///
    /// # Errors
    /// If that cannot be seen.
    pub fn has_disk(&self, name: &DiskName) -> Result<bool> {
        let state = self.roots.disk(name).state;
        state.try_exists().with_context(|| {
            format!("whether there is a disk {name} cannot be seen: {}", state.display())
        })
    }

    /// Refuses a name that this host does not know.
    ///
    /// # Errors
    /// If there is no such disk, or that cannot be seen.
    pub fn expect_disk(&self, name: &DiskName) -> Result<()> {
        // One that is served is there, whatever became of its state.
        match self.has_disk(name)? || self.roots.disk(name).control_socket().exists() {
            true => Ok(()),
            false => bail!(
                "there is no disk {name} on this host (looked in {}); see backstay status",
                self.roots.state.display()
            ),
        }
    }

    /// All disks of this host: those that have state, and those that are served.
    pub fn disks(&self) -> Vec<DiskName> {
        host::disks(&self.roots)
    }
}
