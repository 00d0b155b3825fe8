//! The rules people write, `all 2h, hourly 2d, daily 30d`, and what they mean for a list of points.
//!
//! Pure: from points and the time to which of them stay. Ages count from the newest point's cut, so
//! that a disk whose source is gone keeps its history while somebody decides what to do.
//!
//! Dates may be wrong, the order of cycles is not. So a point is at least as young as any point before it says
//! to be, and a stretch in which the clock was set back is a stretch of its own: no point takes the place
//! of another that was made before the clock was set.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use backstay_types::{Class, Classified, CycleNo};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// Most rules in one list.
const RULES_MAX: usize = 16;

/// Which points stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Keep {
    rules: Vec<Rule>,
}

/// One rule. A point stays if any rule says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The newest points, so many.
    Last(u64),
    /// Every point not older than this.
    All(Duration),
    /// The newest point of each stretch of the calendar, not older than this.
    Each(Stretch, Duration),
}

/// A stretch of the calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stretch {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A week from Monday (ISO 8601).
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

/// Where and why rules were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("keep = {text:?}: at character {at}: {reason}. Example: \"all 2h, hourly 2d, daily 30d\"")]
pub struct KeepError {
    /// What was written.
    text: String,
    /// The character, from 1.
    at: usize,
    /// What is wrong there.
    reason: String,
}

impl Classified for KeepError {
    fn class(&self) -> Class {
        Class::Person
    }
}

/// What the decision needs to know of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its cycle.
    pub cycle: CycleNo,
    /// The instant it shows, nanoseconds since 1970.
    pub cut_unix_ns: u64,
    /// Whether a pin or another hold covers it.
    pub held: bool,
    /// Whether it is known to be damaged.
    pub damaged: bool,
}

impl FromStr for Keep {
    type Err = KeepError;

    fn from_str(text: &str) -> Result<Self, KeepError> {
        let refuse = |byte: usize, reason: String| KeepError {
            text: text.into(),
            at: text[..byte].chars().count() + 1,
            reason,
        };
        let mut rules: Vec<Rule> = vec![];
        let mut start = 0;
        for part in text.split(',') {
            let at = start + part.len() - part.trim_start().len();
            start += part.len() + 1;
            let mut words = part.split_whitespace();
            let Some(word) = words.next() else {
                return Err(refuse(at.min(text.len()), "a rule is missing".into()));
            };
            let Some(amount) = words.next() else {
                let what = if word == "last" { "how many" } else { "how long, such as 2d" };
                return Err(refuse(at + word.len(), format!("after {word:?}: {what}?")));
            };
            // `amount` lies in `part`: the first one after the word.
            let amount_at = at + word.len() + part.trim_start()[word.len()..].len()
                - part.trim_start()[word.len()..].trim_start().len();
            if let Some(extra) = words.next() {
                let after = amount_at + amount.len();
                let gap = text[after..].len() - text[after..].trim_start().len();
                let reason = format!("{extra:?} is too much; put a comma between rules");
                return Err(refuse(after + gap, reason));
            }
            let rule = match word {
                "last" => match amount.parse::<u64>() {
                    Ok(count) if count > 0 => Rule::Last(count),
                    _ => {
                        let reason = format!("{amount:?} is not a number of points, at least 1");
                        return Err(refuse(amount_at, reason));
                    }
                },
                word => {
                    let Some(kind) = kind_of(word) else {
                        let reason = format!(
                            "{word:?} is not a rule: last, all, hourly, daily, weekly, monthly or \
                             yearly"
                        );
                        return Err(refuse(at, reason));
                    };
                    let long = humantime::parse_duration(amount)
                        .map_err(|e| refuse(amount_at, format!("{amount:?}: {e}")))?;
                    if long.is_zero() {
                        return Err(refuse(amount_at, format!("{amount:?} would keep nothing")));
                    }
                    kind.map_or(Rule::All(long), |stretch| Rule::Each(stretch, long))
                }
            };
            if rules.iter().any(|other| other.word() == rule.word()) {
                return Err(refuse(at, format!("{word:?} is there twice")));
            }
            rules.push(rule);
        }
        if rules.len() > RULES_MAX {
            return Err(refuse(0, format!("more than {RULES_MAX} rules")));
        }
        Ok(Self { rules })
    }
}

fn kind_of(word: &str) -> Option<Option<Stretch>> {
    Some(match word {
        "all" => None,
        "hourly" => Some(Stretch::Hour),
        "daily" => Some(Stretch::Day),
        "weekly" => Some(Stretch::Week),
        "monthly" => Some(Stretch::Month),
        "yearly" => Some(Stretch::Year),
        _ => return None,
    })
}

impl Rule {
    fn word(&self) -> &'static str {
        match self {
            Self::Last(_) => "last",
            Self::All(_) => "all",
            Self::Each(Stretch::Hour, _) => "hourly",
            Self::Each(Stretch::Day, _) => "daily",
            Self::Each(Stretch::Week, _) => "weekly",
            Self::Each(Stretch::Month, _) => "monthly",
            Self::Each(Stretch::Year, _) => "yearly",
        }
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, rule) in self.rules.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            match rule {
                Rule::Last(count) => write!(f, "{comma}{} {count}", rule.word())?,
                Rule::All(long) | Rule::Each(_, long) => {
                    // Words of several units have spaces between them, which separate words here.
                    let long = humantime::format_duration(*long).to_string().replace(' ', "");
                    write!(f, "{comma}{} {long}", rule.word())?;
                }
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for Keep {
    type Error = KeepError;
    fn try_from(text: String) -> Result<Self, KeepError> {
        text.parse()
    }
}

impl From<Keep> for String {
    fn from(keep: Keep) -> String {
        keep.to_string()
    }
}

/// A clock that is set back by more than this begins a new run of dates, in nanoseconds.
const SET_BACK_NS: u64 = 10 * 60 * 1_000_000_000;

/// A point's date, and what the points before it say of it.
struct Dated {
    cycle: CycleNo,
    cut_unix_ns: u64,
    /// The latest date up to here: it was cut after that, if no clock was ahead.
    at_least_unix_ns: u64,
    /// How often the clock was set back before.
    run: usize,
}

/// Points in the order of their cycles, with what they say of each other.
fn dated(points: &[Candidate]) -> Vec<Dated> {
    let (mut latest, mut before, mut run) = (0, 0, 0);
    let date = |point: &Candidate| {
        run += usize::from(point.cut_unix_ns.saturating_add(SET_BACK_NS) < before);
        before = point.cut_unix_ns;
        latest = before.max(latest);
        let (cycle, cut_unix_ns) = (point.cycle, point.cut_unix_ns);
        Dated { cycle, cut_unix_ns, at_least_unix_ns: latest, run }
    };
    points.iter().map(date).collect()
}

/// A number that instants of one stretch share and others do not.
fn stretch_of(stretch: Stretch, unix_ns: u64) -> (i64, i64) {
    let at = Timestamp::from_nanosecond(i128::from(unix_ns)).unwrap_or(Timestamp::MAX);
    let date = at.to_zoned(TimeZone::UTC).datetime();
    let day = i64::from(date.month()) * 100 + i64::from(date.day());
    let year = i64::from(date.year());
    match stretch {
        Stretch::Hour => (year, day * 100 + i64::from(date.hour())),
        Stretch::Day => (year, day),
        Stretch::Week => {
            let week = date.date().iso_week_date();
            (week.year().into(), week.week().into())
        }
        Stretch::Month => (year, date.month().into()),
        Stretch::Year => (year, 0),
    }
}

/// The newest point that is not known to be damaged.
fn newest_whole(points: &[Candidate]) -> Option<&Candidate> {
    points.iter().rev().find(|point| !point.damaged)
}

/// What ages count from, nanoseconds since 1970: the cut of the newest point, or of the newest that is not known to be
/// damaged if that is earlier. Damage that goes on makes no whole point old.
pub(super) fn ages_from(points: &[Candidate], now_unix_ns: u64) -> u64 {
    let newest = points.last().into_iter().chain(newest_whole(points));
    newest.map(|point| point.cut_unix_ns).fold(now_unix_ns, u64::min)
}

impl Keep {
    /// The rules.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The cycles of the points that stay, of points in the order of their cycles.
    ///
    /// The newest always stays, whatever its state, because the next one builds on it; so does the newest one that is
    /// not known to be damaged, and what is held. Of the rest a point stays if a rule keeps it. "Newest" is by cycle:
    /// clocks may have stepped back between two cuts.
    #[must_use]
    pub fn choose(&self, points: &[Candidate], now_unix_ns: u64) -> BTreeSet<CycleNo> {
        let Some(newest) = points.last() else { return BTreeSet::new() };
        let mut stay = self.by_rules(points, ages_from(points, now_unix_ns), true);
        stay.insert(newest.cycle);
        stay.extend(newest_whole(points).map(|point| point.cycle));
        stay
    }

    /// The cycles of the points that are held or kept by a rule; ages count from `from`, nanoseconds
    /// since 1970, and rules that count points from the newest hold only if `counts`.
    ///
    /// A point that is known to be damaged takes no other's place: what the rules would keep if it were not there stays,
    /// too. So to know of damage only ever keeps more.
    pub(super) fn by_rules(
        &self,
        points: &[Candidate],
        from: u64,
        counts: bool,
    ) -> BTreeSet<CycleNo> {
        let mut stay = self.of_all(points, from, counts);
        if points.iter().any(|point| point.damaged) {
            let whole: Vec<Candidate> = points.iter().filter(|p| !p.damaged).copied().collect();
            stay.extend(self.of_all(&whole, from, counts));
        }
        stay
    }

    /// The same, with no regard to damage.
    fn of_all(&self, points: &[Candidate], from: u64, counts: bool) -> BTreeSet<CycleNo> {
        let mut stay: BTreeSet<CycleNo> =
            points.iter().filter(|point| point.held).map(|point| point.cycle).collect();
        let dated = dated(points);
        let young = |point: &&Dated, long: Duration| {
            u128::from(from.saturating_sub(point.at_least_unix_ns)) <= long.as_nanos()
        };
        for rule in &self.rules {
            match *rule {
                Rule::Last(_) if !counts => {}
                Rule::Last(count) => {
                    let count = usize::try_from(count).unwrap_or(usize::MAX);
                    stay.extend(points.iter().rev().take(count).map(|point| point.cycle));
                }
                Rule::All(long) => {
                    stay.extend(dated.iter().filter(|p| young(p, long)).map(|point| point.cycle));
                }
                Rule::Each(stretch, long) => {
                    let mut seen = BTreeSet::new();
                    for point in dated.iter().rev().filter(|p| young(p, long)) {
                        if seen.insert((point.run, stretch_of(stretch, point.cut_unix_ns))) {
                            stay.insert(point.cycle);
                        }
                    }
                }
            }
        }
        stay
    }
}

#[cfg(test)]
#[path = "keep_tests.rs"]
mod tests;
