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

/// How long requests in flight may take after the shutdown began.
const GRACE: Duration = Duration::from_secs(2);

/// HTTP/2 streams that one connection may carry. Above hyper's 200, since a proxy brings the requests of many clients.
const MAX_STREAMS: u32 = 10_000;

/// A body of any kind that cannot fail.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Serves until `shutdown` is cancelled, then lets requests in flight finish for [`GRACE`].
///
/// # Errors
/// When the listener fails for good.
pub(crate) async fn serve<H, F, B>(listener: TcpListener, shutdown: CancellationToken, handler: H) -> io::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, shutdown.clone(), handler.clone()));
            }
            // Out of descriptors or a client that left already: neither ends the server.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let all_done = async { while connections.join_next().await.is_some() {} };
    // What is still open after the grace time is aborted as the set is dropped.
    let _ = tokio::time::timeout(GRACE, all_done).await;
    Ok(())
}

async fn connection<H, F, B>(stream: TcpStream, shutdown: CancellationToken, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let _ = stream.set_nodelay(true);
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
