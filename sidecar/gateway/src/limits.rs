//! How much each client may do, so that none takes what the others need.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstay_host::clock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Clients that are remembered; one more than that forgets those that have nothing open.
const CLIENTS_MAX: usize = 65_536;

/// What each certificate may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time, all together.
    pub connections: usize,
    /// Connections at a time of one certificate.
    pub connections_per_client: usize,
    /// Segments that are received at a time from one certificate.
    pub uploads_per_client: usize,
    /// Requests a second of one certificate, on average; bursts of ten times that go through.
    pub requests_per_second: u32,
    /// Bytes a second that are taken from one certificate; none: as fast as they come.
    pub bytes_per_second: Option<u64>,
    /// Bytes of small objects (points, documents) in memory, all together.
    pub buffer_bytes: u64,
    /// How long a client may send nothing in the middle of a request, or take for its headers.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_client: 64,
            uploads_per_client: 8,
            requests_per_second: 200,
            bytes_per_second: None,
            buffer_bytes: 256 << 20,
            stall: Duration::from_secs(60),
        }
    }
}

/// Lets through so much a second, on average.
#[derive(Debug)]
struct Bucket {
    rate: f64,
    most: f64,
    /// What may go at once; below zero, what was let through ahead.
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(rate: f64, most: f64) -> Self {
        Self { rate, most, level: most, at: clock::monotonic() }
    }

    /// Takes so much, whether it is there or not; how long to wait until it is.
    fn take(&mut self, amount: f64, now: Instant) -> Duration {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.rate;
        self.level = (self.level + gained).min(self.most) - amount;
        self.at = now;
        Duration::from_secs_f64((-self.level / self.rate).max(0.0))
    }
}

/// One certificate's part.
#[derive(Debug)]
pub struct Client {
    connections: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    requests: Mutex<Bucket>,
    bytes: Option<Mutex<Bucket>>,
}

impl Client {
    fn new(limits: &Limits) -> Self {
        let requests = f64::from(limits.requests_per_second.max(1));
        let bytes = limits.bytes_per_second.map(|bytes| bytes.max(1) as f64);
        Self {
            connections: Arc::new(Semaphore::new(limits.connections_per_client)),
            uploads: Arc::new(Semaphore::new(limits.uploads_per_client)),
            requests: Mutex::new(Bucket::new(requests, requests * 10.0)),
            bytes: bytes.map(|bytes| Mutex::new(Bucket::new(bytes, bytes))),
        }
    }

    /// A place for a connection, if there is one.
    #[must_use]
    pub fn connection(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connections).try_acquire_owned().ok()
    }

    /// A place for a segment, as soon as there is one.
    pub async fn upload(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.uploads).acquire_owned().await.ok()
    }

    /// Whether another request may be made now.
    #[must_use]
    pub fn request(&self) -> bool {
        let mut bucket = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = bucket.take(1.0, clock::monotonic());
        if !wait.is_zero() {
            // It was not let through, so it is not counted either.
            bucket.level += 1.0;
        }
        wait.is_zero()
    }

    /// Waits until so many bytes may have come.
    pub async fn bytes(&self, bytes: u64) {
        let Some(bucket) = &self.bytes else { return };
        let wait = {
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.take(bytes as f64, clock::monotonic())
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// All clients.
#[derive(Debug)]
pub struct Clients {
    limits: Limits,
    known: Mutex<HashMap<String, Arc<Client>>>,
}

impl Clients {
    /// With the same limits for each.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, known: Mutex::default() }
    }

    /// The part of the client of a name. Certificates of one name share it.
    #[must_use]
    pub fn of(&self, name: &str) -> Arc<Client> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CLIENTS_MAX {
            known.retain(|_, client| Arc::strong_count(client) > 1);
        }
        let client =
            known.entry(name.into()).or_insert_with(|| Arc::new(Client::new(&self.limits)));
        Arc::clone(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_its_rate_through() {
        let start = clock::monotonic();
        let mut bucket = Bucket { at: start, ..Bucket::new(10.0, 20.0) };
        assert_eq!(bucket.take(20.0, start), Duration::ZERO);
        assert_eq!(bucket.take(5.0, start), Duration::from_millis(500));
        assert_eq!(bucket.take(5.0, start + Duration::from_secs(1)), Duration::ZERO);
        // It never saves up more than its most.
        assert_eq!(bucket.take(20.0, start + Duration::from_secs(100)), Duration::ZERO);
        assert_eq!(bucket.take(1.0, start + Duration::from_secs(100)), Duration::from_millis(100));
    }

    #[test]
    fn each_has_its_own() {
        let limits =
            Limits { connections_per_client: 1, requests_per_second: 1, ..Limits::default() };
        let clients = Clients::new(limits);
        let (a, b) = (clients.of("a"), clients.of("b"));
        let held = a.connection();
        assert!(held.is_some() && clients.of("a").connection().is_none());
        assert!(b.connection().is_some());
        drop(held);
        assert!(a.connection().is_some());
        assert_eq!((0..20).filter(|_| a.request()).count(), 10);
        assert!(b.request());
    }
}
