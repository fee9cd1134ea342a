//! One request and its answer: the types that pass between the client's side, the link and the pod's side, and the two
//! copying futures (the request's body up, the answer's body down) that run side by side in the request's one task.

mod upload;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use crate::body::{Body, Frame, ReplayBody};
use crate::downstream::LocalBoxFuture;
use crate::error::{Error, ErrorKind, Retry};
use crate::h1;
use crate::h2pool::StreamLease;
use crate::h2stream::{RecvStream, SendStream};
use crate::idle::IdleTimer;
use crate::metrics::{OpenGauge, limit_reached};
use crate::pressure::Stall;
use crate::stream::SharedIo;

use upload::poll_stalled;
pub(crate) use upload::{Upload, poll_upload, upload_h1, upload_h2};

/// A request on its way, independent of the HTTP version that it came with.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: PathAndQuery,
    /// As the client wrote it (absolute-form, else Host, else `:authority`).
    pub(crate) authority: Authority,
    pub(crate) https: bool,
    /// End-to-end fields only.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// The protocol to switch to: `Connection: upgrade` or extended CONNECT.
    pub(crate) upgrade: Option<HeaderValue>,
    /// Came with HTTP/2.
    pub(crate) h2: bool,
}

impl Request {
    /// The same request for another path, without its body, which stays with its owner.
    pub(crate) fn with_path(&self, path: PathAndQuery) -> Self {
        Self {
            method: self.method.clone(),
            path,
            authority: self.authority.clone(),
            https: self.https,
            headers: self.headers.clone(),
            body: Body::Empty,
            upgrade: self.upgrade.clone(),
            h2: self.h2,
        }
    }

    pub(crate) fn is_grpc(&self) -> bool {
        is_grpc(&self.headers)
    }

    /// RFC 9110 §9.2.2. An upgrade is never sent twice.
    pub(crate) fn is_idempotent(&self) -> bool {
        self.method.is_idempotent() && self.upgrade.is_none()
    }
}

pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(http::header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

/// The declared length of a body, if the fields tell it.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// An answer whose body has yet to be read.
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// What the pod switched to, when it did.
    pub(crate) upgrade: Option<HeaderValue>,
    /// The rest of the request's body, still being sent.
    pub(crate) upload: Option<Upload>,
    /// After a successful upgrade: the raw stream to the other side.
    pub(crate) tunnel: Option<TunnelEnd>,
}

/// The far end of an upgraded request or a tunnel.
pub(crate) enum TunnelEnd {
    /// A connection of our own to the pod.
    Io {
        io: SharedIo,
        /// Counts the connection.
        #[expect(dead_code, reason = "held for its end")]
        open: OpenGauge,
        /// Ready when the tunnel may no longer be: see [`crate::authorise::revoked`].
        revoked: Option<LocalBoxFuture<'static, ()>>,
    },
    /// A stream of a link (or of an HTTP/2 client).
    H2 {
        send: SendStream,
        recv: RecvStream,
        /// Keeps the connection and counts the stream; `None` towards a client.
        #[expect(dead_code, reason = "held for its end")]
        lease: Option<StreamLease>,
    },
}

/// Takes 1xx answers on the way.
pub(crate) trait Interim {
    fn interim(&mut self, status: StatusCode, headers: &HeaderMap);
}

/// 1xx answers that one request may bring. A pod sends one or two (100, 103); without a limit one that repeats them would
/// fill our memory on behalf of a client that does not read.
const MAX_INTERIMS: usize = 16;
/// Bytes of their fields in all. Source: as for a whole head.
const MAX_INTERIM_BYTES: usize = h1::MAX_HEAD;

/// Passes 1xx answers on, within limits.
pub(crate) struct Interims<'a> {
    sink: &'a mut dyn Interim,
    count: usize,
    bytes: usize,
}

impl<'a> Interims<'a> {
    pub(crate) fn new(sink: &'a mut dyn Interim) -> Self {
        Self { sink, count: 0, bytes: 0 }
    }

    pub(crate) fn pass(&mut self, status: StatusCode, mut headers: HeaderMap) -> Result<(), Error> {
        let broken = |what| Err(Error::upstream(ErrorKind::HttpProtocolError, Retry::Never, what));
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return broken("the pod switched protocols although nobody asked it to");
        }
        h1::strip_hop_by_hop(&mut headers);
        self.count += 1;
        self.bytes += headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
        if self.count > MAX_INTERIMS || self.bytes > MAX_INTERIM_BYTES {
            return broken("the pod sent more interim (1xx) answers than 16 or than 64 KiB of them");
        }
        self.sink.interim(status, &headers);
        Ok(())
    }
}

/// Where an answer goes: an HTTP/1 connection or an HTTP/2 stream. Errors mean that the client is gone.
pub(crate) trait Downstream: Interim {
    /// Begins the answer; `end` when no body follows. May only buffer.
    fn head(&mut self, status: StatusCode, headers: HeaderMap, end: bool) -> Result<(), Gone>;
    /// Sends `data` whole; ready when it was taken. `end` when it is the last.
    fn poll_data(&mut self, cx: &mut Context<'_>, data: &mut Bytes, end: bool) -> Poll<Result<(), Gone>>;
    /// Ends the body. May only buffer.
    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Gone>;
    /// Sends what is buffered.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>>;
    /// Ready when the client has gone away.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
    /// Breaks the answer off so that the client cannot take it for whole.
    fn abort(&mut self);
}

/// The client is no longer there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone;

impl From<Gone> for Error {
    fn from(_: Gone) -> Self {
        Self::client_gone()
    }
}

/// Maps an HTTP/2 error of a stream to the pod or the peer.
pub(crate) fn h2_error(error: &h2::Error, whom: &dyn std::fmt::Display) -> Error {
    if error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM) {
        return Error::upstream(
            ErrorKind::ConnectionTerminated,
            Retry::Safe,
            format!("{whom} refused the stream (REFUSED_STREAM)"),
        );
    }
    if error.is_go_away() && error.is_remote() {
        // h2 ends a stream with the other side's GOAWAY only when its id is above the last one there, so nothing was done for
        // it (RFC 9113 §6.8); those below go on, or end with the connection as an i/o error.
        return Error::upstream(ErrorKind::ConnectionTerminated, Retry::Safe, format!("{whom} is shutting down"));
    }
    if error.is_reset() && error.is_remote() {
        let reason = error.reason().unwrap_or(h2::Reason::INTERNAL_ERROR);
        return Error::upstream(
            ErrorKind::ConnectionTerminated,
            Retry::IfIdempotent,
            format!("{whom} reset the stream: {reason:?}"),
        );
    }
    if error.is_io() {
        return Error::upstream(
            ErrorKind::ConnectionTerminated,
            Retry::IfIdempotent,
            format!("the connection to {whom} broke: {error}"),
        );
    }
    Error::upstream(ErrorKind::HttpProtocolError, Retry::IfIdempotent, format!("{whom}: {error}"))
}

/// Sends an answer down while the rest of the request goes up. Ends when the answer is complete, the client is gone, a
/// side breaks off or nothing moves for `timer`'s limit.
pub(crate) async fn forward<D: Downstream>(
    response: &mut Response,
    down: &mut D,
    request_body: Option<&ReplayBody>,
    timer: &mut IdleTimer,
) -> Result<(), Error> {
    let Response { status, headers, body, upload, upgrade: _, tunnel: _ } = response;
    let ended = body.is_end();
    down.head(*status, std::mem::take(headers), ended)?;
    let mut data = Bytes::new();
    let mut state = if ended { Sending::Flush } else { Sending::Body };
    let mut uploaded = request_body.map_or(0, ReplayBody::moved);
    let mut stall = Stall::default();
    timer.touch();
    let result = poll_fn(|cx| {
        let mut moved = false;
        poll_upload(upload, cx)?;
        if let Some(request_body) = request_body
            && request_body.moved() != uploaded
        {
            uploaded = request_body.moved();
            moved = true;
        }
        loop {
            match state {
                Sending::Data { end } => {
                    let before = data.len();
                    match down.poll_data(cx, &mut data, end) {
                        Poll::Ready(sent) => {
                            sent?;
                            moved = true;
                            stall.moved();
                            state = if end { Sending::Flush } else { Sending::Body };
                        }
                        Poll::Pending => {
                            moved |= data.len() != before;
                            poll_stalled::<()>(&mut stall, data.len() != before, body, cx)
                                .map_err(|given_up| given_up.err().unwrap_or_else(Error::client_gone))?;
                            break;
                        }
                    }
                }
                Sending::Body => match body.poll_frame(cx) {
                    Poll::Ready(Some(Ok(Frame::Data(next)))) => {
                        data = next;
                        state = Sending::Data { end: body.is_end() };
                    }
                    Poll::Ready(Some(Ok(Frame::Trailers(mut trailers)))) => {
                        h1::strip_hop_by_hop(&mut trailers);
                        down.end(Some(trailers))?;
                        state = Sending::Flush;
                    }
                    Poll::Ready(None) => {
                        down.end(None)?;
                        state = Sending::Flush;
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        // Nothing more at the moment: what is buffered must not wait for it.
                        if let Poll::Ready(flushed) = down.poll_flush(cx) {
                            flushed?;
                        }
                        break;
                    }
                },
                Sending::Flush => match down.poll_flush(cx) {
                    Poll::Ready(flushed) => return Poll::Ready(flushed.map_err(Error::from)),
                    Poll::Pending => break,
                },
            }
        }
        if moved {
            timer.touch();
        }
        if down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Error::client_gone()));
        }
        timer.poll_expired(cx).map(|()| {
            limit_reached("stream_idle");
            Err(Error::upstream(
                ErrorKind::HttpResponseTimeout,
                Retry::Never,
                "nothing moved in either direction within the stream idle limit",
            ))
        })
    })
    .await;
    if result.is_err() {
        down.abort();
    }
    result
}

#[derive(Clone, Copy)]
enum Sending {
    Body,
    Data { end: bool },
    Flush,
}

/// Waits for the head of an answer, no longer than the client waits and `timer` allows. (`call` is pinned where it was made: handed
/// over by value it would lie in this future twice, and thousands of bytes would be copied for each request.)
pub(crate) async fn await_response<D: Downstream>(
    mut call: Pin<&mut impl Future<Output = Result<Response, Error>>>,
    request_body: Option<&ReplayBody>,
    timer: &mut IdleTimer,
    gone: &RefCell<&mut D>,
) -> Result<Response, Error> {
    let mut uploaded = 0;
    timer.touch();
    poll_fn(|cx| {
        if let Poll::Ready(result) = call.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        if gone.borrow_mut().poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Error::client_gone()));
        }
        if let Some(request_body) = request_body
            && request_body.moved() != uploaded
        {
            uploaded = request_body.moved();
            timer.touch();
        }
        timer.poll_expired(cx).map(|()| {
            limit_reached("stream_idle");
            Err(Error::upstream(
                ErrorKind::HttpResponseTimeout,
                Retry::Never,
                "the pod gave no answer within the stream idle limit",
            ))
        })
    })
    .await
}

/// Lets 1xx answers pass through a downstream that the waiting side looks at, too.
pub(crate) struct SharedInterim<'a, 'b, D>(pub(crate) &'a RefCell<&'b mut D>);

impl<D: Downstream> Interim for SharedInterim<'_, '_, D> {
    fn interim(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.0.borrow_mut().interim(status, headers);
    }
}

/// Answers a failure in the client's own terms: trailers-only for gRPC, plain text with Proxy-Status otherwise.
pub(crate) async fn answer_error<D: Downstream>(
    down: &mut D,
    error: &Error,
    grpc: bool,
    extra: HeaderMap,
    limit: Duration,
) {
    let (status, headers, text) = error_answer(error, grpc, extra);
    let end = text.is_empty();
    if down.head(status, headers, end).is_err() {
        return;
    }
    let mut data = Bytes::from(text);
    let sent = poll_fn(|cx| {
        if !end {
            ready!(down.poll_data(cx, &mut data, true))?;
        }
        down.poll_flush(cx)
    });
    // A client that does not even take the error is given up.
    if !matches!(tokio::time::timeout(limit, sent).await, Ok(Ok(()))) {
        down.abort();
    }
}

/// Status, fields and text of an error's answer.
pub(crate) fn error_answer(error: &Error, grpc: bool, mut headers: HeaderMap) -> (StatusCode, HeaderMap, String) {
    if let Ok(value) = HeaderValue::try_from(error.proxy_status()) {
        headers.insert("proxy-status", value);
    }
    if grpc {
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(u16::from(error.kind.grpc_status())));
        if let Ok(message) = HeaderValue::try_from(error.grpc_message()) {
            headers.insert("grpc-message", message);
        }
        return (StatusCode::OK, headers, String::new());
    }
    let text = format!("posthouse: {}: {}\n", error.kind.token(), error.details);
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    (error.status(), headers, text)
}
