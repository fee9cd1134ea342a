//! One kind's watch as a state and one step: list page by page, then follow the changes. kube-runtime's watcher is not
//! used: it repeats a version for ever when the watch itself is answered 410, fails a whole page for one object of wrong
//! types, restarts with an empty list as readily as with a full one, and shows neither bookmarks nor its age.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Timing;
use super::api::{Api, Failure, Lines};
use super::feed::{Feed, Next, Seen};
use crate::status::{Board, Phase};

/// Where a watch is.
enum State {
    /// Asking for a page of the list.
    List { token: Option<String>, seen: Seen },
    /// Listed up to a version: asking for what changed since.
    Open { version: String },
    /// Following.
    Follow { version: String, lines: Lines, since: Instant, heard: bool },
}

impl State {
    fn list() -> Self {
        Self::List { token: None, seen: Seen::default() }
    }
}

/// See the module's text.
pub(crate) struct Watch {
    api: Api,
    feed: Arc<Feed>,
    board: Arc<Board>,
    timing: Timing,
    backoff: Backoff,
    /// Watches in a row that said nothing until they were given up.
    stalls: u32,
}

/// After this many silent watches in a row the list is asked for again: the server's own view may be stuck.
const STALLS: u32 = 2;

impl Watch {
    pub(crate) fn new(api: Api, feed: Arc<Feed>, board: Arc<Board>, timing: Timing) -> Self {
        let backoff = Backoff::new(timing);
        Self { api, feed, board, timing, backoff, stalls: 0 }
    }

    pub(crate) async fn run(mut self) {
        let mut state = State::list();
        loop {
            state = self.step(state).await;
        }
    }

    async fn step(&mut self, state: State) -> State {
        match state {
            State::List { token, seen } => self.list(token, seen).await,
            State::Open { version } => self.open(version).await,
            State::Follow { version, lines, since, heard } => self.follow(version, lines, since, heard).await,
        }
    }

    async fn list(&mut self, token: Option<String>, mut seen: Seen) -> State {
        let kind = self.api.kind();
        self.board.set_phase(kind, Phase::Listing);
        let next = match self.api.page(token.as_deref()).await {
            Ok(text) => self.feed.page(kind, &text, &mut seen),
            Err(failure) => Err(failure),
        };
        match next {
            Ok(Next::Page(token)) => {
                self.board.heard(kind);
                State::List { token: Some(token), seen }
            }
            Ok(Next::Complete(version)) => match self.feed.complete(kind, &seen) {
                Ok(()) => {
                    self.board.heard(kind);
                    self.board.listed(kind);
                    State::Open { version }
                }
                Err(failure) => {
                    self.failed(&failure).await;
                    State::list()
                }
            },
            // The token is of no use any more. A page that failed otherwise is asked for again, not the whole list.
            Err(failure @ Failure::Gone(_)) => {
                self.failed(&failure).await;
                State::list()
            }
            Err(failure @ (Failure::Unreachable(_) | Failure::Other(_))) => {
                self.failed(&failure).await;
                State::List { token, seen }
            }
        }
    }

    async fn open(&mut self, version: String) -> State {
        match self.api.watch(&version).await {
            Ok(lines) => {
                self.board.heard(self.api.kind());
                self.board.set_phase(self.api.kind(), Phase::Watching);
                State::Follow { version, lines, since: Instant::now(), heard: false }
            }
            Err(failure) => self.lost(&failure, version).await,
        }
    }

    async fn follow(&mut self, mut version: String, mut lines: Lines, since: Instant, heard: bool) -> State {
        let kind = self.api.kind();
        match timeout(self.timing.stall, lines.next()).await {
            Ok(Ok(Some(text))) => match self.feed.events(kind, &text, &mut version) {
                Ok(()) => {
                    self.board.heard(kind);
                    self.backoff.reset();
                    self.stalls = 0;
                    State::Follow { version, lines, since, heard: true }
                }
                Err(failure) => self.lost(&failure, version).await,
            },
            // The server ends a watch after its time. One that it ends at once, again and again, must not be a hot loop.
            Ok(Ok(None)) if heard || since.elapsed() >= self.timing.settled => {
                self.backoff.reset();
                State::Open { version }
            }
            Ok(Ok(None)) => self.lost(&Failure::Other("the server ended the watch at once".to_owned()), version).await,
            Ok(Err(failure)) => self.lost(&failure, version).await,
            Err(_) => {
                self.stalls += 1;
                let silence = format!("the watch was silent for {:?}, without even a bookmark", self.timing.stall);
                let failure = if self.stalls >= STALLS { Failure::Gone(silence) } else { Failure::Other(silence) };
                self.lost(&failure, version).await
            }
        }
    }

    /// A watch is lost: take it up again where it was or, when that place is no more, list anew.
    async fn lost(&mut self, failure: &Failure, version: String) -> State {
        self.failed(failure).await;
        match failure {
            Failure::Gone(_) => State::list(),
            Failure::Unreachable(_) | Failure::Other(_) => State::Open { version },
        }
    }

    async fn failed(&mut self, failure: &Failure) {
        self.board.failed(self.api.kind(), failure.text());
        let wait = match failure {
            Failure::Unreachable(_) => self.backoff.unreachable(),
            Failure::Gone(_) | Failure::Other(_) => self.backoff.next(),
        };
        sleep(wait).await;
    }
}

/// Doubling waits with jitter.
#[derive(Debug)]
struct Backoff {
    first: Duration,
    longest: Duration,
    /// The longest wait while nobody answers at all.
    unreachable: Duration,
    failures: u32,
}

impl Backoff {
    fn new(timing: Timing) -> Self {
        let (first, longest) = timing.backoff;
        Self { first, longest, unreachable: timing.unreachable, failures: 0 }
    }

    /// While nobody answers the wait stays short, so that the view is right soon after the server is back; and a server that
    /// has just started is asked by the short waits, too, if it then answers with errors.
    fn unreachable(&mut self) -> Duration {
        self.failures = 0;
        jittered(self.unreachable)
    }

    fn next(&mut self) -> Duration {
        let full = self.first.saturating_mul(2_u32.saturating_pow(self.failures)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        jittered(full)
    }

    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Between half of the wait and all of it, so that the nodes of a cluster do not come back all at once.
fn jittered(full: Duration) -> Duration {
    full.mul_f64(0.5 + 0.5 * fastrand::f64())
}

#[cfg(test)]
mod backoff_tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew() {
        let mut backoff = Backoff::new(Timing::default());
        for want in [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
            let wait = backoff.next().as_secs_f64();
            assert!((want / 2.0..=want).contains(&wait), "{wait} for {want}");
        }
        for _ in 0..100 {
            backoff.next();
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(250));
    }

    #[test]
    fn a_server_that_is_away_is_asked_once_a_second_however_long() {
        let mut backoff = Backoff::new(Timing::default());
        for _ in 0..100 {
            let wait = backoff.unreachable().as_secs_f64();
            assert!((0.5..=1.0).contains(&wait), "{wait}");
        }
        assert!(backoff.next() <= Duration::from_millis(250), "what it answers with when it is back is another matter");
    }
}
