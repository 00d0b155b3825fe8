//! Answers that no second try will change, told by type.
//!
//! The client library keeps apart what is not there, taken or forbidden, and tries again what is the
//! server's fault. Everything else (a malformed name, the wrong region, a method the store does not know)
//! it calls generic, as it does a broken connection. Here such an answer becomes a [`Refusal`] where it
//! arrives, so that whoever waits for it to pass does not wait for ever. So does a certificate that is not
//! trusted, which the library takes for a broken connection, too.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use rustls::AlertDescription as Alert;

use super::lock::Locker;
use super::patience::{Patience, asks_for_page};

/// Most bytes of an answer that are looked at.
const BODY_BYTES_MAX: usize = 16 << 10;

/// What no second try will change.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Refusal {
    /// A store's answer to a request that it will never carry out.
    Answer {
        /// The HTTP status.
        status: u16,
        /// The store's own words.
        said: String,
    },
    /// We do not trust the other side's certificate, or it does not trust ours.
    Distrust(rustls::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer { status, said } => {
                let hint = match status {
                    301 | 307 | 308 => "; is the region or the endpoint right?",
                    _ => "",
                };
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

impl Error for Refusal {}

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
pub(crate) fn refusal<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Refusal> {
    find(error)
}

/// Distrust of either side at the bottom of an error of a connection. In TLS 1.3 the other side looks at our
/// certificate after our handshake is done, so what it says of it comes with the first answer that is read,
/// or in the middle of a request.
pub(crate) fn distrust(error: &(dyn Error + 'static)) -> Option<Refusal> {
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
        ) => Some(Refusal::Distrust(tls.clone())),
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
        let page = asks_for_page(&request);
        let response = patience.answer(sent, client.execute(request)).await.map_err(told)?;
        let response = match page {
            true => patience.page(response).await?,
            false => response.map(|body| patience.body(body)),
        };
        let status = response.status().as_u16();
        if !is_final(status) {
            return Ok(response);
        }
        let body = response.into_body().bytes().await?;
        let text = String::from_utf8_lossy(&body[..body.len().min(BODY_BYTES_MAX)]).into_owned();
        let code = between(&text, "<Code>", "</Code>");
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
            kind => Err(HttpError::new(kind, Refusal::Answer { status, said })),
        }
    }
}

/// Whether the library has no word of its own for a status, and another try will end the same.
fn is_final(status: u16) -> bool {
    match status {
        // Not modified; unauthenticated, forbidden, not there, timed out, conflict, precondition,
        // range, too many requests.
        304 | 401 | 403 | 404 | 408 | 409 | 412 | 416 | 429 => false,
        // What a server will never be able to do.
        501 | 505 => true,
        status => (300..500).contains(&status),
    }
}

/// What is between two marks.
fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let rest = &text[text.find(from)? + from.len()..];
    rest.get(..rest.find(to)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        for passes in [200, 206, 304, 401, 403, 404, 408, 409, 412, 416, 429, 500, 502, 503, 504] {
            assert!(!is_final(passes), "{passes}");
        }
        for refused in [300, 301, 307, 400, 405, 411, 413, 414, 431, 501] {
            assert!(is_final(refused), "{refused}");
        }
    }

    #[test]
    fn a_refusal_is_found_and_short() {
        let refused = Refusal::Answer { status: 400, said: "InvalidBucketName".into() };
        let error = object_store::Error::Generic {
            store: "S3",
            source: Box::new(HttpError::new(HttpErrorKind::Unknown, refused.clone())),
        };
        assert_eq!(refusal(&error), Some(&refused));
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let of_tls = std::io::Error::other(std::io::Error::other(unknown.clone()));
        let error = told(HttpError::new(HttpErrorKind::Connect, of_tls));
        assert_eq!(refusal(&error), Some(&Refusal::Distrust(unknown)));
        // A connection that breaks may work the next time.
        let broken = std::io::Error::other(rustls::Error::DecryptError);
        assert_eq!(refusal(&told(HttpError::new(HttpErrorKind::Connect, broken))), None);
        assert_eq!(between("<a><Code>X</Code>", "<Code>", "</Code>"), Some("X"));
        assert_eq!(between("</Code><Code>", "<Code>", "</Code>"), None);
    }
}
