//! What each fuzz target does with its bytes: what the gateway does with what strangers send.

use backstay_gateway::pki::{Disks, Identity, Revocations, Role};

/// A client's certificate.
pub fn certificate(data: &[u8]) {
    let Ok(identity) = Identity::from_der(data) else { return };
    // Whatever was believed obeys the rules of docs/PKI.md.
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
