//! What stalled readers make this worker keep in memory, and who has to go when it is too much. A stream's flow-control window
//! bounds each, the windows of a connection are wide open (or a few stalled streams would block all others on a link), so
//! the sum is bounded here: above the budget, streams that have been stalled for some time are given up.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Bytes that the stalled streams of one worker may hold together. 256 MiB: as many as 256 stalled streams of a full window.
const BUDGET: usize = 256 << 20;
/// A stream that moved nothing for this long is stalled for good as far as memory is concerned. 5 s outlasts a lost packet's
/// retransmissions and a garbage collection's pause.
const STALLED: Duration = Duration::from_secs(5);

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// One stream's part.
#[derive(Default)]
pub(crate) struct Held(usize);

impl Held {
    pub(crate) fn set(&mut self, bytes: usize) {
        HELD.with(|held| held.set(held.get() - self.0 + bytes));
        self.0 = bytes;
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Watches one stream while its reader does not take anything.
#[derive(Default)]
pub(crate) struct Stall {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    /// The reader took something.
    pub(crate) fn moved(&mut self) {
        self.sleep = None;
    }

    /// Ready when the stream has to go.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALLED)));
        while sleep.as_mut().poll(cx).is_ready() {
            if HELD.with(Cell::get) > BUDGET {
                crate::metrics::limit_reached("buffered_bytes");
                return Poll::Ready(());
            }
            sleep.as_mut().reset(Instant::now() + Duration::from_secs(1));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn only_the_stalled_go_and_only_above_the_budget() {
        let (mut mine, mut others) = (Held::default(), Held::default());
        mine.set(1 << 20);
        let mut stall = Stall::default();
        let waited = tokio::time::timeout(Duration::from_secs(60), poll_fn(|cx| stall.poll(cx))).await;
        assert!(waited.is_err(), "stalled, but there is room");
        others.set(BUDGET);
        let started = Instant::now();
        poll_fn(|cx| stall.poll(cx)).await;
        assert!(started.elapsed() <= Duration::from_secs(1));
        stall.moved();
        let started = Instant::now();
        poll_fn(|cx| stall.poll(cx)).await;
        assert!(started.elapsed() >= STALLED, "one that moves has its time again");
        drop(others);
        mine.set(0);
        assert_eq!(HELD.with(Cell::get), 0);
    }
}
