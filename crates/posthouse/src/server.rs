//! The small HTTP/1.1 server behind the admin and the metrics listeners. Pods can reach the metrics port, and the kubelet
//! must always get its answer there, so everything is bounded: header size and time, the life of a connection, and the
//! number of connections, of which the oldest makes room for a new one.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use posthouse_model::transport::BoxIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// More than an operator's tools and a few scrapers need, few enough to cost nothing.
const MAX_CONNECTIONS: usize = 64;
/// The time for a request's head, also while a connection idles; longer than common scrape intervals.
const HEADER_TIMEOUT: Duration = Duration::from_secs(70);
/// hyper's smallest read buffer: a head that does not fit is answered 431.
const MAX_HEAD: usize = 8 * 1024;
/// After this a connection may finish its answer; a reader that does not read is cut off after the same time again.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// How long a stopping server waits for answers that are under way.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// A response body, whole or made piece by piece.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Answers requests; bodies of requests are never read.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers one request, whatever its method.
    fn handle(&self, request: Parts) -> Pin<Box<dyn Future<Output = Response<Body>> + Send + '_>>;
}

/// A body that is there.
pub(crate) fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).boxed_unsync()
}

/// A plain-text answer.
pub(crate) fn text(status: StatusCode, content: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(content));
    *response.status_mut() = status;
    set(&mut response, header::CONTENT_TYPE, "text/plain; charset=utf-8");
    response
}

/// Sets a header to a value that is known to be one.
pub(crate) fn set(response: &mut Response<Body>, name: header::HeaderName, value: &'static str) {
    response.headers_mut().insert(name, header::HeaderValue::from_static(value));
}

/// Binds a listener that a successor on the same node may bind beside us (a surge pod during an upgrade).
///
/// # Errors
/// One line that names the flag and the address.
pub(crate) fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = |socket: Socket| {
        socket.listen(128)?;
        TcpListener::from_std(socket.into())
    };
    socket(address).and_then(listen).map_err(|error| cannot_listen(flag, address, &error))
}

/// Binds a Unix socket that only our own user may connect to. One that a process before us left behind is replaced, but never
/// one on which somebody answers.
///
/// # Errors
/// One line that names the flag and the path.
pub(crate) fn bind_unix(flag: &str, path: &Path) -> anyhow::Result<UnixListener> {
    let bind = || {
        if std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "another posthouse answers on that socket"));
            }
            std::fs::remove_file(path)?;
        }
        // Nobody may connect in the moment before the file's mode is set.
        let before = rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    bind().map_err(|error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => "; there is a file of that name that is no socket",
            io::ErrorKind::NotFound => "; its folder must exist",
            _ => "",
        };
        anyhow::anyhow!("{flag} {}: cannot listen there: {error}{hint}", path.display())
    })
}

/// Where connections come from.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<BoxIo> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// Says early that an address cannot be listened on, which takes no connection from anybody.
///
/// # Errors
/// One line that names the flag and the address.
pub(crate) fn check_bind(flag: &str, address: SocketAddr) -> anyhow::Result<()> {
    socket(address).map(drop).map_err(|error| cannot_listen(flag, address, &error))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn cannot_listen(flag: &str, address: SocketAddr, error: &io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        io::ErrorKind::AddrInUse => "; another program listens there",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege",
        _ => "",
    };
    anyhow::anyhow!("{flag} {address}: cannot listen there: {error}{hint}")
}

/// Serves until `stop` changes or its sender is gone, then finishes what is under way for a short while.
pub(crate) async fn serve(listener: Listener, handler: Arc<dyn Handler>, mut stop: watch::Receiver<()>) {
    let mut connections = JoinSet::new();
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    // Out of file descriptors, mostly: the next try would fail at once, too.
                    tracing::warn!(%error, "the admin or metrics listener cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
            _ = stop.changed() => break,
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(connections.spawn(connection(stream, Arc::clone(&handler), stop.clone())));
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(STOP_GRACE, finished).await;
}

async fn connection(stream: BoxIo, handler: Arc<dyn Handler>, mut stop: watch::Receiver<()>) {
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        let handler = Arc::clone(&handler);
        async move { Ok::<_, Infallible>(handler.handle(request.into_parts().0).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        // A broken connection is the client's affair.
        _ = &mut serving => return,
        () = tokio::time::sleep(CONNECTION_LIFE) => {}
        _ = stop.changed() => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(CONNECTION_LIFE, serving).await;
}

#[cfg(test)]
pub(crate) mod tests;
