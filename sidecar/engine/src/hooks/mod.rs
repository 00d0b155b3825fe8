//! Application-consistent points: what runs around a cut, and why nothing stays frozen.

pub mod settings;

pub use settings::HookSettings;
