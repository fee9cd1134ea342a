//! The view: every plain object by key, the indexes that say which Services a change touches, and the directory that is
//! kept in step. A change marks Services dirty; [`View::settle`] rebuilds exactly those. So one changed slice costs its
//! Service, one changed Node or Pod the Services with endpoints at its addresses, and an unchanged object nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use posthouse_model::directory::service_key;
use posthouse_model::{Directory, Node, Pod, Service, ServiceKey};
use smallvec::SmallVec;

use crate::object::{Key, Object, PolicyObject, ServiceObject, SliceObject};
use crate::status::Kind;
use crate::translate::{self, Ground};
use crate::trust::{Found, Trust};

#[cfg(test)]
mod tests;

/// The name of the proxies' own headless Service.
const PEERS: &str = "posthouse";

/// See the module's text.
pub(crate) struct View {
    node_name: Arc<str>,
    peers_key: ServiceKey,
    services: HashMap<Arc<str>, Arc<ServiceObject>>,
    slices: HashMap<Arc<str>, Arc<SliceObject>>,
    pods: HashMap<Arc<str>, Arc<Pod>>,
    nodes: HashMap<Arc<str>, Arc<Node>>,
    policies: HashMap<Arc<str>, Arc<PolicyObject>>,
    /// The slices of each Service, whether it is known or not.
    by_service: HashMap<ServiceKey, SmallVec<[Arc<str>; 1]>>,
    /// The Services with a loopback endpoint: the only ones to which podCIDRs matter.
    loopback: HashSet<ServiceKey>,
    dirty: HashSet<ServiceKey>,
    peers_dirty: bool,
    changed: bool,
    /// Counts changes of objects, for the snapshot.
    changes: u64,
    /// Pods that changed since the last [`View::settle`], where somebody wants to know them.
    pub(crate) moved: Option<Vec<MovedPod>>,
    /// Secrets and ConfigMaps.
    trust: Trust,
    /// See [`Settled::tls_notes`].
    tls_notes: Vec<(ServiceKey, Vec<String>)>,
    directory: Directory,
}

/// `namespace/name` of a Pod of any node and what it is now, if it still is.
pub(crate) type MovedPod = (Arc<str>, Option<Arc<Pod>>);

/// What [`View::settle`] did.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Services that were rebuilt.
    pub(crate) rebuilt: u64,
    /// Whether the directory differs from the last one that was settled.
    pub(crate) changed: bool,
    /// What was passed over among the peers; `None` when they were not looked at.
    pub(crate) peer_notes: Option<Vec<String>>,
    /// See [`View::moved`].
    pub(crate) moved: Vec<MovedPod>,
    /// What is wrong with the certificates of Services that were looked at; for some it may be nothing any more.
    pub(crate) tls_notes: Vec<(ServiceKey, Vec<String>)>,
}

impl View {
    /// An empty view of the node `node_name`; the proxies' own Service is in `namespace`.
    pub(crate) fn new(node_name: Arc<str>, namespace: &str) -> Self {
        Self {
            node_name,
            peers_key: service_key(namespace, PEERS),
            services: HashMap::new(),
            slices: HashMap::new(),
            pods: HashMap::new(),
            nodes: HashMap::new(),
            policies: HashMap::new(),
            by_service: HashMap::new(),
            loopback: HashSet::new(),
            dirty: HashSet::new(),
            peers_dirty: false,
            changed: false,
            changes: 0,
            moved: None,
            trust: Trust::default(),
            tls_notes: Vec::new(),
            directory: Directory::default(),
        }
    }

    /// The directory as of the last [`View::settle`].
    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Every kind has been listed once.
    pub(crate) fn set_complete(&mut self) {
        if !self.directory.complete {
            self.directory.complete = true;
            self.changed = true;
        }
    }

    /// How many objects of a kind are known.
    pub(crate) fn len(&self, kind: Kind) -> usize {
        match kind {
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.slices.len(),
            Kind::Pod => self.pods.len(),
            Kind::Node => self.nodes.len(),
            Kind::Secret | Kind::ConfigMap => self.trust.of_kind(kind).count(),
            Kind::AuthorizationPolicy => self.policies.len(),
        }
    }

    /// The names of all objects of a kind.
    pub(crate) fn names(&self, kind: Kind) -> Vec<Arc<str>> {
        match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
            Kind::Pod => self.pods.keys().cloned().collect(),
            Kind::Node => self.nodes.keys().cloned().collect(),
            Kind::Secret | Kind::ConfigMap => self.trust.of_kind(kind).cloned().collect(),
            Kind::AuthorizationPolicy => self.policies.keys().cloned().collect(),
        }
    }

    /// Whether an object is known.
    pub(crate) fn contains(&self, key: &Key) -> bool {
        match key.kind {
            Kind::Service => self.services.contains_key(&key.name),
            Kind::EndpointSlice => self.slices.contains_key(&key.name),
            Kind::Pod => self.pods.contains_key(&key.name),
            Kind::Node => self.nodes.contains_key(&key.name),
            Kind::Secret | Kind::ConfigMap => self.trust.contains(key),
            Kind::AuthorizationPolicy => self.policies.contains_key(&key.name),
        }
    }

    /// Moves with each change of an object.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Every object, shared: a copy of pointers, for the snapshot's writer.
    pub(crate) fn objects(&self) -> Objects {
        fn all<T>(of: &HashMap<Arc<str>, Arc<T>>) -> Vec<(Arc<str>, Arc<T>)> {
            of.iter().map(|(name, object)| (Arc::clone(name), Arc::clone(object))).collect()
        }
        Objects {
            services: self.services.values().cloned().collect(),
            slices: all(&self.slices),
            pods: self.pods.values().cloned().collect(),
            nodes: self.nodes.values().cloned().collect(),
            policies: self.policies.values().cloned().collect(),
        }
    }

    /// Adds or replaces an object; one that is the same already costs nothing more.
    pub(crate) fn put(&mut self, key: Key, object: Object) {
        let changed = match object {
            Object::Service(service) => self.put_service(key.name, service),
            Object::Slice(slice) => self.put_slice(key.name, slice),
            Object::Pod(pod) => self.put_pod(key.name, pod),
            Object::Node(node) => self.put_node(key.name, node),
            Object::Material(material) => {
                self.dirty.extend(self.trust.put(key, material).iter().cloned());
                // The snapshot does not have it.
                false
            }
            Object::Policy(policy) => self.put_policy(key.name, policy),
        };
        self.changes += u64::from(changed);
    }

    /// Removes an object, if it is known.
    pub(crate) fn remove(&mut self, key: &Key) {
        let known = match key.kind {
            Kind::Service => self.services.remove(&key.name).is_some_and(|old| {
                self.dirty.insert(service_key(&old.namespace, &old.name));
                true
            }),
            Kind::EndpointSlice => self.slices.remove(&key.name).is_some_and(|old| {
                self.unlink_slice(&key.name, &old.service);
                self.touch(&Arc::clone(&old.service));
                true
            }),
            Kind::Pod => self.remove_pod(&key.name),
            Kind::Node => self.remove_node(&key.name),
            Kind::Secret | Kind::ConfigMap => {
                self.dirty.extend(self.trust.remove(key).iter().cloned());
                false
            }
            Kind::AuthorizationPolicy => self.remove_policy(&key.name),
        };
        self.changes += u64::from(known);
    }

    /// Secrets and ConfigMaps are read in these namespaces only, not in all.
    pub(crate) fn read_secrets_of<'a>(&mut self, namespaces: impl IntoIterator<Item = &'a Arc<str>>) {
        self.trust.namespaces = Some(namespaces.into_iter().map(|name| (Arc::clone(name), Vec::new())).collect());
    }

    /// All of a kind in such a namespace were read.
    pub(crate) fn secrets_read(&mut self, namespace: &str, kind: Kind) {
        let waiting = self.trust.read(namespace, kind);
        self.dirty.extend(waiting);
    }

    fn put_service(&mut self, name: Arc<str>, service: ServiceObject) -> bool {
        if self.services.get(&name).is_some_and(|old| **old == service) {
            return false;
        }
        self.dirty.insert(Arc::clone(&name));
        self.services.insert(name, Arc::new(service));
        true
    }

    fn put_slice(&mut self, name: Arc<str>, slice: SliceObject) -> bool {
        let of = Arc::clone(&slice.service);
        let old = self.slices.get(&name);
        if old.is_some_and(|old| **old == slice) {
            return false;
        }
        let moved_from = old.map(|old| Arc::clone(&old.service)).filter(|old| *old != of);
        if let Some(from) = moved_from {
            self.unlink_slice(&name, &from);
            self.touch(&from);
        }
        let linked = self.by_service.entry(Arc::clone(&of)).or_default();
        // Sorted, so that equal inputs make equal directories.
        if let Err(at) = linked.binary_search(&name) {
            linked.insert(at, Arc::clone(&name));
        }
        self.slices.insert(name, Arc::new(slice));
        self.touch(&of);
        true
    }

    fn unlink_slice(&mut self, name: &Arc<str>, service: &ServiceKey) {
        if let Some(linked) = self.by_service.get_mut(service) {
            linked.retain(|other| other != name);
            if linked.is_empty() {
                self.by_service.remove(service);
            }
        }
    }

    /// A slice of `service` changed.
    fn touch(&mut self, service: &ServiceKey) {
        self.dirty.insert(Arc::clone(service));
        self.peers_dirty |= *service == self.peers_key;
    }

    fn put_pod(&mut self, name: Arc<str>, pod: Pod) -> bool {
        if self.pods.get(&name).is_some_and(|old| **old == pod) {
            return false;
        }
        self.remove_pod(&name);
        let pod = Arc::new(pod);
        // Those of other nodes are no pods of the directory.
        if pod.node == self.node_name {
            self.touch_host_network(&pod);
            self.directory.put_pod(Pod::clone(&pod));
            self.changed = true;
        }
        if let Some(moved) = &mut self.moved {
            moved.push((Arc::clone(&name), Some(Arc::clone(&pod))));
        }
        self.pods.insert(name, pod);
        true
    }

    fn remove_pod(&mut self, name: &Arc<str>) -> bool {
        let Some(old) = self.pods.remove(name) else {
            return false;
        };
        if old.node == self.node_name {
            self.touch_host_network(&old);
            self.directory.remove_pod(&old.id.uid);
            self.changed = true;
        }
        if let Some(moved) = &mut self.moved {
            moved.push((Arc::clone(name), None));
        }
        true
    }

    /// Only host-network pods decide over endpoints: those at their node's addresses.
    fn touch_host_network(&mut self, pod: &Pod) {
        if pod.host_network {
            let node = self.nodes.get(&pod.node).map(|node| node.addresses.clone()).unwrap_or_default();
            for ip in node.iter().chain(&pod.addresses) {
                self.dirty.extend(self.directory.services_at_ip(*ip).iter().cloned());
            }
        }
    }

    fn put_node(&mut self, name: Arc<str>, node: Node) -> bool {
        let old = self.nodes.get(&name).cloned();
        if old.as_ref().is_some_and(|old| **old == node) {
            return false;
        }
        self.touch_node(old.as_deref(), Some(&node));
        self.directory.put_node(node.clone());
        self.nodes.insert(name, Arc::new(node));
        self.changed = true;
        true
    }

    fn remove_node(&mut self, name: &Arc<str>) -> bool {
        let Some(old) = self.nodes.remove(name) else {
            return false;
        };
        self.touch_node(Some(&old), None);
        self.directory.remove_node(name);
        self.changed = true;
        true
    }

    fn put_policy(&mut self, name: Arc<str>, policy: PolicyObject) -> bool {
        if self.policies.get(&name).is_some_and(|old| **old == policy) {
            return false;
        }
        self.directory.policies.put(Arc::clone(&policy.policy));
        self.policies.insert(name, Arc::new(policy));
        self.changed = true;
        true
    }

    fn remove_policy(&mut self, name: &Arc<str>) -> bool {
        let known = self.policies.remove(name).is_some();
        if known {
            self.directory.policies.remove(name);
            self.changed = true;
        }
        known
    }

    /// Endpoints at the node's old and new addresses are judged anew, and those on loopback when podCIDRs moved.
    fn touch_node(&mut self, old: Option<&Node>, new: Option<&Node>) {
        let of = |node: Option<&Node>| node.map(|node| node.addresses.clone()).unwrap_or_default();
        let (before, after) = (of(old), of(new));
        if before != after {
            for ip in before.iter().chain(&after) {
                self.dirty.extend(self.directory.services_at_ip(*ip).iter().cloned());
            }
            self.peers_dirty = true;
        }
        if old.map(|node| &node.pod_cidrs) != new.map(|node| &node.pod_cidrs) {
            self.dirty.extend(self.loopback.iter().cloned());
        }
    }

    /// Rebuilds what changed since the last call.
    pub(crate) fn settle(&mut self) -> Settled {
        let mut settled = Settled::default();
        let now = SystemTime::now();
        for key in std::mem::take(&mut self.dirty) {
            settled.rebuilt += 1;
            self.changed |= self.rebuild(&key, now);
        }
        if std::mem::take(&mut self.peers_dirty) {
            let slices = slices_of(&self.by_service, &self.slices, &self.peers_key);
            let ground = Ground { directory: &self.directory, node_name: &self.node_name, now };
            let (peers, notes) = translate::peers(&slices, ground);
            let same = peers.len() == self.directory.size().peers
                && peers.iter().all(|peer| self.directory.peer(&peer.node).is_some_and(|old| **old == *peer));
            if !same {
                self.directory.set_peers(peers);
                self.changed = true;
            }
            settled.peer_notes = Some(notes);
        }
        settled.tls_notes = std::mem::take(&mut self.tls_notes);
        settled.moved = self.moved.as_mut().map(std::mem::take).unwrap_or_default();
        settled.changed = std::mem::take(&mut self.changed);
        settled
    }

    /// Says whether the directory changed.
    fn rebuild(&mut self, key: &ServiceKey, now: SystemTime) -> bool {
        let old = self.directory.service(key).cloned();
        let object = self.services.get(key);
        let certified = self.trust.concerns(key, object.map(|object| &**object));
        self.trust.refer(key, object.map(|object| &**object));
        let Some(object) = object else {
            if certified {
                self.tls_notes.push((Arc::clone(key), Vec::new()));
            }
            if old.is_none() {
                return false;
            }
            self.index(key, None);
            self.directory.remove_service(key);
            return true;
        };
        let slices = slices_of(&self.by_service, &self.slices, key);
        let ground = Ground { directory: &self.directory, node_name: &self.node_name, now };
        let mut new = translate::service(object, &slices, ground);
        let Found { tls, backend, notes } = self.trust.of(object, &new, old.as_deref());
        (new.tls, new.backend) = (tls, backend);
        if certified {
            self.tls_notes.push((Arc::clone(key), notes));
        }
        if let Some(old) = old.as_ref().filter(|old| translate::same(old, &new)) {
            if translate::same_tls(old, &new) {
                return false;
            }
            new.changed = old.changed;
        }
        self.index(key, Some(&new));
        self.directory.put_service(new);
        true
    }

    /// Keeps `loopback` in step with a Service's endpoints.
    fn index(&mut self, key: &ServiceKey, new: Option<&Service>) {
        let ports = new.into_iter().flat_map(|service| &service.ports);
        if ports.flat_map(|port| port.endpoints.all()).any(|endpoint| endpoint.address.ip().is_loopback()) {
            self.loopback.insert(Arc::clone(key));
        } else {
            self.loopback.remove(key);
        }
    }
}

fn slices_of<'a>(
    by_service: &HashMap<ServiceKey, SmallVec<[Arc<str>; 1]>>,
    slices: &'a HashMap<Arc<str>, Arc<SliceObject>>,
    key: &str,
) -> Vec<&'a SliceObject> {
    let names = by_service.get(key).into_iter().flatten();
    names.filter_map(|name| slices.get(name)).map(|slice| &**slice).collect()
}

/// Every object of a view, shared.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) services: Vec<Arc<ServiceObject>>,
    pub(crate) slices: Vec<(Arc<str>, Arc<SliceObject>)>,
    pub(crate) pods: Vec<Arc<Pod>>,
    pub(crate) nodes: Vec<Arc<Node>>,
    pub(crate) policies: Vec<Arc<PolicyObject>>,
}
