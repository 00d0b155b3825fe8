//! Exit codes, and the one place that prints a failure.

use std::process::ExitCode;

use backstay_engine::CycleError;
use backstay_engine::home::HomeError;
use backstay_engine::service::ServiceError;
use backstay_front::control::ClientError;
use backstay_front::life::DriverError;
use backstay_front::offline::OfflineError;
use backstay_gateway::pki::PkiError;
use backstay_host::in_use::InUse;
use backstay_host::own_dir::OwnDirError;
use backstay_host::record::RecordError;
use backstay_recovery::drill::DrillError;
use backstay_recovery::failover::FailoverError;
use backstay_recovery::host::HostError;
use backstay_recovery::image::ImageError;
use backstay_recovery::mount::MountError;
use backstay_recovery::plan::RunError;
use backstay_recovery::replica::ReplicaError;
use backstay_recovery::restore::RestoreError;
use backstay_vault::VaultError;

/// Exit code of wrong usage.
pub const USAGE: u8 = 2;

/// The exit codes of every verb.
pub const CODES: [(u8, &str); 5] = [
    (0, "done"),
    (1, "failed"),
    (USAGE, "wrong usage"),
    (3, "refused to stay safe (in use, would overwrite)"),
    (4, "damaged data was found"),
];

/// The last part of `--help`.
pub fn help() -> String {
    let codes = CODES.map(|(code, meaning)| format!("{code} {meaning}")).join("; ");
    format!(
        "Exit codes: {codes}. With --json a failure is one line of JSON on standard error.\n\n\
         Documentation: man backstay, man backstay.toml, /usr/share/doc/backstay"
    )
}

/// Something was not done because it would not have been safe.
#[derive(Debug)]
pub struct Refused(pub String);

/// Damaged data was found.
#[derive(Debug)]
pub struct Damaged(pub String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Refused {}
impl std::error::Error for Damaged {}

/// Has a command whose output nobody reads any more (`| head`) end without a word, as other programs
/// do. Drivers and sidecars must not die of a socket that was closed, so SIGPIPE stays ignored.
pub fn leave_when_nobody_reads() {
    const AS_BY_SIGPIPE: i32 = 128 + 13;
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if text.starts_with("failed printing to stdout") && text.contains("os error 32") {
            std::process::exit(AS_BY_SIGPIPE);
        }
        say(panic);
    }));
}

/// Ends the command with this code; all that was to be said has been said.
#[derive(Debug)]
pub struct Silent(pub u8);

impl std::fmt::Display for Silent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}", self.0)
    }
}
impl std::error::Error for Silent {}

/// Prints what failed, for people or as JSON, and makes the exit code of it.
pub fn report(result: anyhow::Result<()>, json: bool) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if let Some(Silent(code)) = error.downcast_ref() {
        return ExitCode::from(*code);
    }
    let code = code(&error);
    match json {
        true => eprintln!("{}", as_json(&said(&error), code)),
        false => eprintln!("backstay: {}", said(&error)),
    }
    ExitCode::from(code)
}

/// Ends a command that was called wrongly, or that was asked for help.
pub fn wrong_usage(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().take_while(|arg| arg != "--").any(|arg| arg == "--json");
    if json && error.use_stderr() {
        eprintln!("{}", as_json(error.to_string().trim(), USAGE));
        return ExitCode::from(USAGE);
    }
    error.exit()
}

/// A failure for programs, in one line.
fn as_json(message: &str, code: u8) -> serde_json::Value {
    let kind = match code {
        2 => "usage",
        3 => "refused",
        4 => "damaged",
        _ => "failed",
    };
    serde_json::json!({ "error": { "kind": kind, "exit_code": code, "message": message } })
}

/// All an error says, once: many messages say what their cause said already.
fn said(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| {
        match said.is_empty() {
            true => cause,
            false if said.contains(&cause) => said,
            false => format!("{said}: {cause}"),
        }
    })
}

/// The vault's error that an error is, or stands for: one that another passes on as it is does not show up among
/// its causes.
fn vault_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a VaultError> {
    macro_rules! passed_on_by {
        ($($by:ident),*) => {
            || None$(.or_else(|| match error.downcast_ref::<$by>()? {
                $by::Vault(e) => Some(e),
                _ => None,
            }))*
        };
    }
    let passed_on =
        passed_on_by!(CycleError, MountError, FailoverError, ImageError, DrillError, ReplicaError);
    error.downcast_ref::<VaultError>().or_else(passed_on)
}

fn code(error: &anyhow::Error) -> u8 {
    let any = |test: &dyn Fn(&(dyn std::error::Error + 'static)) -> bool| error.chain().any(test);
    let refused = any(&|e| {
        e.is::<Refused>()
            || vault_error(e).is_some_and(VaultError::is_refusal)
            || e.downcast_ref::<OwnDirError>().is_some_and(OwnDirError::is_refusal)
            || e.downcast_ref::<ClientError>().is_some_and(ClientError::is_busy)
            || e.downcast_ref::<CycleError>().is_some_and(CycleError::is_busy)
            || e.downcast_ref::<CycleError>().is_some_and(CycleError::is_refusal)
            || e.is::<HomeError>()
            || matches!(e.downcast_ref(), Some(ServiceError::Running(_)))
            || e.downcast_ref::<DriverError>().is_some_and(DriverError::is_busy)
            || e.downcast_ref::<MountError>().is_some_and(MountError::is_refusal)
            || e.downcast_ref::<OfflineError>().is_some_and(OfflineError::is_refusal)
            || e.downcast_ref::<ReplicaError>().is_some_and(ReplicaError::is_refusal)
            || e.downcast_ref::<ImageError>().is_some_and(ImageError::is_refusal)
            || e.downcast_ref::<RestoreError>().is_some_and(RestoreError::is_refusal)
            || e.is::<InUse>()
            || matches!(e.downcast_ref(), Some(RunError::Refused(_)))
            || e.downcast_ref::<PkiError>().is_some_and(PkiError::is_refusal)
            || e.downcast_ref::<DrillError>().is_some_and(DrillError::is_refusal)
            || e.downcast_ref::<FailoverError>().is_some_and(FailoverError::is_refusal)
            || e.downcast_ref::<HostError>().is_some_and(HostError::is_refusal)
    });
    let damaged = any(&|e| {
        e.is::<Damaged>()
            || vault_error(e).is_some_and(VaultError::is_damage)
            || e.downcast_ref::<RecordError>().is_some_and(RecordError::is_damage)
            || e.downcast_ref::<ReplicaError>().is_some_and(ReplicaError::is_damage)
            || e.downcast_ref::<CycleError>().is_some_and(CycleError::is_damage)
            || e.downcast_ref::<MountError>().is_some_and(MountError::is_damage)
            || e.downcast_ref::<backstay_engine::group::GroupError>().is_some_and(|e| e.is_damage())
            || e.downcast_ref::<ImageError>().is_some_and(ImageError::is_damage)
            || e.downcast_ref::<FailoverError>().is_some_and(FailoverError::is_damage)
            || e.downcast_ref::<HostError>().is_some_and(HostError::is_damage)
            || e.downcast_ref::<RestoreError>().is_some_and(RestoreError::is_damage)
    });
    match (refused, damaged) {
        (true, _) => 3,
        (_, true) => 4,
        _ => 1,
    }
}
