//! The roles and their keys: a source has a writer's, anyone who recovers an identity, and everything recovery does is done
//! with that.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use backstay_tests::harness::command::said;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::pair::InUse;
use backstay_tests::harness::seed::seed;
use backstay_tests::harness::service::wait_for;
use backstay_tests::harness::{FsMount, Host, must};

use super::{MIB, host, setting};

/// An age identity in a file, and its recipient.
pub(super) fn identity(at: &Path) -> String {
    use age::secrecy::ExposeSecret;
    let identity = age::x25519::Identity::generate();
    fs::write(at, identity.to_string().expose_secret()).unwrap();
    fs::set_permissions(at, fs::Permissions::from_mode(0o600)).unwrap();
    identity.to_public().to_string()
}

/// A vault that one slot opens, that of an age recipient; a source that can only write, and who recovers it.
struct Roles {
    owner: Arc<Host>,
    source: Arc<Host>,
    recovery: Arc<Host>,
    identity: PathBuf,
    vault: String,
}

impl Roles {
    fn new(test: &str) -> Self {
        let owner = Host::new(&format!("{test}-owner"));
        let (identity_file, vault) = (owner.path("identity"), owner.vault());
        let recipient = identity(&identity_file);
        let printed =
            owner.backstay(&["key", "init", "--vault", &vault, "--recipient", &recipient]);
        let opens = format!("identity_file = {identity_file:?}\n{}", setting(&printed, "owner"));
        let recovery = host(&format!("{test}-recovery"), &vault, &opens);
        let writer = owner.path("writer");
        recovery.backstay(&["key", "grant", "--to", &writer.to_string_lossy()]);
        let source = host(&format!("{test}-source"), &vault, &format!("writer_file = {writer:?}"));
        Self { owner, source, recovery, identity: identity_file, vault }
    }

    /// Another host that can read.
    fn reader(&self, test: &str) -> Arc<Host> {
        let config = fs::read_to_string(self.recovery.path("backstay.toml")).unwrap();
        let reader = Host::new(test);
        fs::write(reader.path("backstay.toml"), config).unwrap();
        reader
    }
}

/// What is refused to a host that can only write, before anything is changed.
#[track_caller]
fn cannot_read(host: &Host, args: &[&str]) {
    let refused = host.try_backstay(args);
    let said = said(&refused);
    assert!(
        !refused.status.success() && said.contains("seals and does not open"),
        "{args:?}: {said}"
    );
}

/// Replica, drill, test, image, failover, resync, merging and the way back, with an identity that only who recovers has.
#[test]
fn all_that_recovery_does_with_the_keys_of_its_roles() {
    let mut rng = fastrand::Rng::with_seed(seed(0x5EA4));
    let roles = Roles::new("sealed-roles");
    let (source, recovery) = (&roles.source, &roles.recovery);
    let mut used = InUse::new(source, "db", 32 * MIB);
    let mut write = |at: &Path, name: &str| {
        let mut bytes = vec![0; 700_000];
        rng.fill(&mut bytes);
        fs::write(at.join(name), bytes).unwrap();
        must("sync", ["-f", &at.to_string_lossy()]);
    };
    write(&used.at(), "first");
    used.disk.cycle();
    write(&used.at(), "second");
    used.disk.cycle();

    // A replica follows; a drill, a test, an image and a file of the newest point.
    let standby = roles.reader("sealed-standby");
    drop(standby.disk("db", 4096));
    let copy = standby.path("copy.img").to_string_lossy().into_owned();
    standby.backstay(&["replica", "db", "--to", &copy, "--once"]);
    write(&used.at(), "third");
    used.disk.cycle();
    standby.backstay(&["replica", "db", "--once"]);
    let right = hash(&used.disk.served());
    assert_eq!(hash(Path::new(&copy)), right);
    recovery.backstay(&["drill", "db"]);
    let listed = recovery.json(&["points", "db"]).to_string();
    assert!(listed.contains("ext4"), "{listed}");
    recovery.disk("db.test", 512);
    let same = format!("cmp $BACKSTAY_SERVED {copy}");
    recovery.backstay(&["failover", "test", "db", "--run", &same]);
    recovery.try_backstay(&["failover", "cleanup", "db"]);
    let image = recovery.path("image").to_string_lossy().into_owned();
    recovery.backstay(&["export", "db", "--point", "latest", "--to", &image, "--format", "raw"]);
    assert_eq!(hash(Path::new(&image)), right);
    recovery.disk("looked", 512);
    recovery.backstay(&["mount", "--disk", "db", "--name", "looked", "--hydrate"]);
    assert_eq!(hash(&recovery.runtime.join("looked/mnt/disk")), right);
    recovery.backstay(&["umount", "looked", "--forget"]);

    // None of this is the source's, and it is told before anything is touched.
    let nowhere = source.path("nowhere").to_string_lossy().into_owned();
    cannot_read(source, &["export", "db", "--point", "latest", "--to", &nowhere]);
    cannot_read(source, &["verify", "db"]);
    cannot_read(source, &["failover", "unplanned", "db", "--as", "again"]);
    assert!(!Path::new(&nowhere).exists() && !source.path("state/again").exists());

    // The other host takes over, and ships with nothing but its identity.
    recovery.disk("db", 512);
    let device = recovery.backstay(&["failover", "unplanned", "db", "--attach"]);
    recovery.backstay(&["failover", "commit", "db"]);
    let there = recovery.runtime.join("db/mnt/disk");
    assert_eq!(hash(&there), right);
    let at = FsMount::new(recovery, device.trim(), "there", "rw");
    write(&at.at, "fourth");
    recovery.backstay(&["cycle", "db"]);
    let moved = recovery.json(&["resync", "db", "--now"]);
    println!("resync: {moved}");
    write(&at.at, "fifth");
    recovery.backstay(&["cycle", "db"]);
    recovery.backstay(&["prune", "db", "--keep", "last 2"]);
    recovery.backstay(&["verify", "db"]);
    drop(at);

    // The old source: refused, and its disk served as before; the way back needs a key that reads.
    write(&used.at(), "lost");
    let refused = said(&source.try_backstay(&["cycle", "db"]));
    assert!(refused.contains("is over"), "{refused}");
    used.mounted = None;
    must("losetup", ["-d", &used.device]);
    let backing = used.disk.backing.to_string_lossy().into_owned();
    let driver = used.disk.driver_pid();
    cannot_read(source, &["failback", "db", "--to", &backing]);
    assert_eq!((used.disk.driver_pid(), driver.is_some()), (driver, true), "it was stopped");
    let mut back = source.command();
    back.args(["failback", "db", "--to", &backing]).env("BACKSTAY_IDENTITY_FILE", &roles.identity);
    let mut back = back.stdin(Stdio::null()).spawn().unwrap();
    wait_for("the failback", || {
        assert_eq!(back.try_wait().unwrap(), None, "failback ended");
        recovery.json(&["holds", "db"]).to_string().contains("replica")
    });
    must("losetup", ["-d", device.trim()]);
    let right = hash(&there);
    recovery.backstay(&["failover", "handover", "db"]);
    assert!(back.wait().unwrap().success());
    assert_eq!(hash(&used.disk.served()), right);

    // Here again, with the writer's key alone.
    let served = File::options().write(true).open(used.disk.served()).unwrap();
    for round in 0..4 {
        served.write_all_at(&vec![round; 300_000], 20 * MIB).unwrap();
        served.sync_all().unwrap();
        used.disk.cycle();
    }
    let right = hash(&used.disk.served());
    let to = recovery.path("restored.img").to_string_lossy().into_owned();
    recovery.backstay(&["restore", "db", "--point", "latest", "--to", &to]);
    assert_eq!(hash(Path::new(&to)), right);
    // Points are thinned out without a key that reads, segments merged only with one.
    let merged = |host: &Host| {
        let done = host.json(&["prune", "db", "--keep", "last 1"]);
        done["report"]["merged"]["replaced"].as_u64().unwrap_or_else(|| panic!("{done}"))
    };
    assert_eq!(merged(source), 0);
    assert!(used.disk.points().len() <= 2, "the newest, and what the failover holds");
    println!("merged: {}", merged(recovery));
    used.disk.cycle();
    recovery.backstay(&["verify", "db"]);
    assert!(roles.owner.path("vault").exists() && roles.vault.starts_with("file://"));
}
