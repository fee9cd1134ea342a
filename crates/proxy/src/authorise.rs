//! Who asks, and whether it may: the receiver's decisions. A stream's claim of a source is checked here ([`Claims`]), the
//! policies that concern the target decide ([`http`], [`tunnel`]), and a tunnel that a changed policy denies is ended
//! ([`revoked`]). Every way to a pod of this node leads through here, from a link and from a client on the same node.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use metrics::counter;
use posthouse_model::transport::PeerIdentity;
use posthouse_model::workload::{Checked, Claim, Identity};
use posthouse_model::{Directory, DirectoryHandle, Pod, PodRef};
use posthouse_policy::{Guard, Operation, Set, Source, Target, Workload, normalise_path};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::downstream::LocalBoxFuture;
use crate::error::{Error, ErrorKind};
use crate::inbound;
use crate::metrics::{POLICY_DECISIONS, TUNNELS_REVOKED};
use crate::worker::Worker;

/// To the pod: who asks, as `spiffe://<trust-domain>/ns/<namespace>/sa/<service account>;pod=<pod>`. The form of the id is that of
/// Istio and of SPIFFE's own examples, so that libraries for it work.
pub(crate) const CLIENT: HeaderName = HeaderName::from_static("posthouse-client");
/// To the pod: the asking pod's address.
pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Who asks, as this node knows it.
#[derive(Clone)]
pub(crate) struct Caller {
    /// Where a certificate proves it.
    node: Option<Arc<str>>,
    identity: Option<Arc<Identity>>,
    /// It claims to be somebody, and that cannot be checked now.
    doubtful: bool,
    fields: Option<Rc<Fields>>,
}

/// What the pod is told of a caller, written once.
struct Fields {
    client: HeaderValue,
    forwarded_for: Option<HeaderValue>,
}

impl Caller {
    /// A caller of which nothing is known.
    pub(crate) const UNKNOWN: Self = Self { node: None, identity: None, doubtful: false, fields: None };

    /// A caller of which nothing but the node is known.
    pub(crate) fn unidentified(node: &Arc<str>) -> Self {
        Self { node: Some(Arc::clone(node)), ..Self::UNKNOWN }
    }

    /// A pod that was verified.
    pub(crate) fn identified(identity: Arc<Identity>, trust_domain: &str) -> Self {
        let pod = &identity.pod;
        let id =
            format!("spiffe://{trust_domain}/ns/{}/sa/{};pod={}", pod.namespace, identity.service_account, pod.name);
        let fields = HeaderValue::try_from(id).ok().map(|client| {
            let forwarded_for = identity.address.and_then(|ip| HeaderValue::try_from(ip.to_string()).ok());
            Rc::new(Fields { client, forwarded_for })
        });
        Self { node: Some(Arc::clone(&identity.node)), identity: Some(identity), doubtful: false, fields }
    }

    /// A pod of this node, which its address proves.
    pub(crate) fn local(pod: Option<&Pod>, address: Option<IpAddr>, node: &Arc<str>, trust_domain: &str) -> Self {
        let Some(pod) = pod else { return Self::unidentified(node) };
        let identity = Identity {
            pod: pod.id.clone(),
            service_account: Arc::clone(&pod.service_account),
            node: Arc::clone(node),
            address,
        };
        Self::identified(Arc::new(identity), trust_domain)
    }

    /// Replaces whatever a client sent under these names by what is known.
    pub(crate) fn stamp(&self, headers: &mut HeaderMap) {
        headers.remove(&CLIENT);
        headers.remove(&FORWARDED_FOR);
        if let Some(fields) = &self.fields {
            headers.insert(CLIENT, fields.client.clone());
            if let Some(address) = &fields.forwarded_for {
                headers.insert(FORWARDED_FOR, address.clone());
            }
        }
    }

    /// Its node, empty when nothing proves it.
    fn node(&self) -> &str {
        self.node.as_deref().unwrap_or_default()
    }

    fn source(&self) -> Source<'_> {
        let workload = self.identity.as_deref().map(|identity| Workload {
            namespace: &identity.pod.namespace,
            pod: &identity.pod.name,
            service_account: &identity.service_account,
        });
        Source { node: self.node(), workload, doubtful: self.doubtful }
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.identity.as_deref() {
            Some(Identity { pod, service_account, .. }) => {
                write!(f, "{}/{} of service account {service_account}", pod.namespace, pod.name)
            }
            None if self.doubtful => f.write_str("unidentified (its claim cannot be checked now)"),
            None => f.write_str("unidentified"),
        }
    }
}

/// Claims of one link that were met already, so that a stream costs a look and not a parse.
#[derive(Default)]
pub(crate) struct Claims(RefCell<HashMap<HeaderValue, Rc<Known>>>);

struct Known {
    claim: Claim,
    /// It could not be checked a moment ago: until then nobody waits for another try.
    rests: Cell<Option<Instant>>,
    caller: RefCell<Option<Caller>>,
}

/// Claims that are kept for a link: as many pods as a large node has, and the same again for those that were replaced.
const MAX_CLAIMS: usize = 1_024;

/// How long nobody waits for a claim that could not be checked: while the API is away, one stream a second does and not each.
const REST: Duration = Duration::from_secs(1);

impl Claims {
    /// Who asks by what a stream of `peer` says, after a check against the API where that is needed.
    ///
    /// # Errors
    /// A claim that is false: counted (by who checks) and logged with both nodes' names.
    pub(crate) async fn caller(
        &self,
        worker: &Worker,
        peer: &PeerIdentity,
        source: Option<&HeaderValue>,
    ) -> Result<Caller, Error> {
        // A plain link's peer is told by its address alone, which proves no identity.
        if !peer.authenticated {
            return Ok(Caller::UNKNOWN);
        }
        let Some(source) = source.filter(|source| *source != "-") else {
            return Ok(Caller::unidentified(&peer.node));
        };
        let known = self.known(source).ok_or_else(|| denied("a link's stream names its source in another form"))?;
        let workloads = &worker.proxy.trust.workloads;
        let checked = match workloads.known(&known.claim, &peer.node) {
            Some(checked) => checked,
            None if known.rests.get().is_some_and(|until| Instant::now() < until) => {
                Checked::Unknown("it could not be checked a moment ago")
            }
            None => workloads.check(&known.claim, &peer.node).await,
        };
        match checked {
            Checked::Verified(identity) => Ok(known.caller(identity, &worker.proxy.config.trust_domain)),
            Checked::Unknown(_) => {
                if known.rests.get().is_none_or(|until| Instant::now() >= until) {
                    known.rests.set(Some(Instant::now() + REST));
                }
                Ok(Caller { doubtful: true, ..Caller::unidentified(&peer.node) })
            }
            Checked::False(why) => {
                let receiver = &worker.proxy.config.node_name;
                if let Some(unlogged) = worker.failure_log.due(ErrorKind::HttpRequestDenied, &peer.node, Instant::now())
                {
                    warn!(peer = %peer.node, node = %receiver, claim = known.claim.as_str(), %why, unlogged, "false claim of a source");
                }
                Err(denied(format!(
                    "node {} claims to send for {}, but {why} (checked by node {receiver})",
                    peer.node,
                    known.claim.as_str()
                )))
            }
        }
    }

    fn known(&self, source: &HeaderValue) -> Option<Rc<Known>> {
        let mut all = self.0.borrow_mut();
        if let Some(known) = all.get(source) {
            return Some(Rc::clone(known));
        }
        let claim = Claim::parse(source.to_str().ok()?)?;
        if all.len() >= MAX_CLAIMS {
            all.clear();
        }
        let known = Rc::new(Known { claim, rests: Cell::new(None), caller: RefCell::new(None) });
        all.insert(source.clone(), Rc::clone(&known));
        Some(known)
    }
}

impl Known {
    fn caller(&self, identity: Arc<Identity>, trust_domain: &str) -> Caller {
        let mut kept = self.caller.borrow_mut();
        match &*kept {
            Some(caller) if caller.identity.as_ref().is_some_and(|known| Arc::ptr_eq(known, &identity)) => {
                caller.clone()
            }
            _ => kept.insert(Caller::identified(identity, trust_domain)).clone(),
        }
    }
}

/// A target that policies concern.
pub(crate) struct Protected {
    guard: Arc<Guard>,
    namespace: Arc<str>,
    pod: Arc<str>,
}

impl Protected {
    /// The policies for the pod of this node at `target`: those of its namespace and of every Service there that leads to it, whichever
    /// of its addresses and ports is asked.
    pub(crate) fn find(target: SocketAddr, directory: &Directory) -> Option<Self> {
        if directory.policies.is_empty() {
            return None;
        }
        if let Some(pod) = directory.pod_by_ip(target.ip()) {
            let services = pod.addresses.iter().flat_map(|ip| directory.services_at_ip(*ip));
            return Self::of(&pod.id, services.map(|key| &**key), directory);
        }
        // A pod on the host network shares its address with others: what leads to its port counts, as far as it is true.
        let entries = directory.endpoints_at(target);
        let host =
            entries.iter().find_map(|(key, endpoint)| inbound::host_network_pod(target, key, endpoint, directory))?;
        Self::of(&host.id, entries.iter().map(|(key, _)| &**key), directory)
    }

    fn of<'a>(pod: &PodRef, services: impl Iterator<Item = &'a str>, directory: &Directory) -> Option<Self> {
        let here = services.filter_map(|key| key.split_once('/')).filter(|(of, _)| **of == *pod.namespace);
        let guard = directory.policies.concerning(&pod.namespace, here.map(|(_, service)| service))?;
        Some(Self { guard, namespace: Arc::clone(&pod.namespace), pod: Arc::clone(&pod.name) })
    }

    /// Whether policies may concern the pod of another node at `target`. Who it is is known there alone, so each Service that leads to its
    /// address counts, and each namespace that says it has it.
    pub(crate) fn may_concern(target: SocketAddr, directory: &Directory) -> bool {
        let policies = &directory.policies;
        let keys = directory.services_at_ip(target.ip()).iter();
        let pods = directory.endpoints_at(target).iter().filter_map(|(_, endpoint)| endpoint.pod.as_ref());
        !policies.is_empty()
            && (keys
                .filter_map(|key| key.split_once('/'))
                .any(|(of, service)| policies.concerning(of, std::iter::once(service)).is_some())
                || pods.into_iter().any(|pod| policies.concerning(&pod.namespace, std::iter::empty()).is_some()))
    }

    fn decide(&self, worker: &Worker, caller: &Caller, port: u16, operation: &Operation<'_>) -> Result<(), Error> {
        let target = Target { namespace: &self.namespace, pod: &self.pod, port };
        let verdict = self.guard.decide(&caller.source(), &target, operation);
        let log = |policy: &str, what: &'static str| {
            let key = format!("{what} {policy} {caller}");
            if let Some(unlogged) = worker.failure_log.due(ErrorKind::HttpRequestDenied, &key, Instant::now()) {
                let (method, path) = match operation {
                    Operation::Http { method, path, .. } => (*method, *path),
                    Operation::Tunnel => ("CONNECT", ""),
                };
                info!(policy, source = %caller, node = caller.node(), pod = %self.pod, namespace = %self.namespace, port, method, path, unlogged, "{what}");
            }
        };
        if let Some(policy) = &verdict.would_deny {
            counter!(POLICY_DECISIONS, "decision" => "would_deny").increment(1);
            log(policy, "a policy in dry run would deny");
        }
        let Some(policy) = verdict.denied_by else {
            counter!(POLICY_DECISIONS, "decision" => "allowed").increment(1);
            return Ok(());
        };
        counter!(POLICY_DECISIONS, "decision" => "denied").increment(1);
        log(&policy, "denied by a policy");
        Err(denied(format!("AuthorizationPolicy {policy} denies it: {}", verdict.reason)))
    }
}

fn denied(details: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::client(ErrorKind::HttpRequestDenied, details)
}

/// Whether an HTTP request may go to `target`. Where policies read paths, the path in the form that was matched comes back when
/// it differs: that one must be forwarded.
///
/// # Errors
/// The policy that denies, or what is ambiguous about the path.
pub(crate) fn http(
    worker: &Worker,
    target: SocketAddr,
    protected: Option<&Protected>,
    caller: &Caller,
    method: &Method,
    path: &PathAndQuery,
    authority: &Authority,
) -> Result<Option<PathAndQuery>, Error> {
    let Some(protected) = protected else { return Ok(None) };
    let mut replaced = None;
    let plain = path.path();
    let matched = if protected.guard.reads_path() {
        let normal = normalise_path(plain).map_err(|why| {
            let details = format!("policies of the target read the path, and this one cannot be matched safely: {why}");
            Error::client(ErrorKind::HttpRequestError, details)
        })?;
        if *normal != *plain {
            let whole = match path.query() {
                Some(query) => format!("{normal}?{query}"),
                None => normal.to_string(),
            };
            let path = PathAndQuery::try_from(whole).map_err(|_| denied("the path has no normal form"))?;
            replaced = Some(path);
        }
        normal
    } else {
        plain.into()
    };
    // One form for conditions, too: names are not case-sensitive, and the root's dot says nothing.
    let host = authority.host();
    let host: Cow<'_, str> = match host.strip_suffix('.').unwrap_or(host) {
        host if host.bytes().any(|b| b.is_ascii_uppercase()) => host.to_ascii_lowercase().into(),
        host => host.into(),
    };
    let operation = Operation::Http { method: method.as_str(), path: &matched, host: &host };
    protected.decide(worker, caller, target.port(), &operation)?;
    Ok(replaced)
}

/// Whether a tunnel to `target` may be opened.
///
/// # Errors
/// The policy that denies.
pub(crate) fn tunnel(
    worker: &Worker,
    target: SocketAddr,
    protected: Option<&Protected>,
    caller: &Caller,
) -> Result<(), Error> {
    protected.map_or(Ok(()), |it| it.decide(worker, caller, target.port(), &Operation::Tunnel))
}

/// What was allowed once and is asked again when policies change.
pub(crate) enum Held {
    /// An upgraded request.
    Http(Method, PathAndQuery, Authority),
    /// An opaque tunnel.
    Tunnel,
}

/// Ready when policies that are newer than those of the moment `since` ([`PolicyWatch::now`]) deny what `caller` holds open.
pub(crate) fn revoked(
    worker: &Rc<Worker>,
    target: SocketAddr,
    caller: Caller,
    held: Held,
    mut since: u64,
) -> LocalBoxFuture<'static, ()> {
    let worker = Rc::clone(worker);
    Box::pin(async move {
        loop {
            since = worker.policies.changed(since).await;
            let protected = Protected::find(target, &worker.proxy.directory.load());
            let allowed = match &held {
                Held::Tunnel => tunnel(&worker, target, protected.as_ref(), &caller),
                Held::Http(method, path, authority) => {
                    http(&worker, target, protected.as_ref(), &caller, method, path, authority).map(drop)
                }
            };
            if let Err(error) = allowed {
                counter!(TUNNELS_REVOKED).increment(1);
                info!(%target, source = %caller, details = %error.details, "tunnel ended by a changed policy");
                return;
            }
        }
    })
}

/// Tells tunnels of changed policies, and of nothing else: the directory changes far more often.
#[derive(Default)]
pub(crate) struct PolicyWatch {
    changes: Cell<u64>,
    changed: Notify,
}

impl PolicyWatch {
    /// Names this moment for [`revoked`].
    pub(crate) fn now(&self) -> u64 {
        self.changes.get()
    }

    /// Ready when there was a change after `since`; names the moment of the newest.
    async fn changed(&self, since: u64) -> u64 {
        loop {
            // Made before the look, so that no change is missed.
            let changed = self.changed.notified();
            if self.changes.get() != since {
                return self.changes.get();
            }
            changed.await;
        }
    }

    /// Follows the directory for ever.
    pub(crate) async fn follow(&self, directory: &DirectoryHandle) {
        let mut changes = directory.subscribe();
        let mut before: Set = directory.load().policies.clone();
        while changes.changed().await.is_ok() {
            let now = directory.load().policies.clone();
            if !now.is_same(&before) {
                before = now;
                self.changes.set(self.changes.get() + 1);
                self.changed.notify_waiters();
            }
        }
    }
}
