//! A proxy between us and a real store that does to requests what networks and servers do to them.
//!
//! It speaks as much HTTP/1.1 as it must: a connection carries one request with a length. Faults are
//! chosen by the test, request by request, so that a test is the same each time it runs. It also
//! takes requests as an HTTP proxy gets them (`PUT http://host/… HTTP/1.1`), and can be what makes a
//! plain server one with TLS.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A request, as far as faults are chosen by it.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its number at this proxy, from 0.
    pub number: u64,
    /// GET, PUT, …
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Whether it is to do nothing if the object is there.
    pub only_if_absent: bool,
    /// Length of its body.
    pub body_bytes: usize,
    /// Whether it came as to an HTTP proxy.
    pub as_proxy: bool,
}

impl Request {
    /// Whether a part of a segment is put.
    pub fn is_part(&self) -> bool {
        self.method == "PUT"
            && (self.target.contains("partNumber=") || self.target.contains("comp=block&"))
    }

    /// Whether it is a list of what begins with a name.
    pub fn lists(&self, what: &str) -> bool {
        let list = self.target.contains("list-type=2") || self.target.contains("comp=list");
        self.method == "GET" && list && self.target.replace("%2F", "/").contains(what)
    }
}

/// What is done to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Pass,
    /// It is answered here with this status and goes no further.
    Answer(u16),
    /// The connection is closed, and it goes no further.
    Close,
    /// It is carried out, and its answer is lost.
    LoseAnswer,
    /// It is carried out, and half of its answer comes.
    Half,
    /// Half of its body arrives, then the connection breaks on both sides.
    Tear,
    /// Nothing happens any more until [`Proxy::release`]; then the connection is closed.
    Stall,
    /// It is carried out, and its answer comes a byte in each such time, until [`Proxy::release`].
    Trickle(Duration),
    /// A refusal because the object is there becomes a success: a store that does not know conditions.
    DenyConditions,
    /// It is answered as the first of its kind was.
    Stale,
    /// It is answered here, with this status and body, and goes no further.
    Say(u16, &'static str),
    /// It is carried out, and a byte of its body is flipped on the way there.
    FlipPut,
    /// It is carried out, and a byte of the answer's body is flipped on the way back.
    FlipAnswer,
}

type Choose = dyn Fn(&Request) -> Fault + Send + Sync;

/// A connection, encrypted or not.
trait Connection: Read + Write {}
impl<C: Read + Write> Connection for C {}

struct Inner {
    upstream: u16,
    tls: Option<Arc<ServerConfig>>,
    choose: Mutex<Arc<Choose>>,
    seen: AtomicU64,
    faults: AtomicU64,
    stopped: AtomicBool,
    released: (Mutex<bool>, Condvar),
    old_answers: Mutex<HashMap<String, Vec<u8>>>,
}

/// A proxy that runs until it is dropped.
pub struct Proxy {
    port: u16,
    inner: Arc<Inner>,
}

impl Proxy {
    /// Starts one in front of a port of this machine.
    pub fn start(upstream: u16) -> Self {
        Self::new(upstream, None)
    }

    /// Starts one that speaks TLS, in front of a port of this machine that does not.
    pub fn start_tls(upstream: u16, tls: Arc<ServerConfig>) -> Self {
        Self::new(upstream, Some(tls))
    }

    fn new(upstream: u16, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let inner = Arc::new(Inner {
            upstream,
            tls,
            choose: Mutex::new(Arc::new(|_: &Request| Fault::Pass)),
            seen: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            released: Default::default(),
            old_answers: Mutex::default(),
        });
        let of_listener = Arc::clone(&inner);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if of_listener.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let inner = Arc::clone(&of_listener);
                thread::spawn(move || {
                    // Anyone who leaves in the middle ends a connection, nothing else.
                    let _ = inner.serve(client);
                });
            }
        });
        Self { port, inner }
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Chooses what is done to requests from now on.
    pub fn choose(&self, choose: impl Fn(&Request) -> Fault + Send + Sync + 'static) {
        *self.inner.choose.lock().unwrap() = Arc::new(choose);
    }

    /// Requests so far.
    pub fn seen(&self) -> u64 {
        self.inner.seen.load(Ordering::Relaxed)
    }

    /// Requests to which something was done so far.
    pub fn faults(&self) -> u64 {
        self.inner.faults.load(Ordering::Relaxed)
    }

    /// Closes the connections that stall, and stalls no more.
    pub fn release(&self) {
        *self.inner.released.0.lock().unwrap() = true;
        self.inner.released.1.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.release();
        self.inner.stopped.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn flip(body: &mut [u8]) {
    let middle = body.len() / 2;
    if let Some(byte) = body.get_mut(middle) {
        *byte ^= 0x10;
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads up to the empty line that ends a head.
pub(super) fn read_head(from: &mut impl Read) -> io::Result<String> {
    let (mut head, mut byte) = (vec![], [0]);
    while !head.ends_with(b"\r\n\r\n") {
        from.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head.len() > 64 << 10 {
            return Err(bad("a head without an end"));
        }
    }
    String::from_utf8(head).map_err(|_| bad("a head that is no text"))
}

/// The length of an answer's head.
fn head_bytes(answer: &[u8]) -> usize {
    answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |at| at + 4)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    headers.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

impl Inner {
    fn serve(&self, client: TcpStream) -> io::Result<()> {
        let socket = client.try_clone()?;
        let done = match &self.tls {
            None => self.answer(Box::new(client), &socket),
            Some(tls) => {
                let session = ServerConnection::new(Arc::clone(tls)).map_err(io::Error::other)?;
                let mut session = StreamOwned::new(session, client);
                let done = self.answer(Box::new(&mut session), &socket);
                session.conn.send_close_notify();
                let _ = session.flush();
                done
            }
        };
        let _ = socket.shutdown(Shutdown::Both);
        done
    }

    /// Takes a request and answers it; `socket` is what the connection goes over.
    fn answer(&self, client: Box<dyn Connection + '_>, socket: &TcpStream) -> io::Result<()> {
        let mut from = io::BufReader::new(client);
        let head = read_head(&mut from)?;
        let len = header(&head, "content-length").map_or(Ok(0), |len| len.parse::<usize>());
        let len = len.map_err(|_| bad("a length that is no number"))?;
        let mut words = head.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let whole = words.next().unwrap_or_default();
        let target = match whole.strip_prefix("http://") {
            Some(rest) => &rest[rest.find('/').unwrap_or(rest.len())..],
            None => whole,
        };
        let request = Request {
            number: self.seen.fetch_add(1, Ordering::Relaxed),
            method,
            target: target.into(),
            only_if_absent: header(&head, "if-none-match") == Some("*")
                // As Google says it: the generation of what is not there.
                || header(&head, "x-goog-if-generation-match") == Some("0"),
            body_bytes: len,
            as_proxy: whole != target,
        };
        let choose = Arc::clone(&self.choose.lock().unwrap());
        let fault = choose(&request);
        if fault != Fault::Pass {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
        let mut body = vec![0; len];
        if fault == Fault::Stall {
            // The body is taken or not, as the system's buffers have it.
            let (released, changed) = (&self.released.0, &self.released.1);
            let released = released.lock().unwrap();
            drop(changed.wait_while(released, |released| !*released).unwrap());
            return socket.shutdown(Shutdown::Both);
        }
        from.read_exact(&mut body)?;
        if fault == Fault::FlipPut {
            flip(&mut body);
        }
        let mut client = from.into_inner();
        let answer = match fault {
            Fault::Close => return socket.shutdown(Shutdown::Both),
            Fault::Answer(status) => {
                format!("HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    .into_bytes()
            }
            Fault::Say(status, text) => format!(
                "HTTP/1.1 {status} Fault\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                text.len()
            )
            .into_bytes(),
            Fault::FlipAnswer => {
                let mut answer = self.forward(&head, &request.target, &body, true)?;
                let at = head_bytes(&answer);
                flip(&mut answer[at..]);
                answer
            }
            Fault::Tear => {
                self.forward(&head, &request.target, &body[..len / 2], false)?;
                return socket.shutdown(Shutdown::Both);
            }
            Fault::Stale => {
                let of = self.old_answers.lock().unwrap().get(&request.target).cloned();
                match of {
                    Some(old) => old,
                    None => {
                        let new = self.forward(&head, &request.target, &body, true)?;
                        self.old_answers.lock().unwrap().insert(request.target, new.clone());
                        new
                    }
                }
            }
            Fault::Pass
            | Fault::FlipPut
            | Fault::LoseAnswer
            | Fault::Half
            | Fault::DenyConditions
            | Fault::Stall
            | Fault::Trickle(_) => self.forward(&head, &request.target, &body, true)?,
        };
        if fault == Fault::LoseAnswer {
            return socket.shutdown(Shutdown::Both);
        }
        if fault == Fault::Half {
            return client.write_all(&answer[..head_bytes(&answer).midpoint(answer.len())]);
        }
        if let Fault::Trickle(pause) = fault {
            return self.trickle(&mut *client, &answer, pause);
        }
        let refused = [&b"HTTP/1.1 412"[..], b"HTTP/1.1 409"];
        if fault == Fault::DenyConditions && refused.iter().any(|code| answer.starts_with(code)) {
            return client.write_all(
                b"HTTP/1.1 201 Created\r\nETag: \"x\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 \
                  GMT\r\nx-goog-generation: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
        client.write_all(&answer)
    }

    fn trickle(&self, client: &mut dyn Write, answer: &[u8], pause: Duration) -> io::Result<()> {
        // The head at once: what is tried is a body that does not come.
        let head = head_bytes(answer);
        client.write_all(&answer[..head])?;
        for byte in &answer[head..] {
            client.write_all(&[*byte])?;
            client.flush()?;
            let (released, changed) = (&self.released.0, &self.released.1);
            let released = released.lock().unwrap();
            let waited = changed.wait_timeout_while(released, pause, |released| !*released);
            if *waited.unwrap().0 {
                break;
            }
        }
        Ok(())
    }

    /// Sends a request on, on a connection of its own; the whole answer.
    fn forward(&self, head: &str, target: &str, body: &[u8], whole: bool) -> io::Result<Vec<u8>> {
        let mut server = TcpStream::connect(("127.0.0.1", self.upstream))?;
        let mut lines = head.trim_end().lines();
        let first = lines.next().unwrap_or_default();
        let method = first.split(' ').next().unwrap_or_default();
        let mut sent = format!("{method} {target} HTTP/1.1\r\n");
        for line in lines {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            if !matches!(&name[..], "connection" | "proxy-connection" | "keep-alive" | "expect") {
                sent.push_str(line);
                sent.push_str("\r\n");
            }
        }
        sent.push_str("Connection: close\r\n\r\n");
        server.write_all(sent.as_bytes())?;
        server.write_all(body)?;
        if !whole {
            server.shutdown(Shutdown::Both)?;
            return Ok(vec![]);
        }
        let mut answer = vec![];
        server.read_to_end(&mut answer)?;
        // A server that was killed says nothing, or half of it.
        match answer.is_empty() {
            true => Err(bad("no answer")),
            false => Ok(answer),
        }
    }
}
