//! A client of the outbound port: who it is by its address, and what is remembered for it from request to request. Only
//! pods of this node and the node itself may use the port; see [`identify`].

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use http::uri::Authority;
use posthouse_model::{Authority as Name, Destination, Directory, Pod};

use crate::authorise::Caller;
use crate::error::Error;
use crate::metrics::{RetryBudget, ServiceMetrics};
use crate::outbound::{self, Identified};
use crate::worker::Worker;

/// One client connection, or the inside of one tunnel.
pub(crate) struct Client {
    pub(crate) worker: Rc<Worker>,
    /// The pod's namespace; `None` for the node itself and for clients that are not known yet.
    pub(crate) namespace: Option<Arc<str>>,
    /// Who it is to policies and pods of this node.
    pub(crate) caller: Caller,
    /// What the link says of the client.
    pub(crate) source: HeaderValue,
    /// Inside a tunnel: the tunnel's own target, which every request in it goes to.
    pub(crate) tunnel: Option<Authority>,
    last: RefCell<Option<Rc<Found>>>,
}

/// A resolved destination with its counters; kept for the next request to the same authority.
pub(crate) struct Found {
    version: u64,
    authority: Authority,
    default_port: u16,
    pub(crate) destination: Destination,
    /// Whether it is outside of the cluster.
    pub(crate) outside: bool,
    pub(crate) metrics: Rc<ServiceMetrics>,
    pub(crate) budget: Arc<RetryBudget>,
    since: Instant,
    /// How long it may be remembered.
    life: Duration,
}

/// A destination as a newer directory has it, and that.
pub(crate) type Newer = (Arc<Directory>, Rc<Found>);

/// A remembered destination's counters are looked up anew after this time, so that they stay in use for the exporter.
pub(crate) const REMEMBER: Duration = Duration::from_secs(60);

impl Client {
    pub(crate) fn new(worker: Rc<Worker>, pod: Option<&Pod>, address: IpAddr) -> Self {
        let config = &worker.proxy.config;
        Self {
            caller: Caller::local(pod, Some(address), &config.node_name, &config.trust_domain),
            worker,
            namespace: pod.map(|pod| Arc::clone(&pod.id.namespace)),
            source: outbound::source_value(pod),
            tunnel: None,
            last: RefCell::new(None),
        }
    }

    /// The same client inside a tunnel to `target`.
    pub(crate) fn inside(&self, target: Authority) -> Self {
        Self {
            worker: Rc::clone(&self.worker),
            namespace: self.namespace.clone(),
            caller: self.caller.clone(),
            source: self.source.clone(),
            tunnel: Some(target),
            last: RefCell::new(None),
        }
    }

    /// The destination of a request for `authority` (or of the tunnel that it is in).
    pub(crate) async fn find(
        &self,
        directory: &Directory,
        authority: &Authority,
        default_port: u16,
        now: Instant,
    ) -> Result<Rc<Found>, Error> {
        let authority = self.tunnel.as_ref().unwrap_or(authority);
        if let Some(last) = &*self.last.borrow()
            && last.version == directory.version
            && last.default_port == default_port
            && last.authority.as_str() == authority.as_str()
            && now.saturating_duration_since(last.since) < last.life
        {
            return Ok(Rc::clone(last));
        }
        Box::pin(self.look_up(directory, authority, default_port, now)).await
    }

    /// The same destination as it is known by now, when the directory has changed since: what a try has shown to be over is
    /// often known by then.
    pub(crate) fn find_again(&self, found: &Found) -> Option<Newer> {
        let directory = self.worker.proxy.directory.load_full();
        if found.outside || found.version == directory.version {
            return None;
        }
        let authority = Name::parse(found.authority.as_str()).ok()?;
        let domain = &self.worker.proxy.config.cluster_domain;
        let newer = directory.resolve(&authority, found.default_port, self.namespace.as_deref(), domain).ok()?;
        // Another meaning of the name is not what was asked for, and for another protocol the request was not prepared.
        let meaning = |destination: &Destination| {
            let port = destination.service_port();
            (destination.service.key(), Arc::clone(&port.name), port.port, port.app_protocol)
        };
        if meaning(&newer) != meaning(&found.destination) {
            return None;
        }
        let found = Found {
            version: directory.version,
            authority: found.authority.clone(),
            destination: newer,
            metrics: Rc::clone(&found.metrics),
            budget: Arc::clone(&found.budget),
            ..*found
        };
        Some((directory, Rc::new(found)))
    }

    async fn look_up(
        &self,
        directory: &Directory,
        authority: &Authority,
        default_port: u16,
        now: Instant,
    ) -> Result<Rc<Found>, Error> {
        let Identified { destination, outside, life } =
            outbound::identify(self, directory, authority, default_port).await?;
        let key = destination.service.key();
        let found = Rc::new(Found {
            version: directory.version,
            authority: authority.clone(),
            default_port,
            destination,
            outside,
            metrics: self.worker.outbound.service(&key, now),
            budget: self.worker.proxy.budget(&key),
            since: now,
            life,
        });
        *self.last.borrow_mut() = Some(Rc::clone(&found));
        Ok(found)
    }
}

/// What an address says of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A pod of this node.
    Pod(Arc<Pod>),
    /// A process of the node itself (or a host-network pod, which cannot be told from it).
    Node,
    /// Not known; may be a pod that has just started.
    Unknown {
        /// It lies in this node's pod range.
        in_pod_range: bool,
    },
    /// Known to be from elsewhere.
    Foreign,
}

/// Tells who connects from `ip`.
pub(crate) fn identify(ip: IpAddr, node_name: &str, node_ips: &[IpAddr], directory: &Directory) -> Origin {
    if let Some(pod) = directory.pod_by_ip(ip) {
        return if *pod.node == *node_name { Origin::Pod(Arc::clone(pod)) } else { Origin::Foreign };
    }
    let own_range = directory.node(node_name).is_some_and(|node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&ip)));
    if node_ips.contains(&ip) || directory.node_by_ip(ip).is_some_and(|node| *node.name == *node_name) {
        return Origin::Node;
    }
    if own_range {
        return Origin::Unknown { in_pod_range: true };
    }
    if directory.node_by_ip(ip).is_some()
        || directory.nodes().any(|node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&ip)))
    {
        return Origin::Foreign;
    }
    // After the pod ranges: the demo's pods live in 127.0.0.0/8.
    if ip.is_loopback() { Origin::Node } else { Origin::Unknown { in_pod_range: false } }
}

/// A client's address in one form.
pub(crate) fn canonical(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}
