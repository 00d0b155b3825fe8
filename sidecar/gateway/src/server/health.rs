//! The plain listener for those who watch: `/healthz`, `/readyz`, `/metrics`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstay_vault::format::key::ObjectKey;
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::Shared;
use super::body::{Answer, text, with};
use crate::counters::line;

/// How long the store has to answer.
const STORE_ANSWERS: Duration = Duration::from_secs(5);
/// Connections at a time.
const CONNECTIONS: usize = 32;

/// Whether requests should come here.
#[derive(Debug, Default)]
pub(super) struct Ready {
    stopping: AtomicBool,
}

impl Ready {
    /// It is about to end.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

/// Answers until the process ends.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    let answer = move |request| answer(Arc::clone(&shared), request);
    backstay_http::serve(listener, CONNECTIONS, answer).await;
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Answer {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET");
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok"),
        "/readyz" => match ready(&shared).await {
            Ok(()) => text(StatusCode::OK, "ready"),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        "/metrics" => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            with(StatusCode::OK, kind, metrics(&shared).into())
        }
        _ => text(StatusCode::NOT_FOUND, "/healthz, /readyz, /metrics"),
    }
}

/// Whether the store answers. A gateway whose cache takes segments while the store is away is not ready for
/// more sources, though those it has go on.
async fn ready(shared: &Shared) -> Result<(), String> {
    if shared.ready.stopping.load(Ordering::Relaxed) {
        return Err("stopping".into());
    }
    match timeout(STORE_ANSWERS, shared.store.head(&Path::from(&ObjectKey::Vault))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => {
            tracing::warn!("not ready: {e}");
            Err("the store fails".into())
        }
        Err(_) => Err("the store does not answer".into()),
    }
}

fn metrics(shared: &Shared) -> String {
    let mut text = shared.counters.text();
    let (segments, bytes, failed, done) = shared.spool.counts();
    for (name, kind, help, value) in [
        ("cache_segments", "gauge", "Segments that are here and not in the store.", segments),
        ("cache_bytes", "gauge", "Their bytes.", bytes),
        ("uploads_failed_total", "counter", "Uploads to the store that failed.", failed),
        ("uploads_total", "counter", "Uploads to the store that were done.", done),
    ] {
        line(&mut text, name, kind, help, value);
    }
    text
}
