//! A line to a gateway, as somebody has it who does not keep to what our own client would do.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

/// A connection that stays open from request to request.
pub struct Line {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Line {
    /// Connects with a certificate and key (one PEM file), or without, speaking these versions of TLS.
    ///
    /// # Errors
    /// If the gateway does not let it in, which TLS 1.3 tells with the first answer only.
    ///
    /// # Panics
    /// If the files cannot be used.
    pub fn open(
        to: SocketAddr,
        ca: &Path,
        bundle: Option<&Path>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match bundle {
            Some(file) => {
                let chain = vec![CertificateDer::from_pem_file(file).unwrap()];
                let key = PrivateKeyDer::from_pem_file(file).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
            None => config.with_no_client_auth(),
        };
        let name = ServerName::try_from("localhost").unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let tcp = TcpStream::connect(to)?;
        tcp.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream: BufReader::new(StreamOwned::new(tls, tcp)) })
    }

    /// Sends a request as it is given and reads the answer.
    ///
    /// # Errors
    /// If the line breaks, or what comes is no answer.
    pub fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &[u8],
    ) -> io::Result<Answer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        for header in headers {
            head += header;
            head += "\r\n";
        }
        if !body.is_empty() || method == "PUT" {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes())?;
        // It may answer before it has all of a body that it does not want.
        let _ = stream.write_all(body).and_then(|()| stream.flush());
        self.answer(method == "HEAD")
    }

    fn answer(&mut self, no_body: bool) -> io::Result<Answer> {
        let bad = |what: &str| io::Error::other(format!("no answer: {what:?}"));
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| bad(&line))?;
        let mut len = 0;
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(bad("its head ends early"));
            }
            let Some((name, value)) = line.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                len = value.trim().parse().map_err(|_| bad(&line))?;
            }
        }
        let mut body = vec![0; if no_body { 0 } else { len }];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, body })
    }
}
