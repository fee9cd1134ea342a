//! A proxy of node a that answers what the test wrote down, and whose links open by the requests that it gets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::api_server::Script;
use crate::objects::{installed, proxy};

pub(crate) struct FakeProxy {
    pub(crate) admin: SocketAddr,
    outbound: SocketAddr,
    state: Arc<State>,
    _running: JoinSet<()>,
}

struct State {
    peers: Value,
    /// Requests through it that reached an application.
    requests: AtomicUsize,
    /// So many of them open the links.
    needed: usize,
}

impl FakeProxy {
    pub(crate) const OPENS_LINKS: usize = 5;

    /// `peers`: as `/peers` has them, without links.
    pub(crate) async fn start(peers: Value) -> Self {
        Self::with(peers, Self::OPENS_LINKS).await
    }

    /// Its links never open.
    pub(crate) async fn start_unlinked(peers: Value) -> Self {
        Self::with(peers, usize::MAX).await
    }

    async fn with(peers: Value, needed: usize) -> Self {
        let state = Arc::new(State { peers, requests: AtomicUsize::new(0), needed });
        let (admin, outbound) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let (admin_at, outbound_at) = (admin.local_addr().unwrap(), outbound.local_addr().unwrap());
        let mut running = JoinSet::new();
        running.spawn(serve(admin, Arc::clone(&state), State::admin));
        running.spawn(serve(outbound, Arc::clone(&state), State::outbound));
        Self { admin: admin_at, outbound: outbound_at, state, _running: running }
    }

    /// A cluster of node a, where it runs.
    pub(crate) fn script(&self) -> Script {
        let mut script = installed(&["a"], &[proxy("p-a", "a")]);
        script.forwards = [(("p-a", 9990), self.admin), (("p-a", 4140), self.outbound)].into();
        script
    }

    pub(crate) fn requests(&self) -> usize {
        self.state.requests.load(Ordering::Relaxed)
    }
}

type Answer = fn(&State, &Request<Incoming>) -> Response<Full<Bytes>>;

async fn serve(listener: TcpListener, state: Arc<State>, answer: Answer) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&state, &request))));
            // The client leaves when it has what it wants.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl State {
    fn admin(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let object = match request.uri().path() {
            "/config" => json!({
                "version": env!("CARGO_PKG_VERSION"), "ready": true, "pending": [],
                "config": {"node-name": "a", "node-ip": ["127.0.81.1"]}, "discovery": {"watches": []},
            }),
            "/peers" => {
                let mut peers = self.peers.clone();
                if self.requests.load(Ordering::Relaxed) >= self.needed {
                    for peer in peers.as_array_mut().unwrap() {
                        peer["link"] = json!({"connections": 1, "streams": 0, "opened": 1, "failures": 0});
                    }
                }
                json!({"peers": peers})
            }
            "/identity" => json!({
                "tls": "node", "permissive": false, "last_error": null, "certificate": {
                    "not_before": "2026-01-01T00:00:00Z", "not_after": "2026-01-02T00:00:00Z", "expires_in_seconds": 50_000,
                },
            }),
            _ => return with(StatusCode::NOT_FOUND),
        };
        Response::new(object.to_string().into())
    }

    /// Every other answer ends its connection: the client must come back.
    fn outbound(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().host() == Some("posthouse-check.invalid") {
            let mut response = with(StatusCode::INTERNAL_SERVER_ERROR);
            let said = "posthouse; error=destination_not_found; details=\"no such name\"";
            response.headers_mut().insert("proxy-status", said.parse().unwrap());
            return response;
        }
        let mut response = with(StatusCode::OK);
        if self.requests.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
            response.headers_mut().insert("connection", "close".parse().unwrap());
        }
        response
    }
}

fn with(status: StatusCode) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::default()).unwrap()
}
