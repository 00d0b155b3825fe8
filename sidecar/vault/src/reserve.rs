//! Room that a vault in a directory keeps for the day when it is full.
//!
//! Space comes back through the ledger (see [`crate::retain`]), and to advance that something small has to be
//! put. Where not even that fits, nothing could ever be deleted. So a file beside the vault's record takes
//! up a little room, is given up when a ledger finds none, and is made again by the maintenance that freed
//! some. Its name is that of an unfinished put: lists pass over it, those of earlier versions too.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use crate::store::Vault;

/// Its name.
const FILE: &str = "reserve#1";
/// Room for a ledger and the folder that it is in.
const BYTES: usize = 256 << 10;

impl Vault {
    /// Makes the reserve if there is none. What cannot be reserved is not worth failing for.
    pub(crate) fn keep_reserve(&self) {
        let Some(path) = self.local_dir().map(|root| root.join(FILE)) else { return };
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return,
            Err(e) => return tracing::debug!("{}: {e}", path.display()),
            Ok(file) => file,
        };
        // Not zeroes: some file systems keep none.
        let filling = vec![0xa5; BYTES];
        if let Err(e) = file.write_all(&filling).and_then(|()| file.sync_all()) {
            tracing::debug!("{}: {e}", path.display());
            let _ = fs::remove_file(path);
        }
    }

    /// Gives the reserve up; whether there was one.
    pub(crate) fn give_up_reserve(&self) -> bool {
        let Some(root) = self.local_dir() else { return false };
        fs::remove_file(root.join(FILE)).is_ok()
    }
}
