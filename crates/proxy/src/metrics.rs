//! What the data plane counts. Names and meanings are in [`METRICS`], which the reference page is held against. Handles
//! are looked up once a Service and worker, so a request costs atomics only; labels are bounded by the directory's Services.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use posthouse_model::MetricDoc;

use crate::error::{Error, ErrorKind};

pub(crate) const REQUESTS: &str = "posthouse_requests_total";
pub(crate) const FAILURES: &str = "posthouse_request_failures_total";
pub(crate) const DURATION: &str = "posthouse_request_duration_seconds";
pub(crate) const IN_FLIGHT: &str = "posthouse_requests_in_flight";
pub(crate) const RETRIES: &str = "posthouse_retries_total";
pub(crate) const CONNECTIONS: &str = "posthouse_connections";
pub(crate) const LINK_STREAMS: &str = "posthouse_link_streams";
pub(crate) const LINK_DIALS: &str = "posthouse_link_dials_total";
pub(crate) const TUNNELS: &str = "posthouse_tunnels_total";
pub(crate) const CLIENTS_REFUSED: &str = "posthouse_clients_refused_total";
pub(crate) const POLICY_DECISIONS: &str = "posthouse_policy_decisions_total";
pub(crate) const TUNNELS_REVOKED: &str = "posthouse_tunnels_revoked_total";
pub(crate) const EGRESS_REFUSED: &str = "posthouse_egress_refused_total";
pub(crate) const LIMIT_REACHED: &str = "posthouse_limit_reached_total";

/// Every metric of the data plane.
pub const METRICS: &[MetricDoc] = &[
    MetricDoc {
        name: REQUESTS,
        kind: "counter",
        labels: &["direction", "namespace", "service", "status_class"],
        help: "Requests, by destination Service and status class (1xx is 101 only; 'none' when the client left first; a gRPC request that the proxy failed by the HTTP status of its error). outbound: at the sender's node, all of them; inbound: at the receiver's node, those that came over a link. An opaque tunnel counts once. All hosts outside of the cluster are the service 'egress' of no namespace. Requests for which no Service port was found are in posthouse_request_failures_total only.",
    },
    MetricDoc {
        name: FAILURES,
        kind: "counter",
        labels: &["direction", "namespace", "service", "error"],
        help: "Requests that the proxy itself failed, by the error token of RFC 9209; namespace and service are empty when no Service port was found.",
    },
    MetricDoc {
        name: DURATION,
        kind: "histogram",
        labels: &["direction", "namespace", "service"],
        help: "Seconds from a request's head to the last byte of its answer.",
    },
    MetricDoc { name: IN_FLIGHT, kind: "gauge", labels: &["direction"], help: "Requests and tunnels under way." },
    MetricDoc {
        name: RETRIES,
        kind: "counter",
        labels: &["namespace", "service", "result"],
        help: "Tries after the first: 'sent', or 'no_budget' when the retry budget was used up.",
    },
    MetricDoc {
        name: CONNECTIONS,
        kind: "gauge",
        labels: &["side"],
        help: "Open connections: 'client' (pods to us), 'pod' (we to pods), 'outside' (we to hosts outside of the cluster), 'link_out' (we to peers), 'link_in' (peers to us).",
    },
    MetricDoc {
        name: LINK_STREAMS,
        kind: "gauge",
        labels: &["direction"],
        help: "Streams open on links, 'out' (to peers) and 'in' (from peers).",
    },
    MetricDoc {
        name: LINK_DIALS,
        kind: "counter",
        labels: &["result"],
        help: "Links dialled, by result 'ok' or 'failed'.",
    },
    MetricDoc {
        name: TUNNELS,
        kind: "counter",
        labels: &["kind"],
        help: "CONNECT tunnels by what was found inside: 'http1', 'http2' or 'opaque'; upgrades as 'upgrade'.",
    },
    MetricDoc {
        name: CLIENTS_REFUSED,
        kind: "counter",
        labels: &["reason"],
        help: "Connections refused by their address: 'foreign' (another node's or nobody's on the outbound port), 'unknown' (not known in time), 'not_a_peer' (on the link port).",
    },
    MetricDoc {
        name: POLICY_DECISIONS,
        kind: "counter",
        labels: &["decision"],
        help: "Decisions by AuthorizationPolicies at the receiver's node, for targets that any concern: 'allowed', 'denied', and 'would_deny' of those in dry run (beside the decision that counts).",
    },
    MetricDoc {
        name: TUNNELS_REVOKED,
        kind: "counter",
        labels: &[],
        help: "Tunnels and upgraded connections that were ended because a changed AuthorizationPolicy denies them.",
    },
    MetricDoc {
        name: EGRESS_REFUSED,
        kind: "counter",
        labels: &["reason"],
        help: "Requests for a host outside of the cluster that were refused: 'not_listed' (not in --egress-allow, or no Service of that name), 'port' (listed for other ports), 'address' (it is or resolves to an address that is never dialled), 'https' (not by CONNECT), 'dns_error', 'dns_timeout'.",
    },
    MetricDoc {
        name: LIMIT_REACHED,
        kind: "counter",
        labels: &["limit"],
        help: "Times that a limit was met: 'connections', 'client_connections' (of one address), 'link_connections', 'handshakes' (of TLS at a time), 'handshakes_of_address', 'handshakes_of_strangers' (connections to the link port from no node's address), 'unknown_clients', 'buffered_bytes' (stalled streams given up), 'h2_streams', 'link_streams' (refused to a peer), 'header_timeout', 'client_idle', 'stream_idle', 'tunnel_idle', 'egress_lookups' (one had to wait), 'egress_names' (all forgotten), 'drain_deadline', 'claim_nodes' (claims of more nodes than are watched), 'claim_waits' (of one node, to be checked).",
    },
];

/// Which hop a request is counted at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    /// At the sender's node.
    Outbound,
    /// At the receiver's node.
    Inbound,
}

impl Direction {
    fn label(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// A gauge that counts something while it lives.
pub(crate) struct OpenGauge(Gauge);

impl OpenGauge {
    pub(crate) fn connection(side: &'static str) -> Self {
        Self::new(gauge!(CONNECTIONS, "side" => side))
    }

    /// For the near end of a tunnel, whose connection is counted already.
    pub(crate) fn tunnel() -> Self {
        Self(Gauge::noop())
    }

    pub(crate) fn new(gauge: Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for OpenGauge {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

pub(crate) fn limit_reached(limit: &'static str) {
    counter!(LIMIT_REACHED, "limit" => limit).increment(1);
}

/// After this time without use a Service's handles are looked up anew, because the exporter forgets series that were idle
/// for longer (1 h in the binary) and a handle of a forgotten series counts into nothing.
const HANDLE_LIFE: Duration = Duration::from_secs(300);
/// Services whose handles a worker keeps; above, the least lately used ones are dropped.
const MAX_SERVICES: usize = 4096;

/// One Service's handles in one worker.
pub(crate) struct ServiceMetrics {
    direction: Direction,
    namespace: Arc<str>,
    service: Arc<str>,
    by_class: [Counter; 6],
    duration: Histogram,
}

impl ServiceMetrics {
    fn new(direction: Direction, namespace: &str, service: &str) -> Self {
        let class = |class: &'static str| {
            counter!(REQUESTS, "direction" => direction.label(), "namespace" => namespace.to_owned(),
                "service" => service.to_owned(), "status_class" => class)
        };
        Self {
            direction,
            namespace: Arc::from(namespace),
            service: Arc::from(service),
            by_class: [class("none"), class("1xx"), class("2xx"), class("3xx"), class("4xx"), class("5xx")],
            duration: histogram!(DURATION, "direction" => direction.label(), "namespace" => namespace.to_owned(),
                "service" => service.to_owned()),
        }
    }

    /// Counts a finished request.
    pub(crate) fn finished(&self, status: Option<http::StatusCode>, error: Option<&Error>, took: Duration) {
        let class = status.map_or(0, |s| usize::from(s.as_u16() / 100).min(5));
        self.by_class[class].increment(1);
        self.duration.record(took.as_secs_f64());
        if let Some(error) = error.filter(|error| !error.is_client_gone()) {
            counter!(FAILURES, "direction" => self.direction.label(), "namespace" => self.namespace.to_string(),
                "service" => self.service.to_string(), "error" => error.kind.token())
            .increment(1);
        }
    }

    pub(crate) fn retry(&self, result: &'static str) {
        counter!(RETRIES, "namespace" => self.namespace.to_string(), "service" => self.service.to_string(),
            "result" => result)
        .increment(1);
    }
}

/// Counts a failure for which no Service was found.
pub(crate) fn failed_without_service(direction: Direction, error: ErrorKind) {
    counter!(FAILURES, "direction" => direction.label(), "namespace" => "", "service" => "", "error" => error.token())
        .increment(1);
}

type LastUsed = (Rc<ServiceMetrics>, Instant);

/// A worker's handles by Service.
pub(crate) struct MetricsCache {
    direction: Direction,
    in_flight: Gauge,
    services: RefCell<HashMap<Arc<str>, LastUsed>>,
}

impl MetricsCache {
    pub(crate) fn new(direction: Direction) -> Self {
        Self {
            direction,
            in_flight: gauge!(IN_FLIGHT, "direction" => direction.label()),
            services: RefCell::new(HashMap::new()),
        }
    }

    /// The handles of Service `key` (`namespace/name`), used at `now`.
    pub(crate) fn service(&self, key: &Arc<str>, now: Instant) -> Rc<ServiceMetrics> {
        let mut services = self.services.borrow_mut();
        if let Some((metrics, used)) = services.get_mut(key)
            && now.saturating_duration_since(*used) < HANDLE_LIFE
        {
            *used = now;
            return Rc::clone(metrics);
        }
        if services.len() >= MAX_SERVICES {
            services.retain(|_, (_, used)| now.saturating_duration_since(*used) < HANDLE_LIFE);
            if services.len() >= MAX_SERVICES {
                services.clear();
            }
        }
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        let metrics = Rc::new(ServiceMetrics::new(self.direction, namespace, name));
        services.insert(Arc::clone(key), (Rc::clone(&metrics), now));
        metrics
    }

    /// Counts one request as under way.
    pub(crate) fn begin(&self) -> OpenGauge {
        OpenGauge::new(self.in_flight.clone())
    }
}

/// How much may be sent twice: a share of what was sent lately plus a floor. Source: GEP-3388 (20 %, at least 10 a
/// second, over 10 s). One for each Service, shared by all workers.
#[derive(Debug, Default)]
pub(crate) struct RetryBudget {
    /// Number of the current window.
    window: AtomicU64,
    requests: [AtomicU64; 2],
    retries: [AtomicU64; 2],
}

const BUDGET_WINDOW_NANOS: u64 = 10_000_000_000;
const BUDGET_SHARE_PERCENT: u64 = 20;
const BUDGET_FLOOR: u64 = 10 * 10;

impl RetryBudget {
    fn roll(&self, now: u64) -> usize {
        let window = now / BUDGET_WINDOW_NANOS;
        let slot = (window % 2) as usize;
        let before = self.window.load(Ordering::Relaxed);
        if before < window && self.window.compare_exchange(before, window, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.requests[slot].store(0, Ordering::Relaxed);
            self.retries[slot].store(0, Ordering::Relaxed);
            if window - before > 1 {
                self.requests[1 - slot].store(0, Ordering::Relaxed);
                self.retries[1 - slot].store(0, Ordering::Relaxed);
            }
        }
        slot
    }

    /// Counts a first try.
    pub(crate) fn request(&self, now: u64) {
        let slot = self.roll(now);
        self.requests[slot].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one retry out of the budget, if there is one.
    pub(crate) fn withdraw(&self, now: u64) -> bool {
        let slot = self.roll(now);
        // A sliding window: the part of the last one that is not yet 10 s ago counts.
        let elapsed = now % BUDGET_WINDOW_NANOS;
        let sliding = |counters: &[AtomicU64; 2]| {
            let old = counters[1 - slot].load(Ordering::Relaxed);
            let part = u128::from(old) * u128::from(BUDGET_WINDOW_NANOS - elapsed) / u128::from(BUDGET_WINDOW_NANOS);
            counters[slot].load(Ordering::Relaxed) + part as u64
        };
        let allowed = BUDGET_FLOOR + sliding(&self.requests) * BUDGET_SHARE_PERCENT / 100;
        if sliding(&self.retries) >= allowed {
            return false;
        }
        self.retries[slot].fetch_add(1, Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_a_floor_and_a_share_and_comes_back() {
        let budget = RetryBudget::default();
        let granted = |budget: &RetryBudget, now| (0..10_000).take_while(|_| budget.withdraw(now)).count();
        assert_eq!(granted(&budget, 0), 100, "the floor: 10 a second over 10 s");
        for _ in 0..1_000 {
            budget.request(1);
        }
        assert_eq!(granted(&budget, 1), 200, "20 % of 1,000 more");
        assert_eq!(granted(&budget, 30_000_000_000), 100, "all forgotten after two windows");
    }
}
