//! An S3 bucket, for the requests that the client library has not.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use hyper::{Method, Request};
use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody};
use object_store::path::Path;
use object_store::signer::Signer;
use reqwest::Url;

use super::versions::{Page, page};
use super::{ObjectLock, value};
use crate::remote::permanent_error::PermanentError;

/// Longest answer: a page of a thousand versions is shorter.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// How often a request is sent that may work the next time, and the first pause; they double.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(200);
const S3: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// A bucket.
pub(crate) struct Bucket {
    store: AmazonS3,
    region: String,
    http: HttpClient,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("store", &self.store).finish_non_exhaustive()
    }
}

/// What no second try will change.
fn refused(status: u16, said: impl Into<String>) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, PermanentError::Answer { status, said: said.into() })
}

fn unknown(error: impl std::error::Error + Send + Sync + 'static) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, error)
}

impl Bucket {
    /// The bucket of a client; requests go out by the other one.
    pub fn new(store: AmazonS3, region: String, http: HttpClient) -> Self {
        Self { store, region, http }
    }

    /// Signs a request as the library does, in place of how it may be signed.
    pub async fn sign(
        &self,
        request: &mut HttpRequest,
        digest: Option<&str>,
    ) -> Result<(), HttpError> {
        let credential = self.store.credentials().get_credential().await.map_err(unknown)?;
        let digest = digest.map(|hex| unhex(hex).ok_or(()));
        let authorizer = AwsAuthorizer::new(&credential, "s3", &self.region);
        match digest {
            // The payload is not signed.
            Some(Err(())) => authorizer.with_sign_payload(false).try_authorize(request, None),
            Some(Ok(digest)) => authorizer.try_authorize(request, Some(&digest)),
            None => authorizer.try_authorize(request, None),
        }
        .map_err(unknown)
    }

    /// Whether objects in it can be locked; a refusal if not.
    pub async fn can_lock(&self) -> Result<(), HttpError> {
        let asked = self.send(Method::GET, "", &[("object-lock", "")], String::new()).await;
        let said = match asked {
            Ok(text) if text.contains("<ObjectLockEnabled>Enabled</ObjectLockEnabled>") => {
                return Ok(());
            }
            Ok(_) => "its object lock is not enabled".to_owned(),
            Err(e) => match crate::remote::permanent_error::refusal(&e) {
                Some(PermanentError::Answer { said, .. }) => said.clone(),
                _ => return Err(e),
            },
        };
        Err(refused(
            404,
            format!(
                "store.object_lock is set, and this bucket cannot lock objects: {said}. Make one with object lock \
                 enabled, or take the setting away; nothing was put"
            ),
        ))
    }

    /// Locks the newest version of an object from now on, or for longer.
    pub async fn retain(&self, key: &Path, lock: ObjectLock) -> Result<(), HttpError> {
        let body = format!(
            "<Retention xmlns=\"{S3}\"><Mode>{}</Mode><RetainUntilDate>{}</RetainUntilDate></Retention>",
            lock.mode,
            lock.until()
        );
        self.send(Method::PUT, key.as_ref(), &[("retention", "")], body).await.map(drop)
    }

    /// A page of the versions of what begins with a prefix, from where the last one ended.
    pub async fn versions(
        &self,
        prefix: &str,
        from: Option<&(String, String)>,
    ) -> Result<Page, HttpError> {
        let mut query = vec![("versions", ""), ("prefix", prefix)];
        if let Some((key, version)) = from {
            query.push(("key-marker", key));
            if !version.is_empty() {
                query.push(("version-id-marker", version));
            }
        }
        let text = self.send(Method::GET, "", &query, String::new()).await?;
        page(&text).map_err(|reason| refused(200, format!("a list of versions: {reason}")))
    }

    /// Deletes a version, or a mark that an object is deleted.
    pub async fn delete_version(&self, key: &str, version: &str) -> Result<(), HttpError> {
        self.send(Method::DELETE, key, &[("versionId", version)], String::new()).await.map(drop)
    }

    /// Sends a request of our own; the text of its answer. Tried again while that may help.
    async fn send(
        &self,
        method: Method,
        key: &str,
        query: &[(&str, &str)],
        body: String,
    ) -> Result<String, HttpError> {
        let (mut tries, mut pause) = (1, PAUSE);
        loop {
            let failed = match self.send_once(&method, key, query, &body).await {
                Err(e) if e.kind() == HttpErrorKind::Unknown => return Err(e),
                Err(e) => e,
                done => return done,
            };
            if tries == TRIES {
                return Err(failed);
            }
            tokio::time::sleep(pause).await;
            (tries, pause) = (tries + 1, pause * 2);
        }
    }

    async fn send_once(
        &self,
        method: &Method,
        key: &str,
        query: &[(&str, &str)],
        body: &str,
    ) -> Result<String, HttpError> {
        let mut url = self.url(key).await?;
        url.query_pairs_mut().clear().extend_pairs(query);
        let mut request = Request::builder().method(method.clone()).uri(url.as_str());
        if !body.is_empty() {
            // S3 wants one with what changes a lock.
            let digest = ring::digest::digest(&ring::digest::SHA256, body.as_bytes());
            request = request.header("x-amz-checksum-sha256", value(&base64(digest.as_ref()))?);
            request = request.header("x-amz-sdk-checksum-algorithm", "SHA256");
        }
        let body = Bytes::copy_from_slice(body.as_bytes());
        let mut request = request.body(HttpRequestBody::from(body)).map_err(unknown)?;
        self.sign(&mut request, None).await?;
        let answer = self.http.execute(request).await?;
        let status = answer.status();
        let mut text = vec![];
        let mut stream = answer.into_body().bytes_stream();
        while let Some(bytes) = stream.next().await {
            text.extend_from_slice(&bytes?);
            if text.len() > ANSWER_BYTES_MAX {
                return Err(refused(status.as_u16(), "an answer that does not end"));
            }
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        match status.as_u16() {
            200..=299 => Ok(text),
            passing @ (408 | 429 | 500..=599) => Err(HttpError::new(
                HttpErrorKind::Request,
                std::io::Error::other(format!("HTTP {passing}")),
            )),
            status => {
                let code = text.split("<Code>").nth(1).and_then(|rest| rest.split('<').next());
                Err(refused(status, code.unwrap_or("no reason given")))
            }
        }
    }

    /// Where an object is, or the bucket: where the library would ask.
    async fn url(&self, key: &str) -> Result<Url, HttpError> {
        const ANY: &str = "x";
        let any = self.store.signed_url(Method::GET, &Path::from(ANY), PAUSE * 600).await;
        let mut url = any.map_err(unknown)?;
        let path = url.path().strip_suffix(ANY).unwrap_or_default().trim_end_matches('/');
        let path = match key {
            "" if path.is_empty() => "/".to_owned(),
            "" => path.to_owned(),
            key => format!("{path}/{key}"),
        };
        url.set_path(&path);
        url.set_query(None);
        Ok(url)
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| match *pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    pairs.map(byte).collect()
}

/// Base 64 of a few bytes.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let of = |n: usize| u32::from(group.get(n).copied().unwrap_or(0));
        let bits = of(0) << 16 | of(1) << 8 | of(2);
        for n in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * n) & 63) as usize];
            text.push(if n > group.len() { '=' } else { char::from(digit) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_bytes() {
        for (bytes, text) in [(&b""[..], ""), (b"f", "Zg=="), (b"fo", "Zm8="), (b"foo", "Zm9v")] {
            assert_eq!(base64(bytes), text);
        }
        assert_eq!(unhex("00ff1A"), Some(vec![0, 255, 26]));
        assert_eq!((unhex("UNSIGNED-PAYLOAD"), unhex("abc")), (None, None));
    }
}
