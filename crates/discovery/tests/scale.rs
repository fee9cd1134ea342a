//! The size that discovery is built for: 20,000 Services with 100,000 endpoints from a folder, within 200 MiB, and one
//! changed slice at the cost of that slice. Each format runs in a process of its own, so that its memory can be read.
//! What is asserted of time is work done, not seconds; the seconds are printed.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are test code, too")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use posthouse_discovery::{Settings, Source, start};
use posthouse_model::DirectoryHandle;

const SERVICES: usize = 20_000;
const ENDPOINTS: usize = 5;
const NODES: usize = 1_000;
const PER_FILE: usize = 100;
/// The most memory that the process may have at any time, in KiB.
const LIMIT_KIB: u64 = 200 * 1024;

#[test]
fn twenty_thousand_services_as_json() {
    in_a_process("json");
}

#[test]
fn twenty_thousand_services_as_yaml() {
    in_a_process("yaml");
}

fn in_a_process(format: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "measured", "--ignored", "--nocapture"])
        .env("SCALE_FORMAT", format)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines().filter(|line| line.starts_with(format)) {
        println!("{line}");
    }
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "the measured test must have run: {text}");
}

#[test]
#[ignore = "run by the tests above, in a process of its own"]
fn measured() {
    let format = std::env::var("SCALE_FORMAT").unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_cluster(folder.path(), &format);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let handle = DirectoryHandle::default();
        let mut changes = handle.subscribe();
        let began = Instant::now();
        let settings = Settings {
            source: Source::Dir(folder.path().to_owned()),
            node_name: Arc::from("node-0"),
            namespace: Arc::from("posthouse"),
            snapshot: None,
        tls_secret_namespaces: Vec::new(),
        };
        let discovery = start(settings, handle.clone()).await.unwrap();
        wait(&mut changes, || handle.load().complete).await;
        let loaded = began.elapsed();
        let size = handle.load().size();
        assert_eq!((size.services, size.endpoints, size.nodes), (SERVICES, SERVICES * ENDPOINTS, NODES));
        let (after_load, peak_load) = memory();

        // One slice changes, each time in another file.
        let (mut times, mut publishing) = (Vec::new(), Vec::new());
        for round in 1..=20_usize {
            let before = discovery.status().work;
            let service = round * 137;
            let changed = file(&format, service / PER_FILE, Some((service, round)));
            let path = folder.path().join(format!("shop-{}.{format}", service / PER_FILE));
            let next = folder.path().join(".next");
            std::fs::write(&next, changed).unwrap();
            let began = Instant::now();
            std::fs::rename(&next, &path).unwrap();
            let seen = || handle.load().service(&format!("shop/web-{service}")).unwrap().ports[0].endpoints.ready();
            wait(&mut changes, || seen() == ENDPOINTS - 1).await;
            times.push(began.elapsed());
            let status = discovery.status();
            publishing.push(status.last_publish.unwrap());
            let now = status.work;
            assert_eq!(now.rebuilt - before.rebuilt, 1, "one Service is rebuilt");
            assert_eq!(now.published - before.published, 1, "one directory is published");
            // Its file holds a hundred others.
            assert_eq!(now.parsed - before.parsed, 1, "one document is parsed");
        }
        times.sort();
        publishing.sort();
        let (resident, peak) = memory();
        println!(
            "{format}: loaded in {loaded:?}; RSS {} MiB (peak {} MiB) after loading, {} MiB (peak {} MiB) at the end; \
             a changed slice is in force after {:?} (median), {:?} (worst), of which translation and publication {:?} (median), {:?} (worst)",
            after_load / 1024,
            peak_load / 1024,
            resident / 1024,
            peak / 1024,
            times[times.len() / 2],
            times[times.len() - 1],
            publishing[publishing.len() / 2],
            publishing[publishing.len() - 1],
        );
        assert!(peak < LIMIT_KIB, "peak of {peak} KiB");
    });
}

async fn wait(changes: &mut tokio::sync::watch::Receiver<u64>, done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(120), waiting).await.expect("the change arrives");
}

/// Resident memory now and at its highest, in KiB.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (field("VmRSS:"), field("VmHWM:"))
}

fn write_cluster(folder: &Path, format: &str) {
    for number in 0..SERVICES / PER_FILE {
        std::fs::write(folder.join(format!("shop-{number}.{format}")), file(format, number, None)).unwrap();
    }
    let mut nodes = String::new();
    for node in 0..NODES {
        let (a, b) = (node / 250, node % 250);
        writeln!(
            nodes,
            r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"node-{node}"}},"spec":{{"podCIDR":"10.{a}.{b}.0/24"}},"status":{{"addresses":[{{"type":"InternalIP","address":"192.168.{a}.{b}"}}]}}}}"#
        )
        .unwrap();
    }
    std::fs::write(folder.join("nodes.json"), nodes).unwrap();
}

/// A file with a hundred Services and their slices; in one of them, one endpoint may be not ready.
fn file(format: &str, number: usize, changed: Option<(usize, usize)>) -> String {
    let mut text = String::new();
    if format == "json" {
        text.push_str("{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[\n");
    }
    for service in number * PER_FILE..(number + 1) * PER_FILE {
        let down = changed.filter(|(of, _)| *of == service).map(|(_, round)| round % ENDPOINTS);
        if format == "json" {
            json(&mut text, service, down);
            text.push_str(if service + 1 == (number + 1) * PER_FILE { "\n]}\n" } else { ",\n" });
        } else {
            yaml(&mut text, service, down);
        }
    }
    text
}

fn json(text: &mut String, service: usize, down: Option<usize>) {
    let (a, b) = (service / 250, service % 250);
    write!(text, r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"web-{service}","namespace":"shop"}},"spec":{{"clusterIP":"172.20.{a}.{b}","ports":[{{"name":"http","port":80,"targetPort":8080}}]}}}},
{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"name":"web-{service}-abcde","namespace":"shop","labels":{{"kubernetes.io/service-name":"web-{service}"}}}},"addressType":"IPv4","ports":[{{"name":"http","port":8080,"protocol":"TCP"}}],"endpoints":["#).unwrap();
    for endpoint in 0..ENDPOINTS {
        let e = Shown::new(service, endpoint, down);
        if endpoint > 0 {
            text.push(',');
        }
        write!(text, r#"{{"addresses":["{}"],"conditions":{{"ready":{},"serving":{},"terminating":false}},"nodeName":"{}","zone":"{}","targetRef":{{"kind":"Pod","namespace":"shop","name":"{}","uid":"{}"}}}}"#, e.ip, e.ready, e.ready, e.node, e.zone, e.pod, e.uid).unwrap();
    }
    text.push_str("]}");
}

fn yaml(text: &mut String, service: usize, down: Option<usize>) {
    let (a, b) = (service / 250, service % 250);
    write!(text, "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: web-{service}\n  namespace: shop\nspec:\n  clusterIP: 172.20.{a}.{b}\n  ports:\n  - name: http\n    port: 80\n    targetPort: 8080\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-{service}-abcde\n  namespace: shop\n  labels:\n    kubernetes.io/service-name: web-{service}\naddressType: IPv4\nports:\n- name: http\n  port: 8080\n  protocol: TCP\nendpoints:\n").unwrap();
    for endpoint in 0..ENDPOINTS {
        let e = Shown::new(service, endpoint, down);
        write!(text, "- addresses:\n  - {}\n  conditions:\n    ready: {}\n    serving: {}\n    terminating: false\n  nodeName: {}\n  zone: {}\n  targetRef:\n    kind: Pod\n    namespace: shop\n    name: {}\n    uid: {}\n", e.ip, e.ready, e.ready, e.node, e.zone, e.pod, e.uid).unwrap();
    }
}

struct Shown {
    ip: String,
    ready: bool,
    node: String,
    zone: String,
    pod: String,
    uid: String,
}

impl Shown {
    fn new(service: usize, endpoint: usize, down: Option<usize>) -> Self {
        let number = service * ENDPOINTS + endpoint;
        Self {
            ip: format!("10.{}.{}.{}", 100 + number / 62_500, number / 250 % 250, number % 250 + 1),
            ready: down != Some(endpoint),
            node: format!("node-{}", number % NODES),
            zone: format!("zone-{}", number % 3),
            pod: format!("web-{service}-6f7c9d8b5d-{number:05}"),
            uid: format!("{number:08x}-1111-4222-8333-444455556666"),
        }
    }
}
