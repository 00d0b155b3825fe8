//! `backstay attach`: mount a disk and attach a loop device to it.

use std::path::{Path, PathBuf};

use backstay_recovery::failover::rules::Verb;
use backstay_recovery::mount::{self, MountedPoint};
use backstay_types::DiskName;
use clap::Args;

use super::mount::{How, Of, backing_of, options, refuse_mounted_point, start};
use crate::context::Context;
use crate::error::{Result, bail, refused};

/// Protect a disk and attach a block device to it: mount and losetup in one
#[derive(Args)]
#[command(after_help = "\
Examples:
  dev=$(backstay attach /srv/data.img --name data)
  mkfs.ext4 $dev && mount $dev /mnt
  umount /mnt && backstay detach data
  backstay attach --disk data --point latest --name data-test \\
      --vault file:///mnt/backup/vault

If a driver already serves the disk, only the loop device is attached. If the loop device exists, too, it is \
printed.")]
pub struct Attach {
    /// The file or block device that holds the disk [default: the one that held it last; with --vault, --disk or --point,
    /// a recovery point is served]
    #[arg(conflicts_with_all = ["vault", "disk", "point", "overlay", "cache", "hydrate"])]
    backing: Option<PathBuf>,
    /// The disk's name on this host [default: --disk]
    #[arg(long, required_unless_present = "disk")]
    name: Option<DiskName>,
    #[command(flatten)]
    of: Of,
    #[command(flatten)]
    how: How,
}

impl Attach {
    pub fn run(self, context: &Context) -> Result<()> {
        let Served { name, file: served, .. } = self.serve(context)?;
        let device = context.host().device_of(&name, &served, self.how.is_read_only())?.path;
        if context.globals.json {
            return context.print_json(
                &serde_json::json!({ "name": name, "device": device, "served": served }),
            );
        }
        println!("{device}");
        Ok(())
    }

    /// Has the disk served, by the driver that runs or by a new one in the background.
    pub fn serve(&self, context: &Context) -> Result<Served> {
        if let Some(name) = &self.name {
            context.may(name, Verb::Attach)?;
        }
        match backing_of(context, &self.backing, self.name.as_ref(), &self.of)? {
            Some(backing) => self.file(context, &backing),
            None => self.point(context),
        }
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.how.is_read_only()
    }

    fn file(&self, context: &Context, path: &Path) -> Result<Served> {
        let Some(name) = self.name.clone() else { bail!("no disk was named: use --name") };
        refuse_mounted_point(context, &name)?;
        let backing = path.canonicalize().unwrap_or(path.to_owned());
        let running = context.driver(&name).ok().and_then(|mut driver| driver.status().ok());
        match running {
            Some(_) if self.how.compares() => Err(refused(format!(
                "disk {name} is served already; to compare it: backstay resync {name} --now. Nothing was \
                 changed"
            ))),
            Some(status) if status.backing == backing => {
                Ok(Served { name, file: status.served, started: false })
            }
            Some(status) => bail!(
                "disk {name} is served from {} already, not from {}",
                status.backing.display(),
                backing.display()
            ),
            None => {
                let file = start(options(context, path, &name, &self.how)?)?;
                Ok(Served { name, file, started: true })
            }
        }
    }

    fn point(&self, context: &Context) -> Result<Served> {
        let (name, of) = self.of.options(context, self.name.as_ref())?;
        let paths = context.roots.disk(&name);
        let running = context.driver(&name).ok().and_then(|mut driver| driver.status().ok());
        match (running, MountedPoint::load(&name, &paths)?) {
            (Some(status), Some(mounted)) => {
                of.fits(&name, &mounted)?;
                Ok(Served { name, file: status.served, started: false })
            }
            (Some(status), None) => {
                bail!("disk {name} is served from {} already", status.backing.display())
            }
            (None, _) => {
                let file = mount::start(options(context, Path::new(""), &name, &self.how)?, of)?;
                Ok(Served { name, file, started: true })
            }
        }
    }
}

/// A disk that is served.
pub struct Served {
    /// Its name.
    pub name: DiskName,
    /// The file it is served as.
    pub file: PathBuf,
    /// Whether its driver was started for this.
    pub started: bool,
}
