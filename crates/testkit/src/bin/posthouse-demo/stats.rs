//! What the demo's clients saw: counts and latencies by service and by sending node, who answered whom, and the first
//! reasons of failures.

use std::collections::BTreeSet;
use std::time::Duration;

use posthouse_testkit::Place;
use posthouse_testkit::histogram::Histogram;

use crate::topology::{NODES, Node, SERVICES, Service, node_index};

/// Different reasons that are kept.
const MAX_REASONS: usize = 5;

/// Requests of one row of the table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    pub(crate) latency: Histogram,
}

/// Everything counted so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) by_service: [Row; SERVICES.len()],
    pub(crate) by_sender: [Row; NODES.len()],
    /// `answers[sender][receiver]`.
    pub(crate) answers: [[u64; NODES.len()]; NODES.len()],
    /// Names of the pods that have answered.
    pub(crate) pods: BTreeSet<String>,
    /// The first reasons of failures, with how often each came.
    pub(crate) reasons: Vec<(String, u64)>,
}

impl Stats {
    /// Counts one request from `sender` to `service`.
    pub(crate) fn count(&mut self, service: Service, sender: Node, took: Duration, outcome: Result<Place, String>) {
        let outcome = outcome.and_then(|place| {
            let receiver =
                node_index(&place.node).ok_or_else(|| format!("an answer from the unknown node '{}'", place.node))?;
            Ok((place, receiver))
        });
        for row in [&mut self.by_service[service.index], &mut self.by_sender[sender.index]] {
            row.requests += 1;
            match outcome {
                Ok(_) => row.latency.record(took),
                Err(_) => row.failures += 1,
            }
        }
        match outcome {
            Ok((place, receiver)) => {
                self.answers[sender.index][receiver] += 1;
                self.pods.insert(place.pod);
            }
            Err(reason) => {
                self.count_reason(format!("{} from {}: {reason}", service.name, sender.name));
            }
        }
    }

    fn count_reason(&mut self, reason: String) {
        if let Some((_, count)) = self.reasons.iter_mut().find(|(known, _)| *known == reason) {
            *count += 1;
        } else if self.reasons.len() < MAX_REASONS {
            self.reasons.push((reason, 1));
        }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.by_service.iter().map(|row| row.requests).sum()
    }

    pub(crate) fn failures(&self) -> u64 {
        self.by_service.iter().map(|row| row.failures).sum()
    }

    /// The share of answered requests whose answer came from another node, 0 to 1.
    pub(crate) fn crossed(&self) -> f64 {
        let all: u64 = self.answers.iter().flatten().sum();
        let home: u64 = (0..NODES.len()).map(|at| self.answers[at][at]).sum();
        if all == 0 { 0.0 } else { (all - home) as f64 / all as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_service_sender_and_receiver() {
        let mut stats = Stats::default();
        let [hello, _, greeter] = SERVICES;
        let [a, b, _] = NODES;
        let took = Duration::from_millis(3);
        stats.count(hello, a, took, Ok(Place::new("hello-a", "node-a")));
        stats.count(hello, a, took, Ok(Place::new("hello-b", "node-b")));
        stats.count(greeter, b, took, Ok(Place::new("greeter-c", "node-c")));
        stats.count(greeter, b, took, Err("status 502".to_owned()));
        stats.count(greeter, b, took, Err("status 502".to_owned()));
        stats.count(greeter, b, took, Ok(Place::new("greeter-x", "elsewhere")));
        assert_eq!((stats.requests(), stats.failures()), (6, 3));
        assert_eq!(stats.answers, [[1, 1, 0], [0, 0, 1], [0, 0, 0]]);
        assert!((stats.crossed() - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(stats.by_service[0].latency.count(), 2);
        assert_eq!(stats.by_sender[1].failures, 3);
        assert_eq!(stats.pods.len(), 3);
        assert_eq!(stats.reasons[0], ("greeter from node-b: status 502".to_owned(), 2));
        assert_eq!(stats.reasons.len(), 2);
    }
}
