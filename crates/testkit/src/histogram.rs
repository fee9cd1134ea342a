//! Latencies in buckets of at most 1/16 of their value: constant memory, percentiles good to some 6 %.

use std::time::Duration;

/// Sub-buckets of each power of two.
const SUB: usize = 16;
/// Powers of two of a microsecond above the first SUB buckets: up to 2^36 µs, 19 hours.
const POWERS: usize = 32;

/// Counts durations.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; SUB * (POWERS + 1)], count: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(micros)] += 1;
        self.count += 1;
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The duration that a share of `quantile` (0 to 1) does not exceed: the upper edge of its bucket. `None` while
    /// nothing was counted.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let rank = ((self.count as f64 * quantile).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        self.buckets
            .iter()
            .position(|in_bucket| {
                seen += in_bucket;
                seen >= rank
            })
            .map(|at| Duration::from_micros(upper_edge(at)))
    }
}

/// Values below SUB have a bucket each; above, the four bits after the leading one choose within the power of two.
fn bucket(micros: u64) -> usize {
    if micros < SUB as u64 {
        return micros as usize;
    }
    let power = (micros.ilog2() - SUB.ilog2()) as usize;
    let within = (micros >> power) as usize - SUB;
    ((power + 1) * SUB + within).min(SUB * (POWERS + 1) - 1)
}

fn upper_edge(at: usize) -> u64 {
    if at < SUB {
        return at as u64;
    }
    let power = at / SUB - 1;
    (((at % SUB + SUB + 1) as u64) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_lies_in_a_bucket_whose_edge_is_at_most_a_sixteenth_away() {
        let powers = (0..36).flat_map(|power| [1 << power, (1 << power) + 1, (3 << power) / 2]);
        for micros in (0..5000).chain(powers) {
            let edge = upper_edge(bucket(micros));
            assert!(edge >= micros, "{micros} lies below its bucket's edge {edge}");
            assert!(edge - micros <= micros / 16, "{micros} is far from its edge {edge}");
        }
        let longest = bucket(u64::MAX);
        assert_eq!(longest, SUB * (POWERS + 1) - 1, "the longest goes into the last bucket");
    }

    #[test]
    fn buckets_rise_with_the_value() {
        assert!((1..5000).all(|micros| bucket(micros) - bucket(micros - 1) <= 1));
    }

    #[test]
    fn quantiles_are_those_of_the_counted_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for millis in 1..=100 {
            histogram.record(Duration::from_millis(millis));
        }
        for (quantile, millis) in [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let got = histogram.quantile(quantile).unwrap().as_secs_f64() * 1000.0;
            assert!((millis..millis * 1.07).contains(&got), "p{quantile}: {got} ms, not {millis} ms");
        }
    }
}
