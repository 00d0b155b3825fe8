//! What to do about an error: one word for each, whatever crate it comes from.
//!
//! Each enum of errors says it once, by one `match` in [`Classified::class`]. An error that passes another one on has
//! that one's class, so it is the same at the rim (exit code, retry, state) as where it was found.

use std::error::Error;
use std::{fmt, io};

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// It may pass by itself: try again, later and later.
    Retry,
    /// A person must act.
    Person,
    /// Nothing was done, to stay safe: somebody uses it, or data would be lost.
    Refused,
    /// Damaged data was found.
    Damaged,
    /// A fault of Backstay.
    Bug,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Retry, Self::Person, Self::Refused, Self::Damaged, Self::Bug];

    /// In a word, as processes tell it each other.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Person => "person",
            Self::Refused => "refused",
            Self::Damaged => "damaged",
            Self::Bug => "bug",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}

/// An error that says what to do about it.
pub trait Classified: Error {
    /// What to do about it.
    fn class(&self) -> Class;

    /// Whether the same may succeed later, though nobody tells us what was mended.
    fn may_pass(&self) -> bool {
        self.class() == Class::Retry
    }

    /// Whether nothing was done to stay safe.
    fn is_refusal(&self) -> bool {
        self.class() == Class::Refused
    }

    /// Whether damaged data was found.
    fn is_damage(&self) -> bool {
        self.class() == Class::Damaged
    }
}

impl<T: Classified> Classified for Box<T> {
    fn class(&self) -> Class {
        (**self).class()
    }

    fn may_pass(&self) -> bool {
        (**self).may_pass()
    }
}

impl Classified for io::Error {
    fn class(&self) -> Class {
        use io::ErrorKind as K;
        match (self.get_ref().and_then(|inner| inner.downcast_ref::<Carried>()), self.kind()) {
            (Some(carried), _) => carried.class,
            (None, K::Interrupted | K::TimedOut | K::WouldBlock) => Class::Retry,
            (None, _) => Class::Person,
        }
    }
}

/// An error of ours as one of the system's, for what answers only those; its class comes with it.
pub fn as_io(kind: io::ErrorKind, source: impl Classified + Send + Sync + 'static) -> io::Error {
    io::Error::new(kind, Carried { class: source.class(), source: Box::new(source) })
}

/// See [`as_io`].
#[derive(Debug)]
struct Carried {
    class: Class,
    source: Box<dyn Error + Send + Sync>,
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for Carried {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}
