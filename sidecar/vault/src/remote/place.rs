//! What a vault's URL means: a directory, or a bucket and what all keys in it begin with.

use std::path::PathBuf;

use crate::error::VaultError;

/// Longest URL, in bytes. No bucket and prefix together are longer.
const URL_BYTES_MAX: usize = 2048;

/// Kinds of object stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `s3://`
    S3,
    /// `az://`
    Azure,
    /// `gs://`
    Google,
}

/// Where a vault is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VaultPlace {
    /// In a local directory.
    Directory(PathBuf),
    /// In a bucket (Azure: container).
    Bucket {
        /// Of which store.
        kind: Kind,
        /// The bucket.
        bucket: String,
        /// What all keys begin with; may be empty.
        prefix: String,
    },
    /// Behind a gateway, or several that stand before one store.
    Gateway {
        /// Their hosts and, where they say one, ports.
        hosts: Vec<String>,
    },
}

impl VaultPlace {
    /// What a URL means. Nothing of a URL that may hold a secret is repeated in the error.
    pub fn parse(url: &str) -> Result<Self, VaultError> {
        let wrong = |shown: &str, reason: &str| {
            Err(VaultError::Url { url: shown.into(), reason: reason.into() })
        };
        let path = url.strip_prefix("file://").unwrap_or(url);
        if path.starts_with('/') {
            return Ok(Self::Directory(path.into()));
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return wrong(
                url,
                "not a vault URL: use file:///path, s3://, az://, gs:// or https://",
            );
        };
        if scheme == "https" {
            return Self::gateway(rest);
        }
        let kind = match scheme {
            "s3" => Kind::S3,
            "az" => Kind::Azure,
            "gs" => Kind::Google,
            _ => {
                let reason = "this version reaches vaults at file:///path, s3://bucket/prefix, \
                              az://container/prefix, gs://bucket/prefix and https://gateway:9443";
                return wrong(&format!("{scheme}://…"), reason);
            }
        };
        let shown = format!("{scheme}://…");
        if rest.contains(['@', '?', '#']) {
            let reason = "no credentials or parameters in a vault's URL: status and logs show it. \
                          They belong into the environment or into store.credentials_file";
            return wrong(&shown, reason);
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if bucket.is_empty() || !bucket.chars().all(plain) || bucket.starts_with('.') {
            return wrong(url, "that is no bucket's name: letters, digits, '-', '_' and '.'");
        }
        let part_is_fine = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(plain);
        if url.len() > URL_BYTES_MAX || !(prefix.is_empty() || prefix.split('/').all(part_is_fine))
        {
            let reason = "the part after the bucket may have letters, digits, '-', '_' and '.', in \
                          parts between single '/'";
            return wrong(url, reason);
        }
        Ok(Self::Bucket { kind, bucket: bucket.into(), prefix: prefix.into() })
    }

    /// Of what follows `https://`: hosts and ports, no more.
    fn gateway(rest: &str) -> Result<Self, VaultError> {
        let wrong = |reason: &str| {
            Err(VaultError::Url { url: "https://…".into(), reason: reason.into() })
        };
        if rest.contains(['@', '?', '#']) {
            return wrong(
                "no credentials or parameters in a vault's URL: status and logs show it. A gateway \
                 knows its clients by store.client_cert and store.client_key",
            );
        }
        let hosts: Vec<String> =
            rest.strip_suffix('/').unwrap_or(rest).split(',').map(str::to_owned).collect();
        match rest.len() <= URL_BYTES_MAX && hosts.iter().all(|host| is_host(host)) {
            true => Ok(Self::Gateway { hosts }),
            false => wrong(
                "a gateway's URL is https://host:port; for several of one vault \
                 https://host:port,host:port",
            ),
        }
    }
}

/// Whether a text is a host, with a port or without.
fn is_host(host: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    // An address of IPv6 stands in brackets.
    if let Some((address, port)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let port_is_fine = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return address.parse::<std::net::Ipv6Addr>().is_ok() && port_is_fine;
    }
    let (name, port) = host.split_once(':').unwrap_or((host, "443"));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    (1..=253).contains(&name.len()) && name.chars().all(plain) && is_port(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bucket(url: &str) -> (Kind, String, String) {
        match VaultPlace::parse(url).unwrap() {
            VaultPlace::Bucket { kind, bucket, prefix } => (kind, bucket, prefix),
            other => panic!("{url}: {other:?}"),
        }
    }

    #[test]
    fn gateways() {
        for (url, host) in [
            ("https://gate.example:9443", &["gate.example:9443"][..]),
            ("https://gate.example/", &["gate.example"]),
            ("https://10.0.0.1:9443,g2", &["10.0.0.1:9443", "g2"]),
            ("https://[::1]:9443", &["[::1]:9443"]),
        ] {
            let hosts = host.iter().map(ToString::to_string).collect();
            assert_eq!(VaultPlace::parse(url).unwrap(), VaultPlace::Gateway { hosts }, "{url}");
        }
        for wrong in [
            "https://",
            "https://:9443",
            "https://host:0",
            "https://a:1,",
            "https://a:1,,b:1",
            "https://host:99999",
            "https://host:9443/x",
            "https://host/../x",
            "https://[x]:1",
            "https://[::1]x",
            "https://ho st",
            "HTTPS://host",
            "http://host",
        ] {
            assert!(VaultPlace::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn urls() {
        assert_eq!(bucket("s3://b"), (Kind::S3, "b".into(), String::new()));
        assert_eq!(bucket("az://c/x/y/"), (Kind::Azure, "c".into(), "x/y".into()));
        assert_eq!(bucket("gs://b/x"), (Kind::Google, "b".into(), "x".into()));
        for dir in ["file:///srv/v", "/srv/v"] {
            assert_eq!(VaultPlace::parse(dir).unwrap(), VaultPlace::Directory("/srv/v".into()));
        }
        for wrong in [
            "",
            "relative/path",
            "file://host/x",
            "s3://",
            "s3:///x",
            "s3://b/../x",
            "s3://b//x",
            "s3://b/x/./y",
            "s3://b/a b",
            "s3://b/%2e%2e",
            "S3://b",
            "ftp://x",
            "s3://..",
            "s3://b\\c/x",
        ] {
            assert!(VaultPlace::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
        for url in ["s3://key:hunter2@bucket/x", "az://c/x?sig=hunter2", "https://u:hunter2@h/"] {
            let error = VaultPlace::parse(url).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_url_leads_out_of_its_prefix(url in "(s3|az|gs|https)://[a-z./@?%\\\\]{0,24}") {
            if let Ok(VaultPlace::Bucket { prefix, .. }) = VaultPlace::parse(&url) {
                prop_assert!(prefix.split('/').all(|part| part != ".." && part != "."));
            }
        }
    }
}
