//! How windows are written: R-38's syntax, read strictly and printed again.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Time, Weekday};

use super::weekly::{WeeklyWindows, Window};

/// The most windows there may be.
pub const WINDOWS_MAX: usize = 64;
/// The longest a window may be.
pub const MINUTES_MAX: u32 = 7 * DAY;

const HOUR: u32 = 60;
const DAY: u32 = 24 * HOUR;

const DAYS: [(&str, Weekday); 7] = [
    ("Monday", Weekday::Monday),
    ("Tuesday", Weekday::Tuesday),
    ("Wednesday", Weekday::Wednesday),
    ("Thursday", Weekday::Thursday),
    ("Friday", Weekday::Friday),
    ("Saturday", Weekday::Saturday),
    ("Sunday", Weekday::Sunday),
];

/// What is wrong with windows, and where. Shown as a message, the text, and marks below the mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowError {
    text: String,
    /// In bytes of the text, at the edges of characters.
    at: std::ops::Range<usize>,
    message: String,
}

impl WindowError {
    /// The character at which the mistake begins, from 1.
    #[must_use]
    pub fn character(&self) -> usize {
        self.text.get(..self.at.start).map_or(0, |before| before.chars().count()) + 1
    }
}

impl fmt::Display for WindowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let marked = self.text.get(self.at.clone()).map_or(0, |part| part.chars().count()).max(1);
        writeln!(f, "windows, character {}: {}", self.character(), self.message)?;
        // A line break in the text would move the marks away from what they mark.
        let shown: String =
            self.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        writeln!(f, "  {shown}")?;
        write!(f, "  {}{}", " ".repeat(self.character() - 1), "^".repeat(marked))
    }
}

impl std::error::Error for WindowError {}

/// A part of a text that knows where it is.
#[derive(Clone, Copy)]
struct Part<'a> {
    whole: &'a str,
    at: usize,
    text: &'a str,
}

impl<'a> Part<'a> {
    fn error(self, message: impl Into<String>) -> WindowError {
        WindowError {
            text: self.whole.into(),
            at: self.at..self.at + self.text.len(),
            message: message.into(),
        }
    }

    fn split(self, by: char) -> impl Iterator<Item = Part<'a>> {
        let mut at = self.at;
        self.text.split(by).map(move |text| {
            let part = Part { whole: self.whole, at, text };
            at += text.len() + by.len_utf8();
            part
        })
    }

    fn trim(self) -> Self {
        let text = self.text.trim_start_matches(' ');
        let at = self.at + self.text.len() - text.len();
        Part { at, text: text.trim_end_matches(' '), ..self }
    }
}

impl FromStr for WeeklyWindows {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let whole = Part { whole: text, at: 0, text };
        if whole.trim().text.is_empty() {
            return Ok(Self::default());
        }
        let mut windows = vec![];
        for part in whole.split('|') {
            if windows.len() == WINDOWS_MAX {
                return Err(part.error(format!("more than {WINDOWS_MAX} windows")));
            }
            windows.push(window(part.trim())?);
        }
        Ok(Self::new(windows))
    }
}

fn window(part: Part<'_>) -> Result<Window, WindowError> {
    const FORM: &str = "a window is day;time;duration, as in Monday;7:00;7h";
    if part.text.is_empty() {
        return Err(part.error(format!("a window is missing: {FORM}")));
    }
    let mut fields = part.split(';');
    let (Some(name), Some(begin), Some(length), None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(part.error(FORM));
    };
    Ok(Window { day: day(name)?, begin: time(begin)?, minutes: duration(length)? })
}

fn day(part: Part<'_>) -> Result<Weekday, WindowError> {
    if let Some((_, day)) = DAYS.iter().find(|(name, _)| *name == part.text) {
        return Ok(*day);
    }
    let near = |name: &str| {
        let typed = part.text.trim().to_ascii_lowercase();
        typed.get(..2).is_some_and(|start| name.to_ascii_lowercase().starts_with(start))
    };
    Err(part.error(match DAYS.iter().find(|(name, _)| near(name)) {
        Some((name, _)) => format!("not a day of the week: {name} is meant?"),
        None => "not a day of the week: Monday, Tuesday, ... Sunday".into(),
    }))
}

/// Digits, and nothing but digits.
fn number(text: &str) -> Option<u32> {
    if text.is_empty() || text.len() > 9 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn time(part: Part<'_>) -> Result<Time, WindowError> {
    let parsed = part.text.split_once(':').and_then(|(hours, minutes)| {
        let fits = hours.len() <= 2 && minutes.len() == 2;
        let (hours, minutes) = (number(hours)?, number(minutes)?);
        let time = Time::new(hours.try_into().ok()?, minutes.try_into().ok()?, 0, 0).ok()?;
        fits.then_some(time)
    });
    parsed.ok_or_else(|| part.error("not a time of day: 0:00 to 23:59"))
}

/// In minutes.
fn duration(part: Part<'_>) -> Result<u32, WindowError> {
    const FORM: &str = "not a duration: days, hours, minutes in this order, as in 7h or 1d7h30m";
    let mut minutes = 0u64;
    let mut rest = part.text;
    for (unit, worth) in [('d', DAY), ('h', HOUR), ('m', 1)] {
        if let Some((count, after)) = rest.split_once(unit) {
            let count = number(count).ok_or_else(|| part.error(FORM))?;
            minutes += u64::from(count) * u64::from(worth);
            rest = after;
        }
    }
    if !rest.is_empty() || part.text.is_empty() {
        return Err(part.error(FORM));
    }
    match u32::try_from(minutes) {
        Ok(0) => Err(part.error("a window of no length")),
        Ok(minutes) if minutes <= MINUTES_MAX => Ok(minutes),
        _ => Err(part.error("longer than 7 days")),
    }
}

impl fmt::Display for WeeklyWindows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, window) in self.windows().iter().enumerate() {
            if number > 0 {
                f.write_str(" | ")?;
            }
            write!(f, "{window}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let day = DAYS.iter().find(|(_, day)| *day == self.day).map_or("", |(name, _)| name);
        write!(f, "{day};{}:{:02};", self.begin.hour(), self.begin.minute())?;
        let (days, hours, minutes) =
            (self.minutes / DAY, self.minutes % DAY / HOUR, self.minutes % HOUR);
        for (count, unit) in [(days, 'd'), (hours, 'h'), (minutes, 'm')] {
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

super::zone::serde_as_text!(WeeklyWindows, "windows, as in \"Monday;7:00;7h | Tuesday;8:00;1d7h\"");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_syntax_of_r38() {
        let text = "Monday;7:00;7h | Tuesday;8:00;1d7h";
        let windows: WeeklyWindows = text.parse().unwrap();
        assert_eq!(windows.windows().len(), 2);
        assert_eq!(windows.windows()[1].minutes, 31 * 60);
        assert_eq!(windows.to_string(), text);
        let loose: WeeklyWindows = "  Monday;07:00;7h|Tuesday;8:00;1d7h ".parse().unwrap();
        assert_eq!(loose, windows);
        assert_eq!("".parse::<WeeklyWindows>().unwrap(), WeeklyWindows::default());
        assert_eq!(
            "Sunday;23:59;36h".parse::<WeeklyWindows>().unwrap().to_string(),
            "Sunday;23:59;1d12h"
        );
    }

    /// Each with the character at which the mistake begins.
    #[test]
    fn a_mistake_is_shown_where_it_is() {
        for (text, at, says) in [
            ("Mondy;7:00;7h", 1, "Monday is meant?"),
            ("monday;7:00;7h", 1, "Monday is meant?"),
            ("Foo;7:00;7h", 1, "not a day"),
            ("Monday;7:00;7h | Tuesday;8:00;1x", 31, "not a duration"),
            ("Monday;7:00;7h | Tuesday;24:00;1h", 26, "not a time"),
            ("Monday;7:0;7h", 8, "not a time"),
            ("Monday;007:00;7h", 8, "not a time"),
            ("Monday;+7:00;7h", 8, "not a time"),
            ("Monday;7;7h", 8, "not a time"),
            ("Monday; 7:00;7h", 8, "not a time"),
            ("Monday;7:00;", 13, "not a duration"),
            ("Monday;7:00;7h1d", 13, "not a duration"),
            ("Monday;7:00;7", 13, "not a duration"),
            ("Monday;7:00;0h", 13, "no length"),
            ("Monday;7:00;7d1m", 13, "longer than 7 days"),
            ("Monday;7:00;999999999d", 13, "longer than 7 days"),
            ("Monday;7:00", 1, "day;time;duration"),
            ("Monday;7:00;7h;", 1, "day;time;duration"),
            ("Monday;7:00;7h |", 17, "missing"),
            ("| Monday;7:00;7h", 1, "missing"),
            ("Monday;7:00;7h Tuesday;8:00;1h", 1, "day;time;duration"),
            ("Ärger;7:00;7h", 1, "not a day"),
        ] {
            let error = text.parse::<WeeklyWindows>().unwrap_err();
            assert_eq!(error.character(), at, "{error}");
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
        let error = "Monday;7:00;7h | Ärger;8:00;1h".parse::<WeeklyWindows>().unwrap_err();
        let shown = error.to_string();
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[1], "  Monday;7:00;7h | Ärger;8:00;1h");
        assert_eq!(lines[2], "                   ^^^^^");
        let many = vec!["Monday;7:00;7h"; WINDOWS_MAX + 1].join("|");
        assert!(many.parse::<WeeklyWindows>().unwrap_err().to_string().contains("more than"));
    }

    proptest! {
        #[test]
        fn any_text_is_windows_or_an_error(text in "[MondayTues;|:0-9dhm \\PC]{0,60}") {
            match text.parse::<WeeklyWindows>() {
                Ok(windows) => {
                    let again: WeeklyWindows = windows.to_string().parse().unwrap();
                    prop_assert_eq!(again, windows);
                }
                Err(e) => prop_assert!(e.to_string().contains('^')),
            }
        }

        #[test]
        fn what_is_printed_is_read_again(windows in super::super::weekly::tests::some_windows()) {
            let again: WeeklyWindows = windows.to_string().parse().unwrap();
            prop_assert_eq!(again, windows);
        }
    }
}
