//! The client's side of an HTTP/2 connection to a pod: driven by one task and handed out stream by stream up to the limit
//! that the pod announced. Links have a codec of their own (`link_conn.rs`).

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use crate::body::{Body, BodyOf, H2Body, ReplayBody};
use crate::coalesce::{Coalesced, coalesce};
use crate::error::{Error, ErrorKind, Retry};
use crate::exchange::{Interim, Interims, Response, Upload, h2_error, poll_upload, upload_h2};
use crate::h2pool::{Pooled, StreamLease};
use crate::h2stream::{RecvStream, SendStream};

/// Streams that we open on one connection, however many the peer would take. 4096: with 256 streams a client
/// connection that is 16 busy clients; more open another connection.
pub(crate) const MAX_STREAMS: usize = 4096;

/// h2 ends a connection on which more than this is buffered in small DATA frames (256 bytes minus its length each). Ours
/// are merged while they wait (`body::H2Body::prefetch`), so what is left is what has just come: generous, but not without end.
const DATA_FRAME_BUDGET: usize = 64 << 20;

/// Windows of one end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows {
    /// Bytes a stream may have under way.
    pub(crate) stream: u32,
    /// Bytes all streams of the connection may have under way.
    pub(crate) connection: u32,
    /// Largest DATA frame: fewer, larger frames cost less; 64 KiB still lets small answers in between.
    pub(crate) frame: u32,
    /// Bytes of a stream that wait in our memory for the other end's window.
    pub(crate) send_buffer: usize,
}

/// The largest window there is (RFC 9113 §6.9.1). h2 gives a stream's and its connection's capacity back together, so with a
/// connection window of a few streams' size a few stalled readers would stop everybody on the link (ztunnel's 16 MiB: eight
/// of them). What stalled streams hold is bounded by `pressure` instead.
pub(crate) const OPEN: u32 = (1 << 31) - 1;
/// Towards pods and clients, which are near: 1 MiB is 40 Gbit/s at 0.2 ms.
pub(crate) const POD_WINDOWS: Windows =
    Windows { stream: 1 << 20, connection: OPEN, frame: 16 << 10, send_buffer: 256 << 10 };

/// Our limit on received header lists. Source: design default, as for HTTP/1 heads.
pub(crate) const MAX_HEADER_LIST: u32 = 64 * 1024;

/// Counts a connection's open streams.
pub(crate) struct Use {
    active: Cell<usize>,
    /// When the last of them ended.
    used: Cell<Instant>,
}

impl Use {
    pub(crate) fn new() -> Self {
        Self { active: Cell::new(0), used: Cell::new(Instant::now()) }
    }

    pub(crate) fn active(&self) -> usize {
        self.active.get()
    }

    pub(crate) fn begun(&self) {
        self.active.set(self.active.get() + 1);
    }

    pub(crate) fn ended(&self) {
        let left = self.active.get() - 1;
        self.active.set(left);
        if left == 0 {
            // Asked for while there is no stream, only then.
            self.used.set(Instant::now());
        }
    }

    /// How long there has been no stream; zero while there is one.
    pub(crate) fn idle_for(&self) -> Duration {
        if self.active() > 0 { Duration::ZERO } else { self.used.get().elapsed() }
    }
}

/// An open connection to a pod.
pub(crate) struct H2Conn {
    sender: SendRequest<Bytes>,
    streams: Use,
    state: Rc<State>,
    /// Asks h2 whether a stream may be opened; never opens one itself.
    probe: RefCell<SendRequest<Bytes>>,
}

#[derive(Default)]
struct State {
    /// The driver has ended, or the other end takes no new streams (GOAWAY).
    closed: Cell<bool>,
    /// An answer has come: the other end does speak HTTP/2.
    answered: Cell<bool>,
    /// Nobody needs the connection any more.
    unused: Notify,
}

impl Drop for H2Conn {
    fn drop(&mut self) {
        // Every stream holds the connection's Rc, so there is none. The driver ends by itself once h2 has written what is
        // queued; ending it here would lose a tunnel's last bytes.
        self.state.unused.notify_one();
    }
}

/// How long a connection that nobody needs may take to write its last frames.
pub(crate) const CLOSING: Duration = Duration::from_secs(10);

impl H2Conn {
    /// Shakes hands on `io` and starts the driving task. `on_close` is called once when the connection ends.
    pub(crate) async fn open<T>(io: T, on_close: impl FnOnce() + 'static) -> Result<Rc<Self>, h2::Error>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (io, flusher) = coalesce(io);
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(POD_WINDOWS.stream)
            .initial_connection_window_size(POD_WINDOWS.connection)
            .max_frame_size(POD_WINDOWS.frame)
            .max_send_buffer_size(POD_WINDOWS.send_buffer)
            .max_header_list_size(MAX_HEADER_LIST)
            .enable_push(false)
            // Frames that are late for streams we gave up are no fault of the connection.
            .max_local_error_reset_streams(None)
            .max_concurrent_reset_streams(MAX_STREAMS)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .handshake::<Coalesced<T>, Bytes>(io)
            .await?;
        let state = Rc::new(State::default());
        let task_state = Rc::clone(&state);
        tokio::task::spawn_local(async move {
            let closing_state = Rc::clone(&task_state);
            let guard = OnDrop(Some(move || {
                task_state.closed.set(true);
                on_close();
            }));
            let mut unused = pin!(async move {
                closing_state.unused.notified().await;
                tokio::time::sleep(CLOSING).await;
            });
            let mut connection = pin!(connection);
            flusher.defer();
            poll_fn(|cx| {
                if connection.as_mut().poll(cx).is_ready() || unused.as_mut().poll(cx).is_ready() {
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
        let probe = RefCell::new(sender.clone());
        Ok(Rc::new(Self { sender, streams: Use::new(), state, probe }))
    }

    pub(crate) fn idle_for(&self) -> Duration {
        self.streams.idle_for()
    }

    fn lease(self: &Rc<Self>) -> StreamLease {
        self.streams.begun();
        StreamLease::Pod(Rc::clone(self))
    }

    /// Waits until a stream can be opened.
    async fn ready(&self, whom: &dyn Display) -> Result<SendRequest<Bytes>, Error> {
        // A clone a request: h2 keeps "one request waits to be opened" on the handle.
        let mut sender = self.sender.clone();
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(|error| not_sent(&error, whom))?;
        Ok(sender)
    }

    /// Sends a request, which is made when a stream can be opened, and waits for the head of its answer; the body is sent meanwhile.
    /// Dropping the future resets the stream.
    pub(crate) async fn call(
        self: &Rc<Self>,
        request: impl FnOnce() -> Result<http::Request<()>, Error>,
        body: Option<&ReplayBody>,
        interim: &mut dyn Interim,
        whom: &dyn Display,
    ) -> Result<Response, Error> {
        let lease = self.lease();
        let mut sender = self.ready(whom).await?;
        let body = body.map_or(Body::Empty, ReplayBody::reader);
        let end = body.is_end();
        let (mut response, send) = sender.send_request(request()?, end).map_err(|error| not_sent(&error, whom))?;
        drop(sender);
        let mut upload: Option<Upload> = if end { None } else { Some(Box::pin(upload_h2(body, SendStream::H2(send)))) };
        let mut interims = Interims::new(interim);
        let response = poll_fn(|cx| {
            poll_upload(&mut upload, cx)?;
            while let Poll::Ready(Some(Ok(head))) = response.poll_informational(cx) {
                let (parts, ()) = head.into_parts();
                interims.pass(parts.status, parts.headers)?;
            }
            Pin::new(&mut response).poll(cx).map_err(|error| self.explain(&error, whom))
        })
        .await?;
        self.state.answered.set(true);
        let (parts, recv) = response.into_parts();
        let body = H2Body::new(RecvStream::H2(recv), BodyOf::Response).holding(lease);
        Ok(Response {
            status: parts.status,
            headers: parts.headers,
            body: Body::H2(body),
            upgrade: None,
            upload,
            tunnel: None,
        })
    }

    /// An error in words; an other end that never answered may not speak HTTP/2 at all.
    fn explain(&self, error: &h2::Error, whom: &dyn Display) -> Error {
        let never_spoke = !self.state.answered.get();
        if never_spoke && error.is_go_away() && error.is_library() {
            return Error::upstream(
                ErrorKind::HttpProtocolError,
                Retry::Never,
                format!(
                    "{whom} does not answer in HTTP/2 ({error}); if it speaks HTTP/1.1, set its Service port's appProtocol to 'http'"
                ),
            );
        }
        h2_error(error, whom)
    }
}

impl Pooled for H2Conn {
    fn has_room(&self) -> bool {
        self.active() < self.sender.current_max_send_streams().min(MAX_STREAMS)
    }

    fn is_closed(&self) -> bool {
        if !self.state.closed.get() {
            // h2 answers at once: a handle that never opens a stream never waits for one.
            let mut cx = Context::from_waker(Waker::noop());
            if matches!(self.probe.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_))) {
                self.state.closed.set(true);
            }
        }
        self.state.closed.get()
    }

    fn active(&self) -> usize {
        self.streams.active()
    }

    fn ended(&self) {
        self.streams.ended();
    }
}

pub(crate) fn not_sent(error: &dyn Display, whom: &dyn Display) -> Error {
    Error::upstream(
        ErrorKind::ConnectionTerminated,
        Retry::Safe,
        format!("no stream could be opened to {whom}: {error}"),
    )
}

/// Runs when it is dropped.
pub(crate) struct OnDrop<F: FnOnce()>(pub(crate) Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(run) = self.0.take() {
            run();
        }
    }
}
