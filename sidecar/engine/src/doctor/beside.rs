//! Ways to a backing device that lead past its driver: a line of fstab, LVM.
//!
//! What is on a disk can be seen twice while the disk is served: on the loop device, and on the backing. Who
//! looks for a file system by its UUID, or for physical volumes, may find the wrong one of them.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::prerequisites::Checked::{self, Bad, Odd};

/// What is on a device, as blkid(8) tells it.
#[derive(Debug, Default)]
struct Content {
    kind: String,
    uuid: String,
    label: String,
}

/// Looks for ways to a backing device. A file has none: nobody looks for file systems in files.
pub(super) fn look(backing: &Path) -> Vec<Checked> {
    let device = fs::metadata(backing).is_ok_and(|meta| meta.file_type().is_block_device());
    if !device {
        return vec![];
    }
    let output = Command::new("blkid")
        .args(["-p", "-o", "export"])
        .arg(backing)
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(e) => return vec![Odd(format!("what is on it cannot be seen: blkid: {e}"))],
    };
    let content = Content::parse(&output);
    let fstab = fs::read_to_string("/etc/fstab").unwrap_or_default();
    content.judge(backing, &fstab)
}

impl Content {
    fn parse(text: &str) -> Self {
        let mut content = Self::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match name {
                "TYPE" => value.clone_into(&mut content.kind),
                "UUID" => value.clone_into(&mut content.uuid),
                "LABEL" => value.clone_into(&mut content.label),
                _ => {}
            }
        }
        content
    }

    fn judge(&self, backing: &Path, fstab: &str) -> Vec<Checked> {
        let mut found = vec![];
        for line in fstab.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let mut fields = line.split_whitespace();
            let (Some(spec), Some(target)) = (fields.next(), fields.next()) else { continue };
            let is = |name: &str, value: &str| {
                let named = spec.strip_prefix(name).and_then(|rest| rest.strip_prefix('='));
                !value.is_empty() && named.map(|named| named.trim_matches('"')) == Some(value)
            };
            let same = Path::new(spec).is_absolute()
                && fs::canonicalize(spec).is_ok_and(|path| path == backing);
            let ours = fields.next() == Some("backstay");
            if !ours && (same || is("UUID", &self.uuid) || is("LABEL", &self.label)) {
                found.push(Bad(format!(
                    "the line {spec} {target} of /etc/fstab mounts {}, which is this disk's backing: \
                     when no driver has it, what is written there is in no recovery point. Replace it by \
                     a line of the type backstay (docs/reference/packaging.md)",
                    backing.display()
                )));
            }
        }
        if self.kind == "LVM2_member" {
            found.push(Odd(format!(
                "{} is a physical volume: LVM sees it twice while the disk is attached, and may use the \
                 wrong one. Reject the backing in lvm.conf: global_filter = [ \"r|^{}$|\" ]",
                backing.display(),
                backing.display()
            )));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prerequisites::Verdict;

    #[test]
    fn lines_that_lead_past_the_driver_are_found() {
        let content = Content::parse("DEVNAME=/dev/sdb\nUUID=12-34\nLABEL=data\nTYPE=ext4\n");
        let fstab = "# UUID=12-34 /old ext4\nUUID=12-34 /mnt/a ext4 defaults 0 2\n\
            LABEL=\"data\" /mnt/b ext4\nUUID=99 /mnt/c ext4\n/dev/null /mnt/d ext4\n\
            db /mnt/e backstay _netdev\n";
        let found = content.judge(Path::new("/dev/null"), fstab);
        let texts: Vec<_> = found.into_iter().map(Checked::split).collect();
        assert_eq!(texts.len(), 3, "{texts:?}");
        for ((verdict, text), target) in texts.iter().zip(["/mnt/a", "/mnt/b", "/mnt/d"]) {
            assert!(*verdict == Verdict::Failed && text.contains(target), "{text}");
        }
        let lvm = Content::parse("TYPE=LVM2_member\n").judge(Path::new("/dev/sdb"), "");
        assert_eq!(lvm.len(), 1);
        assert!(Content::default().judge(Path::new("/dev/sdb"), "UUID= / ext4\n").is_empty());
    }
}
