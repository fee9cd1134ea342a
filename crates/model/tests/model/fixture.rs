//! A small cluster to ask questions of.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use posthouse_model::{
    AppProtocol, Authority, Destination, Directory, Endpoint, EndpointSet, EndpointState, EndpointStats, Node, PodRef,
    Service, ServiceKind, ServicePort, Unresolved, address,
};

pub(crate) const DOMAIN: &str = "cluster.local";

/// An endpoint of a pod, refused when the address may not be dialled.
pub(crate) struct Pod<'a> {
    pub(crate) address: &'a str,
    pub(crate) hostname: Option<&'a str>,
    pub(crate) state: EndpointState,
    pub(crate) host_network: bool,
}

pub(crate) fn pod(address: &str) -> Pod<'_> {
    Pod { address, hostname: None, state: EndpointState::Ready, host_network: false }
}

impl Pod<'_> {
    pub(crate) fn endpoint(&self, directory: &Directory) -> Arc<Endpoint> {
        let address: SocketAddr = self.address.parse().unwrap();
        Arc::new(Endpoint {
            address,
            node: None,
            zone: None,
            hostname: self.hostname.map(Arc::from),
            pod: Some(PodRef { namespace: "shop".into(), name: "pod".into(), uid: self.address.into() }),
            state: self.state,
            refusal: address::check(address.ip(), address.port(), self.host_network, directory).err(),
            stats: Arc::new(EndpointStats::default()),
        })
    }
}

/// A Service; `ports` are its numbers with the endpoints behind each.
pub(crate) fn service(directory: &Directory, key: &str, kind: ServiceKind, ports: &[(u16, &[Pod<'_>])]) -> Service {
    let (namespace, name) = key.split_once('/').unwrap();
    let ports = ports.iter().map(|(port, pods)| ServicePort {
        name: port.to_string().into(),
        port: *port,
        app_protocol: AppProtocol::Unknown,
        endpoints: Arc::new(EndpointSet::new(pods.iter().map(|pod| pod.endpoint(directory)).collect())),
    });
    Service {
        namespace: namespace.into(),
        name: name.into(),
        kind,
        tls: None,
        backend: None,
        ports: ports.collect(),
        changed: SystemTime::now(),
    }
}

pub(crate) fn cluster_ip(ips: &[&str]) -> ServiceKind {
    ServiceKind::ClusterIp(ips.iter().map(|ip| ip.parse().unwrap()).collect())
}

pub(crate) fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Node {
    Node {
        name: name.into(),
        addresses: addresses.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect(),
        pod_cidrs: pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
    }
}

/// Namespace shop: web (ports 80 and 9090, two families), db (headless, port 5432), cache (one odd port), old
/// (ExternalName), bad (hand-written endpoints that may not be dialled), host (a host-network pod). Namespace other: web.
pub(crate) fn cluster() -> Directory {
    let mut d = Directory::default();
    d.put_node(node("n1", &["10.1.0.1", "fd01::1"], &["10.2.0.0/24", "fd02::/64"]));
    let ready = EndpointState::Ready;
    let web = service(
        &d,
        "shop/web",
        cluster_ip(&["10.96.0.10", "fd96::10"]),
        &[(80, &[pod("10.2.0.5:8080"), pod("[fd02::5]:8080")]), (9090, &[pod("10.2.0.5:9090")])],
    );
    d.put_service(web);
    let named = |address, hostname, state| Pod { address, hostname: Some(hostname), state, host_network: false };
    let db = service(
        &d,
        "shop/db",
        ServiceKind::Headless,
        &[(
            5432,
            &[
                named("10.2.0.20:15432", "db-0", EndpointState::Draining),
                named("10.2.0.21:15432", "db-0", ready),
                named("10.2.0.22:15432", "db-1", EndpointState::NotReady),
            ],
        )],
    );
    d.put_service(db);
    d.put_service(service(&d, "shop/cache", cluster_ip(&["10.96.0.11"]), &[(11211, &[pod("10.2.0.30:11211")])]));
    d.put_service(service(&d, "shop/old", ServiceKind::ExternalName("example.com".into()), &[]));
    d.put_service(service(&d, "shop/none", cluster_ip(&["10.96.0.12"]), &[]));
    let bad = [pod("127.0.0.1:8081"), pod("169.254.169.254:80"), pod("10.1.0.1:10250"), pod("[::ffff:10.2.0.5]:80")];
    d.put_service(service(&d, "shop/bad", ServiceKind::Headless, &[(80, &bad)]));
    let host = Pod { host_network: true, ..pod("10.1.0.1:8443") };
    d.put_service(service(&d, "shop/host", cluster_ip(&["10.96.0.13"]), &[(443, &[host])]));
    d.put_service(service(&d, "other/web", cluster_ip(&["10.96.1.10"]), &[(80, &[pod("10.2.0.50:80")])]));
    d.put_service(service(&d, "svc/api", cluster_ip(&["10.96.1.11"]), &[(80, &[pod("10.2.0.51:80")])]));
    d
}

/// Resolves for a client in `namespace`, with the default port of http.
pub(crate) fn resolve(d: &Directory, authority: &str, namespace: Option<&str>) -> Result<Destination, Unresolved> {
    d.resolve(&Authority::parse(authority).unwrap(), 80, namespace, DOMAIN)
}
