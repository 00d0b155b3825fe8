//! `mount -t backstay`: what mount(8) and umount(8) call as `/sbin/mount.backstay` and
//! `/sbin/umount.backstay`, links to this program. docs/reference/packaging.md says how the two find each other.

mod mount;
mod options;
mod umount;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;

/// Exit codes, as mount(8) has them.
mod code {
    /// Wrong usage, or not permitted.
    pub const USAGE: u8 = 1;
    /// The mount failed.
    pub const FAILED: u8 = 32;
}

/// In a disk's runtime directory: `mount -t backstay` started the driver that has this process id, so
/// `umount` ends it.
const STARTED_BY_MOUNT: &str = "started-by-mount";

/// Which helper this process is.
pub enum Helper {
    /// Of mount(8).
    Mount,
    /// Of umount(8).
    Umount,
}

/// Which helper this process was started as, if any.
pub fn called_as() -> Option<Helper> {
    let program = std::env::args_os().next()?;
    match Path::new(&program).file_name()?.to_str()? {
        "mount.backstay" => Some(Helper::Mount),
        "umount.backstay" => Some(Helper::Umount),
        _ => None,
    }
}

impl Helper {
    /// Does what was asked; prints what failed.
    pub fn run(self) -> ExitCode {
        let done = match self {
            Self::Mount => mount::Args::try_parse().map(mount::run),
            Self::Umount => umount::Args::try_parse().map(umount::run),
        };
        match done {
            Ok(Ok(code)) => ExitCode::from(code),
            Ok(Err(e)) => {
                eprintln!("{}: {e:#}", self.name());
                ExitCode::from(code::FAILED)
            }
            Err(e) => {
                let _ = e.print();
                ExitCode::from(if e.use_stderr() { code::USAGE } else { 0 })
            }
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Mount => "mount.backstay",
            Self::Umount => "umount.backstay",
        }
    }
}
