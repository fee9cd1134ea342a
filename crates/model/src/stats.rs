//! What all workers together know about one endpoint: atomics only, so that a pick costs no lock. An endpoint keeps its
//! statistics across directory updates (see `Directory::stats_for`), otherwise each rollout would begin blind.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// Time constant of the latency average. Source: linkerd2-proxy's peak EWMA `decay` of 10 s.
const DECAY_NANOS: f64 = 10e9;

/// After a refused connection an endpoint is passed over this long, doubled for each further refusal. Short, because
/// a pod that restarts in place comes back within seconds and discovery tells of the others.
const AVOID_FIRST_NANOS: u64 = 500_000_000;
/// The longest such pass-over; with the doubling it is reached at the sixth refusal in a row.
const AVOID_MAX_NANOS: u64 = 10_000_000_000;
/// A connection that nobody answered counts as so many refusals at least, so that the endpoint is passed over for 2 s: with less than the
/// second that such a try takes in the cluster, the first ones would be tried again while the last ones are.
const TIMEOUT_REFUSALS: u32 = 2;

/// Nanoseconds since the first call in this process: a monotonic clock that fits into an atomic.
#[must_use]
pub fn now_nanos() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = START.get_or_init(Instant::now);
    // 584 years fit into 64 bits of nanoseconds.
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Shared counters of one endpoint. All orderings are relaxed: each value stands alone and a stale read only makes
/// one pick slightly worse.
#[derive(Debug, Default)]
pub struct EndpointStats {
    in_flight: AtomicU32,
    requests: AtomicU64,
    failures: AtomicU64,
    /// Peak EWMA of the time to response headers, nanoseconds; 0 = nothing measured yet.
    latency: AtomicU64,
    latency_at: AtomicU64,
    refusals: AtomicU32,
    avoid_until: AtomicU64,
}

impl EndpointStats {
    /// Requests this node has under way to the endpoint.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests this node ever sent to the endpoint.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Requests that failed at or before the endpoint.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Peak EWMA of the time from sending the request to its response headers, in nanoseconds; `None` before the
    /// first answer.
    #[must_use]
    pub fn latency_nanos(&self) -> Option<u64> {
        match self.latency.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(nanos),
        }
    }

    /// Counts a request in; pair with [`EndpointStats::end`].
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request out.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// The endpoint answered after `nanos`: it is alive, and the average moves. A slower answer counts at once (the
    /// "peak"), a faster one by its age.
    pub fn answered(&self, nanos: u64, now: u64) {
        let old = self.latency.load(Ordering::Relaxed);
        let since = now.saturating_sub(self.latency_at.swap(now, Ordering::Relaxed));
        let next = if old == 0 || nanos >= old {
            nanos
        } else {
            let weight = (-(since as f64) / DECAY_NANOS).exp();
            (old as f64 * weight + nanos as f64 * (1.0 - weight)) as u64
        };
        self.latency.store(next.max(1), Ordering::Relaxed);
        if self.refusals.load(Ordering::Relaxed) != 0 {
            self.refusals.store(0, Ordering::Relaxed);
            self.avoid_until.store(0, Ordering::Relaxed);
        }
    }

    /// A request failed there, whatever the reason.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// The endpoint could not be connected to: pass it over for a while. Fast failures would otherwise attract load,
    /// since nothing is in flight at an endpoint that refuses at once. Those that were under way when the first one failed
    /// say nothing new.
    pub fn refused(&self, now: u64) {
        if self.avoided(now) {
            return;
        }
        let before = self.refusals.fetch_add(1, Ordering::Relaxed);
        let avoid = AVOID_FIRST_NANOS.checked_shl(before.min(16)).unwrap_or(AVOID_MAX_NANOS).min(AVOID_MAX_NANOS);
        self.avoid_until.store(now.saturating_add(avoid), Ordering::Relaxed);
    }

    /// Nothing answered there in time.
    pub fn timed_out(&self, now: u64) {
        if self.avoided(now) {
            return;
        }
        self.refusals.fetch_max(TIMEOUT_REFUSALS, Ordering::Relaxed);
        self.refused(now);
    }

    /// Whether the endpoint refused a connection so recently that others should be preferred.
    #[must_use]
    pub fn avoided(&self, now: u64) -> bool {
        self.avoid_until.load(Ordering::Relaxed) > now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_counts_at_once_and_fades_with_time() {
        let stats = EndpointStats::default();
        assert_eq!(stats.latency_nanos(), None);
        stats.answered(1_000_000, 0);
        stats.answered(9_000_000, 1);
        assert_eq!(stats.latency_nanos(), Some(9_000_000), "the peak is taken whole");
        stats.answered(1_000_000, 1 + 10_000_000_000);
        let after = stats.latency_nanos().unwrap();
        assert!((3_500_000..4_500_000).contains(&after), "one decay time leaves 1/e of the difference, got {after}");
    }

    #[test]
    fn refusals_pass_an_endpoint_over_longer_each_time_until_it_answers() {
        let stats = EndpointStats::default();
        let until = |end: u64| stats.avoided(end - 1) && !stats.avoided(end);
        stats.refused(0);
        assert!(until(500_000_000));
        // Others that were under way then.
        stats.refused(1);
        stats.timed_out(499_999_999);
        assert!(until(500_000_000), "one trouble counts once");
        stats.refused(500_000_000);
        assert!(until(1_500_000_000));
        let mut now = 1_500_000_000;
        for _ in 0..100 {
            stats.refused(now);
            now += AVOID_MAX_NANOS;
        }
        assert!(until(now));
        stats.answered(1, now);
        assert!(!stats.avoided(now));
        stats.refused(now);
        assert!(until(now + AVOID_FIRST_NANOS), "an answer resets the doubling");
        now += AVOID_FIRST_NANOS;
        stats.timed_out(now);
        assert!(until(now + 2_000_000_000), "longer than a try takes");
        now += 2_000_000_000;
        stats.timed_out(now);
        assert!(until(now + 4_000_000_000), "doubled");
    }
}
