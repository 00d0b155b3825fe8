//! Object lock: what is put in an S3 bucket cannot be deleted for a while, by nobody who has the store's keys.
//!
//! The headers that ask for it are added where a request goes out, after the client library has signed it, so it is
//! signed again; the lock costs no request of its own. What is uploaded in parts is locked once more when it is whole:
//! some stores forget what its beginning asked for.
//!
//! - `Locker`: adds the headers
//! - `bucket`: requests that the library has not: what a bucket can, retention, versions
//! - `versions`: a page of a list of versions
//! - `undelete`: bringing back what was deleted
//!
//! docs/decisions/0013-object-lock.md says what this is worth.

pub(crate) mod bucket;
mod undelete;
mod versions;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backstay_host::clock;
use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use object_store::client::{HttpError, HttpErrorKind, HttpRequest};
use tokio::sync::OnceCell;

use bucket::Bucket;
pub use undelete::{Extended, Undeleted, Versions};

const MODE: HeaderName = HeaderName::from_static("x-amz-object-lock-mode");
const UNTIL: HeaderName = HeaderName::from_static("x-amz-object-lock-retain-until-date");
/// S3 wants a checksum with what is locked; the library adds it, and this is its name.
const CHECKSUM: HeaderName = HeaderName::from_static("x-amz-sdk-checksum-algorithm");
const HASH: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// Who can end a lock before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Anyone who has a right of its own for that.
    Governance,
    /// Nobody.
    Compliance,
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Governance => "GOVERNANCE",
            Self::Compliance => "COMPLIANCE",
        })
    }
}

/// How objects are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLock {
    /// For how long from when they are put.
    pub period: Duration,
    /// Who can end it.
    pub mode: LockMode,
}

impl ObjectLock {
    /// Until when what is put now is locked, as stores write it.
    fn until(self) -> String {
        humantime::format_rfc3339_seconds(clock::now() + self.period).to_string()
    }
}

/// What adds a lock to requests that put objects.
#[derive(Debug)]
pub(crate) struct Locker {
    lock: ObjectLock,
    /// Known when the client is whole, which this is a part of.
    bucket: OnceLock<Arc<Bucket>>,
    /// Set when the bucket has said that it locks.
    can: OnceCell<()>,
}

impl Locker {
    pub fn new(lock: ObjectLock) -> Self {
        Self { lock, bucket: OnceLock::new(), can: OnceCell::new() }
    }

    /// Says which bucket it is for. Before that nothing is put.
    pub fn is_for(&self, bucket: Arc<Bucket>) {
        let _ = self.bucket.set(bucket);
    }

    /// Finds out, once, whether the bucket can lock.
    pub async fn check(&self) -> Result<(), HttpError> {
        let Some(bucket) = self.bucket.get() else {
            let reason = std::io::Error::other("the bucket is not known yet");
            return Err(HttpError::new(HttpErrorKind::Unknown, reason));
        };
        self.can.get_or_try_init(|| bucket.can_lock()).await.map(drop)
    }

    /// A request with a lock, if it puts an object that is to stay. Nothing is put where nothing can be locked.
    pub async fn locked(&self, mut request: HttpRequest) -> Result<HttpRequest, HttpError> {
        if !puts(request.method(), request.uri().query().unwrap_or_default()) {
            return Ok(request);
        }
        self.check().await?;
        // What finds out whether a store is fit for a vault is deleted at once.
        let (Some(bucket), false) = (self.bucket.get(), request.uri().path().contains("/probes/"))
        else {
            return Ok(request);
        };
        let headers = request.headers_mut();
        headers.insert(MODE, value(&self.lock.mode.to_string())?);
        headers.insert(UNTIL, value(&self.lock.until())?);
        headers.insert(CHECKSUM, HeaderValue::from_static("SHA256"));
        if headers.contains_key(AUTHORIZATION) {
            let digest = headers.get(HASH).and_then(|hash| hash.to_str().ok()).map(str::to_owned);
            bucket.sign(&mut request, digest.as_deref()).await?;
        }
        Ok(request)
    }
}

/// Whether a request makes an object: not a part of one, whose beginning is what counts.
fn puts(method: &Method, query: &str) -> bool {
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    match *method {
        Method::PUT => !has("partNumber") && !has("retention"),
        Method::POST => has("uploads"),
        _ => false,
    }
}

fn value(text: &str) -> Result<HeaderValue, HttpError> {
    HeaderValue::from_str(text).map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_puts_an_object() {
        assert!(puts(&Method::PUT, ""));
        assert!(puts(&Method::POST, "uploads="));
        for (method, query) in [
            (Method::PUT, "partNumber=1&uploadId=x"),
            (Method::PUT, "retention="),
            (Method::POST, "uploadId=uploads"),
            (Method::POST, "delete"),
            (Method::GET, "uploads"),
            (Method::DELETE, ""),
        ] {
            assert!(!puts(&method, query), "{method} {query}");
        }
    }
}
