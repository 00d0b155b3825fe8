//! `mount.backstay`: a disk is served, a loop device attached, the file system on it mounted.

use std::path::{Path, PathBuf};

use backstay_front::control::ControlClient;
use backstay_host::child::program;
use backstay_host::{loop_device, mounts};
use backstay_recovery::host::Ending;
use backstay_recovery::host::ending::stop;
use backstay_types::DiskName;
use clap::Parser;

use super::options::{self, Options};
use super::{STARTED_BY_MOUNT, code};
use crate::context::Context;
use crate::error::{Context as _, Result, bail};

/// Mount the file system on a protected disk; mount -t backstay calls it
#[derive(Parser)]
#[command(
    name = "mount.backstay",
    version,
    after_help = "\
Example of /etc/fstab:
  db  /mnt/db  backstay  fs=ext4,_netdev,x-systemd.requires=backstay-disk@db.service  0 0"
)]
pub struct Args {
    /// The disk's name, or its backing and name=NAME among the options
    spec: String,
    /// Where to mount
    dir: PathBuf,
    /// Options, with commas between them
    #[arg(short, default_value = "")]
    options: String,
    /// Accept options the file system does not know
    #[arg(short)]
    sloppy: bool,
    /// Only look whether it makes sense
    #[arg(short)]
    fake: bool,
    /// Write no table of mounts
    #[arg(short)]
    no_table: bool,
    /// Say more
    #[arg(short)]
    verbose: bool,
    /// Another mount namespace
    #[arg(short = 'N')]
    namespace: Option<String>,
    /// The type mount(8) was called with
    #[arg(short = 't')]
    fs_type: Option<String>,
}

/// Mounts; the exit code.
pub fn run(args: Args) -> Result<u8> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("mount.backstay: only root may mount a protected disk");
        return Ok(code::USAGE);
    }
    if args.namespace.is_some() {
        bail!("mounting into another namespace (-N) is not possible: use nsenter");
    }
    let mut options = options::parse(&args.spec, &args.options)?;
    if args.fake {
        return Ok(0);
    }
    let dir = args.dir.canonicalize().with_context(|| format!("{}", args.dir.display()))?;
    if options.remount {
        return remount(&args, &options, &dir);
    }
    options.globals.start_logging(false);
    let context = Context::new(std::mem::take(&mut options.globals))?;
    mount(&args, &options, &dir, &context)
}

fn mount(args: &Args, options: &Options, dir: &Path, context: &Context) -> Result<u8> {
    let served = options.attach.serve(context)?;
    let name = &served.name;
    let mut undo = Undo { context, name, attached: None, started: served.started };
    let device = context.host().device_of(name, &served.file, options.attach.is_read_only())?;
    undo.attached = device.is_new.then(|| device.path.clone());
    let device = device.path;
    let there = mounts::at(&mounts::read()?, dir).is_some_and(|e| e.source == Path::new(&device));
    if there {
        // `mount -a` cannot know: it compares fstab's first column with the device.
        if args.verbose {
            println!("{} is mounted on {} already", name, dir.display());
        }
        undo.forget();
        return Ok(0);
    }
    // Both are only for the table of mounts. `helper` makes umount(8) call umount.backstay; `_netdev` has
    // systemd unmount it before local file systems go and the driver with them (mount(8) does not hand it on
    // to helpers, so it is not known what fstab says).
    let mut with = options.rest.clone();
    with.extend(["helper=backstay".to_owned(), "_netdev".to_owned()]);
    let mut command = program("mount");
    command.args(["-t", &options.fs, "-o", &with.join(",")]);
    command.args(args.flags()).arg(&device).arg(dir);
    let mounted = command.status().context("mount could not be started (package mount)")?;
    if !mounted.success() {
        eprintln!(
            "mount.backstay: disk {name}: its file system was not mounted; the disk is as it was. A \
             new disk has none yet: mkfs.{} $(backstay attach --name {name})",
            if options.fs == "auto" { "ext4" } else { &options.fs }
        );
        return Ok(mounted.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(code::FAILED));
    }
    // From here on the file system has the device, and it goes with it, anyone who unmounts.
    if let Some(device) = undo.attached.take() {
        loop_device::detach(Path::new(&device))?;
    }
    if served.started {
        let pid = context.driver(name)?.status()?.pid;
        let mark = context.roots.disk(name).runtime.join(STARTED_BY_MOUNT);
        std::fs::write(&mark, format!("{pid}\n")).with_context(|| format!("{}", mark.display()))?;
    }
    undo.forget();
    Ok(0)
}

/// Changes the mount that is there.
fn remount(args: &Args, options: &Options, dir: &Path) -> Result<u8> {
    let table = mounts::read()?;
    let entry =
        mounts::at(&table, dir).with_context(|| format!("{} is not mounted", dir.display()))?;
    let with = [&["remount".to_owned()], &options.rest[..]].concat().join(",");
    let mut command = program("mount");
    command.args(["-i", "-o", &with]).args(args.flags()).arg(&entry.source).arg(dir);
    let done = command.status().context("mount could not be started (package mount)")?;
    Ok(done.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(code::FAILED))
}

impl Args {
    /// The flags that are the file system's, too.
    fn flags(&self) -> Vec<&'static str> {
        let flags = [(self.sloppy, "-s"), (self.no_table, "-n"), (self.verbose, "-v")];
        flags.into_iter().filter_map(|(set, flag)| set.then_some(flag)).collect()
    }
}

/// What is taken back when the mount fails.
struct Undo<'a> {
    context: &'a Context,
    name: &'a DiskName,
    attached: Option<String>,
    started: bool,
}

impl Undo<'_> {
    fn forget(&mut self) {
        (self.attached, self.started) = (None, false);
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        let name = self.name;
        if let Some(device) = &self.attached
            && let Err(e) = loop_device::detach(Path::new(device))
        {
            eprintln!("mount.backstay: {e}");
        }
        if self.started {
            let driver: Result<ControlClient> = self.context.driver(name);
            if let Err(e) = driver.and_then(|driver| Ok(stop(name, driver, Ending::default())?)) {
                eprintln!("mount.backstay: {e:#}; its driver is still running");
            }
        }
    }
}
