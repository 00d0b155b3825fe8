//! Whether the backing is still what the disk is served from.
//!
//! A driver has its backing open: whatever happens to the name, it goes on with the same bytes. People and
//! their tools go by the name. When the two part, or somebody changes the length, the driver says so.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backstay_format::control::BackingFaultKind;
use backstay_host::stack::Ground;
use backstay_types::ByteLen;

use super::open::size_of;

/// The path of a backing, and the file or device that it led to at opening.
pub(super) struct Watch {
    path: PathBuf,
    ground: Ground,
    device: bool,
}

impl Watch {
    pub fn new(path: &Path, file: &File, device: bool) -> io::Result<Self> {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Ok(Self { path, ground: Ground::of(file)?, device })
    }

    /// The current fault of the backing. `size` is the size of the disk.
    pub fn look(&self, file: &File, size: ByteLen) -> Option<(BackingFaultKind, String)> {
        use BackingFaultKind::{Deleted, Extended, Grown, Moved, Replaced, Shortened, Unreadable};
        let path = self.path.display();
        let meta = match file.metadata() {
            Ok(meta) => meta,
            Err(e) => return Some((Unreadable, format!("the backing {path}: {e}"))),
        };
        if meta.nlink() == 0 && !self.device {
            let what = "was deleted while the disk is served: it ends with the driver";
            return Some((Deleted, format!("the backing {path} {what}")));
        }
        match fs::metadata(&self.path) {
            Ok(there) if Ground::of_metadata(&there) != self.ground => {
                let what = "was replaced while the disk is served: that is another file now, and what the \
                            disk holds is not in it";
                return Some((Replaced, format!("the backing {path} {what}")));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let what = "was moved away or renamed while the disk is served";
                return Some((Moved, format!("the backing {path} {what}")));
            }
            Err(e) => return Some((Unreadable, format!("the backing {path}: {e}"))),
        }
        let there = match size_of(file, self.device) {
            Ok(there) => there,
            Err(e) => return Some((Unreadable, format!("the backing {path}: {e}"))),
        };
        let sizes = format!("it has {there} bytes, the disk {size}");
        if there < size {
            let what = "was shortened while the disk is served";
            return Some((Shortened, format!("the backing {path} {what}: {sizes}")));
        }
        (there > size).then(|| {
            let kind = if self.device { Extended } else { Grown };
            (kind, format!("the backing {path} was extended while the disk is served: {sizes}"))
        })
    }
}

/// Opens the file or device of a descriptor again, for reading.
pub(super) fn reopen(file: &File) -> io::Result<File> {
    // Through the descriptor, because the path may lead to another file by now.
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt;

    #[test]
    fn each_change_behind_the_driver_is_seen_and_when_it_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("disk"), dir.path().join("aside"));
        fs::write(&path, [7; 8192]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let watch = Watch::new(&path, &file, false).unwrap();
        let look = || watch.look(&file, ByteLen(8192)).map(|(kind, _)| kind);
        assert_eq!(look(), None);
        backstay_host::atomic::rename(&path, &aside).unwrap();
        assert_eq!(look(), Some(BackingFaultKind::Moved));
        fs::write(&path, [8; 8192]).unwrap();
        assert_eq!(look(), Some(BackingFaultKind::Replaced));
        let mut byte = [0];
        reopen(&file).unwrap().read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [7], "what the driver has, not what has its name");
        backstay_host::atomic::rename(&aside, &path).unwrap();
        assert_eq!(look(), None);
        file.set_len(4096).unwrap();
        assert_eq!(look(), Some(BackingFaultKind::Shortened));
        file.set_len(12288).unwrap();
        assert_eq!(look(), Some(BackingFaultKind::Grown));
        file.set_len(8192).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(look(), Some(BackingFaultKind::Deleted));
    }
}
