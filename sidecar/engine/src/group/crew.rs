//! Those who cut together: each is told the same steps, and all must answer before the next one.
//!
//! A mate is a disk of this host or another host. It goes through `Here → Ready → Cut → Thawed →
//! Done`, one answer a step, and may fail at any of them. Dropping the crew tells those that are still held
//! to go on: their channel of commands ends.

use backstay_types::{Class, Classified};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstay_host::clock;
use backstay_vault::GroupMember;
use crossbeam_channel::{Receiver, Sender, unbounded};

/// How long a thaw's answer is waited for; nobody is held any more while it is.
const THAW_ANSWER_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What a mate is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// All are here: have applications wait, if there are any that shall.
    Quiesce,
    /// Cut, and hold for so long at the most.
    Cut(Duration),
    /// All have cut: let writes go on, and say whether they were held until now.
    Thaw,
    /// Ship, commit, and say what was committed.
    Finish,
    /// There will be no group point: let writes go on, and ship alone.
    Abort,
}

/// What a mate answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It has come as far as the cut.
    Here,
    /// Its application waits, if it has one; it can be cut at once.
    Ready,
    /// It was cut and is held.
    Cut,
    /// It is not held any more.
    Thawed {
        /// Whether the hold was in force until it was told to end.
        in_force: bool,
        /// How long writes were held.
        held: Duration,
    },
    /// Its points are committed.
    Done(Vec<GroupMember>),
    /// It failed, for this reason, and does nothing more in this round.
    Failed(String),
}

/// Why a step was not done by all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// One of them failed.
    #[error("{who}: {reason}")]
    Failed {
        /// Which.
        who: String,
        /// Why.
        reason: String,
    },
    /// One of them did not answer in time.
    #[error("{who} did not {step} within {limit:?}")]
    Late {
        /// Which.
        who: String,
        /// What it was to do.
        step: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// A hold ended before all were cut.
    #[error("{who}: its hold ended by itself before all were cut (it lasted {held:?})")]
    Expired {
        /// Which.
        who: String,
        /// How long it had lasted.
        held: Duration,
    },
    /// We were told to stop.
    #[error("stopped")]
    Stopped,
}

impl Classified for Trouble {
    fn class(&self) -> Class {
        match self {
            Self::Failed { .. } | Self::Late { .. } | Self::Expired { .. } | Self::Stopped => {
                Class::Retry
            }
        }
    }
}

/// What a mate needs to take part: its place, its orders, and where its answers go.
#[derive(Debug, Clone)]
pub struct Seat {
    place: usize,
    /// Its orders; ends with the crew.
    pub commands: Receiver<Command>,
    answers: Sender<(usize, Answer)>,
}

impl Seat {
    /// Answers; nobody may be listening any more.
    pub fn answer(&self, answer: Answer) {
        let _ = self.answers.send((self.place, answer));
    }
}

struct Mate {
    who: String,
    commands: Sender<Command>,
    /// What it answered and nobody looked at yet: one may ship while another still thaws.
    inbox: VecDeque<Answer>,
}

/// Those who cut together.
pub struct Crew {
    mates: Vec<Mate>,
    answers: Receiver<(usize, Answer)>,
    sender: Sender<(usize, Answer)>,
    stop: Arc<AtomicBool>,
}

impl Crew {
    /// A crew of nobody yet; `stop`, set from outside, ends each wait.
    #[must_use]
    pub fn new(stop: Arc<AtomicBool>) -> Self {
        let (sender, answers) = unbounded();
        Self { mates: vec![], answers, sender, stop }
    }

    /// Takes one in; what it needs to take part.
    pub fn enlist(&mut self, who: impl Into<String>) -> Seat {
        let (commands, orders) = unbounded();
        let place = self.mates.len();
        self.mates.push(Mate { who: who.into(), commands, inbox: VecDeque::new() });
        Seat { place, commands: orders, answers: self.sender.clone() }
    }

    /// Waits until all have come as far as the cut.
    ///
    /// # Errors
    /// Who has not, within `limit`.
    pub fn here(&mut self, limit: Duration) -> Result<(), Trouble> {
        self.all("come to its cut", limit, |answer| matches!(answer, Answer::Here)).map(drop)
    }

    /// Has all make their applications wait; see [`Self::ready`].
    pub fn quiesce(&self) {
        self.tell(Command::Quiesce);
    }

    /// Waits until all can be cut at once.
    ///
    /// # Errors
    /// Who cannot, or not within `limit`.
    pub fn ready(&mut self, limit: Duration) -> Result<(), Trouble> {
        self.all("get ready", limit, |answer| matches!(answer, Answer::Ready)).map(drop)
    }

    /// Has all cut and held; those who are stay so until the thaw, or `hold` has passed.
    ///
    /// # Errors
    /// Who did not within `hold`: the caller aborts then.
    pub fn cut(&mut self, hold: Duration) -> Result<(), Trouble> {
        self.tell(Command::Cut(hold));
        self.all("cut", hold, |answer| matches!(answer, Answer::Cut)).map(drop)
    }

    /// Lets all go on; how long the longest hold was.
    ///
    /// # Errors
    /// Whose hold had ended by itself, or who did not answer: there was no instant at which all
    /// were held, as far as can be known.
    pub fn thaw(&mut self) -> Result<Duration, Trouble> {
        self.tell(Command::Thaw);
        let answers =
            self.all("thaw", THAW_ANSWER_MAX, |answer| matches!(answer, Answer::Thawed { .. }))?;
        let mut longest = Duration::ZERO;
        for (mate, answer) in self.mates.iter().zip(answers) {
            if let Answer::Thawed { in_force, held } = answer {
                if !in_force {
                    return Err(Trouble::Expired { who: mate.who.clone(), held });
                }
                longest = longest.max(held);
            }
        }
        Ok(longest)
    }

    /// Asks all what they have committed, without waiting for it; see [`Self::done`].
    pub fn finish(&self) {
        self.tell(Command::Finish);
    }

    /// Waits until all have committed; their points. There is no limit but `limit`: each mate
    /// sees to it that it does not wait for the dead.
    ///
    /// # Errors
    /// The first that failed. The others' points exist, or will.
    pub fn done(&mut self, limit: Duration) -> Result<Vec<GroupMember>, Trouble> {
        let answers = self.all("ship", limit, |answer| matches!(answer, Answer::Done(_)))?;
        let points = answers.into_iter().filter_map(|answer| match answer {
            Answer::Done(points) => Some(points),
            _ => None,
        });
        Ok(points.flatten().collect())
    }

    /// There will be no group point: all go on alone. They do, too, when the crew is dropped.
    pub fn abort(&self) {
        self.tell(Command::Abort);
    }

    fn tell(&self, command: Command) {
        for mate in &self.mates {
            // One who is gone has answered that he failed, or will be missed.
            let _ = mate.commands.send(command);
        }
    }

    /// Waits for one answer of each.
    fn all(
        &mut self,
        step: &'static str,
        limit: Duration,
        fits: impl Fn(&Answer) -> bool,
    ) -> Result<Vec<Answer>, Trouble> {
        let began = clock::monotonic();
        loop {
            while let Ok((place, answer)) = self.answers.try_recv() {
                self.mates[place].inbox.push_back(answer);
            }
            for mate in &self.mates {
                let failed = mate.inbox.iter().find_map(|answer| match answer {
                    Answer::Failed(reason) => Some(reason.clone()),
                    _ => None,
                });
                let wrong = |next: &&Answer| !fits(next);
                let reason = failed.or_else(|| {
                    let next = mate.inbox.front().filter(wrong)?;
                    Some(format!("it answered {next:?} when it was to {step}"))
                });
                if let Some(reason) = reason {
                    return Err(Trouble::Failed { who: mate.who.clone(), reason });
                }
            }
            let Some(missing) = self.mates.iter().find(|mate| mate.inbox.is_empty()) else {
                return Ok(self.mates.iter_mut().filter_map(|m| m.inbox.pop_front()).collect());
            };
            if self.stop.load(Ordering::Relaxed) {
                return Err(Trouble::Stopped);
            }
            let left = limit.saturating_sub(clock::since(began));
            if left.is_zero() {
                return Err(Trouble::Late { who: missing.who.clone(), step, limit });
            }
            // The sender kept here never lets the channel end.
            if let Ok((place, answer)) = self.answers.recv_timeout(left.min(LOOK_EVERY)) {
                self.mates[place].inbox.push_back(answer);
            }
        }
    }
}
