//! From plain objects to the model's types: pure functions, no IO, no state. A Service and its slices become one model
//! Service; the slices of the proxies' own Service become the peers. What is known of nodes and own pods, and the
//! statistics that endpoints already have, are read from the directory that is being changed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use posthouse_model::address;
use posthouse_model::directory::service_key;
use posthouse_model::{AppProtocol, Directory, Endpoint, EndpointSet, EndpointState, Peer, Service, ServicePort};

use crate::object::{EndpointObject, PortObject, ServiceObject, SliceObject, stand_in_uid};

/// The name of the slices' port that a peer's link listens on.
const LINK_PORT: &str = "link";

/// What translation reads beside the objects themselves.
#[derive(Clone, Copy)]
pub(crate) struct Ground<'a> {
    /// Nodes, own pods and the endpoints as they are so far.
    pub(crate) directory: &'a Directory,
    /// This node.
    pub(crate) node_name: &'a str,
    /// Becomes `Service::changed`.
    pub(crate) now: SystemTime,
}

/// A Service with the endpoints of all its slices, in the order of `slices` where two say the same address.
pub(crate) fn service(object: &ServiceObject, slices: &[&SliceObject], ground: Ground<'_>) -> Service {
    let key = service_key(&object.namespace, &object.name);
    let mut made = Made { key: &key, ground, endpoints: HashMap::new() };
    let ports = object
        .ports
        .iter()
        .map(|port| {
            let members = members(port, slices);
            // A second port may lead to the same place (80 and 8080, both to 8080): one endpoint, one set of statistics.
            let shared = object.ports.len() > 1;
            ServicePort {
                name: Arc::clone(&port.name),
                port: port.port,
                app_protocol: app_protocol(port, slices),
                endpoints: Arc::new(EndpointSet::new(
                    members.into_iter().map(|(address, member)| made.endpoint(address, member, shared)).collect(),
                )),
            }
        })
        .collect();
    Service {
        namespace: Arc::clone(&object.namespace),
        name: Arc::clone(&object.name),
        kind: object.kind.clone(),
        tls: None,
        backend: None,
        ports,
        changed: ground.now,
    }
}

/// The port's own word, else the slices' (a Service without selector may have it only there).
fn app_protocol(port: &PortObject, slices: &[&SliceObject]) -> AppProtocol {
    let of_slices = || slices.iter().flat_map(|slice| &slice.ports).filter(|p| p.name == port.name);
    match port.app_protocol {
        AppProtocol::Unknown => of_slices().map(|p| p.app_protocol).find(|p| *p != AppProtocol::Unknown),
        known => Some(known),
    }
    .unwrap_or_default()
}

/// Where `port` leads: slice ports match by name. An address that stands in several slices (it does while it moves from
/// one to another) counts once, by its best state.
fn members<'a>(port: &PortObject, slices: &[&'a SliceObject]) -> Vec<(SocketAddr, &'a EndpointObject)> {
    let mut all = Vec::new();
    for slice in slices {
        for number in slice.ports.iter().filter(|p| p.name == port.name).map(|p| p.port) {
            all.extend(slice.endpoints.iter().map(|member| (SocketAddr::new(member.ip, number), member)));
        }
    }
    // Stable: of equals the first slice's is kept.
    all.sort_by_key(|(address, member)| (*address, rank(member)));
    all.dedup_by_key(|(address, _)| *address);
    all
}

fn rank(member: &EndpointObject) -> (u8, bool) {
    let state = match member.state {
        EndpointState::Ready => 0,
        EndpointState::Draining => 1,
        EndpointState::NotReady => 2,
    };
    (state, member.pod.is_none())
}

/// The endpoints of one Service as they are made.
struct Made<'a> {
    key: &'a str,
    ground: Ground<'a>,
    endpoints: HashMap<SocketAddr, Arc<Endpoint>>,
}

impl Made<'_> {
    /// The endpoint, the old one itself where nothing about it changed.
    fn endpoint(&mut self, address: SocketAddr, member: &EndpointObject, shared: bool) -> Arc<Endpoint> {
        let directory = self.ground.directory;
        let refusal = address::check(address.ip(), address.port(), host_network(member, self.ground), directory).err();
        let same = |old: &Endpoint| {
            old.state == member.state
                && old.refusal == refusal
                && old.pod == member.pod
                && old.node == member.node
                && old.zone == member.zone
                && old.hostname == member.hostname
        };
        let ours = directory.endpoints_at(address).iter().filter(|(key, _)| **key == *self.key);
        let known = self.endpoints.get(&address).into_iter().chain(ours.map(|(_, endpoint)| endpoint));
        if let Some(old) = known.clone().find(|old| same(old)) {
            let old = Arc::clone(old);
            if shared {
                self.endpoints.insert(address, Arc::clone(&old));
            }
            return old;
        }
        let uid = member.pod.as_ref().map_or("", |pod| &pod.uid);
        let stats = known
            .clone()
            .find(|old| old.pod.as_ref().map_or("", |pod| &pod.uid) == uid)
            .map(|old| Arc::clone(&old.stats))
            .or_else(|| directory.stats_for(address, uid))
            .unwrap_or_default();
        let new = Arc::new(Endpoint {
            address,
            node: member.node.clone(),
            zone: member.zone.clone(),
            hostname: member.hostname.clone(),
            pod: member.pod.clone(),
            state: member.state,
            refusal,
            stats,
        });
        if shared {
            self.endpoints.insert(address, Arc::clone(&new));
        }
        new
    }
}

/// Whether the endpoint is a host-network pod on the node that has its address. Anyone may write a slice, so its word is
/// not enough where we can know better: on our own node the pod itself must be there and be on the host network.
fn host_network(member: &EndpointObject, ground: Ground<'_>) -> bool {
    let (Some(node), Some(pod)) = (&member.node, &member.pod) else {
        return false;
    };
    if !ground.directory.node(node).is_some_and(|node| node.addresses.contains(&member.ip)) {
        return false;
    }
    if **node != *ground.node_name {
        return true;
    }
    // Pods that were written by hand without a uid are known by their name.
    let own = match &*pod.uid {
        "" => ground.directory.pod(&stand_in_uid(&pod.namespace, &pod.name)),
        uid => ground.directory.pod(uid),
    };
    own.is_some_and(|own| own.host_network && own.id.namespace == pod.namespace && own.id.name == pod.name)
}

/// Whether two translations of one Service come to the same, certificates aside. Endpoints are compared by identity: an unchanged one is
/// the old one.
pub(crate) fn same(old: &Service, new: &Service) -> bool {
    old.kind == new.kind
        && old.ports.len() == new.ports.len()
        && old.ports.iter().zip(&new.ports).all(|(old, new)| {
            let (all, now) = (old.endpoints.all(), new.endpoints.all());
            old.name == new.name
                && old.port == new.port
                && old.app_protocol == new.app_protocol
                && all.len() == now.len()
                && all.iter().zip(now).all(|(old, new)| Arc::ptr_eq(old, new))
        })
}

/// Whether two translations of one Service have the same certificates, compared by identity, too.
pub(crate) fn same_tls(old: &Service, new: &Service) -> bool {
    fn same<T>(old: Option<&Arc<T>>, new: Option<&Arc<T>>) -> bool {
        old.map(Arc::as_ptr) == new.map(Arc::as_ptr)
    }
    same(old.tls.as_ref(), new.tls.as_ref()) && same(old.backend.as_ref(), new.backend.as_ref())
}

/// The peers that the slices of the proxies' own Service name, one a node, and what was passed over.
pub(crate) fn peers(slices: &[&SliceObject], ground: Ground<'_>) -> (Vec<Peer>, Vec<String>) {
    let directory = ground.directory;
    // A node has one peer but may have two addresses: take the family that our own node calls its first.
    let ipv6 = directory.node(ground.node_name).and_then(|node| node.addresses.first()).is_some_and(IpAddr::is_ipv6);
    let mut best: HashMap<Arc<str>, (Peer, (bool, bool))> = HashMap::new();
    let mut notes = Vec::new();
    for slice in slices {
        let Some(port) = slice.ports.iter().find(|port| &*port.name == LINK_PORT) else {
            notes.push(format!("a slice of the peers' Service has no port named '{LINK_PORT}'"));
            continue;
        };
        for member in &slice.endpoints {
            let Some(node) = &member.node else {
                notes.push(format!("the peer {} is passed over: its slice does not name its node", member.ip));
                continue;
            };
            let own = match directory.node(node) {
                Some(node) => node.addresses.contains(&member.ip),
                None => address::check_range(member.ip).is_ok(),
            };
            if !own {
                notes.push(format!("the peer {} is passed over: it is no address of node '{node}'", member.ip));
                continue;
            }
            let peer = Peer {
                node: Arc::clone(node),
                address: SocketAddr::new(member.ip, port.port),
                ready: member.state == EndpointState::Ready,
            };
            let worth = (peer.ready, peer.address.is_ipv6() == ipv6);
            match best.get(node) {
                Some((_, other)) if *other >= worth => {}
                _ => {
                    best.insert(Arc::clone(node), (peer, worth));
                }
            }
        }
    }
    (best.into_values().map(|(peer, _)| peer).collect(), notes)
}
