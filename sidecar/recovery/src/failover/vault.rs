//! What the vault must say before a failover, and the one put that decides it.

use backstay_types::{CycleNo, DiskId, DiskName, Term};
use backstay_vault::{Claim, Manifest, TermFrom, TermRecord, Vault, VaultError};

use super::{FailoverError, FailoverRecord, PointRef, step};

/// A point that a disk can be failed over to.
#[derive(Debug, Clone)]
pub struct PointInVault {
    /// The disk in the vault.
    pub disk: DiskId,
    /// The newest term.
    pub term: TermRecord,
    /// The point.
    pub point: Manifest,
}

/// The newest term of a disk.
fn newest_term(vault: &Vault, disk: DiskId) -> Result<TermRecord, FailoverError> {
    vault
        .newest_term(disk)?
        .ok_or_else(|| VaultError::NotFound { object: format!("a term of disk {disk}") }.into())
}

/// Looks at a point of a disk that is to be failed over to. One that is not on the line that goes on must be
/// asked for in so many words.
///
/// # Errors
/// [`FailoverError::LeftHistory`]; or the vault cannot be read.
pub fn look_at(
    vault: &Vault,
    name: &DiskName,
    disk: DiskId,
    point: Manifest,
    left_history: bool,
) -> Result<PointInVault, FailoverError> {
    let term = newest_term(vault, disk)?;
    if !left_history && !vault.line(disk)?.has(&point) {
        let (name, cycle, term) = (name.clone(), point.cycle, term.term);
        return Err(FailoverError::LeftHistory { name, cycle, term });
    }
    Ok(PointInVault { disk, term, point })
}

/// The newest point on the line that goes on.
///
/// # Errors
/// If there is none, or the vault cannot be read.
pub fn newest_on_line(vault: &Vault, disk: DiskId) -> Result<Manifest, FailoverError> {
    let line = vault.line(disk)?;
    for cycle in vault.points(disk)?.into_iter().rev() {
        match vault.manifest(disk, cycle) {
            Ok(point) if line.has(&point) => return Ok(point),
            // Of a history that was left, or retention was faster.
            Ok(_) | Err(VaultError::NotFound { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(VaultError::NotFound { object: format!("a recovery point of disk {disk}") }.into())
}

/// The point at which a disk was handed over; nothing came after it.
///
/// # Errors
/// [`FailoverError::NotHandedOver`], [`FailoverError::NotQuiet`]; or the vault cannot be read.
pub fn handed_over(
    vault: &Vault,
    name: &DiskName,
    disk: DiskId,
) -> Result<PointInVault, FailoverError> {
    let Some(handover) = vault.handover(disk)? else {
        return Err(FailoverError::NotHandedOver { name: name.clone() });
    };
    let newest = newest_on_line(vault, disk)?;
    if (newest.cycle, newest.point) != (handover.cycle, handover.point) {
        let (at, newest) = (handover.cycle, newest.cycle);
        return Err(FailoverError::NotQuiet { name: name.clone(), at, newest });
    }
    let term = newest_term(vault, disk)?;
    if term.term != handover.term {
        return Err(FailoverError::NotHandedOver { name: name.clone() });
    }
    Ok(PointInVault { disk, term, point: newest })
}

/// Lays down the term of a source that has stopped at the newest point of its disk. Returns that point.
///
/// # Errors
/// [`VaultError::Fenced`] if the disk was failed over; or the point is not the newest; or the vault cannot
/// be written.
pub fn hand_over(
    vault: &Vault,
    name: &DiskName,
    disk: DiskId,
    writer: &str,
    at: CycleNo,
) -> Result<PointRef, FailoverError> {
    let term = newest_term(vault, disk)?;
    if term.writer != writer {
        let ours = Term(term.term.0.saturating_sub(1));
        return Err(VaultError::Fenced { ours, newest: term.term, writer: term.writer }.into());
    }
    let newest = newest_on_line(vault, disk)?;
    if newest.cycle != at {
        let newest = newest.cycle;
        return Err(FailoverError::NotQuiet { name: name.clone(), at, newest });
    }
    step();
    let at = TermFrom { term: term.term, cycle: newest.cycle, point: newest.point };
    vault.hand_over(disk, writer, at)?;
    Ok(PointRef::from(&newest))
}

/// What became of a handover that was to be withdrawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Withdrawn {
    /// It is withdrawn, or there was none: the source goes on.
    Done,
    /// Another host has the disk.
    TooLate(TermRecord),
}

/// Withdraws a handover by taking the next term, as the target would.
///
/// # Errors
/// If the vault cannot be read or written: then it is not known, and can be tried again.
pub fn withdraw(vault: &Vault, disk: DiskId, writer: &str) -> Result<Withdrawn, FailoverError> {
    let term = newest_term(vault, disk)?;
    if term.writer != writer {
        return Ok(Withdrawn::TooLate(term));
    }
    let Some(handover) = vault.handover(disk)? else { return Ok(Withdrawn::Done) };
    let point = vault.manifest(disk, handover.cycle)?;
    let claim =
        Claim { after: term.term, writer: writer.into(), from: PointRef::from(&point).as_from() };
    step();
    // The term's first point shuts the old source out only if puts are kept apart.
    vault.probe_once()?;
    match vault.take_term(disk, &claim) {
        Ok(_) => Ok(Withdrawn::Done),
        Err(VaultError::Fenced { .. }) => Ok(Withdrawn::TooLate(newest_term(vault, disk)?)),
        Err(e) => Err(e.into()),
    }
}

/// Takes the term for what this host serves: the point of no return. Done before, it is done.
///
/// # Errors
/// [`FailoverError::TakenOver`] if another host was faster; or the vault cannot be read or written: then it is
/// not known, and can be tried again.
pub fn take(
    vault: &Vault,
    record: &FailoverRecord,
    writer: &str,
) -> Result<TermRecord, FailoverError> {
    let Some(point) = record.point else {
        let reason = "it is not known which point it goes on from".into();
        return Err(FailoverError::Refused { name: record.name.clone(), reason });
    };
    let claim = Claim { after: record.after, writer: writer.into(), from: point.as_from() };
    let term = record.after.next();
    if vault.newest_term(record.disk)?.is_some_and(|newest| newest.term == record.after) {
        step();
        vault.hold_from(record.disk, term, &claim.from)?;
    }
    step();
    vault.probe_once()?;
    vault.take_term(record.disk, &claim).map_err(|e| match e {
        VaultError::Fenced { newest, writer, .. } => {
            FailoverError::TakenOver { name: record.name.clone(), term: newest, writer }
        }
        e => e.into(),
    })
}

/// Whether the term that a record was to take is taken by this writer.
///
/// # Errors
/// If the vault cannot be read.
pub fn is_taken(vault: &Vault, record: &FailoverRecord) -> Result<bool, FailoverError> {
    let newest = newest_term(vault, record.disk)?;
    let ours = record.point.map(PointRef::as_from);
    Ok(newest.term == record.after.next() && ours.is_some_and(|from| newest.from == Some(from)))
}
