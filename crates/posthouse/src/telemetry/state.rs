//! Metrics that describe a state rather than events: the directory, readiness, the process. They are read when somebody
//! asks, so they are never stale and cost nothing in between.

use std::time::SystemTime;

use posthouse_discovery::{Status, WatchStatus};
use posthouse_model::DirectoryHandle;
use posthouse_model::MetricDoc;

use super::exposition::Page;
use crate::logging;
use crate::process::{Usage, unix_seconds};

const BUILD_INFO: MetricDoc = MetricDoc {
    name: "posthouse_build_info",
    kind: "gauge",
    labels: &["version", "commit"],
    help: "Always 1; the labels say which build runs.",
};
const READY: MetricDoc = MetricDoc {
    name: "posthouse_ready",
    kind: "gauge",
    labels: &[],
    help: "1 while requests can be served, as /readyz says; 0 at the start and while draining.",
};
const PANICS: MetricDoc = MetricDoc {
    name: "posthouse_panics_total",
    kind: "counter",
    labels: &[],
    help: "Panics in any task since the start. Each ended one request or connection; more than 0 is a bug to report.",
};
const DIRECTORY_OBJECTS: MetricDoc = MetricDoc {
    name: "posthouse_directory_objects",
    kind: "gauge",
    labels: &["kind"],
    help: "What the directory holds, by kind: services, endpoints, nodes, peers, pods (those of this node).",
};
const DIRECTORY_VERSION: MetricDoc = MetricDoc {
    name: "posthouse_directory_version",
    kind: "gauge",
    labels: &[],
    help: "Number of the directory in use; grows with each change.",
};
const DIRECTORY_COMPLETE: MetricDoc = MetricDoc {
    name: "posthouse_directory_complete",
    kind: "gauge",
    labels: &[],
    help: "1 once every kind of object has been listed.",
};
const CLAIMS: MetricDoc = MetricDoc {
    name: "posthouse_claims_total",
    kind: "counter",
    labels: &["result"],
    help: "Claims of who sends, made by other nodes' proxies and held against the Pods of the API: 'verified', 'false' (no such pod there, or with another uid or service account), 'unknown' (the API is away, or a limit is reached).",
};
const CLAIM_NODES: MetricDoc = MetricDoc {
    name: "posthouse_claim_nodes",
    kind: "gauge",
    labels: &[],
    help: "Other nodes whose Pods are watched to check claims; at most 512, each until nobody asked for 10 minutes.",
};
const WATCH_AGE: MetricDoc = MetricDoc {
    name: "posthouse_directory_age_seconds",
    kind: "gauge",
    labels: &["watch"],
    help: "Time since the source last said anything about this kind of object (a list, an event, a bookmark); while the objects are those of the last run's snapshot, since that was written. Absent before either.",
};
const WATCH_FAILING: MetricDoc = MetricDoc {
    name: "posthouse_directory_watch_failing",
    kind: "gauge",
    labels: &["watch"],
    help: "1 while the last attempt to read this kind of object failed; the last good view is served meanwhile. /config has the error.",
};
const WATCH_LISTS: MetricDoc = MetricDoc {
    name: "posthouse_directory_lists_total",
    kind: "counter",
    labels: &["watch"],
    help: "Complete lists of this kind of object; more than the first are relists.",
};
const DIRECTORY_SKIPPED: MetricDoc = MetricDoc {
    name: "posthouse_directory_skipped_total",
    kind: "counter",
    labels: &[],
    help: "Objects that were skipped because they did not fit; /config names them.",
};
const DIRECTORY_PROBLEMS: MetricDoc = MetricDoc {
    name: "posthouse_directory_problems",
    kind: "gauge",
    labels: &[],
    help: "Manifests and objects that are being skipped now; /config names them.",
};
const CPU: MetricDoc = MetricDoc {
    name: "process_cpu_seconds_total",
    kind: "counter",
    labels: &[],
    help: "CPU time used by the process, user and system, in seconds.",
};
const RESIDENT: MetricDoc =
    MetricDoc { name: "process_resident_memory_bytes", kind: "gauge", labels: &[], help: "Resident memory in bytes." };
const VIRTUAL: MetricDoc =
    MetricDoc { name: "process_virtual_memory_bytes", kind: "gauge", labels: &[], help: "Virtual memory in bytes." };
const THREADS: MetricDoc =
    MetricDoc { name: "process_threads", kind: "gauge", labels: &[], help: "Threads of the process." };
const OPEN_FILES: MetricDoc = MetricDoc {
    name: "process_open_fds",
    kind: "gauge",
    labels: &[],
    help: "Open file descriptors; each connection has one.",
};
const MAX_FILES: MetricDoc = MetricDoc {
    name: "process_max_fds",
    kind: "gauge",
    labels: &[],
    help: "Limit on open file descriptors; absent when there is none.",
};
const START: MetricDoc = MetricDoc {
    name: "process_start_time_seconds",
    kind: "gauge",
    labels: &[],
    help: "Start of the process as Unix time in seconds.",
};

/// Every metric of this file, in the order of the page.
#[cfg(test)]
pub(crate) const METRICS: &[MetricDoc] = &[
    BUILD_INFO,
    READY,
    PANICS,
    DIRECTORY_OBJECTS,
    DIRECTORY_VERSION,
    DIRECTORY_COMPLETE,
    WATCH_AGE,
    WATCH_FAILING,
    WATCH_LISTS,
    DIRECTORY_SKIPPED,
    CLAIMS,
    CLAIM_NODES,
    DIRECTORY_PROBLEMS,
    START,
    CPU,
    RESIDENT,
    VIRTUAL,
    THREADS,
    OPEN_FILES,
    MAX_FILES,
];

/// The page's part that describes the state.
pub(super) fn render(directory: &DirectoryHandle, discovery: &Status, ready: bool, started: SystemTime) -> String {
    let mut page = Page::default();
    page.family(&BUILD_INFO, [(vec![env!("CARGO_PKG_VERSION"), env!("POSTHOUSE_BUILD_COMMIT")], 1.0)]);
    page.family(&READY, one(f64::from(u8::from(ready))));
    page.family(&PANICS, one(logging::panics() as f64));
    directory_state(&mut page, directory, discovery);
    process_state(&mut page, started);
    page.finish()
}

fn directory_state(page: &mut Page, directory: &DirectoryHandle, discovery: &Status) {
    let directory = directory.load();
    let size = directory.size();
    let kinds = [
        ("services", size.services),
        ("endpoints", size.endpoints),
        ("nodes", size.nodes),
        ("peers", size.peers),
        ("pods", size.pods),
    ];
    page.family(&DIRECTORY_OBJECTS, kinds.map(|(kind, count)| (vec![kind], count as f64)));
    page.family(&DIRECTORY_VERSION, one(directory.version as f64));
    page.family(&DIRECTORY_COMPLETE, one(f64::from(u8::from(directory.complete))));
    let watches = || discovery.watches.iter().map(|watch| (vec![watch.kind.as_str()], watch));
    let age = |watch: &WatchStatus| Some(watch.from_snapshot.or(watch.age)?.as_secs_f64());
    page.family(&WATCH_AGE, watches().filter_map(|(label, watch)| Some((label, age(watch)?))));
    page.family(
        &WATCH_FAILING,
        watches().map(|(label, watch)| (label, f64::from(u8::from(watch.last_error.is_some())))),
    );
    page.family(&WATCH_LISTS, watches().map(|(label, watch)| (label, watch.lists as f64)));
    page.family(&DIRECTORY_SKIPPED, one(discovery.work.skipped as f64));
    let claims = discovery.claims;
    let results = [("verified", claims.verified), ("false", claims.refuted), ("unknown", claims.unknown)];
    page.family(&CLAIMS, results.map(|(result, count)| (vec![result], count as f64)));
    page.family(&CLAIM_NODES, one(claims.nodes as f64));
    page.family(&DIRECTORY_PROBLEMS, one(discovery.problems.len() as f64 + discovery.problems_dropped as f64));
}

fn process_state(page: &mut Page, started: SystemTime) {
    let usage = Usage::now();
    page.family(&START, one(unix_seconds(started)));
    page.family(&CPU, maybe(usage.cpu.map(|cpu| cpu.as_secs_f64())));
    page.family(&RESIDENT, maybe(usage.resident_bytes.map(|bytes| bytes as f64)));
    page.family(&VIRTUAL, maybe(usage.virtual_bytes.map(|bytes| bytes as f64)));
    page.family(&THREADS, maybe(usage.threads.map(|threads| threads as f64)));
    page.family(&OPEN_FILES, maybe(usage.open_files.map(|files| files as f64)));
    page.family(&MAX_FILES, maybe(usage.max_files.map(|files| files as f64)));
}

fn one(value: f64) -> [(Vec<&'static str>, f64); 1] {
    [(Vec::new(), value)]
}

fn maybe(value: Option<f64>) -> Option<(Vec<&'static str>, f64)> {
    value.map(|value| (Vec::new(), value))
}
