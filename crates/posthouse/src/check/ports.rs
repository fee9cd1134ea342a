//! Ports: who else takes one of the proxy's on a node. Seen are pods that declare what they take; a program of the node
//! itself shows only when a proxy finds its port taken and ends, which `workload` tells.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;

use super::api::Cluster;
use super::workload::{Ports, name, node_name, node_of, ready_nodes};
use super::{Finding, Id};

/// As the program words it (`server::cannot_listen`).
pub(super) const TAKEN: &str = "another program listens there";

/// A port of a node that a pod takes, as it declares.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    node: String,
    /// `namespace/name`.
    pod: String,
    port: u16,
    /// The pod is on the host's network; otherwise the node forwards its port to the pod.
    host_network: bool,
}

pub(super) async fn check(
    cluster: &Cluster,
    nodes: &[Node],
    proxies: &[Pod],
    last_words: &HashMap<String, String>,
    ports: Ports,
) -> Vec<Finding> {
    let api = Api::<Pod>::all(cluster.client.clone());
    let params = match nodes {
        // Asked for by --node: not every pod of a large cluster for that.
        [node] => ListParams::default().fields(&format!("spec.nodeName={}", node_name(node))),
        _ => ListParams::default(),
    };
    let ours: BTreeSet<(Option<&str>, &str)> =
        proxies.iter().map(|pod| (pod.metadata.namespace.as_deref(), name(pod))).collect();
    let looked = |pod: Pod| match ours.contains(&(pod.metadata.namespace.as_deref(), name(&pod))) {
        true => None,
        false => Some(claims(&pod, ports)).filter(|claims| !claims.is_empty()),
    };
    match cluster.list(&api, params, looked).await {
        Ok(claims) => judge(&claims.concat(), nodes, proxies, last_words, ports),
        Err(trouble) => vec![trouble.finding(Id::Ports, "other pods' ports", "list pods of all namespaces")],
    }
}

fn claims(pod: &Pod, ports: Ports) -> Vec<Claim> {
    let ended = pod.status.as_ref().is_some_and(|s| matches!(s.phase.as_deref(), Some("Succeeded" | "Failed")));
    let (Some(spec), Some(node)) = (&pod.spec, node_of(pod)) else {
        return Vec::new();
    };
    if ended {
        return Vec::new();
    }
    let host_network = spec.host_network == Some(true);
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let declared = containers.flat_map(|container| container.ports.iter().flatten());
    let taken = declared.filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
    let taken = taken.filter_map(|port| if host_network { Some(port.container_port) } else { port.host_port });
    let taken: BTreeSet<u16> = taken.filter_map(|port| u16::try_from(port).ok()).collect();
    let pod = format!("{}/{}", pod.metadata.namespace.as_deref().unwrap_or_default(), name(pod));
    let claim = |port: &u16| Claim { node: node.to_owned(), pod: pod.clone(), port: *port, host_network };
    taken.iter().filter(|port| ports.all().contains(port)).map(claim).collect()
}

fn judge(
    claims: &[Claim],
    nodes: &[Node],
    proxies: &[Pod],
    last_words: &HashMap<String, String>,
    ports: Ports,
) -> Vec<Finding> {
    let asked: BTreeSet<&str> = nodes.iter().map(node_name).collect();
    let ready = ready_nodes(proxies);
    let mut findings = Vec::new();
    for Claim { node, pod, port, host_network } in claims.iter().filter(|claim| asked.contains(claim.node.as_str())) {
        let finding = match (host_network, ready.contains(node)) {
            // The proxy has the port, and whoever declares it does not, or shares it on another address.
            (true, true) => Finding::warn(
                Id::Ports,
                format!("pod {pod} is on the host's network and declares port {port}, which the proxy has"),
            ),
            (true, false) => Finding::fail(
                Id::Ports,
                format!("pod {pod} is on the host's network and declares port {port}, which the proxy needs"),
            ),
            (false, _) => Finding::fail(
                Id::Ports,
                format!("pod {pod} has the hostPort {port}: the node forwards to it what is meant for the proxy"),
            ),
        };
        findings.push(finding.on(node).hint("give that pod another port; the proxy's are the same on every node"));
    }
    if findings.is_empty() {
        let found_taken = |proxy: &Pod| last_words.get(name(proxy)).is_some_and(|words| words.contains(TAKEN));
        // That is the fault of a node without a proxy, and told once, with it.
        let whose = match proxies.iter().any(found_taken) {
            true => "; what a proxy found taken has a program of the node itself, or a pod that does not declare it",
            false => "",
        };
        let message = format!("no other pod declares one of the ports {} on a node{whose}", list(ports));
        findings.push(Finding::ok(Id::Ports, message));
    }
    findings
}

fn list(ports: Ports) -> String {
    ports.all().map(|port| port.to_string()).join(", ")
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json! borrows, and calls read better with literals")]
mod tests {
    use serde_json::{Value, json};

    use super::super::Verdict;
    use super::*;

    fn pod(name: &str, node: &str, mut spec: Value) -> Pod {
        spec["nodeName"] = node.into();
        serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec})).unwrap()
    }

    fn with_ports(ports: Value, host_network: bool) -> Value {
        json!({"hostNetwork": host_network, "containers": [{"name": "c", "ports": ports}]})
    }

    fn ready_proxy(node: &str) -> Pod {
        let mut proxy = pod("proxy", node, json!({"containers": []}));
        proxy.status = serde_json::from_value(json!({"conditions": [{"type": "Ready", "status": "True"}]})).unwrap();
        proxy
    }

    fn nodes() -> Vec<Node> {
        serde_json::from_value(json!([{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}])).unwrap()
    }

    fn judged(others: &[Pod], proxies: &[Pod]) -> Vec<Finding> {
        let ports = Ports::of(None);
        let claims: Vec<Claim> = others.iter().flat_map(|pod| claims(pod, ports)).collect();
        judge(&claims, &nodes(), proxies, &HashMap::new(), ports)
    }

    #[test]
    fn a_pod_takes_what_it_declares_on_the_node() {
        let ports = Ports::of(None);
        let taken = |spec| claims(&pod("p", "a", spec), ports).iter().map(|claim| claim.port).collect::<Vec<_>>();
        assert_eq!(taken(with_ports(json!([{"containerPort": 4140}, {"containerPort": 80}]), true)), [4140]);
        assert_eq!(taken(with_ports(json!([{"containerPort": 4140}]), false)), [0_u16; 0], "its own network");
        assert_eq!(taken(with_ports(json!([{"containerPort": 80, "hostPort": 9991}]), false)), [9991]);
        assert_eq!(taken(with_ports(json!([{"containerPort": 4140, "protocol": "UDP"}]), true)), [0_u16; 0]);
        let sidecar = json!({"hostNetwork": true, "containers": [], "initContainers": [{"name": "i", "ports": [{"containerPort": 9990}]}]});
        assert_eq!(taken(sidecar), [9990]);
        let mut done = pod("p", "a", with_ports(json!([{"containerPort": 4140}]), true));
        done.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
        assert_eq!(claims(&done, ports), []);
    }

    #[test]
    fn a_claim_is_as_bad_as_what_it_does_to_the_proxy() {
        let network = pod("n", "a", with_ports(json!([{"containerPort": 4140}]), true));
        let forwarded = pod("f", "a", with_ports(json!([{"containerPort": 1, "hostPort": 4140}]), false));
        let one = |others: &[Pod], proxies: &[Pod]| {
            let findings = judged(others, proxies);
            assert_eq!(findings.len(), 1, "{findings:?}");
            (findings[0].verdict, findings[0].subject.clone())
        };
        let on_a = Some("node/a".to_owned());
        assert_eq!(one(&[], &[]), (Verdict::Ok, None));
        assert_eq!(one(std::slice::from_ref(&network), &[]), (Verdict::Fail, on_a.clone()));
        assert_eq!(one(std::slice::from_ref(&network), &[ready_proxy("a")]), (Verdict::Warn, on_a.clone()));
        assert_eq!(one(std::slice::from_ref(&network), &[ready_proxy("b")]), (Verdict::Fail, on_a.clone()));
        assert_eq!(one(&[forwarded], &[ready_proxy("a")]), (Verdict::Fail, on_a));
        let elsewhere = pod("n", "c", with_ports(json!([{"containerPort": 4140}]), true));
        assert_eq!(one(&[elsewhere], &[]), (Verdict::Ok, None), "a node that was not asked for");
    }

    #[test]
    fn a_port_that_a_proxy_found_taken_is_no_second_problem() {
        let words = format!("posthouse: --link-listen 10.0.0.1:4141: cannot listen there: in use; {TAKEN}");
        let proxy = pod("proxy", "b", json!({"containers": []}));
        let said = HashMap::from([("proxy".to_owned(), words)]);
        let findings = judge(&[], &nodes(), &[proxy], &said, Ports::of(None));
        assert_eq!(findings.len(), 1);
        assert!(
            findings[0].verdict == Verdict::Ok && findings[0].message.contains("a program of the node"),
            "{findings:?}"
        );
    }
}
