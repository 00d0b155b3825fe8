//! What a protected disk says of itself.

use backstay_format::control::{Counters, FoundState, IoTrouble, IoWait, OpenCut, Untracked};
use backstay_format::superblock::{Base, Resync};
use backstay_types::{ByteLen, DiskId, EpochNo};

use crate::env::Env;
use crate::sync::atomic::Ordering;
use crate::sync::lock;
use crate::{Backing, ProtectedDisk};

/// The tracking part of the control protocol's `DriverStatus`, whose docs say what each field is.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct TrackStatus {
    pub disk: DiskId,
    pub size: ByteLen,
    pub found: FoundState,
    pub started_unix_ns: u64,
    pub epoch: EpochNo,
    pub open_cut: Option<OpenCut>,
    pub base: Option<Base>,
    pub announced: Vec<Base>,
    pub coarse: bool,
    pub untracked: Option<Untracked>,
    pub io_trouble: Option<IoTrouble>,
    pub io_waits: Option<IoWait>,
    pub resync: Option<Resync>,
    pub resync_no: u64,
    pub lost_point_in_time: Option<String>,
    pub dirty_sectors: u64,
    pub change_log_limit: ByteLen,
    pub change_log_used: ByteLen,
    pub counters: Counters,
    pub warning: Option<String>,
}

impl<E: Env, B: Backing> ProtectedDisk<E, B> {
    /// How the disk is now.
    pub fn status(&self) -> TrackStatus {
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
        TrackStatus {
            disk: self.id,
            size: geometry.size,
            found: self.found,
            started_unix_ns: self.started_unix_ns,
            epoch: current.no,
            open_cut: newest_closed.map(|epoch| OpenCut {
                epoch,
                cut_unix_ns: closed.map_or(0, |c| c.cut_unix_ns),
                dirty_sectors: closed_sectors,
                lost: closed.and_then(|c| c.lost()),
            }),
            base: admin.meta.get().base,
            announced: admin.meta.get().announced.clone(),
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
        }
    }

    /// Sets the most bytes of preserved blocks; holds for the open cycle too.
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
