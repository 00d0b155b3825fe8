//! Who may do what: a function of the role, what is to be done, and the object, where the disk is one of the
//! certificate's ([`crate::owners`] says so). docs/reference/gateway.md has it as a table; what is not in it is refused.

use crate::pki::Role;
use backstay_vault::format::key::{ObjectKey, Piece};

/// What is to be done with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// To read it, or to see that it is there.
    Get,
    /// To put it where there is none.
    Put,
    /// To delete it.
    Delete,
}

/// What is let through, and under which condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// As it is.
    Yes,
    /// Of a segment only header, index and footer.
    IndexOnly,
    /// Not at all.
    No,
}

/// Whether a role has a right to an object of a disk that is its own.
#[must_use]
pub fn right(role: Role, verb: Verb, key: &ObjectKey) -> Right {
    use ObjectKey as K;
    let yes_if = |yes: bool| if yes { Right::Yes } else { Right::No };
    match (verb, key) {
        // Stores are tried from where they are.
        (_, K::Probe(_)) => Right::No,
        (Verb::Get, K::Disk(_, Piece::Segment { .. })) if role == Role::Source => Right::IndexOnly,
        (Verb::Get, _) => Right::Yes,
        // `crate::admission` also checks the content of what is put.
        (Verb::Put, K::Vault | K::Keyring(_) | K::KeyNote(..)) => Right::No,
        (Verb::Put, K::Proof(..)) => yes_if(role != Role::Source),
        (Verb::Put, K::Name(..) | K::GroupPoint(..)) => yes_if(role != Role::Maintainer),
        (Verb::Put, K::Disk(_, piece)) => yes_if(match piece {
            Piece::Record | Piece::Handover(_) | Piece::Segment { .. } | Piece::Point(_) => {
                role != Role::Maintainer
            }
            // A source begins its disk; taking one over is recovery's.
            Piece::Term(term) => role == Role::Recovery || (role == Role::Source && term.0 == 1),
            Piece::Hold(..) => true,
            // A source holds nothing for longer than it compares.
            Piece::Held(..) => role != Role::Source,
            Piece::Drill(..) => role == Role::Recovery,
            // The revision without merges, before a point lays over an old one.
            Piece::Ledger(_) => role == Role::Recovery,
        }),
        // Points and segments go by retention alone, which runs here.
        // The proof before, when there is a new one.
        (Verb::Delete, K::Proof(..) | K::Disk(_, Piece::Hold(..))) => yes_if(role != Role::Source),
        (Verb::Delete, _) => Right::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_types::{CycleNo, DiskId, Term};
    use backstay_vault::format::key::KeyNote;
    use backstay_vault::format::segment::SegmentId;

    fn keys() -> Vec<ObjectKey> {
        let disk = DiskId::from_bytes([7; 16]);
        let segment = SegmentId { disk, cycle: CycleNo(1), attempt: 1, number: 0 };
        let of = |piece| ObjectKey::Disk(disk, piece);
        vec![
            ObjectKey::Vault,
            ObjectKey::Keyring(1),
            ObjectKey::KeyNote(KeyNote::Bounds, [0; 32]),
            ObjectKey::Proof(1, 1),
            ObjectKey::Name("db".parse().unwrap(), 1),
            ObjectKey::GroupPoint("shop".parse().unwrap(), 1),
            of(Piece::Record),
            of(Piece::Term(Term(1))),
            of(Piece::Term(Term(2))),
            of(Piece::Handover(Term(1))),
            segment.key(),
            of(Piece::Point(CycleNo(1))),
            of(Piece::Ledger(1)),
            of(Piece::Hold(1, "h".parse().unwrap())),
            of(Piece::Held(CycleNo(1), 1)),
            of(Piece::Drill(CycleNo(1), disk.0)),
            ObjectKey::Probe(disk.0),
        ]
    }

    /// The table of docs/reference/gateway.md, row by row.
    #[test]
    fn the_table() {
        let mark = |role, verb| -> String {
            let mark = |right| match right {
                Right::Yes => 'y',
                Right::IndexOnly => 'i',
                Right::No => '-',
            };
            keys().iter().map(|key| mark(right(role, verb, key))).collect()
        };
        //                                               VKBPNGRTthSPLHMDX
        assert_eq!(mark(Role::Source, Verb::Get), "yyyyyyyyyyiyyyyy-");
        assert_eq!(mark(Role::Source, Verb::Put), "----yyyy-yyy-y---");
        assert_eq!(mark(Role::Source, Verb::Delete), "-----------------");
        assert_eq!(mark(Role::Recovery, Verb::Get), "yyyyyyyyyyyyyyyy-");
        assert_eq!(mark(Role::Recovery, Verb::Put), "---yyyyyyyyyyyyy-");
        assert_eq!(mark(Role::Recovery, Verb::Delete), "---y---------y---");
        assert_eq!(mark(Role::Maintainer, Verb::Get), "yyyyyyyyyyyyyyyy-");
        assert_eq!(mark(Role::Maintainer, Verb::Put), "---y---------yy--");
        assert_eq!(mark(Role::Maintainer, Verb::Delete), "---y---------y---");
    }
}
