//! Two proxies in one process, node-a on 127.0.61.1 and node-b on 127.0.62.1, each with a directory of its own that the
//! test writes by hand as discovery would.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use posthouse_identity::{Backends, Plain};
use posthouse_model::directory::{
    BackendTls, Endpoint, EndpointSet, Node as NodeObject, Peer, PodRef, Service, ServicePort,
};
use posthouse_model::transport::{BoxIo, Connecting, LinkTransport, PeerIdentity};
use posthouse_model::workload::{NoWorkloads, Workloads};
use posthouse_model::{
    AppProtocol, Directory, DirectoryHandle, EndpointState, EndpointStats, Pod as PodObject, ServiceKind, address,
};
use posthouse_proxy::{Config, Egress, MissingPeer, Proxy, Timeouts, Workers};
use tokio::net::{TcpSocket, TcpStream};

use super::Pod;

pub(crate) const A: &str = "node-a";
pub(crate) const B: &str = "node-b";

/// Both proxies.
pub(crate) struct Mesh {
    pub(crate) a: Node,
    pub(crate) b: Node,
}

/// One of them.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) directory: DirectoryHandle,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) outbound: SocketAddr,
    pub(crate) link: SocketAddr,
    workers: Workers,
}

/// Links in the clear that count as authenticated, for tests of what a proven peer may do.
struct Vouched(Plain);

impl LinkTransport for Vouched {
    fn connect<'a>(&'a self, peer: &'a Peer, service: Option<&'a Service>) -> Connecting<'a, BoxIo> {
        self.0.connect(peer, service)
    }

    fn accept<'a>(
        &'a self,
        stream: TcpStream,
        remote: SocketAddr,
        directory: &'a Directory,
    ) -> Connecting<'a, (PeerIdentity, BoxIo)> {
        let accepting = self.0.accept(stream, remote, directory);
        Box::pin(async {
            let (peer, io) = accepting.await?;
            Ok((PeerIdentity { authenticated: true, ..peer }, io))
        })
    }
}

/// How a mesh's nodes trust each other.
#[derive(Clone)]
pub(crate) struct Trust {
    /// Whether links count as authenticated.
    pub(crate) vouched: bool,
    /// Who checks claims.
    pub(crate) workloads: Arc<dyn Workloads>,
}

impl Trust {
    /// As with `--tls off`.
    fn none() -> Self {
        Self { vouched: false, workloads: Arc::new(NoWorkloads) }
    }

    fn transport(&self, ip: IpAddr, connect: Duration) -> Arc<dyn LinkTransport> {
        let plain = Plain::new(ip, connect);
        if self.vouched { Arc::new(Vouched(plain)) } else { Arc::new(plain) }
    }
}

impl Node {
    fn start(name: &'static str, adjust: &impl Fn(&mut Config), trust: &Trust) -> Self {
        let ip = node_ip(name);
        let mut config = Config {
            node_name: Arc::from(name),
            node_ips: vec![ip],
            cluster_domain: Arc::from("cluster.local"),
            trust_domain: Arc::from("cluster.local"),
            service_certificates: false,
            missing_peer: MissingPeer::Fail,
            own_addresses: Vec::new(),
            egress: Egress::closed(),
            // Generous where it is not the subject: the machine may be busy with other tests.
            timeouts: Timeouts {
                connect: Duration::from_secs(10),
                peek: Duration::from_secs(1),
                ..Timeouts::default()
            },
        };
        adjust(&mut config);
        let directory = DirectoryHandle::default();
        let transport = trust.transport(ip, config.timeouts.connect);
        let trust = posthouse_proxy::Trust {
            links: transport,
            pods: Arc::new(Backends::default()),
            workloads: Arc::clone(&trust.workloads),
        };
        let proxy = Proxy::new(config, directory.clone(), trust);
        let any = SocketAddr::new(ip, 0);
        let workers = Workers::start(&proxy, 1, &[any], any).unwrap();
        let (outbound, link) = (workers.outbound_addresses()[0], workers.link_address());
        Self { name, directory, proxy, outbound, link, workers }
    }

    /// Requests that this node has under way to the endpoint at `address`, and how many it ever sent there.
    pub(crate) fn stats(&self, address: SocketAddr) -> Arc<EndpointStats> {
        let directory = self.directory.load();
        let (_, endpoint) = directory.endpoints_at(address).first().expect("an endpoint at that address");
        Arc::clone(&endpoint.stats)
    }

    /// Streams open on this node's links.
    pub(crate) fn link_streams(&self) -> u64 {
        self.proxy.links().iter().map(|link| link.streams).sum()
    }

    /// See `Workers::drain`.
    pub(crate) async fn drain(self, deadline: Duration) -> bool {
        self.workers.drain(deadline).await
    }
}

impl Mesh {
    /// With the settings that a cluster without surprises would have.
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    /// With other settings, for both nodes.
    pub(crate) fn with(adjust: impl Fn(&mut Config)) -> Self {
        Self::trusting(adjust, &Trust::none())
    }

    /// With other settings and other trust, for both nodes.
    pub(crate) fn trusting(adjust: impl Fn(&mut Config), trust: &Trust) -> Self {
        let mesh = Self { a: Node::start(A, &adjust, trust), b: Node::start(B, &adjust, trust) };
        let peers = [(A, mesh.a.link), (B, mesh.b.link)];
        mesh.update(|_, directory| {
            directory.complete = true;
            for name in [A, B] {
                let ip = node_ip(name);
                let range = ipnet::IpNet::new(ip, 24).unwrap().trunc();
                directory.put_node(NodeObject {
                    name: Arc::from(name),
                    addresses: [ip].into_iter().collect(),
                    pod_cidrs: [range].into_iter().collect(),
                });
            }
            directory.set_peers(peers.map(|(node, address)| Peer { node: Arc::from(node), address, ready: true }));
        });
        mesh
    }

    /// Changes both nodes' directories and publishes them.
    pub(crate) fn update(&self, change: impl Fn(&'static str, &mut Directory)) {
        for node in [&self.a, &self.b] {
            let mut directory = (**node.directory.load()).clone();
            change(node.name, &mut directory);
            node.directory.publish(directory);
        }
    }

    /// Adds or replaces a Service (of namespace `demo` unless it says otherwise) on both nodes, and the pods behind it on their own.
    pub(crate) fn put(&self, svc: &Svc) {
        self.update(|node, directory| svc.put(node, directory));
    }

    /// A Service `web` over `pods`, in the usual way.
    pub(crate) fn web(&self, pods: &[&Pod]) {
        self.put(&pods.iter().fold(Svc::new("web"), |svc, pod| svc.end(*pod)));
    }

    /// Says that `ip` is a pod of `node` in `namespace`.
    pub(crate) fn pod(&self, node: &'static str, ip: IpAddr, namespace: &str) {
        self.update(|name, directory| {
            if name == node {
                directory.put_pod(pod_object(node, ip, namespace));
            }
        });
    }

    /// Waits until nothing is under way at the endpoint, on either node and on the links between them.
    pub(crate) async fn is_quiet(&self, address: SocketAddr) {
        super::eventually("nothing being under way", || {
            self.a.stats(address).in_flight() == 0
                && self.b.stats(address).in_flight() == 0
                && self.a.link_streams() == 0
                && self.b.link_streams() == 0
        })
        .await;
    }
}

/// A Service to be put into the directories.
pub(crate) struct Svc {
    namespace: &'static str,
    name: &'static str,
    port: Option<u16>,
    app: AppProtocol,
    kind: ServiceKind,
    ends: Vec<End>,
    backend: Option<Arc<BackendTls>>,
}

impl Svc {
    /// Port 80, protocol to be detected, a cluster address unless said otherwise.
    pub(crate) fn new(name: &'static str) -> Self {
        let kind = ServiceKind::ClusterIp(std::iter::empty().collect());
        Self {
            namespace: "demo",
            name,
            port: Some(80),
            app: AppProtocol::Unknown,
            kind,
            ends: Vec::new(),
            backend: None,
        }
    }

    pub(crate) fn namespace(mut self, namespace: &'static str) -> Self {
        self.namespace = namespace;
        self
    }

    pub(crate) fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    pub(crate) fn no_port(mut self) -> Self {
        self.port = None;
        self
    }

    pub(crate) fn app(mut self, app: AppProtocol) -> Self {
        self.app = app;
        self
    }

    /// How its pods are spoken to in TLS.
    pub(crate) fn backend(mut self, backend: BackendTls) -> Self {
        self.backend = Some(Arc::new(backend));
        self
    }

    pub(crate) fn kind(mut self, kind: ServiceKind) -> Self {
        self.kind = kind;
        self
    }

    pub(crate) fn end(mut self, end: impl Into<End>) -> Self {
        self.ends.push(end.into());
        self
    }

    fn put(&self, node: &'static str, directory: &mut Directory) {
        for end in &self.ends {
            if end.node == node && end.is_pod {
                directory.put_pod(pod_object(node, end.address.ip(), self.namespace));
            }
        }
        let endpoints: Vec<_> = self.ends.iter().map(|end| Arc::new(end.endpoint(self.namespace, directory))).collect();
        let endpoints = Arc::new(EndpointSet::new(endpoints));
        directory.put_service(Service {
            namespace: Arc::from(self.namespace),
            name: Arc::from(self.name),
            kind: self.kind.clone(),
            tls: None,
            backend: self.backend.clone(),
            ports: self
                .port
                .iter()
                .map(|port| ServicePort {
                    name: Arc::from(""),
                    port: *port,
                    app_protocol: self.app,
                    endpoints: Arc::clone(&endpoints),
                })
                .collect(),
            changed: SystemTime::now(),
        });
    }
}

/// An endpoint of a [`Svc`].
#[derive(Clone)]
pub(crate) struct End {
    pub(crate) address: SocketAddr,
    pub(crate) node: &'static str,
    pub(crate) state: EndpointState,
    pub(crate) hostname: Option<&'static str>,
    /// Whether its address is checked when it enters the directory, as discovery does.
    pub(crate) checked: bool,
    /// Whether there is a Pod object with its address.
    pub(crate) is_pod: bool,
}

impl End {
    pub(crate) fn at(node: &'static str, address: SocketAddr) -> Self {
        Self { address, node, state: EndpointState::Ready, hostname: None, checked: true, is_pod: true }
    }

    pub(crate) fn state(mut self, state: EndpointState) -> Self {
        self.state = state;
        self
    }

    pub(crate) fn hostname(mut self, hostname: &'static str) -> Self {
        self.hostname = Some(hostname);
        self
    }

    fn endpoint(&self, namespace: &str, directory: &Directory) -> Endpoint {
        let (ip, port) = (self.address.ip(), self.address.port());
        let pod = pod_ref(ip, namespace);
        Endpoint {
            address: self.address,
            node: Some(Arc::from(self.node)),
            zone: None,
            hostname: self.hostname.map(Arc::from),
            stats: directory.stats_for(self.address, &pod.uid).unwrap_or_default(),
            pod: Some(pod),
            state: self.state,
            refusal: if self.checked { address::check(ip, port, false, directory).err() } else { None },
        }
    }
}

impl From<&Pod> for End {
    fn from(pod: &Pod) -> Self {
        Self::at(pod.node, pod.address)
    }
}

fn pod_ref(ip: IpAddr, namespace: &str) -> PodRef {
    PodRef {
        namespace: Arc::from(namespace),
        name: Arc::from(format!("pod-{ip}")),
        uid: Arc::from(format!("uid-{ip}")),
    }
}

fn pod_object(node: &'static str, ip: IpAddr, namespace: &str) -> PodObject {
    PodObject {
        id: pod_ref(ip, namespace),
        service_account: Arc::from("default"),
        node: Arc::from(node),
        addresses: [ip].into_iter().collect(),
        host_network: false,
    }
}

fn node_ip(node: &str) -> IpAddr {
    pod_ip(node, 1)
}

/// The pod address of `node` with this last part.
pub(crate) fn pod_ip(node: &str, last: u8) -> IpAddr {
    IpAddr::from([127, 0, if node == A { 61 } else { 62 }, last])
}

/// An address of a pod that refuses connections as long as the socket lives: bound, so that nobody else gets the port,
/// but not listening.
pub(crate) fn refusing(node: &'static str, last: u8) -> (End, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(pod_ip(node, last), 0)).unwrap();
    (End::at(node, socket.local_addr().unwrap()), socket)
}

impl Node {
    /// Another proxy of the same node on the same ports, as a rolling update with a surge has for a while.
    pub(crate) fn successor(&self) -> Self {
        let ip = node_ip(self.name);
        let config = Config {
            node_name: Arc::from(self.name),
            node_ips: vec![ip],
            cluster_domain: Arc::from("cluster.local"),
            trust_domain: Arc::from("cluster.local"),
            service_certificates: false,
            missing_peer: MissingPeer::Fail,
            own_addresses: Vec::new(),
            egress: Egress::closed(),
            timeouts: Timeouts { connect: Duration::from_secs(10), ..Timeouts::default() },
        };
        let trust = posthouse_proxy::Trust {
            links: Arc::new(Plain::new(ip, config.timeouts.connect)),
            pods: Arc::new(Backends::default()),
            workloads: Arc::new(NoWorkloads),
        };
        let proxy = Proxy::new(config, self.directory.clone(), trust);
        let workers = Workers::start(&proxy, 1, &[self.outbound], self.link).unwrap();
        Self {
            name: self.name,
            directory: self.directory.clone(),
            proxy,
            outbound: self.outbound,
            link: self.link,
            workers,
        }
    }
}
