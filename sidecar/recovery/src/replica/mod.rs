//! Hot standby: a file or device that follows the vault.
