//! What is no place for a vault, and mistakes that only a person can mend: they are told at once, in words, without
//! secrets.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use backstay_tests::harness::Host;
use backstay_tests::harness::command::said;
use backstay_tests::harness::proxy::{Fault, Proxy};
use backstay_tests::harness::service::write_config;
use backstay_tests::harness::store::{Kind, Store};

use super::SIZE;

/// I5: a store that does not keep puts apart is refused, before anything is begun in it.
#[test]
fn a_store_without_conditional_puts_is_refused() {
    for kind in Kind::ALL {
        let store = Store::shared(kind);
        let proxy = Proxy::start(store.port);
        proxy.choose(|_| Fault::DenyConditions);
        let host = Host::new("stores-unfit");
        host.ship_to(&store.url(), &store.variables_through(&proxy));
        let disk = host.disk("db", SIZE);
        let backing = disk.backing.to_str().unwrap();
        let refused = host.try_backstay(&["protect", backing, "--name", "db"]);
        let text = said(&refused);
        assert!(text.contains("no place for a vault") && text.contains("If-None-Match"), "{text}");
        assert!(text.contains("Nothing was changed"), "{text}");
        // Switched off by the library's own setting.
        if kind == Kind::S3 {
            let mut variables = store.variables().to_vec();
            variables.push(("AWS_CONDITIONAL_PUT".into(), "disabled".into()));
            host.ship_to(&store.url(), &variables);
            let text = said(&host.try_backstay(&["protect", backing, "--name", "db"]));
            assert!(text.contains("no place for a vault"), "{text}");
        }
        // Nothing is left of the attempt.
        host.ship_to(&store.url(), store.variables());
        host.backstay(&["protect", backing, "--name", "db", "--check"]);
    }
}

/// What only a person can mend says so, at once, and gives away no secret.
#[test]
fn mistakes_are_explained_and_secrets_kept() {
    const SECRET: &str = "aHVudGVyMmh1bnRlcjJodW50ZXIy";
    for kind in Kind::ALL {
        let store = Store::shared(kind);
        let host = Host::new("stores-mistakes");
        let url = store.url();
        let disk = host.disk("db", SIZE);
        let backing = disk.backing.to_str().unwrap();
        let tried = |url: &str, variables: &[(String, String)]| {
            host.ship_to(url, variables);
            let args = ["-vv", "protect", backing, "--name", "db", "--vault", url, "--check"];
            let output = host.try_backstay(&args);
            assert_eq!(output.status.code(), Some(1), "{}", said(&output));
            let text = said(&output);
            assert!(!text.contains(SECRET) && !text.contains("for-tests-only"), "{text}");
            text
        };
        let wrong_key: Vec<(String, String)> = store
            .variables()
            .iter()
            .map(|(name, value)| match name.contains("SECRET") || name.ends_with("ACCOUNT_KEY") {
                true => (name.clone(), SECRET.into()),
                false => (name.clone(), value.clone()),
            })
            .collect();
        let text = tried(&url, &wrong_key);
        assert!(text.contains("permission denied"), "{text}");
        let no_bucket = url.replace("//vault/", "//no-such-bucket/");
        let text = tried(&no_bucket, store.variables());
        assert!(text.contains("no such bucket or container"), "{text}");
        let no_key: Vec<(String, String)> =
            wrong_key.iter().filter(|(name, _)| !name.contains("KEY")).cloned().collect();
        let text = tried(&url, &no_key);
        assert!(text.contains("no credentials"), "{text}");
        let text = tried(&url.replace("//", &format!("//me:{SECRET}@")), store.variables());
        assert!(text.contains("no credentials or parameters in a vault's URL"), "{text}");
    }
}

/// A service has its secrets in a file that nobody else can read, and the rest in the configuration.
#[test]
fn secrets_come_from_a_private_file() {
    let store = Store::shared(Kind::S3);
    let host = Host::new("stores-file-of-secrets");
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
    disk.cycle();
    assert_eq!(disk.points().len(), 1);
}
