//! Asks drivers for their status without waiting for a driver that hangs.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use backstay_format::control::DriverStatus;
use backstay_front::control::ControlClient;
use backstay_front::paths::DiskPaths;
use backstay_host::clock;
use backstay_types::DiskName;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

/// How long the service waits for one answer. A driver that is well needs a thousandth of it.
const WAIT: Duration = Duration::from_millis(100);
/// An answer that came late is believed for so long.
const FRESH: Duration = Duration::from_secs(2);

type Answer = (Instant, Option<DriverStatus>);

/// The drivers of this host. Each is asked by a thread of its own, which is waited for only shortly: an
/// answer that comes later is had the next time.
#[derive(Default)]
pub(super) struct Drivers {
    asked: RefCell<BTreeMap<DiskName, Receiver<Answer>>>,
}

impl Drivers {
    /// How the driver of a disk is; `None` if none answers, or not at once.
    pub fn ask(&self, name: &DiskName, paths: &DiskPaths) -> Option<DriverStatus> {
        let mut asked = self.asked.borrow_mut();
        if let Some(answer) = asked.get(name) {
            match answer.try_recv() {
                // Nobody asks a second time before the first was answered or given up.
                Err(crossbeam_channel::TryRecvError::Empty) => return None,
                Ok((at, status)) if clock::since(at) < FRESH => {
                    asked.remove(name);
                    return status;
                }
                _ => drop(asked.remove(name)),
            }
        }
        let (tell, told) = bounded(1);
        let socket = paths.control_socket();
        let ask = move || {
            let status = ControlClient::connect(&socket).and_then(|mut driver| driver.status());
            let _ = tell.send((clock::monotonic(), status.ok()));
        };
        thread::Builder::new().name("ask".into()).spawn(ask).ok()?;
        match told.recv_timeout(WAIT) {
            Ok((_, status)) => status,
            Err(RecvTimeoutError::Timeout) => {
                asked.insert(name.clone(), told);
                None
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }
}
