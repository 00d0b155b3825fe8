//! Held cuts on a served disk: writes wait, and only writes; whatever becomes of the one who holds
//! them, they go on in time (I4).
//!
//! Needs root, /dev/fuse.

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use backstay_format::control::{
    CutReply, ErrorCode, FRAMING, HEADER_BYTES, HOLD_NS_MAX, Request, Response,
};
use backstay_front::control::{ClientError, ControlClient};
use backstay_tests::harness::stamp::{open_direct, stamp};
use backstay_tests::harness::{Disk, Host};
use backstay_types::EpochNo;

/// What a busy machine may add to any wait.
const MARGIN: Duration = Duration::from_secs(2);
/// Long enough to see that something waits.
const A_WHILE: Duration = Duration::from_millis(300);

/// A disk that was shipped once, so that it can be cut.
fn disk(test: &str) -> Disk {
    let host = Host::new(test);
    let disk = host.disk("held", 8 << 20);
    disk.mount(&[]);
    disk.cycle();
    disk
}

fn leased(disk: &Disk) -> ControlClient {
    let mut client = ControlClient::connect(&disk.control_socket()).unwrap();
    client.ask(&Request::Lease { client: "the test".into() }).unwrap();
    client
}

fn cut(client: &mut ControlClient, hold: Duration) -> CutReply {
    match client.ask(&Request::CutAndHold { hold_ns: hold.as_nanos() as u64 }).unwrap() {
        Response::Cut(cut) => *cut,
        other => panic!("{other:?}"),
    }
}

fn thaw(client: &mut ControlClient, epoch: EpochNo) -> (bool, Duration) {
    match client.ask(&Request::Thaw { epoch }).unwrap() {
        Response::Thawed { in_force, held_ns } => (in_force, Duration::from_nanos(held_ns)),
        other => panic!("{other:?}"),
    }
}

/// Writes a block in another thread; a message when it is done.
fn write(served: &Path, block: u64) -> Receiver<()> {
    let (done, wait) = channel();
    let file = open_direct(served);
    std::thread::spawn(move || {
        file.write_all_at(&stamp(block, 7).0, block * 4096).expect("the guest's write");
        let _ = done.send(());
    });
    wait
}

fn refused(result: Result<Response, ClientError>) -> ErrorCode {
    match result {
        Err(ClientError::Refused(error)) => error.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn writes_wait_for_the_thaw_and_belong_to_the_next_epoch() {
    let disk = disk("thaw");
    let served = disk.served();
    write(&served, 1).recv_timeout(MARGIN).unwrap();
    let mut client = leased(&disk);
    assert_eq!(client.ask(&Request::PrepareCut).unwrap(), Response::Done);
    let cut = cut(&mut client, Duration::from_nanos(HOLD_NS_MAX));
    assert_eq!(cut.dirty_sectors, 8, "the block that was written before");
    // Neither reads nor flushes are held.
    let file = open_direct(&served);
    file.sync_data().unwrap();
    let mut block = stamp(0, 0);
    file.read_exact_at(&mut block.0, 4096).unwrap();
    assert!(block.0 == stamp(1, 7).0);
    let written = write(&served, 2);
    assert_eq!(written.recv_timeout(A_WHILE), Err(RecvTimeoutError::Timeout), "it must wait");
    let (in_force, held) = thaw(&mut client, cut.epoch);
    assert!(in_force && held >= A_WHILE);
    written.recv_timeout(MARGIN).unwrap();
    client.ask(&Request::FoldBack { epoch: cut.epoch }).unwrap();
    let status = client.status().unwrap();
    assert_eq!(status.dirty_sectors, 16, "both blocks ship with the next cycle");
    assert!(status.counters.cut_held_ns_max >= A_WHILE.as_nanos() as u64);
}

#[test]
fn a_hold_ends_at_its_deadline() {
    let disk = disk("deadline");
    let mut client = leased(&disk);
    let cut = cut(&mut client, A_WHILE);
    let began = Instant::now();
    write(&disk.served(), 2).recv_timeout(A_WHILE + MARGIN).unwrap();
    assert!(began.elapsed() >= A_WHILE / 2, "it was not held at all");
    let (in_force, held) = thaw(&mut client, cut.epoch);
    assert!(!in_force && held >= A_WHILE && held < A_WHILE + MARGIN, "{held:?}");
    // The cut stands all the same.
    let sealed = client.ask(&Request::Seal { epoch: cut.epoch }).unwrap();
    assert!(matches!(sealed, Response::Sealed { lost: None, .. }));
    client.ask(&Request::FoldBack { epoch: cut.epoch }).unwrap();
}

#[test]
fn a_hold_ends_with_its_connection() {
    let disk = disk("gone");
    let mut client = leased(&disk);
    cut(&mut client, Duration::from_nanos(HOLD_NS_MAX));
    let written = write(&disk.served(), 2);
    assert_eq!(written.recv_timeout(A_WHILE), Err(RecvTimeoutError::Timeout), "it must wait");
    drop(client);
    written.recv_timeout(MARGIN).unwrap();
    disk.cycle();
}

/// Any other request ends a hold: one who does something else has forgotten it.
#[test]
fn a_hold_ends_with_the_next_request() {
    let disk = disk("other");
    let mut client = leased(&disk);
    let cut = cut(&mut client, Duration::from_nanos(HOLD_NS_MAX));
    client.status().unwrap();
    write(&disk.served(), 2).recv_timeout(MARGIN).unwrap();
    assert!(!thaw(&mut client, cut.epoch).0);
    assert_eq!(refused(client.ask(&Request::Thaw { epoch: cut.epoch })), ErrorCode::Order);
}

fn receive(stream: &mut UnixStream) -> Response {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).unwrap();
    let (len, crc) = FRAMING.decode_header(&header).unwrap();
    let mut body = vec![0; len];
    stream.read_exact(&mut body).unwrap();
    FRAMING.decode_body::<Response>(&body, crc).unwrap()
}

/// One whose message comes byte by byte, or not to its end, holds nobody longer for it.
#[test]
fn a_message_that_drips_ends_with_the_hold() {
    let disk = disk("drip");
    let mut stream = UnixStream::connect(disk.control_socket()).unwrap();
    let mut ask = |request: &Request| {
        stream.write_all(&FRAMING.encode(request).unwrap()).unwrap();
        receive(&mut stream)
    };
    ask(&Request::Lease { client: "the test".into() });
    let began = Instant::now();
    let Response::Cut(cut) = ask(&Request::CutAndHold { hold_ns: A_WHILE.as_nanos() as u64 })
    else {
        panic!("no cut");
    };
    let thaw = FRAMING.encode(&Request::Thaw { epoch: cut.epoch }).unwrap();
    stream.write_all(&thaw[..thaw.len() / 2]).unwrap();
    write(&disk.served(), 2).recv_timeout(A_WHILE + MARGIN).unwrap();
    assert!(began.elapsed() >= A_WHILE / 2, "it was not held at all");
    // The rest comes too late, and is told so.
    stream.write_all(&thaw[thaw.len() / 2..]).unwrap();
    let answer = receive(&mut stream);
    assert!(matches!(answer, Response::Thawed { in_force: false, .. }), "{answer:?}");
    // A message that breaks off in the middle folds back like any end.
    stream.write_all(&thaw[..3]).unwrap();
    drop(stream);
    disk.cycle();
}

#[test]
fn what_makes_no_sense_is_refused() {
    let disk = disk("refuse");
    let mut client = ControlClient::connect(&disk.control_socket()).unwrap();
    assert_eq!(refused(client.ask(&Request::PrepareCut)), ErrorCode::Order);
    assert_eq!(refused(client.ask(&Request::CutAndHold { hold_ns: 1 })), ErrorCode::Order);
    let mut client = leased(&disk);
    for hold_ns in [0, HOLD_NS_MAX + 1, u64::MAX] {
        assert_eq!(refused(client.ask(&Request::CutAndHold { hold_ns })), ErrorCode::Order);
    }
    assert_eq!(refused(client.ask(&Request::Thaw { epoch: EpochNo(1) })), ErrorCode::Order);
    // A cut that is open already, and nothing is held after the refusal.
    let first = cut(&mut client, A_WHILE);
    assert_eq!(refused(client.ask(&Request::CutAndHold { hold_ns: 1000 })), ErrorCode::Order);
    write(&disk.served(), 2).recv_timeout(MARGIN).unwrap();
    client.ask(&Request::FoldBack { epoch: first.epoch }).unwrap();
}
