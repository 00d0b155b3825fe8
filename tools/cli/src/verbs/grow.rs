//! `backstay grow`: give a served disk a larger size.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

use backstay_format::control::{Request, Response};
use backstay_front::control::{ClientError, ControlClient};
use backstay_host::loop_device;
use backstay_recovery::host::devices::loop_devices;
use backstay_types::{ByteLen, Classified, DiskName};
use bytesize::ByteSize;
use clap::Args;

use super::mount::refuse_mounted_point;
use super::target::size;
use crate::context::Context;
use crate::error::{Context as _, Result, bail, refused};

/// Make a disk larger while it is in use
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay grow db --size 20GiB    the backing file is extended, too
  lvextend -L 20G /dev/vg/db && backstay grow db   a device
  backstay grow db --size 20GiB && resize2fs /dev/loop0

Attached loop devices follow automatically. In QEMU, run block_resize; for the file system on the disk, run \
resize2fs or xfs_growfs. Existing recovery points keep their size. A disk never shrinks. If a cycle is running, the \
command waits for its end.

To grow a disk that is not mounted, extend its backing and run backstay mount --grow. Growing it while it is mounted \
is better: the changed file then needs no resync.")]
pub struct Grow {
    /// The disk's name
    name: DiskName,
    /// The new size [default: that of its backing]
    #[arg(long, value_name = "SIZE")]
    size: Option<ByteSize>,
}

impl Grow {
    pub fn run(self, context: &Context) -> Result<()> {
        refuse_mounted_point(context, &self.name)?;
        let (name, wanted) = (&self.name, self.size.map(|size| ByteLen(size.as_u64())));
        let mut driver = context.driver(name).with_context(|| {
            format!("disk {name} can only grow while it is mounted (or see mount --grow)")
        })?;
        take_lease(&mut driver)?;
        let served = driver.status()?.served;
        let (from, to) = match driver.ask(&Request::Grow { size: wanted })? {
            Response::Grown { from, to } => (from, to),
            _ => return Err(ClientError::Confused.into()),
        };
        // The cycles may go on.
        drop(driver);
        see_size(&served, to)?;
        let devices = loop_devices(&served)?;
        for device in &devices {
            tell_loop_device(device)?;
        }
        if context.globals.json {
            return context.print_json(&serde_json::json!({
                "name": name, "from_bytes": from, "size_bytes": to, "devices": devices,
            }));
        }
        if !context.globals.quiet {
            let what = if from == to { "has its size already:" } else { "has grown to" };
            println!("disk {name} {what} {} (before: {})", size(to.0), size(from.0));
            for device in devices {
                println!("{device} has the new size");
            }
        }
        Ok(())
    }
}

/// Waits until no cycle runs: anyone who has the lease may cut, and only one has it.
fn take_lease(driver: &mut ControlClient) -> Result<()> {
    let client = format!("backstay grow, process {}", std::process::id());
    let mut said = false;
    loop {
        // The driver itself waits a while before it says that it is busy.
        match driver.ask(&Request::Lease { client: client.clone() }) {
            Err(e) if e.is_refusal() => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!("waiting for the end of a cycle: {e}");
                }
            }
            Ok(Response::Leased { .. }) => return Ok(()),
            Ok(_) => return Err(ClientError::Confused.into()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Makes the kernel take over the served file's size. What it says when it is asked (`stat`) is the driver's
/// word, and
/// it does not believe that itself as long as requests are under way: reads behind the old end would then
/// give nothing,
/// which a loop device turns into an error. A size that is set it believes at once; the driver lets that be
/// done if it
/// is the one the disk has.
fn see_size(served: &Path, to: ByteLen) -> Result<()> {
    let failed = || {
        format!(
            "the disk has grown, but the kernel was not told the size of {}; run this again",
            served.display()
        )
    };
    let mut file = File::options().write(true).open(served).with_context(failed)?;
    file.set_len(to.0).with_context(failed)?;
    // Where a file ends, for seeking, is what the kernel believes.
    let seen = file.seek(SeekFrom::End(0)).with_context(failed)?;
    if seen != to.0 {
        bail!("{}: it says {seen} bytes", failed());
    }
    Ok(())
}

fn tell_loop_device(device: &str) -> Result<()> {
    loop_device::follow_size(Path::new(device)).map_err(|e| {
        let message = format!(
            "the disk has grown, but {device} was not told: {e}; run losetup --set-capacity {device}"
        );
        refused(message)
    })
}
