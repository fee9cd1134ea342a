//! The corpus of `crates/model/tests/data/ssrf` as a user would write it into manifests: what discovery makes of each.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code, too")]

use std::fmt::Write;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use posthouse_discovery::{Settings, Source, start};
use posthouse_model::{DirectoryHandle, ServiceKind};
use serde_json::json;

#[path = "../../model/tests/data/ssrf/corpus.rs"]
#[allow(dead_code, reason = "each test uses its own part")]
mod corpus;

/// A Service `name` of namespace `shop`, and its slice with one ready endpoint.
fn with_slice(name: &str, address: &str, port: u16, node: &str) -> [serde_json::Value; 2] {
    let family = if address.contains(':') { "IPv6" } else { "IPv4" };
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"ports": [{"name": "http", "port": 80}]}
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{name}-x"), "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
            "addressType": family, "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}, "nodeName": node,
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": "pod", "uid": "u"}}]
        }),
    ]
}

/// Every slice endpoint of the corpus is refused or is no endpoint at all, whichever node it claims to be on; every
/// ExternalName stays outside.
#[tokio::test]
async fn no_manifest_makes_an_entry_usable() {
    let node = |name: &str, ips: &[&str], ranges: &[&str]| {
        let addresses: Vec<_> = ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDRs": ranges},
            "status": {"addresses": addresses}})
    };
    let mut items = vec![
        node("n1", &["10.1.0.1", "fd01::1"], &["10.2.0.0/24", "fd02::/64"]),
        node("node-a", &["10.1.0.2"], &["10.3.0.0/24"]),
    ];
    items.extend(with_slice("good", "10.2.0.5", 8080, "n1"));
    let slices = corpus::over("slice");
    for (number, entry) in slices.iter().enumerate() {
        let (host, port) = entry.parts();
        for node in ["node-a", "other"] {
            items.extend(with_slice(&format!("s{number}-{node}"), host, port.unwrap_or(80), node));
        }
    }
    let externals = corpus::over("external");
    for (number, entry) in externals.iter().enumerate() {
        items.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("e{number}"), "namespace": "shop"},
            "spec": {"type": "ExternalName", "externalName": entry.spelling}
        }));
    }
    let folder = tempfile::tempdir().unwrap();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    fs::write(folder.path().join("all.json"), list.to_string()).unwrap();
    let settings = Settings {
        source: Source::Dir(folder.path().to_owned()),
        node_name: Arc::from("node-a"),
        namespace: Arc::from("mesh"),
        snapshot: None,
        tls_secret_namespaces: Vec::new(),
    };
    let handle = DirectoryHandle::default();
    let mut changes = handle.subscribe();
    let _discovery = start(settings, handle.clone()).await.unwrap();
    while !handle.load().complete {
        tokio::time::timeout(Duration::from_secs(30), changes.changed()).await.unwrap().unwrap();
    }

    let directory = handle.load();
    let usable = |name: &str| {
        let service = directory.service(&format!("shop/{name}")).unwrap_or_else(|| panic!("no Service {name}"));
        service.ports.iter().flat_map(|port| port.endpoints.usable()).count()
    };
    assert_eq!(usable("good"), 1, "the manifests are such that a sound address is usable");
    let mut wrong = String::new();
    for (number, entry) in slices.iter().enumerate() {
        for node in ["node-a", "other"] {
            let name = format!("s{number}-{node}");
            if usable(&name) != 0 {
                writeln!(wrong, "'{}' on {node} is a usable endpoint", entry.spelling).unwrap();
            }
            let all: Vec<_> = directory.service(&format!("shop/{name}")).unwrap().ports[0].endpoints.all().to_vec();
            let refusals: Vec<String> =
                all.iter().filter_map(|e| e.refusal.map(|refusal| format!("{refusal:?}"))).collect();
            if entry.is_refused_address() && refusals != [entry.verdict("slice")] {
                writeln!(wrong, "'{}' on {node}: {refusals:?}", entry.spelling).unwrap();
            }
        }
    }
    for (number, entry) in externals.iter().enumerate() {
        // As a DNS name: in lower case, without its final dot; nothing else is repaired.
        let name = entry.spelling.trim_end_matches('.').to_ascii_lowercase();
        match directory.service(&format!("shop/e{number}")).map(|service| &service.kind) {
            Some(ServiceKind::ExternalName(target)) if **target == *name => {}
            None if name.is_empty() => {}
            other => writeln!(wrong, "ExternalName '{}': {other:?}", entry.spelling).unwrap(),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
