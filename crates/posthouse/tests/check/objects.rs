//! A cluster with the proxies installed in the namespace `mesh`, as an API server shows it.

use serde_json::{Value, json};

use crate::api_server::Script;

pub(crate) const NAMESPACE: &str = "/api/v1/namespaces/mesh";
pub(crate) const DAEMONSET: &str = "/apis/apps/v1/namespaces/mesh/daemonsets/posthouse";
pub(crate) const DAEMONSETS: &str = "/apis/apps/v1/daemonsets";
pub(crate) const CLUSTER_ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/posthouse";
pub(crate) const PROXIES: &str = "/api/v1/namespaces/mesh/pods";
pub(crate) const PODS: &str = "/api/v1/pods";
pub(crate) const NODES: &str = "/api/v1/nodes";

/// Nothing but nodes.
pub(crate) fn bare(nodes: &[&str]) -> Script {
    let mut script = Script::default();
    script.put("/version", json!({"major": "1", "minor": "36", "gitVersion": "v1.36.3"}));
    let nodes: Vec<Value> = nodes.iter().map(|name| node(name)).collect();
    script.list(NODES, &nodes);
    for node in &nodes {
        script.put(&format!("{NODES}/{}", node["metadata"]["name"].as_str().unwrap()), node.clone());
    }
    script.list(PODS, &[]);
    script.list(DAEMONSETS, &[]);
    script.put(NAMESPACE, json!({"metadata": {"name": "mesh"}}));
    script
}

/// With a DaemonSet and these pods.
pub(crate) fn installed(nodes: &[&str], pods: &[Value]) -> Script {
    let mut script = bare(nodes);
    let desired = nodes.len();
    let template =
        json!({"hostNetwork": true, "serviceAccountName": "posthouse", "containers": [{"name": "posthouse"}]});
    script.put(
        DAEMONSET,
        json!({
            "metadata": {"name": "posthouse", "namespace": "mesh", "generation": 1},
            "spec": {"selector": {"matchLabels": {"app": "posthouse"}}, "template": {"spec": template}},
            "status": {"observedGeneration": 1, "desiredNumberScheduled": desired, "updatedNumberScheduled": desired,
                "currentNumberScheduled": desired, "numberMisscheduled": 0, "numberReady": pods.len()},
        }),
    );
    script.list(PROXIES, pods);
    script.list("/api/v1/namespaces/mesh/events", &[]);
    script
}

fn node(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
        "spec": {"podCIDRs": ["10.1.0.0/24"]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.81.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// A proxy's pod that is ready.
pub(crate) fn proxy(name: &str, node: &str) -> Value {
    let container = json!({"name": "posthouse", "ready": true, "image": "", "imageID": "", "restartCount": 0,
        "state": {"running": {}}});
    json!({
        "metadata": {"name": name, "namespace": "mesh"},
        "spec": {"nodeName": node, "hostNetwork": true, "containers": [{"name": "posthouse"}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [container],
        },
    })
}

/// The same, but it ended and is to begin again, without a termination message.
pub(crate) fn crashing(name: &str, node: &str, code: i32) -> Value {
    let mut pod = proxy(name, node);
    pod["status"]["conditions"] = json!([]);
    pod["status"]["containerStatuses"][0]["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    pod["status"]["containerStatuses"][0]["lastState"] = json!({"terminated": {"exitCode": code, "reason": "Error"}});
    pod["status"]["containerStatuses"][0]["restartCount"] = 4.into();
    pod
}
