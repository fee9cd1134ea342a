//! A limit on silence that costs next to nothing while things move: the timer is armed once, and only when it fires is it
//! compared with the time of the last movement.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

pub(crate) struct IdleTimer {
    limit: Duration,
    last: Instant,
    // Made at the first wait: most exchanges never wait long enough to need it.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl IdleTimer {
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            last: Instant::now(),
            sleep: None,
        }
    }

    /// Something moved.
    pub(crate) fn touch(&mut self) {
        self.last = Instant::now();
    }

    /// Another limit from now on.
    pub(crate) fn set_limit(&mut self, limit: Duration) {
        self.last = Instant::now();
        if limit < self.limit {
            self.sleep = None;
        }
        self.limit = limit;
    }

    /// Ready when nothing moved for the limit.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (last, limit) = (self.last, self.limit);
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(last + limit)));
        while sleep.as_mut().poll(cx).is_ready() {
            if last.elapsed() >= limit {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(last + limit);
        }
        Poll::Pending
    }
}
