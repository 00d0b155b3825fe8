//! A store that does not answer. What does not need it is not to wait for it: segments are taken into the cache
//! all the same, until it is full.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

/// How long a store may take to answer what can be done without.
const LOOKS: Duration = Duration::from_secs(2);
/// How long it is not asked again after that.
const LEFT_ALONE: Duration = Duration::from_secs(10);

/// Until when the store is not asked.
#[derive(Debug, Default)]
pub(super) struct Away(Mutex<Option<Instant>>);

impl Away {
    /// Asks the store; `None` if it does not answer, or has not just now.
    pub async fn look<T, E>(
        &self,
        ask: impl Future<Output = Result<T, E>>,
    ) -> Option<Result<T, E>> {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let answer = timeout(LOOKS, ask).await.ok();
        let until = answer.is_none().then(|| Instant::now() + LEFT_ALONE);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_left_alone_for_a_while() {
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        clock.block_on(async {
            let away = Away::default();
            assert_eq!(away.look(async { Ok::<_, ()>(1) }).await, Some(Ok(1)));
            assert_eq!(away.look(async { Err::<(), _>(2) }).await, Some(Err(2)), "it answers");
            assert_eq!(away.look(std::future::pending::<Result<(), ()>>()).await, None);
            assert_eq!(away.look(async { Ok::<_, ()>(1) }).await, None, "it is not asked");
            *away.0.lock().unwrap() = Some(Instant::now());
            assert_eq!(away.look(async { Ok::<_, ()>(1) }).await, Some(Ok(1)));
        });
    }
}
