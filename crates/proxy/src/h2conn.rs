//! The client's side of an HTTP/2 connection: to a peer (a link) or to a pod. A connection is driven by one task, kept
//! honest by PINGs, and handed out stream by stream up to the limit that the other end announced.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use crate::body::{Body, BodyOf, H2Body, ReplayBody};
use crate::coalesce::{Coalesced, Heard, coalesce};
use crate::error::{Error, ErrorKind, Retry};
use crate::exchange::{Interim, Interims, Response, TunnelEnd, Upload, h2_error, poll_upload, upload_h2};
use crate::link::LinkCounters;

/// The longest time between two PINGs, whatever else is heard. Source: ztunnel's HBONE client.
const PING_EVERY: Duration = Duration::from_secs(10);
/// While a stream is open, silence of this length is asked about by a PING at once: what is under way on a node that lost its
/// power or network must go elsewhere soon.
const SILENCE: Duration = Duration::from_secs(2);
/// When nothing at all was heard for this long after a PING, the other end is suspect: no new stream goes there, and requests that
/// may be sent again are. h2 answers a PING between two turns of the peer's worker, so 5 s is far beyond a busy peer's.
const SUSPECT: Duration = Duration::from_secs(5);
/// When nothing was heard for this long after a PING, the connection ends with all that is on it. Source: ztunnel's HBONE client.
/// A network that is back before costs tunnels and requests that must not be sent twice nothing but time.
const DEAD: Duration = Duration::from_secs(20);

/// Streams that we open on one connection, however many the peer would take. 4096: with 256 streams a client
/// connection that is 16 busy clients; more open another connection.
const MAX_STREAMS: usize = 4096;

/// h2 ends a connection on which more than this is buffered in small DATA frames (256 bytes minus its length each). Ours
/// are merged while they wait (`body::H2Body::prefetch`), so what is left is what has just come: generous, but not without end.
pub(crate) const DATA_FRAME_BUDGET: usize = 64 << 20;

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
const OPEN: u32 = (1 << 31) - 1;
/// Between proxies. A stream window of 1.5 MiB fills 10 Gbit/s at 1 ms (1.25 MB).
pub(crate) const LINK_WINDOWS: Windows =
    Windows { stream: 3 << 19, connection: OPEN, frame: 64 << 10, send_buffer: 256 << 10 };
/// Towards pods and clients, which are near: 1 MiB is 40 Gbit/s at 0.2 ms.
pub(crate) const POD_WINDOWS: Windows =
    Windows { stream: 1 << 20, connection: OPEN, frame: 16 << 10, send_buffer: 256 << 10 };

/// Our limit on received header lists. Source: design default, as for HTTP/1 heads.
pub(crate) const MAX_HEADER_LIST: u32 = 64 * 1024;

/// How often a silent end is looked at while a PING is unanswered.
const LOOK: Duration = Duration::from_secs(1);

/// An open client connection.
pub(crate) struct H2Conn {
    sender: SendRequest<Bytes>,
    used: Cell<Instant>,
    counters: Option<Arc<LinkCounters>>,
    state: Rc<State>,
    /// Asks h2 whether a stream may be opened; never opens one itself.
    probe: RefCell<SendRequest<Bytes>>,
}

#[derive(Default)]
struct State {
    /// Open streams.
    active: Cell<usize>,
    /// The other end is silent: see [`SUSPECT`].
    suspect: Cell<bool>,
    /// It just became suspect.
    suspected: Notify,
    /// The driver has ended, or the other end takes no new streams (GOAWAY).
    closed: Cell<bool>,
    /// An answer has come: the other end does speak HTTP/2.
    answered: Cell<bool>,
    /// Nobody needs the connection any more.
    unused: Notify,
}

impl State {
    fn suspect(&self, is: bool) {
        if is && !self.suspect.get() {
            self.suspected.notify_waiters();
        }
        self.suspect.set(is);
    }
}

impl Drop for H2Conn {
    fn drop(&mut self) {
        // Every stream holds the connection's Rc, so there is none. The driver ends by itself once h2 has written what is
        // queued; ending it here would lose a tunnel's last bytes.
        self.state.unused.notify_one();
    }
}

/// How long a connection that nobody needs may take to write its last frames.
const CLOSING: Duration = Duration::from_secs(10);

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
            // Frames that are late for streams we gave up are no fault of the connection; see `link_server`.
            .max_local_error_reset_streams(None)
            .max_concurrent_reset_streams(MAX_STREAMS)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .handshake::<Coalesced<T>, Bytes>(io)
            .await?;
        let state = Rc::new(State::default());
        let task_state = Rc::clone(&state);
        let ping_pong = if ping { connection.ping_pong() } else { None };
        let heard = flusher.heard();
        tokio::task::spawn_local(async move {
            let closing_state = Rc::clone(&task_state);
            let guard = OnDrop(Some(move || {
                task_state.closed.set(true);
                on_close();
            }));
            let mut alive = pin!(async move {
                let dead = async {
                    match ping_pong {
                        Some(ping_pong) => {
                            watch(ping_pong, heard, || closing_state.active.get() > 0, |is| closing_state.suspect(is))
                                .await;
                        }
                        None => std::future::pending().await,
                    }
                };
                let unused = async {
                    closing_state.unused.notified().await;
                    tokio::time::sleep(CLOSING).await;
                };
                tokio::select! { () = dead => {}, () = unused => {} }
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
        let probe = RefCell::new(sender.clone());
        Ok(Rc::new(Self { sender, used: Cell::new(Instant::now()), counters, state, probe }))
    }

    /// Whether a stream may be opened now.
    pub(crate) fn has_room(&self) -> bool {
        !self.state.suspect.get() && self.active() < self.sender.current_max_send_streams().min(MAX_STREAMS)
    }

    /// Whether no stream can be opened any more: broken, ended, or told so by a GOAWAY. Streams that are open go on.
    pub(crate) fn is_closed(&self) -> bool {
        if !self.state.closed.get() {
            // h2 answers at once: a handle that never opens a stream never waits for one.
            let mut cx = Context::from_waker(Waker::noop());
            if matches!(self.probe.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_))) {
                self.state.closed.set(true);
            }
        }
        self.state.closed.get()
    }

    /// Open streams.
    pub(crate) fn active(&self) -> usize {
        self.state.active.get()
    }

    /// How long it has had no stream; zero while it has one.
    pub(crate) fn idle_for(&self) -> Duration {
        if self.active() > 0 { Duration::ZERO } else { self.used.get().elapsed() }
    }

    fn lease(self: &Rc<Self>) -> StreamLease {
        self.state.active.set(self.active() + 1);
        if let Some(counters) = &self.counters {
            counters.stream_opened();
        }
        StreamLease(Rc::clone(self))
    }

    /// Waits until a stream can be opened.
    async fn ready(&self, whom: &dyn Display) -> Result<SendRequest<Bytes>, Error> {
        // A clone a request: h2 keeps "one request waits to be opened" on the handle.
        let mut sender = self.sender.clone();
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(|error| not_sent(&error, whom))?;
        Ok(sender)
    }

    /// Gives up `call` when the other end becomes suspect: for a request that may be sent again.
    pub(crate) async fn unless_suspect<T>(
        &self,
        whom: &dyn Display,
        call: Pin<&mut impl Future<Output = Result<T, Error>>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            result = call => result,
            () = self.state.suspected.notified() => {
                let details = format!("{whom} is silent, also when asked");
                let error = Error::link(ErrorKind::ConnectionTerminated, details);
                Err(Error { retry: Retry::IfIdempotent, ..error })
            }
        }
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
        let mut upload: Option<Upload> = if end { None } else { Some(Box::pin(upload_h2(body, send))) };
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
        let body = H2Body::new(recv, BodyOf::Response).holding(lease);
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
        let never_spoke = !self.state.answered.get() && self.counters.is_none();
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

    /// Opens a stream that becomes a tunnel when `is_tunnel` says so of its answer; another answer is returned as it is.
    pub(crate) async fn connect(
        self: &Rc<Self>,
        request: http::Request<()>,
        whom: &dyn Display,
        is_tunnel: impl FnOnce(&http::response::Parts) -> bool,
    ) -> Result<Response, Error> {
        let lease = self.lease();
        let (response, send) =
            self.ready(whom).await?.send_request(request, false).map_err(|error| not_sent(&error, whom))?;
        let response = response.await.map_err(|error| self.explain(&error, whom))?;
        let (parts, recv) = response.into_parts();
        let (body, tunnel) = if is_tunnel(&parts) {
            (Body::Empty, Some(TunnelEnd::H2 { send, recv, lease: Some(lease) }))
        } else {
            (Body::H2(H2Body::new(recv, BodyOf::Response).holding(lease)), None)
        };
        Ok(Response { status: parts.status, headers: parts.headers, body, upgrade: None, upload: None, tunnel })
    }
}

fn not_sent(error: &h2::Error, whom: &dyn Display) -> Error {
    Error::upstream(
        ErrorKind::ConnectionTerminated,
        Retry::Safe,
        format!("no stream could be opened to {whom}: {error}"),
    )
}

/// Counts an open stream and keeps its connection.
pub(crate) struct StreamLease(Rc<H2Conn>);

impl Drop for StreamLease {
    fn drop(&mut self) {
        let left = self.0.active() - 1;
        self.0.state.active.set(left);
        if left == 0 {
            // Asked for while there is no stream, only then.
            self.0.used.set(Instant::now());
        }
        if let Some(counters) = &self.0.counters {
            counters.stream_closed();
        }
    }
}

/// Ends when the other end is dead. A PING is sent every [`PING_EVERY`], and sooner when nothing was `heard` although streams
/// are open (`waits`). Any byte is a sign of life: on a crowded path the answer may stand behind much else.
pub(crate) async fn watch(mut ping_pong: h2::PingPong, heard: Heard, waits: impl Fn() -> bool, suspect: impl Fn(bool)) {
    let mut since_ping = Duration::ZERO;
    loop {
        tokio::time::sleep(SILENCE).await;
        since_ping += SILENCE;
        let silent = !heard.take() && waits();
        if since_ping < PING_EVERY && !silent {
            continue;
        }
        since_ping = Duration::ZERO;
        let mut answer = pin!(ping_pong.ping(h2::Ping::opaque()));
        let mut silence = Duration::ZERO;
        loop {
            match tokio::time::timeout(LOOK, answer.as_mut()).await {
                Ok(Ok(_)) => break,
                // Broken; the connection's own future tells, too.
                Ok(Err(_)) => return,
                Err(_) if heard.take() => {
                    silence = Duration::ZERO;
                    suspect(false);
                }
                Err(_) => silence += LOOK,
            }
            if silence >= DEAD {
                return;
            }
            if silence >= SUSPECT {
                suspect(true);
            }
        }
        suspect(false);
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::coalesce::coalesce;

    /// When a peer that takes bytes and never answers becomes suspect, and when it is given up, in whole seconds.
    async fn silent_peer(waits: bool) -> (u64, u64) {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let (io, flusher) = coalesce(ours);
        let (_sender, mut connection) = h2::client::handshake(io).await.unwrap();
        let (ping_pong, heard) = (connection.ping_pong().unwrap(), flusher.heard());
        let mut nowhere = tokio::io::sink();
        let begun = tokio::time::Instant::now();
        let suspected = Cell::new(None);
        let suspect = |is: bool| {
            assert!(is, "it never says anything");
            suspected.set(suspected.get().or(Some(begun.elapsed().as_secs())));
        };
        tokio::select! {
            () = watch(ping_pong, heard, || waits, suspect) => {}
            result = connection => panic!("the connection ended first: {result:?}"),
            // It swallows everything, as a network that is cut does.
            _ = tokio::io::copy(&mut theirs, &mut nowhere) => panic!("the stream ended"),
        }
        (suspected.get().unwrap(), begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_suspect_soon_while_somebody_waits_and_dead_later() {
        let expected = |first: Duration| ((first + SUSPECT).as_secs(), (first + DEAD).as_secs());
        assert_eq!(silent_peer(true).await, expected(SILENCE));
        assert_eq!(silent_peer(false).await, expected(PING_EVERY));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_only_answers_pings_is_kept() {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (io, flusher) = coalesce(ours);
        let (_sender, mut connection) = h2::client::handshake(io).await.unwrap();
        let (ping_pong, heard) = (connection.ping_pong().unwrap(), flusher.heard());
        let serve = async {
            let mut server: h2::server::Connection<_, Bytes> = h2::server::handshake(theirs).await.unwrap();
            server.accept().await.is_none()
        };
        tokio::select! {
            () = watch(ping_pong, heard, || true, |is: bool| assert!(!is)) => panic!("a peer that answers PINGs is alive"),
            _ = connection => panic!("the connection ended"),
            _ = serve => panic!("nobody asked"),
            () = tokio::time::sleep(Duration::from_secs(3600)) => {}
        }
    }

    /// A PING's answer may stand behind much else on a crowded path.
    #[tokio::test(start_paused = true)]
    async fn any_byte_is_a_sign_of_life() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let (io, flusher) = coalesce(ours);
        let (_sender, mut connection) = h2::client::handshake(io).await.unwrap();
        let (ping_pong, heard) = (connection.ping_pong().unwrap(), flusher.heard());
        // SETTINGS, then a WINDOW_UPDATE of the connection every 4 s, and never an answer to a PING.
        let drip = async {
            theirs.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(4)).await;
                theirs.write_all(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1]).await.unwrap();
            }
        };
        tokio::select! {
            () = watch(ping_pong, heard, || true, |is: bool| assert!(!is)) => panic!("it is alive"),
            result = connection => panic!("the connection ended: {result:?}"),
            () = drip => {}
        }
    }
}
