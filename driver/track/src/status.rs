//! The status of a protected disk.

use std::path::PathBuf;

use backstay_format::control::{DriverStatus, OpenCut, Untracked};
use backstay_format::superblock::Resync;
use backstay_types::{ByteLen, DiskName};

use crate::env::Env;
use crate::sync::atomic::Ordering;
use crate::sync::lock;
use crate::{Backing, ProtectedDisk};

/// How a disk is served.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The disk's name.
    pub name: DiskName,
    /// The backing file or device.
    pub backing: PathBuf,
    /// The file that is served.
    pub served: PathBuf,
    /// The number of its file system.
    pub served_on: u64,
    /// How the backing is read and written.
    pub engine: String,
}

impl<E: Env, B: Backing> ProtectedDisk<E, B> {
    /// The current status. Leaves out what only the control server knows: the lease, faults of the backing
    /// and the supported requests.
    pub fn status(&self, identity: &Identity) -> DriverStatus {
        let identity = identity.clone();
        let admin = lock(&self.admin);
        let newest_closed = self.newest_closed(&admin);
        let live = self.live();
        let resync = admin.resync_current.or(admin.resync_closed);
        let (closed, current) = (live.closed.as_ref(), &live.current);
        let fuzzy: u64 = admin.fuzzy.iter().map(|epoch| epoch.dirty_sectors()).sum();
        let closed_sectors = fuzzy + closed.map_or(0, |c| c.epoch.dirty_sectors());
        let mut counters = self.sums.counters();
        counters.intent_commits += current.intents.commits();
        counters.preserved_sectors += closed.map_or(0, |c| c.preserved_sectors());
        let geometry = self.geometry();
        let sectors = geometry.sectors();
        let mut announced = admin.meta.get().announced.clone();
        DriverStatus {
            name: identity.name,
            disk: self.id,
            pid: std::process::id(),
            backing: identity.backing,
            served: identity.served,
            size: geometry.size,
            found: self.found,
            started_unix_ns: self.started_unix_ns,
            engine: identity.engine,
            epoch: current.no,
            open_cut: newest_closed.map(|epoch| OpenCut {
                epoch,
                cut_unix_ns: closed.map_or(0, |c| c.cut_unix_ns),
                dirty_sectors: closed_sectors,
                lost: closed.and_then(|c| c.lost()),
            }),
            lease: None,
            base: admin.meta.get().base,
            announced: announced.pop(),
            announced_before: announced,
            coarse: admin.meta.get().coarse,
            untracked: admin.untracked.clone(),
            io_trouble: self.sums.io_trouble(),
            io_waits: self.sums.waits.oldest(self.env.now_unix_ns()),
            resync,
            resync_no: admin.resync_no,
            lost_point_in_time: admin.lost_last.clone(),
            dirty_sectors: match resync {
                Some(_) => sectors,
                None => (current.dirty_sectors() + closed_sectors).min(sectors),
            },
            change_log_limit: ByteLen(self.change_log_limit.load(Ordering::Relaxed)),
            change_log_used: closed.map_or(ByteLen(0), |c| c.log_bytes()),
            counters,
            warning: warning(admin.untracked.as_ref(), resync, admin.lost_last.as_deref()),
            backing_fault: None,
            hands_out_backing: false,
            takes_deadlines: false,
            sector_bytes: self.backing().sector_bytes(),
        }
    }

    /// Sets the limit for preserved blocks. It applies to the open cycle too.
    pub fn set_change_log_limit(&self, limit: ByteLen) {
        self.change_log_limit.store(limit.0, Ordering::Relaxed);
    }
}

fn warning(
    untracked: Option<&Untracked>,
    resync: Option<Resync>,
    lost: Option<&str>,
) -> Option<String> {
    if let Some(untracked) = untracked {
        return Some(format!("changes are not tracked: {}", untracked.error));
    }
    match (resync, lost) {
        (Some(Resync::NeverShipped), _) => None,
        (Some(reason), _) => Some(format!("resync required: {}", reason.explain())),
        (None, Some(reason)) => Some(format!("the last cycle lost its point in time: {reason}")),
        (None, None) => None,
    }
}
