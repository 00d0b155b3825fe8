//! The plain listener that Prometheus asks: `GET /metrics`.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use crate::Snapshot;
use crate::text::{Format, text};

/// Connections at a time.
const CONNECTIONS: usize = 8;

/// Finds out how this host is.
pub type Look = dyn Fn() -> Snapshot + Send + Sync;

/// Answers on a thread of its own until the process ends; where it listens.
///
/// # Errors
/// If the address cannot be had.
pub fn serve(listen: SocketAddr, look: Arc<Look>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let at = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("metrics".into()).spawn(move || {
        if let Err(e) = runtime.block_on(answer_all(listener, look)) {
            tracing::warn!("metrics are no longer served: {e}");
        }
    })?;
    Ok(at)
}

async fn answer_all(listener: TcpListener, look: Arc<Look>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let answer = move |request| answer(Arc::clone(&look), request);
    backstay_http::serve(listener, CONNECTIONS, answer).await;
    Ok(())
}

async fn answer(look: Arc<Look>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return with(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET".into());
    }
    if request.uri().path() != "/metrics" {
        return with(StatusCode::NOT_FOUND, "text/plain", "/metrics".into());
    }
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = match accept.is_some_and(|types| types.contains("application/openmetrics-text")) {
        true => Format::OpenMetrics,
        false => Format::Prometheus,
    };
    // Looking waits for drivers that do not answer.
    match tokio::task::spawn_blocking(move || text(&look(), format)).await {
        Ok(all) if !all.is_empty() => with(StatusCode::OK, format.media_type(), all),
        _ => with(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "looking failed".into()),
    }
}

fn with(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
