//! The messages between the hosts of a group; docs/explanation/groups.md says the same in words.
//!
//! A header of 20 bytes (magic, version, length, checksum) and a body of JSON. The length is checked
//! before the body is waited for; what is no message ends the connection.

use backstay_format::FormatError;
use backstay_format::framing::Framing;
pub use backstay_format::framing::HEADER_BYTES;
use backstay_types::{CycleNo, DiskId, DiskName, PointId};
use backstay_vault::{GroupMember, GroupName};
use serde::{Deserialize, Serialize};

/// Longest body.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// The bytes of these messages.
pub const FRAMING: Framing = Framing {
    what: "group message",
    magic: b"BSTYGRUP",
    version: 1,
    body_bytes_max: BODY_BYTES_MAX,
};

/// What a coordinator says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask", deny_unknown_fields)]
pub enum Ask {
    /// To [`Tell::Hello`]: you are one of this group's hosts.
    Welcome,
    /// Are you there?
    Ping,
    /// A round begins: come as far as the cut.
    Prepare {
        /// Which; a random number.
        round: u64,
    },
    /// All have come as far as the cut: have applications wait, if there are any that shall.
    Quiesce {
        /// The round.
        round: u64,
    },
    /// Cut now, and hold.
    Cut {
        /// The round.
        round: u64,
        /// The longest hold, in nanoseconds.
        hold_ns: u64,
    },
    /// All have cut: let go.
    Thaw {
        /// The round.
        round: u64,
    },
    /// Ship, commit, and say what was committed.
    Finish {
        /// The round.
        round: u64,
    },
    /// There will be no group point: let go, and ship alone.
    Abort {
        /// The round.
        round: u64,
    },
}

/// What a member says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "tell", deny_unknown_fields)]
pub enum Tell {
    /// First of all.
    Hello {
        /// The group it belongs to.
        group: GroupName,
    },
    /// To [`Ask::Ping`].
    Pong,
    /// Still at it; an answer will come.
    Working {
        /// The round.
        round: u64,
    },
    /// All its disks have come as far as the cut.
    Here {
        /// The round.
        round: u64,
    },
    /// All its disks can be cut at once.
    Ready {
        /// The round.
        round: u64,
    },
    /// It cannot do what was asked; its disks go on alone.
    Failed {
        /// The round.
        round: u64,
        /// Why, for a person.
        reason: String,
    },
    /// All its disks were cut and are held.
    Cut {
        /// The round.
        round: u64,
    },
    /// None of its disks is held any more.
    Thawed {
        /// The round.
        round: u64,
        /// Whether all were held until the thaw came.
        in_force: bool,
        /// How long the longest hold was, in nanoseconds.
        held_ns: u64,
    },
    /// All its disks have committed.
    Done {
        /// The round.
        round: u64,
        /// Their points.
        points: Vec<Point>,
    },
    /// To [`Ask::Abort`].
    Aborted {
        /// The round.
        round: u64,
    },
}

/// A recovery point that a member has committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// The disk.
    pub disk: DiskId,
    /// Its name.
    pub name: DiskName,
    /// The cycle.
    pub cycle: CycleNo,
    /// The point's identity.
    pub point: PointId,
    /// When it was cut, by the member's clock; nanoseconds since 1970.
    pub cut_unix_ns: u64,
}

impl Tell {
    /// The round it is about.
    #[must_use]
    pub fn round(&self) -> Option<u64> {
        match self {
            Self::Hello { .. } | Self::Pong => None,
            Self::Working { round }
            | Self::Here { round }
            | Self::Ready { round }
            | Self::Failed { round, .. }
            | Self::Cut { round }
            | Self::Thawed { round, .. }
            | Self::Done { round, .. }
            | Self::Aborted { round } => Some(*round),
        }
    }
}

impl From<GroupMember> for Point {
    fn from(member: GroupMember) -> Self {
        let GroupMember { disk, name, cycle, point, cut_unix_ns, .. } = member;
        Self { disk, name, cycle, point, cut_unix_ns }
    }
}

impl Point {
    /// As a host's part of a group point.
    #[must_use]
    pub fn of_host(self, host: &str) -> GroupMember {
        let Self { disk, name, cycle, point, cut_unix_ns } = self;
        GroupMember { host: Some(host.into()), disk, name, cycle, point, cut_unix_ns }
    }
}

/// Takes a message from the front of what came: `None` if the rest of it has not come yet; else the
/// message and how many bytes it took.
///
/// # Errors
/// If it can become no message, however it goes on.
pub fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<Option<(T, usize)>, FormatError> {
    let known = bytes.len().min(FRAMING.magic.len());
    if bytes[..known] != FRAMING.magic[..known] {
        return Err(FormatError::Magic { what: FRAMING.what });
    }
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let (len, crc) = FRAMING.decode_header(header)?;
    let end = HEADER_BYTES + len;
    let Some(body) = bytes.get(HEADER_BYTES..end) else { return Ok(None) };
    Ok(Some((FRAMING.decode_body(body, crc)?, end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asks() -> Vec<Ask> {
        vec![
            Ask::Welcome,
            Ask::Ping,
            Ask::Prepare { round: 7 },
            Ask::Quiesce { round: 7 },
            Ask::Cut { round: 7, hold_ns: 200_000_000 },
            Ask::Thaw { round: 7 },
            Ask::Finish { round: 7 },
            Ask::Abort { round: u64::MAX },
        ]
    }

    fn tells() -> Vec<Tell> {
        let point = Point {
            disk: DiskId::from_bytes([1; 16]),
            name: "log".parse().unwrap(),
            cycle: CycleNo(41),
            point: PointId::from_bytes([2; 16]),
            cut_unix_ns: 1_700_000_000_000_000_001,
        };
        vec![
            Tell::Hello { group: "shop".parse().unwrap() },
            Tell::Pong,
            Tell::Working { round: 7 },
            Tell::Here { round: 7 },
            Tell::Ready { round: 7 },
            Tell::Failed { round: 7, reason: "disk log: busy".into() },
            Tell::Cut { round: 7 },
            Tell::Thawed { round: 7, in_force: true, held_ns: 1_500_000 },
            Tell::Done { round: 7, points: vec![point] },
            Tell::Aborted { round: 7 },
        ]
    }

    /// The bytes that version 1 says: a host of an older Backstay must understand them.
    #[test]
    fn golden() {
        let said = |bytes: Vec<Vec<u8>>| bytes.concat();
        let all = [
            said(asks().iter().map(|m| FRAMING.encode(m).unwrap()).collect()),
            said(tells().iter().map(|m| FRAMING.encode(m).unwrap()).collect()),
        ]
        .concat();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/group-messages.bin");
        if std::env::var_os("BACKSTAY_GOLDEN_WRITE").is_some() {
            std::fs::write(path, &all).unwrap();
        }
        assert!(all == std::fs::read(path).unwrap(), "the messages of version 1 have changed");
        let mut rest = &all[..];
        for ask in asks() {
            let (message, taken) = decode::<Ask>(rest).unwrap().unwrap();
            assert_eq!(message, ask);
            rest = &rest[taken..];
        }
        for tell in tells() {
            let (message, taken) = decode::<Tell>(rest).unwrap().unwrap();
            assert_eq!(message, tell);
            rest = &rest[taken..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn long_bodies_are_refused_before_they_come() {
        let mut bytes = FRAMING.encode(&Ask::Ping).unwrap();
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(decode::<Ask>(&bytes), Err(FormatError::Bounds { .. })));
        let reason = "x".repeat(BODY_BYTES_MAX);
        assert!(FRAMING.encode(&Tell::Failed { round: 1, reason }).is_err());
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let mut bytes = FRAMING.encode(&Ask::Ping).unwrap();
        bytes[8] = 2;
        assert!(matches!(decode::<Ask>(&bytes), Err(FormatError::Version { found: 2, .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_a_message_or_not(bytes: Vec<u8>) {
            let _ = decode::<Ask>(&bytes);
            // Also as the body of a message whose header fits, so that the fields are reached.
            let mut message = FRAMING.magic.to_vec();
            message.extend_from_slice(&FRAMING.version.to_le_bytes());
            message.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            message.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
            message.extend(&bytes);
            let _ = decode::<Ask>(&message);
            let _ = decode::<Tell>(&message);
        }

        #[test]
        fn any_change_of_a_body_is_refused(which in 0usize..10, at: prop::sample::Index, byte: u8) {
            let mut bytes = FRAMING.encode(&tells()[which]).unwrap();
            let at = at.index(bytes.len());
            prop_assume!(bytes[at] != byte);
            bytes[at] = byte;
            // A length that grew asks for more to come; nothing else is believed.
            let found = decode::<Tell>(&bytes);
            prop_assert!(!matches!(found, Ok(Some(_))), "{:?}", found);
        }

        #[test]
        fn a_part_of_a_message_waits_for_the_rest(which in 0usize..10, at: prop::sample::Index) {
            let bytes = FRAMING.encode(&tells()[which]).unwrap();
            let part = &bytes[..at.index(bytes.len())];
            prop_assert_eq!(decode::<Tell>(part).unwrap(), None);
        }
    }
}
