//! Drills: a point is mounted and tried, and the verdict kept beside it.
