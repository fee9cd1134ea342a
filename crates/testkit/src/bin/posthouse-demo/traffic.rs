//! The demo's own requests: on each node one client a way of asking (HTTP/1.1 in absolute form, HTTP/2 with prior
//! knowledge, gRPC through CONNECT, gRPC straight to the port), each from that node's client pod address.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use posthouse_testkit::client::{self, Connection, Protocol, in_one_line};
use posthouse_testkit::greeter::proto::HelloRequest;
use posthouse_testkit::greeter::proto::greeter_client::GreeterClient;
use posthouse_testkit::{Place, hello};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::stats::Stats;
use crate::topology::{NODES, Node, SERVICES, Service};

/// Clients on all nodes together: five ways of asking on each.
const CLIENTS: usize = 5 * NODES.len();
/// Pause between two requests of one client, which makes some 190 requests a second in all.
const PAUSE: Duration = Duration::from_millis(80);
/// A request without an answer after this time has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The demo's clients while they run.
pub(crate) struct Traffic {
    clients: JoinSet<()>,
    stop: CancellationToken,
    stats: Arc<Mutex<Stats>>,
}

impl Traffic {
    /// Starts every client on every node.
    pub(crate) fn start() -> Self {
        let (stats, stop) = (Arc::<Mutex<Stats>>::default(), CancellationToken::new());
        let mut clients = JoinSet::new();
        let mut spawn = |service, node, asker| {
            let ask = Ask { service, node, stats: Arc::clone(&stats), stop: stop.clone() };
            // One after the other, not all at once: a burst would be measured as the proxies' latency.
            let first = Instant::now() + PAUSE.mul_f64(clients.len() as f64 / CLIENTS as f64);
            clients.spawn(ask.run(asker, first));
        };
        let [hello, echo, greeter] = SERVICES;
        for node in NODES {
            spawn(hello, node, Asker::hello(node));
            spawn(echo, node, Asker::echo(node, Protocol::Http1));
            spawn(echo, node, Asker::echo(node, Protocol::Http2));
            spawn(greeter, node, Asker::greeter(node, greeter, true));
            spawn(greeter, node, Asker::greeter(node, greeter, false));
        }
        Self { clients, stop, stats }
    }

    /// What was counted until now.
    pub(crate) fn stats(&self) -> MutexGuard<'_, Stats> {
        lock(&self.stats)
    }

    /// Lets requests under way finish, then says what was counted.
    pub(crate) async fn end(mut self) -> Stats {
        self.stop.cancel();
        while self.clients.join_next().await.is_some() {}
        lock(&self.stats).clone()
    }
}

/// One client's loop.
struct Ask {
    service: Service,
    node: Node,
    stats: Arc<Mutex<Stats>>,
    stop: CancellationToken,
}

impl Ask {
    async fn run(self, mut asker: Asker, first: Instant) {
        let mut pause = tokio::time::interval_at(first, PAUSE);
        pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = pause.tick() => {}
                () = self.stop.cancelled() => return,
            }
            let start = Instant::now();
            let outcome = tokio::time::timeout(REQUEST_TIMEOUT, asker.ask())
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())));
            lock(&self.stats).count(self.service, self.node, start.elapsed(), outcome);
        }
    }
}

/// A way of asking, with its connection.
enum Asker {
    Http { connection: Connection, protocol: Protocol, echo: bool, asked: u64 },
    Grpc(GreeterClient<Channel>),
}

impl Asker {
    fn hello(node: Node) -> Self {
        let connection = Connection::new(Some(node.client_ip()), node.outbound(), Protocol::Http1);
        Self::Http { connection, protocol: Protocol::Http1, echo: false, asked: 0 }
    }

    fn echo(node: Node, protocol: Protocol) -> Self {
        let connection = Connection::new(Some(node.client_ip()), node.outbound(), protocol);
        Self::Http { connection, protocol, echo: true, asked: 0 }
    }

    fn greeter(node: Node, greeter: Service, by_connect: bool) -> Self {
        let authority = format!("{}.demo:{}", greeter.name, greeter.port);
        let through = ThroughProxy { node, tunnel_to: by_connect.then_some(authority) };
        let channel = Endpoint::from_static("http://greeter.demo:50051").connect_with_connector_lazy(through);
        Self::Grpc(GreeterClient::new(channel))
    }

    /// One request: who answered, or why nobody did.
    async fn ask(&mut self) -> Result<Place, String> {
        match self {
            Self::Http { connection, protocol, echo, asked } => {
                *asked += 1;
                let body = echo.then(|| format!("letter {asked}"));
                let request = http_request(*protocol, body.as_deref());
                let (head, answer) = connection.send(request).await.map_err(|error| in_one_line(&*error))?;
                if head.status != StatusCode::OK {
                    let text = String::from_utf8_lossy(&answer);
                    return Err(format!("status {}: {}", head.status.as_u16(), text.trim_end()));
                }
                match body {
                    Some(body) => read_echo(&answer, &body),
                    None => hello::parse(&String::from_utf8_lossy(&answer)),
                }
                .ok_or_else(|| "an answer that the workload did not write".to_owned())
            }
            Self::Grpc(client) => {
                let request = HelloRequest { name: "demo".to_owned(), ..HelloRequest::default() };
                match client.say_hello(request).await {
                    Ok(reply) => {
                        let reply = reply.into_inner();
                        Ok(Place::new(reply.pod, reply.node))
                    }
                    Err(status) => Err(format!("{:?}: {}", status.code(), status.message())),
                }
            }
        }
    }
}

/// GET to hello, or POST of `body` to echo. Both protocols take an absolute URI: HTTP/1.1 sends it as the proxy's form,
/// HTTP/2 as `:authority`.
fn http_request(protocol: Protocol, body: Option<&str>) -> Request<Full<Bytes>> {
    let (method, uri, host) = match body {
        None => ("GET", "http://hello.demo/", "hello.demo"),
        Some(_) => ("POST", "http://echo.demo/letters", "echo.demo"),
    };
    let mut request = Request::new(Full::new(Bytes::copy_from_slice(body.unwrap_or_default().as_bytes())));
    *request.method_mut() = method.parse().unwrap_or_default();
    *request.uri_mut() = Uri::from_static(uri);
    if protocol == Protocol::Http1 {
        request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static(host));
    }
    request
}

/// Echo's answer, when it really is the echo of `sent`.
fn read_echo(answer: &[u8], sent: &str) -> Option<Place> {
    let answer: serde_json::Value = serde_json::from_slice(answer).ok()?;
    let text = |key: &str| answer.get(key).and_then(serde_json::Value::as_str);
    (text("body")? == sent).then_some(())?;
    Some(Place::new(text("pod")?, text("node")?))
}

/// Opens a gRPC channel's connection: to the outbound port and, if asked, through a tunnel of its own, as gRPC libraries
/// do when a proxy variable is set.
#[derive(Clone)]
struct ThroughProxy {
    node: Node,
    tunnel_to: Option<String>,
}

impl ThroughProxy {
    async fn open(self) -> io::Result<TokioIo<TcpStream>> {
        let stream = client::connect(Some(self.node.client_ip()), self.node.outbound()).await?;
        let stream = match self.tunnel_to {
            Some(authority) => client::tunnel(stream, &authority).await?,
            None => stream,
        };
        Ok(TokioIo::new(stream))
    }
}

impl tonic::codegen::Service<Uri> for ThroughProxy {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        Box::pin(self.clone().open())
    }
}

/// A poisoned count is still a count.
fn lock(stats: &Mutex<Stats>) -> MutexGuard<'_, Stats> {
    stats.lock().unwrap_or_else(PoisonError::into_inner)
}
