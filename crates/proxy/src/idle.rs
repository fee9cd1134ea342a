//! A limit on silence that costs next to nothing while things move: a movement only sets a mark, and the clock is looked at
//! when the timer fires. The price: silence is noticed after between once and twice the limit.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

pub(crate) struct IdleTimer {
    limit: Duration,
    moved: bool,
    // Made at the first wait and kept, so that a connection arms it once and not for each request.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl IdleTimer {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, moved: false, sleep: None }
    }

    /// Something moved.
    pub(crate) fn touch(&mut self) {
        self.moved = true;
    }

    /// Another limit. A shorter one runs exactly from now on.
    pub(crate) fn set_limit(&mut self, limit: Duration) {
        if limit < self.limit {
            self.sleep = None;
        }
        self.moved = self.sleep.is_some();
        self.limit = limit;
    }

    /// Ready when nothing moved for the limit.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        while sleep.as_mut().poll(cx).is_ready() {
            if !std::mem::take(&mut self.moved) {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(Instant::now() + limit);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn silence_is_noticed_and_movement_puts_it_off() {
        let started = Instant::now();
        let mut timer = IdleTimer::new(Duration::from_secs(10));
        poll_fn(|cx| timer.poll_expired(cx)).await;
        assert_eq!(started.elapsed().as_secs(), 10);

        let started = Instant::now();
        let mut timer = IdleTimer::new(Duration::from_secs(10));
        assert!(poll_fn(|cx| Poll::Ready(timer.poll_expired(cx))).await.is_pending());
        timer.touch();
        poll_fn(|cx| timer.poll_expired(cx)).await;
        assert_eq!(started.elapsed().as_secs(), 20, "moved within the first limit, silent in the second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_limit_runs_from_when_it_is_set() {
        let mut timer = IdleTimer::new(Duration::from_secs(3600));
        assert!(poll_fn(|cx| Poll::Ready(timer.poll_expired(cx))).await.is_pending());
        tokio::time::advance(Duration::from_secs(100)).await;
        timer.set_limit(Duration::from_secs(10));
        let started = Instant::now();
        poll_fn(|cx| timer.poll_expired(cx)).await;
        assert_eq!(started.elapsed().as_secs(), 10);
        timer.set_limit(Duration::from_secs(3600));
        let started = Instant::now();
        poll_fn(|cx| timer.poll_expired(cx)).await;
        assert_eq!(started.elapsed().as_secs(), 3600, "and a longer one from there again");
    }
}
