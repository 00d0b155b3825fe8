//! Exit codes, and the one place that prints a failure.

use std::process::ExitCode;

use backstay_types::Class;

use crate::error::{Ending, Error, Result};

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

/// Prints what failed, for people or as JSON, and makes the exit code of it.
pub fn report(result: Result<()>, json: bool) -> ExitCode {
    let code = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Error { ending: Ending::Silent(code), .. }) => code,
        Err(error @ Error { ending: Ending::Failed(class), .. }) => {
            let code = code(class);
            match json {
                true => eprintln!("{}", as_json(&error.to_string(), code)),
                false => eprintln!("backstay: {error}"),
            }
            code
        }
    };
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

/// The exit code of a class: nothing else counts.
fn code(class: Class) -> u8 {
    match class {
        Class::Retry | Class::Person | Class::Bug => 1,
        Class::Refused => 3,
        Class::Damaged => 4,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use backstay_engine::CycleError;
    use backstay_host::record::RecordError;
    use backstay_recovery::failover::FailoverError;
    use backstay_recovery::host::HostError;
    use backstay_types::Classified;
    use backstay_vault::VaultError;

    use super::*;
    use crate::error::Context as _;

    #[test]
    fn every_class_has_its_exit_code() {
        let codes = Class::ALL.map(code);
        assert_eq!(codes, [1, 1, 3, 4, 1]);
        assert!(codes.iter().all(|code| CODES.iter().any(|(known, _)| known == code)));
    }

    fn passed_on(error: CycleError) -> Error {
        let host = HostError::At { doing: "making a point".into(), source: Box::new(error.into()) };
        let failed = FailoverError::from(host).while_doing("handing over".into());
        Err::<(), _>(failed).context("disk d").with_context(|| "plan p").unwrap_err()
    }

    #[test]
    fn an_error_that_others_pass_on_keeps_its_class() {
        let damaged = || VaultError::Inconsistent { object: "o".into(), reason: "r".into() };
        let cases = [
            (CycleError::Vault(VaultError::Full { object: "o".into() }), Class::Retry),
            (VaultError::NotFound { object: "o".into() }.into(), Class::Person),
            (CycleError::Busy { name: "d".parse().unwrap(), by: "p".into() }, Class::Refused),
            (damaged().into(), Class::Damaged),
            (CycleError::NewestDamaged { name: "d".into(), source: damaged() }, Class::Damaged),
            (CycleError::Broken("stage"), Class::Bug),
        ];
        for (error, class) in cases {
            assert_eq!(error.class(), class, "{error}");
            let (said, passed) = (error.to_string(), passed_on(error));
            assert_eq!(passed.ending, Ending::Failed(class), "{passed}");
            assert!(passed.to_string().starts_with("plan p: disk d: handing over: "), "{passed}");
            assert_eq!(passed.to_string().matches(&said).count(), 1, "said once: {passed}");
        }
    }

    #[test]
    fn an_error_that_the_system_passes_on_keeps_its_class() {
        let damaged = RecordError::Damaged { path: "/r".into(), reason: "it is empty".into() };
        let passed = Error::from(io::Error::from(damaged));
        assert_eq!(passed.ending, Ending::Failed(Class::Damaged), "{passed}");
        let late = io::Error::from(io::ErrorKind::TimedOut);
        assert_eq!(Error::from(late).ending, Ending::Failed(Class::Retry));
    }
}
