//! What the programs we start are not told: variables that may hold what opens a store or a vault.
//!
//! Anyone who runs a check, a hook or a step of a plan wants a disk, not the vault. What is started to do our own
//! work (`backstay mount` for a drill, say) gets everything.

use std::ffi::OsStr;
use std::process::Command;

/// How the names of such variables begin.
const OPENS_VAULTS: [&str; 4] = ["AWS_", "AZURE_", "GOOGLE_", "BACKSTAY_PASSPHRASE"];

fn opens_vaults(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    OPENS_VAULTS.iter().any(|start| name.starts_with(start))
}

/// Takes them from the environment of a command that is about to be started.
pub fn withhold(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| opens_vaults(name)) {
        command.env_remove(name);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opens_a_vault_and_nothing_else() {
        for secret in ["AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_KEY", "GOOGLE_SERVICE_ACCOUNT"] {
            assert!(opens_vaults(OsStr::new(secret)), "{secret}");
        }
        assert!(opens_vaults(OsStr::new("BACKSTAY_PASSPHRASE")));
        for plain in ["PATH", "HOME", "BACKSTAY_DISK", "BACKSTAY_DEVICE", "LANG", "MY_AWS_"] {
            assert!(!opens_vaults(OsStr::new(plain)), "{plain}");
        }
    }
}
