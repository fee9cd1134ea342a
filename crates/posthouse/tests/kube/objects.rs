//! Objects as the API server lists them: without kind and apiVersion. Everything is in the namespace `shop`.

use serde_json::{Value, json};

/// An endpoint: its node and its address.
pub(crate) type Member = (&'static str, &'static str);

pub(crate) fn node(name: &str, ip: &str, pod_cidr: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"podCIDR": pod_cidr},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}]},
    })
}

/// A Pod of node-a.
pub(crate) fn own_pod(name: &str, ip: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{ip}")},
        "spec": {"nodeName": "node-a", "serviceAccountName": "default"},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

pub(crate) fn service(name: &str, cluster_ip: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": cluster_ip, "ports": [{"name": "http", "port": 80, "appProtocol": "http"}]},
    })
}

/// The one slice of a Service: every member listens on `port`.
pub(crate) fn slice(service: &str, port: u16, members: &[Member]) -> Value {
    let endpoints: Vec<Value> = members
        .iter()
        .map(|(node, ip)| {
            json!({
                "addresses": [ip],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": node,
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": format!("pod-{ip}"), "uid": format!("uid-{ip}")},
            })
        })
        .collect();
    json!({
        "metadata": {
            "name": format!("{service}-1"),
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port}],
        "endpoints": endpoints,
    })
}

/// The same object, but nobody can tell what is in it.
pub(crate) fn slice_of_wrong_types(service: &str) -> Value {
    let mut slice = slice(service, 1, &[]);
    slice["endpoints"] = json!([{"addresses": "all of them"}]);
    slice
}
