//! Certificates of this host that end soon: said before they do, since then nothing ships.

use std::path::PathBuf;

use backstay_engine::Config;
use backstay_engine::doctor::{Finding, HOST};
use backstay_engine::health::{Cause, ids};
use backstay_engine::prerequisites::Verdict;
use backstay_gateway::pki::Life;
use backstay_types::DiskName;

/// What a person is told to do.
const ADVICE: &str = "where the authority is: backstay pki renew; then put it in its place here";

/// The certificates that a configuration names, and what each is for.
fn named(config: &Config) -> Vec<(&'static str, PathBuf)> {
    let gateway = &config.gateway;
    let tls = config.tls.as_ref();
    [
        ("client certificate", config.store.client_cert.clone()),
        ("group certificate", tls.map(|tls| tls.cert.clone())),
        ("gateway certificate", gateway.cert.clone()),
        ("clients' authority", gateway.client_ca.clone()),
    ]
    .into_iter()
    .filter_map(|(what, file)| Some((what, file?)))
    .collect()
}

/// For `doctor`: each of them.
pub fn findings(config: &Config) -> Vec<Finding> {
    let finding = |(what, file): (&'static str, PathBuf)| {
        let at = file.display();
        let (verdict, found) = match Life::of_file(&file).map(Life::trouble) {
            Ok(None) => (Verdict::Ok, at.to_string()),
            Ok(Some(trouble)) if trouble.starts_with("has") => {
                (Verdict::Failed, format!("{at} {trouble}; {ADVICE}"))
            }
            Ok(Some(trouble)) => (Verdict::Warning, format!("{at} {trouble}; {ADVICE}")),
            Err(e) => (Verdict::Failed, e.to_string()),
        };
        Finding { of: HOST.into(), what, verdict, found, id: None }
    };
    named(config).into_iter().map(finding).collect()
}

/// Of one disk: whether what its vault or group knows this host by ends soon.
pub fn causes(config: &Config, name: &DiskName) -> Vec<Cause> {
    let behind_gateway = config.vault_of(name).starts_with("https://");
    let in_group = config.group.values().any(|group| group.disks.contains(name));
    let theirs = |what: &str| match what {
        "client certificate" => behind_gateway,
        "group certificate" => in_group,
        _ => false,
    };
    let cause = |(what, file): (&str, PathBuf)| {
        let trouble = Life::of_file(&file).map(Life::trouble).ok()??;
        let reason = format!("this host's {what} {} {trouble}", file.display());
        Some(Cause::warning(ids::CERTIFICATE, reason).advise(ADVICE))
    };
    named(config).into_iter().filter(|(what, _)| theirs(what)).filter_map(cause).collect()
}
