//! The receiver's side: a request that is for a pod of this node, from the link or from a client on the same node, is
//! checked and delivered. The checks are here so that no way to a pod leads around them.

use std::net::SocketAddr;
use std::rc::Rc;

use http::HeaderMap;
use posthouse_model::{Directory, Endpoint, Pod, ServiceKey, address};

use crate::backend::Backend;
use crate::body::ReplayBody;
use crate::error::{Error, ErrorKind, Retry};
use crate::exchange::{Interim, Request, Response};
use crate::metrics::OpenGauge;
use crate::pods::Pods;
use crate::stream::{BufferedIo, SharedIo, Stream};

/// How a request is handed to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    Http1,
    Http2,
    /// Bytes as they are.
    Opaque,
}

impl Delivery {
    /// The value of `posthouse-protocol`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
            Self::Opaque => "opaque",
        }
    }

    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        match value {
            b"http/1.1" => Some(Self::Http1),
            b"h2" => Some(Self::Http2),
            b"opaque" => Some(Self::Opaque),
            _ => None,
        }
    }
}

/// Why a target was not admitted.
#[derive(Debug)]
pub(crate) struct NotAdmitted {
    pub(crate) error: Error,
    /// The API may show the pod in a moment: the slice is there and the address lies in the node's own pod range.
    pub(crate) may_appear: bool,
}

/// Whether `target` is a pod of this node on a port that the directory knows, and by which Service. An EndpointSlice is
/// written by users, so it alone proves nothing: the address must be that of a pod that the API shows on this node. Several
/// Services may name one address; a broken entry of one does not spoil another's.
pub(crate) fn admit<'a>(
    target: SocketAddr,
    node_name: &str,
    directory: &'a Directory,
) -> Result<&'a ServiceKey, NotAdmitted> {
    let mut refusal = None;
    for (key, endpoint) in directory.endpoints_at(target) {
        if endpoint.node.as_deref() != Some(node_name) {
            continue;
        }
        match admit_entry(target, node_name, key, endpoint, directory) {
            Ok(()) => return Ok(key),
            Err(why) => refusal = Some(why),
        }
    }
    // `Safe`: nothing reached a pod, and a directory that is newer or older than the sender's is no fault of the request.
    Err(refusal.unwrap_or_else(|| NotAdmitted {
        error: Error::upstream(
            ErrorKind::DestinationUnavailable,
            Retry::Safe,
            format!("{target} is not an endpoint on node {node_name} (any more)"),
        ),
        may_appear: false,
    }))
}

fn admit_entry(
    target: SocketAddr,
    node_name: &str,
    key: &str,
    endpoint: &Endpoint,
    directory: &Directory,
) -> Result<(), NotAdmitted> {
    let refuse = |why: String, may_appear| {
        let error = Error::upstream(ErrorKind::DestinationIpProhibited, Retry::Safe, why);
        Err(NotAdmitted { error, may_appear })
    };
    if let Some(refusal) = endpoint.refusal {
        return refuse(format!("{target} is refused: it is {refusal}"), false);
    }
    let ip = target.ip();
    let host_network = host_network_pod(target, key, endpoint, directory).is_some();
    if let Err(refusal) = address::check(ip, target.port(), host_network, directory) {
        return refuse(format!("{target} is refused: it is {refusal}"), false);
    }
    if host_network || directory.pod_by_ip(ip).is_some_and(|pod| *pod.node == *node_name) {
        return Ok(());
    }
    let in_pod_range =
        directory.node(node_name).is_some_and(|node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&ip)));
    refuse(format!("{target} is no pod's address on node {node_name}, although an EndpointSlice says so"), in_pod_range)
}

/// The host-network pod of this node that an entry of Service `key` means, when it is one of that Service's namespace.
pub(crate) fn host_network_pod<'a>(
    target: SocketAddr,
    key: &str,
    endpoint: &Endpoint,
    directory: &'a Directory,
) -> Option<&'a Pod> {
    let ip = target.ip();
    let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
    directory.node_by_ip(ip)?;
    let pod = directory.pod(&endpoint.pod.as_ref()?.uid)?;
    let is = pod.host_network && pod.addresses.contains(&ip) && *pod.id.namespace == *namespace;
    is.then_some(&**pod)
}

/// Delivers a request to a pod that was admitted (or that the sender dials directly).
pub(crate) async fn deliver(
    pods: &Rc<Pods>,
    backend: &Backend,
    delivery: Delivery,
    request: &Request,
    body: Option<&ReplayBody>,
    interim: &mut dyn Interim,
) -> Result<Response, Error> {
    let mut response = match delivery {
        Delivery::Http1 | Delivery::Opaque => pods.call_h1(backend, request, body, interim).await?,
        Delivery::Http2 => {
            let connection = pods.h2(backend).await?;
            let whom = format_args!("pod {}", backend.address);
            connection.call(|| h2_message(request, backend), body, interim, &whom).await?
        }
    };
    crate::h1::strip_hop_by_hop(&mut response.headers);
    Ok(response)
}

/// Opens a plain connection to a pod for a tunnel.
pub(crate) async fn dial_tunnel(pods: &Rc<Pods>, target: SocketAddr) -> Result<(SharedIo, OpenGauge), Error> {
    let stream = pods.dial(target).await?;
    Ok((BufferedIo::shared(Stream::Tcp(stream), bytes::BytesMut::new()), pods.opened()))
}

fn h2_message(request: &Request, backend: &Backend) -> Result<http::Request<()>, Error> {
    let mut message = http::Request::new(());
    let mut parts = http::uri::Parts::default();
    // What the pod's connection is, whatever the client called it.
    parts.scheme = Some(if backend.tls.is_some() { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
    parts.authority = Some(request.authority.clone());
    parts.path_and_query = Some(request.path.clone());
    *message.uri_mut() = http::Uri::from_parts(parts)
        .map_err(|_| Error::client(ErrorKind::HttpRequestError, "the request has no valid URI for HTTP/2"))?;
    *message.method_mut() = request.method.clone();
    *message.headers_mut() = request.headers.clone();
    Ok(message)
}

/// HTTP/2 may split a Cookie field; HTTP/1.1 must have it in one (RFC 9113 §8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let mut values = headers.get_all(http::header::COOKIE).iter();
    if values.next().is_none() || values.next().is_none() {
        return;
    }
    let joined = headers
        .get_all(http::header::COOKIE)
        .iter()
        .map(http::HeaderValue::as_bytes)
        .collect::<Vec<_>>()
        .join(&b"; "[..]);
    if let Ok(joined) = http::HeaderValue::from_bytes(&joined) {
        headers.insert(http::header::COOKIE, joined);
    }
}
