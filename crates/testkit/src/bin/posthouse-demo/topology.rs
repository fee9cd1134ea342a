//! The demo's little cluster as data: three nodes on loopback, three Services with a pod on each node, a client pod on each
//! node. Everything else (manifests, processes, traffic, table) is derived from here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// One node: 127.0.N.1, its pods in 127.0.N.0/24.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its place in [`NODES`].
    pub(crate) index: usize,
    /// `node-a` and so on.
    pub(crate) name: &'static str,
    /// The letter that its pods' names end in.
    letter: char,
    third_octet: u8,
}

/// The nodes.
pub(crate) const NODES: [Node; 3] = [
    Node { index: 0, name: "node-a", letter: 'a', third_octet: 1 },
    Node { index: 1, name: "node-b", letter: 'b', third_octet: 2 },
    Node { index: 2, name: "node-c", letter: 'c', third_octet: 3 },
];

/// The proxies' ports, as on a real node.
const OUTBOUND: u16 = 4140;
pub(crate) const LINK: u16 = 4141;
const ADMIN: u16 = 9990;
const METRICS: u16 = 9991;

impl Node {
    /// The address with the last octet `host`.
    pub(crate) fn address(self, host: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, 0, self.third_octet, host))
    }

    pub(crate) fn ip(self) -> IpAddr {
        self.address(1)
    }

    pub(crate) fn pod_cidr(self) -> String {
        format!("{}/24", self.address(0))
    }

    /// Where the demo's own requests come from.
    pub(crate) fn client_ip(self) -> IpAddr {
        self.address(50)
    }

    pub(crate) fn client_pod(self) -> String {
        format!("client-{}", self.letter)
    }

    pub(crate) fn outbound(self) -> SocketAddr {
        SocketAddr::new(self.ip(), OUTBOUND)
    }

    pub(crate) fn link(self) -> SocketAddr {
        SocketAddr::new(self.ip(), LINK)
    }

    pub(crate) fn admin(self) -> SocketAddr {
        SocketAddr::new(self.ip(), ADMIN)
    }

    pub(crate) fn metrics(self) -> SocketAddr {
        SocketAddr::new(self.ip(), METRICS)
    }
}

/// One Service of the namespace `demo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    /// Its place in [`SERVICES`].
    pub(crate) index: usize,
    /// Its name, and the subcommand of `posthouse-demo-app` that serves it.
    pub(crate) name: &'static str,
    /// The port that clients use.
    pub(crate) port: u16,
    /// The port that its pods listen on.
    pub(crate) target_port: u16,
    /// What its Service says of its protocol; `None` leaves it to detection.
    pub(crate) app_protocol: Option<&'static str>,
    /// Last octet of its pods' addresses.
    host: u8,
    /// How the demo asks it, for the table.
    pub(crate) asked_by: &'static str,
}

/// The Services.
pub(crate) const SERVICES: [Service; 3] = [
    Service {
        index: 0,
        name: "hello",
        port: 80,
        target_port: 8080,
        app_protocol: Some("http"),
        host: 10,
        asked_by: "HTTP/1.1",
    },
    Service {
        index: 1,
        name: "echo",
        port: 80,
        target_port: 8080,
        app_protocol: None,
        host: 11,
        asked_by: "HTTP/1.1, HTTP/2",
    },
    Service {
        index: 2,
        name: "greeter",
        port: 50051,
        target_port: 50051,
        app_protocol: Some("grpc"),
        host: 12,
        asked_by: "gRPC",
    },
];

/// One pod of a Service on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) service: Service,
    pub(crate) node: Node,
}

impl Pod {
    pub(crate) fn name(self) -> String {
        format!("{}-{}", self.service.name, self.node.letter)
    }

    pub(crate) fn ip(self) -> IpAddr {
        self.node.address(self.service.host)
    }

    pub(crate) fn listen(self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.service.target_port)
    }
}

/// All nine pods.
pub(crate) fn pods() -> impl Iterator<Item = Pod> {
    SERVICES.into_iter().flat_map(|service| NODES.into_iter().map(move |node| Pod { service, node }))
}

/// Every address that the demo listens on.
pub(crate) fn listeners() -> impl Iterator<Item = SocketAddr> {
    NODES
        .into_iter()
        .flat_map(|node| [node.outbound(), node.link(), node.admin(), node.metrics()])
        .chain(pods().map(Pod::listen))
}

/// The place of the node called `name`.
pub(crate) fn node_index(name: &str) -> Option<usize> {
    NODES.iter().position(|node| node.name == name)
}
