//! What the data plane is told once at its start. Each default stands here with its source; what may differ from Service
//! to Service is never here but in the directory.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::egress::Egress;

/// Settings of the data plane.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name, as Kubernetes has it.
    pub node_name: Arc<str>,
    /// This node's addresses, the first being the one that links are dialled from.
    pub node_ips: Vec<IpAddr>,
    /// The suffix of Service names, without dots at its ends.
    pub cluster_domain: Arc<str>,
    /// The trust domain of identities, as in `spiffe://<trust-domain>/…`.
    pub trust_domain: Arc<str>,
    /// Whether Services that have a certificate of their own are reached by links that prove it (TLS mode `service`).
    pub service_certificates: bool,
    /// What to do with an endpoint on a node without a ready proxy.
    pub missing_peer: MissingPeer,
    /// Our own listening addresses (outbound, link, admin, metrics): a request to one of them is a loop.
    pub own_addresses: Vec<SocketAddr>,
    /// What is served outside of the cluster.
    pub egress: Egress,
    /// Time limits.
    pub timeouts: Timeouts,
}

/// What happens to a request whose endpoint's node has no ready proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingPeer {
    /// Dial the endpoint from here (default with TLS off).
    Direct,
    /// Refuse with `destination_unavailable` (default with TLS on).
    Fail,
}

/// Every wait of the data plane has one of these limits.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From accepting a connection, or from the end of one request, to the end of the next request's head once its
    /// first byte came. 10 s: Envoy's is off, linkerd2-proxy's is off, nginx' is 60 s; slow-header attacks need it.
    pub request_header: Duration,
    /// How long an idle client connection is kept. 1 h: Envoy's HTTP connection idle timeout.
    pub client_idle: Duration,
    /// How long bytes inside a CONNECT tunnel are waited for before it becomes opaque. 200 ms: linkerd2-proxy waits 10 s,
    /// which stalls protocols in which the server speaks first.
    pub peek: Duration,
    /// Connecting to a pod or to a peer. 1 s: linkerd2-proxy's outbound connect timeout.
    pub connect: Duration,
    /// A stream on which nothing moves in either direction. 5 min: Envoy's stream idle timeout.
    pub stream_idle: Duration,
    /// How long an idle HTTP/1.1 connection to a pod is kept. 4 s: below the 5 s keep-alive of common servers (Node.js,
    /// gunicorn, Apache), so that we close first.
    pub pool_idle: Duration,
    /// How long a client whose address is not (yet) known as a pod's is held before it is judged. 3 s: the time from a
    /// pod's first packet to its address in the API, with margin.
    pub unknown_client: Duration,
    /// Looking up a name outside of the cluster, waiting for a free lookup included. 5 s: the resolver's own first try.
    pub dns: Duration,
    /// How long the addresses of a name outside are used. 30 s: CoreDNS' cache in Kubernetes; the resolver tells no TTL.
    pub egress_life: Duration,
    /// Connecting to an address outside. 5 s: Envoy's; 1 s would not outlive one lost packet.
    pub egress_connect: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            request_header: Duration::from_secs(10),
            client_idle: Duration::from_secs(3600),
            peek: Duration::from_millis(200),
            connect: Duration::from_secs(1),
            stream_idle: Duration::from_secs(300),
            pool_idle: Duration::from_secs(4),
            unknown_client: Duration::from_secs(3),
            dns: Duration::from_secs(5),
            egress_life: Duration::from_secs(30),
            egress_connect: Duration::from_secs(5),
        }
    }
}
