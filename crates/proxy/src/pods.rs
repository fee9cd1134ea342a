//! Connections from this proxy to pods (and, in pools of their own, to hosts outside), a worker's own: HTTP/1.1 ones that are reused within their idle time, HTTP/2 ones
//! that are shared, and plain ones for tunnels. Nothing here decides whether a pod may be reached; `inbound.rs` has done so.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::{HeaderValue, Method, StatusCode};
use posthouse_model::Endpoint;
use posthouse_model::address::NODE_PORTS;
use tokio::net::TcpStream;

use crate::backend::{Backend, Same};
use crate::body::{Body, BodyOf, H1Body, ReplayBody};
use crate::error::{Error, ErrorKind, Retry};
use crate::exchange::{
    Interim, Interims, Request, Response, TunnelEnd, Upload, content_length, poll_upload, upload_h1,
};
use crate::h1::{self, BodyLength, HeadScan};
use crate::h2conn::H2Conn;
use crate::h2pool::H2Pool;
use crate::metrics::OpenGauge;
use crate::status::Proxy;
use crate::stream::{BufferedIo, SharedIo, Stream, tune};

/// Idle HTTP/1.1 connections that a worker keeps to one pod.
const MAX_IDLE_PER_POD: usize = 256;
/// Idle HTTP/1.1 connections that a worker keeps in all.
const MAX_IDLE: usize = 4096;
/// HTTP/2 connections that a worker opens to one pod. Many servers allow 100 streams on each, so 64 carry 6,400 requests.
const MAX_H2_PER_POD: usize = 64;
/// An HTTP/2 connection to a pod without streams is closed after this time. 60 s: below nginx' and gRPC servers' usual
/// idle limits of 75 s and more.
const H2_IDLE: Duration = Duration::from_secs(60);

/// At whose end connections lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Far {
    Pod,
    /// A host outside of the cluster that was allowed.
    Outside,
}

impl Far {
    /// Its name in metrics and errors.
    fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Outside => "outside",
        }
    }
}

pub(crate) struct Pods {
    proxy: Arc<Proxy>,
    far: Far,
    connect_timeout: Duration,
    idle_timeout: Duration,
    idle: RefCell<HashMap<Backend, Vec<Idle>>>,
    idle_count: Cell<usize>,
    h2: H2Pool<Backend, H2Conn>,
}

struct Idle {
    connection: PodConnection,
    since: Instant,
}

struct PodConnection {
    io: SharedIo,
    open: OpenGauge,
}

/// The right to give a connection back once its answer was read to the end.
pub(crate) struct PodLease {
    pods: Rc<Pods>,
    backend: Backend,
    open: OpenGauge,
    keep_alive: bool,
}

impl PodLease {
    /// Puts the connection back for reuse if the exchange left it clean.
    pub(crate) fn release(self, io: &SharedIo) {
        {
            let mut io = io.borrow_mut();
            if !self.keep_alive {
                return;
            }
            // Bytes that nobody asked for, or a request that was answered before it was sent whole.
            if io.body_open || !io.rbuf.is_empty() || !io.wbuf.is_empty() {
                return;
            }
            io.shrink();
        }
        let mut idle = self.pods.idle.borrow_mut();
        let of_pod = idle.entry(self.backend).or_default();
        if of_pod.len() < MAX_IDLE_PER_POD && self.pods.idle_count.get() < MAX_IDLE {
            of_pod
                .push(Idle { connection: PodConnection { io: Rc::clone(io), open: self.open }, since: Instant::now() });
            self.pods.idle_count.set(self.pods.idle_count.get() + 1);
        }
    }
}

/// How a try on an HTTP/1.1 connection failed.
struct Failed {
    error: Error,
    /// Nothing of an answer was seen.
    silent: bool,
}

impl Pods {
    pub(crate) fn new(proxy: Arc<Proxy>, far: Far) -> Rc<Self> {
        let timeouts = &proxy.config.timeouts;
        Rc::new(Self {
            far,
            connect_timeout: match far {
                Far::Pod => timeouts.connect,
                Far::Outside => timeouts.egress_connect,
            },
            idle_timeout: proxy.config.timeouts.pool_idle,
            proxy,
            idle: RefCell::new(HashMap::new()),
            idle_count: Cell::new(0),
            h2: H2Pool::new(MAX_H2_PER_POD),
        })
    }

    /// Opens a connection. The last check against reaching the node itself stands here, where every way to a pod ends.
    pub(crate) async fn dial(&self, address: SocketAddr) -> Result<TcpStream, Error> {
        if is_own_address(address) && (self.far == Far::Outside || !may_dial_own(address, &self.proxy)) {
            return Err(Error::upstream(
                ErrorKind::DestinationIpProhibited,
                Retry::Safe,
                format!("{address} is an address of this node itself and no pod that is known here"),
            ));
        }
        let failed = |kind, what: &dyn std::fmt::Display| {
            Error::upstream(
                kind,
                Retry::Safe,
                format!("{} {address} did not take the connection: {what}", self.far.as_str()),
            )
        };
        let connecting = async {
            match self.far {
                Far::Pod => TcpStream::connect(address).await,
                Far::Outside => self.proxy.config.egress.outside.connect(address).await,
            }
        };
        match tokio::time::timeout(self.connect_timeout, connecting).await {
            Err(_) => Err(failed(ErrorKind::ConnectionTimeout, &format!("no answer in {:?}", self.connect_timeout))),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Err(failed(ErrorKind::ConnectionRefused, &"refused; is the process listening on that port?"))
            }
            Ok(Err(error)) => Err(failed(ErrorKind::DestinationUnavailable, &error)),
            Ok(Ok(stream)) => {
                tune(&stream);
                Ok(stream)
            }
        }
    }

    /// Opens a connection and makes TLS on it where the Service wants that.
    async fn open(&self, backend: &Backend, protocol: &'static [u8]) -> Result<Stream, Error> {
        let address = backend.address;
        let stream = self.dial(address).await?;
        let Some(Same(tls)) = &backend.tls else { return Ok(Stream::Tcp(stream)) };
        // Nothing of the request was sent, and the next pod may have a better certificate.
        self.proxy.trust.pods.connect(stream, tls, protocol).await.map(|io| Stream::Boxed(Box::new(io))).map_err(
            |error| {
                let kind = match error.kind() {
                    io::ErrorKind::InvalidData => ErrorKind::TlsCertificateError,
                    io::ErrorKind::TimedOut => ErrorKind::ConnectionTimeout,
                    _ => ErrorKind::TlsProtocolError,
                };
                Error::upstream(kind, Retry::Safe, format!("no TLS to pod {address} as {}: {error}", tls.hostname))
            },
        )
    }

    /// Counts a connection that was dialled and belongs to a tunnel now.
    pub(crate) fn opened(&self) -> OpenGauge {
        OpenGauge::connection(self.far.as_str())
    }

    /// A warm connection, if one is there and still open. `must_live`: the request cannot be sent again, so the kernel is asked,
    /// which may know of a close that the event loop has not seen yet.
    fn take_idle(&self, backend: &Backend, must_live: bool) -> Option<PodConnection> {
        let mut idle = self.idle.borrow_mut();
        let of_pod = idle.get_mut(backend)?;
        while let Some(entry) = of_pod.pop() {
            self.idle_count.set(self.idle_count.get() - 1);
            let fresh = entry.since.elapsed() < self.idle_timeout;
            if fresh && is_quiet(&entry.connection.io) && !(must_live && is_closed(&entry.connection.io)) {
                return Some(entry.connection);
            }
        }
        None
    }

    /// Sends `request` over HTTP/1.1 and waits for the head of the answer. A reused connection that the pod closed under
    /// us is replaced by a fresh one when nothing of the answer was seen and the request can be replayed.
    pub(crate) async fn call_h1(
        self: &Rc<Self>,
        backend: &Backend,
        request: &Request,
        body: Option<&ReplayBody>,
        interim: &mut dyn Interim,
    ) -> Result<Response, Error> {
        if let Some(connection) = self.take_idle(backend, !request.is_idempotent()) {
            match self.try_h1(connection, backend, request, body, interim).await {
                Ok(response) => return Ok(response),
                Err(failed) if failed.silent && request.is_idempotent() && body.is_none_or(ReplayBody::can_replay) => {}
                Err(failed) => return Err(failed.error),
            }
        }
        let stream = self.open(backend, b"http/1.1").await?;
        let connection = PodConnection { io: BufferedIo::shared(stream, BytesMut::new()), open: self.opened() };
        self.try_h1(connection, backend, request, body, interim).await.map_err(|failed| failed.error)
    }

    async fn try_h1(
        self: &Rc<Self>,
        connection: PodConnection,
        backend: &Backend,
        request: &Request,
        body: Option<&ReplayBody>,
        interim: &mut dyn Interim,
    ) -> Result<Response, Failed> {
        let PodConnection { io, open } = connection;
        let length = match body {
            None if request.upgrade.is_none() && expects_body(&request.method) => BodyLength::Length(0),
            None => BodyLength::None,
            Some(_) => content_length(&request.headers).map_or(BodyLength::Chunked, BodyLength::Length),
        };
        {
            let mut io = io.borrow_mut();
            h1::write_request_head(
                &mut io.wbuf,
                &request.method,
                request.path.as_str(),
                request.authority.as_str(),
                &request.headers,
                length,
                request.upgrade.as_ref(),
            );
            io.body_open = body.is_some();
        }
        let mut upload: Option<Upload> =
            body.map(|body| Box::pin(upload_h1(body.reader(), Rc::clone(&io), length)) as Upload);
        let mut scan = HeadScan::default();
        let mut seen = false;
        let mut interims = Interims::new(interim);
        let head = poll_fn(|cx| poll_head(&io, &mut upload, &mut scan, &mut seen, request, &mut interims, cx)).await;
        let head = head.map_err(|error| Failed { error, silent: !seen })?;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Response {
                status: head.status,
                headers: head.headers,
                body: Body::Empty,
                upgrade: head.upgrade,
                upload: None,
                tunnel: Some(TunnelEnd::Io { io, open, revoked: None }),
            });
        }
        let lease = PodLease { pods: Rc::clone(self), backend: backend.clone(), open, keep_alive: head.keep_alive };
        let body = H1Body::new(io, head.body, BodyOf::Response, Some(lease));
        let body =
            if matches!(head.body, BodyLength::None | BodyLength::Length(0)) { Body::Empty } else { Body::H1(body) };
        Ok(Response { status: head.status, headers: head.headers, body, upgrade: None, upload, tunnel: None })
    }

    /// An HTTP/2 connection to the pod.
    pub(crate) async fn h2(&self, backend: &Backend) -> Result<Rc<H2Conn>, Error> {
        self.h2
            .get(backend, || async {
                let address = backend.address;
                let stream = self.open(backend, b"h2").await?;
                let open = self.opened();
                let handshake = H2Conn::open(stream, move || drop(open));
                tokio::time::timeout(self.connect_timeout, handshake).await.ok().and_then(Result::ok).ok_or_else(|| {
                    Error::upstream(
                        ErrorKind::HttpProtocolError,
                        Retry::Safe,
                        format!("pod {address} does not speak HTTP/2 with prior knowledge; set its Service port's appProtocol"),
                    )
                })
            })
            .await
    }

    /// Drops what has been idle for too long; called about once a second.
    pub(crate) fn sweep(&self) {
        let mut left = 0;
        self.idle.borrow_mut().retain(|_, of_pod| {
            of_pod.retain(|entry| entry.since.elapsed() < self.idle_timeout);
            left += of_pod.len();
            !of_pod.is_empty()
        });
        self.idle_count.set(left);
        self.h2.sweep(|_, connection| connection.idle_for() < H2_IDLE);
    }
}

/// Waits for the final head of an answer while the request's body goes up.
#[allow(clippy::too_many_arguments)] // one poll function's state; a struct would only rename it
fn poll_head(
    io: &SharedIo,
    upload: &mut Option<Upload>,
    scan: &mut HeadScan,
    seen: &mut bool,
    request: &Request,
    interims: &mut Interims<'_>,
    cx: &mut Context<'_>,
) -> Poll<Result<h1::ResponseHead, Error>> {
    let broken = |details: String| {
        Poll::Ready(Err(Error::upstream(ErrorKind::ConnectionTerminated, Retry::IfIdempotent, details)))
    };
    poll_upload(upload, cx)?;
    let mut io = io.borrow_mut();
    // Without a body nobody else writes the head out. A write that fails is told by the read below, unless an early
    // answer is there to be read.
    let write_error = match io.poll_flush(cx) {
        Poll::Ready(Err(error)) => Some(error),
        Poll::Ready(Ok(())) | Poll::Pending => None,
    };
    loop {
        match h1::parse_response(&mut io.rbuf, scan, &request.method) {
            Ok(Some(head)) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                // RFC 9110 §7.8: it says to which of those that it was offered.
                let offered = |to: &HeaderValue| request.upgrade.as_ref().is_some_and(|list| offers(list, to));
                if !head.upgrade.as_ref().is_some_and(offered) {
                    return protocol_error("it switched to a protocol that it was not offered");
                }
                return Poll::Ready(Ok(head));
            }
            Ok(Some(head)) if head.status.is_informational() => {
                interims.pass(head.status, head.headers)?;
                *scan = HeadScan::default();
                continue;
            }
            Ok(Some(head)) => return Poll::Ready(Ok(head)),
            Ok(None) => {}
            Err(error) => return protocol_error(&error.to_string()),
        }
        match ready!(io.poll_fill(cx, 0)) {
            Ok(0) => {
                return broken(match write_error {
                    Some(error) => {
                        format!("the pod closed the connection before it answered: {error}")
                    }
                    None => "the pod closed the connection before it answered".to_owned(),
                });
            }
            Ok(_) => *seen = true,
            Err(error) => {
                return broken(format!("the connection to the pod broke before it answered: {error}"));
            }
        }
    }
}

fn protocol_error(what: &str) -> Poll<Result<h1::ResponseHead, Error>> {
    Poll::Ready(Err(Error::upstream(
        ErrorKind::HttpProtocolError,
        Retry::Never,
        format!("the pod's answer is not valid HTTP/1.1: {what}"),
    )))
}

/// Whether an Upgrade list names `protocol`.
fn offers(list: &HeaderValue, protocol: &HeaderValue) -> bool {
    let protocol = protocol.as_bytes().trim_ascii();
    list.as_bytes().split(|b| *b == b',').any(|offer| offer.trim_ascii().eq_ignore_ascii_case(protocol))
}

/// Methods whose requests carry a body by their meaning: an empty one is said to be empty (RFC 9110 §8.6).
fn expects_body(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// An idle connection must have nothing to read: data would be an answer nobody asked for, the end means closed.
fn is_quiet(io: &SharedIo) -> bool {
    let mut io = io.borrow_mut();
    let mut cx = Context::from_waker(Waker::noop());
    let Stream::Tcp(stream) = &mut io.stream else {
        // Within TLS nothing can be peeked at. What is read here makes the connection unfit, so it is not missed.
        return io.poll_fill(&mut cx, 0).is_pending();
    };
    let mut probe = [0u8; 1];
    pin!(stream.peek(&mut probe)).poll(&mut cx).is_pending()
}

/// Whether the kernel has the other side's close (or bytes that nobody asked for).
fn is_closed(io: &SharedIo) -> bool {
    let io = io.borrow();
    // Within TLS the kernel cannot be asked what the bytes mean: what must not be sent twice gets a connection of its own.
    let Stream::Tcp(stream) = &io.stream else { return true };
    let mut probe = [std::mem::MaybeUninit::<u8>::uninit(); 1];
    !matches!(socket2::SockRef::from(stream).peek(&mut probe), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Whether a connection to `address` would end on this machine: a bridge's gateway address lies in the pod range, a second
/// interface stands in no Node object. The kernel knows: connecting a UDP socket sends nothing and chooses the source
/// address that it would use, which is the address itself exactly when it is local.
fn is_own_address(address: SocketAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(address)?;
        socket.local_addr()
    });
    match source {
        Ok(source) => source.ip() == address.ip() || address.ip().is_loopback(),
        // No route, no socket: the dial itself will say so.
        Err(_) => address.ip().is_loopback(),
    }
}

/// Whether this machine has a route to `address`; nothing is sent.
pub(crate) fn has_route(address: SocketAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address)).is_ok()
}

/// An own address may be dialled for a host-network pod of this node, outside the node's own ports, and (demo and tests)
/// for a pod that lives on a loopback address.
fn may_dial_own(target: SocketAddr, proxy: &Proxy) -> bool {
    let ip = target.ip();
    let directory = proxy.directory.load();
    let ours = |own: &SocketAddr| own.port() == target.port() && (own.ip() == ip || own.ip().is_unspecified());
    if proxy.config.own_addresses.iter().any(ours) {
        return false;
    }
    // With all nodes on one machine the other nodes' pods are local, too: a slice and its node's pod range tell them.
    let of_a_node = |endpoint: &Endpoint| {
        let node = endpoint.node.as_deref().and_then(|name| directory.node(name));
        node.is_some_and(|node| node.pod_cidrs.iter().any(|range| range.contains(&ip)))
    };
    directory.pod_by_ip(ip).is_some()
        || ip.is_loopback() && directory.endpoints_at(target).iter().any(|(_, endpoint)| of_a_node(endpoint))
        // Only where the Node is known, too: the check of node addresses was then made with the pod at hand.
        || !NODE_PORTS.contains(&target.port())
            && directory.node_by_ip(ip).is_some()
            && directory.pods().any(|pod| pod.host_network && pod.addresses.contains(&ip))
}
