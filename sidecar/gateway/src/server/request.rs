//! From method, path and headers to an answer.

use std::sync::Arc;

use backstay_vault::VaultError;
use backstay_vault::admission::NotTaken;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};
use serde_json::json;

use super::body::{Answer, BodyError, drain, empty, text, with};
use super::{Shared, get, list, put};
use crate::counters::add;
use crate::limits::Client;
use crate::owners::Ownership;
use crate::pki::{Disks, Identity};
use crate::rights::{Right, Verb, right};
use backstay_vault::format::key::{KEY_BYTES_MAX, ObjectKey, Piece};

/// Says that nothing failed: so many bytes of segments are on their way to the store.
pub(super) const WAIT_HEADER: &str = "backstay-wait";

/// Why a request was not done.
#[derive(Debug)]
pub(super) enum Refused {
    /// No such path, or not in this way.
    BadRequest(String),
    /// The certificate gives no right to it.
    Forbidden(String),
    /// There is no such object.
    NotFound,
    /// It is there already, or too late.
    Taken(String),
    /// It is not what it should be.
    Wrong(String),
    /// It is longer than it may be.
    TooLong,
    /// Too many requests.
    TooMany,
    /// The body does not come.
    Slow,
    /// The segments of a point are on their way.
    Wait(u64),
    /// The store cannot be reached, is full, or fails.
    Store(String),
}

impl From<VaultError> for Refused {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::NotFound { .. } => Self::NotFound,
            VaultError::Store { source: object_store::Error::AlreadyExists { .. }, object } => {
                Self::Taken(format!("{object} is there already"))
            }
            e @ (VaultError::Damaged { .. } | VaultError::Inconsistent { .. }) => {
                Self::Wrong(e.to_string())
            }
            // Its sender may not sign, or no more: sent again, it is the same.
            e @ VaultError::Forged { .. } => Self::Forbidden(e.to_string()),
            e => Self::Store(e.to_string()),
        }
    }
}

impl From<NotTaken> for Refused {
    fn from(not_taken: NotTaken) -> Self {
        match not_taken {
            NotTaken::Late(reason) => Self::Taken(reason),
            NotTaken::Wrong(reason) => Self::Wrong(reason),
            // What it needs is not there: it will not be by itself.
            NotTaken::Vault(VaultError::NotFound { object }) => {
                Self::Wrong(format!("{object} is not there"))
            }
            NotTaken::Vault(e) => e.into(),
        }
    }
}

impl From<object_store::Error> for Refused {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => Self::NotFound,
            e => Self::Store(e.to_string()),
        }
    }
}

impl From<BodyError> for Refused {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLong => Self::TooLong,
            BodyError::Slow => Self::Slow,
            BodyError::Broken(reason) => Self::BadRequest(reason),
        }
    }
}

impl Refused {
    fn answer(self) -> Answer {
        use StatusCode as S;
        match self {
            Self::BadRequest(reason) => text(S::BAD_REQUEST, reason),
            Self::Forbidden(reason) => text(S::FORBIDDEN, reason),
            Self::NotFound => text(S::NOT_FOUND, "it is not there"),
            Self::Taken(reason) => text(S::CONFLICT, reason),
            Self::Wrong(reason) => text(S::UNPROCESSABLE_ENTITY, reason),
            Self::TooLong => text(S::PAYLOAD_TOO_LARGE, "it is longer than it may be"),
            Self::TooMany => {
                let mut answer =
                    text(S::TOO_MANY_REQUESTS, "too many requests of this certificate");
                answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                answer
            }
            Self::Slow => text(S::REQUEST_TIMEOUT, "timed out reading the request body"),
            Self::Wait(bytes) => {
                let reason = format!("{bytes} bytes of its segments are on their way to the store");
                let mut answer = text(S::SERVICE_UNAVAILABLE, reason);
                answer.headers_mut().insert(WAIT_HEADER, HeaderValue::from(bytes));
                answer
            }
            Self::Store(reason) => text(S::BAD_GATEWAY, reason),
        }
    }
}

/// What a request is answered with.
pub(super) struct Asked {
    pub shared: Arc<Shared>,
    pub who: Arc<Identity>,
    pub client: Arc<Client>,
}

/// Answers a request.
pub(super) async fn answer(
    shared: Arc<Shared>,
    who: Arc<Identity>,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Answer {
    add(&shared.counters.requests_total, 1);
    let asked = Asked { shared, who, client };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match asked.route(request).await {
        Ok(answer) => answer,
        Err(refused) => {
            let counters = &asked.shared.counters;
            match &refused {
                Refused::Forbidden(_) => add(&counters.refused_total, 1),
                Refused::TooMany => add(&counters.throttled_total, 1),
                Refused::Wrong(_) => add(&counters.wrong_total, 1),
                _ => {}
            }
            match &refused {
                Refused::Forbidden(why) | Refused::Wrong(why) => {
                    tracing::warn!("{}: {method} {}: {why}", asked.who.name, shown(&path));
                }
                refused => {
                    tracing::debug!("{}: {method} {}: {refused:?}", asked.who.name, shown(&path));
                }
            }
            refused.answer()
        }
    }
}

/// A path as it can stand in a log.
fn shown(path: &str) -> String {
    path.chars().take(KEY_BYTES_MAX).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}

impl Asked {
    async fn route(&self, request: Request<Incoming>) -> Result<Answer, Refused> {
        let Self { shared, who, client } = self;
        let refused = match () {
            () if !shared.tls.still_believes(who) => {
                Some(Refused::Forbidden("the certificate is revoked or has run out".into()))
            }
            () if !client.request() => Some(Refused::TooMany),
            () => None,
        };
        if let Some(refused) = refused {
            drain(shared, request.into_body()).await;
            return Err(refused);
        }
        let path = request.uri().path().to_owned();
        if let Some(key) = path.strip_prefix("/v1/objects/") {
            return self.object(key, request).await;
        }
        match (request.method(), path.as_str()) {
            (&Method::GET, "/v1/list") => {
                list::list(self, request.uri().query().unwrap_or("")).await
            }
            (&Method::GET, "/v1/whoami") => {
                let disks: Vec<String> = match &who.disks {
                    Disks::All => vec!["*".into()],
                    Disks::Named(names) => names.iter().map(ToString::to_string).collect(),
                };
                let answer = json!({
                    "gateway": env!("CARGO_PKG_VERSION"),
                    "name": who.name.as_str(),
                    "role": who.role,
                    "disks": disks,
                });
                Ok(with(StatusCode::OK, "application/json", answer.to_string().into()))
            }
            _ => {
                drain(shared, request.into_body()).await;
                Err(Refused::BadRequest(
                    "a gateway has /v1/objects/, /v1/list and /v1/whoami".into(),
                ))
            }
        }
    }

    async fn object(&self, key: &str, request: Request<Incoming>) -> Result<Answer, Refused> {
        let allowed = self.allowed(key, request.method()).await;
        let (key, verb, right) = match allowed {
            Ok(allowed) => allowed,
            Err(refused) => {
                drain(&self.shared, request.into_body()).await;
                return Err(refused);
            }
        };
        match verb {
            Verb::Get => get::get(self, &key, right, &request).await,
            Verb::Put => put::put(self, key, request).await,
            Verb::Delete => {
                let shared = Arc::clone(&self.shared);
                blocking(move || Ok(shared.vault.delete_object(&key)?)).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
        }
    }

    /// What a request means, if the certificate lets it through.
    async fn allowed(
        &self,
        key: &str,
        method: &Method,
    ) -> Result<(ObjectKey, Verb, Right), Refused> {
        let verb = match *method {
            Method::GET | Method::HEAD => Verb::Get,
            Method::PUT => Verb::Put,
            Method::DELETE => Verb::Delete,
            _ => return Err(Refused::BadRequest("GET, HEAD, PUT and DELETE".into())),
        };
        let parsed = ObjectKey::parse(key);
        let key = parsed.ok_or_else(|| Refused::BadRequest("that is no key of a vault".into()))?;
        let right = right(self.who.role, verb, &key);
        if right == Right::No {
            let reason = format!("a {} has no right to {verb:?} this", self.who.role);
            return Err(Refused::Forbidden(reason));
        }
        self.theirs(verb, &key).await?;
        Ok((key, verb, right))
    }

    /// Whether an object is one of the certificate's.
    async fn theirs(&self, verb: Verb, key: &ObjectKey) -> Result<(), Refused> {
        let no = || Refused::Forbidden("the certificate does not name this disk".into());
        match key {
            ObjectKey::Name(name, _) => match self.who.disks.has(name) {
                true => Ok(()),
                false => Err(no()),
            },
            ObjectKey::Disk(disk, Piece::Segment { .. }) if verb == Verb::Put => {
                match self.standing_or_before(*disk).await? {
                    Ownership::Own => Ok(()),
                    _ => Err(no()),
                }
            }
            ObjectKey::Disk(disk, piece) => match (self.standing(*disk).await?, verb) {
                (Ownership::Own, _) => Ok(()),
                (Ownership::Others, _) => Err(no()),
                (Ownership::Begun, Verb::Put) if *piece == Piece::Record => Ok(()),
                (Ownership::Unknown, Verb::Put)
                    if *piece == Piece::Record && self.who.disks == Disks::All =>
                {
                    Ok(())
                }
                (Ownership::Begun | Ownership::Unknown, Verb::Get) => Err(Refused::NotFound),
                (Ownership::Begun | Ownership::Unknown, _) => Err(no()),
            },
            ObjectKey::Vault
            | ObjectKey::Keyring(_)
            | ObjectKey::KeyNote(..)
            | ObjectKey::Proof(..)
            | ObjectKey::GroupPoint(..)
            | ObjectKey::Probe(_) => Ok(()),
        }
    }

    /// As [`Self::standing`], but while the store does not answer what it said before counts.
    async fn standing_or_before(&self, disk: backstay_types::DiskId) -> Result<Ownership, Refused> {
        if !self.shared.owners.was_own(&self.who, disk) {
            return self.standing(disk).await;
        }
        match self.shared.away.look(self.standing(disk)).await {
            None | Some(Err(Refused::Store(_))) => Ok(Ownership::Own),
            Some(standing) => standing,
        }
    }

    pub(super) async fn standing(
        &self,
        disk: backstay_types::DiskId,
    ) -> Result<Ownership, Refused> {
        let (shared, who) = (Arc::clone(&self.shared), Arc::clone(&self.who));
        blocking(move || Ok(shared.owners.standing(&shared.vault, &who, disk)?)).await
    }
}

/// Does what blocks on a thread that may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(Refused::Store(format!("the gateway failed: {e}"))),
    }
}
