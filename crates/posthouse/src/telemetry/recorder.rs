//! Where the process's counters and histograms are kept. There are two recorders behind one: series with a `service` label
//! are dropped when nothing was counted for an hour, because Services come and go and would fill the memory; all others
//! stay, because a counter that vanishes between two rare events hides the second.

use std::collections::HashSet;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_util::MetricKindMask;
use posthouse_model::MetricDoc;
use posthouse_proxy::METRICS;

/// Long against any scrape interval and any pause in traffic that a dashboard shows.
const IDLE: Duration = Duration::from_secs(3600);
/// Samples of histograms are kept one by one until they are sorted into buckets: at 200,000 requests a second this
/// interval holds 1.6 MB.
const UPKEEP: Duration = Duration::from_secs(1);
/// Seconds. From what one more hop costs up to the point where callers have given up.
const DURATION_BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Reads what the process's recorder has. Clones read the same.
#[derive(Clone)]
pub(crate) struct Recorder {
    steady: PrometheusHandle,
    by_service: PrometheusHandle,
}

impl Recorder {
    /// Makes the process's recorder. It must come before anything that counts.
    ///
    /// # Errors
    /// There is one already.
    pub(crate) fn install() -> anyhow::Result<Self> {
        let (routes, recorder) = build()?;
        metrics::set_global_recorder(routes)?;
        describe(METRICS);
        describe(posthouse_identity::METRICS);
        describe(posthouse_controller::METRICS);
        Ok(recorder)
    }

    /// Sorts samples into buckets now and then; ends when dropped.
    pub(crate) async fn upkeep(self) {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            ticks.tick().await;
            self.steady.run_upkeep();
            self.by_service.run_upkeep();
        }
    }

    /// Prometheus' text format.
    pub(crate) fn render(&self) -> String {
        let mut page = self.steady.render();
        page.push_str(&self.by_service.render());
        page
    }
}

fn build() -> anyhow::Result<(Routes, Recorder)> {
    let builder = || {
        PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_duration_seconds".into()), &DURATION_BUCKETS)
    };
    let steady = builder()?.build_recorder();
    let by_service =
        builder()?.idle_timeout(MetricKindMask::COUNTER | MetricKindMask::HISTOGRAM, Some(IDLE)).build_recorder();
    let recorder = Recorder { steady: steady.handle(), by_service: by_service.handle() };
    let names = METRICS.iter().filter(|doc| doc.labels.contains(&"service")).map(|doc| doc.name).collect();
    Ok((Routes { steady, by_service, names }, recorder))
}

fn describe(docs: &[MetricDoc]) {
    for doc in docs {
        match doc.kind {
            "counter" => metrics::describe_counter!(doc.name, doc.help),
            "gauge" => metrics::describe_gauge!(doc.name, doc.help),
            _ => metrics::describe_histogram!(doc.name, doc.help),
        }
    }
}

/// Chooses between the two by the metric's name, so that no metric is ever written twice.
struct Routes {
    steady: PrometheusRecorder,
    by_service: PrometheusRecorder,
    names: HashSet<&'static str>,
}

impl Routes {
    fn to(&self, name: &str) -> &PrometheusRecorder {
        if self.names.contains(name) { &self.by_service } else { &self.steady }
    }
}

impl metrics::Recorder for Routes {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.to(name.as_str()).describe_counter(name, unit, description);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.to(name.as_str()).describe_gauge(name, unit, description);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.to(name.as_str()).describe_histogram(name, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.to(key.name()).register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.to(key.name()).register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.to(key.name()).register_histogram(key, metadata)
    }
}

/// Runs `what` with a recorder of its own, for tests: the global one can be set only once in a process.
#[cfg(test)]
pub(crate) fn recording(what: impl FnOnce()) -> Recorder {
    let (routes, recorder) = build().unwrap();
    metrics::with_local_recorder(&routes, || {
        describe(METRICS);
        what();
    });
    recorder
}
