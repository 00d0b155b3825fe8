//! Answers that no second try will change, told by type.
//!
//! The client library keeps apart what is not there, taken or forbidden, and tries again what is the
//! server's fault. Everything else (a malformed name, the wrong region, a method the store does not know)
//! it calls generic, as it does a broken connection. Here such an answer becomes a [`Refusal`] where it
//! arrives, so that whoever waits for it to pass does not wait for ever.

use std::fmt;

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

/// Most bytes of an answer that are looked at.
const BODY_BYTES_MAX: usize = 16 << 10;

/// A store's answer to a request that it will never carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The store's own words.
    pub said: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = match self.status {
            301 | 307 | 308 => "; is the region or the endpoint right?",
            _ => "",
        };
        write!(f, "the store refuses this request (HTTP {}: {}){hint}", self.status, self.said)
    }
}

impl std::error::Error for Refusal {}

/// The refusal at the bottom of an error.
pub(crate) fn refusal<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Refusal> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(refusal) = error.downcast_ref() {
            return Some(refusal);
        }
        next = error.source();
    }
    None
}

/// Makes clients that tell refusals.
#[derive(Debug)]
pub(crate) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Teller(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Teller(HttpClient);

#[async_trait]
impl HttpService for Teller {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.0.execute(request).await?;
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
            kind => Err(HttpError::new(kind, Refusal { status, said })),
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
        let refused = Refusal { status: 400, said: "InvalidBucketName".into() };
        let error = object_store::Error::Generic {
            store: "S3",
            source: Box::new(HttpError::new(HttpErrorKind::Unknown, refused.clone())),
        };
        assert_eq!(refusal(&error), Some(&refused));
        assert_eq!(between("<a><Code>X</Code>", "<Code>", "</Code>"), Some("X"));
        assert_eq!(between("</Code><Code>", "<Code>", "</Code>"), None);
    }
}
