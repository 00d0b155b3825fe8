//! Hosts that connect to a coordinator: who is let in, and what a round makes of hosts that answer,
//! refuse, lie about the round, fall silent or hang up at every step.

#![allow(
    clippy::disallowed_methods,
    reason = "a test: real time, and files as others would move them"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use backstay_engine::group::TlsConfig;
use backstay_engine::group::crew::{Crew, Trouble};
use backstay_engine::group::hosts::Hosts;
use backstay_engine::group::link::{Link, LinkError};
use backstay_engine::group::tls::{self, Tls};
use backstay_engine::group::wire::{Ask, Point, Tell};
use backstay_types::{CycleNo, DiskId, PointId};
use backstay_vault::{GroupMember, GroupName};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};

const LONG: Duration = Duration::from_secs(10);
const HOLD: Duration = Duration::from_millis(300);
const HOST: &str = "web1.example";

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// The files of a host, and those of the authority it trusts.
    fn host(&self, dir: &Path, name: &str, trusts: &Self) -> TlsConfig {
        self.host_of_number(dir, name, trusts, 1)
    }

    fn host_of_number(&self, dir: &Path, name: &str, trusts: &Self, number: u64) -> TlsConfig {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(number));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let file = |what: &str, content: String| {
            let unique = PointId::random();
            let path = dir.join(format!("{unique}-{what}.pem"));
            std::fs::write(&path, content).unwrap();
            path
        };
        TlsConfig {
            ca: file("ca", trusts.0.pem()),
            cert: file("cert", certificate.pem()),
            key: file("key", key.serialize_pem()),
            revoked: None,
        }
    }

    /// A list of revoked certificates.
    fn revoke(&self, numbers: &[u64], to: &Path) {
        let revoked = |number: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*number),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2099, 1, 1),
            crl_number: SerialNumber::from(numbers.len() as u64 + 1),
            issuing_distribution_point: None,
            revoked_certs: numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        std::fs::write(to, list.signed_by(&self.0).unwrap().pem().unwrap()).unwrap();
    }
}

struct Lab {
    dir: tempfile::TempDir,
    authority: Authority,
    hosts: Hosts,
    port: u16,
}

fn shop() -> GroupName {
    "shop".parse().unwrap()
}

impl Lab {
    fn new() -> Self {
        let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let server = authority.host(dir.path(), "127.0.0.1", &authority);
        let groups = BTreeMap::from([(shop(), vec![HOST.to_owned()])]);
        let address = "127.0.0.1:0".parse().unwrap();
        let hosts = Hosts::listen(address, Tls::load(&server).unwrap(), groups).unwrap();
        let port = hosts.address().port();
        Self { dir, authority, hosts, port }
    }

    /// Dials as a host of this name.
    fn dial(&self, name: &str) -> Result<Link, LinkError> {
        self.dial_with(&self.authority.host(self.dir.path(), name, &self.authority), "127.0.0.1")
    }

    fn dial_with(&self, files: &TlsConfig, coordinator: &str) -> Result<Link, LinkError> {
        let name = tls::host_name(coordinator).unwrap();
        Link::dial(Tls::load(files).unwrap().client(), name, ("127.0.0.1", self.port))
    }

    /// Dials and says hello for a group; whether it was welcome.
    fn hello(&self, name: &str, group: &GroupName) -> Result<Link, LinkError> {
        let mut link = self.dial(name)?;
        link.send(&Tell::Hello { group: group.clone() }, LONG)?;
        match link.receive(LONG)? {
            Ask::Welcome => Ok(link),
            other => panic!("{other:?}"),
        }
    }

    /// A host that follows a script: each answers one ask of a round; `None` hangs up.
    fn member(
        &self,
        script: impl Fn(&Ask) -> Option<Vec<Tell>> + Send + 'static,
    ) -> JoinHandle<Result<(), LinkError>> {
        let mut link = self.hello(HOST, &shop()).unwrap();
        assert!(self.hosts.wait_for(&shop(), LONG));
        thread::spawn(move || {
            loop {
                let ask: Ask = link.receive(LONG)?;
                let tells = match &ask {
                    Ask::Ping => vec![Tell::Pong],
                    ask => match script(ask) {
                        Some(tells) => tells,
                        None => return Ok(()),
                    },
                };
                for tell in tells {
                    link.send(&tell, LONG)?;
                }
            }
        })
    }

    fn crew(&self) -> Crew {
        let mut crew = Crew::new(Arc::new(AtomicBool::new(false)));
        self.hosts.enlist(&shop(), &mut crew).unwrap();
        crew
    }
}

fn a_point() -> Point {
    Point {
        disk: DiskId::from_bytes([1; 16]),
        name: "log".parse().unwrap(),
        cycle: CycleNo(5),
        point: PointId::from_bytes([2; 16]),
        cut_unix_ns: 7,
    }
}

/// What a host answers that does all it should.
fn good(ask: &Ask) -> Vec<Tell> {
    match *ask {
        Ask::Prepare { round } => vec![Tell::Working { round }, Tell::Here { round }],
        Ask::Quiesce { round } => vec![Tell::Working { round }, Tell::Ready { round }],
        Ask::Cut { round, .. } => vec![Tell::Cut { round }],
        Ask::Thaw { round } => vec![Tell::Thawed { round, in_force: true, held_ns: 5 }],
        Ask::Finish { round } => {
            vec![Tell::Working { round }, Tell::Done { round, points: vec![a_point()] }]
        }
        Ask::Abort { round } => vec![Tell::Aborted { round }],
        Ask::Welcome | Ask::Ping => vec![],
    }
}

fn round(crew: &mut Crew) -> Result<Vec<GroupMember>, Trouble> {
    crew.here(LONG)?;
    crew.quiesce();
    crew.ready(LONG)?;
    crew.cut(HOLD)?;
    crew.thaw()?;
    crew.finish();
    crew.done(LONG)
}

#[test]
fn a_round_with_another_host() {
    let lab = Lab::new();
    let _member = lab.member(|ask| Some(good(ask)));
    for _ in 0..20 {
        let points = loop {
            // The round before may not have been left yet on its side.
            let mut crew = Crew::new(Arc::new(AtomicBool::new(false)));
            match lab.hosts.enlist(&shop(), &mut crew) {
                Ok(()) => break round(&mut crew).unwrap(),
                Err(e) => assert!(e.to_string().contains("busy"), "{e}"),
            }
        };
        assert_eq!(points, [a_point().of_host(HOST)]);
    }
}

#[test]
fn strangers_are_turned_away() {
    let lab = Lab::new();
    let other = Authority::new();
    // Of another authority, though it trusts ours.
    let files = other.host(lab.dir.path(), HOST, &lab.authority);
    let turned_away = lab.dial_with(&files, "127.0.0.1").and_then(|mut link| {
        link.send(&Tell::Hello { group: shop() }, LONG)?;
        link.receive::<Ask>(LONG)
    });
    assert!(turned_away.is_err(), "{turned_away:?}");
    // A host trusts no coordinator of another authority, nor one of another name.
    let files = lab.authority.host(lab.dir.path(), HOST, &other);
    assert!(matches!(lab.dial_with(&files, "127.0.0.1").err(), Some(LinkError::Tls(_))));
    let files = lab.authority.host(lab.dir.path(), HOST, &lab.authority);
    assert!(matches!(lab.dial_with(&files, "db9.example").err(), Some(LinkError::Tls(_))));
    // Of our authority, and none of the group's hosts, or for no group of ours.
    assert!(lab.hello("web9.example", &shop()).is_err());
    assert!(lab.hello(HOST, &"other".parse().unwrap()).is_err());
    assert!(!lab.hosts.wait_for(&shop(), Duration::from_millis(100)));
    lab.hello(HOST, &shop()).unwrap();
    assert!(lab.hosts.wait_for(&shop(), LONG));
}

/// Who is revoked is shut out at once, on a connection that is open, too; a list that is cut off lets nobody in again.
#[test]
fn a_revoked_host_is_shut_out() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let list = dir.path().join("revoked.crl");
    authority.revoke(&[], &list);
    let mut server = authority.host_of_number(dir.path(), "127.0.0.1", &authority, 10);
    server.revoked = Some(list.clone());
    let groups = BTreeMap::from([(shop(), vec![HOST.to_owned()])]);
    let address = "127.0.0.1:0".parse().unwrap();
    let tls = Tls::load(&server).unwrap();
    let hosts = Hosts::listen(address, Arc::clone(&tls), groups).unwrap();
    let port = hosts.address().port();
    let lab = Lab { dir, authority, hosts, port };
    let files = |number| lab.authority.host_of_number(lab.dir.path(), HOST, &lab.authority, number);
    let hello = |files: &TlsConfig| {
        let mut link = lab.dial_with(files, "127.0.0.1")?;
        link.send(&Tell::Hello { group: shop() }, LONG)?;
        link.receive::<Ask>(LONG).map(|_| link)
    };
    let (old, new) = (files(20), files(21));
    let mut open = hello(&old).unwrap();
    assert!(lab.hosts.wait_for(&shop(), LONG));
    lab.authority.revoke(&[20], &list);
    let ended = loop {
        match open.receive::<Ask>(LONG) {
            Ok(_) => open.send(&Tell::Pong, LONG).unwrap(),
            Err(e) => break e,
        }
    };
    assert!(matches!(ended, LinkError::Io(_)), "{ended}");
    let refused = hello(&old).err().expect("it is revoked");
    assert!(refused.to_string().contains("CertificateRevoked"), "{refused}");
    hello(&new).unwrap();
    // Cut off: what was read before still holds.
    std::fs::write(&list, "").unwrap();
    assert!(hello(&old).is_err());
    hello(&new).unwrap();
    assert!(Tls::load(&server).is_err(), "a list without any is none");

    // The other way round: a host that reads the list dials no revoked coordinator, and stays with none.
    lab.authority.revoke(&[20], &list);
    let mut files = files(22);
    files.revoked = Some(list.clone());
    let tls = Tls::load(&files).unwrap();
    let link = hello(&files).unwrap();
    let name = tls::host_name("127.0.0.1").unwrap();
    tls.check_coordinator(link.certificates(), &name).unwrap();
    lab.authority.revoke(&[20, 10], &list);
    assert!(tls.check_coordinator(link.certificates(), &name).is_err());
    let refused = lab.dial_with(&files, "127.0.0.1").err();
    assert!(matches!(refused, Some(LinkError::Tls(_))), "{refused:?}");
}

#[test]
fn bytes_that_are_no_tls_and_messages_that_are_none_end_a_connection_and_nothing_else() {
    let lab = Lab::new();
    let mut plain = TcpStream::connect(("127.0.0.1", lab.port)).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut rest = vec![];
    let _ = plain.read_to_end(&mut rest);
    assert!(rest.len() < 100, "an alert at the most");
    // A host that is let in, and then says nonsense: a string where an object should be.
    let mut link = lab.hello(HOST, &shop()).unwrap();
    link.send(&"nonsense", LONG).unwrap();
    let ended = loop {
        match link.receive::<Ask>(LONG) {
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    assert!(matches!(ended, LinkError::Io(_)), "{ended}");
    let _member = lab.member(|ask| Some(good(ask)));
    round(&mut lab.crew()).unwrap();
}

#[test]
fn a_host_that_is_not_there_is_named() {
    let lab = Lab::new();
    let mut crew = Crew::new(Arc::new(AtomicBool::new(false)));
    let missing = lab.hosts.enlist(&shop(), &mut crew).unwrap_err().to_string();
    assert!(missing.contains(HOST) && missing.contains("not connected"), "{missing}");
}

/// Which step of the script a host spoils.
fn step_of(ask: &Ask) -> usize {
    match ask {
        Ask::Prepare { .. } => 0,
        Ask::Cut { .. } => 1,
        Ask::Thaw { .. } => 2,
        Ask::Finish { .. } => 3,
        Ask::Quiesce { .. } => 4,
        _ => usize::MAX,
    }
}

#[test]
fn a_host_that_hangs_up_at_any_step_costs_the_group_point() {
    for spoiled in 0..5 {
        let lab = Lab::new();
        let member = lab.member(move |ask| (step_of(ask) != spoiled).then(|| good(ask)));
        let trouble = round(&mut lab.crew()).unwrap_err();
        assert!(matches!(trouble, Trouble::Failed { .. }), "step {spoiled}: {trouble}");
        member.join().unwrap().unwrap();
        // It may come back.
        let _member = lab.member(|ask| Some(good(ask)));
        round(&mut lab.crew()).unwrap();
    }
}

#[test]
fn a_host_that_is_silent_holds_nobody_longer_than_the_deadline() {
    let lab = Lab::new();
    let _member = lab.member(|ask| Some(if step_of(ask) == 1 { vec![] } else { good(ask) }));
    let mut crew = lab.crew();
    crew.here(LONG).unwrap();
    crew.quiesce();
    crew.ready(LONG).unwrap();
    let began = Instant::now();
    let late = crew.cut(HOLD).unwrap_err();
    assert!(began.elapsed() < HOLD + Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(matches!(late, Trouble::Late { .. } | Trouble::Failed { .. }), "{late}");
}

#[test]
fn a_hold_that_expired_voids_the_group() {
    let lab = Lab::new();
    let _member = lab.member(|ask| match *ask {
        Ask::Thaw { round } => Some(vec![Tell::Thawed { round, in_force: false, held_ns: 9 }]),
        ref ask => Some(good(ask)),
    });
    let mut crew = lab.crew();
    let expired = round(&mut crew).unwrap_err();
    assert!(matches!(expired, Trouble::Expired { .. }), "{expired}");
}

#[test]
fn reasons_are_told_without_control_characters() {
    let lab = Lab::new();
    let _member = lab.member(|ask| match *ask {
        Ask::Prepare { round } => {
            Some(vec![Tell::Failed { round, reason: "\u{1b}[2Jdisk log is busy\n".into() }])
        }
        ref ask => Some(good(ask)),
    });
    let failed = round(&mut lab.crew()).unwrap_err().to_string();
    assert_eq!(failed, "host web1.example: [2Jdisk log is busy");
}

#[test]
fn answers_of_another_round_count_for_nothing() {
    let lab = Lab::new();
    let _member = lab.member(|ask| {
        let stale = match *ask {
            Ask::Cut { round, .. } => Some(Tell::Cut { round: round ^ 1 }),
            Ask::Thaw { round } => {
                Some(Tell::Thawed { round: round ^ 1, in_force: false, held_ns: 0 })
            }
            _ => None,
        };
        Some(stale.into_iter().chain(good(ask)).collect())
    });
    round(&mut lab.crew()).unwrap();
    // And nothing but those of another round is no answer.
    let lab = Lab::new();
    let _member = lab.member(|ask| match *ask {
        Ask::Cut { round, .. } => Some(vec![Tell::Cut { round: round ^ 1 }]),
        ref ask => Some(good(ask)),
    });
    round(&mut lab.crew()).unwrap_err();
}

#[test]
fn an_abort_reaches_a_host_that_waits_for_the_others() {
    let lab = Lab::new();
    let (aborted, seen) = std::sync::mpsc::channel();
    let _member = lab.member(move |ask| {
        if matches!(ask, Ask::Abort { .. }) {
            let _ = aborted.send(());
        }
        Some(good(ask))
    });
    for gives_up in [true, false] {
        let mut crew = loop {
            let mut crew = Crew::new(Arc::new(AtomicBool::new(false)));
            if lab.hosts.enlist(&shop(), &mut crew).is_ok() {
                break crew;
            }
        };
        crew.here(LONG).unwrap();
        if gives_up {
            crew.abort();
        }
        // A crew that is gone has given up, too.
        drop(crew);
        seen.recv_timeout(LONG).unwrap();
    }
}
