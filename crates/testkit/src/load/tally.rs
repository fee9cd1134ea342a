//! Counts requests by the second in which they were sent. A second is told once it is over and each of its requests has ended,
//! so that what was told never changes; as requests have a time limit, few seconds are open at once.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use super::{Failed, Line, Report, Second, Sent};
use crate::histogram::Histogram;
use crate::{Place, millis, unix_seconds};

/// Failures of one second that have a line of their own.
const LISTED: u64 = 20;
/// Different reasons that the report keeps.
const MAX_REASONS: usize = 100;
/// Different pods that the report keeps.
const MAX_PODS: usize = 1000;

pub(super) struct Tally {
    begun: SystemTime,
    /// The number of the first open second.
    first: u64,
    open: VecDeque<Open>,
    latency: Latency,
    report: Report,
}

/// A second that is not told yet.
#[derive(Default)]
struct Open {
    under_way: u64,
    latency: Latency,
    late: Duration,
    counted: Second,
}

#[derive(Default)]
struct Latency {
    histogram: Histogram,
    longest: Duration,
}

impl Tally {
    /// Of seconds that begin with `begun`.
    pub(super) fn new(begun: SystemTime) -> Self {
        let (open, report) = (VecDeque::new(), Report::default());
        Self { begun, first: 0, open, latency: Latency::default(), report }
    }

    /// A request was sent, this much later than planned.
    pub(super) fn sent(&mut self, second: u64, late: Duration) {
        let second = self.at(second);
        second.under_way += 1;
        second.late = second.late.max(late);
    }

    /// It ended.
    pub(super) fn ended(
        &mut self,
        sent: Sent,
        took: Duration,
        outcome: Result<Option<Place>, String>,
        tell: &mut impl FnMut(Line),
    ) {
        let second = self.at(sent.second);
        second.under_way -= 1;
        match outcome {
            Ok(place) => {
                second.counted.ok += 1;
                second.latency.record(took);
                if let Some(place) = &place {
                    count(&mut second.counted.by_pod, &place.pod, MAX_PODS);
                    count(&mut self.report.by_pod, &place.pod, MAX_PODS);
                }
                self.latency.record(took);
                self.report.ok += 1;
            }
            Err(failure) => {
                second.counted.failed += 1;
                let listed = second.counted.failed <= LISTED;
                second.counted.unlisted += u64::from(!listed);
                count(&mut self.report.reasons, &failure, MAX_REASONS);
                self.report.failed += 1;
                if listed {
                    tell(Line::Failed(Failed { time: sent.time, failure, took_ms: millis(took) }));
                }
            }
        }
    }

    /// Tells the seconds before `second`, up to the first one with a request under way.
    pub(super) fn close_until(&mut self, second: u64, tell: &mut impl FnMut(Line)) {
        while self.first < second && self.at(self.first).under_way == 0 {
            let Some(Open { latency, late, mut counted, .. }) = self.open.pop_front() else { return };
            counted.time = unix_seconds(self.begun + Duration::from_secs(self.first));
            (counted.p50_ms, counted.p99_ms, counted.max_ms) = latency.summary();
            counted.late_ms = millis(late);
            self.first += 1;
            self.report.seconds += 1;
            tell(Line::Second(counted));
        }
    }

    /// The sums of all seconds.
    pub(super) fn report(self) -> Report {
        let (p50_ms, p99_ms, max_ms) = self.latency.summary();
        Report { p50_ms, p99_ms, max_ms, ..self.report }
    }

    /// The open second of this number, which is not below `first`.
    fn at(&mut self, second: u64) -> &mut Open {
        let at = usize::try_from(second.saturating_sub(self.first)).unwrap_or(usize::MAX);
        while self.open.len() <= at {
            self.open.push_back(Open::default());
        }
        &mut self.open[at]
    }
}

impl Latency {
    fn record(&mut self, took: Duration) {
        self.histogram.record(took);
        self.longest = self.longest.max(took);
    }

    /// Median, 99th percentile and the longest, in milliseconds. A percentile is its bucket's upper edge, which may lie
    /// above the longest.
    fn summary(&self) -> (f64, f64, f64) {
        let quantile = |q| millis(self.histogram.quantile(q).unwrap_or_default().min(self.longest));
        (quantile(0.5), quantile(0.99), millis(self.longest))
    }
}

/// Adds one to `key`, or to `others` when the map holds `max` keys already.
fn count(map: &mut BTreeMap<String, u64>, key: &str, max: usize) {
    if let Some(count) = map.get_mut(key) {
        *count += 1;
    } else {
        let key = if map.len() < max { key } else { "others" };
        *map.entry(key.to_owned()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_told_in_order_once_their_requests_have_ended() {
        let mut told = Vec::new();
        let mut tell = |line| told.push(line);
        let mut tally = Tally::new(SystemTime::UNIX_EPOCH + Duration::from_millis(100_500));
        let sent = |second| Sent { second, time: 0.0 };
        let good = || Ok(Some(Place::new("a", "n")));
        tally.sent(0, Duration::ZERO);
        tally.sent(0, Duration::from_millis(3));
        tally.sent(1, Duration::ZERO);
        tally.ended(sent(1), Duration::from_millis(5), good(), &mut tell);
        tally.ended(sent(0), Duration::from_millis(5), good(), &mut tell);
        // Second 1 is complete, but second 0 is not.
        tally.close_until(2, &mut tell);
        tally.ended(sent(0), Duration::from_millis(9), Err("late".to_owned()), &mut tell);
        // Nothing was sent in second 2; second 3 may still get requests.
        tally.close_until(3, &mut tell);
        tally.close_until(3, &mut tell);
        let report = tally.report();

        let lines: Vec<serde_json::Value> = told.iter().map(|line| serde_json::to_value(line).unwrap()).collect();
        assert_eq!(lines[0], serde_json::json!({"time": 0.0, "failure": "late", "took_ms": 9.0}));
        let seconds: Vec<_> = told[1..]
            .iter()
            .map(|line| match line {
                Line::Second(second) => (second.time, second.ok, second.failed, second.max_ms, second.late_ms),
                Line::Failed(_) => (0.0, 0, 0, 0.0, 0.0),
            })
            .collect();
        assert_eq!(seconds, [(100.5, 1, 1, 5.0, 3.0), (101.5, 1, 0, 5.0, 0.0), (102.5, 0, 0, 0.0, 0.0)]);
        assert_eq!((report.ok, report.failed, report.seconds, report.by_pod["a"]), (2, 1, 3, 2));
    }

    #[test]
    fn many_failures_of_one_second_are_counted_not_listed() {
        let (mut listed, mut unlisted) = (0, 0);
        let mut tally = Tally::new(SystemTime::UNIX_EPOCH);
        let mut tell = |line| match line {
            Line::Failed(_) => listed += 1,
            Line::Second(second) => unlisted += second.unlisted,
        };
        for number in 0..150 {
            tally.sent(0, Duration::ZERO);
            let sent = Sent { second: 0, time: 0.0 };
            tally.ended(sent, Duration::ZERO, Err(format!("reason {number}")), &mut tell);
        }
        tally.close_until(1, &mut tell);
        let report = tally.report();
        assert_eq!((listed, unlisted, report.failed), (20, 130, 150));
        assert_eq!((report.reasons.len(), report.reasons["others"]), (101, 50));
    }
}
