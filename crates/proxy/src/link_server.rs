//! The link, receiver's end: takes links from peers that the `LinkTransport` vouches for, and turns each stream into a
//! delivery to a pod of this node. Its metadata is read here and goes no further.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use metrics::counter;
use posthouse_model::transport::PeerIdentity;
use posthouse_wire::{self as wire, Accepted, RequestHead};
use tokio::net::TcpStream;
use tracing::{debug, info};

use crate::authorise::{self, Caller, Claims, Held};
use crate::backend::Backend;
use crate::body::{Body, BodyOf, H2Body, ReplayBody};
use crate::downstream::{H2Downstream, LocalBoxFuture};
use crate::error::{Error, ErrorKind, Retry};
use crate::exchange::{Request, Response, SharedInterim, TunnelEnd, answer_error, await_response, forward};
use crate::h1;
use crate::h2stream::RecvStream;
use crate::idle::IdleTimer;
use crate::inbound::{self, Delivery};
use crate::link::{PROTOCOL, SOURCE, TARGET, UPGRADED, pack_error};
use crate::link_conn::{LINK, watch};
use crate::metrics::{CLIENTS_REFUSED, Direction, LIMIT_REACHED, OpenGauge, failed_without_service, limit_reached};
use crate::tunnel::{TUNNEL_IDLE, TunnelEndedBy, splice};
use crate::worker::{Admitted, Worker};

/// How long a peer may take to accept an error's few bytes.
const ERROR_ANSWER: Duration = Duration::from_secs(10);
/// Taking a link: TLS, which has a limit of 10 s of its own, and the HTTP/2 preface.
const ACCEPT: Duration = Duration::from_secs(15);

/// Serves one link until it ends.
pub(crate) async fn serve(worker: Rc<Worker>, stream: TcpStream, remote: SocketAddr) {
    let directory = worker.proxy.directory.load_full();
    let accepted = tokio::time::timeout(ACCEPT, async {
        let (peer, io) =
            worker.proxy.trust.links.accept(stream, remote, &directory).await.map_err(|e| e.to_string())?;
        let connection = wire::accept(io, LINK).await.map_err(|e| e.to_string())?;
        Ok::<_, String>((peer, connection))
    })
    .await;
    drop(directory);
    let (peer, mut connection) = match accepted {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => {
            counter!(CLIENTS_REFUSED, "reason" => "not_a_peer").increment(1);
            debug!(%remote, %error, "link refused");
            return;
        }
        Err(_) => return limit_reached("header_timeout"),
    };
    let _open = OpenGauge::connection("link_in");
    let peer = Rc::new(peer);
    info!(peer = %peer.node, %remote, authenticated = peer.authenticated, "link taken");
    // A peer that vanished without a word would hold its streams' memory otherwise. Whoever waits at this end waits for the pod, not
    // for the peer.
    let mut alive = pin!(watch(connection.pinger(), connection.heard(), || false, |_| {}));
    let claims = Rc::new(Claims::default());
    // Streams that are open go on: they were allowed. New ones need a link with a certificate that is valid now.
    let expires = peer.expires;
    let mut drained = pin!(async {
        tokio::select! {
            () = worker.drain.begun() => {}
            () = until(expires) => debug!(peer = %peer.node, "the peer's certificate has ended: the link takes no new streams"),
        }
    });
    let mut draining = false;
    // The peer was judged by these certificates; when there are others (new roots above all), it has to come anew.
    let made = worker.proxy.trust.links.epoch();
    loop {
        if peer.authenticated && !draining && worker.proxy.trust.links.epoch() != made {
            draining = true;
            connection.leave();
        }
        let accepted = poll_fn(|cx| {
            if !draining && drained.as_mut().poll(cx).is_ready() {
                draining = true;
                connection.leave();
            }
            let accepted = connection.poll_accept(cx);
            let refused = connection.take_refused();
            if refused > 0 {
                counter!(LIMIT_REACHED, "limit" => "link_streams").increment(refused);
            }
            if accepted.is_ready() {
                return accepted;
            }
            alive.as_mut().poll(cx).map(|()| None)
        })
        .await;
        match accepted {
            Some(Ok(Accepted { head, recv, send })) => {
                let down = H2Downstream::of_link(send, &head.method);
                let (worker, peer, claims) = (Rc::clone(&worker), Rc::clone(&peer), Rc::clone(&claims));
                crate::worker::spawn_stream(serve_stream(worker, peer, claims, head, recv, down));
            }
            Some(Err(error)) => {
                debug!(peer = %peer.node, %error, "link broke");
                return;
            }
            None => return,
        }
    }
}

/// Waits for a moment of the system's clock; for ever when there is none.
async fn until(moment: Option<SystemTime>) {
    let Some(moment) = moment else { return std::future::pending().await };
    // In steps: the clock may be set.
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(Duration::from_secs(60)) + Duration::from_millis(1)).await;
    }
}

async fn serve_stream(
    worker: Rc<Worker>,
    peer: Rc<PeerIdentity>,
    claims: Rc<Claims>,
    head: RequestHead,
    recv: wire::RecvStream,
    down: H2Downstream,
) {
    let _stream = OpenGauge::new(worker.link_streams.clone());
    let _in_flight = worker.inbound.begin();
    let started = Instant::now();
    let delivered = match Order::read(head) {
        Ok(order) => {
            let admitted = worker.admit(order.target, started).await.and_then(|admitted| {
                still_known(&worker, &peer)?;
                of_proven_service(&worker, &peer, order.target)?;
                Ok(admitted)
            });
            let counted = admitted.as_ref().ok().cloned();
            let (status, error) = order.carry_out(&worker, &peer, &claims, admitted, recv, down).await;
            match (counted, &error) {
                (Some(counted), error) => {
                    counted.metrics.finished(status, error.as_ref(), started.elapsed());
                }
                (None, Some(error)) => failed_without_service(Direction::Inbound, error.kind),
                (None, None) => {}
            }
            error
        }
        Err(error) => {
            failed_without_service(Direction::Inbound, error.kind);
            Box::pin(answer(down, &error)).await;
            Some(error)
        }
    };
    if let Some(error) = delivered {
        debug!(error = error.kind.token(), details = %error.details, peer = %peer.node, "delivery failed");
    }
}

/// A node that is gone from the cluster has no say any more, also on a link that it made before.
fn still_known(worker: &Worker, peer: &PeerIdentity) -> Result<(), Error> {
    let directory = worker.proxy.directory.load();
    if directory.node(&peer.node).is_some() || directory.peer(&peer.node).is_some() {
        return Ok(());
    }
    Err(Error::client(ErrorKind::HttpRequestDenied, format!("node {} is not of this cluster (any more)", peer.node)))
}

/// A link on which a Service has proven itself carries streams for that Service alone.
fn of_proven_service(worker: &Worker, peer: &PeerIdentity, target: SocketAddr) -> Result<(), Error> {
    let Some(proven) = &peer.service else { return Ok(()) };
    if worker.proxy.directory.load().endpoints_at(target).iter().any(|(key, _)| key == proven) {
        return Ok(());
    }
    Err(Error::upstream(
        ErrorKind::DestinationUnavailable,
        Retry::Safe,
        format!("{target} is no endpoint of Service {proven}, whose certificate this link was made with"),
    ))
}

/// Answers an error in the form that the sending proxy turns back into one.
async fn answer(mut down: H2Downstream, error: &Error) {
    let mut extra = HeaderMap::new();
    pack_error(error, &mut extra);
    answer_error(&mut down, error, false, extra, ERROR_ANSWER).await;
}

/// One stream's request with its metadata taken off.
struct Order {
    target: SocketAddr,
    delivery: Delivery,
    source: Option<HeaderValue>,
    request: Request,
}

impl Order {
    fn read(mut head: RequestHead) -> Result<Box<Self>, Error> {
        let bad = |what: &'static str| Error::client(ErrorKind::HttpRequestError, what);
        let target = head
            .headers
            .get(&TARGET)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse().ok())
            .ok_or_else(|| bad("a link's stream needs posthouse-target"))?;
        let delivery = head
            .headers
            .get(&PROTOCOL)
            .and_then(|v| Delivery::parse(v.as_bytes()))
            .ok_or_else(|| bad("a link's stream needs posthouse-protocol"))?;
        let upgrade = match head.protocol {
            None => None,
            Some(protocol) if h1::is_upgradable_list(protocol.as_bytes()) => Some(protocol),
            Some(_) => return Err(bad("the upgrade's protocol may not be tunnelled")),
        };
        if (delivery == Delivery::Opaque) != (head.method == Method::CONNECT && upgrade.is_none()) {
            return Err(bad("an opaque stream is a CONNECT and nothing else is"));
        }
        let source = head.headers.remove(&SOURCE);
        // Takes every `posthouse-*` field off: the pod sees none of them.
        h1::strip_hop_by_hop(&mut head.headers);
        // As strict as towards clients: it is matched by policies and becomes a Host field.
        let authority = match head.authority {
            Some(authority) if posthouse_model::Authority::parse(authority.as_str()).is_ok() => authority,
            Some(_) => return Err(bad("the :authority of a link's stream is no valid one")),
            None => return Err(bad("a link's stream needs :authority")),
        };
        let request = Request {
            // An upgrade travels as an extended CONNECT; it was a GET (the sender upgrades nothing else).
            method: if upgrade.is_some() { Method::GET } else { head.method },
            path: head.path.unwrap_or_else(crate::link::root_path),
            authority,
            https: false,
            headers: head.headers,
            body: Body::Empty,
            upgrade,
            h2: delivery == Delivery::Http2,
        };
        Ok(Box::new(Self { target, delivery, source, request }))
    }

    /// Who asks, if it may. The request is then as it goes to the pod: with the caller's fields, and by the path that policies
    /// matched.
    async fn authorise(
        &mut self,
        worker: &Rc<Worker>,
        peer: &PeerIdentity,
        claims: &Claims,
        admitted: Result<Rc<Admitted>, Error>,
    ) -> Result<(Caller, Rc<Admitted>), Error> {
        let admitted = admitted?;
        let caller = claims.caller(worker, peer, self.source.as_ref()).await?;
        let protected = admitted.protected.as_ref();
        if self.delivery == Delivery::Opaque {
            authorise::tunnel(worker, self.target, protected, &caller)?;
            return Ok((caller, admitted));
        }
        let Request { method, path, authority, headers, .. } = &mut self.request;
        if let Some(matched) = authorise::http(worker, self.target, protected, &caller, method, path, authority)? {
            *path = matched;
        }
        caller.stamp(headers);
        Ok((caller, admitted))
    }

    /// Checks, delivers and answers; returns what the metrics and the log need.
    async fn carry_out(
        mut self: Box<Self>,
        worker: &Rc<Worker>,
        peer: &PeerIdentity,
        claims: &Claims,
        admitted: Result<Rc<Admitted>, Error>,
        recv: wire::RecvStream,
        mut down: H2Downstream,
    ) -> (Option<StatusCode>, Option<Error>) {
        let since = worker.policies.now();
        let (caller, admitted) = match self.authorise(worker, peer, claims, admitted).await {
            Ok(allowed) => allowed,
            Err(error) => {
                Box::pin(answer(down, &error)).await;
                return (Some(error.status()), Some(error));
            }
        };
        let Self { target, delivery, request, .. } = &mut *self;
        let (target, delivery) = (*target, *delivery);
        if delivery == Delivery::Opaque {
            let revoked = authorise::revoked(worker, target, caller, Held::Tunnel, since);
            return Box::pin(opaque(worker, target, recv, down, revoked)).await;
        }
        if request.upgrade.is_some() {
            let held = Held::Http(request.method.clone(), request.path.clone(), request.authority.clone());
            let revoked = authorise::revoked(worker, target, caller, held, since);
            return Box::pin(upgrade(worker, &admitted.backend, request, recv, down, revoked)).await;
        }
        let mut timer = IdleTimer::new(worker.proxy.config.timeouts.stream_idle);
        request.body =
            if recv.is_end() { Body::Empty } else { Body::H2(H2Body::new(RecvStream::Link(recv), BodyOf::Request)) };
        let body = std::mem::replace(&mut request.body, Body::Empty);
        let body = if body.is_end() { None } else { Some(ReplayBody::new(body)) };
        if let Some(body) = &body
            && !request.is_idempotent()
        {
            // Never sent twice from here, so nothing of it need be kept.
            body.commit();
        }
        let called = {
            let down = RefCell::new(&mut down);
            let mut interim = SharedInterim(&down);
            let mut call = Box::pin(inbound::deliver(
                &worker.pods,
                &admitted.backend,
                delivery,
                request,
                body.as_ref(),
                &mut interim,
            ));
            await_response(call.as_mut(), body.as_ref(), &mut timer, &down).await
        };
        match called {
            Ok(mut response) => {
                if let Some(body) = &body {
                    body.commit();
                }
                let status = response.status;
                match forward(&mut response, &mut down, body.as_ref(), &mut timer).await {
                    Ok(()) => (Some(status), None),
                    Err(error) => (Some(status), Some(error)),
                }
            }
            Err(error) => {
                Box::pin(answer(down, &error)).await;
                (Some(error.status()), Some(error))
            }
        }
    }
}

async fn opaque(
    worker: &Rc<Worker>,
    target: SocketAddr,
    recv: wire::RecvStream,
    down: H2Downstream,
    revoked: LocalBoxFuture<'static, ()>,
) -> (Option<StatusCode>, Option<Error>) {
    match inbound::dial_tunnel(&worker.pods, target).await {
        Ok((io, open)) => {
            let Ok(send) = down.tunnel(StatusCode::OK, HeaderMap::new()) else {
                return (None, Some(Error::client_gone()));
            };
            carry(
                TunnelEnd::H2 { send, recv: RecvStream::Link(recv), lease: None },
                TunnelEnd::Io { io, open, revoked: Some(revoked) },
            )
            .await;
            (Some(StatusCode::OK), None)
        }
        Err(error) => {
            answer(down, &error).await;
            (Some(error.status()), Some(error))
        }
    }
}

async fn upgrade(
    worker: &Rc<Worker>,
    backend: &Backend,
    request: &Request,
    recv: wire::RecvStream,
    mut down: H2Downstream,
    revoke: LocalBoxFuture<'static, ()>,
) -> (Option<StatusCode>, Option<Error>) {
    let mut timer = IdleTimer::new(worker.proxy.config.timeouts.stream_idle);
    let called = {
        let down = RefCell::new(&mut down);
        let mut interim = SharedInterim(&down);
        let call = pin!(inbound::deliver(&worker.pods, backend, Delivery::Http1, request, None, &mut interim));
        await_response(call, None, &mut timer, &down).await
    };
    match called {
        Ok(Response { status, mut headers, upgrade, tunnel: Some(mut end), .. }) => {
            if let TunnelEnd::Io { revoked, .. } = &mut end {
                *revoked = Some(revoke);
            }
            headers.insert(UPGRADED, upgrade.unwrap_or_else(|| HeaderValue::from_static("websocket")));
            let Ok(send) = down.tunnel(StatusCode::OK, headers) else {
                return (None, Some(Error::client_gone()));
            };
            carry(TunnelEnd::H2 { send, recv: RecvStream::Link(recv), lease: None }, end).await;
            (Some(status), None)
        }
        // The pod did not switch: its answer goes back as it is.
        Ok(mut response) => {
            let status = response.status;
            let result = forward(&mut response, &mut down, None, &mut timer).await;
            (Some(status), result.err())
        }
        Err(error) => {
            answer(down, &error).await;
            (Some(error.status()), Some(error))
        }
    }
}

async fn carry(link: TunnelEnd, pod: TunnelEnd) {
    if splice(link, pod, TUNNEL_IDLE).await == TunnelEndedBy::Idle {
        limit_reached("tunnel_idle");
    }
}
