//! Where a backing holds data at all: holes need not be read.

use std::fs::File;
use std::io;

use backstay_types::{ByteLen, SectorRange};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// A run of sectors that holds data, or one that reads as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Must be read.
    Data(SectorRange),
    /// Reads as zero.
    Hole(SectorRange),
}

/// The runs of a whole disk, in order. A file system or device that cannot tell is all data.
///
/// # Errors
/// I/O error; or the backing is shorter than the disk: what is missing must not pass for a hole.
pub fn runs(file: &File, size: ByteLen) -> io::Result<Vec<Run>> {
    let there = io::Seek::seek(&mut &*file, io::SeekFrom::End(0))?;
    if there < size.0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("the backing has {there} bytes, the disk {size}: it was shortened in use"),
        ));
    }
    let whole = SectorRange::whole(size);
    let (mut runs, mut at) = (vec![], 0u64);
    while at < size.0 {
        let data = match lseek(file, at as i64, Whence::SeekData) {
            Ok(data) => (data as u64).min(size.0),
            Err(Errno::ENXIO) => size.0,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => at,
            Err(e) => return Err(e.into()),
        };
        let hole = if data >= size.0 {
            size.0
        } else {
            match lseek(file, data as i64, Whence::SeekHole) {
                Ok(hole) => (hole as u64).min(size.0),
                Err(Errno::EINVAL | Errno::EOPNOTSUPP) => size.0,
                Err(e) => return Err(e.into()),
            }
        };
        // Whole sectors: a data run takes the sectors it touches, a hole what is left.
        let (from, to) = (data / 512, hole.div_ceil(512).min(whole.end.0));
        let start = at.div_ceil(512);
        if from > start {
            runs.push(Run::Hole(SectorRange::new(start, from)));
        }
        if to > from.max(start) {
            runs.push(Run::Data(SectorRange::new(from.max(start), to)));
        }
        at = (to * 512).max(hole);
    }
    Ok(runs)
}

/// Whether a run of sectors reads as zeroes at this moment because it lies in one hole. A file system or
/// device that cannot tell has none.
///
/// # Errors
/// I/O error.
pub fn is_hole(file: &File, size: ByteLen, run: SectorRange) -> io::Result<bool> {
    let (start, end) = (run.start.byte_offset().0, run.end.byte_offset().0.min(size.0));
    match lseek(file, start as i64, Whence::SeekData) {
        Ok(data) if (data as u64) < end => Ok(false),
        // What a shortened backing lacks is no hole; reading it says what is wrong.
        Ok(_) | Err(Errno::ENXIO) => Ok(io::Seek::seek(&mut &*file, io::SeekFrom::End(0))? >= end),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_backing_that_shrank_is_no_hole() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        assert!(runs(&file, ByteLen(8192)).unwrap_err().to_string().contains("shortened"));
    }

    #[test]
    fn holes_are_found_and_what_is_missing_is_none() {
        let file = tempfile::tempfile().unwrap();
        let size = ByteLen((8 << 20) + 100);
        file.set_len(size.0).unwrap();
        file.write_all_at(&[1; 4096], 4 << 20).unwrap();
        let hole = |from: u64, to: u64| is_hole(&file, size, SectorRange::new(from, to)).unwrap();
        let whole = SectorRange::whole(size);
        assert!(hole(0, 8192) && hole(8200, whole.end.0));
        assert!(!hole(0, 8193) && !hole(8192, 8200) && !hole(0, whole.end.0));
        file.set_len(6 << 20).unwrap();
        assert!(hole(8200, 6 << 11), "up to the new end");
        assert!(!hole(8200, whole.end.0), "the rest was cut off");
    }

    #[test]
    fn runs_cover_the_disk_once() {
        let file = tempfile::tempfile().unwrap();
        file.set_len((10 << 20) + 100).unwrap();
        file.write_all_at(&[1; 8192], 1 << 20).unwrap();
        file.write_all_at(&[1; 10], (10 << 20) + 50).unwrap();
        let size = ByteLen((10 << 20) + 100);
        let mut next = 0;
        for run in runs(&file, size).unwrap() {
            let (Run::Data(range) | Run::Hole(range)) = run;
            assert_eq!(range.start.0, next);
            next = range.end.0;
        }
        assert_eq!(next, SectorRange::whole(size).end.0);
        let data: u64 = runs(&file, size)
            .unwrap()
            .iter()
            .map(|run| if let Run::Data(r) = run { r.sectors() } else { 0 })
            .sum();
        assert!((17..100).contains(&data), "{data}");
    }
}
