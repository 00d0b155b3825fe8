//! What the fuzz targets reach of a request, without a line to send it on.

use std::ops::Range;

use super::{get, list};

/// Whether a list's query is understood.
#[must_use]
pub fn query_is_understood(text: &str) -> bool {
    list::Query::parse(text).is_some()
}

/// What a `Range` header means for an object of a length.
#[must_use]
pub fn range(text: &str, len: u64) -> Option<Range<u64>> {
    get::parse_range(text, len)
}
