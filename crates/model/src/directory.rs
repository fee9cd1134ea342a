//! The directory: what this node knows of the cluster, as one immutable value that is swapped whole.
//!
//! [`Directory`] is built on persistent maps: a clone costs O(1) and a changed Service O(log n), so one changed
//! EndpointSlice costs that slice and not the cluster, and readers never wait. `discovery` clones the newest one,
//! changes it with the `put_*`/`remove_*` methods (which keep the indexes true) and publishes it through the
//! [`DirectoryHandle`]; a request takes one snapshot at its start, and a further one for
//! a further try.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use posthouse_policy::Set;
use smallvec::SmallVec;
use tokio::sync::watch;

use crate::address::Refusal;
use crate::stats::EndpointStats;

/// `namespace/name` of a Service, as one string so that a lookup needs no allocation of two.
pub type ServiceKey = Arc<str>;

/// What a Service port's `appProtocol` says of the bytes behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// Nothing, or a value that we do not know: detect.
    #[default]
    Unknown,
    /// `http`: HTTP/1.1.
    Http1,
    /// `kubernetes.io/h2c`, `h2c`, `http2`: HTTP/2 with prior knowledge.
    H2c,
    /// `grpc`: HTTP/2 that carries gRPC.
    Grpc,
    /// `kubernetes.io/ws`: HTTP/1.1 that will be upgraded.
    WebSocket,
    /// `https`: HTTP within TLS of the application. What clients send in TLS is opaque to us.
    Https,
    /// `tls`, `kubernetes.io/wss`: TLS of the application, opaque to us.
    Tls,
    /// `tcp` and known non-HTTP protocols: opaque.
    Tcp,
}

impl AppProtocol {
    /// Reads a Service port's `appProtocol`. Unknown values mean detection, as if absent.
    #[must_use]
    pub fn parse(value: Option<&str>) -> Self {
        match value.map(str::to_ascii_lowercase).as_deref() {
            Some("http" | "http/1.1" | "http1") => Self::Http1,
            Some("kubernetes.io/h2c" | "h2c" | "http2") => Self::H2c,
            Some("grpc") => Self::Grpc,
            Some("kubernetes.io/ws" | "ws") => Self::WebSocket,
            Some("https") => Self::Https,
            Some("tls" | "kubernetes.io/wss" | "wss" | "grpcs") => Self::Tls,
            Some("tcp" | "redis" | "mysql" | "postgres" | "postgresql" | "mongo" | "mongodb" | "kafka" | "amqp") => {
                Self::Tcp
            }
            _ => Self::Unknown,
        }
    }

    /// Whether bytes for this port are never looked into.
    #[must_use]
    pub fn is_opaque(self) -> bool {
        matches!(self, Self::Https | Self::Tls | Self::Tcp)
    }

    /// The name shown in the admin API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "detect",
            Self::Http1 => "http",
            Self::H2c => "h2c",
            Self::Grpc => "grpc",
            Self::WebSocket => "ws",
            Self::Https => "https",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }
}

/// How a Service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// With these cluster addresses (one for each family).
    ClusterIp(SmallVec<[IpAddr; 2]>),
    /// `clusterIP: None`.
    Headless,
    /// `type: ExternalName`: its target is outside the directory, so it is egress.
    ExternalName(Arc<str>),
}

/// A Service with everything needed to serve a request to it.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Cluster addresses or their absence.
    pub kind: ServiceKind,
    /// Its own certificate and how it is verified, where it is annotated with one.
    pub tls: Option<Arc<ServiceTls>>,
    /// How TLS is made to its pods; there is one where a port is [`AppProtocol::Https`].
    pub backend: Option<Arc<BackendTls>>,
    /// Its TCP ports, in the Service's order.
    pub ports: Vec<ServicePort>,
    /// When its endpoints or ports last changed, for error messages.
    pub changed: SystemTime,
}

impl Service {
    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> ServiceKey {
        service_key(&self.namespace, &self.name)
    }
}

/// A Service's own certificate (annotation `posthouse.io/tls-secret`), as its Secret has it: PEM that nobody has checked yet.
/// Compared by pointer: a new value is a new certificate.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ServiceTls {
    /// `tls.crt`: the chain.
    pub certificates: Vec<u8>,
    /// `tls.key`.
    pub key: Vec<u8>,
    /// `ca.crt` of the Secret or of the annotated ConfigMap: what senders verify the Service by.
    pub roots: Vec<u8>,
    /// Why one of them is missing, in words: then the Service is not served.
    pub problem: Option<Arc<str>>,
}

impl std::fmt::Debug for ServiceTls {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceTls").field("problem", &self.problem).finish_non_exhaustive()
    }
}

/// How we make TLS to the pods of a Service (annotations `posthouse.io/backend-tls*`), for plain requests to its `https` ports. Compared
/// by pointer, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTls {
    /// Whether the pods' certificates are verified; not by `posthouse.io/backend-tls: insecure`.
    pub verify: bool,
    /// What they are verified by: PEM that nobody has checked yet.
    pub roots: Vec<u8>,
    /// The name that their certificates must have and that is asked for (SNI).
    pub hostname: Arc<str>,
    /// Why that cannot be done, in words: then no TLS is made.
    pub problem: Option<Arc<str>>,
}

/// Makes the `namespace/name` key of a Service.
#[must_use]
pub fn service_key(namespace: &str, name: &str) -> ServiceKey {
    Arc::from([namespace, "/", name].concat())
}

/// One port of a Service and the endpoints behind it.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Its name; empty when unnamed.
    pub name: Arc<str>,
    /// The number that clients use.
    pub port: u16,
    /// What it speaks.
    pub app_protocol: AppProtocol,
    /// The pods behind it.
    pub endpoints: Arc<EndpointSet>,
}

/// The endpoints of one Service port, ordered so that those that may get requests come first.
#[derive(Debug, Default)]
pub struct EndpointSet {
    all: Vec<Arc<Endpoint>>,
    ready: usize,
    draining: usize,
}

impl EndpointSet {
    /// Orders `endpoints`: usable ready ones, usable terminating but serving ones, the rest. The order within a group
    /// is by address, so that equal inputs make equal sets.
    #[must_use]
    pub fn new(mut endpoints: Vec<Arc<Endpoint>>) -> Self {
        fn rank(endpoint: &Endpoint) -> u8 {
            match endpoint.state {
                _ if endpoint.refusal.is_some() => 2,
                EndpointState::Ready => 0,
                EndpointState::Draining => 1,
                EndpointState::NotReady => 2,
            }
        }
        endpoints.sort_by_key(|e| (rank(e), e.address));
        let ready = endpoints.iter().filter(|e| rank(e) == 0).count();
        let draining = endpoints.iter().filter(|e| rank(e) == 1).count();
        Self { all: endpoints, ready, draining }
    }

    /// Those to pick from: the ready ones or, when there are none, those that terminate but still serve.
    #[must_use]
    pub fn usable(&self) -> &[Arc<Endpoint>] {
        if self.ready > 0 { &self.all[..self.ready] } else { &self.all[..self.draining] }
    }

    /// All of them, for the admin API and for error messages.
    #[must_use]
    pub fn all(&self) -> &[Arc<Endpoint>] {
        &self.all
    }

    /// How many are ready.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready
    }
}

/// Whether an endpoint may get new requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// `ready` and not `terminating`.
    Ready,
    /// `terminating` and still `serving`: used only when nothing is ready.
    Draining,
    /// Neither.
    NotReady,
}

/// One address and port that serves a Service port.
#[derive(Debug)]
pub struct Endpoint {
    /// Where the pod listens.
    pub address: SocketAddr,
    /// The node that it runs on, if the slice says so.
    pub node: Option<Arc<str>>,
    /// Its zone, if the slice says so.
    pub zone: Option<Arc<str>>,
    /// Its own name below a headless Service.
    pub hostname: Option<Arc<str>>,
    /// The pod behind it; endpoints written by hand have none.
    pub pod: Option<PodRef>,
    /// May it get requests?
    pub state: EndpointState,
    /// Why the address must never be dialled, if so (see [`crate::address`]); such an endpoint is shown but not used.
    pub refusal: Option<Refusal>,
    /// Shared by all workers, kept across updates.
    pub stats: Arc<EndpointStats>,
}

/// Names a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its uid; empty when the slice does not say.
    pub uid: Arc<str>,
}

/// A pod of this node: a possible client of the outbound port and a possible target of the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace, name and uid.
    pub id: PodRef,
    /// `spec.serviceAccountName`.
    pub service_account: Arc<str>,
    /// `spec.nodeName`.
    pub node: Arc<str>,
    /// `status.podIPs`; a host-network pod has its node's addresses.
    pub addresses: SmallVec<[IpAddr; 2]>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// `status.addresses` of type InternalIP and ExternalIP.
    pub addresses: SmallVec<[IpAddr; 2]>,
    /// `spec.podCIDRs` (or `podCIDR`).
    pub pod_cidrs: SmallVec<[IpNet; 2]>,
}

/// The proxy of another node, as found in the EndpointSlices of the proxies' own headless Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its node.
    pub node: Arc<str>,
    /// Where its link listens.
    pub address: SocketAddr,
    /// Whether its endpoint is ready.
    pub ready: bool,
}

type AddressEntries = SmallVec<[(ServiceKey, Arc<Endpoint>); 1]>;

/// Who says that an address is theirs. Addresses are used again, and the news of the old owner's end may come after the
/// new owner's beginning or its own last update: the latest claim counts, and when it goes the one before counts again.
type Claims<T> = imbl::HashMap<IpAddr, SmallVec<[T; 1]>>;

fn claim<T: Clone>(claims: &mut Claims<T>, ip: IpAddr, owner: T) {
    claims.entry(ip).or_default().push(owner);
}

fn disclaim<T: Clone>(claims: &mut Claims<T>, ip: IpAddr, is_owner: impl Fn(&T) -> bool) {
    let empty = claims.get_mut(&ip).is_none_or(|owners| {
        owners.retain(|owner| !is_owner(owner));
        owners.is_empty()
    });
    if empty {
        claims.remove(&ip);
    }
}

/// What this node knows of the cluster. Cheap to clone; see the module's text.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Counts published versions, for the admin API and the logs.
    pub version: u64,
    /// Whether every kind of object has been listed once; readiness waits for it.
    pub complete: bool,
    services: imbl::HashMap<ServiceKey, Arc<Service>>,
    cluster_ips: Claims<ServiceKey>,
    by_address: imbl::HashMap<SocketAddr, AddressEntries>,
    services_by_ip: imbl::HashMap<IpAddr, SmallVec<[ServiceKey; 1]>>,
    nodes: imbl::HashMap<Arc<str>, Arc<Node>>,
    node_ips: Claims<Arc<str>>,
    peers: imbl::HashMap<Arc<str>, Arc<Peer>>,
    pods: imbl::HashMap<Arc<str>, Arc<Pod>>,
    pod_ips: Claims<Arc<Pod>>,
    endpoints: usize,
    /// Who may call what.
    pub policies: Set,
}

impl Directory {
    /// The Service with key `namespace/name`.
    #[must_use]
    pub fn service(&self, key: &str) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// Every Service, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The Service that owns a cluster address.
    #[must_use]
    pub fn service_by_cluster_ip(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        self.services.get(self.cluster_ips.get(&ip)?.last()?)
    }

    /// The endpoints at exactly this address and port, each with its Service's key; more than one Service may share
    /// a pod.
    #[must_use]
    pub fn endpoints_at(&self, address: SocketAddr) -> &[(ServiceKey, Arc<Endpoint>)] {
        self.by_address.get(&address).map_or(&[], |entries| entries.as_slice())
    }

    /// The keys of the Services that have an endpoint at this address, whatever its port or state, each once and in no
    /// order.
    #[must_use]
    pub fn services_at_ip(&self, ip: IpAddr) -> &[ServiceKey] {
        self.services_by_ip.get(&ip).map_or(&[], |keys| keys.as_slice())
    }

    /// The statistics that an endpoint at `address` with this pod uid already has, so that an update keeps them.
    #[must_use]
    pub fn stats_for(&self, address: SocketAddr, uid: &str) -> Option<Arc<EndpointStats>> {
        self.endpoints_at(address)
            .iter()
            .find(|(_, endpoint)| endpoint.pod.as_ref().map_or("", |pod| &pod.uid) == uid)
            .map(|(_, endpoint)| Arc::clone(&endpoint.stats))
    }

    /// A node by name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// Every node, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// The node that has `ip` as one of its own addresses.
    #[must_use]
    pub fn node_by_ip(&self, ip: IpAddr) -> Option<&Arc<Node>> {
        self.nodes.get(self.node_ips.get(&ip)?.last()?)
    }

    /// The proxy of a node.
    #[must_use]
    pub fn peer(&self, node: &str) -> Option<&Arc<Peer>> {
        self.peers.get(node)
    }

    /// Every peer, in no order.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.peers.values()
    }

    /// The pod of this node with this address. Host-network pods are not found by address: they share the node's.
    #[must_use]
    pub fn pod_by_ip(&self, ip: IpAddr) -> Option<&Arc<Pod>> {
        self.pod_ips.get(&ip)?.last()
    }

    /// A pod of this node by uid.
    #[must_use]
    pub fn pod(&self, uid: &str) -> Option<&Arc<Pod>> {
        self.pods.get(uid)
    }

    /// Every pod of this node that is known, in no order.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// Numbers of Services, endpoints, nodes, peers and own pods.
    #[must_use]
    pub fn size(&self) -> Size {
        Size {
            services: self.services.len(),
            endpoints: self.endpoints,
            nodes: self.nodes.len(),
            peers: self.peers.len(),
            pods: self.pods.len(),
        }
    }

    /// Adds or replaces a Service with all its endpoints.
    pub fn put_service(&mut self, service: Service) {
        let key = service.key();
        self.unindex_service(&key);
        if let ServiceKind::ClusterIp(ips) = &service.kind {
            for ip in ips {
                claim(&mut self.cluster_ips, *ip, Arc::clone(&key));
            }
        }
        for port in &service.ports {
            for endpoint in port.endpoints.all() {
                self.endpoints += 1;
                self.by_address.entry(endpoint.address).or_default().push((Arc::clone(&key), Arc::clone(endpoint)));
                let at_ip = self.services_by_ip.entry(endpoint.address.ip()).or_default();
                if !at_ip.contains(&key) {
                    at_ip.push(Arc::clone(&key));
                }
            }
        }
        self.services.insert(key, Arc::new(service));
    }

    /// Removes a Service.
    pub fn remove_service(&mut self, key: &str) {
        self.unindex_service(key);
        self.services.remove(key);
    }

    fn unindex_service(&mut self, key: &str) {
        let Some(old) = self.services.get(key).cloned() else { return };
        if let ServiceKind::ClusterIp(ips) = &old.kind {
            for ip in ips {
                disclaim(&mut self.cluster_ips, *ip, |owner| &**owner == key);
            }
        }
        for port in &old.ports {
            for endpoint in port.endpoints.all() {
                self.endpoints -= 1;
                let empty = self.by_address.get_mut(&endpoint.address).is_none_or(|entries| {
                    if let Some(at) = entries.iter().position(|(owner, _)| &**owner == key) {
                        entries.remove(at);
                    }
                    entries.is_empty()
                });
                if empty {
                    self.by_address.remove(&endpoint.address);
                }
                let ip = endpoint.address.ip();
                // A Service's second endpoint there finds it gone already.
                let empty = self.services_by_ip.get_mut(&ip).is_none_or(|keys| {
                    keys.retain(|owner| **owner != *key);
                    keys.is_empty()
                });
                if empty {
                    self.services_by_ip.remove(&ip);
                }
            }
        }
    }

    /// Adds or replaces a node.
    pub fn put_node(&mut self, node: Node) {
        self.remove_node(&Arc::clone(&node.name));
        for ip in &node.addresses {
            claim(&mut self.node_ips, *ip, Arc::clone(&node.name));
        }
        self.nodes.insert(Arc::clone(&node.name), Arc::new(node));
    }

    /// Removes a node.
    pub fn remove_node(&mut self, name: &str) {
        let Some(old) = self.nodes.remove(name) else { return };
        for ip in &old.addresses {
            disclaim(&mut self.node_ips, *ip, |owner| &**owner == name);
        }
    }

    /// Replaces the whole set of peers (there is one small Service of them).
    pub fn set_peers(&mut self, peers: impl IntoIterator<Item = Peer>) {
        self.peers = peers.into_iter().map(|peer| (Arc::clone(&peer.node), Arc::new(peer))).collect();
    }

    /// Adds or replaces a pod of this node, keyed by uid.
    pub fn put_pod(&mut self, pod: Pod) {
        self.remove_pod(&Arc::clone(&pod.id.uid));
        let pod = Arc::new(pod);
        if !pod.host_network {
            for ip in &pod.addresses {
                claim(&mut self.pod_ips, *ip, Arc::clone(&pod));
            }
        }
        self.pods.insert(Arc::clone(&pod.id.uid), pod);
    }

    /// Removes a pod of this node. Its address may be a newer pod's by then; that stays so.
    pub fn remove_pod(&mut self, uid: &str) {
        let Some(old) = self.pods.remove(uid) else { return };
        for ip in &old.addresses {
            disclaim(&mut self.pod_ips, *ip, |owner| *owner.id.uid == *uid);
        }
    }
}

/// Sizes of a [`Directory`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Services.
    pub services: usize,
    /// Endpoints over all Service ports.
    pub endpoints: usize,
    /// Nodes.
    pub nodes: usize,
    /// Peers.
    pub peers: usize,
    /// Pods of this node.
    pub pods: usize,
}

/// Where the newest [`Directory`] is found. One writer (discovery), any number of readers, no lock for readers.
#[derive(Clone, Debug)]
pub struct DirectoryHandle {
    current: Arc<ArcSwap<Directory>>,
    changed: watch::Sender<u64>,
}

impl Default for DirectoryHandle {
    fn default() -> Self {
        Self::new(Directory::default())
    }
}

impl DirectoryHandle {
    /// Starts with `directory`.
    #[must_use]
    pub fn new(directory: Directory) -> Self {
        let (changed, _) = watch::channel(directory.version);
        Self { current: Arc::new(ArcSwap::from_pointee(directory)), changed }
    }

    /// The newest directory. Take it once a request (and once a further try) and keep to it.
    #[must_use]
    pub fn load(&self) -> arc_swap::Guard<Arc<Directory>> {
        self.current.load()
    }

    /// The newest directory, to keep for long.
    #[must_use]
    pub fn load_full(&self) -> Arc<Directory> {
        self.current.load_full()
    }

    /// Makes `directory` the newest one and wakes those that wait for a change. Its version becomes the old one's
    /// plus one.
    pub fn publish(&self, mut directory: Directory) {
        directory.version = self.current.load().version + 1;
        let version = directory.version;
        self.current.store(Arc::new(directory));
        self.changed.send_replace(version);
    }

    /// Tells of each later publication (of the newest one, when several happen between two looks).
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
