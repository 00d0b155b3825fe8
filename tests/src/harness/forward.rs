//! An HTTP proxy as companies have them: CONNECT for what is encrypted, whole URLs for what is not. It counts what
//! goes through it, and knows the names that only it can resolve.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::proxy::read_head;

/// What went through.
#[derive(Debug, Default)]
struct Counts {
    tunnels: AtomicU64,
    plain: AtomicU64,
    refused: AtomicU64,
}

struct Inner {
    /// Where names lead, with their ports.
    names: HashMap<String, SocketAddr>,
    at: SocketAddr,
    listener: TcpListener,
    counts: Counts,
    stopped: AtomicBool,
    /// All connections that are open, to be closed when it stops.
    open: Mutex<Vec<TcpStream>>,
}

/// A proxy that runs until it is dropped.
pub struct ForwardProxy(Arc<Inner>);

impl ForwardProxy {
    /// Takes connections from a listener, which may be in another network than we are, and leads `name:port` to where
    /// `names` say; it knows no others.
    pub fn start(listener: TcpListener, names: &[(String, SocketAddr)]) -> Self {
        let inner = Arc::new(Inner {
            names: names.iter().cloned().collect(),
            at: listener.local_addr().unwrap(),
            listener: listener.try_clone().unwrap(),
            counts: Counts::default(),
            stopped: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let of_listener = Arc::clone(&inner);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let inner = Arc::clone(&of_listener);
                thread::spawn(move || {
                    // Anyone who leaves in the middle ends a connection, nothing else.
                    let _ = inner.serve(client);
                });
            }
        });
        Self(inner)
    }

    /// Where it listens, as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.0.at)
    }

    /// Connections through CONNECT so far.
    pub fn tunnels(&self) -> u64 {
        self.0.counts.tunnels.load(Ordering::Relaxed)
    }

    /// Requests with a whole URL so far.
    pub fn plain(&self) -> u64 {
        self.0.counts.plain.load(Ordering::Relaxed)
    }

    /// Requests for other places so far, all refused.
    pub fn refused(&self) -> u64 {
        self.0.counts.refused.load(Ordering::Relaxed)
    }

    /// Closes all connections and takes no more.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Relaxed);
        // Anyone who waits for connections there is woken, and none is taken any more.
        let _ = nix::sys::socket::shutdown(
            self.0.listener.as_raw_fd(),
            nix::sys::socket::Shutdown::Both,
        );
        for connection in self.0.open.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn serve(&self, client: TcpStream) -> io::Result<()> {
        self.keep(&client)?;
        let mut from = BufReader::new(client.try_clone()?);
        let head = read_head(&mut from)?;
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (authority, path) = match method {
            "CONNECT" => (target, ""),
            _ => {
                let rest = target.strip_prefix("http://").unwrap_or_default();
                rest.split_at(rest.find('/').unwrap_or(rest.len()))
            }
        };
        let Some(to) = self.names.get(authority) else {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
            return (&client).write_all(
                b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        };
        let server = TcpStream::connect(to)?;
        self.keep(&server)?;
        if method == "CONNECT" {
            self.counts.tunnels.fetch_add(1, Ordering::Relaxed);
            (&client).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        } else {
            self.counts.plain.fetch_add(1, Ordering::Relaxed);
            // One request a connection: whatever follows the answer would have to be read.
            let mut sent = format!("{method} {path} HTTP/1.1\r\n");
            for line in head.trim_end().lines().skip(1) {
                let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
                if !matches!(&name[..], "connection" | "proxy-connection" | "keep-alive") {
                    sent.push_str(line);
                    sent.push_str("\r\n");
                }
            }
            sent.push_str("Connection: close\r\n\r\n");
            (&server).write_all(sent.as_bytes())?;
        }
        let back = (server.try_clone()?, client);
        let answers = thread::spawn(move || pass_on(&mut &back.0, &back.1));
        pass_on(&mut from, &server);
        let _ = answers.join();
        Ok(())
    }

    fn keep(&self, connection: &TcpStream) -> io::Result<()> {
        let mut open = self.open.lock().unwrap();
        if self.stopped.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        open.push(connection.try_clone()?);
        Ok(())
    }
}

/// Copies until one side ends, and has the other one know.
fn pass_on(from: &mut impl Read, to: &TcpStream) {
    let _ = io::copy(from, &mut &*to);
    let _ = to.shutdown(Shutdown::Write);
}
