//! The client's side of an HTTP/2 connection: to a peer (a link) or to a pod. A connection is driven by one task, kept
//! honest by PINGs, and handed out stream by stream up to the limit that the other end announced.

use std::cell::Cell;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use crate::body::{Body, BodyOf, H2Body};
use crate::coalesce::{Coalesced, coalesce};
use crate::error::{Error, ErrorKind, Retry};
use crate::exchange::{Interim, Response, TunnelEnd, Upload, h2_error, poll_upload, upload_h2};
use crate::link::LinkCounters;

/// PING every 10 s; dead when unanswered for 20 s. Source: ztunnel's HBONE client.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(10);
/// See [`PING_EVERY`].
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Streams that we open on one connection, however many the peer would take. 4096: with 256 streams a client
/// connection that is 16 busy clients; more open another connection.
const MAX_STREAMS: usize = 4096;

/// Windows of one end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows {
    /// Bytes a stream may have under way. 2 MiB fills 10 Gbit/s at 1 ms (1.25 MB) with room for a late reader.
    pub(crate) stream: u32,
    /// Bytes all streams of the connection may have under way, which bounds what a stalled reader can make us buffer.
    pub(crate) connection: u32,
    /// Largest DATA frame: fewer, larger frames cost less; 64 KiB still lets small answers in between.
    pub(crate) frame: u32,
    /// Bytes of a stream that wait in our memory for the other end's window.
    pub(crate) send_buffer: usize,
}

/// Between proxies.
pub(crate) const LINK_WINDOWS: Windows =
    Windows { stream: 2 << 20, connection: 16 << 20, frame: 64 << 10, send_buffer: 256 << 10 };
/// Towards pods and clients: many connections, each usually with little to say.
pub(crate) const POD_WINDOWS: Windows =
    Windows { stream: 1 << 20, connection: 4 << 20, frame: 16 << 10, send_buffer: 256 << 10 };

/// Our limit on received header lists. Source: design default, as for HTTP/1 heads.
pub(crate) const MAX_HEADER_LIST: u32 = 64 * 1024;

/// An open client connection.
pub(crate) struct H2Conn {
    sender: SendRequest<Bytes>,
    active: Cell<usize>,
    used: Cell<Instant>,
    counters: Option<Arc<LinkCounters>>,
    state: Rc<State>,
    driver: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    closed: Cell<bool>,
}

impl Drop for H2Conn {
    fn drop(&mut self) {
        // Nobody holds a stream of it any more: every stream holds the connection's Rc.
        self.driver.abort();
    }
}

impl H2Conn {
    /// Shakes hands on `io` and starts the driving task. `on_close` is called once when the connection ends.
    pub(crate) async fn open<T>(
        io: T,
        windows: Windows,
        ping: bool,
        counters: Option<Arc<LinkCounters>>,
        on_close: impl FnOnce() + 'static,
    ) -> Result<Rc<Self>, h2::Error>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (io, flusher) = coalesce(io);
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(windows.stream)
            .initial_connection_window_size(windows.connection)
            .max_frame_size(windows.frame)
            .max_send_buffer_size(windows.send_buffer)
            .max_header_list_size(MAX_HEADER_LIST)
            .enable_push(false)
            .handshake::<Coalesced<T>, Bytes>(io)
            .await?;
        let state = Rc::new(State::default());
        let task_state = Rc::clone(&state);
        let ping_pong = if ping { connection.ping_pong() } else { None };
        let driver = tokio::task::spawn_local(async move {
            let guard = OnDrop(Some(move || {
                task_state.closed.set(true);
                on_close();
            }));
            let mut alive = pin!(async move {
                match ping_pong {
                    Some(ping_pong) => watch(ping_pong).await,
                    None => std::future::pending().await,
                }
            });
            let mut connection = pin!(connection);
            flusher.defer();
            poll_fn(|cx| {
                if connection.as_mut().poll(cx).is_ready() || alive.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                match flusher.poll_flush(cx) {
                    Poll::Ready(Err(_)) => Poll::Ready(()),
                    Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                }
            })
            .await;
            drop(guard);
        });
        Ok(Rc::new(Self { sender, active: Cell::new(0), used: Cell::new(Instant::now()), counters, state, driver }))
    }

    /// Whether a stream may be opened now.
    pub(crate) fn has_room(&self) -> bool {
        !self.is_closed() && self.active.get() < self.sender.current_max_send_streams().min(MAX_STREAMS)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.closed.get()
    }

    /// Open streams.
    pub(crate) fn active(&self) -> usize {
        self.active.get()
    }

    /// How long it has had no stream; zero while it has one.
    pub(crate) fn idle_for(&self) -> Duration {
        if self.active.get() > 0 { Duration::ZERO } else { self.used.get().elapsed() }
    }

    fn lease(self: &Rc<Self>) -> StreamLease {
        self.active.set(self.active.get() + 1);
        if let Some(counters) = &self.counters {
            counters.stream_opened();
        }
        StreamLease(Rc::clone(self))
    }

    async fn send(
        self: &Rc<Self>,
        request: http::Request<()>,
        end: bool,
        whom: &dyn Display,
    ) -> Result<(ResponseFuture, h2::SendStream<Bytes>), Error> {
        let not_sent = |error: &h2::Error| {
            Error::upstream(
                ErrorKind::ConnectionTerminated,
                Retry::Safe,
                format!("no stream could be opened to {whom}: {error}"),
            )
        };
        // A clone a request: h2 keeps "one request waits to be opened" on the handle.
        let mut sender = self.sender.clone();
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(|e| not_sent(&e))?;
        sender.send_request(request, end).map_err(|e| not_sent(&e))
    }

    /// Sends a request and waits for the head of its answer; the body is sent meanwhile. Dropping the future resets
    /// the stream.
    pub(crate) async fn call(
        self: &Rc<Self>,
        request: http::Request<()>,
        body: Body,
        interim: &mut dyn Interim,
        whom: &dyn Display,
    ) -> Result<Response, Error> {
        let lease = self.lease();
        let end = body.is_end();
        let (mut response, send) = self.send(request, end, whom).await?;
        let mut upload: Option<Upload> = if end { None } else { Some(Box::pin(upload_h2(body, send))) };
        let response = poll_fn(|cx| {
            poll_upload(&mut upload, cx)?;
            while let Poll::Ready(Some(Ok(head))) = response.poll_informational(cx) {
                interim.interim(head.status(), head.headers());
            }
            Pin::new(&mut response).poll(cx).map_err(|error| h2_error(&error, whom))
        })
        .await?;
        let (parts, recv) = response.into_parts();
        let body = H2Body::new(recv, BodyOf::Response).holding(lease);
        Ok(Response { status: parts.status, headers: parts.headers, body: Body::H2(body), upload, tunnel: None })
    }

    /// Opens a stream that becomes a tunnel when `is_tunnel` says so of its answer; another answer is returned as it is.
    pub(crate) async fn connect(
        self: &Rc<Self>,
        request: http::Request<()>,
        whom: &dyn Display,
        is_tunnel: impl FnOnce(&http::response::Parts) -> bool,
    ) -> Result<Response, Error> {
        let lease = self.lease();
        let (response, send) = self.send(request, false, whom).await?;
        let response = response.await.map_err(|error| h2_error(&error, whom))?;
        let (parts, recv) = response.into_parts();
        let (body, tunnel) = if is_tunnel(&parts) {
            (Body::Empty, Some(TunnelEnd::H2 { send, recv, lease: Some(lease) }))
        } else {
            (Body::H2(H2Body::new(recv, BodyOf::Response).holding(lease)), None)
        };
        Ok(Response { status: parts.status, headers: parts.headers, body, upload: None, tunnel })
    }
}

/// Counts an open stream and keeps its connection.
pub(crate) struct StreamLease(Rc<H2Conn>);

impl Drop for StreamLease {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.used.set(Instant::now());
        if let Some(counters) = &self.0.counters {
            counters.stream_closed();
        }
    }
}

/// Ends when the other end has not answered a PING in time.
async fn watch(mut ping_pong: h2::PingPong) {
    loop {
        tokio::time::sleep(PING_EVERY).await;
        match tokio::time::timeout(PING_TIMEOUT, ping_pong.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // Broken (the connection's own future tells, too) or silent.
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(run) = self.0.take() {
            run();
        }
    }
}
