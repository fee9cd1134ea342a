//! The topology as the manifests that `kubectl get -o yaml` would show of such a cluster, one file an object kind or
//! Service, so that a reader may edit them while the demo runs and watch the proxies follow.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use crate::topology::{LINK, NODES, Node, Pod, SERVICES, Service, pods};

/// The namespace of the workloads.
const DEMO: &str = "demo";
/// The proxies' own namespace.
pub(crate) const POSTHOUSE: &str = "posthouse";

/// Writes all manifests into `folder`.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write(folder: &Path) -> io::Result<()> {
    std::fs::write(folder.join("nodes.yaml"), documents(NODES.into_iter().map(node)))?;
    std::fs::write(folder.join("clients.yaml"), documents(NODES.into_iter().map(client)))?;
    for one in SERVICES {
        let of_service = pods().filter(|pod| pod.service == one);
        let objects = [service(one), slice(one)].into_iter().chain(of_service.map(workload));
        std::fs::write(folder.join(format!("{}.yaml", one.name)), documents(objects))?;
    }
    std::fs::write(folder.join("posthouse.yaml"), documents([peers_service(), peers_slice()]))
}

fn documents(objects: impl IntoIterator<Item = String>) -> String {
    objects.into_iter().collect::<Vec<_>>().join("---\n")
}

fn node(node: Node) -> String {
    let (name, ip, cidr) = (node.name, node.ip(), node.pod_cidr());
    format!(
        "apiVersion: v1
kind: Node
metadata:
  name: {name}
  uid: {name}-uid
spec:
  podCIDR: {cidr}
  podCIDRs: [{cidr}]
status:
  addresses:
  - type: InternalIP
    address: {ip}
"
    )
}

fn client(node: Node) -> String {
    pod_object(&node.client_pod(), "client", node.name, &node.client_ip().to_string())
}

fn workload(pod: Pod) -> String {
    pod_object(&pod.name(), pod.service.name, pod.node.name, &pod.ip().to_string())
}

fn pod_object(name: &str, app: &str, node: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {DEMO}
  uid: {name}-uid
  labels:
    app: {app}
spec:
  nodeName: {node}
  serviceAccountName: {app}
  containers:
  - name: {app}
    image: {app}
status:
  phase: Running
  podIP: {ip}
  podIPs:
  - ip: {ip}
  conditions:
  - type: Ready
    status: 'True'
"
    )
}

fn service(service: Service) -> String {
    let Service { name, port, target_port, .. } = service;
    let protocol = app_protocol(service);
    // The documentation range of RFC 5737: nothing on this machine answers there, only the proxies know it.
    let cluster_ip = format!("192.0.2.{}", 10 + service.index);
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {DEMO}
spec:
  type: ClusterIP
  clusterIP: {cluster_ip}
  clusterIPs: [{cluster_ip}]
  selector:
    app: {name}
  ports:
  - name: main
    port: {port}
    targetPort: {target_port}
    protocol: TCP
{protocol}"
    )
}

fn slice(service: Service) -> String {
    let Service { name, target_port, .. } = service;
    let protocol = app_protocol(service);
    let mut slice = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-1
  namespace: {DEMO}
  labels:
    kubernetes.io/service-name: {name}
addressType: IPv4
ports:
  - name: main
    port: {target_port}
    protocol: TCP
{protocol}endpoints:
"
    );
    for pod in pods().filter(|pod| pod.service == service) {
        let (pod_name, ip, node) = (pod.name(), pod.ip(), pod.node.name);
        // Writing into a String cannot fail.
        let _ = write!(
            slice,
            "  - addresses: [{ip}]
    conditions: {{ready: true, serving: true, terminating: false}}
    nodeName: {node}
    targetRef: {{kind: Pod, namespace: {DEMO}, name: {pod_name}, uid: {pod_name}-uid}}
"
        );
    }
    slice
}

fn app_protocol(service: Service) -> String {
    service.app_protocol.map_or_else(String::new, |protocol| format!("    appProtocol: {protocol}\n"))
}

/// The headless Service by which the proxies find each other, as the chart makes it.
fn peers_service() -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: posthouse
  namespace: {POSTHOUSE}
spec:
  clusterIP: None
  ports:
  - name: link
    port: {LINK}
    protocol: TCP
"
    )
}

fn peers_slice() -> String {
    let mut slice = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: posthouse-1
  namespace: {POSTHOUSE}
  labels:
    kubernetes.io/service-name: posthouse
addressType: IPv4
ports:
  - name: link
    port: {LINK}
    protocol: TCP
endpoints:
"
    );
    for node in NODES {
        let (ip, name) = (node.ip(), node.name);
        let _ = write!(
            slice,
            "  - addresses: [{ip}]
    conditions: {{ready: true, serving: true, terminating: false}}
    nodeName: {name}
"
        );
    }
    slice
}
