//! An authority with certificates for a gateway and its clients, made by the `backstay` command.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::host::backstay;
use super::must;

/// A certificate authority in a folder of a test.
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// A new authority below a folder, with a server's certificate for localhost, gateway.example and
    /// 127.0.0.1 (`gateway`).
    pub fn new(below: &Path) -> Self {
        let pki = Self { dir: below.join("pki") };
        pki.run("init", &["--no-passphrase"]);
        let names = ["--host", "localhost", "--host", "gateway.example", "--ip", "127.0.0.1"];
        pki.run("issue", &[&["gateway", "--server"], &names[..]].concat());
        pki
    }

    /// Runs `backstay pki VERB DIR …`, which must succeed.
    pub fn run(&self, verb: &str, args: &[&str]) -> String {
        let dir = self.dir.to_string_lossy();
        let backstay = backstay().to_string_lossy().into_owned();
        must(&backstay, [&["pki", verb, &*dir], args].concat())
    }

    /// A source's certificate with its key, for some disks.
    pub fn source(&self, name: &str, disks: &[&str]) -> PathBuf {
        self.client(name, "source", disks)
    }

    /// A recovery host's certificate with its key.
    pub fn recovery(&self, name: &str, disks: &[&str]) -> PathBuf {
        self.client(name, "recovery", disks)
    }

    /// A client's certificate with its key: one file, which is both.
    pub fn client(&self, name: &str, role: &str, disks: &[&str]) -> PathBuf {
        let disks = disks.iter().flat_map(|disk| ["--disk", disk]);
        let args: Vec<&str> = [name, "--role", role].into_iter().chain(disks).collect();
        self.run("issue", &args);
        self.bundle(name)
    }

    /// The file with somebody's certificate and key.
    pub fn bundle(&self, name: &str) -> PathBuf {
        self.dir.join("issued").join(format!("{name}.pem"))
    }

    /// A certificate with its key that was valid once: a client's for some disks, or else the gateway's.
    pub fn expired(&self, disks: Option<&[&str]>) -> PathBuf {
        use rcgen::{ExtendedKeyUsagePurpose as Usage, SanType, date_time_ymd};
        let file = self.dir.join("issued").join("expired.pem");
        signed_by_hand(&self.dir, &file, |params| {
            (params.not_before, params.not_after) =
                (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
            let uri = |text: String| SanType::URI(text.as_str().try_into().unwrap());
            match disks {
                Some(disks) => {
                    let disks = disks.iter().map(|disk| uri(format!("backstay:disk:{disk}")));
                    let who =
                        ["name:old", "role:source"].map(|what| uri(format!("backstay:{what}")));
                    params.subject_alt_names = who.into_iter().chain(disks).collect();
                }
                None => {
                    let localhost = SanType::DnsName("localhost".try_into().unwrap());
                    let address = SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
                    params.subject_alt_names = vec![localhost, address];
                    params.extended_key_usages = vec![Usage::ServerAuth];
                }
            }
        });
        file
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The list of revoked certificates.
    pub fn crl(&self) -> PathBuf {
        self.dir.join("revoked.crl")
    }

    /// Revokes by name or serial number; the list is new when this returns.
    pub fn revoke(&self, which: &str) {
        self.run("revoke", &[which]);
    }
}

/// Signs a client's certificate as the authority itself would not: mallory's, for the disk db, unless it is changed.
///
/// # Panics
/// If the authority is not there.
pub fn signed_by_hand(
    pki_dir: &Path,
    to: &Path,
    change: impl FnOnce(&mut rcgen::CertificateParams),
) {
    use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
    let key = KeyPair::from_pem(&fs::read_to_string(pki_dir.join("ca.key")).unwrap()).unwrap();
    let mut authority = CertificateParams::default();
    authority.distinguished_name = rcgen::DistinguishedName::new();
    authority.distinguished_name.push(DnType::CommonName, "Backstay");
    let issuer = Issuer::new(authority, key);
    let mut params = CertificateParams::default();
    let uris = ["backstay:name:mallory", "backstay:role:source", "backstay:disk:db"];
    params.subject_alt_names =
        uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    fs::write(to, certificate.pem() + &key.serialize_pem()).unwrap();
    fs::set_permissions(to, PermissionsExt::from_mode(0o600)).unwrap();
}
