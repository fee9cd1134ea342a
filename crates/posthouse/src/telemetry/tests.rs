//! Health and metrics over a real socket, with a directory, a discovery and counters made by hand.

use std::collections::HashSet;

use posthouse_discovery::{Claims, Kind, Phase, WatchStatus, Work};
use posthouse_model::Directory;

use super::*;
use crate::server::tests::Running;

/// A discovery that found one Service watch alive and one Pod watch failing.
pub(crate) fn status() -> Status {
    let watch = |kind, last_error: Option<&str>| WatchStatus {
        kind,
        phase: Phase::Watching,
        objects: 1,
        age: last_error.is_none().then_some(Duration::from_millis(1500)),
        last_error: last_error.map(str::to_owned),
        last_error_age: None,
        lists: 2,
        from_snapshot: None,
    };
    Status {
        source: "dir:/manifests".into(),
        complete: true,
        watches: vec![
            watch(Kind::Service, None),
            watch(Kind::Pod, Some("connection refused")),
            WatchStatus { from_snapshot: Some(Duration::from_secs(90)), ..watch(Kind::Node, None) },
        ],
        problems: vec![posthouse_discovery::Problem {
            source: "web.yaml".into(),
            object: "shop/web".into(),
            error: "spec.ports is no list".into(),
            since: SystemTime::UNIX_EPOCH,
        }],
        problems_dropped: 0,
        work: Work { skipped: 4, ..Work::default() },
        claims: Claims { verified: 7, refuted: 2, unknown: 1, nodes: 3 },
        last_publish: Some(Duration::from_micros(250)),
    }
}

/// Telemetry of `directory` with a recorder of its own in which `what` was counted.
pub(crate) fn telemetry(directory: &DirectoryHandle, readiness: &Readiness, what: impl FnOnce()) -> Arc<Telemetry> {
    let recorder = recorder::recording(what);
    let started = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    Arc::new(Telemetry::new(recorder, readiness.clone(), directory.clone(), Box::new(status), started))
}

fn listener(readiness: &Readiness, what: impl FnOnce()) -> Running {
    let mut directory = Directory::default();
    (directory.version, directory.complete) = (7, true);
    let directory = DirectoryHandle::new(directory);
    Running::start(MetricsListener(telemetry(&directory, readiness, what)))
}

#[tokio::test]
async fn readyz_lists_what_is_pending_and_livez_does_not_care() {
    let readiness = Readiness::default();
    let loading = readiness.pending("directory: not loaded");
    let binding = readiness.pending("listeners: not bound");
    let server = listener(&readiness, || {});
    let answer = server.get("/readyz").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("- directory: not loaded\n- listeners: not bound\n"), "{}", answer.body);
    assert_eq!(server.get("/livez").await.status, 200);
    drop(loading);
    assert!(!server.get("/readyz").await.body.contains("directory"));
    drop(binding);
    assert_eq!(server.get("/readyz").await.status, 200);
    let _draining = readiness.pending("draining");
    let answer = server.get("/readyz").await;
    assert_eq!((answer.status, answer.body.contains("- draining")), (503, true));
    assert_eq!(server.get("/livez").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn the_metrics_port_shows_nothing_else() {
    let server = listener(&Readiness::default(), || {});
    for path in ["/", "/services", "/config", "/peers", "/metrics/", "/debug"] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
    let answer = server.ask("POST", "/metrics", "Content-Length: 0\r\n").await;
    assert_eq!(answer.status, 405);
    assert!(answer.head.contains("allow: get"), "{}", answer.head);
    server.stop().await;
}

#[tokio::test]
async fn counters_histograms_and_state_are_one_page_in_prometheus_format() {
    let server = listener(&Readiness::default(), || {
        metrics::counter!("posthouse_requests_total", "direction" => "outbound", "namespace" => "shop",
            "service" => "web", "status_class" => "2xx")
        .increment(3);
        let duration = metrics::histogram!("posthouse_request_duration_seconds", "direction" => "outbound",
            "namespace" => "shop", "service" => "web");
        duration.record(0.0007);
        duration.record(0.2);
        metrics::gauge!("posthouse_requests_in_flight", "direction" => "outbound").increment(2.0);
    });
    let answer = server.get("/metrics").await;
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    for line in [
        "posthouse_requests_total{direction=\"outbound\",namespace=\"shop\",service=\"web\",status_class=\"2xx\"} 3",
        "# TYPE posthouse_requests_total counter",
        "# TYPE posthouse_request_duration_seconds histogram",
        "posthouse_request_duration_seconds_bucket{direction=\"outbound\",namespace=\"shop\",service=\"web\",le=\"0.001\"} 1",
        "posthouse_request_duration_seconds_bucket{direction=\"outbound\",namespace=\"shop\",service=\"web\",le=\"0.25\"} 2",
        "posthouse_requests_in_flight{direction=\"outbound\"} 2",
        "posthouse_ready 1",
        "posthouse_directory_version 7",
        "posthouse_directory_complete 1",
        "posthouse_directory_objects{kind=\"services\"} 0",
        "posthouse_directory_age_seconds{watch=\"Service\"} 1.5",
        "posthouse_directory_age_seconds{watch=\"Node\"} 90",
        "posthouse_directory_watch_failing{watch=\"Pod\"} 1",
        "posthouse_directory_lists_total{watch=\"Pod\"} 2",
        "posthouse_directory_skipped_total 4",
        "posthouse_directory_problems 1",
        "process_start_time_seconds 1700000000",
    ] {
        assert!(answer.body.lines().any(|found| found == line), "{line:?} is missing in\n{}", answer.body);
    }
    assert!(!answer.body.contains("age_seconds{watch=\"Pod\"}"), "a watch that never heard anything has no age");
    let names: Vec<&str> = answer.body.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "each metric is described once: {names:?}");
    let again = server.get("/metrics").await;
    assert!(again.body.contains("service=\"web\",status_class=\"2xx\"} 3"), "a second look shows the same");
    server.stop().await;
}

#[tokio::test]
async fn every_documented_state_metric_is_on_the_page() {
    let server = listener(&Readiness::default(), || {});
    let page = server.get("/metrics").await.body;
    let found: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let documented: Vec<&str> = METRICS.iter().map(|doc| doc.name).collect();
    assert_eq!(found, documented);
    server.stop().await;
}
