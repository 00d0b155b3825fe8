//! What small objects must be before they are put: that they are what their key says, that nobody speaks for
//! another's disk, and that nothing is dated back or ahead. Points are looked at by
//! [`backstay_vault::admission`], segments in [`crate::spool`].

use backstay_types::{CycleNo, Term};
use backstay_vault::admission::{self, NotTaken, Rules, check_point};
use backstay_vault::encrypt::proofs::KeyProof;
use backstay_vault::format::document::{DiskRecord, Document, NameRecord, Object, decode};
use backstay_vault::format::drill::DrillRecord;
use backstay_vault::format::group::GroupPoint;
use backstay_vault::format::hold::{HeldRecord, HoldKind, HoldRecord};
use backstay_vault::format::ledger::Ledger;
use backstay_vault::format::term::{HandoverRecord, TermRecord};
use backstay_vault::{Vault, VaultError};

use crate::owners::{Owners, Ownership};
use crate::pki::{Identity, Role};
use backstay_vault::format::key::{ObjectKey, Piece};

/// How long a source may hold points that it compares with.
const SOURCE_HOLDS_NS_MAX: u64 = 8 * 86_400 * 1_000_000_000;

/// What an arriving object is looked at with.
pub struct Arriving<'a> {
    /// The vault.
    pub vault: &'a Vault,
    /// Whose disks are.
    pub owners: &'a Owners,
    /// Who puts it.
    pub who: &'a Identity,
    /// What it must obey.
    pub rules: Rules,
}

fn wrong<T>(reason: impl Into<String>) -> Result<T, NotTaken> {
    Err(NotTaken::Wrong(reason.into()))
}

fn late<T>(reason: impl Into<String>) -> Result<T, NotTaken> {
    Err(NotTaken::Late(reason.into()))
}

/// A document that says it is what its key says.
fn document<D: Document + Object>(key: &ObjectKey, bytes: &[u8]) -> Result<D, NotTaken> {
    let document: D = decode(bytes).map_err(|e| NotTaken::Wrong(e.to_string()))?;
    match document.differs(key) {
        None => Ok(document),
        Some(found) => wrong(format!("it is {found}, not what its key says")),
    }
}

impl Arriving<'_> {
    /// Whether an object may be put under a key that its sender has the right to put. Blocks.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, key: &ObjectKey, bytes: &[u8]) -> Result<(), NotTaken> {
        match key {
            // A segment is looked at as it arrives, a point below; what belongs to keys has signatures of its own.
            ObjectKey::Disk(_, Piece::Segment { .. } | Piece::Point(_))
            | ObjectKey::Vault
            | ObjectKey::Keyring(_)
            | ObjectKey::KeyNote(..)
            | ObjectKey::Probe(_)
            | ObjectKey::Proof(..) => {}
            ObjectKey::Disk(..) | ObjectKey::Name(..) | ObjectKey::GroupPoint(..) => {
                self.vault.check_arriving(key, bytes)?;
            }
        }
        self.check_content(key, bytes)
    }

    fn check_content(&self, key: &ObjectKey, bytes: &[u8]) -> Result<(), NotTaken> {
        match key {
            ObjectKey::Vault
            | ObjectKey::Keyring(_)
            | ObjectKey::KeyNote(..)
            | ObjectKey::Probe(_) => wrong("that is made where the store is"),
            ObjectKey::Proof(_, at) => {
                document::<KeyProof>(key, bytes)?;
                self.recent(*at)
            }
            ObjectKey::Name(_, number) => {
                let record: NameRecord = document(key, bytes)?;
                self.recent(record.since_unix_ns)?;
                self.name(&record, *number)
            }
            ObjectKey::GroupPoint(..) => {
                let point: GroupPoint = document(key, bytes)?;
                self.recent(point.committed_unix_ns)?;
                self.group_point(&point)
            }
            ObjectKey::Disk(disk, piece) => {
                let disk = *disk;
                match piece {
                    // Looked at as it arrives.
                    Piece::Segment { .. } => Ok(()),
                    Piece::Point(cycle) => {
                        check_point(self.vault, (disk, *cycle), bytes, self.rules).map(drop)
                    }
                    Piece::Record => {
                        let record: DiskRecord = document(key, bytes)?;
                        if record.sector_bytes != 512 {
                            return wrong("a sector has 512 bytes");
                        }
                        if !self.who.disks.has(&record.name) {
                            return wrong("the certificate does not name that disk");
                        }
                        let held = self.vault.name_record(&record.name)?;
                        match held
                            .is_some_and(|held| held.disk == disk && held.renamed_to.is_none())
                        {
                            true => Ok(()),
                            false => wrong("the name is not this disk's: it is taken first"),
                        }
                    }
                    Piece::Term(term) => self.term(disk, *term, &document(key, bytes)?),
                    Piece::Handover(term) => self.handover(disk, *term, &document(key, bytes)?),
                    Piece::Hold(..) => self.hold(&document(key, bytes)?),
                    Piece::Held(..) => {
                        let record: HeldRecord = document(key, bytes)?;
                        self.recent(record.since_unix_ns)
                    }
                    Piece::Drill(..) => document::<DrillRecord>(key, bytes).map(drop),
                    Piece::Ledger(_) => {
                        let next =
                            admission::ledger(bytes).map_err(|e| NotTaken::Wrong(e.to_string()))?;
                        match next.differs(key) {
                            None => self.ledger(&next),
                            Some(found) => wrong(format!("it is {found}, not what its key says")),
                        }
                    }
                }
            }
        }
    }

    /// A time that is said of now may not lie ahead.
    fn recent(&self, unix_ns: u64) -> Result<(), NotTaken> {
        let latest = self.rules.now_unix_ns.saturating_add(self.rules.skew_ns);
        match unix_ns <= latest {
            true => Ok(()),
            false => wrong("its time lies in the future of the gateway's clock"),
        }
    }

    /// A name is taken for a disk that is being made, or for one that is its sender's already.
    fn name(&self, record: &NameRecord, number: u64) -> Result<(), NotTaken> {
        let standing = self.owners.standing(self.vault, self.who, record.disk)?;
        let held = self.vault.name_record(&record.name)?;
        if record.renamed_to.is_some() {
            // Given back by its disk.
            return match (standing, &held) {
                (Ownership::Own, None) => Ok(()),
                (Ownership::Own, Some(held)) if held.disk == record.disk => Ok(()),
                _ => wrong("only the disk that has a name gives it back"),
            };
        }
        match (standing, record.change) {
            (Ownership::Own, _) | (Ownership::Begun | Ownership::Unknown, 0) => {}
            _ => return wrong("that disk is not one of this certificate's"),
        }
        let Some(held) = held else {
            return match number {
                1 => Ok(()),
                _ => wrong("the first document of a name has the number 1"),
            };
        };
        let is_there = held.renamed_to.is_none() && held.disk != record.disk && {
            match self.vault.disk(held.disk) {
                Ok(_) => true,
                Err(VaultError::NotFound { .. }) => false,
                Err(e) => return Err(e.into()),
            }
        };
        match is_there {
            true => late(format!("the name {} is disk {}'s", held.name, held.disk)),
            false => Ok(()),
        }
    }

    /// It is the next one; every member is a disk of the certificate's, and its point is there; and so are the members
    /// of the group's point before: who owns none of them has nothing to put there.
    fn group_point(&self, point: &GroupPoint) -> Result<(), NotTaken> {
        point.check().map_err(|e| NotTaken::Wrong(e.to_string()))?;
        let newest = self.vault.group_points(&point.group)?.last().copied();
        let next = newest.map_or(Some(1), |newest| newest.0.checked_add(1));
        match next {
            Some(next) if point.number.0 < next => {
                return late(format!(
                    "point {} of group {} is there, or was",
                    point.number, point.group
                ));
            }
            Some(next) if point.number.0 == next => {}
            _ => return wrong("it is not the next point of its group"),
        }
        if let Some(newest) = newest {
            for member in self.vault.group_point(&point.group, newest)?.members {
                // A disk that is gone has no owner.
                match self.owners.standing(self.vault, self.who, member.disk)? {
                    Ownership::Own | Ownership::Unknown => {}
                    _ => {
                        return wrong(format!(
                            "disk {} of that group is not one of this certificate's",
                            member.name
                        ));
                    }
                }
            }
        }
        for member in &point.members {
            if self.owners.standing(self.vault, self.who, member.disk)? != Ownership::Own {
                return wrong(format!("disk {} is not one of this certificate's", member.name));
            }
            let there = self.vault.manifest(member.disk, member.cycle)?;
            if there.point != member.point {
                return wrong(format!(
                    "recovery point {} of {} is another",
                    member.cycle, member.name
                ));
            }
        }
        Ok(())
    }

    /// A term follows the newest, and goes on from a point that is there.
    fn term(
        &self,
        disk: backstay_types::DiskId,
        term: Term,
        record: &TermRecord,
    ) -> Result<(), NotTaken> {
        self.recent(record.since_unix_ns)?;
        let newest = self.vault.newest_term(disk)?;
        let next = newest.map_or(Term(1), |newest| newest.term.next());
        if term < next {
            return late(format!("term {term} is taken"));
        }
        if term > next {
            return wrong(format!("the next term is {next}"));
        }
        let Some(from) = record.from else { return Ok(()) };
        if self.who.role == Role::Source || from.term >= term {
            return wrong("the first term goes on from nothing");
        }
        let point = self.vault.manifest(disk, from.cycle)?;
        match (point.point, point.term) == (from.point, from.term) {
            true => Ok(()),
            false => wrong(format!("recovery point {} is not the one it goes on from", from.cycle)),
        }
    }

    /// Only the newest term is laid down, at its newest point.
    fn handover(
        &self,
        disk: backstay_types::DiskId,
        term: Term,
        record: &HandoverRecord,
    ) -> Result<(), NotTaken> {
        self.recent(record.since_unix_ns)?;
        let newest = self.vault.newest_term(disk)?;
        let Some(newest) = newest.filter(|newest| newest.term == term) else {
            return late(format!("term {term} is not the newest"));
        };
        let last = self.vault.points(disk)?.last().copied().unwrap_or(CycleNo(0));
        if newest.writer != record.writer || last != record.cycle {
            return wrong("it is not of the term's writer, or not at the newest point");
        }
        match self.vault.manifest(disk, last)?.point == record.point {
            true => Ok(()),
            false => wrong("it names another point"),
        }
    }

    /// What a source holds ends by itself: it cannot keep retention from what is not its own doing.
    fn hold(&self, hold: &HoldRecord) -> Result<(), NotTaken> {
        self.recent(hold.since_unix_ns)?;
        self.recent(hold.version)?;
        if self.who.role != Role::Source {
            return Ok(());
        }
        // How long it lasts counts, from whenever this is first seen here.
        let ends = hold
            .until_unix_ns
            .is_some_and(|until| until.saturating_sub(hold.since_unix_ns) <= SOURCE_HOLDS_NS_MAX);
        match matches!(hold.kind, HoldKind::Resync | HoldKind::Read) && ends {
            true => Ok(()),
            false => wrong("a source holds points only to compare with them, for 8 days at most"),
        }
    }

    /// The one revision that does not come from retention: the same points, no merges.
    fn ledger(&self, next: &Ledger) -> Result<(), NotTaken> {
        let base = self.vault.ledger(next.disk)?;
        let revision = base.as_ref().map_or(1, |base| base.revision + 1);
        if next.revision < revision {
            return late(format!("revision {} is there", next.revision));
        }
        let same = match &base {
            Some(base) => (next.horizon, &next.points) == (base.horizon, &base.points),
            None => next.horizon == CycleNo(0) && next.points.is_empty(),
        };
        match same && next.merges.is_empty() && next.revision == revision {
            true => Ok(()),
            false => {
                wrong("retention runs at the gateway: from elsewhere a ledger only loses merges")
            }
        }
    }
}
