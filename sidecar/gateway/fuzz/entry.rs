//! What each fuzz target does with its bytes: what the gateway does with what strangers send.

use backstay_gateway::pki::{Disks, Identity, Revocations, Role};
use backstay_gateway::rights::{Right, Verb, right};
use backstay_gateway::server::fuzzing;
use backstay_vault::format::key::{Folder, ObjectKey};

/// A client's certificate.
pub fn certificate(data: &[u8]) {
    let Ok(identity) = Identity::from_der(data) else { return };
    // Whatever was believed obeys the rules of docs/reference/pki.md.
    let name = identity.name.as_str();
    assert!((1..=64).contains(&name.len()) && !name.contains('/') && !name.starts_with('.'));
    match &identity.disks {
        Disks::All => assert_ne!(identity.role, Role::Source),
        Disks::Named(names) => {
            assert!((1..=512).contains(&names.len()));
            assert!(names.iter().all(|name| identity.disks.has(name)));
        }
    }
    let serial = String::from(identity.serial.clone());
    assert_eq!(serial.try_into().ok(), Some(identity.serial));
}

/// A list of revoked certificates, as the file has it (PEM), and what is in that (DER).
pub fn revocations(data: &[u8]) {
    for list in [Revocations::from_pem(data), Revocations::from_der(data)].into_iter().flatten() {
        assert!(!list.lists().is_empty());
        assert!(list.len() <= data.len(), "an entry has at least a byte");
    }
}

/// A request: a line each for path, query and `Range`. Whatever is understood is written in one way only, stays
/// in the vault, and gives a source nothing that it must not have.
pub fn request(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let mut line = || lines.next().unwrap_or_default();
    let (key, query, range) = (line(), line(), line());
    if let Some(parsed) = ObjectKey::parse(key) {
        assert_eq!(parsed.to_string(), key);
        assert!(!key.split('/').any(|part| matches!(part, "" | "." | "..")));
        assert_eq!(right(Role::Source, Verb::Delete, &parsed), Right::No);
        if key.contains("/segments/") {
            assert_eq!(right(Role::Source, Verb::Get, &parsed), Right::IndexOnly);
        }
    }
    for prefix in [key, query] {
        if Folder::parse(prefix).is_some() {
            assert!(!prefix.split('/').any(|part| matches!(part, "." | "..")));
        }
    }
    let _ = fuzzing::query_is_understood(query);
    for len in [0, 1, 1 << 20, u64::MAX] {
        if let Some(range) = fuzzing::range(range, len) {
            assert!(range.start < range.end && range.end <= len);
        }
    }
}
