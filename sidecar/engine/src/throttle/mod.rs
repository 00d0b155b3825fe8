//! The throttle: one limit for the uploads of all disks of a sidecar.
//!
//! - [`rate`]: bytes a second, as people write them
//! - [`settings`]: the limit, and the timetable that overrides it
//! - [`bucket`]: how much may go at an instant, as a pure function of time
//! - [`mod@line`]: threads that take turns at the bucket
//!
//! How even the line is, and what of it a vault sees, is in `docs/reference/throttle.md`.

pub mod bucket;
pub mod line;
pub mod rate;
pub mod settings;

pub use line::Throttle;
pub use rate::Rate;
pub use settings::{ThrottleSettings, Timed};
