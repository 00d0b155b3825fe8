//! What a verb fails with: what to do about it, and what is said.
//!
//! Only an error that has a class ([`Classified`]) becomes one: `?` on any other does not compile.

use std::fmt::{self, Display};

use backstay_types::{Class, Classified};

/// What a verb answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How a command ends that did not do all it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It failed; the class says with which exit code.
    Failed(Class),
    /// With this code; all that was to be said has been said.
    Silent(u8),
}

/// Why a verb did not do what was asked.
#[derive(Debug)]
pub struct Error {
    /// How the command ends.
    pub ending: Ending,
    /// What was being done, from the outermost on, and the causes.
    said: Vec<String>,
}

impl Error {
    /// Of that class.
    pub fn new(class: Class, said: impl Display) -> Self {
        Self { ending: Ending::Failed(class), said: vec![said.to_string()] }
    }

    /// Ends the command with a code and without a word.
    pub fn silent(code: u8) -> Self {
        Self { ending: Ending::Silent(code), said: vec![format!("exit code {code}")] }
    }

    /// The same, and what was being done.
    pub fn context(mut self, what: impl Display) -> Self {
        self.said.insert(0, what.to_string());
        self
    }
}

/// All an error says, once: many messages say what their cause said already.
impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = self.said.iter().fold(String::new(), |said, cause| match said.is_empty() {
            true => cause.clone(),
            false if said.contains(cause) => said,
            false => format!("{said}: {cause}"),
        });
        f.write_str(&said)
    }
}

impl<E: Classified> From<E> for Error {
    fn from(error: E) -> Self {
        let causes = std::iter::successors(error.source(), |cause| cause.source());
        let causes = causes.map(ToString::to_string);
        Self {
            ending: Ending::Failed(error.class()),
            said: std::iter::once(error.to_string()).chain(causes).collect(),
        }
    }
}

/// Says what was being done when something failed; its class stays.
pub trait Context<T> {
    /// In these words.
    fn context(self, what: impl Display) -> Result<T>;
    /// In the words that this makes.
    fn with_context<W: Display>(self, what: impl FnOnce() -> W) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl Display) -> Result<T> {
        self.with_context(|| what)
    }
    fn with_context<W: Display>(self, what: impl FnOnce() -> W) -> Result<T> {
        self.map_err(|e| e.into().context(what()))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, what: impl Display) -> Result<T> {
        self.with_context(|| what)
    }
    fn with_context<W: Display>(self, what: impl FnOnce() -> W) -> Result<T> {
        self.ok_or_else(|| Error::new(Class::Person, what()))
    }
}

/// Something was not done because it would not have been safe.
pub fn refused(said: impl Display) -> Error {
    Error::new(Class::Refused, said)
}

/// Damaged data was found.
pub fn damage(said: impl Display) -> Error {
    Error::new(Class::Damaged, said)
}

/// A failure that a person must look at.
macro_rules! failed {
    ($($said:tt)*) => { $crate::error::Error::new(backstay_types::Class::Person, format!($($said)*)) };
}
pub(crate) use failed;

/// Ends a function with a failure that a person must look at.
macro_rules! bail {
    ($($said:tt)*) => { return Err($crate::error::failed!($($said)*)) };
}
pub(crate) use bail;
