//! A client of the NBD protocol (newstyle, simple replies), as far as `qemu-nbd` is asked for: the
//! size, reading, writing, flushing, and the end. Numbers are big-endian, as that protocol has them.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION: &[u8; 8] = b"IHAVEOPT";
const EXPORT_NAME: u32 = 1;
const FIXED_NEWSTYLE: u32 = 1;
const NO_ZEROES: u32 = 2;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
/// Most bytes of one request.
const REQUEST_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Copy)]
enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
}

/// A connection to a server that exports one disk.
pub(super) struct Nbd<S> {
    stream: S,
    size: u64,
    cookie: u64,
}

impl<S: Read + Write> Nbd<S> {
    /// Shakes hands and takes the server's only export.
    pub fn start(mut stream: S) -> io::Result<Self> {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..16] != GREETING {
            return Err(confused("it does not greet as an NBD server does"));
        }
        let flags = u32::from(u16::from_be_bytes([greeting[16], greeting[17]]));
        if flags & (FIXED_NEWSTYLE | NO_ZEROES) != FIXED_NEWSTYLE | NO_ZEROES {
            return Err(confused("it is too old"));
        }
        let mut hello = (FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec();
        hello.extend_from_slice(OPTION);
        hello.extend_from_slice(&EXPORT_NAME.to_be_bytes());
        hello.extend_from_slice(&0u32.to_be_bytes());
        stream.write_all(&hello)?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        let mut size = [0; 8];
        size.copy_from_slice(&export[..8]);
        Ok(Self { stream, size: u64::from_be_bytes(size), cookie: 0 })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn read_at(&mut self, bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        for part in bytes.chunks_mut(REQUEST_BYTES_MAX) {
            self.ask(Command::Read, offset, part.len(), &[])?;
            self.stream.read_exact(part)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    pub fn write_at(&mut self, bytes: &[u8], mut offset: u64) -> io::Result<()> {
        for part in bytes.chunks(REQUEST_BYTES_MAX) {
            self.ask(Command::Write, offset, part.len(), part)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.ask(Command::Flush, 0, 0, &[])
    }

    /// Says goodbye; the server closes the disk.
    pub fn end(mut self) -> io::Result<()> {
        let request = self.request(Command::Disconnect, 0, 0);
        self.stream.write_all(&request)
    }

    fn request(&mut self, command: Command, offset: u64, len: usize) -> Vec<u8> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(28);
        request.extend_from_slice(&REQUEST.to_be_bytes());
        request.extend_from_slice(&0u16.to_be_bytes());
        request.extend_from_slice(&(command as u16).to_be_bytes());
        request.extend_from_slice(&self.cookie.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&(len as u32).to_be_bytes());
        request
    }

    fn ask(&mut self, command: Command, offset: u64, len: usize, data: &[u8]) -> io::Result<()> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.size) {
            return Err(confused("a request past the disk's end"));
        }
        let request = self.request(command, offset, len);
        self.stream.write_all(&request)?;
        self.stream.write_all(data)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        let number = |at: usize| {
            u32::from_be_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]])
        };
        if number(0) != SIMPLE_REPLY || reply[8..] != self.cookie.to_be_bytes() {
            return Err(confused("a reply to something else"));
        }
        match number(4) {
            0 => Ok(()),
            // The protocol's numbers are those of Linux.
            errno => Err(io::Error::from_raw_os_error(errno.min(4095) as i32)),
        }
    }
}

fn confused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("NBD server: {what}"))
}

/// A connection over a socket of this host.
pub(super) type LocalNbd = Nbd<UnixStream>;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a server says, whatever is sent to it.
    struct Says<'a>(&'a [u8], Vec<u8>);

    impl Read for Says<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl Write for Says<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn greeting(size: u64) -> Vec<u8> {
        let mut said = GREETING.to_vec();
        said.extend_from_slice(&3u16.to_be_bytes());
        said.extend_from_slice(&size.to_be_bytes());
        said.extend_from_slice(&1u16.to_be_bytes());
        said
    }

    fn reply(errno: u32, cookie: u64) -> Vec<u8> {
        let mut said = SIMPLE_REPLY.to_be_bytes().to_vec();
        said.extend_from_slice(&errno.to_be_bytes());
        said.extend_from_slice(&cookie.to_be_bytes());
        said
    }

    #[test]
    fn reads_writes_and_errors() {
        let said = [greeting(4096), reply(0, 1), vec![7; 512], reply(0, 2), reply(28, 3)].concat();
        let mut nbd = Nbd::start(Says(&said, vec![])).unwrap();
        assert_eq!(nbd.size(), 4096);
        let mut read = [0; 512];
        nbd.read_at(&mut read, 1024).unwrap();
        assert_eq!(read, [7; 512]);
        nbd.write_at(&[1; 512], 0).unwrap();
        assert_eq!(nbd.write_at(&[1; 512], 512).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(nbd.write_at(&[1; 512], 4000).is_err(), "past the end");
        let sent = &nbd.stream.1[20..];
        assert_eq!(sent[..4], REQUEST.to_be_bytes());
        assert_eq!(sent[16..28], [&1024u64.to_be_bytes()[..], &512u32.to_be_bytes()[..]].concat());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_server_or_an_error(bytes: Vec<u8>, greets: bool) {
            let said = if greets { [greeting(1 << 20), bytes].concat() } else { bytes };
            if let Ok(mut nbd) = Nbd::start(Says(&said, vec![])) {
                let _ = nbd.read_at(&mut [0; 700], 3);
                let _ = nbd.flush();
            }
        }
    }
}
