//! The sender's side: what happens to one request of a pod of this node. Read [`handle`] from top to bottom; each phase
//! is one function with one failure exit, and metrics and log line are made once, from the outcome.

mod egress;
mod retry;
mod way;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::Authority as UriAuthority;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use posthouse_model::stats::now_nanos;
use posthouse_model::{AppProtocol, Authority, Destination, Directory, Endpoint, Host, Unresolved};
use tracing::info;

use crate::balance::{Balancer, LeastRequest};
use crate::body::ReplayBody;
use crate::client::{Client, Found, Newer, REMEMBER};
use crate::error::{Error, ErrorKind, Retry, Side};
use crate::exchange::{Downstream, Request, Response, SharedInterim, answer_error, await_response, forward};
use crate::idle::IdleTimer;
use crate::inbound::{self, Delivery};
use crate::metrics::{Direction, OpenGauge, failed_without_service};
use crate::worker::Worker;
pub(crate) use egress::Names;
pub(crate) use retry::InFlight;
use retry::Retries;
pub(crate) use way::open_tunnel;
use way::send_once;

/// A request that carries our node's name this often in Via goes round. An application that passes requests on may
/// bring one by a few times for good reasons (gateway and backend on one node), a loop does so without end.
const MAX_PASSES: usize = 8;
/// How long a client may take to accept an error's few bytes.
const ERROR_ANSWER: Duration = Duration::from_secs(10);

/// What the caller has still to do after [`handle`].
pub(crate) enum Handled {
    /// Answered, or the client is gone.
    Done,
    /// The pod switched protocols: answer so and copy bytes until the end. The guards count it as under way.
    Switched(Box<Response>, Underway),
}

/// Counts a request as under way at the proxy and at its endpoint.
pub(crate) struct Underway {
    _request: OpenGauge,
    _endpoint: Option<InFlight>,
}

/// Handles one request: finds its destination, sends it, answers the client.
pub(crate) async fn handle<D: Downstream>(
    client: &Client,
    request: &mut Request,
    down: &mut D,
    timer: &mut IdleTimer,
) -> Handled {
    let started = Instant::now();
    let counted = client.worker.outbound.begin();
    let directory = client.worker.proxy.directory.load_full();
    let grpc = request.is_grpc();
    let mut log = LogFields { method: request.method.clone(), authority: request.authority.clone(), endpoint: None };
    let mut found = None;
    let result = serve(client, &directory, request, down, timer, started, &mut found, &mut log).await;
    let (status, error, handled) = match result {
        Ok(Served::Answered(status)) => (Some(status), None, Handled::Done),
        Ok(Served::Switched(response, in_flight)) => {
            let underway = Underway { _request: counted, _endpoint: Some(in_flight) };
            (Some(response.status), None, Handled::Switched(response, underway))
        }
        Err(Failure { error, answered: true, status }) => (status, Some(error), Handled::Done),
        Err(Failure { error, .. }) if error.is_client_gone() => {
            down.abort();
            (None, Some(error), Handled::Done)
        }
        Err(Failure { error, answered: false, .. }) => {
            // Boxed, as all that is rare on a request's way: what is not keeps its futures small.
            Box::pin(answer_error(down, &error, grpc, HeaderMap::new(), ERROR_ANSWER)).await;
            (Some(error.status()), Some(error), Handled::Done)
        }
    };
    record(&client.worker, found.as_deref(), status, error.as_ref(), started, &log);
    handled
}

struct LogFields {
    method: Method,
    authority: UriAuthority,
    endpoint: Option<SocketAddr>,
}

/// Metrics and log line of one request, from its outcome.
fn record(
    worker: &Worker,
    found: Option<&Found>,
    status: Option<StatusCode>,
    error: Option<&Error>,
    started: Instant,
    log: &LogFields,
) {
    match (found, error) {
        (Some(found), error) => found.metrics.finished(status, error, started.elapsed()),
        (None, Some(error)) => failed_without_service(Direction::Outbound, error.kind),
        (None, None) => {}
    }
    if let Some(error) = error
        && !error.is_client_gone()
        && let Some(unlogged) = worker.failure_log.due(error.kind, log.authority.as_str(), started)
    {
        info!(
            error = error.kind.token(), details = %error.details, method = %log.method, authority = %log.authority,
            endpoint = ?log.endpoint, status = ?status.map(|s| s.as_u16()), unlogged, "request failed"
        );
    }
}

/// Metric and log line of a CONNECT that was refused before there was a tunnel.
pub(crate) fn connect_refused(worker: &Worker, authority: &UriAuthority, error: &Error) {
    failed_without_service(Direction::Outbound, error.kind);
    if let Some(unlogged) = worker.failure_log.due(error.kind, authority.as_str(), Instant::now()) {
        info!(
            error = error.kind.token(), details = %error.details, method = "CONNECT", %authority,
            status = error.status().as_u16(), unlogged, "request failed"
        );
    }
}

enum Served {
    Answered(StatusCode),
    Switched(Box<Response>, InFlight),
}

struct Failure {
    error: Error,
    /// The answer had begun, so no other can be given.
    answered: bool,
    status: Option<StatusCode>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, answered: false, status: None }
    }
}

#[allow(clippy::too_many_arguments)] // the outcome's parts come out of it one by one, whatever happens
async fn serve<D: Downstream>(
    client: &Client,
    directory: &Arc<Directory>,
    request: &mut Request,
    down: &mut D,
    timer: &mut IdleTimer,
    started: Instant,
    found_out: &mut Option<Rc<Found>>,
    log: &mut LogFields,
) -> Result<Served, Failure> {
    let default_port = if request.https { 443 } else { 80 };
    let found = client.find(directory, &request.authority, default_port, started).await?;
    *found_out = Some(Rc::clone(&found));
    refuse_loops(client, request)?;
    let delivery = match found.outside {
        true => egress::delivery(client, request)?,
        false => delivery(request, found.destination.service_port().app_protocol)?,
    };
    prepare(client, request, delivery);
    let begun = now_nanos();
    found.budget.request(begun);

    let body = std::mem::replace(&mut request.body, crate::body::Body::Empty);
    let body = if body.is_end() { None } else { Some(ReplayBody::new(body)) };
    let (mut response, in_flight) =
        send(client, directory, &found, request, delivery, body.as_ref(), down, timer, begun, log).await?;
    if let Some(body) = &body {
        body.commit();
    }
    if response.tunnel.is_some() {
        return Ok(Served::Switched(Box::new(response), in_flight));
    }
    let status = response.status;
    forward(&mut response, down, body.as_ref(), timer).await.map(|()| Served::Answered(status)).map_err(|error| {
        if error.side != Side::Client {
            in_flight.stats.failed();
        }
        Failure { error, answered: true, status: Some(status) }
    })
}

/// Where a request goes.
pub(crate) struct Identified {
    pub(crate) destination: Destination,
    /// Whether it is outside of the cluster.
    pub(crate) outside: bool,
    /// How long it may be remembered.
    pub(crate) life: Duration,
}

/// The destination of `authority`, or the reason why there is none.
pub(crate) async fn identify(
    client: &Client,
    directory: &Directory,
    authority: &UriAuthority,
    default_port: u16,
) -> Result<Identified, Error> {
    let config = &client.worker.proxy.config;
    let parsed = Authority::parse(authority.as_str())
        .map_err(|error| Error::client(ErrorKind::HttpRequestError, format!("'{authority}': {error}")))?;
    if let Host::Ip(ip) = parsed.host {
        let asked = SocketAddr::new(ip.to_canonical(), parsed.port.unwrap_or(default_port));
        if config.own_addresses.iter().any(|own| is_same_listener(*own, asked, &config.node_ips)) {
            return Err(Error::client(
                ErrorKind::ProxyLoopDetected,
                format!("{asked} is this proxy itself; send the request with the Service's name as its host"),
            ));
        }
    }
    match directory.resolve(&parsed, default_port, client.namespace.as_deref(), &config.cluster_domain) {
        Ok(destination) => Ok(Identified { destination, outside: false, life: REMEMBER }),
        Err(unresolved) => {
            let egress::Way { destination, life } =
                egress::leave(client, directory, &parsed, default_port, unresolved).await?;
            Ok(Identified { destination, outside: true, life: life.min(REMEMBER) })
        }
    }
}

/// The error for an authority that leads nowhere.
fn unresolved_error(unresolved: &Unresolved) -> Error {
    let kind = match unresolved {
        Unresolved::Refused { .. } => ErrorKind::DestinationIpProhibited,
        Unresolved::UnknownName { .. }
        | Unresolved::NeedsNamespace { .. }
        | Unresolved::UnknownPort { .. }
        | Unresolved::UnknownHostname { .. }
        | Unresolved::ExternalName { .. }
        | Unresolved::UnknownAddress { .. } => ErrorKind::DestinationNotFound,
    };
    Error::client(kind, unresolved.to_string())
}

fn is_same_listener(own: SocketAddr, asked: SocketAddr, node_ips: &[std::net::IpAddr]) -> bool {
    own.port() == asked.port()
        && (own.ip() == asked.ip()
            || own.ip().is_unspecified()
                && (asked.ip().is_loopback() || asked.ip().is_unspecified() || node_ips.contains(&asked.ip())))
}

/// Ends requests that come round to this node again and again.
fn refuse_loops(client: &Client, request: &Request) -> Result<(), Error> {
    let pseudonym = client.worker.via.as_bytes();
    let passes = request
        .headers
        .get_all(http::header::VIA)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter(|entry| entry.trim_ascii() == pseudonym)
        .count();
    if passes >= MAX_PASSES {
        return Err(Error::client(
            ErrorKind::ProxyLoopDetected,
            format!("the request has passed this node {passes} times; some pod sends it back to where it came from"),
        ));
    }
    Ok(())
}

/// How the pod is spoken to, by what the client speaks and what the Service port says (design: translation table).
fn delivery(request: &Request, app_protocol: AppProtocol) -> Result<Delivery, Error> {
    match app_protocol {
        AppProtocol::Grpc if request.upgrade.is_some() => Err(Error::client(
            ErrorKind::HttpUpgradeFailed,
            "the Service port's appProtocol is 'grpc', which has no WebSocket",
        )),
        // Also to a port that says h2c: servers for it commonly speak HTTP/1.1, too, and HTTP/2 has no upgrade.
        AppProtocol::Unknown | AppProtocol::Http1 | AppProtocol::WebSocket | AppProtocol::H2c | AppProtocol::Https
            if request.upgrade.is_some() =>
        {
            Ok(Delivery::Http1)
        }
        AppProtocol::H2c | AppProtocol::Grpc => Ok(Delivery::Http2),
        AppProtocol::Http1 | AppProtocol::WebSocket if request.h2 && request.is_grpc() => Err(Error::client(
            ErrorKind::HttpUpgradeFailed,
            "gRPC needs HTTP/2, but the Service port's appProtocol says HTTP/1.1; set it to 'grpc' or 'kubernetes.io/h2c'",
        )),
        AppProtocol::Http1 | AppProtocol::WebSocket => Ok(Delivery::Http1),
        AppProtocol::Tls | AppProtocol::Tcp => Err(Error::client(
            ErrorKind::HttpUpgradeFailed,
            format!(
                "the Service port's appProtocol is '{}', so it is reached by CONNECT only, not by plain HTTP requests",
                app_protocol.as_str()
            ),
        )),
        // With TLS of our own to the pod; the version is agreed on in its handshake.
        AppProtocol::Unknown | AppProtocol::Https if request.h2 => Ok(Delivery::Http2),
        AppProtocol::Unknown | AppProtocol::Https => Ok(Delivery::Http1),
    }
}

/// Changes the request's fields for its way on.
fn prepare(client: &Client, request: &mut Request, delivery: Delivery) {
    if delivery == Delivery::Http1 {
        // `TE: trailers` belongs to one HTTP/1.1 connection; HTTP/2 splits cookies, HTTP/1.1 must not.
        request.headers.remove(http::header::TE);
        if request.h2 {
            inbound::join_cookies(&mut request.headers);
        }
    }
    request.headers.append(http::header::VIA, client.worker.via.clone());
}

/// Sends the request to one endpoint after the other until one answers or none may be tried any more.
#[allow(clippy::too_many_arguments)] // the phases' common state; each is used in its own way
async fn send<D: Downstream>(
    client: &Client,
    directory: &Arc<Directory>,
    found: &Found,
    request: &mut Request,
    delivery: Delivery,
    body: Option<&ReplayBody>,
    down: &mut D,
    timer: &mut IdleTimer,
    mut begun: u64,
    log: &mut LogFields,
) -> Result<(Response, InFlight), Error> {
    let down = RefCell::new(down);
    let mut retry = Retries::default();
    let idempotent = request.is_idempotent();
    let mut again: Option<Newer> = None;
    loop {
        let (directory, found) = again.as_ref().map_or((directory, found), |(directory, found)| (directory, &**found));
        let endpoint = match pick(found, &retry, begun) {
            Ok(endpoint) => endpoint,
            Err(error) => return Err(retry.last.unwrap_or(error)),
        };
        log.endpoint = Some(endpoint.address);
        let in_flight = InFlight::begin(&endpoint.stats);
        let called = {
            let mut interim = SharedInterim(&down);
            // Boxed: it is the larger part of what a request needs, and each future around it would be moved with it inside.
            let mut call =
                Box::pin(send_once(client, directory, found, &endpoint, delivery, request, body, &mut interim));
            await_response(call.as_mut(), body, timer, &down).await
        };
        match called {
            Ok(response) => {
                let now = now_nanos();
                in_flight.stats.answered(now - begun, now);
                return Ok((response, in_flight));
            }
            Err(error) if error.side == Side::Client => return Err(error),
            Err(error) => {
                in_flight.stats.failed();
                drop(in_flight);
                let replayable = body.is_none_or(ReplayBody::can_replay);
                let newer = client.find_again(found);
                let known = newer.as_ref().map_or(found, |(_, found)| found);
                retry.decide(error, &endpoint, idempotent, replayable, known)?.wait().await;
                again = newer.or(again);
                begun = now_nanos();
            }
        }
    }
}

/// The endpoint for the next try.
fn pick(found: &Found, retries: &Retries, now: u64) -> Result<Arc<Endpoint>, Error> {
    let destination = &found.destination;
    if let Some(only) = &destination.endpoint {
        // A name or address that means one pod is never served by another.
        return if retries.tried.contains(only) { Err(unavailable(destination)) } else { Ok(Arc::clone(only)) };
    }
    let set = &destination.service_port().endpoints;
    LeastRequest.pick(set.usable(), &retries.tried, now).cloned().ok_or_else(|| unavailable(destination))
}

/// Whether there is an endpoint to send anything to.
pub(crate) fn check_usable(found: &Found) -> Result<(), Error> {
    pick(found, &Retries::default(), now_nanos()).map(drop)
}

fn unavailable(destination: &Destination) -> Error {
    let service = &destination.service;
    let port = destination.service_port();
    let all = port.endpoints.all();
    let refused = all.iter().filter(|e| e.refusal.is_some()).count();
    let age = service.changed.elapsed().unwrap_or_default().as_secs();
    let first_refusal = all.iter().find_map(|e| Some((e.address, e.refusal?)));
    let noun = |count: usize| if count == 1 { "endpoint" } else { "endpoints" };
    let state = if all.is_empty() {
        "has no endpoints; do its selector and its pods' labels match?".to_owned()
    } else if let Some((address, refusal)) = first_refusal {
        format!(
            "has {} {}, {} ready, {refused} refused ({address} is {refusal}); for addresses outside the pods, list the \
             Service in the application's NO_PROXY",
            all.len(),
            noun(all.len()),
            port.endpoints.ready()
        )
    } else if port.endpoints.ready() == 0 {
        format!("has {} {}, none ready", all.len(), noun(all.len()))
    } else {
        let ready = port.endpoints.ready();
        format!("has {ready} ready {}, all tried in vain", noun(ready))
    };
    Error::upstream(
        ErrorKind::DestinationUnavailable,
        Retry::Safe,
        format!("Service {}/{} port {} {state}; last change {age} s ago", service.namespace, service.name, port.port),
    )
}

/// The field that identifies the client on the link.
pub(crate) fn source_value(pod: Option<&posthouse_model::Pod>) -> HeaderValue {
    pod.and_then(|pod| {
        let id = &pod.id;
        HeaderValue::try_from(format!("{}/{}/{}/{}", id.namespace, id.name, id.uid, pod.service_account)).ok()
    })
    .unwrap_or_else(|| HeaderValue::from_static("-"))
}
