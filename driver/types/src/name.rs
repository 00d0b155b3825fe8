//! Names of disks. A name becomes a folder and part of object keys, so what it may hold is narrow.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::class::{Class, Classified};

/// The name of a protected disk: 1 to 64 of `a-z A-Z 0-9 . _ -`, starting with a letter or digit.
///
/// It can be used in a path as it is: it is never empty, `.`, `..`, hidden, or an option.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskName(String);

/// A text that cannot be the name of a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "disk name: {text:?} is not a disk name: use 1 to 64 letters, digits, '.', '_' or '-', \
     starting with a letter or digit"
)]
pub struct NameError {
    /// The text.
    pub text: String,
}

impl Classified for NameError {
    fn class(&self) -> Class {
        Class::Person
    }
}

impl DiskName {
    /// Longest name, in bytes.
    pub const LEN_MAX: usize = 64;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DiskName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let fine = !text.is_empty()
            && text.len() <= Self::LEN_MAX
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(good);
        if fine { Ok(Self(text.to_owned())) } else { Err(NameError { text: text.to_owned() }) }
    }
}

impl TryFrom<String> for DiskName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<DiskName> for String {
    fn from(name: DiskName) -> String {
        name.0
    }
}

impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for bad in
            ["", ".", "..", "../x", "a/b", ".hidden", "-rf", "a b", "a\0", "ä", &"x".repeat(65)]
        {
            assert!(bad.parse::<DiskName>().is_err(), "{bad:?}");
        }
        for good in ["db1", "vm-7.root_2", &"x".repeat(64)] {
            assert_eq!(good.parse::<DiskName>().unwrap().as_str(), good);
        }
    }
}
