//! Why a piece of stored bytes was refused.

use backstay_types::{Class, Classified};

/// A format was refused: what it was, and what is wrong with it.
///
/// The caller knows *where* the bytes came from and adds that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than the format needs.
    #[error("{what}: {have} bytes, {need} needed")]
    Short {
        /// The format.
        what: &'static str,
        /// Bytes there were.
        have: usize,
        /// Bytes it needs.
        need: usize,
    },
    /// The first bytes are not this format's.
    #[error("{what}: not one (magic bytes differ)")]
    Magic {
        /// The format.
        what: &'static str,
    },
    /// A version this program does not know.
    #[error("{what}: version {found}, this program reads version {known}; use a newer Backstay")]
    Version {
        /// The format.
        what: &'static str,
        /// The version in the bytes.
        found: u32,
        /// The newest version this program reads.
        known: u32,
    },
    /// The checksum does not fit the bytes: torn or damaged.
    #[error("{what}: checksum {computed:#010x}, stored {stored:#010x}: damaged or torn")]
    Checksum {
        /// The format.
        what: &'static str,
        /// The checksum of the bytes.
        computed: u32,
        /// The checksum stored in them.
        stored: u32,
    },
    /// A field holds a value outside its bounds.
    #[error("{what}: {field} is {value}, which is out of bounds")]
    Bounds {
        /// The format.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Text that should be UTF-8, JSON or a name is not.
    #[error("{what}: {reason}")]
    Text {
        /// The format.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl Classified for FormatError {
    fn class(&self) -> Class {
        match self {
            Self::Version { .. } => Class::Person,
            Self::Short { .. }
            | Self::Magic { .. }
            | Self::Checksum { .. }
            | Self::Bounds { .. }
            | Self::Text { .. } => Class::Damaged,
        }
    }
}
