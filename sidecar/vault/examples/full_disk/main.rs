//! Lays a disk that is full of data into a new vault, for measurements of what comes after.
//!
//! ```text
//! cargo run --release -p backstay-vault --example full_disk -- VAULT NAME GIB [SEGMENTS] [POINTS]
//! ```
//!
//! The first point fills the disk, in segments in its order; each further one writes sixteen pages all over it.
//! There is no file system on it.

#![allow(clippy::print_stdout, reason = "a program")]

use std::error::Error;

use backstay_format::ByteLen;
use backstay_vault::Vault;

mod lay;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (url, name) = args.next().zip(args.next()).ok_or("VAULT NAME GIB [SEGMENTS] [POINTS]")?;
    let mut number = |or: u64| args.next().map_or(Ok(or), |arg| arg.parse());
    let gib = number(1024)?;
    let (segments, points) = (number(gib * 32)?, number(1000)?);
    let mut laid = lay::Laid::new(Vault::create_or_open(&url)?, &name, ByteLen(gib << 30))?;
    laid.full(segments, 1)?;
    let pages = laid.size.0 / 4096;
    let mut rng = fastrand::Rng::with_seed(gib);
    for point in 2..=points {
        let mut places: Vec<u64> = (0..16).map(|_| rng.u64(..pages) * 8).collect();
        places.sort_unstable();
        places.dedup();
        laid.write(&places, (point % 251 + 2) as u8)?;
    }
    println!("{segments} segments, {points} points");
    Ok(())
}
