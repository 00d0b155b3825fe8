//! What a gateway's answer means to a vault.

use object_store::Error;
use reqwest::{Response, StatusCode};

use crate::remote::permanent_error::{PermanentError, distrust};

/// The name of this store in errors.
pub(super) const STORE: &str = "gateway";
/// Says that this is no failure: segments are on their way to the store. Its value is how many bytes.
pub(super) const WAIT_HEADER: &str = "backstay-wait";
/// Most bytes of an error's text that are looked at.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// What became of a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// It was done.
    Done(Response),
    /// Not yet; so many bytes are to be moved before.
    Wait(u64),
    /// It may pass.
    Again(Error),
    /// Another try ends the same.
    Final(Error),
}

/// An error that may pass.
pub(super) fn passing(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: STORE, source: reason.into() }
}

/// A connection that broke. A certificate that is not believed looks the same, and is no passing trouble. If
/// the connection breaks before that is heard, the next try hears it.
pub(super) fn broken(error: reqwest::Error) -> Answer {
    match distrust(&error) {
        Some(refusal) => Answer::Final(refused(refusal)),
        None => Answer::Again(passing(error.without_url())),
    }
}

/// An error that no second try will change.
fn refused(refusal: PermanentError) -> Error {
    Error::Generic { store: STORE, source: Box::new(refusal) }
}

/// Sorts what came of a request.
pub(super) async fn sort(key: &str, sent: reqwest::Result<Response>) -> Answer {
    let mut response = match sent {
        Ok(response) => response,
        Err(e) => return broken(e),
    };
    let status = response.status();
    if status.is_success() {
        return Answer::Done(response);
    }
    let header = response.headers().get(WAIT_HEADER);
    let wait = header.and_then(|value| value.to_str().ok()?.parse().ok());
    if let (StatusCode::SERVICE_UNAVAILABLE, Some(bytes)) = (status, wait) {
        return Answer::Wait(bytes);
    }
    let said = text(&mut response).await;
    let path = || key.to_owned();
    let because = || std::io::Error::other(said.clone()).into();
    match status {
        StatusCode::NOT_FOUND => Answer::Final(Error::NotFound { path: path(), source: because() }),
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => {
            Answer::Final(Error::AlreadyExists { path: path(), source: because() })
        }
        // What arrived is not what was sent: the next cycle sends it again.
        StatusCode::UNPROCESSABLE_ENTITY => Answer::Final(passing(said)),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Answer::Again(passing(said)),
        status if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {
            Answer::Again(passing(format!("the gateway answers {status}: {said}")))
        }
        status => Answer::Final(refused(PermanentError::Answer { status: status.as_u16(), said })),
    }
}

/// The beginning of an answer's text, in one line that can be shown.
async fn text(response: &mut Response) -> String {
    let mut bytes = vec![];
    while let Ok(Some(some)) = response.chunk().await {
        bytes.extend_from_slice(&some[..some.len().min(TEXT_BYTES_MAX - bytes.len())]);
        if bytes.len() >= TEXT_BYTES_MAX {
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    shown.collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ")
}
