//! The accept loop that all workloads share: HTTP/1.1 and HTTP/2 with prior knowledge on one port, upgrades, and
//! an end that lets requests in flight finish.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// HTTP/2 streams that one connection may carry. Above hyper's 200, since a proxy brings the requests of many clients.
const MAX_STREAMS: u32 = 10_000;

/// A body of any kind that cannot fail.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// When a server ends, and how long what is under way may then take.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Cancelled when the end begins: no new connections, and each connection ends with its request under way.
    pub begun: CancellationToken,
    /// What is not done after this time is cut off.
    pub grace: Duration,
}

impl Shutdown {
    /// The usual time for requests under way: these workloads answer at once unless they were asked to wait.
    pub const GRACE: Duration = Duration::from_secs(2);

    /// Begins with `begun`, with the usual grace.
    #[must_use]
    pub fn new(begun: CancellationToken) -> Self {
        Self { begun, grace: Self::GRACE }
    }
}

/// Serves until the shutdown begins, then lets requests in flight finish; HTTP/1.1 clients hear `Connection: close`.
///
/// # Errors
/// When the listener fails for good.
pub(crate) async fn serve<H, F, B>(listener: TcpListener, shutdown: Shutdown, handler: H) -> io::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let begun = shutdown.begun.clone();
    accept(listener, shutdown, move |stream| connection(stream, begun.clone(), handler.clone())).await
}

/// Runs `connection` for each client until the shutdown begins, then waits for those that are open.
///
/// # Errors
/// When the listener fails for good.
pub(crate) async fn accept<C, F>(listener: TcpListener, shutdown: Shutdown, connection: C) -> io::Result<()>
where
    C: Fn(TcpStream) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.begun.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                connections.spawn(connection(stream));
            }
            // Out of descriptors or a client that left already: neither ends the server.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let all_done = async { while connections.join_next().await.is_some() {} };
    // What is still open after the grace time is aborted as the set is dropped.
    let _ = tokio::time::timeout(shutdown.grace, all_done).await;
    Ok(())
}

async fn connection<H, F, B>(stream: TcpStream, shutdown: CancellationToken, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(MAX_STREAMS);
    let service = service_fn(move |request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut serving = std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    tokio::select! {
        // A client's broken connection is the client's matter.
        _ = serving.as_mut() => return,
        () = shutdown.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}
