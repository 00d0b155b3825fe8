//! The authority: a directory, and what is done with it.
//!
//! Order of things, so that a kill leaves nothing unaccounted for: a certificate is in the index before its
//! file is there, so whatever may exist can be revoked by its number; a revocation is in the index
//! before the list is signed, and the list is made from the index, so doing it again completes it.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use backstay_host::{clock, lock};
use nix::fcntl::Flock;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevocationReason, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{
    CertificateRecord, Disks, HolderName, Index, Passphrase, PkiError, Role, Serial, files, key,
};

/// A certificate is good a little before it was made: clocks differ.
const BEFORE: Duration = Duration::minutes(10);
/// Longest life of a certificate, in days.
pub const DAYS_MAX: u32 = 3650;
/// Most names and addresses of a host.
const HOSTS_MAX: usize = 64;

const CERT: &str = "ca.crt";
const KEY: &str = "ca.key";
const INDEX: &str = "index.json";
const REVOKED: &str = "revoked.crl";
const ISSUED: &str = "issued";

/// What a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorityKind {
    /// A client of a gateway.
    Client {
        /// What it is.
        role: Role,
        /// Its disks; `*` for all.
        disks: Vec<String>,
    },
    /// A gateway.
    Server {
        /// Names and addresses it answers at.
        hosts: Vec<String>,
    },
    /// A host of a consistency group, which may dial and be dialled. It is nobody to a gateway.
    Group {
        /// The host's names.
        hosts: Vec<String>,
    },
}

/// A certificate that is wanted.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its holder.
    pub name: HolderName,
    /// What it is for.
    pub kind: AuthorityKind,
    /// How long it is valid.
    pub days: u32,
}

/// A certificate that was made.
#[derive(Debug, Clone)]
pub struct Issued {
    /// What the index says of it.
    pub record: CertificateRecord,
    /// One file (PEM) with certificate and key.
    pub file: PathBuf,
}

/// An authority that is open; nobody else changes it meanwhile.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    index: Index,
    passphrase: Option<Passphrase>,
    _lock: Flock<File>,
}

impl Authority {
    /// Makes a new authority in a directory that is not there or empty; its key opens with the passphrase, if there is
    /// one.
    ///
    /// # Errors
    /// If there is one already, or files cannot be made.
    pub fn init(
        dir: &Path,
        name: &str,
        days: u32,
        passphrase: Option<Passphrase>,
    ) -> Result<Self, PkiError> {
        let wrong = |path: &Path, e: std::io::Error| PkiError::File {
            path: path.into(),
            reason: e.to_string(),
        };
        if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
            return Err(PkiError::Request(format!("{name:?} cannot be an authority's name")));
        }
        files::make_dir(dir).map_err(|e| wrong(dir, e))?;
        let lock = lock_folder(dir)?;
        // The index is written last: without it there is no authority yet, and this may be done again.
        if dir.join(INDEX).exists() {
            let said =
                format!("{} holds an authority already; it was left as it is", dir.display());
            return Err(PkiError::Refused(said));
        }
        let foreign = std::fs::read_dir(dir).map_err(|e| wrong(dir, e))?.flatten().any(|entry| {
            ![CERT, KEY, REVOKED, ISSUED].iter().any(|ours| {
                entry.file_name().to_str().is_some_and(|n| n.trim_end_matches(".new") == *ours)
            })
        });
        if foreign {
            return Err(PkiError::Refused(format!(
                "{} is not empty; nothing was done",
                dir.display()
            )));
        }
        let key = KeyPair::generate()?;
        let mut params = authority_params(name);
        (params.not_before, params.not_after) = life(days)?;
        params.serial_number = Some(random_serial());
        let certificate = params.self_signed(&key)?;
        files::make_dir(&dir.join(ISSUED)).map_err(|e| wrong(dir, e))?;
        let index = Index::default();
        let mut authority = Self { dir: dir.into(), index, passphrase, _lock: lock };
        authority.write_key(&key)?;
        files::replace(&dir.join(CERT), certificate.pem().as_bytes()).map_err(|e| wrong(dir, e))?;
        authority.publish_revocations()?;
        Ok(authority)
    }

    /// Opens an authority.
    ///
    /// # Errors
    /// If there is none, it is damaged, others may read its key, or somebody else has it open.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        let lock = lock_folder(dir)?;
        let index = Index::load(&dir.join(INDEX))?;
        files::check_private(&dir.join(KEY))?;
        Ok(Self { dir: dir.into(), index, passphrase: None, _lock: lock })
    }

    /// Whether its key opens with a passphrase only.
    ///
    /// # Errors
    /// If the key's file cannot be read.
    pub fn is_locked(&self) -> Result<bool, PkiError> {
        Ok(key::is_encrypted(&self.key_text()?))
    }

    /// Gives it the passphrase. Not needed to look at what it has issued.
    ///
    /// # Errors
    /// If it is another.
    pub fn unlock(&mut self, passphrase: Passphrase) -> Result<(), PkiError> {
        self.passphrase = Some(passphrase);
        self.issuer().map(drop)
    }

    /// Writes its key again, with another passphrase or without one. The old file is overwritten in name only: what
    /// was on the disk may be there still.
    ///
    /// # Errors
    /// If the key does not open or cannot be written.
    pub fn change_passphrase(&mut self, new: Option<Passphrase>) -> Result<(), PkiError> {
        let (_, key, _) = self.open_key()?;
        self.passphrase = new;
        self.write_key(&key)
    }

    fn write_key(&self, key: &KeyPair) -> Result<(), PkiError> {
        let path = self.dir.join(KEY);
        let wrong = |reason: String| PkiError::File { path: path.clone(), reason };
        let text = key::seal(key, self.passphrase.as_ref());
        let text = text.ok_or_else(|| wrong("the key cannot be written".into()))?;
        files::replace(&path, text.as_bytes()).map_err(|e| wrong(e.to_string()))
    }

    fn key_text(&self) -> Result<Zeroizing<String>, PkiError> {
        let path = self.dir.join(KEY);
        let wrong = |reason: String| PkiError::File { path: path.clone(), reason };
        let key = Zeroizing::new(files::read(&path, 1 << 20).map_err(|e| wrong(e.to_string()))?);
        let key = std::str::from_utf8(&key).map_err(|_| wrong("it is no PEM".into()))?;
        Ok(Zeroizing::new(key.to_owned()))
    }

    /// What it has issued.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Its own certificate, which anyone who is to believe it gets.
    #[must_use]
    pub fn certificate_file(&self) -> PathBuf {
        self.dir.join(CERT)
    }

    /// The list of revoked certificates, which gateways get.
    #[must_use]
    pub fn revocations_file(&self) -> PathBuf {
        self.dir.join(REVOKED)
    }

    /// The file that a holder's certificate is in.
    #[must_use]
    pub fn bundle_file(&self, name: &HolderName) -> PathBuf {
        self.dir.join(ISSUED).join(format!("{name}.pem"))
    }

    /// Makes a certificate for somebody who has none.
    ///
    /// # Errors
    /// If it cannot be, or the name has one that is good.
    pub fn issue(&mut self, request: &Request) -> Result<Issued, PkiError> {
        let now = OffsetDateTime::from(clock::now()).unix_timestamp();
        let before =
            self.index.certificates.iter().find(|c| c.name == request.name && c.is_good_at(now));
        if let Some(before) = before {
            return Err(PkiError::Refused(format!(
                "{} has a certificate ({}) that is still good; nothing was issued. `backstay pki renew` makes \
                 another with the same rights; to change the rights, revoke it first",
                request.name, before.serial
            )));
        }
        self.make(request)
    }

    /// Makes another certificate, with a new key and the same rights, for somebody who has one. The old one
    /// stays good until it ends or is revoked by its number.
    ///
    /// # Errors
    /// If there is none that is not revoked, or it cannot be made.
    pub fn renew(&mut self, name: &HolderName, days: u32) -> Result<Issued, PkiError> {
        let newest = self.index.certificates.iter().rev().find(|c| c.name == *name);
        let newest = newest.ok_or_else(|| self.unknown(name.as_str()))?;
        if newest.revoked_unix_s.is_some() {
            return Err(PkiError::Refused(format!(
                "the certificate of {name} is revoked; nothing was issued. `backstay pki issue` gives a new \
                 one, with rights that you say again"
            )));
        }
        let kind = match (newest.role, &newest.disks) {
            (Some(role), Some(disks)) => AuthorityKind::Client { role, disks: disks.names() },
            _ if newest.client => AuthorityKind::Group { hosts: newest.hosts.clone() },
            _ => AuthorityKind::Server { hosts: newest.hosts.clone() },
        };
        self.make(&Request { name: name.clone(), kind, days })
    }

    /// Revokes by a holder's name (all its certificates) or a number, and signs a new list.
    /// Doing it again signs it again. Returns those that are revoked now.
    ///
    /// # Errors
    /// If nothing has that name or number, or files cannot be written.
    pub fn revoke(&mut self, which: &str) -> Result<Vec<CertificateRecord>, PkiError> {
        let now = OffsetDateTime::from(clock::now()).unix_timestamp();
        let serial = which.to_ascii_lowercase().replace(':', "");
        let mut found = Vec::new();
        for record in &mut self.index.certificates {
            if record.name.as_str() == which || String::from(record.serial.clone()) == serial {
                record.revoked_unix_s.get_or_insert(now);
                found.push(record.clone());
            }
        }
        if found.is_empty() {
            return Err(self.unknown(which));
        }
        self.publish_revocations()?;
        Ok(found)
    }

    fn unknown(&self, which: &str) -> PkiError {
        let dir = self.dir.display();
        PkiError::Refused(format!(
            "{which:?} is no name and no number of a certificate of {dir}; nothing was changed. \
             `backstay pki list {dir}` shows them"
        ))
    }

    fn make(&mut self, request: &Request) -> Result<Issued, PkiError> {
        let (issuer, ends) = self.issuer()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished(request.name.as_str());
        params.use_authority_key_identifier_extension = true;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        (params.not_before, params.not_after) = life(request.days)?;
        if params.not_after > ends {
            return Err(PkiError::Request(format!(
                "the authority itself ends on {}, before the certificate would: ask for fewer days, or \
                 make a new authority",
                ends.date()
            )));
        }
        let number = random_serial();
        let serial = Serial::from_bytes(&number.to_bytes());
        params.serial_number = Some(number);
        let mut record = CertificateRecord {
            serial,
            name: request.name.clone(),
            role: None,
            disks: None,
            hosts: Vec::new(),
            server: false,
            client: false,
            from_unix_s: params.not_before.unix_timestamp(),
            until_unix_s: params.not_after.unix_timestamp(),
            revoked_unix_s: None,
        };
        match &request.kind {
            AuthorityKind::Client { role, disks } => {
                let disks = Disks::of(*role, disks.iter().map(String::as_str))
                    .map_err(PkiError::Request)?;
                let mut uris = vec![format!("name:{}", request.name), format!("role:{role}")];
                uris.extend(disks.names().iter().map(|name| format!("disk:{name}")));
                for uri in uris {
                    params
                        .subject_alt_names
                        .push(SanType::URI(format!("backstay:{uri}").try_into()?));
                }
                (record.role, record.disks, record.client) = (Some(*role), Some(disks), true);
            }
            AuthorityKind::Server { hosts } | AuthorityKind::Group { hosts } => {
                params.subject_alt_names = host_names(hosts)?;
                record.hosts.clone_from(hosts);
                record.server = true;
                record.client = matches!(request.kind, AuthorityKind::Group { .. });
            }
        }
        let usages = &mut params.extended_key_usages;
        usages.extend(record.client.then_some(ExtendedKeyUsagePurpose::ClientAuth));
        usages.extend(record.server.then_some(ExtendedKeyUsagePurpose::ServerAuth));

        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        self.index.certificates.push(record.clone());
        self.index.store(&self.dir.join(INDEX))?;
        let file = self.bundle_file(&request.name);
        let bundle = format!("{}{}", certificate.pem(), key.serialize_pem());
        files::replace(&file, bundle.as_bytes())
            .map_err(|e| PkiError::File { path: file.clone(), reason: e.to_string() })?;
        Ok(Issued { record, file })
    }

    /// Who signs, and when it ends.
    fn issuer(&self) -> Result<(Issuer<'static, KeyPair>, OffsetDateTime), PkiError> {
        let (name, key, ends) = self.open_key()?;
        Ok((Issuer::new(authority_params(&name), key), ends))
    }

    /// Its name, its key, and when it ends.
    fn open_key(&self) -> Result<(String, KeyPair, OffsetDateTime), PkiError> {
        let path = self.dir.join(CERT);
        let wrong = |reason: String| PkiError::File { path: path.clone(), reason };
        let pem = files::read(&path, 1 << 20).map_err(|e| wrong(e.to_string()))?;
        let der = CertificateDer::from_pem_slice(&pem).map_err(|e| wrong(e.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|e| wrong(e.to_string()))?;
        let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let name = name.ok_or_else(|| wrong("it has no name".into()))?;
        let ends = parsed.validity().not_after.to_datetime();
        let path = self.dir.join(KEY);
        let text = self.key_text()?;
        let locked = |reason| PkiError::Locked { path: path.clone(), reason };
        let encrypted = key::is_encrypted(&text);
        if encrypted && self.passphrase.is_none() {
            return Err(locked("it opens with a passphrase, and none was given"));
        }
        // What the library says of a key it cannot read is not repeated: it might hold a part of it.
        let key = key::open(&text, self.passphrase.as_ref());
        let fits = |key: &KeyPair| {
            parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
        };
        match key {
            Some(key) if fits(&key) => Ok((name.to_owned(), key, ends)),
            _ if encrypted => Err(locked("it does not open with this passphrase")),
            Some(_) => {
                Err(PkiError::File { path, reason: format!("it does not belong to {CERT}") })
            }
            None => Err(PkiError::File { path, reason: "it is no key of ours".into() }),
        }
    }

    fn publish_revocations(&mut self) -> Result<(), PkiError> {
        let (issuer, ends) = self.issuer()?;
        self.index.crl_number += 1;
        self.index.store(&self.dir.join(INDEX))?;
        let at = |unix_s: i64| {
            OffsetDateTime::from_unix_timestamp(unix_s).unwrap_or(OffsetDateTime::UNIX_EPOCH)
        };
        let revoked = |record: &CertificateRecord| {
            Some(RevokedCertParams {
                serial_number: SerialNumber::from(record.serial.to_bytes()),
                revocation_time: at(record.revoked_unix_s?),
                reason_code: Some(RevocationReason::Unspecified),
                invalidity_date: None,
            })
        };
        let list = CertificateRevocationListParams {
            this_update: OffsetDateTime::from(clock::now()) - BEFORE,
            // Nobody makes a new one every month: a list holds until the next, at most as long as the authority.
            next_update: ends,
            crl_number: SerialNumber::from(self.index.crl_number),
            issuing_distribution_point: None,
            revoked_certs: self.index.certificates.iter().filter_map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.revocations_file();
        files::replace(&path, list.signed_by(&issuer)?.pem()?.as_bytes())
            .map_err(|e| PkiError::File { path: path.clone(), reason: e.to_string() })
    }
}

fn lock_folder(dir: &Path) -> Result<Flock<File>, PkiError> {
    let wrong = |reason: String| PkiError::File { path: dir.into(), reason };
    let locked = File::open(dir).and_then(|file| lock::exclusive(file, lock::LOOKED_AT_WAIT));
    let locked = locked.map_err(|e| wrong(e.to_string()))?;
    locked.ok_or_else(|| wrong("another command is using it; try again".into()))
}

fn distinguished(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn life(days: u32) -> Result<(OffsetDateTime, OffsetDateTime), PkiError> {
    if !(1..=DAYS_MAX).contains(&days) {
        return Err(PkiError::Request(format!("{days} days: use 1 to {DAYS_MAX}")));
    }
    let now = OffsetDateTime::from(clock::now());
    Ok((now - BEFORE, now + Duration::days(days.into())))
}

/// 122 bits of chance; it begins with neither a zero nor a sign.
fn random_serial() -> SerialNumber {
    let mut bytes = uuid::Uuid::new_v4().into_bytes();
    bytes[0] = bytes[0] & 0x7F | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn host_names(hosts: &[String]) -> Result<Vec<SanType>, PkiError> {
    if hosts.is_empty() || hosts.len() > HOSTS_MAX {
        return Err(PkiError::Request(format!("name 1 to {HOSTS_MAX} hosts or addresses")));
    }
    let name = |host: &String| match host.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => match rustls::pki_types::DnsName::try_from(host.as_str()) {
            Ok(_) => Ok(SanType::DnsName(host.as_str().try_into()?)),
            Err(_) => {
                Err(PkiError::Request(format!("{host:?} is neither a host name nor an address")))
            }
        },
    };
    hosts.iter().map(name).collect()
}
