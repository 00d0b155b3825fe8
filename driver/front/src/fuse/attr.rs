//! What `stat` says of the folder and the file.

use std::time::SystemTime;

use backstay_types::ByteLen;
use fuser::{FileAttr, FileType, INodeNo};

/// The folder.
pub(super) const ROOT: INodeNo = INodeNo::ROOT;
/// The file.
pub(super) const DISK: INodeNo = INodeNo(2);
/// Its name.
pub(super) const DISK_NAME: &str = "disk";

/// Times do not move: a disk has none.
pub(super) struct Times {
    pub started: SystemTime,
}

impl Times {
    pub fn attr(&self, ino: INodeNo, size: ByteLen) -> FileAttr {
        let disk = ino == DISK;
        let time = self.started;
        FileAttr {
            ino,
            size: if disk { size.0 } else { 0 },
            blocks: if disk { size.0.div_ceil(512) } else { 0 },
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if disk { FileType::RegularFile } else { FileType::Directory },
            perm: if disk { 0o600 } else { 0o700 },
            nlink: if disk { 1 } else { 2 },
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}
