use super::*;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

/// A new mount namespace has copies of all mounts, also of those of other tests.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Takes away a loop device, a mount or a process at the end of a test.
struct Undo(Vec<Box<dyn FnOnce()>>);

impl Undo {
    fn later(&mut self, undo: impl FnOnce() + 'static) {
        self.0.push(Box::new(undo));
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(undo) = self.0.pop() {
            undo();
        }
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn image(dir: &TempDir, name: &str) -> PathBuf {
    let path = dir.path().canonicalize().unwrap().join(name);
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    path
}

fn attach(undo: &mut Undo, args: &[&str]) -> String {
    let device = run("losetup", &[&["-f", "--show"], args].concat());
    let of = device.clone();
    undo.later(move || drop(Command::new("losetup").args(["-d", &of]).status()));
    device
}

/// A shell that says "ready" and stays until its input is closed.
fn shell(script: &str) -> Child {
    let mut child = Command::new("unshare")
        .args(["-m", "sh", "-c", &format!("{script} && echo ready && read x")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "ready", "{script}");
    child
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

fn of(path: impl AsRef<Path>) -> Vec<User> {
    users(&Subject::at(path.as_ref()).unwrap(), &Look::default()).unwrap()
}

#[test]
fn writers_are_named_and_readers_only_on_request() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, "disk");
    assert_eq!(of(&path), []);
    let file = OpenOptions::new().append(true).open(&path).unwrap();
    assert_eq!(of(&path), [], "this process is spared");
    let spawn =
        |stdio: Stdio| Command::new("cat").stdin(Stdio::piped()).stdout(stdio).spawn().unwrap();
    let child = spawn(file.into());
    let found = of(&path);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].pid, found[0].command.as_deref()), (Some(child.id()), Some("cat")));
    let said = found[0].to_string();
    assert_eq!(
        said,
        format!("process {} (cat) has {} open for writing", child.id(), path.display())
    );
    // A second name is the same file.
    fs::hard_link(&path, dir.path().join("link")).unwrap();
    assert_eq!(of(dir.path().join("link")).len(), 1);
    let spared = Look { spare: vec![child.id()], ..Look::default() };
    assert_eq!(users(&Subject::at(&path).unwrap(), &spared).unwrap(), []);
    end(child);
    let reader = spawn(File::open(&path).unwrap().into());
    assert_eq!(of(&path), []);
    let all = Look { readers: true, ..Look::default() };
    let found = users(&Subject::at(&path).unwrap(), &all).unwrap();
    assert_eq!(found.iter().map(|user| user.pid).collect::<Vec<_>>(), [Some(reader.id())]);
    end(reader);
    assert!(matches!(refuse(&dir.path().join("none")), Ok(())));
}

#[test]
fn locks_of_both_kinds_are_uses() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, "disk");
    let text = path.to_str().unwrap();
    let child = shell(&format!("exec 9<{text}; flock -s 9"));
    let found = of(&path);
    assert!(
        matches!(found[0].kind, UserKind::Open { writes: false, locks: true, .. }),
        "{found:?}"
    );
    assert!(found[0].namespace.is_some(), "it is in a namespace of its own");
    end(child);
    assert_eq!(of(&path), []);
}

#[test]
fn a_writer_by_memory_alone_is_noticed() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, "disk");
    let script = "import mmap,sys; f=open(sys.argv[1],'r+b'); m=mmap.mmap(f.fileno(),4096); f.close(); \
                  print('ready',flush=True); sys.stdin.read()";
    // mmap.mmap keeps a copy of the descriptor: closed, too.
    let script = script.replace("f.close();", "f.close(); import os; [os.close(int(n)) for n in os.listdir('/proc/self/fd') if os.path.realpath('/proc/self/fd/'+n)==sys.argv[1]];");
    let mut child = Command::new("python3")
        .args(["-c", &script, path.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let found = of(&path);
    assert!(matches!(found[0].kind, UserKind::Hidden { .. }), "{found:?}");
    end(child);
    assert_eq!(of(&path), []);
}

#[test]
fn loop_devices_and_what_is_mounted_from_them_in_any_namespace() {
    let _alone = alone();
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, "disk");
    let text = path.to_str().unwrap();
    let mut undo = Undo(vec![]);
    run("mkfs.ext4", &["-q", text]);
    let device = attach(&mut undo, &[text]);
    let found = of(&path);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].kind, UserKind::Loop { device: device.clone().into() });
    assert_eq!(of(&device), [], "an idle device is free");
    let at = dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let child = shell(&format!("mount {device} {}", at.display()));
    for subject in [text, &device] {
        let found = of(subject);
        let mounted = found.iter().find(|u| matches!(u.kind, UserKind::Mounted { .. })).unwrap();
        assert!(mounted.namespace.is_some() && mounted.pid == Some(child.id()), "{found:?}");
        let said = mounted.to_string();
        assert!(said.contains("in mount namespace") && said.contains(&device), "{said}");
    }
    // The same bytes by another device.
    let second = attach(&mut undo, &[text]);
    assert!(of(&second).iter().any(
        |u| matches!(&u.kind, UserKind::Mounted { device: d, .. } if d.as_os_str() == device.as_str())
    ));
    end(child);
    assert!(
        of(&device).iter().all(|u| matches!(u.kind, UserKind::Loop { .. })),
        "only the other device"
    );
    // A part that does not overlap is nobody's business.
    let third = attach(&mut undo, &["-o", "1048576", "--sizelimit", "1048576", text]);
    let fourth = attach(&mut undo, &["-o", "4194304", "--sizelimit", "1048576", text]);
    assert!(!of(&third).iter().any(|u| u.kind == UserKind::Loop { device: fourth.clone().into() }));
}

#[test]
fn partitions_whole_disks_and_swap() {
    let _alone = alone();
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, "disk");
    let text = path.to_str().unwrap();
    let mut undo = Undo(vec![]);
    let disk = attach(&mut undo, &["-P", text]);
    // Told to the kernel by number: it need not know any kind of partition table.
    run("addpart", &[&disk, "1", "2048", "40960"]);
    run("addpart", &[&disk, "2", "65536", "40960"]);
    let (one, two) = (format!("{disk}p1"), format!("{disk}p2"));
    assert!(Path::new(&one).exists() && of(&disk).is_empty() && of(&one).is_empty());
    run("mkswap", &["-q", &one]);
    run("swapon", &[&one]);
    let part = one.clone();
    undo.later(move || drop(Command::new("swapoff").arg(part).status()));
    let swaps = |path: &str| of(path).iter().any(|u| matches!(u.kind, UserKind::Swap { .. }));
    assert!(swaps(&one) && swaps(&disk) && swaps(text) && !swaps(&two), "{:?}", of(&two));
    let said = InUse::new(&path, of(&path)).to_string();
    assert!(said.contains(&format!("swapoff {one}")) || said.contains("is used as swap"), "{said}");
}

#[test]
fn what_works_in_a_file_system_is_named() {
    let _alone = alone();
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, "disk");
    let mut undo = Undo(vec![]);
    run("mkfs.ext4", &["-q", path.to_str().unwrap()]);
    let device = attach(&mut undo, &[path.to_str().unwrap()]);
    let at = dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let child = shell(&format!("mount {device} {0} && cd {0}", at.display()));
    let number = match Subject::at(Path::new(&device)).unwrap().item() {
        subject::Item::Device(number) => number,
        other => panic!("{other:?}"),
    };
    let found = inside(number).unwrap();
    assert!(found.iter().any(|u| u.pid == Some(child.id())), "{found:?}");
    end(child);
    assert_eq!(inside(number).unwrap(), []);
}
