//! Faults of a disk's name in the vault: anyone who looks for the disk elsewhere finds another one, or none.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::lab::{Fault, Lab, Seen, halve};

const UPKEEP: &[&str] = &["upkeep-failed"];

/// The newest document of the name `d`.
fn document(lab: &Lab) -> PathBuf {
    let all = fs::read_dir(lab.vault().join("names/d")).unwrap().flatten();
    all.map(|entry| entry.path()).max().expect("the name has a document")
}

fn last(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// What status says that is to be done.
fn pruned(lab: &mut Lab) {
    lab.bring_back();
    lab.host.backstay(&["prune", "d"]);
}

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "the document of the disk's name is damaged",
        seen: Seen::Itself,
        cause: UPKEEP,
        says: &["names/d"],
        inject: |lab| {
            let name = document(lab);
            lab.hurt(&name, halve);
            lab.begin_again();
        },
        mend: pruned,
    },
    Fault {
        name: "another disk has the disk's name",
        seen: Seen::Itself,
        cause: UPKEEP,
        says: &["names/d"],
        inject: |lab| {
            let (ours, d, e) = (document(lab), last(&lab.of("d")), last(&lab.of("e")));
            let number: u64 = last(&ours).parse().unwrap();
            let next = ours.with_file_name(format!("{:020}", number + 1));
            let mut claim: Value = serde_json::from_slice(&fs::read(&ours).unwrap()).unwrap();
            assert_eq!(claim["body"]["disk"], d);
            claim["body"]["number"] = (number + 1).into();
            claim["body"]["disk"] = e.into();
            // A valid one: its checksum is that of its body with sorted keys.
            let crc = crc32c::crc32c(claim["body"].to_string().as_bytes());
            claim["crc32c"] = crc.into();
            lab.hurt(&next, |next| fs::write(next, claim.to_string()).unwrap());
            lab.begin_again();
        },
        mend: pruned,
    },
];
