//! Attacks on a whole system, as somebody would try them: looking for secrets in everything that is printed, kept or
//! handed to other programs, for files that others may read, for names that lead elsewhere.
//!
//! docs/SECURITY.md lists which threat is tried where. Needs root, /dev/fuse.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use backstay_tests::harness::command::said;
use backstay_tests::harness::pki::Pki;
use backstay_tests::harness::service::wait_for;
use backstay_tests::harness::{Host, must};

#[path = "e2e_threats/certificates.rs"]
mod certificates;

const MIB: u64 = 1 << 20;
/// In every secret that is planted, and in nothing else.
const MARK: &str = "hunter2";

/// Everything below a folder, without following links.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_path_buf()];
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(below(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

fn holds_mark(bytes: &[u8]) -> bool {
    bytes.windows(MARK.len()).any(|window| window == MARK.as_bytes())
}

/// No file that Backstay made may have a secret in it.
fn nothing_kept(host: &Host) {
    for file in [host.path("state"), host.runtime.clone()].iter().flat_map(|dir| below(dir)) {
        if fs::symlink_metadata(&file).is_ok_and(|about| about.is_file() && about.len() < 32 * MIB)
        {
            let bytes = fs::read(&file).unwrap_or_default();
            assert!(!holds_mark(&bytes), "a secret is in {}", file.display());
        }
    }
}

/// A store that refuses, fails, talks nonsense and hangs up, in turn.
struct BadStore {
    url: String,
    asked: Arc<AtomicUsize>,
}

impl BadStore {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        thread::spawn(move || {
            for peer in listener.incoming().flatten() {
                let n = counted.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || answer(peer, n));
            }
        });
        Self { url, asked }
    }
}

fn answer(peer: TcpStream, n: usize) {
    let mut reader = BufReader::new(peer);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
        line.clear();
    }
    let refusal = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>";
    let body = match n % 4 {
        0 => {
            format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\n\r\n{refusal}", refusal.len())
        }
        1 => "HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n".into(),
        2 => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<xml>".into(),
        _ => String::new(),
    };
    let _ = reader.get_mut().write_all(body.as_bytes());
}

/// Writes a file of credentials, and a configuration that reaches a vault with it.
fn configure(host: &Host, vault: &str, credentials: &str, store: &str) {
    let file = host.path("credentials");
    fs::write(&file, credentials).unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let text = format!(
        "vault = \"{vault}\"\n[store]\ncredentials_file = {file:?}\nretries = 1\nretry_timeout = \"1s\"\n\
         allow_http = true\n{store}"
    );
    fs::write(host.path("backstay.toml"), text).unwrap();
}

/// Secrets in every place that takes one; every verb that reaches a vault, failing in every way the store knows,
/// with everything said that can be said.
#[test]
fn secrets_are_never_said_when_stores_fail() {
    let host = Host::new("secrets");
    let disk = host.disk("d", 4 * MIB);
    let image = disk.backing.to_str().unwrap();
    let store = BadStore::start();
    let s3 = format!(
        "AWS_ACCESS_KEY_ID=key\nAWS_SECRET_ACCESS_KEY=a{MARK}\nAWS_SESSION_TOKEN=b{MARK}\n"
    );
    let account = "AZURE_STORAGE_ACCOUNT_NAME=someone\n";
    let endpoint = format!("endpoint = \"{}\"\n", store.url);
    let proxy = |password: &str| format!("proxy = \"http://someone:{password}@127.0.0.1:1\"\n");
    let google = format!("GOOGLE_SERVICE_ACCOUNT_KEY={{\"private_key\": \"x{MARK}\"}}\n");
    let places = [
        ("s3://bucket/x", s3.clone(), endpoint.clone()),
        ("s3://bucket/x", s3.clone(), format!("{endpoint}{}", proxy(MARK))),
        (
            "s3://bucket/x",
            s3.clone(),
            format!("endpoint = \"http://someone:{MARK}@127.0.0.1:1\"\n"),
        ),
        ("s3://bucket/x", format!("{s3}{MARK}\n"), endpoint.clone()),
        // A shared access signature stands in each request's URL, which errors like to repeat.
        (
            "az://box/x",
            format!("{account}AZURE_STORAGE_SAS_KEY=sv=1&sig={MARK}\n"),
            endpoint.clone(),
        ),
        (
            "az://box/x",
            format!("{account}AZURE_STORAGE_ACCOUNT_KEY=not base64 {MARK}\n"),
            endpoint.clone(),
        ),
        ("gs://bucket/x", google, endpoint.clone()),
        (&format!("s3://key:{MARK}@bucket/x"), s3, endpoint),
    ];
    let verbs: [&[&str]; 6] = [
        &["protect", image, "--name", "d"],
        &["points", "d"],
        &["restore", "d", "--point", "1", "--to", "/nowhere"],
        &["verify", "d"],
        &["status"],
        &["doctor"],
    ];
    for (place, credentials, settings) in &places {
        configure(&host, place, credentials, settings);
        for verb in verbs {
            let mut command = host.command();
            command.args(["-vv"]).args(verb).stdin(Stdio::null());
            command.env("BACKSTAY_LOG", "trace").env("RUST_BACKTRACE", "1");
            let output = command.output().unwrap();
            let text = said(&output);
            assert!(!text.contains(MARK), "{place} {verb:?} says a secret:\n{text}");
            assert!(!text.contains("panicked"), "{place} {verb:?}:\n{text}");
            let may_succeed = matches!(verb[0], "status" | "doctor");
            assert!(may_succeed || !output.status.success(), "{place} {verb:?}:\n{text}");
        }
        nothing_kept(&host);
    }
    assert!(store.asked.load(Ordering::Relaxed) > 8, "the store was hardly asked");
}

/// A vault's passphrase, right and wrong, in a file and in the environment.
#[test]
fn a_passphrase_is_never_said() {
    let host = Host::new("passphrase");
    let disk = host.disk("d", 4 * MIB);
    let file = host.path("passphrase");
    let phrase = |text: &str| {
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    };
    phrase(&format!("right {MARK}\n"));
    let encryption = format!("[encryption]\npassphrase_file = {file:?}\n");
    configure(&host, &host.vault(), "", &encryption);
    let init = file.to_string_lossy();
    let verbs: [&[&str]; 7] = [
        &["key", "init", "--passphrase-file", &init],
        &["cycle", "d"],
        &["key", "list"],
        &["key", "check"],
        &["status"],
        &["verify", "d"],
        &["points", "d"],
    ];
    disk.mount(&[]);
    for (right, environment) in [(true, false), (false, false), (false, true)] {
        if !right {
            phrase(&format!("wrong {MARK}\n"));
        }
        for verb in verbs.iter().skip(usize::from(!right)) {
            let mut command = host.command();
            command.arg("-vv").args(*verb).stdin(Stdio::null()).env("BACKSTAY_LOG", "trace");
            if environment {
                command.env("BACKSTAY_PASSPHRASE", format!("worse {MARK}"));
            }
            let output = command.output().unwrap();
            let text = said(&output);
            assert!(!text.contains(MARK), "{verb:?} says a secret:\n{text}");
            assert!(!right || output.status.success(), "{verb:?}: {text}");
        }
    }
    nothing_kept(&host);
    for object in objects(&host.path("vault")) {
        assert!(!holds_mark(&object.1), "a secret is in {}", object.0);
    }
}

/// A service with secrets: its own arguments, those of what it starts, and what these get in their environment.
#[test]
fn secrets_are_not_handed_to_other_programs() {
    let host = Host::new("handed");
    let disk = host.disk("d", 4 * MIB);
    let seen = host.path("seen");
    let look = format!(
        "env > {0}; for p in $PPID $$; do tr '\\\\0' ' ' < /proc/$p/cmdline >> {0}; done",
        seen.display()
    );
    let hooks = format!("[disk.d.hooks]\npre = [\"{look}\"]\n");
    let secrets = format!("AWS_SECRET_ACCESS_KEY={MARK}\nAZURE_STORAGE_ACCOUNT_KEY={MARK}\n");
    configure(&host, &host.vault(), &secrets, &hooks);
    disk.mount(&[]);
    for args in [&["cycle", "d"][..], &["status", "d"], &["--json", "status", "d"], &["jobs"]] {
        let mut command = host.command();
        command.arg("-vv").args(args).env("BACKSTAY_LOG", "trace");
        for name in ["AWS_SESSION_TOKEN", "BACKSTAY_PASSPHRASE"] {
            command.env(name, MARK);
        }
        let text = said(&command.output().unwrap());
        assert!(!text.contains(MARK), "{args:?}: {text}");
    }
    let handed = fs::read_to_string(&seen).expect("the hook ran");
    assert!(handed.contains("BACKSTAY_") && !handed.contains(MARK), "{handed}");
    // A drill's check and a plan's steps, too; what mounts the disk for them may need it.
    let plan = host.path("plan.toml");
    let text = format!(
        "name = \"p\"\nvault = \"{}\"\n[[group]]\nname = \"g\"\nbefore = [{{ script = \"{look}\" }}]\n\
         [[group.machine]]\nname = \"m\"\ndisks = [\"d\"]\n",
        host.vault()
    );
    fs::write(&plan, text).unwrap();
    let plan = plan.to_str().unwrap();
    for args in [
        &["drill", "d", "--command", &look][..],
        &["plan", "test", plan],
        &["plan", "cleanup", plan],
    ] {
        let _ = fs::remove_file(&seen);
        let mut command = host.command();
        command.args(args).env("AWS_SESSION_TOKEN", MARK).env("BACKSTAY_PASSPHRASE", MARK);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        if args.contains(&"cleanup") {
            continue;
        }
        let handed = fs::read_to_string(&seen).expect("it ran");
        assert!(handed.contains("BACKSTAY_") && !handed.contains(MARK), "{args:?}: {handed}");
    }
    let driver = disk.driver_pid().unwrap();
    for of in ["cmdline", "environ"] {
        assert!(!holds_mark(&fs::read(format!("/proc/{driver}/{of}")).unwrap()), "{of}");
    }
    nothing_kept(&host);
}

/// A core is read by anyone who finds it: a process that may know secrets leaves none, and other processes of its own
/// user do not look into it. The kernel shows this by whose its files in /proc are.
#[test]
fn a_process_that_knows_secrets_leaves_no_core() {
    const NOBODY: u32 = 65_534;
    let host = Host::new("core");
    let program = host.path("backstay");
    fs::copy(backstay_tests::harness::host::backstay(), &program).unwrap();
    let home = host.path("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    let owner = |program: &Path, args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let proc = format!("/proc/{}", child.id());
        wait_for("the program", || {
            fs::read_link(format!("{proc}/exe")).is_ok_and(|exe| exe == *program)
        });
        let dumpable = || fs::metadata(format!("{proc}/mem")).unwrap().uid() == NOBODY;
        // Between its first instruction and the call.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(2);
        while dumpable() && std::time::Instant::now() < deadline {
            thread::yield_now();
        }
        let dumpable = dumpable();
        let _ = child.kill();
        child.wait().unwrap();
        dumpable
    };
    assert!(owner(&fs::canonicalize("/bin/cat").unwrap(), &[]), "this test can tell");
    let home = home.to_str().unwrap();
    let args = ["--state-dir", home, "--runtime-dir", home, "sidecar"];
    assert!(!owner(&program, &args), "others of its user may look into it");
}

/// With a umask that takes nothing away, what is made is its owner's alone all the same.
#[test]
fn what_is_made_is_the_owners_alone() {
    let host = Host::new("modes");
    let disk = host.disk("d", 4 * MIB);
    let (dir, backing) = (host.dir.display(), disk.backing.display());
    host.try_backstay(&["status"]);
    let backstay = format!(
        "{} --config {dir}/backstay.toml --state-dir {dir}/state --runtime-dir {}",
        backstay_tests::harness::host::backstay().display(),
        host.runtime.display()
    );
    fs::remove_dir_all(&host.runtime).unwrap();
    let script = [
        format!("mount {backing} --name d"),
        "cycle d".into(),
        format!("restore d --point 1 --to {dir}/restored.img"),
        format!("export d --point 1 --to {dir}/exported.qcow2 --format qcow2"),
        "pin d 1".into(),
        "verify d".into(),
        format!("pki init {dir}/pki --no-passphrase"),
        format!("pki issue {dir}/pki h --role source --disk d"),
        format!("pki revoke {dir}/pki h"),
    ];
    for line in script {
        must("sh", ["-c", &format!("umask 000; exec {backstay} {line}")]);
    }
    let service = format!("umask 000; exec {backstay} sidecar");
    let mut service = Command::new("sh").args(["-c", &service]).spawn().unwrap();
    wait_for("the sidecar", || {
        host.try_backstay(&["cycle", "d", "--by-sidecar", "--no-wait"]).status.success()
    });
    let mut open = vec![];
    let made =
        ["state", "vault", "pki", "restored.img", "exported.qcow2"].map(|name| host.path(name));
    for path in made.iter().chain([&host.runtime]).flat_map(|top| below(top)) {
        let about = fs::symlink_metadata(&path).unwrap();
        let served = path.starts_with(host.runtime.join("d")) && about.dev() != dev(&host.runtime);
        if about.mode() & 0o077 != 0 && !about.file_type().is_symlink() && !served {
            let kind = if about.file_type().is_socket() { "socket" } else { "file or folder" };
            open.push(format!("{} ({kind}, {:o})", path.display(), about.mode() & 0o7777));
        }
    }
    must("kill", [service.id().to_string()]);
    service.wait().unwrap();
    assert!(open.is_empty(), "others may use:\n{}", open.join("\n"));
}

fn dev(path: &Path) -> u64 {
    fs::metadata(path).unwrap().dev()
}

/// Names on the command line become folders and keys.
#[test]
fn names_that_lead_elsewhere_are_refused_before_anything_is_made() {
    let host = Host::new("paths");
    let disk = host.disk("d", 4 * MIB);
    let image = disk.backing.to_str().unwrap();
    let long = "x".repeat(65);
    for name in ["../d", "a/b", "/etc", ".", "..", ".d", "d\n", "", "%2e%2e", "d\\..", &long] {
        for verb in [
            &["mount", image, "--name", name][..],
            &["protect", image, "--name", name],
            &["rename", "d", name],
            &["status", "--", name],
            &["restore", name, "--point", "1", "--to", "/nowhere"],
            &["pin", name, "1"],
            &["group", "points", name],
            &["pki", "issue", "/nowhere", name, "--role", "source", "--disk", "d"],
            &["pki", "issue", "/nowhere", "h", "--role", "source", "--disk", name],
        ] {
            let output = host.try_backstay(verb);
            assert!(!output.status.success(), "{verb:?}: {}", said(&output));
        }
    }
    for made in ["state", "vault"] {
        let mut left = below(&host.path(made));
        // Which vault was met is remembered.
        left.retain(|path| !path.to_string_lossy().contains("/.vaults"));
        left.retain(|path| !path.ends_with("vault.json") && !path.ends_with("reserve#1"));
        assert!(left.len() <= 1, "{left:?}");
    }
}

/// Keys are in files, and nowhere else.
#[test]
fn a_key_is_printed_by_no_verb() {
    let host = Host::new("pki");
    let pki = Pki::new(&host.dir);
    let mut printed = String::new();
    for args in [
        &["issue", "h", "--role", "source", "--disk", "d"][..],
        &["renew", "h"],
        &["list"],
        &["revoke", "h"],
        &["--json", "list"],
    ] {
        let mut command = host.command();
        let (json, args) = match args {
            ["--json", rest @ ..] => (true, rest),
            args => (false, args),
        };
        command.args(json.then_some("--json")).arg("-vv").env("BACKSTAY_LOG", "trace");
        command.args(["pki", args[0]]).arg(host.path("pki")).args(&args[1..]);
        printed += &said(&command.output().unwrap());
    }
    let keys = [host.path("pki/ca.key"), pki.bundle("h"), pki.bundle("gateway")];
    for line in keys.iter().flat_map(|key| secret_lines(key)) {
        assert!(!printed.contains(&line), "{printed}");
    }
    // A key that is damaged is not repeated in the error, either.
    let key = host.path("pki/ca.key");
    let damaged = fs::read_to_string(&key).unwrap().replacen('M', MARK, 1);
    fs::write(&key, damaged).unwrap();
    let dir = host.path("pki");
    let failed = host.try_backstay(&["-vv", "pki", "revoke", dir.to_str().unwrap(), "gateway"]);
    let text = said(&failed);
    assert!(!failed.status.success() && !text.contains(MARK), "{text}");
}

/// The authority's key behind a passphrase: every verb that signs needs it, none hangs without, and none says it.
#[test]
fn an_authority_that_was_copied_signs_nothing_without_its_passphrase() {
    let host = Host::new("authority");
    let (dir, file) = (host.path("pki"), host.path("words"));
    let words = |text: &str| {
        fs::write(&file, format!("{text}\n")).unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    };
    let pki = |verb: &str, args: &[&str], words: bool| {
        let mut command = host.command();
        command.arg("-vv").args(["pki", verb]).arg(&dir).args(args).stdin(Stdio::null());
        if words {
            command.arg("--passphrase-file").arg(&file);
        }
        let output = command.output().unwrap();
        let text = said(&output);
        assert!(!text.contains(MARK), "{verb} says it: {text}");
        (output.status.success(), text)
    };
    // Nobody is there to be asked.
    let (done, text) = pki("init", &[], false);
    assert!(!done && text.contains("--passphrase-file") && !dir.exists(), "{text}");
    words("short");
    let (done, text) = pki("init", &[], true);
    assert!(!done && text.contains("at least 8 characters") && !dir.exists(), "{text}");
    words(&format!("right {MARK}"));
    assert!(pki("init", &[], true).0);
    let key = fs::read_to_string(dir.join("ca.key")).unwrap();
    assert!(key.contains("ENCRYPTED PRIVATE KEY"), "{}", &key[..40]);
    let issue = ["h", "--role", "source", "--disk", "d"];
    assert!(pki("issue", &issue, true).0);
    assert!(pki("list", &[], false).0, "looking needs no key");
    let index = fs::read(dir.join("index.json")).unwrap();
    let list = fs::read(dir.join("revoked.crl")).unwrap();
    for wrong in [false, true] {
        words(&format!("wrong {MARK}"));
        for (verb, args) in [
            ("issue", &["i", "--server", "--host", "x"][..]),
            ("renew", &["h"]),
            ("revoke", &["h"]),
        ] {
            let (done, text) = pki(verb, args, wrong);
            let says =
                if wrong { "does not open with this passphrase" } else { "without a terminal" };
            assert!(!done && text.contains(says), "{verb}: {text}");
        }
    }
    assert_eq!(fs::read(dir.join("index.json")).unwrap(), index, "nothing was done");
    assert_eq!(fs::read(dir.join("revoked.crl")).unwrap(), list);
    words(&format!("right {MARK}"));
    assert!(pki("renew", &["h"], true).0 && pki("revoke", &["h"], true).0);
    // Off, and on again: an authority of before is one without.
    assert!(pki("passphrase", &["--no-passphrase"], true).0);
    assert!(pki("issue", &issue, false).0);
    let new = file.to_string_lossy().into_owned();
    assert!(pki("passphrase", &["--new-passphrase-file", &new], false).0);
    assert!(!pki("revoke", &["h"], false).0 && pki("revoke", &["h"], true).0);
    // As other programs read it.
    let openssl = ["pkey", "-in", "ca.key", "-passin", "file:../words", "-noout"];
    let read = Command::new("openssl").args(openssl).current_dir(&dir).output().unwrap();
    assert!(read.status.success(), "{}", said(&read));
}

/// The lines of a key in a PEM file.
fn secret_lines(file: &Path) -> Vec<String> {
    let mut text = String::new();
    fs::File::open(file).unwrap().read_to_string(&mut text).unwrap();
    let key = text.split("PRIVATE KEY-----").nth(1).expect("a key");
    let lines: Vec<String> = key.lines().filter(|l| l.len() > 20).map(str::to_owned).collect();
    assert!(!lines.is_empty(), "{}", file.display());
    lines
}

/// All objects of a vault in a folder, by key.
fn objects(vault: &Path) -> BTreeMap<String, Vec<u8>> {
    // Without what is no object yet, and the reserve.
    let is_object = |path: &PathBuf| path.is_file() && !path.to_string_lossy().contains('#');
    let files = below(vault).into_iter().filter(is_object);
    let key = |path: &Path| path.strip_prefix(vault).unwrap().to_str().unwrap().to_owned();
    files.map(|path| (key(&path), fs::read(&path).unwrap())).collect()
}

/// Below /dev/shm anybody may make the folder that Backstay is about to use, with commands in it that a
/// sidecar would carry out as root.
#[test]
fn a_folder_that_somebody_else_prepared_is_not_used() {
    let host = Host::new("prepared");
    let planted = host.runtime.join("db");
    let marker = host.path("carried-out");
    fs::create_dir(&planted).unwrap();
    let frozen = serde_json::json!({
        "disk": "db", "pre": [], "freeze": [], "avoid": [], "frozen": [],
        "post": [format!("touch {}", marker.display())],
        "timeout_ms": 1000, "freeze_timeout_ms": 1000, "runtime": planted,
    });
    fs::write(planted.join("frozen.json"), frozen.to_string()).unwrap();
    fs::write(planted.join("control.sock"), b"").unwrap();
    let refused = |why: &str| {
        for verb in [&["status"][..], &["cycle", "db"], &["mount", "/dev/null", "--name", "x"]] {
            let output = host.try_backstay(verb);
            assert_eq!(output.status.code(), Some(3), "{verb:?}: {}", said(&output));
            assert!(said(&output).contains(why), "{verb:?}: {}", said(&output));
        }
        assert!(said(&host.try_backstay(&["doctor"])).contains(why));
    };
    std::os::unix::fs::chown(&host.runtime, Some(12345), None).unwrap();
    refused("belongs to user 12345");
    std::os::unix::fs::chown(&host.runtime, Some(0), None).unwrap();
    fs::set_permissions(&host.runtime, fs::Permissions::from_mode(0o777)).unwrap();
    refused("can be written by others");
    assert!(!marker.exists());
    fs::set_permissions(&host.runtime, fs::Permissions::from_mode(0o755)).unwrap();
    host.backstay(&["status"]);
}
