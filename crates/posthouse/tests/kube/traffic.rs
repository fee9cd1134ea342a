//! Requests that go on all the time, and the pods that answer them. One client keeps its connection, the other opens one
//! for each request, so that both an old and a new connection have their chance to fail.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use http::header::HOST;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Between two requests of one client: with two clients, a hundred requests a second.
const PACE: Duration = Duration::from_millis(20);
/// A request without an answer after this is lost; a busy machine is faster.
const LOST: Duration = Duration::from_secs(60);

/// A pod that answers every request with what came in the request's body.
pub(crate) struct HelloPod {
    pub(crate) port: u16,
    answered: Arc<AtomicU64>,
    _serving: JoinSet<()>,
}

impl HelloPod {
    pub(crate) async fn start(ip: &str, port: u16) -> Self {
        let listener = TcpListener::bind((ip, port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answered = Arc::new(AtomicU64::new(0));
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, Arc::clone(&answered)));
        Self { port, answered, _serving: serving }
    }

    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

async fn serve(listener: TcpListener, answered: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let answered = Arc::clone(&answered);
        connections.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| async {
                let body = request.into_body().collect().await?.to_bytes();
                answered.fetch_add(1, Ordering::Relaxed);
                Ok::<_, hyper::Error>(Response::new(Full::new(body)))
            });
            // The proxy may close what it does not need any more.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// What the clients share.
#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    failures: Mutex<Vec<String>>,
}

pub(crate) struct Traffic {
    tally: Arc<Tally>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

impl Traffic {
    /// From the address `local` through the proxy to these authorities in turn.
    pub(crate) fn start(local: &str, proxy: SocketAddr, authorities: &[&'static str]) -> Self {
        let local: IpAddr = local.parse().unwrap();
        let tally = Arc::new(Tally::default());
        let (stop, stopped) = watch::channel(false);
        let mut clients = JoinSet::new();
        for keep in [true, false] {
            let client = Client { local, proxy, authorities: authorities.to_vec(), keep, sender: None, sent: 0 };
            clients.spawn(client.run(Arc::clone(&tally), stopped.clone()));
        }
        Self { tally, stop, clients }
    }

    /// Waits for so many more answers; stops the test at the first failure.
    pub(crate) async fn goes_on(&self, requests: u64) {
        let begun = self.tally.answered.load(Ordering::Relaxed);
        crate::until("requests", async || {
            let failures = self.tally.failures.lock().unwrap().clone();
            assert!(failures.is_empty(), "{failures:#?}");
            self.tally.answered.load(Ordering::Relaxed) >= begun + requests
        })
        .await;
    }

    /// Lets the last requests finish; gives the number of all and the failures.
    pub(crate) async fn stop(self) -> (u64, Vec<String>) {
        let Self { tally, stop, clients } = self;
        stop.send(true).unwrap();
        clients.join_all().await;
        let failures = std::mem::take(&mut *tally.failures.lock().unwrap());
        (tally.answered.load(Ordering::Relaxed) + failures.len() as u64, failures)
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

struct Client {
    local: IpAddr,
    proxy: SocketAddr,
    authorities: Vec<&'static str>,
    keep: bool,
    sender: Option<Sender>,
    sent: usize,
}

impl Client {
    async fn run(mut self, tally: Arc<Tally>, stopped: watch::Receiver<bool>) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*stopped.borrow() {
            pace.tick().await;
            let answer = timeout(LOST, self.exchange()).await;
            let answer = answer.context("no answer").and_then(|answer| answer);
            match answer {
                Ok(()) => {
                    tally.answered.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    let text = format!("request {} (kept connection: {}): {error:#}", self.sent, self.keep);
                    tally.failures.lock().unwrap().push(text);
                }
            }
        }
    }

    /// One request. A kept connection that ends without reason is a failure, too.
    async fn exchange(&mut self) -> anyhow::Result<()> {
        let mut sender = match self.sender.take() {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let authority = self.authorities[self.sent % self.authorities.len()];
        self.sent += 1;
        let body = Bytes::from(format!("request {} {}", self.sent, self.keep));
        // POST, since the proxy may send a GET twice.
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{authority}/"))
            .header(HOST, authority)
            .body(Full::new(body.clone()))?;
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        ensure!(status == 200 && answer == body, "{status}: {}", String::from_utf8_lossy(&answer));
        if self.keep {
            self.sender = Some(sender);
        }
        Ok(())
    }

    async fn connect(&self) -> anyhow::Result<Sender> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(self.local, 0))?;
        let stream = socket.connect(self.proxy).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with its sender.
        tokio::spawn(connection);
        Ok(sender)
    }
}
