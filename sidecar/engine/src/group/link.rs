//! A connection between two hosts of a group. Every wait has an end.

use backstay_types::{Class, Classified};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_format::FormatError;
use backstay_host::clock;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use serde::{Deserialize, Serialize};

use super::tls::ALPN;
use super::wire::{self, BODY_BYTES_MAX, HEADER_BYTES};

/// How long a connection and its handshake may take.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How often each side lets the other know that it is there.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silence after which the other side is taken for dead.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Most bytes that rustls keeps before they are sent: one message and its records.
const SEND_BYTES_MAX: usize = 2 * BODY_BYTES_MAX;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The network failed, or the other side was silent for too long.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other side is not who it should be, or does not speak TLS as we do.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// What came is no message.
    #[error("{0}; do both sides run the same version?")]
    Format(#[from] FormatError),
    /// A message that has no place here.
    #[error("the other side said {said} when it was to {step}")]
    Confused {
        /// What came.
        said: String,
        /// What was asked for.
        step: &'static str,
    },
}

impl Classified for LinkError {
    fn class(&self) -> Class {
        match self {
            Self::Io(_) => Class::Retry,
            Self::Tls(_) | Self::Format(_) | Self::Confused { .. } => Class::Person,
        }
    }
}

/// A connection.
pub struct Link {
    tls: Connection,
    tcp: TcpStream,
    /// What came and was not read yet.
    inbox: Vec<u8>,
}

impl Link {
    /// Connects to a coordinator that has a certificate of this name.
    ///
    /// # Errors
    /// If it cannot be reached in time, or is not who it should be.
    pub fn dial(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        address: (&str, u16),
    ) -> Result<Self, LinkError> {
        let ends = clock::monotonic() + HANDSHAKE_MAX;
        let mut failure = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, left(ends)?) {
                Ok(tcp) => {
                    let tls = ClientConnection::new(config, name)?;
                    return Self::shake_hands(tls.into(), tcp, ends);
                }
                Err(e) => failure = e,
            }
        }
        Err(failure.into())
    }

    /// Takes a connection that came in.
    ///
    /// # Errors
    /// If the other side does not show who it is in time.
    pub fn accept(config: Arc<ServerConfig>, tcp: TcpStream) -> Result<Self, LinkError> {
        let tls = ServerConnection::new(config)?;
        Self::shake_hands(tls.into(), tcp, clock::monotonic() + HANDSHAKE_MAX)
    }

    fn shake_hands(tls: Connection, tcp: TcpStream, ends: Instant) -> Result<Self, LinkError> {
        // Every message is waited for: none is to wait for the next one.
        tcp.set_nodelay(true)?;
        let mut link = Self { tls, tcp, inbox: vec![] };
        link.tls.set_buffer_limit(Some(SEND_BYTES_MAX));
        while link.tls.is_handshaking() {
            link.push(ends)?;
            if link.tls.is_handshaking() {
                link.pull(ends)?;
            }
        }
        link.push(ends)?;
        if link.tls.alpn_protocol() != Some(ALPN) {
            let other = io::Error::new(ErrorKind::InvalidData, "the other side is not Backstay");
            return Err(other.into());
        }
        Ok(link)
    }

    /// The other side's certificate, and those between it and the authority.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        self.tls.peer_certificates().unwrap_or_default()
    }

    /// Sends a message.
    ///
    /// # Errors
    /// If it is not gone within `limit`.
    pub fn send(&mut self, message: &impl Serialize, limit: Duration) -> Result<(), LinkError> {
        let ends = clock::monotonic() + limit;
        self.tls.writer().write_all(&wire::FRAMING.encode(message)?)?;
        self.push(ends)
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// If none comes within `limit`, or something that is none, or the connection ends.
    pub fn receive<T: for<'a> Deserialize<'a>>(&mut self, limit: Duration) -> Result<T, LinkError> {
        let ends = clock::monotonic() + limit;
        loop {
            if let Some((message, taken)) = wire::decode(&self.inbox)? {
                self.inbox.drain(..taken);
                return Ok(message);
            }
            self.pull(ends)?;
        }
    }

    /// Sends what waits to be sent.
    fn push(&mut self, ends: Instant) -> Result<(), LinkError> {
        while self.tls.wants_write() {
            self.tcp.set_write_timeout(Some(left(ends)?))?;
            retry(|| self.tls.write_tls(&mut self.tcp))?;
        }
        Ok(())
    }

    /// Reads what has come; waits for some.
    fn pull(&mut self, ends: Instant) -> Result<(), LinkError> {
        self.tcp.set_read_timeout(Some(left(ends)?))?;
        if retry(|| self.tls.read_tls(&mut self.tcp))? == 0 {
            return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
        }
        let state = match self.tls.process_new_packets() {
            Ok(state) => state,
            Err(e) => {
                // Tells the other side why, if it listens.
                let _ = self.push(ends);
                return Err(e.into());
            }
        };
        let more = state.plaintext_bytes_to_read();
        // One message is waited for at a time, so more than one at a time makes no sense.
        if self.inbox.len() + more > 2 * (HEADER_BYTES + BODY_BYTES_MAX) {
            let much = io::Error::new(ErrorKind::InvalidData, "the other side sent too much");
            return Err(much.into());
        }
        let at = self.inbox.len();
        self.inbox.resize(at + more, 0);
        self.tls.reader().read_exact(&mut self.inbox[at..])?;
        // Answers of TLS itself, to a key update for one.
        self.push(ends)
    }
}

/// The time that is left; none is an error, and what the system calls a time-out is the same one.
fn left(ends: Instant) -> io::Result<Duration> {
    let left = ends.saturating_duration_since(clock::monotonic());
    if left.is_zero() { Err(too_late()) } else { Ok(left) }
}

fn too_late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "no answer in time")
}

fn retry(mut act: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match act() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(too_late()),
            done => return done,
        }
    }
}
