//! Files that nobody else may read, replaced as a whole and durable before anything is said of them.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use backstay_host::atomic::{self, Durability};

use super::PkiError;

/// Makes a directory for the owner alone, unless it is there.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    // Whatever the umask took away.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    let above = dir.parent().filter(|above| !above.as_os_str().is_empty());
    File::open(above.unwrap_or(Path::new(".")))?.sync_all()
}

/// Replaces a file as a whole: anyone who looks, also after a power loss, sees the old one or the new one.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    atomic::replace(path, content, Durability::Durable)
}

/// Reads a file of at most so many bytes.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut content)?;
    match content.len() as u64 > bytes_max {
        true => Err(io::Error::other(format!("longer than {bytes_max} bytes"))),
        false => Ok(content),
    }
}

/// That a key is its owner's alone.
pub fn check_private(path: &Path) -> Result<(), PkiError> {
    let wrong = |reason: String| PkiError::File { path: path.into(), reason };
    let about = fs::metadata(path).map_err(|e| wrong(e.to_string()))?;
    match about.mode() & 0o077 {
        0 => Ok(()),
        _ => Err(wrong(format!(
            "others may read it (mode {:04o}); nothing was done. If nobody has: chmod 600, else make a \
             new authority",
            about.mode() & 0o7777
        ))),
    }
}
