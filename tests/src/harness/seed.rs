//! The seed of a test's random choices: printed, and set again with `BACKSTAY_SEED`.

/// The seed that is set, or this one.
pub fn seed(default: u64) -> u64 {
    let set = std::env::var("BACKSTAY_SEED").ok().and_then(|text| text.parse().ok());
    let seed = set.unwrap_or(default);
    eprintln!("seed {seed} (BACKSTAY_SEED)");
    seed
}
