//! Links, FIFOs and devices planted in a vault's directory lead nowhere: nothing outside is read, written,
//! waited for or deleted.

#![allow(
    clippy::disallowed_methods,
    reason = "a test: real time, and files as others would move them"
)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use backstay_types::CycleNo;
use backstay_types::{Class, Classified as _};
use backstay_vault::{VaultError, Vaults};
use common::{Lab, content, record};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

const SIZE: u64 = 1 << 20;

/// A vault with one point, and a folder outside with things that are none of its business.
fn vault() -> (Lab, Vec<u8>, PathBuf, tempfile::TempDir) {
    let lab = Lab::new(SIZE);
    let now = content(&mut fastrand::Rng::with_seed(1), SIZE);
    lab.cycle(None, &now, &[lab.whole()]).unwrap();
    let disk = lab.dir.path().join("disks").join(lab.disk.to_string());
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s3cret").unwrap();
    fs::write(outside.path().join("work#1"), "not ours").unwrap();
    (lab, now, disk, outside)
}

fn planted<T>(result: Result<T, VaultError>) {
    let Err(error) = result else { panic!("it was followed") };
    assert_eq!((error.class(), error.may_pass()), (Class::Damaged, false), "{error}");
    let text = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source())
        .map(ToString::to_string)
        .collect::<String>();
    assert!(text.contains("find out who did"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}

fn names(dir: &Path) -> Vec<String> {
    let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(name).collect();
    names.sort();
    names
}

#[test]
fn an_object_that_is_a_link_is_not_read() {
    let (lab, now, disk, outside) = vault();
    let points = disk.join("points");
    let point = points.join(format!("{:020}", 1));
    let kept = outside.path().join("point");
    fs::rename(&point, &kept).unwrap();
    for to in [kept.clone(), outside.path().join("secret"), "/dev/zero".into(), "gone".into()] {
        symlink(&to, &point).unwrap();
        planted(lab.vault.manifest(lab.disk, CycleNo(1)));
        planted(lab.vault.points(lab.disk));
        fs::remove_file(&point).unwrap();
    }
    fs::rename(&kept, &point).unwrap();
    assert!(lab.restored(CycleNo(1)).unwrap() == now);
    // Also for the vault's own record, before anything else is looked at.
    fs::rename(lab.dir.path().join("vault.json"), &kept).unwrap();
    symlink(&kept, lab.dir.path().join("vault.json")).unwrap();
    planted(Vaults::default().open(lab.dir.path().to_str().unwrap()));
    planted(Vaults::default().create(lab.dir.path().to_str().unwrap()));
}

#[test]
fn a_folder_that_is_a_link_is_not_written_into() {
    let (lab, now, disk, outside) = vault();
    let before = names(outside.path());
    for folder in ["segments", "points", "terms"] {
        fs::rename(disk.join(folder), disk.join("aside")).unwrap();
        symlink(outside.path(), disk.join(folder)).unwrap();
        // An older handle, and one that has seen nothing yet.
        let url = lab.dir.path().to_str().unwrap();
        for vault in [lab.vault.clone(), Vaults::default().open(url).unwrap()] {
            let shipped = common::ship(&vault, lab.disk, CycleNo(2), &now, &[lab.whole()]);
            if folder == "segments" {
                planted(shipped);
            }
            if folder == "terms" {
                planted(vault.term_or_first(lab.disk, "test"));
            }
        }
        assert_eq!(names(outside.path()), before, "{folder}");
        fs::remove_file(disk.join(folder)).unwrap();
        fs::rename(disk.join("aside"), disk.join(folder)).unwrap();
    }
    // A whole disk's folder, of one that is made just now.
    let other = record(backstay_types::DiskId::random(), lab.size);
    symlink(outside.path(), lab.dir.path().join("disks").join(other.disk.to_string())).unwrap();
    planted(lab.vault.create_disk(&other));
    assert_eq!(names(outside.path()), before);
}

/// What a killed put left is named `<name>#<n>`; a link of that name must not have somebody's file written.
#[test]
fn a_staged_name_that_is_a_link_is_left_alone() {
    let (lab, now, disk, outside) = vault();
    let victim = outside.path().join("secret");
    for n in 1..4 {
        symlink(&victim, disk.join("points").join(format!("{:020}#{n}", 2))).unwrap();
    }
    let first = lab.vault.manifest(lab.disk, CycleNo(1)).unwrap();
    lab.cycle(Some(&first), &now, &[lab.whole()]).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "s3cret");
    assert!(fs::symlink_metadata(disk.join(format!("points/{:020}", 2))).unwrap().is_file());
}

#[test]
fn nobody_waits_for_a_fifo_or_reads_a_device() {
    let (lab, _, disk, _outside) = vault();
    let point = disk.join("points").join(format!("{:020}", 1));
    fs::remove_file(&point).unwrap();
    mkfifo(&point, Mode::S_IRWXU).unwrap();
    planted(lab.vault.manifest(lab.disk, CycleNo(1)));
    planted(lab.vault.points(lab.disk));
    fs::remove_file(&point).unwrap();
    let _socket = UnixListener::bind(&point).unwrap();
    planted(lab.vault.manifest(lab.disk, CycleNo(1)));
    // A device needs root to be made; without, this part says so.
    fs::remove_file(&point).unwrap();
    let zero = nix::sys::stat::makedev(1, 5);
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    match nix::sys::stat::mknod(&point, kind, Mode::S_IRWXU, zero) {
        Ok(()) => planted(lab.vault.manifest(lab.disk, CycleNo(1))),
        Err(e) => eprintln!("no device was tried: {e}"),
    }
}

/// A vault may be reached through links; only what is inside must have none.
#[test]
fn a_link_to_the_vault_is_the_administrators() {
    let (lab, now, _, outside) = vault();
    let link = outside.path().join("vault");
    symlink(lab.dir.path(), &link).unwrap();
    let vault = Vaults::default().open(link.to_str().unwrap()).unwrap();
    common::ship(&vault, lab.disk, CycleNo(2), &now, &[lab.whole()]).unwrap();
    assert_eq!(vault.points(lab.disk).unwrap().len(), 1);
}

#[test]
fn objects_are_their_owners_alone() {
    let (lab, ..) = vault();
    for object in lab.objects() {
        let mode = fs::metadata(&object).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{}", object.display());
        let folder = object.parent().unwrap();
        let mode = fs::metadata(folder).unwrap().mode() & 0o7777;
        // The root was there: it belongs to its maker.
        assert!(mode == 0o700 || folder == lab.dir.path(), "{}: {mode:o}", folder.display());
    }
}
