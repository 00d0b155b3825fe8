//! How long a request may take.
//!
//! An answer has to begin within the time-out after all that goes up is up; how long that takes depends on its length,
//! so a part of some MiB gets more time than a small object: as much as the slowest line that is put up with needs
//! for it. From then on the body has to come at least that fast, looked at once in each time-out: an answer that
//! stands still ends, and so does one that trickles and would not end for days.
//!
//! What is given up here is told as a time-out, so that the library sends it again, and reads on where a body broke
//! off. It does not do so for lists: a page of one is read here to its end, so that one that breaks off, stands
//! still or trickles is to the library an answer that did not come, and is asked for again.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use object_store::client::{HttpError, HttpErrorKind, HttpResponse, HttpResponseBody};
use tokio::time::{Instant, Sleep, sleep};

/// Longest page of a list: thousands of keys, each of at most 1 KiB and what stores say of it.
const PAGE_BYTES_MAX: usize = 32 << 20;

/// How long one waits for a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For an answer, and between looks at how its body comes.
    pub timeout: Duration,
    /// The least that counts as coming, in bytes a second.
    pub slowest: u64,
}

impl Patience {
    /// How long until an answer begins, to a request with that many bytes.
    pub fn until_answer(self, request_bytes: u64) -> Duration {
        self.timeout + Duration::from_secs_f64(request_bytes as f64 / self.slowest.max(1) as f64)
    }

    /// The least bytes that come in a time-out.
    fn least(self) -> u64 {
        (self.timeout.as_secs_f64() * self.slowest as f64) as u64
    }

    /// Waits for the answer to a request with that many bytes.
    pub async fn answer<T>(
        self,
        request_bytes: u64,
        answer: impl Future<Output = Result<T, HttpError>>,
    ) -> Result<T, HttpError> {
        let most = self.until_answer(request_bytes);
        let answered = tokio::time::timeout(most, answer).await;
        answered.unwrap_or_else(|_| Err(timed_out(format!("no answer in {}", shown(most)))))
    }

    /// The body of an answer, as long as it comes fast enough.
    pub fn body(self, body: HttpResponseBody) -> HttpResponseBody {
        HttpResponseBody::new(Watched {
            body,
            patience: self,
            came: 0,
            look: Box::pin(sleep(self.timeout)),
        })
    }

    /// A page of a list with all of its body, which has to come.
    pub async fn page(self, answer: HttpResponse) -> Result<HttpResponse, HttpError> {
        let (head, body) = answer.into_parts();
        let (mut body, mut all) = (self.body(body), vec![]);
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let frame = frame.map_err(|e| match e.kind() {
                HttpErrorKind::Timeout => e,
                // Asking again does no harm.
                _ => HttpError::new(HttpErrorKind::Interrupted, e),
            })?;
            all.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if all.len() > PAGE_BYTES_MAX {
                let what = format!("a page of a list is longer than {PAGE_BYTES_MAX} bytes");
                return Err(HttpError::new(HttpErrorKind::Unknown, io::Error::other(what)));
            }
        }
        Ok(HttpResponse::from_parts(head, Bytes::from(all).into()))
    }
}

fn shown(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(time.as_millis() as u64))
}

fn timed_out(what: String) -> HttpError {
    HttpError::new(HttpErrorKind::Timeout, io::Error::new(io::ErrorKind::TimedOut, what))
}

/// A body that has to come.
struct Watched {
    body: HttpResponseBody,
    patience: Patience,
    /// Bytes since the last look.
    came: u64,
    look: Pin<Box<Sleep>>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            if let Some(Ok(frame)) = &frame {
                self.came += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            return Poll::Ready(frame);
        }
        // Only while nothing is there: a reader that takes its time is not the store's fault.
        while self.look.as_mut().poll(cx).is_ready() {
            let Patience { timeout, .. } = self.patience;
            if self.came < self.patience.least().max(1) {
                let came = format!("{} bytes of an answer in {}", self.came, shown(timeout));
                return Poll::Ready(Some(Err(timed_out(came))));
            }
            self.came = 0;
            self.look.as_mut().reset(Instant::now() + timeout);
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body of pieces, one in each pause.
    struct Slow {
        piece: usize,
        left: usize,
        pause: Duration,
        next: Pin<Box<Sleep>>,
    }

    impl Body for Slow {
        type Data = Bytes;
        type Error = HttpError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
            if self.left == 0 {
                return Poll::Ready(None);
            }
            std::task::ready!(self.next.as_mut().poll(cx));
            let next = Instant::now() + self.pause;
            self.next.as_mut().reset(next);
            self.left -= 1;
            Poll::Ready(Some(Ok(Frame::data(vec![0; self.piece].into()))))
        }
    }

    /// Reads such a body to its end, with a time-out of 50 ms and 1000 bytes a second as the least.
    fn read(piece: usize, pieces: usize, pause_ms: u64) -> Result<usize, HttpErrorKind> {
        let patience = Patience { timeout: Duration::from_millis(50), slowest: 1000 };
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        clock.block_on(async {
            let pause = Duration::from_millis(pause_ms);
            let next = Box::pin(sleep(pause));
            let body = HttpResponseBody::new(Slow { piece, left: pieces, pause, next });
            let got = patience.body(body).bytes().await;
            got.map(|bytes| bytes.len()).map_err(|e| e.kind())
        })
    }

    #[test]
    fn a_body_that_trickles_or_stands_still_ends() {
        assert_eq!(read(1, 1000, 5), Err(HttpErrorKind::Timeout), "it trickles");
        assert_eq!(read(1, 1, 1_000_000), Err(HttpErrorKind::Timeout), "it stands still");
        assert_eq!(read(1100, 100, 3), Ok(110_000), "slow, and longer than any time-out");
    }

    #[test]
    fn a_page_comes_whole_or_not_at_all() {
        let page = |piece, pieces, pause_ms| {
            let patience = Patience { timeout: Duration::from_millis(50), slowest: 1000 };
            let clock =
                tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            clock.block_on(async {
                let pause = Duration::from_millis(pause_ms);
                let next = Box::pin(sleep(pause));
                let slow = Slow { piece, left: pieces, pause, next };
                let page = patience.page(HttpResponse::new(HttpResponseBody::new(slow))).await;
                let whole = page.map_err(|e| e.kind())?.into_body().bytes().await;
                whole.map(|bytes| bytes.len()).map_err(|e| e.kind())
            })
        };
        assert_eq!(page(1100, 10, 1), Ok(11_000));
        assert_eq!(page(1, 1000, 5), Err(HttpErrorKind::Timeout), "it trickles");
        assert_eq!(page(1 << 20, 40, 0), Err(HttpErrorKind::Unknown), "it has no end");
    }

    #[test]
    fn a_long_request_gets_more_time() {
        let patience = Patience { timeout: Duration::from_secs(120), slowest: 32 << 10 };
        assert_eq!(patience.until_answer(0).as_secs(), 120);
        assert_eq!(patience.until_answer(8 << 20).as_secs(), 120 + 256);
        // Nothing overflows.
        let none = Patience { timeout: Duration::ZERO, slowest: 0 };
        assert!(none.until_answer(1 << 40) > Duration::ZERO);
    }
}
