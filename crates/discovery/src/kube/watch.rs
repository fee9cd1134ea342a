//! One kind's watch as a state and one step: list page by page, then follow the changes. kube-runtime's watcher is not
//! used: it repeats a version for ever when the watch itself is answered 410, fails a whole page for one object of wrong
//! types, restarts with an empty list as readily as with a full one, and shows neither bookmarks nor its age.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Timing;
use super::api::{Api, Failure, Lines};
use super::feed::{Next, Seen};
use crate::status::Phase;

/// Takes what a watch reads, and hears how it fares.
pub(crate) trait Taker: Send + Sync + 'static {
    /// A page of a list.
    fn page(&self, text: &str, seen: &mut Seen) -> Result<Next, Failure>;
    /// The list is complete: what it did not show is no more.
    fn complete(&self, seen: &Seen) -> Result<(), Failure>;
    /// Whole lines of a watch. Moves `version` to that of the last object.
    fn events(&self, lines: &[u8], version: &mut String) -> Result<(), Failure>;
    /// What the watch does now.
    fn phase(&self, phase: Phase);
    /// The server said something.
    fn heard(&self);
    /// An attempt failed; the next one comes after a back-off.
    fn failed(&self, failure: &Failure);
    /// The API does not have the kind. `again`: it said so when it was asked before, too.
    fn absent(&self, failure: &Failure, again: bool) {
        let _ = again;
        self.failed(failure);
    }
    /// How many nodes are asking the server with us; by this the haste of each is measured (`SHARE`).
    fn crowd(&self) -> usize;
}

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
pub(crate) struct Watch<T> {
    api: Api,
    taker: Arc<T>,
    timing: Timing,
    backoff: Backoff,
    /// Watches in a row that said nothing until they were given up.
    stalls: u32,
    /// Whether the API said not to have the kind when it was asked last.
    absent: bool,
}

/// After this many silent watches in a row the list is asked for again: the server's own view may be stuck.
const STALLS: u32 = 2;

impl<T: Taker> Watch<T> {
    pub(crate) fn new(api: Api, taker: Arc<T>, timing: Timing) -> Self {
        let backoff = Backoff::new(timing);
        Self { api, taker, timing, backoff, stalls: 0, absent: false }
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
        self.taker.phase(Phase::Listing);
        let next = match self.api.page(token.as_deref()).await {
            Ok(text) => self.taker.page(&text, &mut seen),
            Err(failure) => Err(failure),
        };
        match next {
            Ok(Next::Page(token)) => {
                self.taker.heard();
                State::List { token: Some(token), seen }
            }
            Ok(Next::Complete(version)) => match self.taker.complete(&seen) {
                Ok(()) => {
                    self.taker.heard();
                    self.api.listed();
                    self.absent = false;
                    State::Open { version }
                }
                Err(failure) => {
                    self.failed(&failure).await;
                    State::list()
                }
            },
            // The token is of no use any more. A page that failed otherwise is asked for again, not the whole list.
            Err(failure @ (Failure::Gone(_) | Failure::Absent(_))) => {
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
                self.taker.heard();
                self.taker.phase(Phase::Watching);
                State::Follow { version, lines, since: Instant::now(), heard: false }
            }
            Err(failure) => self.lost(&failure, version).await,
        }
    }

    async fn follow(&mut self, mut version: String, mut lines: Lines, since: Instant, heard: bool) -> State {
        match timeout(self.timing.stall, lines.next()).await {
            Ok(Ok(Some(text))) => match self.taker.events(&text, &mut version) {
                Ok(()) => {
                    self.taker.heard();
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
            Failure::Gone(_) | Failure::Absent(_) => State::list(),
            Failure::Unreachable(_) | Failure::Other(_) => State::Open { version },
        }
    }

    async fn failed(&mut self, failure: &Failure) {
        let nodes = self.taker.crowd();
        if let Failure::Absent(_) = failure {
            // Once may be a server that starts, so that is asked again soon.
            let again = std::mem::replace(&mut self.absent, true);
            self.taker.absent(failure, again);
            self.backoff.reset();
            return sleep(jittered(if again { self.timing.absent } else { self.timing.absent_again })).await;
        }
        // What is said after other trouble is said for the first time.
        self.absent = false;
        self.taker.failed(failure);
        let wait = match failure {
            Failure::Unreachable(_) => self.backoff.unreachable(nodes),
            Failure::Gone(_) | Failure::Absent(_) | Failure::Other(_) => self.backoff.next(nodes),
        };
        sleep(wait).await;
    }
}

/// Doubling waits with jitter.
#[derive(Debug)]
struct Backoff {
    first: Duration,
    longest: Duration,
    /// The longest wait while nobody answers at all, in a small cluster.
    unreachable: Duration,
    failures: u32,
    /// When nobody answered for the last time.
    away: Option<Instant>,
}

/// A server that has just started answers with errors for a while: its caches load, its roles are not there yet.
const STARTING: Duration = Duration::from_secs(60);
/// A node's share of the whole cluster's haste: with five watches each, all nodes together ask about 1,250 times a second.
const SHARE: Duration = Duration::from_millis(4);
/// As long as no Node is known, a cluster of this size is assumed: 5 s.
const UNKNOWN_SIZE: u32 = 1_250;

impl Backoff {
    fn new(timing: Timing) -> Self {
        let (first, longest) = timing.backoff;
        Self { first, longest, unreachable: timing.unreachable, failures: 0, away: None }
    }

    /// While nobody answers the wait stays short, so that the view is right soon after the server is back; the more so as a
    /// server that is back but still starts is asked by the short waits, too.
    fn unreachable(&mut self, nodes: usize) -> Duration {
        self.away = Some(Instant::now());
        jittered(self.hasty(nodes))
    }

    /// The longest wait around an outage: the larger the cluster, the longer, since all nodes come back together.
    fn hasty(&self, nodes: usize) -> Duration {
        let nodes = if nodes == 0 { UNKNOWN_SIZE } else { u32::try_from(nodes).unwrap_or(u32::MAX) };
        let share = SHARE.saturating_mul(nodes);
        self.unreachable.max(share).min(self.longest)
    }

    fn next(&mut self, nodes: usize) -> Duration {
        let starting = self.away.is_some_and(|at| at.elapsed() < STARTING);
        let longest = if starting { self.hasty(nodes) } else { self.longest };
        let full = self.first.saturating_mul(2_u32.saturating_pow(self.failures)).min(longest);
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
            let wait = backoff.next(3).as_secs_f64();
            assert!((want / 2.0..=want).contains(&wait), "{wait} for {want}");
        }
        for _ in 0..100 {
            backoff.next(3);
        }
        backoff.reset();
        assert!(backoff.next(3) <= Duration::from_millis(250));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_away_is_asked_once_a_second_also_while_it_starts() {
        let mut backoff = Backoff::new(Timing::default());
        for _ in 0..100 {
            let wait = backoff.unreachable(3).as_secs_f64();
            assert!((0.5..=1.0).contains(&wait), "{wait}");
        }
        for _ in 0..20 {
            assert!(backoff.next(3) <= Duration::from_secs(1), "it is back, and answers with errors");
        }
        tokio::time::advance(STARTING).await;
        assert!(backoff.next(3) >= Duration::from_secs(15), "it answers with errors for good");
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_cluster_does_not_trample_its_server() {
        let mut backoff = Backoff::new(Timing::default());
        for (nodes, longest) in [(0, 5.0), (1, 1.0), (250, 1.0), (1_000, 4.0), (5_000, 20.0), (1_000_000, 30.0)] {
            let wait = backoff.unreachable(nodes).as_secs_f64();
            assert!((longest / 2.0..=longest).contains(&wait), "{wait} of {longest} with {nodes} nodes");
            for _ in 0..20 {
                assert!(backoff.next(nodes).as_secs_f64() <= longest);
            }
        }
    }
}
