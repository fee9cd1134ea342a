//! Fake pods: raw ones that a test writes byte by byte, and HTTP ones (hyper, HTTP/1.1 and HTTP/2 on one port). A panic in
//! one of their connections fails the test when the pod is dropped.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::mesh::pod_ip;
use super::{Wire, within};

/// A body of an HTTP pod's answer.
pub(crate) type Answering = BoxBody<Bytes, hyper::Error>;

/// What an HTTP pod saw of a request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
}

pub(crate) struct Pod {
    pub(crate) node: &'static str,
    pub(crate) address: SocketAddr,
    accepted: watch::Receiver<usize>,
    ended: watch::Receiver<usize>,
    seen: Arc<Mutex<Vec<Seen>>>,
    panicked: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Pod {
    /// A pod on `node` whose address ends with `last`; `serve` gets each connection and its number from 0.
    pub(crate) async fn raw<F, Fut>(node: &'static str, last: u8, serve: F) -> Self
    where
        F: Fn(Wire, usize) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self::start(node, last, Arc::default(), move |stream, n| serve(Wire::new(stream), n)).await
    }

    /// A pod that answers each request by `handle`.
    pub(crate) async fn http<F, Fut>(node: &'static str, last: u8, handle: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Response<Answering>> + Send + 'static,
    {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = Arc::clone(&seen);
        Self::start(node, last, seen, move |stream, _| serve_http(stream, Arc::clone(&log), handle.clone())).await
    }

    /// A pod that says its name to every request.
    pub(crate) async fn named(node: &'static str, last: u8, name: &'static str) -> Self {
        Self::http(node, last, move |_| async move { answer(name) }).await
    }

    /// A pod that sends back what it gets, while it gets it.
    pub(crate) async fn echo(node: &'static str, last: u8) -> Self {
        Self::http(node, last, |request| async move { Response::new(request.into_body().boxed()) }).await
    }

    /// As [`Self::named`], within TLS.
    pub(crate) async fn tls(
        node: &'static str,
        last: u8,
        config: Arc<rustls::ServerConfig>,
        name: &'static str,
    ) -> Self {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = Arc::clone(&seen);
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        Self::start(node, last, seen, move |stream, _| {
            let (log, acceptor) = (Arc::clone(&log), acceptor.clone());
            async move {
                // It fails when the proxy does not like the certificate.
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve_http(stream, log, move |_| async move { answer(name) }).await;
                }
            }
        })
        .await
    }

    async fn start<F, Fut>(node: &'static str, last: u8, seen: Arc<Mutex<Vec<Seen>>>, serve: F) -> Self
    where
        F: Fn(TcpStream, usize) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self::start_at(node, SocketAddr::new(pod_ip(node, last), 0), seen, serve).await
    }

    /// As [`Self::named`], on a port that is given.
    pub(crate) async fn named_at(node: &'static str, last: u8, port: u16, name: &'static str) -> Self {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = Arc::clone(&seen);
        let address = SocketAddr::new(pod_ip(node, last), port);
        Self::start_at(node, address, seen, move |stream, _| {
            let log = Arc::clone(&log);
            serve_http(stream, log, move |_| async move { answer(name) })
        })
        .await
    }

    async fn start_at<F, Fut>(node: &'static str, address: SocketAddr, seen: Arc<Mutex<Vec<Seen>>>, serve: F) -> Self
    where
        F: Fn(TcpStream, usize) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepting, accepted) = watch::channel(0);
        let (ending, ended) = watch::channel(0);
        let panicked = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&panicked);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    stream = listener.accept() => {
                        let (stream, _) = stream.unwrap();
                        stream.set_nodelay(true).unwrap();
                        let serving = serve(stream, *accepting.borrow());
                        accepting.send_modify(|n| *n += 1);
                        connections.spawn(serving);
                    }
                    Some(done) = connections.join_next() => {
                        if done.is_err_and(|error| error.is_panic()) {
                            flag.store(true, Ordering::SeqCst);
                        }
                        ending.send_modify(|n| *n += 1);
                    }
                }
            }
        });
        Self { node, address, accepted, ended, seen, panicked, task }
    }

    /// Connections that it has taken.
    pub(crate) fn accepted(&self) -> usize {
        *self.accepted.borrow()
    }

    /// Waits until it has taken `n` connections.
    pub(crate) async fn has_accepted(&self, n: usize) {
        let mut accepted = self.accepted.clone();
        within("the pod's connections", accepted.wait_for(|have| *have >= n)).await.unwrap();
    }

    /// Waits until `n` of its connections were served to their end.
    pub(crate) async fn has_ended(&self, n: usize) {
        let mut ended = self.ended.clone();
        within("the end of the pod's connections", ended.wait_for(|have| *have >= n)).await.unwrap();
    }

    /// The requests so far; of an HTTP pod only.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// Serves one connection of an HTTP pod.
async fn serve_http<S, F, Fut>(stream: S, log: Arc<Mutex<Vec<Seen>>>, handle: F)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> Fut + Send + 'static,
    Fut: Future<Output = Response<Answering>> + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        log.lock().unwrap().push(Seen {
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
        });
        let answer = handle(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    // It ends with an error when the proxy breaks off, which many tests are about.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.task.abort();
        assert!(
            std::thread::panicking() || !self.panicked.load(Ordering::SeqCst),
            "a connection of the pod {} panicked",
            self.address
        );
    }
}

/// 200 with a text.
pub(crate) fn answer(text: impl Into<Bytes>) -> Response<Answering> {
    Response::new(full(text))
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Answering {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}
