//! Where a disk is in its replication (R-30): one type, and what may follow what.
//!
//! ```text
//!                     ┌──────────── failed ───────────┐
//!   InitialQueued ─▶ InitialRunning ─ committed ─▶ Protected ◀─ committed ─ DeltaRunning
//!        ▲  └─◀── failed ──┘                        │  ▲  └── due ─▶ DeltaQueued ─▶┘
//!        │                                          │  └─ committed ─ ResyncRunning
//!      Stopped ◀── unprotect, from anywhere         └▶ ResyncRequired ─▶ ResyncQueued ─▶┘
//! ```
//!
//! The reference's names: *initial queued* and *in progress* are the same here; *test pending* is
//! `Protected` (there are points, and any can be tested or failed over to); *migration in progress
//! (queued)* is the on-demand cycle before a planned failover.

use backstay_types::{Class, Classified};
use serde::{Deserialize, Serialize};

use crate::schedule::Work;

/// Where a disk is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It is not replicated: not yet, or not any more.
    #[default]
    Stopped,
    /// Its first copy waits for a slot.
    InitialQueued,
    /// Its first copy runs.
    InitialRunning,
    /// It has points and waits until the next cycle is due.
    Protected,
    /// A delta is due and waits for a slot or a window.
    DeltaQueued,
    /// A delta runs.
    DeltaRunning,
    /// It must be compared with the vault, which waits for its window.
    ResyncRequired,
    /// The comparison is due and waits for a slot.
    ResyncQueued,
    /// The comparison runs.
    ResyncRunning,
    /// A cycle that somebody waits for is queued.
    OnDemandQueued,
    /// A cycle that somebody waits for runs.
    OnDemandRunning,
}

/// What happens to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A cycle became due.
    Queued(Work),
    /// A resync is needed and its window is closed.
    Held,
    /// A cycle began.
    Began(Work),
    /// It committed a point.
    Committed,
    /// It failed or was not run; `has_points` says where that leaves the disk.
    Ended {
        /// Whether there is a point in the vault.
        has_points: bool,
    },
    /// It is not replicated any more.
    Stopped,
}

/// Something happened that cannot happen there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a disk that is {phase:?}; this is a fault of Backstay")]
pub struct Illegal {
    phase: Phase,
    event: Event,
}

impl Classified for Illegal {
    fn class(&self) -> Class {
        Class::Bug
    }
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Stopped,
        Self::InitialQueued,
        Self::InitialRunning,
        Self::Protected,
        Self::DeltaQueued,
        Self::DeltaRunning,
        Self::ResyncRequired,
        Self::ResyncQueued,
        Self::ResyncRunning,
        Self::OnDemandQueued,
        Self::OnDemandRunning,
    ];

    /// Whether a cycle runs.
    #[must_use]
    pub fn is_running(self) -> bool {
        use Phase::{DeltaRunning, InitialRunning, OnDemandRunning, ResyncRunning};
        matches!(self, InitialRunning | DeltaRunning | ResyncRunning | OnDemandRunning)
    }

    /// Where a disk is after an event.
    ///
    /// # Errors
    /// If that cannot happen there.
    pub fn after(self, event: Event) -> Result<Self, Illegal> {
        let illegal = Err(Illegal { phase: self, event });
        match event {
            Event::Stopped => Ok(Self::Stopped),
            // While a cycle runs, only its end can come.
            Event::Queued(_) | Event::Held | Event::Began(_) if self.is_running() => illegal,
            Event::Queued(work) => match work {
                Work::Initial => Ok(Self::InitialQueued),
                Work::Delta => Ok(Self::DeltaQueued),
                Work::Resync => Ok(Self::ResyncQueued),
                Work::OnDemand => Ok(Self::OnDemandQueued),
            },
            Event::Held => Ok(Self::ResyncRequired),
            Event::Began(work) => match (self, work) {
                (Self::InitialQueued, Work::Initial) => Ok(Self::InitialRunning),
                (Self::DeltaQueued, Work::Delta) => Ok(Self::DeltaRunning),
                (Self::ResyncQueued, Work::Resync) => Ok(Self::ResyncRunning),
                (Self::OnDemandQueued, Work::OnDemand) => Ok(Self::OnDemandRunning),
                _ => illegal,
            },
            // What ended may have begun without a word: where the record cannot be written, nobody knows of it.
            Event::Committed | Event::Ended { .. } if self == Self::Stopped => Ok(Self::Stopped),
            Event::Committed => Ok(Self::Protected),
            Event::Ended { has_points: true } => Ok(Self::Protected),
            Event::Ended { has_points: false } => Ok(Self::InitialQueued),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Phase::*;

    const WORKS: [Work; 4] = [Work::OnDemand, Work::Initial, Work::Resync, Work::Delta];

    fn events() -> Vec<Event> {
        let both = |work| [Event::Queued(work), Event::Began(work)];
        let ended = [true, false].map(|has_points| Event::Ended { has_points });
        let rest = [Event::Held, Event::Committed, Event::Stopped];
        WORKS.into_iter().flat_map(both).chain(ended).chain(rest).collect()
    }

    /// Every pair: what runs began where it was queued, and can always end and stop.
    #[test]
    fn every_pair_is_legal_or_not_for_a_reason() {
        for phase in Phase::ALL {
            for event in events() {
                let after = phase.after(event);
                let legal = match event {
                    Event::Stopped | Event::Committed | Event::Ended { .. } => true,
                    Event::Queued(_) | Event::Held => !phase.is_running(),
                    Event::Began(work) => Stopped.after(Event::Queued(work)) == Ok(phase),
                };
                assert_eq!(after.is_ok(), legal, "{phase:?} {event:?}");
                if let (Ok(after), Event::Began(_)) = (after, event) {
                    assert!(after.is_running());
                }
            }
        }
    }

    #[test]
    fn the_life_of_a_disk() {
        let life = [
            (Event::Queued(Work::Initial), InitialQueued),
            (Event::Began(Work::Initial), InitialRunning),
            (Event::Ended { has_points: false }, InitialQueued),
            (Event::Began(Work::Initial), InitialRunning),
            (Event::Committed, Protected),
            (Event::Queued(Work::Delta), DeltaQueued),
            (Event::Began(Work::Delta), DeltaRunning),
            (Event::Ended { has_points: true }, Protected),
            (Event::Held, ResyncRequired),
            (Event::Queued(Work::Resync), ResyncQueued),
            (Event::Began(Work::Resync), ResyncRunning),
            (Event::Committed, Protected),
            (Event::Stopped, Stopped),
        ];
        let mut phase = Phase::default();
        for (event, then) in life {
            phase = phase.after(event).unwrap();
            assert_eq!(phase, then);
        }
    }
}
