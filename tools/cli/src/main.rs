//! The `backstay` command: one file a verb, each thin over the crates that do the work.

mod certificates;
mod complete;
mod context;
mod drilling;
mod error;
mod exit;
mod health;
#[cfg(test)]
mod help;
mod helper;
mod json;
mod man;
mod metering;
mod table;
mod verbs;
mod waiting;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::CompleteEnv;

use context::{Context, Globals};
use error::Result;

/// Disaster recovery for Linux disks: protect a disk, ship its changes in cycles to a vault, get
/// any recovery point back byte for byte.
#[derive(Parser)]
#[command(name = "backstay", version, arg_required_else_help = true, after_help = exit::help())]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Protect(verbs::protect::Protect),
    Unprotect(verbs::unprotect::Unprotect),
    Mount(verbs::mount::Mount),
    Attach(verbs::attach::Attach),
    Detach(verbs::detach::Detach),
    Umount(verbs::umount::Umount),
    Hydrate(verbs::hydrate::Hydrate),
    Grow(verbs::grow::Grow),
    Rename(verbs::rename::Rename),
    Move(verbs::relocate::Move),
    Cycle(verbs::cycle::Cycle),
    Sidecar(verbs::sidecar::Sidecar),
    Hooks(verbs::hooks::Hooks),
    Points(verbs::points::Points),
    Verify(verbs::verify::Verify),
    Restore(verbs::restore::Restore),
    Failover(verbs::failover::Failover),
    Failback(verbs::failback::Failback),
    Replica(verbs::replica::ReplicaVerb),
    Drill(verbs::drill::Drill),
    Plan(verbs::plan::Plan),
    Export(verbs::export::Export),
    Import(verbs::import::Import),
    Resync(verbs::resync::Resync),
    Pin(verbs::pin::Pin),
    Unpin(verbs::unpin::Unpin),
    Holds(verbs::holds::Holds),
    Prune(verbs::prune::Prune),
    Status(verbs::status::Status),
    Metrics(verbs::metrics::Metrics),
    Jobs(verbs::jobs::Jobs),
    Key(verbs::key::Key),
    Vault(verbs::vault::VaultVerb),
    Resume(verbs::resume::Resume),
    Set(verbs::set::Set),
    Group(verbs::group::Group),
    Gateway(verbs::gateway::GatewayVerb),
    Pki(verbs::pki::Pki),
    Doctor(verbs::doctor::Doctor),
    Completions(verbs::docs::Completions),
    Man(verbs::docs::Man),
    #[command(hide = true)]
    Guardian(verbs::guardian::Guardian),
}

impl Verb {
    /// Whether it goes on as a service: what it says goes to a log, where a line for every try is too much.
    fn serves(&self) -> bool {
        matches!(
            self,
            Self::Sidecar(_)
                | Self::Mount(_)
                | Self::Attach(_)
                | Self::Replica(_)
                | Self::Group(_)
                | Self::Gateway(_)
        )
    }

    /// Whether it moves no data, or only what a person waits for: it gives up soon when a store does not answer.
    fn only_looks(&self) -> bool {
        matches!(
            self,
            Self::Points(_)
                | Self::Holds(_)
                | Self::Pin(_)
                | Self::Unpin(_)
                | Self::Unprotect(_)
                | Self::Rename(_)
                | Self::Failover(_)
        )
    }
}

fn main() -> ExitCode {
    if let Some(helper) = helper::called_as() {
        return helper.run();
    }
    exit::leave_when_nobody_reads();
    let offered = || complete::with_words(Cli::command());
    CompleteEnv::with_factory(offered).var(complete::VARIABLE).completer("backstay").complete();
    // It may know keys and passphrases: no core, and nobody but root looks into its memory.
    let _ = nix::sys::prctl::set_dumpable(false);
    if let Some(path) = std::env::args_os().find(|argument| argument.to_str().is_none()) {
        eprintln!(
            "backstay: {} is not UTF-8: Backstay writes paths into JSON and text, which can hold no other. \
             Rename the file or folder, or reach it through a symbolic link in a folder with a plain name. \
             Nothing was changed",
            path.to_string_lossy()
        );
        return ExitCode::from(exit::USAGE);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return exit::wrong_usage(&e),
    };
    let json = cli.globals.json;
    exit::report(run(cli), json)
}

fn run(cli: Cli) -> Result<()> {
    if let Verb::Guardian(verb) = cli.verb {
        return verb.run();
    }
    cli.globals.start_logging(!cli.verb.serves());
    // It works without a configuration that can be read.
    if let Verb::Doctor(verb) = cli.verb {
        return verb.run(cli.globals);
    }
    let mut context = Context::new(cli.globals)?;
    // For a gateway it is sources that wait, and try again by themselves.
    if cli.verb.only_looks() || matches!(cli.verb, Verb::Gateway(_)) {
        context.somebody_waits();
    }
    match cli.verb {
        Verb::Protect(verb) => verb.run(&context),
        Verb::Unprotect(verb) => verb.run(&context),
        Verb::Mount(verb) => verb.run(&context),
        Verb::Attach(verb) => verb.run(&context),
        Verb::Detach(verb) => verb.run(&context),
        Verb::Umount(verb) => verb.run(&context),
        Verb::Hydrate(verb) => verb.run(&context),
        Verb::Grow(verb) => verb.run(&context),
        Verb::Rename(verb) => verb.run(&context),
        Verb::Move(verb) => verb.run(&context),
        Verb::Cycle(verb) => verb.run(&context),
        Verb::Sidecar(verb) => verb.run(&context),
        Verb::Hooks(verb) => verb.run(&context),
        Verb::Points(verb) => verb.run(&context),
        Verb::Verify(verb) => verb.run(&context),
        Verb::Restore(verb) => verb.run(&context),
        Verb::Failover(verb) => verb.run(&context),
        Verb::Failback(verb) => verb.run(&context),
        Verb::Replica(verb) => verb.run(&context),
        Verb::Drill(verb) => verb.run(&context),
        Verb::Plan(verb) => verb.run(&context),
        Verb::Export(verb) => verb.run(&context),
        Verb::Import(verb) => verb.run(&context),
        Verb::Resync(verb) => verb.run(&context),
        Verb::Pin(verb) => verb.run(&context),
        Verb::Unpin(verb) => verb.run(&context),
        Verb::Holds(verb) => verb.run(&context),
        Verb::Prune(verb) => verb.run(&context),
        Verb::Status(verb) => verb.run(&context),
        Verb::Metrics(verb) => verb.run(&context),
        Verb::Jobs(verb) => verb.run(&context),
        Verb::Key(verb) => verb.run(&context),
        Verb::Vault(verb) => verb.run(&context),
        Verb::Resume(verb) => verb.run(&context),
        Verb::Set(verb) => verb.run(&context),
        Verb::Group(verb) => verb.run(&context),
        Verb::Gateway(verb) => verb.run(&context),
        Verb::Pki(verb) => verb.run(&context),
        Verb::Completions(verb) => verb.run(),
        Verb::Man(verb) => verb.run(Cli::command()),
        Verb::Doctor(verb) => verb.run(context.globals),
        Verb::Guardian(verb) => verb.run(),
    }
}
