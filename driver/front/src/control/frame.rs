//! Messages on a stream: a header with a checked length, then the body.

use backstay_types::{Class, Classified};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use backstay_format::FormatError;
use backstay_format::control::{FRAMING, HEADER_BYTES};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

/// Why no message was read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed or timed out.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came is not a message.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl Classified for FrameError {
    fn class(&self) -> Class {
        match self {
            Self::Io(e) => e.class(),
            Self::Format(_) => Class::Person,
        }
    }
}

/// Writes a message.
pub(super) fn send(stream: &mut impl Write, message: &impl Serialize) -> Result<(), FrameError> {
    stream.write_all(&FRAMING.encode(message)?)?;
    Ok(stream.flush()?)
}

/// Writes a message, with a descriptor that comes with its first byte.
pub(super) fn send_with(
    mut stream: &UnixStream,
    message: &impl Serialize,
    descriptor: &File,
) -> Result<(), FrameError> {
    let bytes = FRAMING.encode(message)?;
    let descriptors = [descriptor.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let slices = [IoSlice::new(&bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<()>(stream.as_raw_fd(), &slices, &rights, flags, None);
    let sent = sent.map_err(io::Error::from)?;
    Ok(stream.write_all(&bytes[sent..])?)
}

/// A stream whose messages may bring a descriptor with them.
pub(super) struct WithDescriptor<'a> {
    pub stream: &'a UnixStream,
    /// The first that came.
    pub came: Option<File>,
}

impl Read for WithDescriptor<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut slices = [IoSliceMut::new(buf)];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let fd = self.stream.as_raw_fd();
        let received = recvmsg::<()>(fd, &mut slices, Some(&mut space), flags)?;
        for message in received.cmsgs()? {
            let ControlMessageOwned::ScmRights(descriptors) = message else { continue };
            for descriptor in descriptors {
                // SAFETY: the kernel made it for this message; it is ours alone.
                let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
                self.came.get_or_insert(File::from(descriptor));
            }
        }
        Ok(received.bytes)
    }
}

/// Reads a message; `None` at the end of the stream.
pub(super) fn receive<T: for<'a> Deserialize<'a>>(
    stream: &mut impl Read,
) -> Result<Option<T>, FrameError> {
    let mut header = [0; HEADER_BYTES];
    // The end of the stream between two messages is no error, inside one it is.
    let first = loop {
        match stream.read(&mut header) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[first..])?;
    let (len, crc) = FRAMING.decode_header(&header)?;
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    Ok(Some(FRAMING.decode_body(&body, crc)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_format::control::Request;
    use proptest::prelude::*;

    #[test]
    fn a_descriptor_comes_with_its_message() {
        let (one, two) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send_with(&one, &Request::Status, &file).unwrap();
        send(&mut &one, &Request::Stop).unwrap();
        let mut with = WithDescriptor { stream: &two, came: None };
        assert_eq!(receive::<Request>(&mut with).unwrap(), Some(Request::Status));
        let came = with.came.take().unwrap().metadata().unwrap();
        let meta = file.metadata().unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!((came.dev(), came.ino()), (meta.dev(), meta.ino()));
        assert_eq!(receive::<Request>(&mut with).unwrap(), Some(Request::Stop));
        assert!(with.came.is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes: Vec<u8>) {
            let _ = receive::<Request>(&mut &bytes[..]);
        }

        #[test]
        fn any_flip_is_seen(at in 0usize..64, bit in 0u8..8) {
            let mut bytes = FRAMING.encode(&Request::Status).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(receive::<Request>(&mut &bytes[..]).is_err());
        }
    }
}
