//! Object lock: what a thief with the store's own keys can do, and how what he did is undone.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backstay_tests::harness::Host;
use backstay_tests::harness::backend::{Backend, Role};
use backstay_tests::harness::command::said;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::service::wait_for;
use backstay_tests::harness::store::{Kind, Store};

use super::{MIB, PARTS, SIZE, SMALL, noise};

const HOUR: Duration = Duration::from_secs(3600);

/// Anyone who has the store's keys.
struct Thief {
    bucket: String,
    prefix: String,
}

impl Thief {
    fn at(store: &Store, url: &str) -> Self {
        let (bucket, prefix) = url.strip_prefix("s3://").unwrap().split_once('/').unwrap();
        Self { bucket: format!("http://127.0.0.1:{}/{bucket}", store.port), prefix: prefix.into() }
    }

    fn curl(&self, args: &[&str], target: &str) -> String {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "20", "--user", "backstay:keys"]);
        // This store wants to see a signature and looks at none.
        command.args(["--aws-sigv4", "aws:amz:us-east-1:s3"]).args(args);
        let output = command.arg(format!("{}{target}", self.bucket)).output().unwrap();
        assert!(output.status.success(), "{args:?} {target}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Keys and versions of all objects, not of marks.
    fn versions(&self) -> Vec<(String, String)> {
        let text = self.curl(&[], &format!("?versions&prefix={}/", self.prefix));
        assert!(text.contains("<IsTruncated>false<"), "{text}");
        let between = |text: &str, mark: &str| {
            let (_, rest) = text.split_once(&format!("<{mark}>")).unwrap();
            rest.split_once('<').unwrap().0.to_owned()
        };
        let items = text.split("<Version>").skip(1);
        items.map(|item| (between(item, "Key"), between(item, "VersionId"))).collect()
    }

    /// An HTTP status.
    fn status(&self, args: &[&str], target: &str) -> String {
        self.curl(
            &[&["--output", "/dev/null", "--write-out", "%{http_code}"], args].concat(),
            target,
        )
    }

    /// The lock of an object: its mode, and until when.
    fn lock(&self, key: &str) -> Option<(String, SystemTime)> {
        let head = self.curl(&["--head"], &format!("/{key}")).to_ascii_lowercase();
        let header = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_start_matches(':').trim().to_ascii_uppercase())
        };
        let until = header("x-amz-object-lock-retain-until-date")?;
        Some((header("x-amz-object-lock-mode")?, humantime::parse_rfc3339(&until).unwrap()))
    }
}

/// The next whole second, once it has begun: this store tells times in seconds.
fn next_second() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let next = UNIX_EPOCH + Duration::from_secs(now.as_secs() + 1);
    wait_for("the next second", || SystemTime::now() >= next);
    humantime::format_rfc3339_seconds(next).to_string()
}

/// Everything in the vault is locked, also what went up in parts. He who has the store's keys deletes all and
/// overwrites some: each point is back as it was, and the source goes on.
#[test]
fn what_a_thief_deletes_comes_back() {
    let store = Store::start(Kind::Locking);
    let backend = Backend::direct(&store);
    let host = Host::new("stores-locked");
    let locked = |hours: u32| {
        format!("{PARTS}object_lock = \"{hours}h\"\nobject_lock_mode = \"compliance\"\n")
    };
    backend.connect(&host, Role::Source, SMALL, &locked(1));
    let disk = host.disk("db", SIZE);
    noise(&disk.backing, 0, 14 * MIB, 1);
    let served = disk.mount(&[]);
    disk.cycle();
    let first = hash(&served);
    noise(&served, 5 * MIB, MIB, 2);
    disk.cycle();
    let second = hash(&served);
    let thief = Thief::at(&store, &backend.url);
    let there = thief.versions();
    let segments = there.iter().filter(|(key, _)| key.contains("/segments/")).count();
    assert!(segments >= 3 && there.len() > segments + 4, "{there:?}");
    for (key, _) in there.iter().filter(|(key, _)| !key.contains("/probes/")) {
        let (mode, until) = thief.lock(key).unwrap_or_else(|| panic!("{key} is not locked"));
        assert_eq!(mode, "COMPLIANCE", "{key}");
        let left = until.duration_since(SystemTime::now()).unwrap();
        assert!(left > HOUR - Duration::from_secs(300) && left <= HOUR, "{key}: {left:?}");
    }
    // For longer.
    backend.connect(&host, Role::Source, SMALL, &locked(3));
    let extended = host.json(&["vault", "extend"]);
    assert!(extended["objects"].as_u64().unwrap() as usize >= there.len() - 2, "{extended}");
    let a_point = &there.iter().find(|(key, _)| key.contains("/points/")).unwrap().0;
    let left = thief.lock(a_point).unwrap().1.duration_since(SystemTime::now()).unwrap();
    assert!(left > 2 * HOUR, "{left:?}");
    // The theft.
    let before = next_second();
    for (key, version) in &there {
        let gone = thief.status(&["--request", "DELETE"], &format!("/{key}?versionId={version}"));
        // He may delete what is not locked.
        let expected = if key.contains("/probes/") { "204" } else { "403" };
        assert_eq!(gone, expected, "{key}");
        assert_eq!(thief.status(&["--request", "DELETE"], &format!("/{key}")), "204");
    }
    assert_eq!(
        thief.status(&["--request", "PUT", "--data", "mine"], &format!("/{a_point}")),
        "200"
    );
    let lost = host.try_backstay(&["verify", "db"]);
    assert!(!lost.status.success(), "{}", said(&lost));
    // Back.
    let undelete = ["vault", "undelete", "--since", &before];
    let would = host.json(&[&undelete[..], &["--check"]].concat());
    assert!(would["deleted"].as_u64().unwrap() > 5 && would["overwritten"] == 1, "{would}");
    assert!(!host.try_backstay(&["points", "db"]).status.success(), "it was only looked at");
    let mut done = host.json(&undelete);
    done["done"] = false.into();
    assert_eq!(done, would);
    host.backstay(&["verify", "db"]);
    assert_eq!(hash(&disk.restore(1, "first.img")), first);
    assert_eq!(hash(&disk.restore(2, "second.img")), second);
    noise(&served, 9 * MIB, MIB, 3);
    disk.cycle();
    assert_eq!(hash(&disk.restore(3, "third.img")), hash(&served));
    let nothing = host.json(&["vault", "undelete", "--since", &before]);
    assert_eq!((&nothing["deleted"], &nothing["overwritten"]), (&0.into(), &0.into()));
}

/// A lock that is asked for and cannot be had is told before anything is put; so is a store that keeps versions and
/// forgets conditions over them (Ceph 16).
#[test]
fn what_cannot_be_locked_is_refused() {
    let store = Store::shared(Kind::S3);
    let host = Host::new("stores-no-lock");
    host.without_vault();
    let disk = host.disk("db", SIZE);
    let backing = disk.backing.to_str().unwrap();
    let locked = "object_lock = \"1h\"\n";
    let refused = |url: &str, why: &str| {
        let mut backend = Backend::direct(store);
        backend.url = url.into();
        backend.connect(&host, Role::Source, SMALL, locked);
        let text = said(&host.try_backstay(&["protect", backing, "--name", "db", "--vault", url]));
        assert!(text.contains(why) && !text.contains("Signature"), "{url}: {text}");
    };
    refused(&store.url(), "this bucket cannot lock objects");
    refused(&store.url().replace("//vault/", "//locked/"), "cannot hold a vault");
    let azure = Store::shared(Kind::Azure);
    Backend::direct(azure).connect(&host, Role::Source, SMALL, locked);
    let url = azure.url();
    let text = said(&host.try_backstay(&["protect", backing, "--name", "db", "--vault", &url]));
    assert!(text.contains("locks objects in s3:// alone"), "{text}");
    // Where nothing can be locked, nothing is begun; a gateway's own store is meant where the gateway runs.
    let folder = host.path("cannot-lock");
    for (url, why) in [
        (format!("file://{}", folder.display()), "A directory has no such thing"),
        ("https://localhost:9443".into(), "set it in the gateway's configuration"),
    ] {
        Backend::at(&url).connect(&host, Role::Source, SMALL, locked);
        let refused = host.try_backstay(&["protect", backing, "--name", "db", "--vault", &url]);
        assert!(said(&refused).contains(why), "{url}: {}", said(&refused));
    }
    assert!(!folder.exists());
}
