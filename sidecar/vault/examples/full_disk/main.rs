//! Lays a disk that is full of data into a new vault, for measurements of what comes after.
//!
//! ```text
//! cargo run --release -p backstay-vault --example full_disk -- VAULT NAME GIB [SEGMENTS [POINTS [IMAGE]]]
//! ```
//!
//! The first point fills the disk, in segments in its order. If there is an image of as many GiB, with a file system
//! that was just made, the second lays what it has over that. Each further point writes sixteen pages, in
//! the second halves of ext4's block groups, where a new one has nothing.

#![allow(clippy::print_stdout, reason = "a program")]

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;

use backstay_types::ByteLen;
use backstay_vault::Vaults;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

mod lay;

/// Pages of 4 KiB in a block group.
const GROUP: u64 = 32_768;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (url, name) =
        args.next().zip(args.next()).ok_or("VAULT NAME GIB [SEGMENTS POINTS IMAGE]")?;
    let mut number = |or: u64| args.next().map_or(Ok(or), |arg| arg.parse());
    let gib = number(1024)?;
    let (segments, points) = (number(gib * 32)?, number(1000)?);
    let mut laid = lay::Laid::new(Vaults::default().create(&url)?, &name, ByteLen(gib << 30))?;
    laid.full(segments, 1)?;
    let mut made = 1;
    if let Some(image) = args.next() {
        let image = File::open(image)?;
        laid.write_all(&data_of(&image)?, |run, bytes| {
            image.read_exact_at(bytes, run.start.byte_offset().0)
        })?;
        made += 1;
    }
    let groups = laid.size.0 / 4096 / GROUP;
    let mut rng = fastrand::Rng::with_seed(gib);
    for point in made + 1..=points {
        let mut page = || rng.u64(..groups) * GROUP + GROUP / 2 + rng.u64(..GROUP / 2);
        let mut places: Vec<u64> = (0..16).map(|_| page() * 8).collect();
        places.sort_unstable();
        places.dedup();
        laid.write(&places, (point % 251 + 2) as u8)?;
    }
    println!("{segments} segments, {points} points");
    Ok(())
}

/// The pages of a file that are no holes: first, and behind the last.
fn data_of(file: &File) -> Result<Vec<(u64, u64)>, Box<dyn Error>> {
    let (mut runs, mut at) = (vec![], 0);
    loop {
        let start = match lseek(file, at, Whence::SeekData) {
            Err(Errno::ENXIO) => return Ok(runs),
            start => start?,
        };
        at = lseek(file, start, Whence::SeekHole)?;
        runs.push((start as u64 / 4096, (at as u64).div_ceil(4096)));
    }
}
