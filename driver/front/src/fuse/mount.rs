//! Mounting and unmounting, by the kernel's own calls: no helper program is needed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use backstay_host::loop_device;
use backstay_track::env::Env;
use fuser::{Config, Notifier, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount as sys_mount, umount2};
use nix::sys::statfs::statfs;

use super::DiskFs;
use super::attr::DISK;

/// A mounted disk and the thread that runs its event loops.
pub struct Mounted {
    /// Where.
    pub mount_point: PathBuf,
    session: JoinHandle<io::Result<()>>,
    notifier: Notifier,
}

/// What users of a mount may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Read and write.
    Write,
}

/// Mounts a disk and starts its event loops.
///
/// # Errors
/// If the mount point cannot be made or used.
pub fn mount<E: Env>(
    fs: DiskFs<E>,
    mount_point: &Path,
    event_loops: usize,
    access: Access,
    on_end: impl FnOnce() + Send + 'static,
) -> io::Result<Mounted> {
    drop_stale(mount_point)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(mount_point)?;
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|e| {
        io::Error::new(e.kind(), format!("/dev/fuse: {e} (is the fuse module loaded?)"))
    })?;
    let user = nix::unistd::geteuid();
    let data = format!(
        "fd={},rootmode=40000,user_id={user},group_id={},default_permissions",
        device.as_raw_fd(),
        nix::unistd::getegid()
    );
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    if access == Access::Read {
        flags |= MsFlags::MS_RDONLY;
    }
    sys_mount(Some("backstay"), mount_point, Some("fuse.backstay"), flags, Some(data.as_str()))?;
    let mut config = Config::default();
    config.n_threads = Some(event_loops);
    config.clone_fd = true;
    config.acl = SessionACL::Owner;
    let served = Session::from_fd(fs, OwnedFd::from(device), SessionACL::Owner, config).and_then(
        |session| {
            let notifier = session.notifier();
            let serve = move || {
                let ended = session.run();
                on_end();
                ended
            };
            Ok((std::thread::Builder::new().name("fuse".into()).spawn(serve)?, notifier))
        },
    );
    match served {
        Ok((session, notifier)) => {
            Ok(Mounted { mount_point: mount_point.into(), session, notifier })
        }
        Err(e) => {
            let _ = umount2(mount_point, MntFlags::MNT_DETACH);
            Err(e)
        }
    }
}

impl Mounted {
    /// Unmounts. Nobody has the disk open: anyone who keeps the folder busy gets it out of sight.
    ///
    /// # Errors
    /// If it is not mounted any more.
    pub fn unmount(&self) -> io::Result<()> {
        match umount2(&self.mount_point, MntFlags::empty()) {
            Err(Errno::EBUSY) => Ok(umount2(&self.mount_point, MntFlags::MNT_DETACH)?),
            done => Ok(done?),
        }
    }

    /// What tells the kernel that the disk has another size: it must ask again. It keeps what it was
    /// told for an hour.
    pub fn size_changed(&self) -> impl Fn() + Send + Sync + 'static + use<> {
        let notifier = self.notifier.clone();
        // An offset below zero means: the attributes, not the content.
        move || match notifier.inval_inode(DISK, -1, 0) {
            // Nobody has looked at the file yet, so the kernel knows nothing of it.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => tracing::warn!("telling the kernel of the new size: {e}"),
            Ok(()) => {}
        }
    }

    /// Waits until the event loops have ended.
    ///
    /// # Errors
    /// What ended them, if it was not an unmount.
    pub fn join(self) -> io::Result<()> {
        self.session.join().unwrap_or_else(|_| Err(io::Error::other("an event loop panicked")))
    }
}

/// Takes away what a driver that died has left: a mount that answers "not connected", and the loop devices over it,
/// which nobody could tell from others once the mount is gone. One that is in use goes with its last user.
///
/// # Errors
/// If a driver that lives has the mount point, or the kernel refuses.
pub fn drop_stale(mount_point: &Path) -> io::Result<()> {
    let here = mount_point.to_string_lossy();
    let ours = |line: &str| {
        let mut fields = line.split(' ');
        fields.next() == Some("backstay") && fields.next() == Some(here.as_ref())
    };
    // Line by line: with a thousand disks the table is long, and what is read at once stays in this
    // process's locked memory for ever.
    let mut found = 0;
    for line in BufReader::new(File::open("/proc/self/mounts")?).lines() {
        found += usize::from(ours(&line?));
    }
    for _ in 0..found {
        // Not stat(2): what the kernel remembers of the attributes outlives the driver.
        match statfs(mount_point) {
            Err(Errno::ENOTCONN) => {
                for device in loop_device::on_dead(&mount_point.join("disk"))? {
                    match loop_device::free(Path::new(&device)) {
                        Ok(()) => tracing::info!("{device} is detached: its driver died"),
                        Err(e) => tracing::warn!("detaching {device}: {e}"),
                    }
                }
                umount2(mount_point, MntFlags::MNT_DETACH)?;
            }
            _ => {
                return Err(io::Error::other(format!("{here} is mounted by another driver")));
            }
        }
    }
    Ok(())
}
