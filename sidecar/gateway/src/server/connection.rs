//! Connections: let in one by one, known by their certificates, bounded.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::{Shared, request};
use crate::counters::{Now, add};
use crate::pki::Identity;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Most headers of a request, and most bytes of them.
const HEADERS_MAX: usize = 32;
const HEADER_BYTES_MAX: usize = 16 << 10;
/// How long a client that was not let in may take to hear why.
const LINGER: Duration = Duration::from_secs(5);
/// Most bytes that it may have sent meanwhile: the end of its handshake, and what it asks for.
const LINGER_BYTES_MAX: u64 = 4 << 20;
/// The pause after a connection that could not be taken: no descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(200);

/// Takes connections until it is told to stop.
pub(super) async fn accept(
    shared: &Arc<Shared>,
    listener: TcpListener,
    stop: &mut watch::Receiver<bool>,
) {
    loop {
        let taken = tokio::select! {
            taken = listener.accept() => taken,
            _ = stop.changed() => return,
        };
        let (stream, peer) = match taken {
            Ok(taken) => taken,
            Err(e) => {
                tracing::warn!("cannot accept connections: {e}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&shared.connections).try_acquire_owned() else {
            add(&shared.counters.connections_refused_total, 1);
            tracing::warn!("{peer}: not let in: too many connections");
            continue;
        };
        tokio::spawn(serve(Arc::clone(shared), stream, peer, place, stop.clone()));
    }
}

/// Waits until all connections have ended, for so long at most.
pub(super) async fn drain(shared: &Shared, at_most: Duration) {
    let all = shared.limits.connections as u32;
    let _ = timeout(at_most, shared.connections.acquire_many(all)).await;
}

async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    _place: OwnedSemaphorePermit,
    mut stop: watch::Receiver<bool>,
) {
    let refused = |why: &str| {
        add(&shared.counters.connections_refused_total, 1);
        tracing::info!("{peer}: not let in: {why}");
    };
    let _ = stream.set_nodelay(true);
    let acceptor = TlsAcceptor::from(shared.tls.server());
    let handshake = acceptor.accept(stream).into_fallible();
    let mut tls = match timeout(HANDSHAKE.min(shared.limits.stall), handshake).await {
        Ok(Ok(tls)) => tls,
        Ok(Err((e, stream))) => {
            refused(&e.to_string());
            return linger(stream).await;
        }
        Err(_) => return refused("the handshake takes too long"),
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let who = match certificate.map(|certificate| Identity::from_der(certificate)) {
        Some(Ok(who)) => Arc::new(who),
        Some(Err(e)) => {
            let why = e.to_string();
            refused(&why);
            let _ = timeout(LINGER, say(&mut tls, &why)).await;
            return linger(tls).await;
        }
        None => return refused("no certificate"),
    };
    let client = shared.clients.of(who.name.as_str());
    let Some(_connection) = client.connection() else {
        return refused(&format!("{} has too many connections", who.name));
    };
    add(&shared.counters.connections_total, 1);
    shared.warn_of_end(&who);
    let _open = Now::more(&shared.counters.connections);
    let answer = service_fn(|request| {
        let (shared, who, client) = (Arc::clone(&shared), Arc::clone(&who), Arc::clone(&client));
        async move { Ok::<_, Infallible>(request::answer(shared, who, client, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.stall)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .half_close(false)
        .serve_connection(TokioIo::new(tls), answer);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stop.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!("{peer} ({}): {e}", who.name);
    }
}

/// Ends a connection so that the other side hears why. The alert (or answer) is sent already; but to close while
/// something is unread resets the connection, and a client that had asked for something already would see
/// that instead: it thinks its handshake done before we have looked at its certificate.
async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let _ = timeout(LINGER, async {
        stream.shutdown().await?;
        let mut rest = stream.take(LINGER_BYTES_MAX);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    })
    .await;
}

/// To a client of the authority whose certificate says nothing that a gateway knows: the alerts of TLS have no
/// word for that.
async fn say(tls: &mut (impl AsyncRead + AsyncWrite + Unpin), why: &str) -> io::Result<()> {
    // An answer to what was not asked yet would be taken for none.
    let mut asked = [0; 1024];
    while tls.read(&mut asked).await? == asked.len() {}
    let head = "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length:";
    tls.write_all(format!("{head} {}\r\n\r\n{why}", why.len()).as_bytes()).await?;
    tls.flush().await
}
