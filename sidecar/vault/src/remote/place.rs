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
pub(crate) enum Place {
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
}

impl Place {
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
            return wrong(url, "not a vault URL: use file:///path, s3://, az:// or gs://");
        };
        let kind = match scheme {
            "s3" => Kind::S3,
            "az" => Kind::Azure,
            "gs" => Kind::Google,
            _ => {
                let reason = "this version reaches vaults at file:///path, s3://bucket/prefix, \
                              az://container/prefix and gs://bucket/prefix";
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bucket(url: &str) -> (Kind, String, String) {
        match Place::parse(url).unwrap() {
            Place::Bucket { kind, bucket, prefix } => (kind, bucket, prefix),
            Place::Directory(dir) => panic!("{url}: {}", dir.display()),
        }
    }

    #[test]
    fn urls() {
        assert_eq!(bucket("s3://b"), (Kind::S3, "b".into(), String::new()));
        assert_eq!(bucket("az://c/x/y/"), (Kind::Azure, "c".into(), "x/y".into()));
        assert_eq!(bucket("gs://b/x"), (Kind::Google, "b".into(), "x".into()));
        for dir in ["file:///srv/v", "/srv/v"] {
            assert_eq!(Place::parse(dir).unwrap(), Place::Directory("/srv/v".into()));
        }
        for wrong in [
            "",
            "relative/path",
            "file://host/x",
            "https://host:9443",
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
            assert!(Place::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
        for url in ["s3://key:hunter2@bucket/x", "az://c/x?sig=hunter2", "https://u:hunter2@h/"] {
            let error = Place::parse(url).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_url_leads_out_of_its_prefix(url in "(s3|az|gs)://[a-z./@?%\\\\]{0,24}") {
            if let Ok(Place::Bucket { prefix, .. }) = Place::parse(&url) {
                prop_assert!(prefix.split('/').all(|part| part != ".." && part != "."));
            }
        }
    }
}
