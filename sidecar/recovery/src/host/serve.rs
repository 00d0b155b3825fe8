//! Having a disk served by a driver in the background.

use std::path::{Path, PathBuf};

use backstay_types::{CycleNo, DiskName};

use super::{HostError, LocalHost};

/// What a disk is served from.
#[derive(Debug, Clone, Copy)]
pub enum From<'a> {
    /// A backing; none of a mounted point, which knows its own.
    Backing(Option<&'a Path>),
    /// A recovery point that is new here.
    Point {
        /// Its vault.
        vault: &'a str,
        /// The disk's name there.
        disk: &'a DiskName,
        /// Which.
        cycle: CycleNo,
    },
    /// A replica that was taken over, on its target.
    TakenOver(&'a Path),
}

/// How it is served, if not as ever.
#[derive(Debug, Clone, Copy, Default)]
pub struct How<'a> {
    /// Where it is mounted.
    pub mount_point: Option<&'a Path>,
    /// How the backing is read and written: buffered, direct or auto.
    pub engine: Option<&'a str>,
    /// It is being handed over, and served for its last cycle.
    pub handing_over: bool,
}

impl LocalHost<'_> {
    /// Has a disk served; the file that is served.
    ///
    /// # Errors
    /// Why it is not.
    pub fn serve(
        &self,
        name: &DiskName,
        from: From<'_>,
        how: &How<'_>,
    ) -> Result<PathBuf, HostError> {
        let mut args = vec!["--name".to_owned(), name.to_string()];
        let mut flag = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
        let text = |path: &Path| path.display().to_string();
        if let Some(at) = how.mount_point {
            flag("--mount-point", text(at));
        }
        if let Some(engine) = how.engine {
            flag("--engine", engine.to_owned());
        }
        if let From::Point { vault, disk, cycle } = from {
            flag("--vault", vault.to_owned());
            flag("--disk", disk.to_string());
            flag("--point", cycle.to_string());
        }
        if how.handing_over {
            args.push("--handing-over".into());
        }
        match from {
            From::Backing(backing) => args.extend(backing.map(text)),
            From::TakenOver(target) => args.extend(["--taken-over".into(), text(target)]),
            From::Point { .. } => {}
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.program.mount(self.roots, &args)
    }
}
