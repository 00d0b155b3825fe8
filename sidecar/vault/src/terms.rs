//! Who may write a disk, who laid that down, and which points are on the line that goes on.

use std::time::Duration;

use backstay_types::{CycleNo, DiskId, Term};

use crate::error::{In, VaultError};
use crate::format::hold::{HoldKind, HoldName};
use crate::format::key::{DiskFolder, Piece};
use crate::format::manifest::Manifest;
use crate::format::term::{HandoverRecord, TermFrom, TermRecord};
use crate::retain::{HoldRequest, holder};
use crate::store::{Vault, at_once, now_unix_ns};

/// Which points of a disk are on the line that its newest term goes on; the others belong to a history
/// that was left at a failover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Terms of the line, newest first, and the last cycle that each has on it.
    terms: Vec<(Term, CycleNo)>,
}

impl Line {
    /// Whether a point is on it.
    #[must_use]
    pub fn has(&self, point: &Manifest) -> bool {
        self.has_cycle(point.term, point.cycle)
    }

    /// Whether the point of a term and cycle is on it.
    #[must_use]
    pub fn has_cycle(&self, term: Term, cycle: CycleNo) -> bool {
        self.terms.iter().any(|&(of, last)| of == term && cycle <= last)
    }

    /// From terms, oldest first.
    fn of(terms: &[TermRecord]) -> Self {
        let mut line = vec![];
        let mut last = CycleNo(u64::MAX);
        let mut at = terms.last().map(|newest| newest.term);
        while let Some(term) = at {
            line.push((term, last));
            let record = terms.iter().find(|record| record.term == term);
            at = match record.and_then(|record| record.from) {
                Some(from) => {
                    last = last.min(from.cycle);
                    // Never upwards: a record is checked for that when it is read.
                    Some(from.term).filter(|&from| from < term)
                }
                // It went on from what was newest, anyone who made it.
                None => Some(Term(term.0.saturating_sub(1))).filter(|before| before.0 > 0),
            };
        }
        Self { terms: line }
    }
}

/// A term that is to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The term it follows: no other may have come since.
    pub after: Term,
    /// Who is to write in it.
    pub writer: String,
    /// The point it goes on from.
    pub from: TermFrom,
}

/// How long the point that a term goes on from is held if nothing is heard of its writer.
const FROM_LASTS: Duration = Duration::from_secs(30 * 86_400);

/// The hold on the point that a term goes on from.
fn from_name(term: Term) -> Result<HoldName, VaultError> {
    let name = format!("failover-term-{term}");
    name.parse().within("the name of a hold")
}

impl Vault {
    /// The newest term of a disk; the first one is taken by `writer` if there is none.
    ///
    /// # Errors
    /// If the vault cannot be read or written.
    pub fn term_or_first(&self, disk: DiskId, writer: &str) -> Result<TermRecord, VaultError> {
        match self.newest_term(disk)? {
            Some(newest) => Ok(newest),
            None => self.first_term(disk, writer),
        }
    }

    /// The first term of a disk that has none yet; somebody else's, if they were faster.
    ///
    /// # Errors
    /// If the vault cannot be read or written.
    pub fn first_term(&self, disk: DiskId, writer: &str) -> Result<TermRecord, VaultError> {
        let first = TermRecord {
            disk: Some(disk),
            term: Term(1),
            writer: writer.into(),
            since_unix_ns: now_unix_ns(),
            from: None,
        };
        match self.put_document(&Piece::Term(first.term).of(disk), &first) {
            // Somebody else was first: theirs holds.
            Err(VaultError::Store {
                source: object_store::Error::AlreadyExists { .. }, ..
            }) => self.term(disk, Term(1)),
            put => put.map(|()| first),
        }
    }

    /// Takes the next term of a disk, to go on from its newest point: from now on only `writer`
    /// commits to it.
    ///
    /// # Errors
    /// If somebody else took it first, or the vault cannot be written.
    pub fn claim_term(&self, disk: DiskId, writer: &str) -> Result<TermRecord, VaultError> {
        let term = self.newest_term(disk)?.map_or(Term(1), |newest| newest.term.next());
        let ours = TermRecord {
            disk: Some(disk),
            term,
            writer: writer.into(),
            since_unix_ns: now_unix_ns(),
            from: None,
        };
        self.put_document(&Piece::Term(term).of(disk), &ours)?;
        Ok(ours)
    }

    /// Takes the term after `claim.after`, if nobody has: from now on only its writer commits, and its
    /// first point lays over `claim.from`. Done before, it is done: who was killed does it again.
    ///
    /// # Errors
    /// [`VaultError::Fenced`] if somebody else took a term since; or the vault cannot be written. Then
    /// the term may have been taken, and doing it again says so.
    pub fn take_term(&self, disk: DiskId, claim: &Claim) -> Result<TermRecord, VaultError> {
        let ours = TermRecord {
            disk: Some(disk),
            term: claim.after.next(),
            writer: claim.writer.clone(),
            since_unix_ns: now_unix_ns(),
            from: Some(claim.from),
        };
        let ours = ours.checked().within(Piece::Term(claim.after.next()).of(disk))?;
        let is_ours = |there: &TermRecord| {
            (there.term, &there.writer, there.from) == (ours.term, &ours.writer, ours.from)
        };
        let lost = |newest: TermRecord| VaultError::Fenced {
            ours: claim.after,
            newest: newest.term,
            writer: newest.writer,
        };
        match self.newest_term(disk)? {
            Some(newest) if newest.term == claim.after => {}
            Some(newest) if is_ours(&newest) => {
                self.settle(&Piece::Term(newest.term).of(disk))?;
                return Ok(newest);
            }
            Some(newest) if newest.term > claim.after => return Err(lost(newest)),
            _ => {
                let object = format!("term {} of disk {disk}", claim.after);
                return Err(VaultError::NotFound { object });
            }
        }
        let put = self.put_document(&Piece::Term(ours.term).of(disk), &ours);
        let Err(failed) = put else { return Ok(ours) };
        // Another's may be there; or a put whose answer was lost was done.
        match self.term(disk, ours.term) {
            Ok(there) if is_ours(&there) => {
                self.settle(&Piece::Term(there.term).of(disk))?;
                Ok(there)
            }
            Ok(there) => Err(lost(there)),
            Err(_) => Err(failed),
        }
    }

    /// The newest term of a disk.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn newest_term(&self, disk: DiskId) -> Result<Option<TermRecord>, VaultError> {
        let terms = self.term_numbers(disk)?;
        terms.last().map(|&term| self.term(disk, Term(term))).transpose()
    }

    fn term_numbers(&self, disk: DiskId) -> Result<Vec<u64>, VaultError> {
        let key = |term| Piece::Term(Term(term)).of(disk);
        self.numbers_to_newest(&DiskFolder::Terms.of(disk), key)
    }

    fn term(&self, disk: DiskId, term: Term) -> Result<TermRecord, VaultError> {
        let key = Piece::Term(term).of(disk);
        self.document::<TermRecord>(&key)?.checked().within(&key)
    }

    /// All terms of a disk, oldest first.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn terms(&self, disk: DiskId) -> Result<Vec<TermRecord>, VaultError> {
        let terms = self.term_numbers(disk)?;
        terms.into_iter().map(|term| self.term(disk, Term(term))).collect()
    }

    /// Which points of a disk are on the line that its newest term goes on.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn line(&self, disk: DiskId) -> Result<Line, VaultError> {
        Ok(Line::of(&self.terms(disk)?))
    }

    /// Lays down a term: its writer has stopped, and the point `at` has all that was written. Done before, it
    /// is done.
    ///
    /// # Errors
    /// [`VaultError::Fenced`] if the term is over; or it was laid down at another point; or the vault
    /// cannot be written.
    pub fn hand_over(
        &self,
        disk: DiskId,
        writer: &str,
        at: TermFrom,
    ) -> Result<HandoverRecord, VaultError> {
        let TermFrom { term, cycle, point } = at;
        self.check_term(disk, term)?;
        let ours = HandoverRecord {
            disk,
            term,
            writer: writer.into(),
            cycle,
            point,
            since_unix_ns: now_unix_ns(),
        };
        let key = Piece::Handover(term).of(disk);
        let Err(failed) = self.put_document(&key, &ours) else { return Ok(ours) };
        let Ok(there) = self.document::<HandoverRecord>(&key) else { return Err(failed) };
        if (&there.writer, there.cycle, there.point) == (&ours.writer, cycle, point) {
            self.settle(&key)?;
            return Ok(there);
        }
        let reason =
            format!("term {term} was handed over at recovery point {} already", there.cycle);
        Err(VaultError::Inconsistent { object: key.into(), reason })
    }

    /// The handover of a disk's newest term, if there is one: then nobody writes, and its point is
    /// the newest.
    ///
    /// # Errors
    /// If the vault cannot be read, or the handover does not fit its term.
    pub fn handover(&self, disk: DiskId) -> Result<Option<HandoverRecord>, VaultError> {
        let Some(newest) = self.newest_term(disk)? else { return Ok(None) };
        let key = Piece::Handover(newest.term).of(disk);
        let handover = match self.document::<HandoverRecord>(&key) {
            Err(VaultError::NotFound { .. }) => return Ok(None),
            handover => handover?,
        };
        if handover.writer != newest.writer {
            let reason = format!("it is not of term {} of disk {disk}", newest.term);
            return Err(VaultError::Inconsistent { object: key.into(), reason });
        }
        Ok(Some(handover))
    }

    /// Holds the point that a term goes on from, until the term's first point is there: that lays over
    /// it. To be called before the term is taken, and again when it is used.
    ///
    /// # Errors
    /// If the point is gone, or the vault cannot be written.
    pub fn hold_from(&self, disk: DiskId, term: Term, from: &TermFrom) -> Result<(), VaultError> {
        let lasts = u64::try_from(FROM_LASTS.as_nanos()).unwrap_or(u64::MAX);
        let request = HoldRequest {
            name: from_name(term)?,
            kind: HoldKind::Failover,
            holder: holder(),
            reason: format!("term {term} goes on from it"),
            first_cycle: from.cycle,
            last_cycle: from.cycle,
            until_unix_ns: Some(now_unix_ns().saturating_add(lasts)),
        };
        self.hold(disk, &request)?;
        let there = self.manifest(disk, from.cycle)?;
        if there.point != from.point {
            return Err(VaultError::Inconsistent {
                object: Piece::Term(term).of(disk).into(),
                reason: format!("recovery point {} is not the one it goes on from", from.cycle),
            });
        }
        Ok(())
    }

    /// Releases what [`Self::hold_from`] took.
    ///
    /// # Errors
    /// If the vault cannot be written.
    pub fn release_from(&self, disk: DiskId, term: Term) -> Result<bool, VaultError> {
        self.release(disk, &from_name(term)?)
    }

    /// Whether a term is still the newest; its record.
    pub(crate) fn check_term(&self, disk: DiskId, ours: Term) -> Result<TermRecord, VaultError> {
        // Terms have no gaps and none is ever deleted, so the next one by name says it all.
        let (next, record) =
            at_once(|| self.has(&Piece::Term(ours.next()).of(disk)), || self.term(disk, ours));
        match next? {
            false => record,
            true => {
                let newest = self.newest_term(disk)?;
                let newest = newest.map_or_else(|| self.term(disk, ours.next()), Ok)?;
                Err(VaultError::Fenced { ours, newest: newest.term, writer: newest.writer })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use backstay_types::PointId;

    use super::*;

    fn term(term: u64, from: Option<(u64, u64)>) -> TermRecord {
        TermRecord {
            disk: None,
            term: Term(term),
            writer: format!("w{term}"),
            since_unix_ns: 0,
            from: from.map(|(cycle, term)| TermFrom {
                cycle: CycleNo(cycle),
                point: PointId::from_bytes([cycle as u8; 16]),
                term: Term(term),
            }),
        }
    }

    fn on(line: &Line, points: &[(u64, u64)]) -> Vec<u64> {
        let on = points.iter().filter(|(term, cycle)| line.has_cycle(Term(*term), CycleNo(*cycle)));
        on.map(|(_, cycle)| *cycle).collect()
    }

    /// Term 1 made 1 to 10; term 2 went on from 5 with 11 and 12; term 3 from 8, off the line, with 13.
    #[test]
    fn the_line_goes_where_terms_went_on_from() {
        let points: Vec<_> = (1..11).map(|c| (1, c)).chain([(2, 11), (2, 12), (3, 13)]).collect();
        let (one, two, three) = (term(1, None), term(2, Some((5, 1))), term(3, Some((8, 1))));
        let of =
            |terms: &[&TermRecord]| Line::of(&terms.iter().copied().cloned().collect::<Vec<_>>());
        assert_eq!(on(&of(&[&one]), &points[..10]), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(on(&of(&[&one, &two]), &points[..12]), [1, 2, 3, 4, 5, 11, 12]);
        let line = of(&[&one, &two, &three]);
        assert_eq!(on(&line, &points), [1, 2, 3, 4, 5, 6, 7, 8, 13]);
        let back = term(3, Some((12, 2)));
        assert_eq!(on(&of(&[&one, &two, &back]), &points), [1, 2, 3, 4, 5, 11, 12, 13]);
        // A source that said that its disk is right went on from the newest, anyone who made it.
        let right = term(3, None);
        assert_eq!(on(&of(&[&one, &two, &right]), &points), [1, 2, 3, 4, 5, 11, 12, 13]);
        assert_eq!(on(&of(&[]), &points), [0u64; 0]);
    }
}
