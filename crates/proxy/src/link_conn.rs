//! The client's side of a link: one connection to a peer, driven by one task and kept honest by PINGs.

use std::cell::Cell;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use posthouse_wire::{self as wire, Ask, Config, Heard, Opener, Pinger};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use crate::body::{Body, BodyOf, H2Body, ReplayBody};
use crate::error::{Error, ErrorKind, Retry};
use crate::exchange::{Interim, Interims, Response, TunnelEnd, Upload, poll_upload, upload_h2};
use crate::h1;
use crate::h2conn::{CLOSING, MAX_STREAMS, OPEN, OnDrop, Use, not_sent};
use crate::h2pool::{Pooled, StreamLease};
use crate::h2stream::{Reason, RecvStream, SendStream};
use crate::link::LinkCounters;

/// The longest time between two PINGs, whatever else is heard. Source: ztunnel's HBONE client.
const PING_EVERY: Duration = Duration::from_secs(10);
/// While a stream is open, silence of this length is asked about by a PING at once: what is under way on a node that lost its
/// power or network must go elsewhere soon.
const SILENCE: Duration = Duration::from_secs(2);
/// When nothing at all was heard for this long after a PING, the other end is suspect: no new stream goes there, and requests that
/// may be sent again are. A PING is answered between two turns of the peer's worker, so 5 s is far beyond a busy peer's.
const SUSPECT: Duration = Duration::from_secs(5);
/// When nothing was heard for this long after a PING, the connection ends with all that is on it. Source: ztunnel's HBONE client.
/// A network that is back before costs tunnels and requests that must not be sent twice nothing but time.
const DEAD: Duration = Duration::from_secs(20);

/// How often a silent end is looked at while a PING is unanswered.
const LOOK: Duration = Duration::from_secs(1);

/// The largest head that either side takes (by HTTP/1's count, and HTTP/2 counts 32 octets more a field), and our own fields on top.
/// Whatever was taken at one end fits.
const HEADER_LIST: u32 = (h1::MAX_HEAD + 32 * h1::MAX_FIELDS + 4096) as u32;
/// Both ends of a link. A stream window of 1.5 MiB fills 10 Gbit/s at 1 ms (1.25 MB); frames of 64 KiB cost little and still let
/// small answers in between.
pub(crate) const LINK: Config = Config {
    stream_window: 3 << 19,
    connection_window: OPEN,
    max_frame: 64 << 10,
    max_streams: MAX_STREAMS as u32,
    max_header_list: HEADER_LIST,
};

/// An open link.
pub(crate) struct LinkConn {
    opener: Opener,
    counters: Arc<LinkCounters>,
    state: Rc<State>,
}

struct State {
    streams: Use,
    /// The other end is silent: see [`SUSPECT`].
    suspect: Cell<bool>,
    /// Nobody needs the link any more.
    unused: Notify,
}

impl Drop for LinkConn {
    fn drop(&mut self) {
        // Every stream holds the link's Rc, so there is none. The driver writes what is queued (a tunnel's last bytes), and ends.
        self.state.unused.notify_one();
    }
}

impl LinkConn {
    /// Begins HTTP/2 on `io` and starts the driving task. `on_close` is called once when the link ends.
    pub(crate) fn open<T>(io: T, counters: Arc<LinkCounters>, on_close: impl FnOnce() + 'static) -> Rc<Self>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (opener, mut connection) = wire::connect(io, LINK);
        let state = Rc::new(State { streams: Use::new(), suspect: Cell::new(false), unused: Notify::new() });
        let task_state = Rc::clone(&state);
        let (pinger, heard, waker) = (connection.pinger(), connection.heard(), opener.clone());
        tokio::task::spawn_local(async move {
            let guard = OnDrop(Some(on_close));
            let state = task_state;
            let mut dead = pin!(watch(
                pinger,
                heard,
                || state.streams.active() > 0,
                |is| {
                    if !state.suspect.replace(is) && is {
                        // Those that may go elsewhere look at once.
                        waker.wake_readers();
                    }
                }
            ));
            let mut unused = pin!(state.unused.notified());
            let mut closing = pin!(None);
            poll_fn(|cx| {
                if closing.is_none() && unused.as_mut().poll(cx).is_ready() {
                    connection.close();
                    closing.set(Some(tokio::time::sleep(CLOSING)));
                }
                let closed = closing.as_mut().as_pin_mut().is_some_and(|limit| limit.poll(cx).is_ready());
                if closed || connection.poll_closed(cx).is_ready() || dead.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                Poll::Pending
            })
            .await;
            drop(connection);
            drop(guard);
        });
        Rc::new(Self { opener, counters, state })
    }

    pub(crate) fn idle_for(&self) -> Duration {
        self.state.streams.idle_for()
    }

    fn lease(self: &Rc<Self>) -> StreamLease {
        self.state.streams.begun();
        self.counters.stream_opened();
        StreamLease::Link(Rc::clone(self))
    }

    /// Sends a request and waits for the head of its answer; the body is sent meanwhile. A request that is `replaceable` is given up
    /// when the other end becomes suspect. Dropping the future resets the stream.
    pub(crate) async fn call(
        self: &Rc<Self>,
        ask: &Ask<'_>,
        body: Option<&ReplayBody>,
        interim: &mut dyn Interim,
        replaceable: bool,
        whom: &dyn Display,
    ) -> Result<Response, Error> {
        let lease = self.lease();
        let body = body.map_or(Body::Empty, ReplayBody::reader);
        let end = body.is_end();
        let (mut recv, send) = self.opener.open(ask, end).map_err(|error| not_sent(&error, whom))?;
        let mut upload: Option<Upload> =
            if end { None } else { Some(Box::pin(upload_h2(body, SendStream::Link(send)))) };
        let mut interims = Interims::new(interim);
        let head = poll_fn(|cx| {
            poll_upload(&mut upload, cx)?;
            while let Some(head) = recv.interim() {
                interims.pass(head.status, head.headers)?;
            }
            if let Poll::Ready(head) = recv.poll_head(cx) {
                return Poll::Ready(head.map_err(|error| broken(&error, whom)));
            }
            if replaceable && self.state.suspect.get() {
                let details = format!("{whom} is silent, also when asked");
                let error = Error::link(ErrorKind::ConnectionTerminated, details);
                return Poll::Ready(Err(Error { retry: Retry::IfIdempotent, ..error }));
            }
            Poll::Pending
        })
        .await?;
        let body = H2Body::new(RecvStream::Link(recv), BodyOf::Response).holding(lease);
        let (status, headers) = (head.status, head.headers);
        Ok(Response { status, headers, body: Body::H2(body), upgrade: None, upload, tunnel: None })
    }

    /// Opens a stream that becomes a tunnel when `is_tunnel` says so of its answer; another answer is returned as it is.
    pub(crate) async fn connect(
        self: &Rc<Self>,
        ask: &Ask<'_>,
        whom: &dyn Display,
        is_tunnel: impl FnOnce(StatusCode, &HeaderMap) -> bool,
    ) -> Result<Response, Error> {
        let lease = self.lease();
        let (mut recv, send) = self.opener.open(ask, false).map_err(|error| not_sent(&error, whom))?;
        let head = poll_fn(|cx| {
            // A tunnel has nobody who would want them.
            while recv.interim().is_some() {}
            recv.poll_head(cx)
        })
        .await
        .map_err(|error| broken(&error, whom))?;
        let (status, headers, recv) = (head.status, head.headers, RecvStream::Link(recv));
        let (body, tunnel) = if is_tunnel(status, &headers) {
            (Body::Empty, Some(TunnelEnd::H2 { send: SendStream::Link(send), recv, lease: Some(lease) }))
        } else {
            (Body::H2(H2Body::new(recv, BodyOf::Response).holding(lease)), None)
        };
        Ok(Response { status, headers, body, upgrade: None, upload: None, tunnel })
    }
}

impl Pooled for LinkConn {
    fn has_room(&self) -> bool {
        !self.state.suspect.get() && self.active() < self.opener.limit().min(MAX_STREAMS)
    }

    fn is_closed(&self) -> bool {
        self.opener.is_closed()
    }

    fn active(&self) -> usize {
        self.state.streams.active()
    }

    fn ended(&self) {
        self.state.streams.ended();
        self.counters.stream_closed();
    }
}

/// What a stream's end means for its request.
fn broken(error: &wire::Error, whom: &dyn Display) -> Error {
    let terminated = |retry, details| Error::upstream(ErrorKind::ConnectionTerminated, retry, details);
    match error {
        wire::Error::Reset(Reason::REFUSED_STREAM) => {
            terminated(Retry::Safe, format!("{whom} refused the stream (REFUSED_STREAM)"))
        }
        // Told of streams for which nothing was done (RFC 9113 §6.8).
        wire::Error::GoneAway => terminated(Retry::Safe, format!("{whom} is shutting down")),
        wire::Error::Reset(reason) => terminated(Retry::IfIdempotent, format!("{whom} reset the stream: {reason}")),
        wire::Error::Io(error) => terminated(Retry::IfIdempotent, format!("the connection to {whom} broke: {error}")),
        wire::Error::Refused(..) => terminated(Retry::IfIdempotent, format!("{whom}: {error}")),
        error => Error::upstream(ErrorKind::HttpProtocolError, Retry::IfIdempotent, format!("{whom}: {error}")),
    }
}

/// Ends when the other end is dead. A PING is sent every [`PING_EVERY`], and sooner when nothing was `heard` although streams
/// are open (`waits`). Any byte is a sign of life: on a crowded path the answer may stand behind much else.
pub(crate) async fn watch(mut pinger: Pinger, heard: Heard, waits: impl Fn() -> bool, suspect: impl Fn(bool)) {
    let mut since_ping = Duration::ZERO;
    loop {
        tokio::time::sleep(SILENCE).await;
        since_ping += SILENCE;
        let silent = !heard.take() && waits();
        if since_ping < PING_EVERY && !silent {
            continue;
        }
        since_ping = Duration::ZERO;
        let mut answer = pin!(pinger.ping());
        let mut silence = Duration::ZERO;
        loop {
            match tokio::time::timeout(LOOK, answer.as_mut()).await {
                Ok(Ok(())) => break,
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream};

    use super::*;

    /// A link's client whose connection is driven, with what a watch needs.
    fn client(io: DuplexStream) -> (impl Future<Output = Result<(), wire::Error>>, Pinger, Heard) {
        let (_, mut connection) = wire::connect(io, LINK);
        let (pinger, heard) = (connection.pinger(), connection.heard());
        (poll_fn(move |cx| connection.poll_closed(cx)), pinger, heard)
    }

    /// When a peer that takes bytes and never answers becomes suspect, and when it is given up, in whole seconds.
    async fn silent_peer(waits: bool) -> (u64, u64) {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let (connection, pinger, heard) = client(ours);
        let mut nowhere = tokio::io::sink();
        let begun = tokio::time::Instant::now();
        let suspected = Cell::new(None);
        let suspect = |is: bool| {
            assert!(is, "it never says anything");
            suspected.set(suspected.get().or(Some(begun.elapsed().as_secs())));
        };
        tokio::select! {
            () = watch(pinger, heard, || waits, suspect) => {}
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
        let (connection, pinger, heard) = client(ours);
        let serve = async {
            let mut server = wire::accept(theirs, LINK).await.unwrap();
            poll_fn(|cx| server.poll_accept(cx)).await.is_none()
        };
        tokio::select! {
            () = watch(pinger, heard, || true, |is: bool| assert!(!is)) => panic!("a peer that answers PINGs is alive"),
            _ = connection => panic!("the connection ended"),
            _ = serve => panic!("nobody asked"),
            () = tokio::time::sleep(Duration::from_secs(3600)) => {}
        }
    }

    /// A PING's answer may stand behind much else on a crowded path.
    #[tokio::test(start_paused = true)]
    async fn any_byte_is_a_sign_of_life() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let (connection, pinger, heard) = client(ours);
        // SETTINGS, then a WINDOW_UPDATE of the connection every 4 s, and never an answer to a PING.
        let drip = async {
            theirs.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(4)).await;
                theirs.write_all(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1]).await.unwrap();
            }
        };
        tokio::select! {
            () = watch(pinger, heard, || true, |is: bool| assert!(!is)) => panic!("it is alive"),
            result = connection => panic!("the connection ended: {result:?}"),
            () = drip => {}
        }
    }
}
