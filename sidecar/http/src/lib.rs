//! The plain HTTP listener for those who watch (metrics, health): few connections, one short request on each.
//!
//! Nobody has to show who they are here, so nothing that a client does or leaves undone takes much: connections are
//! bounded, and each ends in time.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// How long a request may take to come.
const STALL: Duration = Duration::from_secs(10);
/// How long all of it may take.
const WHOLE: Duration = Duration::from_secs(30);
/// After a connection that could not be accepted (no descriptors left).
const PAUSE: Duration = Duration::from_millis(200);

/// Answers until the process ends, at most so many connections at a time.
pub async fn serve<B, F, A>(listener: TcpListener, connections_max: usize, answer: F)
where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<B>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(connections_max));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let answers = service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(STALL)
                .keep_alive(false)
                .max_headers(32)
                .serve_connection(TokioIo::new(stream), answers);
            let _ = timeout(WHOLE, served).await;
            drop(place);
        });
    }
}
