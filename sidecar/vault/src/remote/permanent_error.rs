//! Answers that an immediate second try will not change, told by type.
//!
//! The client library keeps apart what is not there or taken, and tries again what is the
//! server's fault. Everything else (a malformed name, the wrong region, expired credentials, a bucket that is gone)
//! it calls generic or forbidden, without the store's reason. Here such an answer becomes a [`PermanentError`] where it
//! arrives, with the store's own code and message, so that a person sees what to mend. So does a certificate
//! that is not trusted, which the library takes for a broken connection, too.
//!
//! An answer that is not what was asked for (see `expected`) is asked for again here.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use hyper::Method;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use rustls::AlertDescription as Alert;

use super::expected::{expected, not_expected};
use super::lock::Locker;
use super::timeouts::Patience;

/// Most bytes of an answer that are looked at.
const BODY_BYTES_MAX: usize = 16 << 10;

/// What an immediate second try will not change.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PermanentError {
    /// A store's answer to a request that it does not carry out.
    Answer {
        /// The HTTP status.
        status: u16,
        /// The store's own words.
        said: String,
    },
    /// We do not trust the other side's certificate, or it does not trust ours.
    Distrust(rustls::Error),
}

impl fmt::Display for PermanentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer { status, said } => {
                let said = if said.is_empty() { "no reason given" } else { said };
                let hint = hint(*status, said);
                write!(f, "the store refuses this request (HTTP {status}: {said}){hint}")
            }
            Self::Distrust(rustls::Error::AlertReceived(alert)) => {
                write!(f, "the other side ended the TLS connection ({alert:?}): {}", meant(*alert))
            }
            Self::Distrust(error) => write!(
                f,
                "the store's certificate is not trusted ({error}). Nothing was sent. Is the \
                 endpoint right? If it is, name the authority that signed the certificate in \
                 store.ca_file"
            ),
        }
    }
}

impl Error for PermanentError {}

/// Whether a store says that it has no room left.
pub(crate) fn is_full(status: u16, said: &str) -> bool {
    const CODES: [&str; 6] = [
        "QuotaExceeded",
        "XMinioStorageFull",
        "XMinioAdminBucketQuotaExceeded",
        "InsufficientStorage",
        "EntityTooLargeForQuota",
        "NotEnoughSpace",
    ];
    status == 507 || CODES.iter().any(|code| said.starts_with(code))
}

/// What to look at, by the store's code.
fn hint(status: u16, said: &str) -> &'static str {
    let code = said.split(',').next().unwrap_or_default();
    match (status, code) {
        (_, "RequestTimeTooSkewed" | "RequestExpired" | "AuthenticationTimeout") => {
            "; the clock of this host differs from the store's: set it (timedatectl), nothing else is wrong"
        }
        (_, "ExpiredToken" | "TokenRefreshRequired" | "ExpiredAuthenticationToken") => {
            "; the credentials have expired: put new ones into store.credentials_file, they are read at once"
        }
        (_, "NoSuchUpload") => "; its upload was ended by somebody else",
        // What is put is there or is not; a list, likewise: it is the bucket that is missing.
        (404, _) | (_, "NoSuchBucket" | "ContainerNotFound") => {
            "; there is no such bucket or container: create it, or check the URL and the endpoint"
        }
        (
            _,
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "InvalidToken"
            | "AuthenticationFailed",
        ) => "; the credentials are wrong: check store.credentials_file or the environment",
        (301 | 307 | 308, _) => "; is the region or the endpoint right?",
        _ => "",
    }
}

/// What an alert says of our certificate, and what is to be done.
fn meant(alert: Alert) -> &'static str {
    match alert {
        Alert::CertificateRevoked => {
            "this host's certificate (store.client_cert) was revoked. Nothing was sent, and nothing will \
             be before it has another one: backstay pki issue, where the authority is"
        }
        Alert::CertificateExpired => {
            "this host's certificate (store.client_cert) has run out, or one of the two clocks is wrong. \
             Nothing was sent. Give it another one: backstay pki renew, where the authority is"
        }
        Alert::UnknownCA | Alert::DecryptError => {
            "this host's certificate (store.client_cert) is of an authority that the gateway does not \
             know. Nothing was sent. Is it the right gateway, and the right certificate?"
        }
        Alert::CertificateRequired => {
            "it lets nobody in without a certificate, and was shown none: set store.client_cert"
        }
        Alert::ProtocolVersion => "it asks for another version of TLS than 1.3",
        _ => {
            "it does not accept this host's certificate (store.client_cert). Nothing was sent. Its log \
             says more"
        }
    }
}

/// What comes first in an error and its sources; what is wrapped in an I/O error is a source, too.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        next = match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// The refusal at the bottom of an error.
pub(crate) fn refusal<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a PermanentError> {
    find(error)
}

/// Distrust of either side at the bottom of an error of a connection. In TLS 1.3 the other side looks at our
/// certificate after our handshake is done, so what it says of it comes with the first answer that is read,
/// or in the middle of a request.
pub(crate) fn distrust(error: &(dyn Error + 'static)) -> Option<PermanentError> {
    let tls = find::<rustls::Error>(error)?;
    match tls {
        rustls::Error::InvalidCertificate(_)
        | rustls::Error::AlertReceived(
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::DecryptError
            | Alert::AccessDenied
            | Alert::ProtocolVersion
            | Alert::CertificateRequired,
        ) => Some(PermanentError::Distrust(tls.clone())),
        _ => None,
    }
}

/// An error of the connection, with distrust told apart.
fn told(error: HttpError) -> HttpError {
    match distrust(&error) {
        Some(refusal) => HttpError::new(HttpErrorKind::Unknown, refusal),
        None => error,
    }
}

/// Makes clients that tell refusals, and whose patience ends.
#[derive(Debug)]
pub(crate) struct Connector {
    /// When it ends.
    pub patience: Patience,
    /// What locks what is put.
    pub locker: Option<Arc<Locker>>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        let Self { patience, locker } = self;
        let teller = Teller { client, patience: *patience, locker: locker.clone() };
        Ok(HttpClient::new(teller))
    }
}

#[derive(Debug)]
struct Teller {
    client: HttpClient,
    patience: Patience,
    locker: Option<Arc<Locker>>,
}

#[async_trait]
impl HttpService for Teller {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let Self { client, patience, locker } = self;
        let request = match locker {
            Some(locker) => locker.locked(request).await?,
            None => request,
        };
        let sent = request.body().content_length() as u64;
        let (roots, method) = (expected(&request), request.method().clone());
        let response = patience.answer(sent, client.execute(request)).await.map_err(told)?;
        let status = response.status().as_u16();
        let response = match roots.is_empty() {
            false => patience.page(response).await?,
            true => response.map(|body| patience.body(body)),
        };
        if (200..300).contains(&status) && !roots.is_empty() {
            return as_expected(response, roots).await;
        }
        // Whether a name is free is what one asks for most: without a body it can be nothing else.
        let may_be_its_bucket = status == 404 && method == Method::GET;
        if !(may_be_its_bucket || is_final(status, &method)) {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let body = body.bytes().await?;
        let text = String::from_utf8_lossy(&body[..body.len().min(BODY_BYTES_MAX)]).into_owned();
        let code = between(&text, "<Code>", "</Code>");
        if !is_final(status, &method) && !matches!(code, Some("NoSuchBucket" | "ContainerNotFound"))
        {
            return Ok(HttpResponse::from_parts(head, body.into()));
        }
        // S3 calls a client that was too slow a bad request; that passes.
        let kind = match code {
            Some("RequestTimeout" | "OperationAborted") => HttpErrorKind::Request,
            _ => HttpErrorKind::Unknown,
        };
        let said = match (code, between(&text, "<Message>", "</Message>")) {
            (Some(code), Some(message)) if !message.is_empty() => format!("{code}, {message}"),
            (Some(code), _) => code.to_owned(),
            _ => text.split_whitespace().take(20).collect::<Vec<_>>().join(" "),
        };
        match kind {
            HttpErrorKind::Request => Err(HttpError::new(kind, std::io::Error::other(said))),
            kind => Err(HttpError::new(kind, PermanentError::Answer { status, said })),
        }
    }
}

/// An answer whose body is what was asked for; any other one is asked for again.
async fn as_expected(
    response: HttpResponse,
    roots: &'static [&'static str],
) -> Result<HttpResponse, HttpError> {
    let (head, body) = response.into_parts();
    let body = body.bytes().await?;
    match not_expected(&body, roots) {
        None => Ok(HttpResponse::from_parts(head, body.into())),
        Some(what) => {
            let what = format!("HTTP {}, and the answer is {what}", head.status.as_u16());
            Err(HttpError::new(HttpErrorKind::Request, std::io::Error::other(what)))
        }
    }
}

/// Whether an immediate second try will end the same, and the answer says nothing about the object asked for.
fn is_final(status: u16, method: &Method) -> bool {
    match status {
        // What is put cannot be "not there": its bucket is, or its upload.
        404 => matches!(*method, Method::PUT | Method::POST),
        // Not modified; timed out, conflict, precondition, range, too many requests.
        304 | 408 | 409 | 412 | 416 | 429 => false,
        // What a server will never be able to do.
        501 | 505 | 507 => true,
        status => (300..500).contains(&status),
    }
}

/// What is between two marks.
pub(super) fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let rest = &text[text.find(from)? + from.len()..];
    rest.get(..rest.find(to)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        for passes in [200, 206, 304, 404, 408, 409, 412, 416, 429, 500, 502, 503, 504] {
            assert!(!is_final(passes, &Method::GET), "{passes}");
        }
        for refused in [300, 301, 307, 400, 401, 403, 405, 411, 413, 414, 431, 501, 507] {
            assert!(is_final(refused, &Method::HEAD), "{refused}");
        }
        assert!(is_final(404, &Method::PUT) && is_final(404, &Method::POST));
        assert!(!is_final(404, &Method::DELETE), "deleted already");
    }

    /// The codes that mattered in use name what a person has to mend.
    #[test]
    fn codes_say_what_to_mend() {
        let shown =
            |status, said: &str| PermanentError::Answer { status, said: said.into() }.to_string();
        for (status, code, mend) in [
            (403, "RequestTimeTooSkewed", "clock"),
            (400, "ExpiredToken", "expired"),
            (404, "NoSuchBucket", "no such bucket or container"),
            (301, "PermanentRedirect", "region"),
            (403, "InvalidAccessKeyId", "credentials_file"),
        ] {
            let text = shown(status, &format!("{code}, its words"));
            assert!(text.contains(code) && text.contains("its words"), "{text}");
            assert!(text.contains(mend), "{text}");
        }
        assert!(is_full(403, "QuotaExceeded, no more") && is_full(507, "") && !is_full(403, "x"));
    }

    #[test]
    fn a_refusal_is_found_and_short() {
        let refused = PermanentError::Answer { status: 400, said: "InvalidBucketName".into() };
        let error = object_store::Error::Generic {
            store: "S3",
            source: Box::new(HttpError::new(HttpErrorKind::Unknown, refused.clone())),
        };
        assert_eq!(refusal(&error), Some(&refused));
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let of_tls = std::io::Error::other(std::io::Error::other(unknown.clone()));
        let error = told(HttpError::new(HttpErrorKind::Connect, of_tls));
        assert_eq!(refusal(&error), Some(&PermanentError::Distrust(unknown)));
        // A connection that breaks may work the next time.
        let broken = std::io::Error::other(rustls::Error::DecryptError);
        assert_eq!(refusal(&told(HttpError::new(HttpErrorKind::Connect, broken))), None);
        assert_eq!(between("<a><Code>X</Code>", "<Code>", "</Code>"), Some("X"));
        assert_eq!(between("</Code><Code>", "<Code>", "</Code>"), None);
    }
}
