//! The mark of a backing file: an extended attribute.
//!
//! `trusted.` where that is permitted: it has no limits but the file system's own, XFS keeps blocks in
//! reserve for it, and no user of the host can change it. `user.` elsewhere. Marks all have the same
//! length, so that a mark that is there is replaced in place and needs no room. Devices have none.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;

use backstay_format::mark::{MARK_BYTES, Mark, Tracked};

const NAMES: [&CStr; 2] = [c"trusted.backstay", c"user.backstay"];

/// Reads the mark. If there are two, returns the one that trusts less.
pub(super) fn read(file: &File) -> io::Result<Option<Mark>> {
    only_files(file)?;
    let mut found: Option<Mark> = None;
    let mut refused = None;
    for name in NAMES {
        match get(file, name) {
            Ok(Some(mark)) => {
                let worse = found.is_none_or(|_| mark.tracked == Tracked::NotAll);
                found = if worse { Some(mark) } else { found };
            }
            Ok(None) => {}
            Err(e) => refused = Some(e),
        }
    }
    match (found, refused) {
        (Some(mark), _) => Ok(Some(mark)),
        (None, Some(e)) => Err(e),
        (None, None) => Ok(None),
    }
}

/// Replaces the mark, durably.
pub(super) fn write(file: &File, mark: &Mark) -> io::Result<()> {
    only_files(file)?;
    let bytes = mark.encode();
    let mut result = Err(io::ErrorKind::Unsupported.into());
    for name in NAMES {
        // SAFETY: name and value live during the call and are only read.
        let set = unsafe {
            libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), bytes.as_ptr().cast(), bytes.len(), 0)
        };
        result = if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        if result.is_ok() {
            if name == NAMES[0] {
                // Left by a driver that had fewer rights.
                remove(file, NAMES[1]);
            }
            break;
        }
    }
    if result.is_err() && mark.tracked == Tracked::NotAll {
        // No proof is as good as this one.
        NAMES.iter().for_each(|name| remove(file, name));
        if read(file)?.is_none() {
            result = Ok(());
        }
    }
    result?;
    file.sync_all()
}

fn remove(file: &File, name: &CStr) {
    // SAFETY: the name lives during the call and is only read.
    unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) };
}

fn only_files(file: &File) -> io::Result<()> {
    match file.metadata()?.file_type().is_block_device() {
        true => Err(io::ErrorKind::Unsupported.into()),
        false => Ok(()),
    }
}

fn get(file: &File, name: &CStr) -> io::Result<Option<Mark>> {
    let mut bytes = [0u8; MARK_BYTES];
    // SAFETY: name and buffer live during the call; no more than the buffer's length is written.
    let n = unsafe {
        libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), bytes.as_mut_ptr().cast(), bytes.len())
    };
    if n < 0 {
        let e = io::Error::last_os_error();
        return match e.raw_os_error() {
            Some(libc::ENODATA | libc::ERANGE) => Ok(None),
            _ => Err(e),
        };
    }
    let mark = Mark::decode(&bytes[..n as usize]);
    Ok(mark.inspect_err(|e| tracing::warn!("{e}: it proves nothing")).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_types::DiskId;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_does_not_count_as_a_change() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [7; 4096]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let written = file.metadata().unwrap().modified().unwrap();
        assert_eq!(read(&file).unwrap(), None);
        let all = Mark { disk: DiskId::random(), generation: 7, tracked: Tracked::All };
        for mark in [all, Mark { tracked: Tracked::NotAll, ..all }, all] {
            write(&file, &mark).unwrap();
            assert_eq!(read(&file).unwrap(), Some(mark));
        }
        assert_eq!(file.metadata().unwrap().modified().unwrap(), written);
    }

    #[test]
    fn what_is_no_mark_proves_nothing() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [7; 4096]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        for bytes in [&b"hello"[..], &[0; 200]] {
            // SAFETY: name and value live during the call.
            let set = unsafe {
                let value = bytes.as_ptr().cast();
                libc::fsetxattr(file.as_raw_fd(), NAMES[1].as_ptr(), value, bytes.len(), 0)
            };
            assert_eq!(set, 0, "{}", io::Error::last_os_error());
            assert_eq!(read(&file).unwrap(), None);
        }
    }
}
