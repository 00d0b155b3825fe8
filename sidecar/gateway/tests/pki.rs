//! An authority from its first file to a revoked certificate, as the TLS library sees it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use backstay_gateway::pki::{
    Authority, AuthorityKind, HolderName, Identity, Issued, PkiError, Request, Revocations, Role,
};
use rcgen::{CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, Error, RootCertStore};

fn request(name: &str, kind: AuthorityKind) -> Request {
    Request { name: name.parse().unwrap(), kind, days: 398 }
}

fn client(name: &str, role: Role, disks: &[&str]) -> Request {
    let disks = disks.iter().map(ToString::to_string).collect();
    request(name, AuthorityKind::Client { role, disks })
}

fn der(issued: &Issued) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(&issued.file).unwrap()
}

/// What a server that asks for client certificates says of one.
fn verified(authority: &Authority, certificate: &CertificateDer<'_>) -> Result<(), Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.certificate_file()).unwrap()).unwrap();
    let revoked = Revocations::from_pem(&std::fs::read(authority.revocations_file()).unwrap());
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .with_crls(revoked.unwrap().lists())
        .enforce_revocation_expiration()
        .build()
        .unwrap();
    verifier.verify_client_cert(certificate, &[], UnixTime::now()).map(drop)
}

#[test]
fn from_the_first_file_to_a_revoked_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let mut authority = Authority::init(&dir.path().join("pki"), "Test", 3650, None).unwrap();
    let source = authority.issue(&client("db-host", Role::Source, &["db", "wal"])).unwrap();
    let identity = Identity::from_der(&der(&source)).unwrap();
    assert_eq!((identity.name.as_str(), identity.role), ("db-host", Role::Source));
    assert_eq!(identity.serial, source.record.serial);
    assert!(identity.disks.has(&"db".parse().unwrap()));
    assert!(!identity.disks.has(&"other".parse().unwrap()));
    assert!(identity.is_valid_at(UnixTime::now().as_secs() as i64));
    assert!(!identity.is_valid_at(identity.until_unix_s + 1));
    verified(&authority, &der(&source)).unwrap();

    // Other certificates of the same authority open nothing at a gateway.
    let hosts = vec!["gateway.example".into(), "10.0.0.1".into()];
    let server =
        authority.issue(&request("gw", AuthorityKind::Server { hosts: hosts.clone() })).unwrap();
    assert!(matches!(Identity::from_der(&der(&server)), Err(PkiError::Certificate(_))));
    assert!(verified(&authority, &der(&server)).is_err(), "a server's is no client's");
    let member = authority.issue(&request("db1", AuthorityKind::Group { hosts })).unwrap();
    verified(&authority, &der(&member)).unwrap();
    assert!(matches!(Identity::from_der(&der(&member)), Err(PkiError::Certificate(_))));
    let ca = CertificateDer::from_pem_file(authority.certificate_file()).unwrap();
    assert!(Identity::from_der(&ca).is_err());

    // A renewed one has the same rights and another number; the old one is good until it is revoked.
    let old = der(&source);
    let renewed = authority.renew(&"db-host".parse().unwrap(), 30).unwrap();
    let new = Identity::from_der(&der(&renewed)).unwrap();
    assert_eq!((&new.role, &new.disks), (&identity.role, &identity.disks));
    assert_ne!(new.serial, identity.serial);
    drop(authority);
    let mut authority = Authority::open(&dir.path().join("pki")).unwrap();
    authority.revoke(&identity.serial.to_string()).unwrap();
    let gone = Error::InvalidCertificate(CertificateError::Revoked);
    assert_eq!(verified(&authority, &old).unwrap_err(), gone);
    verified(&authority, &der(&renewed)).unwrap();
    authority.revoke("db-host").unwrap();
    assert_eq!(verified(&authority, &der(&renewed)).unwrap_err(), gone);
    let list =
        Revocations::from_pem(&std::fs::read(authority.revocations_file()).unwrap()).unwrap();
    assert!(list.has(&identity.serial) && list.has(&new.serial) && list.len() == 2);
    assert!(!list.has(&member.record.serial));
    assert!(matches!(authority.renew(&"db-host".parse().unwrap(), 30), Err(PkiError::Refused(_))));
    authority.issue(&client("db-host", Role::Source, &["db"])).unwrap();
}

#[test]
fn what_must_not_be_issued_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    let mut authority = Authority::init(&pki, "Test", 30, None).unwrap();
    let long = Request { days: 31, ..client("a", Role::Source, &["db"]) };
    for refused in [
        client("a", Role::Source, &["*"]),
        client("a", Role::Source, &[]),
        client("a", Role::Recovery, &["*", "db"]),
        client("a", Role::Recovery, &["../db"]),
        request("a", AuthorityKind::Server { hosts: vec![] }),
        request("a", AuthorityKind::Server { hosts: vec!["not a host".into()] }),
        long,
    ] {
        let refused = Request { days: refused.days.min(31), ..refused };
        assert!(authority.issue(&refused).is_err(), "{refused:?}");
    }
    assert!(authority.index().certificates.is_empty());
    assert!("../a".parse::<HolderName>().is_err());
    let good = Request { days: 20, ..client("a", Role::Recovery, &["*"]) };
    authority.issue(&good).unwrap();
    assert!(matches!(authority.issue(&good), Err(PkiError::Refused(_))), "it has one");
    assert!(matches!(authority.revoke("b"), Err(PkiError::Refused(_))));
    assert!(Authority::open(&pki).is_err(), "one at a time");
    drop(authority);
    assert!(matches!(Authority::init(&pki, "Again", 30, None), Err(PkiError::Refused(_))));
    std::fs::write(dir.path().join("precious"), "").unwrap();
    assert!(matches!(Authority::init(dir.path(), "Over", 30, None), Err(PkiError::Refused(_))));
}

#[test]
fn an_index_that_was_edited_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    let mut authority = Authority::init(&pki, "Test", 3650, None).unwrap();
    authority.issue(&client("db-host", Role::Source, &["db"])).unwrap();
    authority.revoke("db-host").unwrap();
    drop(authority);
    let text = std::fs::read_to_string(pki.join("index.json")).unwrap();
    let start = text.find("\"revoked_unix_s\": ").unwrap() + 18;
    let end = start + text[start..].find([',', '\n']).unwrap();
    std::fs::write(pki.join("index.json"), format!("{}null{}", &text[..start], &text[end..]))
        .unwrap();
    assert!(Authority::open(&pki).unwrap_err().to_string().contains("checksum"));
}

#[test]
fn nobody_else_may_read_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    let mut authority = Authority::init(&pki, "Test", 3650, None).unwrap();
    authority.issue(&client("db-host", Role::Source, &["db"])).unwrap();
    drop(authority);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for folder in ["", "issued"] {
        assert_eq!(mode(&pki.join(folder)), 0o700, "{folder}");
    }
    for file in ["ca.key", "ca.crt", "index.json", "revoked.crl", "issued/db-host.pem"] {
        assert_eq!(mode(&pki.join(file)), 0o600, "{file}");
    }
    std::fs::set_permissions(pki.join("ca.key"), PermissionsExt::from_mode(0o640)).unwrap();
    assert!(Authority::open(&pki).unwrap_err().to_string().contains("others may read it"));
}

/// A certificate, signed by itself: who signed it is not what is looked at here.
fn forged(uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    let uri = |text: &&str| SanType::URI((*text).try_into().unwrap());
    params.subject_alt_names = uris.iter().map(uri).collect();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().into()
}

#[test]
fn certificates_that_say_too_little_or_too_much_give_no_right() {
    const FINE: [&str; 3] = ["backstay:name:a", "backstay:role:source", "backstay:disk:db"];
    Identity::from_der(&forged(&FINE, |_| ())).unwrap();
    Identity::from_der(&forged(&[&FINE[..], &["https://example.org"]].concat(), |_| ())).unwrap();
    for more in [
        "backstay:name:b",
        "backstay:name:a",
        "backstay:role:source",
        "backstay:role:recovery",
        "BACKSTAY:role:recovery",
        "backstay:disk:*",
        "backstay:disk:../db",
        "backstay:disk:",
        "backstay:until:2020",
        "backstay:",
    ] {
        let der = forged(&[&FINE[..], &[more]].concat(), |_| ());
        assert!(Identity::from_der(&der).is_err(), "{more}");
    }
    for missing in FINE {
        let uris: Vec<&str> = FINE.into_iter().filter(|uri| *uri != missing).collect();
        assert!(Identity::from_der(&forged(&uris, |_| ())).is_err(), "without {missing}");
    }
    for role in ["root", "Source", "source ", ""] {
        let role = format!("backstay:role:{role}");
        assert!(Identity::from_der(&forged(&[FINE[0], &role, FINE[2]], |_| ())).is_err(), "{role}");
    }
    let no_client = forged(&FINE, |p| p.extended_key_usages.clear());
    assert!(Identity::from_der(&no_client).is_err());
    let server =
        forged(&FINE, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(Identity::from_der(&server).is_err());
    let ca = forged(&FINE, |p| p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    assert!(Identity::from_der(&ca).is_err());
    // Two lists of names: which one counts is nothing to be guessed.
    let second = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0]);
    assert!(Identity::from_der(&forged(&FINE, |p| p.custom_extensions.push(second))).is_err());
    let many: Vec<String> = (0..600).map(|n| format!("backstay:disk:d{n}")).collect();
    let many: Vec<&str> = FINE.iter().copied().chain(many.iter().map(String::as_str)).collect();
    assert!(Identity::from_der(&forged(&many, |_| ())).is_err(), "too many disks");
    let mut longer = forged(&FINE, |_| ()).to_vec();
    longer.push(0);
    assert!(Identity::from_der(&longer).is_err(), "something follows");
}

#[test]
fn a_list_that_was_cut_off_is_no_empty_list() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::init(&dir.path().join("pki"), "Test", 3650, None).unwrap();
    let pem = std::fs::read(authority.revocations_file()).unwrap();
    assert!(Revocations::from_pem(&pem).unwrap().is_empty());
    for end in [0, 1, pem.len() / 2, pem.len() - 20] {
        assert!(Revocations::from_pem(&pem[..end]).is_err(), "{end} bytes");
    }
}
