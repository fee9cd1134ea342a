//! The link, sender's end: which metadata a stream carries, and how requests, upgrades and tunnels are sent to the proxy
//! on a pod's node. A worker has its own connections to each peer; they come from the `LinkTransport`, which alone
//! knows whether there is TLS. The receiver's end is `link_server.rs`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use metrics::Gauge;
use posthouse_model::directory::ServiceTls;
use posthouse_model::{Peer, Service, ServiceKey};
use posthouse_wire::Ask;
use tracing::{info, warn};

use crate::backend::Same;
use crate::body::ReplayBody;
use crate::error::{Error, ErrorKind, Retry};
use crate::exchange::{Interim, Request, Response};
use crate::h2pool::H2Pool;
use crate::inbound::Delivery;
use crate::link_conn::LinkConn;
use crate::metrics::{LINK_DIALS, LINK_STREAMS, OpenGauge};

use crate::status::{LinkStatus, Proxy};

/// The pod's address and port that the stream is for.
pub(crate) static TARGET: HeaderName = HeaderName::from_static("posthouse-target");
/// Who sends: `namespace/pod/uid/service-account`, or `-` when unidentified.
pub(crate) static SOURCE: HeaderName = HeaderName::from_static("posthouse-source");
/// How to deliver: see [`Delivery`].
pub(crate) static PROTOCOL: HeaderName = HeaderName::from_static("posthouse-protocol");
/// On an answer made by the receiving proxy: the token of its error.
pub(crate) const ERROR: HeaderName = HeaderName::from_static("posthouse-error");
/// On such an answer: whether another endpoint may be tried (`safe`, `idempotent`, `never`).
pub(crate) const RETRY: HeaderName = HeaderName::from_static("posthouse-retry");
/// On such an answer: what happened, in words.
pub(crate) const DETAILS: HeaderName = HeaderName::from_static("posthouse-details");
/// On the answer to an upgrade: the protocol that the pod switched to; the stream is a tunnel now.
pub(crate) const UPGRADED: HeaderName = HeaderName::from_static("posthouse-upgraded");

/// A link that had no stream for this long is closed, unless its peer is gone already. 10 min: a handshake is cheap, but
/// none should be needed between two runs of a cron job.
const LINK_IDLE: Duration = Duration::from_secs(600);

/// Links that one worker opens to a peer: one, and the next when all streams of those before are in use.
const MAX_PER_PEER: usize = 4;

/// What tells links apart: the peer, the certificates that they were made with, and the Service that the other end proved.
#[derive(Clone, PartialEq, Eq, Hash)]
struct LinkKey {
    node: Arc<str>,
    address: SocketAddr,
    /// See [`posthouse_model::transport::LinkTransport::epoch`].
    epoch: u64,
    service: Option<ServiceProof>,
}

/// A Service with the certificate that it has now.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ServiceProof(ServiceKey, Same<ServiceTls>);

/// Where a stream goes.
#[derive(Clone, Copy)]
pub(crate) struct Through<'a> {
    pub(crate) peer: &'a Arc<Peer>,
    pub(crate) service: &'a Arc<Service>,
}

/// A worker's links.
pub(crate) struct Links {
    pool: H2Pool<LinkKey, LinkConn>,
    /// `posthouse-target` as a field value, by address, so that it is written once and not for each request.
    targets: RefCell<HashMap<SocketAddr, HeaderValue>>,
}

/// Addresses that are kept as field values: more than a worker talks to at a time, at about 100 bytes each.
const MAX_TARGETS: usize = 16_384;

/// What goes with each stream, made once a client connection.
pub(crate) struct Stamp<'a> {
    pub(crate) target: SocketAddr,
    pub(crate) source: &'a HeaderValue,
    pub(crate) delivery: Delivery,
}

impl Links {
    pub(crate) fn new() -> Self {
        Self { pool: H2Pool::new(MAX_PER_PEER), targets: RefCell::new(HashMap::new()) }
    }

    async fn get(&self, proxy: &Arc<Proxy>, through: Through<'_>) -> Result<Rc<LinkConn>, Error> {
        let Through { peer, service } = through;
        let proven = service.tls.as_ref().filter(|_| proxy.config.service_certificates);
        let key = LinkKey {
            node: Arc::clone(&peer.node),
            address: peer.address,
            epoch: proxy.trust.links.epoch(),
            service: proven.map(|tls| ServiceProof(service.key(), Same(Arc::clone(tls)))),
        };
        self.pool.get(&key, || dial(proxy, peer, proven.map(|_| &**service))).await
    }

    /// Sends a request to the pod `stamp.target` through its node's proxy.
    pub(crate) async fn call(
        &self,
        proxy: &Arc<Proxy>,
        through: Through<'_>,
        stamp: &Stamp<'_>,
        request: &Request,
        body: Option<&ReplayBody>,
        interim: &mut dyn Interim,
    ) -> Result<Response, Error> {
        let link = self.get(proxy, through).await?;
        let whom = Whom(&through.peer.node);
        let target = self.target(stamp.target)?;
        let protocol = HeaderValue::from_static(stamp.delivery.as_str());
        let ask = Ask {
            method: &request.method,
            // The client's view: the pod sees it in nothing, but `https` must not be lost.
            scheme: Some(if request.https { &Scheme::HTTPS } else { &Scheme::HTTP }),
            authority: request.authority.as_str().as_bytes(),
            path: Some(&request.path),
            protocol: None,
            headers: &request.headers,
            extra: &[(&TARGET, &target), (&SOURCE, stamp.source), (&PROTOCOL, &protocol)],
        };
        let response = if let Some(upgrade) = &request.upgrade {
            if upgrade.to_str().is_err() {
                let details = "the Upgrade field holds more than printable characters";
                return Err(Error::client(ErrorKind::HttpRequestError, details));
            }
            let ask = Ask { method: &Method::CONNECT, protocol: Some(upgrade), ..ask };
            Box::pin(link.connect(&ask, &whom, |_, headers| headers.contains_key(UPGRADED))).await?
        } else {
            link.call(&ask, body, interim, request.is_idempotent(), &whom).await?
        };
        unpack(response)
    }

    /// Opens an opaque tunnel to the pod `stamp.target`.
    pub(crate) async fn tunnel(
        &self,
        proxy: &Arc<Proxy>,
        through: Through<'_>,
        stamp: &Stamp<'_>,
    ) -> Result<Response, Error> {
        let link = self.get(proxy, through).await?;
        let target = self.target(stamp.target)?;
        let protocol = HeaderValue::from_static(stamp.delivery.as_str());
        let ask = Ask {
            method: &Method::CONNECT,
            scheme: None,
            authority: target.as_bytes(),
            path: None,
            protocol: None,
            headers: &HeaderMap::new(),
            extra: &[(&TARGET, &target), (&SOURCE, stamp.source), (&PROTOCOL, &protocol)],
        };
        let response = link.connect(&ask, &Whom(&through.peer.node), |status, _| status.is_success()).await?;
        unpack(response)
    }

    fn target(&self, target: SocketAddr) -> Result<HeaderValue, Error> {
        let mut targets = self.targets.borrow_mut();
        if let Some(value) = targets.get(&target) {
            return Ok(value.clone());
        }
        let value = HeaderValue::try_from(target.to_string()).map_err(|_| internal("a target is no field value"))?;
        if targets.len() >= MAX_TARGETS {
            targets.clear();
        }
        targets.insert(target, value.clone());
        Ok(value)
    }

    /// Closes links to peers that are gone from the directory, those without use and those made with certificates that are
    /// not the newest any more.
    pub(crate) fn sweep(&self, proxy: &Proxy) {
        let directory = proxy.directory.load();
        let epoch = proxy.trust.links.epoch();
        self.pool.sweep(|LinkKey { node, address, epoch: made, service }, connection| {
            let current = |ServiceProof(key, Same(tls)): &ServiceProof| {
                let now = directory.service(key).and_then(|service| service.tls.as_ref());
                now.is_some_and(|now| Arc::ptr_eq(now, tls))
            };
            connection.idle_for() < LINK_IDLE
                && *made == epoch
                && service.as_ref().is_none_or(current)
                && directory.peer(node).is_some_and(|peer| peer.address == *address)
        });
    }
}

/// Names a peer in error messages, made only when there is an error.
pub(crate) struct Whom<'a>(pub(crate) &'a str);

impl std::fmt::Display for Whom<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the proxy on node {}", self.0)
    }
}

fn internal(details: &'static str) -> Error {
    Error::internal(ErrorKind::ProxyInternalError, details)
}

/// Turns an answer that the receiving proxy made itself back into its error, and takes the metadata off any other.
fn unpack(mut response: Response) -> Result<Response, Error> {
    response.upgrade = response.headers.remove(UPGRADED);
    let Some(token) = response.headers.remove(ERROR) else {
        return Ok(response);
    };
    let text = |name: &HeaderName| response.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let retry = match text(&RETRY) {
        "safe" => Retry::Safe,
        "idempotent" => Retry::IfIdempotent,
        _ => Retry::Never,
    };
    let kind = token.to_str().ok().and_then(ErrorKind::from_token).unwrap_or(ErrorKind::ProxyInternalError);
    let details = text(&DETAILS).to_owned();
    // A policy's denial says nothing bad of the pod that it protects.
    let mut error = match kind {
        ErrorKind::HttpRequestDenied => Error::client(kind, details),
        _ => Error::upstream(kind, retry, details),
    };
    error.status = (response.status != kind.status()).then_some(response.status);
    Err(error)
}

/// Marks an answer as ours, for [`unpack`] at the other end.
pub(crate) fn pack_error(error: &Error, headers: &mut HeaderMap) {
    let retry = match error.retry {
        Retry::Safe => "safe",
        Retry::IfIdempotent => "idempotent",
        Retry::Never => "never",
    };
    headers.insert(ERROR, HeaderValue::from_static(error.kind.token()));
    headers.insert(RETRY, HeaderValue::from_static(retry));
    let details: String =
        error.details.chars().take(512).map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
    if let Ok(details) = HeaderValue::try_from(details) {
        headers.insert(DETAILS, details);
    }
}

async fn dial(proxy: &Arc<Proxy>, peer: &Arc<Peer>, service: Option<&Service>) -> Result<Rc<LinkConn>, Error> {
    let counters = proxy.link_table.of(&peer.node);
    let failed = |what: String, kind| {
        warn!(peer = %peer.node, address = %peer.address, error = %what, "link failed");
        metrics::counter!(LINK_DIALS, "result" => "failed").increment(1);
        counters.failed(&what);
        Error::link(kind, format!("no link to the proxy on node {}: {what}", peer.node))
    };
    let io = proxy.trust.links.connect(peer, service).await.map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => ErrorKind::ConnectionRefused,
            std::io::ErrorKind::TimedOut => ErrorKind::ConnectionTimeout,
            // The transport's own word; from the system it is a packet filter's.
            std::io::ErrorKind::PermissionDenied if error.raw_os_error().is_none() => ErrorKind::TlsCertificateError,
            std::io::ErrorKind::InvalidData => ErrorKind::TlsProtocolError,
            _ => ErrorKind::DestinationUnavailable,
        };
        failed(error.to_string(), kind)
    })?;
    let open = OpenGauge::connection("link_out");
    let closing = Arc::clone(&counters);
    let node = Arc::clone(&peer.node);
    let link = LinkConn::open(io, Arc::clone(&counters), move || {
        closing.connections.fetch_sub(1, Ordering::Relaxed);
        info!(peer = %node, "link closed");
        drop(open);
    });
    counters.link_opened();
    metrics::counter!(LINK_DIALS, "result" => "ok").increment(1);
    info!(peer = %peer.node, address = %peer.address, "link open");
    Ok(link)
}

/// Counters of all workers' links, by peer; touched when a link opens or closes, never on a request's way.
#[derive(Default)]
pub(crate) struct LinkTable(Mutex<HashMap<Arc<str>, Arc<LinkCounters>>>);

/// Counters of the links to one peer.
pub(crate) struct LinkCounters {
    connections: AtomicU64,
    streams: AtomicU64,
    all_streams: Gauge,
    opened: AtomicU64,
    failures: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Default for LinkCounters {
    fn default() -> Self {
        Self {
            connections: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            all_streams: metrics::gauge!(LINK_STREAMS, "direction" => "out"),
            opened: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            last_error: Mutex::new(None),
        }
    }
}

impl LinkCounters {
    pub(crate) fn stream_opened(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
        self.all_streams.increment(1.0);
    }

    pub(crate) fn stream_closed(&self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
        self.all_streams.decrement(1.0);
    }

    fn link_opened(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.opened.fetch_add(1, Ordering::Relaxed);
        // It tells of now: a refusal while the peer was replaced is over.
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn failed(&self, what: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(what.to_owned());
    }
}

impl LinkTable {
    fn of(&self, node: &Arc<str>) -> Arc<LinkCounters> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(table.entry(Arc::clone(node)).or_default())
    }

    /// The state of every link, forgetting peers for which `known` says no and that have no connection.
    pub(crate) fn list(&self, known: impl Fn(&str) -> bool) -> Vec<LinkStatus> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|node, counters| known(node) || counters.connections.load(Ordering::Relaxed) > 0);
        let mut list: Vec<LinkStatus> = table
            .iter()
            .map(|(node, counters)| LinkStatus {
                node: node.to_string(),
                connections: counters.connections.load(Ordering::Relaxed),
                streams: counters.streams.load(Ordering::Relaxed),
                opened: counters.opened.load(Ordering::Relaxed),
                failures: counters.failures.load(Ordering::Relaxed),
                last_error: counters.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            })
            .collect();
        list.sort_by(|a, b| a.node.cmp(&b.node));
        list
    }
}

/// `/` for messages that need a path and have none of their own.
pub(crate) fn root_path() -> PathAndQuery {
    PathAndQuery::from_static("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_opens_wipes_out_the_last_error() {
        let table = LinkTable::default();
        let counters = table.of(&Arc::from("node-b"));
        counters.failed("connection refused");
        assert_eq!(table.list(|_| true)[0].last_error.as_deref(), Some("connection refused"));
        counters.link_opened();
        let link = table.list(|_| true).remove(0);
        assert_eq!((link.last_error, link.failures, link.opened, link.connections), (None, 1, 1, 1));
    }
}
