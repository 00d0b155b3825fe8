//! Decides whether a cycle may build on the newest point in the vault, and how.
//!
//! The disk must prove that it belongs to that point. The identity of a point is random; only the vault
//! and the disk that made it know it. So the proof is that the vault's newest point is the disk's base,
//! or a point that the disk was about to commit when its sidecar died. Names, sizes, clocks and cycle
//! numbers prove nothing.
//!
//! For example, a disk that was restored from a backup has an older base. A delta from it on top of the
//! newest point would produce a disk that never existed, and a resync would overwrite newer data with
//! older. In that case a person must decide which side is right.

use backstay_format::control::DriverStatus;
use backstay_format::superblock::Base;
use backstay_vault::Manifest;

use super::resync::Request;
use crate::error::CycleError;

/// How a cycle ships the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Ship the whole disk: the vault has no point of it.
    Initial,
    /// Ship the changes since the newest point.
    Delta,
    /// Compare with the newest point, and ship the differences.
    Resync {
        /// Read the vault's data instead of relying on its checksums.
        deep: bool,
    },
    /// Ship the whole disk, although the vault has a point of it.
    Full,
}

/// Decides how the next cycle ships the disk. `newest` is the point to build on, `asked` a resync that a
/// person requested.
///
/// # Errors
/// [`CycleError::WhichSide`] if nothing proves that the disk is newer than the vault.
pub fn flow(
    status: &DriverStatus,
    newest: Option<&Manifest>,
    adopted: bool,
    asked: Option<&Request>,
    write_only: bool,
) -> Result<Flow, CycleError> {
    let Some(newest) = newest else { return Ok(Flow::Initial) };
    let is_newest = |p: Base| (p.cycle, p.point) == (newest.cycle, newest.point);
    let proven = !adopted && status.proofs().any(is_newest);
    let told = asked.is_some_and(|asked| asked.disk_is_right == Some(newest.point));
    if !proven && !told {
        return Err(CycleError::WhichSide {
            name: status.name.to_string(),
            newest: newest.cycle,
            cut_unix_ns: newest.cut_unix_ns,
            known: status.base.map(|base| base.cycle),
        });
    }
    let (deep, full) = asked.map_or((false, false), |asked| (asked.deep, asked.full));
    Ok(match (proven && asked.is_none(), status.resync) {
        (true, None) => Flow::Delta,
        // Without read access to the vault nothing can be compared, so everything ships.
        _ if full || write_only || newest.size != status.size => Flow::Full,
        _ => Flow::Resync { deep },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_format::control::{Counters, FoundState};
    use backstay_format::superblock::Resync;
    use backstay_types::{ByteLen, CycleNo, DiskId, EpochNo, PointId, Term};
    use backstay_vault::{Consistency, CycleKind};

    const DISK: [u8; 16] = [1; 16];

    fn base(cycle: u64) -> Base {
        let disk = DiskId::from_bytes(DISK);
        let point = PointId::from_bytes([cycle as u8; 16]);
        Base { vault_disk: disk, cycle: CycleNo(cycle), point }
    }

    fn status(at: Option<Base>, announced: Option<Base>, resync: Option<Resync>) -> DriverStatus {
        DriverStatus {
            name: "db".parse().unwrap(),
            disk: DiskId::from_bytes(DISK),
            pid: 1,
            backing: "/b".into(),
            served: "/s".into(),
            size: ByteLen(1 << 20),
            found: FoundState::Clean,
            started_unix_ns: 0,
            engine: "buffered".into(),
            epoch: EpochNo(1),
            open_cut: None,
            lease: None,
            base: at,
            announced,
            announced_before: vec![],
            coarse: false,
            untracked: None,
            io_trouble: None,
            io_waits: None,
            resync,
            resync_no: 0,
            lost_point_in_time: None,
            dirty_sectors: 0,
            change_log_limit: ByteLen(0),
            change_log_used: ByteLen(0),
            counters: Counters::default(),
            warning: None,
            backing_fault: None,
            hands_out_backing: true,
            takes_deadlines: true,
            sector_bytes: None,
        }
    }

    fn point(cycle: u64) -> Manifest {
        Manifest {
            disk: DiskId::from_bytes(DISK),
            size: ByteLen(1 << 20),
            point: base(cycle).point,
            cycle: CycleNo(cycle),
            term: Term(1),
            predecessor: None,
            kind: CycleKind::Delta,
            consistency: Consistency::Crash,
            cut_unix_ns: 0,
            committed_unix_ns: 0,
            written: ByteLen(0),
            moved_sectors: 0,
            moved_digest: [0; 32],
            segments: vec![],
        }
    }

    fn asked(point: Option<u64>) -> Request {
        Request {
            disk_is_right: point.map(|cycle| base(cycle).point),
            deep: true,
            ..Request::default()
        }
    }

    #[test]
    fn a_proven_disk_flows_by_itself() {
        let go =
            |status, newest: u64| flow(&status, Some(&point(newest)), false, None, false).unwrap();
        assert_eq!(
            flow(&status(None, None, None), None, false, None, false).unwrap(),
            Flow::Initial
        );
        assert_eq!(go(status(Some(base(5)), None, None), 5), Flow::Delta);
        assert_eq!(go(status(Some(base(5)), Some(base(6)), None), 5), Flow::Delta);
        assert_eq!(go(status(Some(base(5)), Some(base(6)), None), 6), Flow::Delta);
        let damaged = Some(Resync::ChangeLogDamaged);
        assert_eq!(go(status(Some(base(5)), None, damaged), 5), Flow::Resync { deep: false });
    }

    #[test]
    fn everything_else_needs_a_word() {
        let odd = Base { point: PointId::from_bytes([99; 16]), ..base(5) };
        for (at, announced) in
            [(None, None), (Some(base(4)), None), (Some(base(7)), None), (Some(odd), Some(base(4)))]
        {
            for resync in [None, Some(Resync::NeverShipped)] {
                let disk = status(at, announced, resync);
                for ask in [None, Some(asked(None)), Some(asked(Some(4)))] {
                    let refused = flow(&disk, Some(&point(5)), false, ask.as_ref(), false);
                    assert!(matches!(refused, Err(CycleError::WhichSide { .. })), "{at:?}");
                }
                let told = flow(&disk, Some(&point(5)), false, Some(&asked(Some(5))), false);
                assert_eq!(told.unwrap(), Flow::Resync { deep: true });
            }
        }
        // A disk found by its name alone proves nothing.
        let disk = status(Some(base(5)), None, None);
        assert!(flow(&disk, Some(&point(5)), true, None, false).is_err());
    }

    #[test]
    fn another_size_cannot_be_compared() {
        let disk = DriverStatus {
            size: ByteLen(2 << 20),
            ..status(Some(base(5)), None, Some(Resync::BackingChanged))
        };
        assert_eq!(flow(&disk, Some(&point(5)), false, None, false).unwrap(), Flow::Full);
    }
}
