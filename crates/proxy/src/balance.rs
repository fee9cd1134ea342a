//! Which endpoint gets the request. The rule stands behind [`Balancer`], so that other algorithms can take its place; what
//! they know of an endpoint is its [`EndpointStats`](posthouse_model::EndpointStats), shared by all workers without a lock.

use std::net::SocketAddr;
use std::sync::Arc;

use posthouse_model::Endpoint;
use smallvec::SmallVec;

/// Where a request has been sent to already and must not go again.
#[derive(Default)]
pub(crate) struct Tried {
    addresses: SmallVec<[SocketAddr; 3]>,
    /// Nodes whose link failed: their other pods are behind the same broken link.
    nodes: SmallVec<[Arc<str>; 2]>,
}

impl Tried {
    /// Notes a try that failed at the endpoint, or (`link`) on the way to its node.
    pub(crate) fn add(&mut self, endpoint: &Endpoint, link: bool) {
        self.addresses.push(endpoint.address);
        if link && let Some(node) = &endpoint.node {
            self.nodes.push(Arc::clone(node));
        }
    }

    pub(crate) fn contains(&self, endpoint: &Endpoint) -> bool {
        // Nearly always empty.
        !self.addresses.is_empty()
            && (self.addresses.contains(&endpoint.address)
                || endpoint.node.as_ref().is_some_and(|node| self.nodes.contains(node)))
    }
}

/// Random draws before all endpoints are looked at in order. With half of a Service to be passed over, ten draws miss
/// once in a thousand picks.
const DRAWS: usize = 10;

/// Chooses one of several endpoints.
pub(crate) trait Balancer {
    /// Picks one that was not tried, or `None` when all were. Endpoints that lately refused connections are picked only
    /// when nothing else is left. `now` is [`posthouse_model::stats::now_nanos`].
    fn pick<'a>(&self, endpoints: &'a [Arc<Endpoint>], tried: &Tried, now: u64) -> Option<&'a Arc<Endpoint>>;
}

/// Power of two choices by requests in flight (Mitzenmacher 2001): of two random endpoints the less busy one.
pub(crate) struct LeastRequest;

impl Balancer for LeastRequest {
    fn pick<'a>(&self, endpoints: &'a [Arc<Endpoint>], tried: &Tried, now: u64) -> Option<&'a Arc<Endpoint>> {
        if let [only] = endpoints {
            return (!tried.contains(only)).then_some(only);
        }
        if endpoints.is_empty() {
            return None;
        }
        let mut first: Option<&Arc<Endpoint>> = None;
        for _ in 0..DRAWS {
            let drawn = &endpoints[fastrand::usize(..endpoints.len())];
            if tried.contains(drawn) || drawn.stats.avoided(now) {
                continue;
            }
            match first {
                None => first = Some(drawn),
                Some(other) if Arc::ptr_eq(other, drawn) => {}
                Some(other) => {
                    return Some(if drawn.stats.in_flight() < other.stats.in_flight() { drawn } else { other });
                }
            }
        }
        // Few are left, or the draws met one and the same: look at all of them, those that refuse last. The one that was
        // drawn counts no more than others, since it may be the busiest.
        let start = fastrand::usize(..endpoints.len());
        let rotated = endpoints[start..].iter().chain(&endpoints[..start]);
        rotated.filter(|e| !tried.contains(e)).min_by_key(|e| (e.stats.avoided(now), e.stats.in_flight()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthouse_model::{EndpointState, EndpointStats};
    use std::collections::HashMap;

    fn endpoints(n: u16) -> Vec<Arc<Endpoint>> {
        (1..=n)
            .map(|i| {
                Arc::new(Endpoint {
                    address: SocketAddr::from(([10, 0, 0, 1], i)),
                    node: None,
                    zone: None,
                    hostname: None,
                    pod: None,
                    state: EndpointState::Ready,
                    refusal: None,
                    stats: Arc::new(EndpointStats::default()),
                })
            })
            .collect()
    }

    fn tried_of(endpoints: &[&Arc<Endpoint>]) -> Tried {
        let mut tried = Tried::default();
        for endpoint in endpoints {
            tried.add(endpoint, false);
        }
        tried
    }

    #[test]
    fn idle_endpoints_share_evenly() {
        let all = endpoints(3);
        let mut counts: HashMap<SocketAddr, u32> = HashMap::new();
        for _ in 0..30_000 {
            *counts.entry(LeastRequest.pick(&all, &Tried::default(), 0).unwrap().address).or_default() += 1;
        }
        // 10,000 expected, standard deviation 82: eight of them away is no chance.
        assert!(counts.len() == 3 && counts.values().all(|n| (9_350..10_650).contains(n)), "{counts:?}");
    }

    #[test]
    fn the_busier_of_two_is_never_picked() {
        let all = endpoints(2);
        all[0].stats.begin();
        // So often that the draws meet one and the same endpoint each time (once in 512 picks) a hundred times.
        for _ in 0..50_000 {
            assert_eq!(LeastRequest.pick(&all, &Tried::default(), 0).unwrap().address, all[1].address);
        }
    }

    #[test]
    fn tried_ones_are_left_out_and_refusing_ones_come_last() {
        let all = endpoints(3);
        all[1].stats.refused(0);
        let tried = tried_of(&[&all[0]]);
        for _ in 0..200 {
            assert_eq!(LeastRequest.pick(&all, &tried, 1).unwrap().address, all[2].address);
        }
        let tried = tried_of(&[&all[0], &all[2]]);
        assert_eq!(LeastRequest.pick(&all, &tried, 1).unwrap().address, all[1].address, "better than nothing");
        let tried = tried_of(&all.iter().collect::<Vec<_>>());
        assert!(LeastRequest.pick(&all, &tried, 1).is_none());
        assert!(LeastRequest.pick(&[], &Tried::default(), 1).is_none());
    }
}
