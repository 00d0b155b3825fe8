//! A recovery point served as a protected disk at once: blocks come from the vault when they are read.
