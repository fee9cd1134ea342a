//! A client's connection to the outbound port, from its first byte: which HTTP version it speaks, and what a CONNECT
//! tunnel carries inside. The loops for the two versions are in `serve/http1.rs` and `serve/http2.rs`.

mod http1;
mod http2;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use http::HeaderMap;
use http::uri::Authority;
use metrics::counter;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::debug;

use crate::client::{Client, Found};
use crate::detect::{self, Detected};
use crate::downstream::LocalBoxFuture;
use crate::error::{Error, ErrorKind};
use crate::exchange::{TunnelEnd, error_answer};
use crate::h1::{self, BodyLength};
use crate::idle::IdleTimer;
use crate::metrics::{OpenGauge, TUNNELS, limit_reached};
use crate::outbound;
use crate::stream::{BufferedIo, SharedIo, Stream};
use crate::tunnel::{TUNNEL_IDLE, TunnelEndedBy, splice};

pub(crate) use http2::client_h2;

/// Serves one client connection until it ends.
pub(crate) async fn connection(client: Rc<Client>, mut io: BufferedIo) {
    let timeouts = client.worker.proxy.config.timeouts;
    let mut timer = IdleTimer::new(timeouts.client_idle);
    loop {
        match detect::http_version(&io.rbuf) {
            Detected::Http2 => return client_h2(client, io).await,
            Detected::NeedMore => {}
            Detected::Http1 | Detected::Opaque => {
                return http1::serve(client, Rc::new(std::cell::RefCell::new(io))).await;
            }
        }
        let was_empty = io.rbuf.is_empty();
        let read = {
            let mut drained = std::pin::pin!(client.worker.drain.idle_ends());
            poll_fn(|cx| {
                if let Poll::Ready(read) = io.poll_fill(cx, 0) {
                    return Poll::Ready(read.ok());
                }
                if was_empty && drained.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                timer.poll_expired(cx).map(|()| {
                    limit_reached(if was_empty { "client_idle" } else { "header_timeout" });
                    None
                })
            })
            .await
        };
        match read {
            None | Some(0) => return,
            Some(_) if was_empty => timer.set_limit(timeouts.request_header),
            Some(_) => {}
        }
    }
}

/// Tells a stranger why it is refused, then closes. Nothing of what it sends is looked at.
pub(crate) async fn refuse_stranger(mut stream: TcpStream, remote: SocketAddr) {
    let error = Error::client(
        ErrorKind::HttpRequestDenied,
        format!("{} is not a pod of this node; a pod uses the proxy of its own node (status.hostIP)", remote.ip()),
    );
    let (status, headers, text) = error_answer(&error, false, HeaderMap::new());
    let mut answer = BytesMut::new();
    h1::write_response_head(&mut answer, status, &headers, BodyLength::Length(text.len() as u64), false, false, None);
    answer.extend_from_slice(text.as_bytes());
    let polite = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        linger(&mut stream).await
    };
    // One second is enough for an answer of a packet; whoever is slower gets none.
    let _ = tokio::time::timeout(Duration::from_secs(1), polite).await;
}

/// Reads on for a little while after the answer, or the kernel would answer unread bytes with a reset that destroys the
/// answer on its way.
async fn linger(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> std::io::Result<()> {
    let mut sink = [0u8; 4096];
    for _ in 0..64 {
        if stream.read(&mut sink).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// Closes a connection whose peer may still be sending.
pub(crate) async fn close_politely(io: &SharedIo) {
    let polite = async {
        poll_fn(|cx| io.borrow_mut().poll_flush(cx)).await?;
        poll_fn(|cx| std::pin::Pin::new(&mut io.borrow_mut().stream).poll_shutdown(cx)).await?;
        for _ in 0..64 {
            let read = poll_fn(|cx| {
                let mut io = io.borrow_mut();
                io.rbuf.clear();
                io.poll_fill(cx, 0)
            })
            .await?;
            if read == 0 {
                break;
            }
        }
        Ok::<(), std::io::Error>(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), polite).await;
}

/// The inside of an accepted CONNECT: look at its first bytes and serve what they are. `found` is the tunnel's own target,
/// which nothing inside can widen.
pub(crate) fn tunnel(
    client: Rc<Client>,
    target: Authority,
    found: Rc<Found>,
    io: BufferedIo,
) -> LocalBoxFuture<'static, ()> {
    Box::pin(async move {
        let counted = client.worker.outbound.begin();
        let (io, detected) = look_inside(&client, &found, io).await;
        match detected {
            Inside::Gone => {}
            Inside::Http1 => {
                counter!(TUNNELS, "kind" => "http1").increment(1);
                drop(counted);
                http1::serve(Rc::new(client.inside(target)), Rc::new(std::cell::RefCell::new(io))).await;
            }
            Inside::Http2 => {
                counter!(TUNNELS, "kind" => "http2").increment(1);
                drop(counted);
                client_h2(Rc::new(client.inside(target)), io).await;
            }
            Inside::Opaque => {
                counter!(TUNNELS, "kind" => "opaque").increment(1);
                opaque(&client, &found, io, counted).await;
            }
        }
    })
}

enum Inside {
    Http1,
    Http2,
    Opaque,
    Gone,
}

async fn look_inside(client: &Client, found: &Found, mut io: BufferedIo) -> (BufferedIo, Inside) {
    let timeouts = client.worker.proxy.config.timeouts;
    let protocol = found.destination.service_port().app_protocol;
    if protocol.is_opaque() {
        return (io, Inside::Opaque);
    }
    // Where the Service says HTTP, silence does not mean another protocol: wait as long as for any request.
    let says_http = protocol != posthouse_model::AppProtocol::Unknown;
    let mut timer = IdleTimer::new(if says_http { timeouts.client_idle } else { timeouts.peek });
    let mut drained = std::pin::pin!(client.worker.drain.idle_ends());
    loop {
        match detect::inside_tunnel(&io.rbuf) {
            Detected::Http1 => return (io, Inside::Http1),
            Detected::Http2 => return (io, Inside::Http2),
            Detected::Opaque => return (io, Inside::Opaque),
            Detected::NeedMore => {}
        }
        let silent = io.rbuf.is_empty();
        let read = poll_fn(|cx| match io.poll_fill(cx, 0) {
            Poll::Ready(read) => Poll::Ready(Look::Read(read.unwrap_or(0))),
            // Nothing has been said yet, so nothing is cut off.
            Poll::Pending if silent && says_http && drained.as_mut().poll(cx).is_ready() => Poll::Ready(Look::Drained),
            Poll::Pending => timer.poll_expired(cx).map(|()| Look::Silence),
        })
        .await;
        match read {
            Look::Drained => return (io, Inside::Gone),
            // Closed before a word: nothing to carry.
            Look::Read(0) if silent => return (io, Inside::Gone),
            Look::Silence if says_http => {
                limit_reached(if silent { "client_idle" } else { "header_timeout" });
                return (io, Inside::Gone);
            }
            Look::Read(0) | Look::Silence => return (io, Inside::Opaque),
            // From its first byte on a request line has as long as any head.
            Look::Read(_) if silent && says_http => timer.set_limit(timeouts.request_header),
            Look::Read(_) => {}
        }
    }
}

enum Look {
    Read(usize),
    Silence,
    Drained,
}

/// Carries bytes to one endpoint until both sides are done.
async fn opaque(client: &Client, found: &Found, io: BufferedIo, counted: OpenGauge) {
    let started = std::time::Instant::now();
    let directory = client.worker.proxy.directory.load_full();
    match outbound::open_tunnel(client, &directory, found).await {
        Ok((end, in_flight)) => {
            drop(directory);
            let near = TunnelEnd::Io {
                io: Rc::new(std::cell::RefCell::new(io)),
                // The connection is counted where it was accepted.
                open: counted,
                revoked: None,
            };
            let ended = splice(near, end, TUNNEL_IDLE).await;
            if ended == TunnelEndedBy::Idle {
                limit_reached("tunnel_idle");
            }
            drop(in_flight);
            found.metrics.finished(Some(http::StatusCode::OK), None, started.elapsed());
        }
        Err(error) => {
            // The CONNECT was answered 200 already: all that is left is to break off.
            debug!(error = error.kind.token(), details = %error.details, "tunnel failed");
            found.metrics.finished(None, Some(&error), started.elapsed());
            if let Stream::Tcp(stream) = &io.stream {
                let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
            }
        }
    }
}
