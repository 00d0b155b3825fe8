//! What about a vault's keys should worry somebody while the disks still run, so that a lost key is told before it matters.
//!
//! A host looks from where it stands. What it has itself is lost with it; so what counts is whether a key that is *elsewhere*
//! was shown to open the vault, lately. Anyone who has one shows it with `backstay key check`, which leaves a proof
//! ([`super::proofs`]).

use std::time::Duration;

use super::keyring::{Keyring, Slot};
use super::proofs::KeyProof;
use super::vault::Tried;

/// How long a proof counts, unless somebody says otherwise.
pub const STALE_DEFAULT: Duration = Duration::from_secs(90 * 86_400);

/// Something to worry about.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Worry {
    /// A key that this host was told to use opens nothing.
    Unusable {
        /// What it is: never the secret.
        key: String,
        /// Why.
        problem: String,
    },
    /// The only key was never shown anywhere but here.
    Alone,
    /// Nobody has shown for long that a key is there that is not this host's.
    Unproved {
        /// When one was shown last, or made; nanoseconds since 1970.
        since_unix_ns: u64,
    },
    /// This host seals to a generation that was replaced.
    OldGeneration {
        /// The one of its writer's key.
        ours: u32,
        /// The newest.
        newest: u32,
    },
}

/// What is known of a vault's keys.
#[derive(Debug)]
pub struct Known<'a> {
    /// Who can open it.
    pub keyring: &'a Keyring,
    /// Proofs of its slots.
    pub proofs: &'a [KeyProof],
    /// What this host has, and what it opened. Nothing on a host that only writes.
    pub tried: &'a [Tried],
    /// The generation that this host seals to, if it only writes.
    pub writes_to: Option<u32>,
    /// This host, as its proofs call it.
    pub host: &'a str,
}

/// What to worry about.
#[must_use]
pub fn worries(known: &Known<'_>, now_unix_ns: u64, stale: Duration) -> Vec<Worry> {
    let Known { keyring, proofs, tried, writes_to, host } = known;
    let mut found = vec![];
    for one in tried.iter() {
        if let Some(problem) = &one.problem {
            found.push(Worry::Unusable { key: one.what.clone(), problem: problem.clone() });
        }
    }
    let newest = keyring.generations.len() as u32;
    if let Some(ours) = writes_to.filter(|&ours| ours < newest) {
        found.push(Worry::OldGeneration { ours, newest });
    }
    let ours = |slot: &Slot| tried.iter().any(|one| one.slot == Some(slot.slot));
    // A slot of ours counts if it was opened somewhere else: then there is a copy.
    let shown = |slot: &Slot| {
        let of_it = proofs.iter().filter(|proof| proof.slot == slot.slot);
        let elsewhere = of_it.filter(|proof| !ours(slot) || proof.by != *host);
        let made = (!ours(slot)).then_some(slot.since_unix_ns);
        elsewhere.map(|proof| proof.proved_unix_ns).chain(made).max()
    };
    match keyring.slots.iter().filter_map(shown).max() {
        None => found.push(Worry::Alone),
        Some(since_unix_ns)
            if now_unix_ns.saturating_sub(since_unix_ns) >= stale.as_nanos() as u64 =>
        {
            found.push(Worry::Unproved { since_unix_ns });
        }
        Some(_) => {}
    }
    found
}

impl std::fmt::Display for Worry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unusable { key, problem } => write!(
                f,
                "{key}: {problem}. What this host has opened goes on until its process ends or the vault's key is \
                 rotated; then nothing does"
            ),
            Self::Alone => f.write_str(
                "only keys that are on this host open the vault: lost with it, they take every recovery point \
                 along. Add one that is kept elsewhere (backstay key add), or show that there is a copy of this one: \
                 backstay key check on another host",
            ),
            Self::Unproved { since_unix_ns } => {
                let at = std::time::UNIX_EPOCH + Duration::from_nanos(*since_unix_ns);
                write!(
                    f,
                    "nobody has shown since {} that a key which is not this host's opens the vault: run \
                     backstay key check where one is kept, while the disks still run",
                    humantime::format_rfc3339_seconds(at)
                )
            }
            Self::OldGeneration { ours, newest } => write!(
                f,
                "this host seals to generation {ours} of the vault's key, and the newest is {newest}: who had a key \
                 that was removed since may read what is shipped. Give it a new writer's key: backstay key grant"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encrypt::keyring::{NewSlot, SlotKind};
    use zeroize::Zeroizing;

    const DAY: u64 = 86_400 * 1_000_000_000;

    fn keyring(slots: u8) -> Keyring {
        let secret = |byte| NewSlot::KeyFile(Zeroizing::new(vec![byte; 64]));
        let made = Keyring::new(uuid::Uuid::from_bytes([1; 16]), 1, "", &secret(0));
        let (mut keyring, opened) = made.unwrap();
        for byte in 1..slots {
            keyring = keyring.with_slot(&opened, "", &secret(byte)).unwrap().0;
        }
        keyring.slots.iter_mut().for_each(|slot| slot.since_unix_ns = DAY);
        assert!(keyring.slots.iter().all(|slot| slot.kind == SlotKind::KeyFile));
        keyring
    }

    fn proof(slot: u32, day: u64, by: &str) -> KeyProof {
        KeyProof { slot, proved_unix_ns: day * DAY, by: by.into() }
    }

    fn opens(slot: u32) -> Tried {
        Tried { what: "key file /k".into(), slot: Some(slot), problem: None }
    }

    fn on(day: u64, keyring: &Keyring, proofs: &[KeyProof], tried: &[Tried]) -> Vec<Worry> {
        let known = Known { keyring, proofs, tried, writes_to: None, host: "here" };
        worries(&known, day * DAY, STALE_DEFAULT)
    }

    #[test]
    fn a_key_that_is_only_here_is_none_when_this_host_is_gone() {
        let one = keyring(1);
        let here = [opens(1)];
        assert_eq!(on(2, &one, &[], &here), [Worry::Alone]);
        assert_eq!(on(2, &one, &[proof(1, 2, "here")], &here), [Worry::Alone]);
        assert_eq!(on(2, &one, &[proof(1, 2, "safe"), proof(1, 3, "here")], &here), []);
        let late = on(95, &one, &[proof(1, 2, "safe"), proof(1, 94, "here")], &here);
        assert_eq!(late, [Worry::Unproved { since_unix_ns: 2 * DAY }]);
    }

    #[test]
    fn a_key_that_is_elsewhere_counts_from_when_it_was_made_and_is_asked_for_in_time() {
        let two = keyring(2);
        assert_eq!(on(2, &two, &[], &[opens(1)]), []);
        let late = on(91, &two, &[proof(1, 90, "here")], &[opens(1)]);
        assert_eq!(late, [Worry::Unproved { since_unix_ns: DAY }]);
        assert_eq!(on(91, &two, &[proof(2, 90, "safe")], &[opens(1)]), []);
        // Both on this host, and nowhere else.
        assert_eq!(on(2, &two, &[], &[opens(1), opens(2)]), [Worry::Alone]);
    }

    #[test]
    fn who_only_writes_asks_whether_anybody_can_read() {
        let one = keyring(1);
        assert_eq!(on(2, &one, &[], &[]), []);
        assert_eq!(on(91, &one, &[], &[]), [Worry::Unproved { since_unix_ns: DAY }]);
        let proofs = [proof(1, 80, "here")];
        let known =
            Known { keyring: &one, proofs: &proofs, tried: &[], writes_to: Some(0), host: "here" };
        let found = worries(&known, 91 * DAY, STALE_DEFAULT);
        assert_eq!(found, [Worry::OldGeneration { ours: 0, newest: 1 }]);
    }

    #[test]
    fn a_key_that_went_away_is_told_though_another_opens() {
        let two = keyring(2);
        let gone = Tried { what: "key file /k".into(), slot: None, problem: Some("gone".into()) };
        let found = on(2, &two, &[], &[opens(2), gone]);
        assert!(matches!(&found[..], [Worry::Unusable { .. }]), "{found:?}");
    }
}
