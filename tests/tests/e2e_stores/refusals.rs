//! What cannot hold a vault, and mistakes that only a person can mend: they are told at once, in words, without
//! secrets.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use backstay_tests::harness::Host;
use backstay_tests::harness::command::said;
use backstay_tests::harness::proxy::{Fault, Proxy};
use backstay_tests::harness::service::write_config;
use backstay_tests::harness::store::{Kind, Store};

use super::{SIZE, each_kind};

/// I5: a store that does not keep puts apart is refused, before anything is begun in it.
#[test]
fn a_store_without_conditional_puts_is_refused() {
    each_kind(|kind| {
        let store = Store::shared(kind);
        let proxy = Proxy::start(store.port);
        proxy.choose(|_| Fault::DenyConditions);
        let host = Host::new("stores-unfit");
        host.without_vault();
        host.ship_to(&store.url(), &store.variables_through(&proxy));
        let disk = host.disk("db", SIZE);
        let backing = disk.backing.to_str().unwrap();
        let refused = host.try_backstay(&["protect", backing, "--name", "db"]);
        let text = said(&refused);
        assert!(text.contains("cannot hold a vault") && text.contains("If-None-Match"), "{text}");
        assert!(text.contains("Nothing was changed"), "{text}");
        // Switched off by the library's own setting.
        if kind == Kind::S3 {
            let mut variables = store.variables().to_vec();
            variables.push(("AWS_CONDITIONAL_PUT".into(), "disabled".into()));
            host.ship_to(&store.url(), &variables);
            let text = said(&host.try_backstay(&["protect", backing, "--name", "db"]));
            assert!(text.contains("cannot hold a vault"), "{text}");
        }
        // A store that has forgotten conditions altogether.
        if kind == Kind::Google {
            let forgetful = Store::start_without_conditions(kind);
            host.ship_to(&forgetful.url(), forgetful.variables());
            let text = said(&host.try_backstay(&["protect", backing, "--name", "db"]));
            assert!(text.contains("cannot hold a vault"), "{text}");
        }
        // Nothing is left of the attempt.
        host.ship_to(&store.url(), store.variables());
        host.backstay(&["protect", backing, "--name", "db", "--check"]);
    });
}

/// Whether a variable holds what lets us in, or names its file.
fn is_secret(name: &str) -> bool {
    ["SECRET", "ACCOUNT_KEY", "SERVICE_ACCOUNT"].iter().any(|mark| name.contains(mark))
}

/// What only a person can mend says so, at once, and gives away no secret.
#[test]
fn mistakes_are_explained_and_secrets_kept() {
    const SECRET: &str = "aHVudGVyMmh1bnRlcjJodW50ZXIy";
    each_kind(|kind| {
        let store = Store::shared(kind);
        let host = Host::new("stores-mistakes");
        host.without_vault();
        let url = store.url();
        let disk = host.disk("db", SIZE);
        let backing = disk.backing.to_str().unwrap();
        let tried = |url: &str, variables: &[(String, String)]| {
            host.ship_to(url, variables);
            let args = ["-vv", "protect", backing, "--name", "db", "--vault", url, "--check"];
            let output = host.try_backstay(&args);
            assert_eq!(output.status.code(), Some(1), "{}", said(&output));
            let text = said(&output);
            assert!(
                !text.contains(SECRET)
                    && !text.contains("PRIVATE KEY")
                    && !text.contains("for-tests-only"),
                "{text}"
            );
            text
        };
        let replaced = |with: &str| -> Vec<(String, String)> {
            let all = store.variables().iter().cloned();
            all.map(|(name, value)| match is_secret(&name) {
                true => (name, with.into()),
                false => (name, value),
            })
            .collect()
        };
        let wrong_key = match kind {
            Kind::Google => replaced(&strangers_account(store, &host)),
            _ => replaced(SECRET),
        };
        let text = tried(&url, &wrong_key);
        assert!(text.contains("permission denied"), "{text}");
        let no_bucket = url.replace("//vault/", "//no-such-bucket/");
        let text = tried(&no_bucket, store.variables());
        assert!(text.contains("no such bucket or container"), "{text}");
        let no_key: Vec<(String, String)> = wrong_key
            .iter()
            .filter(|(name, _)| !(is_secret(name) || name.contains("KEY")))
            .cloned()
            .collect();
        let text = tried(&url, &no_key);
        assert!(text.contains("no credentials"), "{text}");
        let text = tried(&url.replace("//", &format!("//me:{SECRET}@")), store.variables());
        assert!(text.contains("no credentials or parameters in a vault's URL"), "{text}");
    });
}

/// A key of the right form with the account's name, that is not the account's: a file.
fn strangers_account(store: &Store, host: &Host) -> String {
    let of = |wanted: &str| &store.variables().iter().find(|(name, _)| name == wanted).unwrap().1;
    let account = fs::read(of("GOOGLE_SERVICE_ACCOUNT")).unwrap();
    let mut account: serde_json::Value = serde_json::from_slice(&account).unwrap();
    let key = Command::new("openssl").args(["genrsa", "2048"]).output().unwrap();
    assert!(key.status.success(), "{}", said(&key));
    account["private_key"] = String::from_utf8(key.stdout).unwrap().into();
    let file = host.path("stranger.json");
    fs::write(&file, account.to_string()).unwrap();
    file.to_str().unwrap().into()
}

/// A service has its secrets in a file that nobody else can read, and the rest in the configuration.
#[test]
fn secrets_come_from_a_private_file() {
    let store = Store::shared(Kind::S3);
    let host = Host::new("stores-file-of-secrets");
    host.without_vault();
    let url = store.url();
    let of = |wanted: &str| {
        store.variables().iter().find(|(name, _)| name == wanted).map(|(_, value)| value).unwrap()
    };
    host.ship_to(&url, &[]);
    let secrets = host.path("credentials");
    let mut file = fs::File::create(&secrets).unwrap();
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        writeln!(file, "{name}={}", of(name)).unwrap();
    }
    let mode = |mode| fs::set_permissions(&secrets, fs::Permissions::from_mode(mode)).unwrap();
    let settings = format!(
        "[store]\nendpoint = \"{}\"\nallow_http = true\nregion = \"us-east-1\"\n\
         credentials_file = \"{}\"\n",
        of("AWS_ENDPOINT"),
        secrets.display()
    );
    write_config(&host, &settings);
    let disk = host.disk("db", SIZE);
    disk.mount(&[]);
    mode(0o644);
    let refused = host.try_backstay(&["cycle", "db"]);
    assert!(said(&refused).contains("chmod 600"), "{}", said(&refused));
    mode(0o600);
    host.backstay(&["vault", "init"]);
    disk.cycle();
    assert_eq!(disk.points().len(), 1);
}
