//! One request and its answer: the types that pass between the client's side, the link and the pod's side, and the two
//! copying futures (the request's body up, the answer's body down) that run side by side in the request's one task.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use crate::body::{Body, Frame, ReplayBody};
use crate::error::{Error, ErrorKind, Retry};
use crate::h1::{self, BodyLength};
use crate::h2conn::StreamLease;
use crate::idle::IdleTimer;
use crate::metrics::{OpenGauge, limit_reached};
use crate::pressure::Stall;
use crate::stream::SharedIo;

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
    },
    /// A stream of a link (or of an HTTP/2 client).
    H2 {
        send: SendStream<Bytes>,
        recv: h2::RecvStream,
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

/// The request's body on its way up. `Ok` when all was sent or the other side wants no more.
pub(crate) type Upload = Pin<Box<dyn Future<Output = Result<(), Error>>>>;

/// Sends a body on an HTTP/2 stream.
pub(crate) async fn upload_h2(mut body: Body, mut send: SendStream<Bytes>) -> Result<(), Error> {
    loop {
        // While the body is quiet, notice when the other side wants no more of it.
        let frame = poll_fn(|cx| match body.poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => match send.poll_reset(cx) {
                Poll::Ready(_) => Poll::Ready(Err(())),
                Poll::Pending => Poll::Pending,
            },
        })
        .await;
        let sent = match frame {
            Err(()) => return Ok(()),
            Ok(Some(Ok(Frame::Data(mut data)))) => {
                let end = body.is_end();
                let mut stall = Stall::default();
                let sent = poll_fn(|cx| {
                    let before = data.len();
                    let sent = poll_send_data(&mut send, cx, &mut data, end);
                    if sent.is_pending() {
                        poll_stalled(&mut stall, data.len() != before, &mut body, cx)?;
                    }
                    sent.map_err(Ok)
                })
                .await;
                let sent = match sent {
                    Err(Err(error)) => {
                        send.send_reset(h2::Reason::CANCEL);
                        return Err(error);
                    }
                    Err(Ok(gone)) => Err(gone),
                    Ok(()) => Ok(()),
                };
                if end && sent.is_ok() {
                    return Ok(());
                }
                sent
            }
            Ok(Some(Ok(Frame::Trailers(trailers)))) => {
                let _ = send.send_trailers(trailers);
                return Ok(());
            }
            Ok(None) => {
                let _ = send.send_data(Bytes::new(), true);
                return Ok(());
            }
            Ok(Some(Err(error))) => {
                send.send_reset(h2::Reason::CANCEL);
                return Err(error);
            }
        };
        if sent.is_err() {
            // The stream is closed: what the other side answers, if anything, says why.
            return Ok(());
        }
    }
}

/// While the other side takes nothing of a body: read ahead, and give the exchange up when memory is short.
fn poll_stalled<E>(
    stall: &mut Stall,
    moved: bool,
    body: &mut Body,
    cx: &mut Context<'_>,
) -> Result<(), Result<E, Error>> {
    if moved {
        stall.moved();
    }
    body.prefetch(cx);
    if stall.poll(cx).is_ready() {
        return Err(Err(Error::internal(
            ErrorKind::ConnectionLimitReached,
            "given up: its reader has stalled, and stalled streams hold more memory than they may",
        )));
    }
    Ok(())
}

/// Sends `data` on an HTTP/2 stream as the peer's windows allow.
pub(crate) fn poll_send_data(
    send: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    data: &mut Bytes,
    end: bool,
) -> Poll<Result<(), Gone>> {
    if data.is_empty() && !end {
        return Poll::Ready(Ok(()));
    }
    loop {
        let mut capacity = send.capacity();
        if capacity == 0 && !data.is_empty() {
            send.reserve_capacity(data.len());
            capacity = send.capacity();
            if capacity == 0 {
                match ready!(send.poll_capacity(cx)) {
                    Some(Ok(n)) => capacity = n,
                    _ => return Poll::Ready(Err(Gone)),
                }
                if capacity == 0 {
                    continue;
                }
            }
        }
        let part = data.split_to(capacity.min(data.len()));
        let last = data.is_empty();
        send.send_data(part, last && end).map_err(|_| Gone)?;
        if last {
            return Poll::Ready(Ok(()));
        }
    }
}

/// Sends a body on an HTTP/1 connection whose head is already in its write buffer.
pub(crate) async fn upload_h1(mut body: Body, io: SharedIo, length: BodyLength) -> Result<(), Error> {
    let chunked = length == BodyLength::Chunked;
    let mut left = match length {
        BodyLength::Length(n) => n,
        BodyLength::None | BodyLength::Chunked | BodyLength::UntilClose => 0,
    };
    let mut trailers = None;
    loop {
        let frame = poll_fn(|cx| match body.poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            // Nothing to send at the moment: what is buffered must not wait for it.
            Poll::Pending => match io.borrow_mut().poll_flush(cx) {
                Poll::Ready(Err(_)) => Poll::Ready(Err(())),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
        })
        .await;
        match frame {
            Err(()) => return Ok(()),
            Ok(Some(Ok(Frame::Data(mut data)))) => {
                if chunked {
                    h1::write_chunk_head(&mut io.borrow_mut().wbuf, data.len());
                } else if left < data.len() as u64 {
                    return Err(Error::client(
                        ErrorKind::HttpRequestError,
                        "the body is longer than its Content-Length",
                    ));
                } else {
                    left -= data.len() as u64;
                }
                let mut stall = Stall::default();
                let written = poll_fn(|cx| {
                    let before = data.len();
                    let written = io.borrow_mut().poll_write_data(cx, &mut data);
                    if written.is_pending() {
                        poll_stalled(&mut stall, data.len() != before, &mut body, cx)?;
                    }
                    written.map_err(|_| Ok(()))
                })
                .await;
                match written {
                    Ok(()) => {}
                    Err(Err(error)) => return Err(error),
                    // The pod may have answered early and closed: its answer decides, if there is one.
                    Err(Ok(())) => return Ok(()),
                }
                if chunked {
                    io.borrow_mut().wbuf.extend_from_slice(h1::CHUNK_END);
                }
            }
            Ok(Some(Ok(Frame::Trailers(fields)))) => trailers = Some(fields),
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(error),
        }
    }
    if chunked {
        if let Some(fields) = &mut trailers {
            h1::strip_hop_by_hop(fields);
        }
        h1::write_last_chunk(&mut io.borrow_mut().wbuf, trailers.as_ref());
    } else if left > 0 {
        return Err(Error::client(ErrorKind::HttpRequestError, "the body is shorter than its Content-Length"));
    }
    if poll_fn(|cx| io.borrow_mut().poll_flush(cx)).await.is_ok() {
        io.borrow_mut().body_open = false;
    }
    Ok(())
}

/// Polls an upload that may still run; `Err` ends the exchange.
pub(crate) fn poll_upload(upload: &mut Option<Upload>, cx: &mut Context<'_>) -> Result<(), Error> {
    if let Some(running) = upload
        && let Poll::Ready(done) = running.as_mut().poll(cx)
    {
        *upload = None;
        done?;
    }
    Ok(())
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
    if error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR) {
        // Streams above the GOAWAY's last id were not looked at; h2 does not tell which, so only idempotent ones go on.
        return Error::upstream(
            ErrorKind::ConnectionTerminated,
            Retry::IfIdempotent,
            format!("{whom} is shutting down"),
        );
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
    response: Response,
    down: &mut D,
    request_body: Option<&ReplayBody>,
    timer: &mut IdleTimer,
) -> Result<(), Error> {
    let Response { status, headers, mut body, mut upload, upgrade: _, tunnel: _ } = response;
    let ended = body.is_end();
    down.head(status, headers, ended)?;
    let mut data = Bytes::new();
    let mut state = if ended { Sending::Flush } else { Sending::Body };
    let mut uploaded = request_body.map_or(0, ReplayBody::moved);
    let mut stall = Stall::default();
    timer.touch();
    let result = poll_fn(|cx| {
        let mut moved = false;
        poll_upload(&mut upload, cx)?;
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
                            poll_stalled::<()>(&mut stall, data.len() != before, &mut body, cx)
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

/// Waits for the head of an answer, no longer than the client waits and `timer` allows.
pub(crate) async fn await_response<D: Downstream>(
    call: impl Future<Output = Result<Response, Error>>,
    request_body: Option<&ReplayBody>,
    timer: &mut IdleTimer,
    gone: &RefCell<&mut D>,
) -> Result<Response, Error> {
    let mut call = pin!(call);
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
