//! Sends a message to the kernel log and to syslog, because the disk with the logs may have failed.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;

/// syslog's number for facility `daemon`, severity `critical`.
const PRIORITY: u32 = 3 << 3 | 2;

/// Says it in both places, without waiting for either.
pub fn raise(message: &str) {
    let message = message.replace('\n', " ");
    let kernel = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
    if let Ok(mut kernel) = kernel {
        // One write is one line.
        let _ = kernel.write_all(format!("<{PRIORITY}>backstay: {message}\n").as_bytes());
    }
    if let Ok(socket) = UnixDatagram::unbound() {
        let _ = socket.set_nonblocking(true);
        let pid = std::process::id();
        let line = format!("<{PRIORITY}>backstay[{pid}]: {message}");
        let _ = socket.send_to(line.as_bytes(), "/dev/log");
    }
}
