//! The only timer of a connection.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is re-armed only when it fires too early. Most deadlines of a connection are met, and a later one
/// follows, so most requests never touch the runtime's timer.
#[derive(Default)]
pub struct Deadline(Option<Pin<Box<Sleep>>>);

impl Deadline {
    /// Ready once `at` has passed.
    pub fn poll(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        ready!(sleep.as_mut().poll(cx));
        if sleep.deadline() < at {
            sleep.as_mut().reset(at);
            ready!(sleep.as_mut().poll(cx));
        }
        Poll::Ready(())
    }

    /// The result of `poll`, or `None` after the time `at`. `at` is called only if `poll` is not ready at once.
    pub async fn limit<T>(
        &mut self,
        at: impl FnOnce() -> Instant,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Option<T> {
        let mut compute = Some(at);
        let mut at = None;
        poll_fn(|cx| {
            if let Poll::Ready(value) = poll(cx) {
                return Poll::Ready(Some(value));
            }
            if let Some(compute) = compute.take() {
                at = Some(compute());
            }
            at.map_or(Poll::Pending, |at| self.poll(at, cx).map(|()| None))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[actix_web::test]
    async fn a_deadline_that_is_moved_is_kept() {
        let start = Instant::now();
        let mut deadline = Deadline::default();
        let ms = Duration::from_millis;
        assert_eq!(deadline.limit(|| start + ms(20), |_| Poll::<()>::Pending).await, None);
        assert!(start.elapsed() >= ms(20));
        // armed, then moved to a later time, which a busy machine must not reach before the first poll
        let start = Instant::now();
        assert!(futures::poll!(poll_fn(|cx| deadline.poll(start + ms(2_000), cx))).is_pending());
        poll_fn(|cx| deadline.poll(start + ms(2_040), cx)).await;
        assert!(start.elapsed() >= ms(2_040));
        // armed for a day, then needed sooner
        let far = Instant::now() + Duration::from_secs(86_400);
        assert!(futures::poll!(poll_fn(|cx| deadline.poll(far, cx))).is_pending());
        assert_eq!(deadline.limit(|| Instant::now() + ms(20), |_| Poll::<()>::Pending).await, None);
        assert_eq!(deadline.limit(|| far, |_| Poll::Ready(7)).await, Some(7));
    }
}
