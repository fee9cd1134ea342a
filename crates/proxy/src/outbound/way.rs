//! The way to one endpoint: on this node straight to the inbound checks, by the link to its node's proxy or, where that is
//! allowed, directly. Every address is judged here before anything is dialled.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use posthouse_model::stats::now_nanos;
use posthouse_model::{Directory, Endpoint, Peer, address};

use super::retry::{InFlight, Retries};
use super::{egress, pick};
use crate::authorise::{self, Caller, Held, Protected};
use crate::backend::Backend;
use crate::body::ReplayBody;
use crate::client::{Client, Found, Newer};
use crate::config::MissingPeer;
use crate::error::{Error, ErrorKind, Retry, Side};
use crate::exchange::{Interim, Request, Response, TunnelEnd};
use crate::inbound::{self, Delivery};
use crate::link::{Stamp, Through};
use crate::worker::Admitted;

/// The way to an endpoint.
enum Way {
    /// It runs on this node.
    Local(Rc<Admitted>),
    /// By the link to its node's proxy.
    Link(Arc<Peer>),
    /// Without a proxy at its end.
    Direct,
    /// Out of the cluster.
    Outside,
}

/// Decides the way to `endpoint`, or why there is none.
async fn way(client: &Client, directory: &Directory, found: &Found, endpoint: &Endpoint) -> Result<Way, Error> {
    let config = &client.worker.proxy.config;
    if found.outside {
        egress::check_again(&client.worker.proxy, directory, endpoint.address)?;
        return Ok(Way::Outside);
    }
    if let Some(refusal) = endpoint.refusal {
        return Err(Error::upstream(
            ErrorKind::DestinationIpProhibited,
            Retry::Safe,
            format!("endpoint {} is refused: it is {refusal}", endpoint.address),
        ));
    }
    if let Some(node) = &endpoint.node {
        if **node == *config.node_name {
            return Ok(Way::Local(client.worker.admit(endpoint.address, Instant::now()).await?));
        }
        if let Some(peer) = directory.peer(node).filter(|peer| peer.ready) {
            return Ok(Way::Link(Arc::clone(peer)));
        }
    }
    direct(client, directory, endpoint)
}

/// Whether an endpoint may be dialled from here although it is not on this node.
fn direct(client: &Client, directory: &Directory, endpoint: &Endpoint) -> Result<Way, Error> {
    let node = endpoint.node.as_deref().unwrap_or("(unknown)");
    if client.worker.proxy.config.missing_peer == MissingPeer::Fail {
        return Err(Error::link(
            ErrorKind::DestinationUnavailable,
            format!("node {node} of endpoint {} has no ready proxy, and --missing-peer is 'fail'", endpoint.address),
        ));
    }
    // Nobody would decide at its end.
    if Protected::may_concern(endpoint.address, directory) {
        return Err(Error::upstream(
            ErrorKind::DestinationUnavailable,
            Retry::Safe,
            format!(
                "node {node} of endpoint {} has no ready proxy, and AuthorizationPolicies protect the pod, so it is not \
                 reached directly",
                endpoint.address
            ),
        ));
    }
    match address::check(endpoint.address.ip(), endpoint.address.port(), false, directory) {
        Ok(()) => Ok(Way::Direct),
        Err(refusal) => Err(Error::upstream(
            ErrorKind::DestinationIpProhibited,
            Retry::Safe,
            format!("endpoint {} is refused: it is {refusal}", endpoint.address),
        )),
    }
}

/// Whether there is no link, so that nothing was sent.
fn unlinked(error: &Error) -> bool {
    error.side == Side::Link && error.retry == Retry::Safe
}

/// Sends the request to `endpoint` once.
#[allow(clippy::too_many_arguments)] // the try's own state; each is used in its own way
pub(super) async fn send_once(
    client: &Client,
    directory: &Arc<Directory>,
    found: &Found,
    endpoint: &Arc<Endpoint>,
    delivery: Delivery,
    request: &mut Request,
    body: Option<&ReplayBody>,
    interim: &mut dyn Interim,
) -> Result<Response, Error> {
    let worker = &client.worker;
    let target = endpoint.address;
    let way = match way(client, directory, found, endpoint).await? {
        Way::Link(peer) => {
            let stamp = Stamp { target, source: &client.source, delivery };
            let through = Through { peer: &peer, service: &found.destination.service };
            match worker.links.call(&worker.proxy, through, &stamp, request, body, interim).await {
                // The peer is listed as ready but cannot be linked to (it restarts): its pods can still be reached
                // the way they are without a peer, if that is allowed.
                Err(error) if unlinked(&error) => direct(client, directory, endpoint).map_err(|_| error)?,
                result => return result,
            }
        }
        way => way,
    };
    // At a link's other end the receiver says who asks; elsewhere that is done here.
    match way {
        // Names and addresses of the cluster's pods are nobody's business out there.
        Way::Outside => Caller::UNKNOWN.stamp(&mut request.headers),
        Way::Local(_) | Way::Direct | Way::Link(_) => client.caller.stamp(&mut request.headers),
    }
    match way {
        Way::Local(admitted) => local(client, &admitted, target, delivery, request, body, interim).await,
        Way::Direct => {
            inbound::deliver(
                &worker.pods,
                &Backend::of_service(target, &found.destination),
                delivery,
                request,
                body,
                interim,
            )
            .await
        }
        Way::Outside => {
            let backend = Backend { address: target, tls: None };
            inbound::deliver(&worker.outside, &backend, delivery, request, body, interim).await
        }
        Way::Link(_) => Err(Error::internal(ErrorKind::ProxyInternalError, "no way was left")),
    }
}

/// Delivers to a pod of this node, if its policies allow that.
async fn local(
    client: &Client,
    admitted: &Admitted,
    target: SocketAddr,
    delivery: Delivery,
    request: &Request,
    body: Option<&ReplayBody>,
    interim: &mut dyn Interim,
) -> Result<Response, Error> {
    let Client { worker, caller, .. } = client;
    let since = worker.policies.now();
    let Request { method, path, authority, .. } = request;
    let protected = admitted.protected.as_ref();
    let matched = authorise::http(worker, target, protected, caller, method, path, authority)?;
    let matched = matched.map(|path| Box::new(request.with_path(path)));
    let request = matched.as_deref().unwrap_or(request);
    let mut response = inbound::deliver(&worker.pods, &admitted.backend, delivery, request, body, interim).await?;
    if let Some(TunnelEnd::Io { revoked, .. }) = &mut response.tunnel {
        let held = Held::Http(method.clone(), request.path.clone(), authority.clone());
        *revoked = Some(authorise::revoked(worker, target, caller.clone(), held, since));
    }
    Ok(response)
}

/// Opens an opaque tunnel to one endpoint of `found`, trying others while connections are refused.
pub(crate) async fn open_tunnel(
    client: &Client,
    directory: &Arc<Directory>,
    found: &Found,
) -> Result<(TunnelEnd, InFlight), Error> {
    let mut retry = Retries::default();
    let mut begun = now_nanos();
    found.budget.request(begun);
    let mut again: Option<Newer> = None;
    loop {
        let (directory, found) = again.as_ref().map_or((directory, found), |(directory, found)| (directory, &**found));
        let endpoint = match pick(found, &retry, begun) {
            Ok(endpoint) => endpoint,
            Err(error) => return Err(retry.last.unwrap_or(error)),
        };
        let in_flight = InFlight::begin(&endpoint.stats);
        match tunnel_once(client, directory, found, &endpoint).await {
            Ok(end) => {
                let now = now_nanos();
                in_flight.stats.answered(now - begun, now);
                return Ok((end, in_flight));
            }
            Err(error) if error.side == Side::Client => return Err(error),
            Err(error) => {
                in_flight.stats.failed();
                drop(in_flight);
                let newer = client.find_again(found);
                let known = newer.as_ref().map_or(found, |(_, found)| found);
                retry.decide(error, &endpoint, true, true, known)?.wait().await;
                again = newer.or(again);
                begun = now_nanos();
            }
        }
    }
}

async fn tunnel_once(
    client: &Client,
    directory: &Arc<Directory>,
    found: &Found,
    endpoint: &Arc<Endpoint>,
) -> Result<TunnelEnd, Error> {
    let worker = &client.worker;
    let way = match way(client, directory, found, endpoint).await? {
        Way::Link(peer) => {
            let stamp = Stamp { target: endpoint.address, source: &client.source, delivery: Delivery::Opaque };
            let through = Through { peer: &peer, service: &found.destination.service };
            match worker.links.tunnel(&worker.proxy, through, &stamp).await {
                Err(error) if unlinked(&error) => direct(client, directory, endpoint).map_err(|_| error)?,
                result => {
                    return result?.tunnel.ok_or_else(|| {
                        Error::upstream(ErrorKind::HttpProtocolError, Retry::Never, "the peer opened no tunnel")
                    });
                }
            }
        }
        way => way,
    };
    let target = endpoint.address;
    let since = worker.policies.now();
    let revoked = match way {
        Way::Local(admitted) => {
            authorise::tunnel(worker, target, admitted.protected.as_ref(), &client.caller)?;
            Some(authorise::revoked(worker, target, client.caller.clone(), Held::Tunnel, since))
        }
        Way::Outside => {
            let (io, open) = inbound::dial_tunnel(&worker.outside, target).await?;
            return Ok(TunnelEnd::Io { io, open, revoked: None });
        }
        Way::Direct | Way::Link(_) => None,
    };
    let (io, open) = inbound::dial_tunnel(&worker.pods, target).await?;
    Ok(TunnelEnd::Io { io, open, revoked })
}
