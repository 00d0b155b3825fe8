//! The stores' usual environment variables, and a file of them.
//!
//! A service run by systemd gets its secrets as a file (`LoadCredential=`), not in its environment, where
//! every process it starts would have them. What the file says counts before the environment.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::remote::place::Kind;

/// Longest file of variables, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

impl Kind {
    /// What the names of its variables begin with.
    pub fn variables_begin_with(self) -> &'static str {
        match self {
            Self::S3 => "AWS_",
            Self::Azure => "AZURE_",
            Self::Google => "GOOGLE_",
        }
    }
}

/// The variables of a kind of store, those that count later.
pub(crate) fn variables(kind: Kind, file: Option<&Path>) -> io::Result<Vec<(String, String)>> {
    let mut all: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    if let Some(file) = file {
        all.extend(parse(&read_private(file)?)?);
    }
    let prefix = kind.variables_begin_with();
    all.retain(|(name, _)| name.starts_with(prefix));
    Ok(all)
}

/// Reads a file that nobody but its owner (root, or who runs this) can read or write.
pub(super) fn read_private(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    let us = nix::unistd::geteuid().as_raw();
    if meta.mode() & 0o077 != 0 || !(meta.uid() == us || meta.uid() == 0) {
        let reason = "others can read or change it, and it holds secrets: chown it to the user that \
                      runs Backstay and chmod 600 it";
        return Err(io::Error::other(reason));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("it is too long for a file of variables"));
    }
    Ok(text)
}

/// `NAME=value` lines; blank ones and those that begin with `#` are passed over. A mistake is told by its
/// line alone: the line may be a secret.
fn parse(text: &str) -> io::Result<Vec<(String, String)>> {
    let mut all = vec![];
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once('=') else {
            return Err(io::Error::other(format!("line {} is not NAME=value", number + 1)));
        };
        let value = value.trim();
        let quoted = ['"', '\'']
            .into_iter()
            .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
        all.push((name.trim().to_owned(), quoted.unwrap_or(value).to_owned()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_of_variables() {
        let text = "# ours\n\nAWS_ACCESS_KEY_ID=a=b\nexport AWS_SECRET_ACCESS_KEY='x y'\n";
        let all = parse(text).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = [pair("AWS_ACCESS_KEY_ID", "a=b"), pair("AWS_SECRET_ACCESS_KEY", "x y")];
        assert_eq!(all, expected);
        let error = parse("A=b\nhunter2\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "AWS_SECRET_ACCESS_KEY=hunter2\nAZURE_X=y\n").unwrap();
        let mode = |mode| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(0o640);
        let error = variables(Kind::S3, Some(file.path())).unwrap_err().to_string();
        assert!(error.contains("chmod 600") && !error.contains("hunter2"), "{error}");
        mode(0o600);
        let all = variables(Kind::S3, Some(file.path())).unwrap();
        assert_eq!(all.last().unwrap().1, "hunter2");
        assert!(all.iter().all(|(name, _)| name.starts_with("AWS_")));
    }

    proptest! {
        #[test]
        fn any_text_is_variables_or_an_error(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
