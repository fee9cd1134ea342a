//! The two ways to answer: on an HTTP/1 connection (framing, keep-alive) and on an HTTP/2 stream (of a client or of a
//! link). What both promise is in `exchange::Downstream`.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use posthouse_wire as wire;

use crate::error::{Error, ErrorKind};
use crate::exchange::{Downstream, Gone, Interim, content_length};
use crate::h1::{self, BodyLength};
use crate::h2stream::{Reason, SendStream};
use crate::stream::{SharedIo, Stream};
use crate::worker::Drain;

/// Bytes of following requests that are read ahead while one is served; they wait in memory.
const READ_AHEAD: usize = 64 * 1024;
/// Chunks up to this size are copied so that head, data and end leave in one write.
const COPY_CHUNK: usize = 16 * 1024;

/// Answers on an HTTP/1 connection.
pub(crate) struct H1Downstream {
    io: SharedIo,
    http10: bool,
    to_head: bool,
    /// Asked when the head is written: draining may begin while the pod still works.
    drain: Rc<Drain>,
    /// Whether the connection may be used for another request; true only as long as nothing speaks against it.
    pub(crate) keep_alive: bool,
    pub(crate) head_sent: bool,
    /// The answer was broken off: the connection must be dropped as it is, not closed in good order.
    pub(crate) aborted: bool,
    framing: Framing,
    /// The current data's chunk head (or its part of the length) is done.
    data_begun: bool,
}

/// How the answer's body is delimited. Bytes are written for no other reason than that one of these allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// HEAD, 204, 304: there is no body, whatever the pod sends. (HTTP/2 does not forbid DATA behind a 204; written here, it
    /// would be the answer to the client's next request.)
    Bodiless,
    /// So many bytes are still owed.
    Length(u64),
    Chunked,
    UntilClose,
}

impl H1Downstream {
    pub(crate) fn new(io: SharedIo, method: &Method, http10: bool, keep_alive: bool, drain: Rc<Drain>) -> Self {
        Self {
            io,
            http10,
            to_head: *method == Method::HEAD,
            drain,
            keep_alive,
            head_sent: false,
            aborted: false,
            framing: Framing::Bodiless,
            data_begun: false,
        }
    }
}

impl Interim for H1Downstream {
    fn interim(&mut self, status: StatusCode, headers: &HeaderMap) {
        if self.http10 || self.head_sent || status == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        let mut io = self.io.borrow_mut();
        // A 1xx that the client does not take must not fill our memory.
        if io.wbuf.len() > READ_AHEAD {
            return;
        }
        h1::write_interim_head(&mut io.wbuf, status, headers);
        // Sent now if the socket takes it, else with what follows; a failure is told by the next write.
        let _ = io.poll_flush(&mut Context::from_waker(Waker::noop()));
    }
}

impl Downstream for H1Downstream {
    fn head(&mut self, status: StatusCode, headers: HeaderMap, end: bool) -> Result<(), Gone> {
        let bodiless = self.to_head
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED
            || status.is_informational();
        let length = if bodiless {
            BodyLength::None
        } else if let Some(n) = content_length(&headers) {
            self.framing = Framing::Length(n);
            // A length that is promised without a body: the client must not wait for it on this connection.
            self.keep_alive &= !end || n == 0;
            BodyLength::Length(n)
        } else if end {
            self.framing = Framing::Length(0);
            BodyLength::Length(0)
        } else if self.http10 {
            self.framing = Framing::UntilClose;
            self.keep_alive = false;
            BodyLength::UntilClose
        } else {
            self.framing = Framing::Chunked;
            BodyLength::Chunked
        };
        if self.drain.is_draining() {
            self.keep_alive = false;
        }
        if (status.is_client_error() || status.is_server_error()) && self.io.borrow().body_open {
            // The rest of the request's body is of no use to anybody, so the connection will not be kept: say so.
            self.keep_alive = false;
        }
        self.head_sent = true;
        h1::write_response_head(
            &mut self.io.borrow_mut().wbuf,
            status,
            &headers,
            length,
            self.keep_alive,
            self.http10,
            None,
        );
        Ok(())
    }

    fn poll_data(&mut self, cx: &mut Context<'_>, data: &mut Bytes, end: bool) -> Poll<Result<(), Gone>> {
        let mut io = self.io.borrow_mut();
        if !std::mem::replace(&mut self.data_begun, true) {
            match &mut self.framing {
                Framing::Bodiless if data.is_empty() => {}
                // Our own error's text: the head has its length, as it would for GET. (h2 refuses DATA of a pod here.)
                Framing::Bodiless if self.to_head => data.clear(),
                Framing::Bodiless => {
                    self.keep_alive = false;
                    return Poll::Ready(Err(Gone));
                }
                Framing::Length(owed) => {
                    let Some(left) = owed.checked_sub(data.len() as u64) else {
                        // More than was promised would be read as the next answer.
                        return Poll::Ready(Err(Gone));
                    };
                    *owed = left;
                    self.keep_alive &= !end || left == 0;
                }
                Framing::UntilClose => {}
                Framing::Chunked => {
                    if !data.is_empty() {
                        h1::write_chunk_head(&mut io.wbuf, data.len());
                        if data.len() <= COPY_CHUNK {
                            io.wbuf.extend_from_slice(data);
                            io.wbuf.extend_from_slice(h1::CHUNK_END);
                            data.clear();
                        }
                    }
                    if end && data.is_empty() {
                        h1::write_last_chunk(&mut io.wbuf, None);
                    }
                }
            }
        }
        let large_chunk = self.framing == Framing::Chunked && !data.is_empty();
        ready!(io.poll_write_data(cx, data)).map_err(|_| Gone)?;
        if large_chunk {
            io.wbuf.extend_from_slice(h1::CHUNK_END);
            if end {
                h1::write_last_chunk(&mut io.wbuf, None);
            }
        }
        self.data_begun = false;
        Poll::Ready(Ok(()))
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Gone> {
        match self.framing {
            Framing::Chunked => h1::write_last_chunk(&mut self.io.borrow_mut().wbuf, trailers.as_ref()),
            Framing::Length(owed) => self.keep_alive &= owed == 0,
            Framing::Bodiless | Framing::UntilClose => {}
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        self.io.borrow_mut().poll_flush(cx).map_err(|_| Gone)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut io = self.io.borrow_mut();
        // While the request's body is read, its reader sees the end of the stream.
        if io.body_open {
            return Poll::Pending;
        }
        while io.rbuf.len() < READ_AHEAD {
            match ready!(io.poll_fill(cx, 0)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    fn abort(&mut self) {
        self.keep_alive = false;
        self.aborted = true;
        if self.head_sent
            && let Stream::Tcp(stream) = &self.io.borrow().stream
        {
            // RST instead of FIN, or an answer that lasts until the close would look complete.
            let _ = socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
        }
    }
}

/// Answers on an HTTP/2 stream.
pub(crate) struct H2Downstream {
    state: Answering,
    /// Answers to HEAD have no body, also those that we make ourselves.
    to_head: bool,
    /// The request is an extended CONNECT.
    tunnel_asked: bool,
}

enum Answering {
    /// On a client's stream; no head was sent.
    Client(SendResponse<Bytes>),
    /// On a link's stream; no head was sent.
    Link(wire::SendStream),
    /// The head was sent.
    Begun(SendStream),
    Gone,
}

impl H2Downstream {
    /// Answers a client's request.
    pub(crate) fn new(respond: SendResponse<Bytes>, method: &Method) -> Self {
        Self { state: Answering::Client(respond), to_head: *method == Method::HEAD, tunnel_asked: false }
    }

    /// Answers a request that came over a link.
    pub(crate) fn of_link(send: wire::SendStream, method: &Method) -> Self {
        Self { state: Answering::Link(send), to_head: *method == Method::HEAD, tunnel_asked: false }
    }

    /// From now on only [`H2Downstream::tunnel`] answers with success: to RFC 8441 §4 any 2xx is the tunnel, and a pod's plain
    /// 200 would make its page bytes of the other protocol.
    pub(crate) fn ask_tunnel(&mut self) {
        self.tunnel_asked = true;
    }

    /// Begins an answer that stays a raw stream.
    pub(crate) fn tunnel(mut self, status: StatusCode, headers: HeaderMap) -> Result<SendStream, Gone> {
        self.begin(status, headers, false)?;
        match self.state {
            Answering::Begun(send) => Ok(send),
            _ => Err(Gone),
        }
    }

    fn begin(&mut self, status: StatusCode, headers: HeaderMap, end: bool) -> Result<(), Gone> {
        match std::mem::replace(&mut self.state, Answering::Gone) {
            Answering::Client(mut respond) => {
                let send = respond.send_response(response(status, headers), end).map_err(|_| Gone)?;
                self.state = Answering::Begun(SendStream::H2(send));
            }
            Answering::Link(mut send) => {
                send.answer(status, &headers, end).map_err(|_| Gone)?;
                self.state = Answering::Begun(SendStream::Link(send));
            }
            Answering::Begun(_) | Answering::Gone => return Err(Gone),
        }
        Ok(())
    }
}

fn response(status: StatusCode, headers: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

impl Interim for H2Downstream {
    fn interim(&mut self, status: StatusCode, headers: &HeaderMap) {
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        // A stream that is gone is noticed by the waiting side.
        match &mut self.state {
            Answering::Client(respond) => {
                let _ = respond.send_informational(response(status, headers.clone()));
            }
            Answering::Link(send) => {
                let _ = send.answer(status, headers, false);
            }
            Answering::Begun(_) | Answering::Gone => {}
        }
    }
}

impl Downstream for H2Downstream {
    fn head(&mut self, mut status: StatusCode, mut headers: HeaderMap, end: bool) -> Result<(), Gone> {
        let end = end || self.to_head;
        if self.tunnel_asked && status.is_success() {
            let error = Error::client(
                ErrorKind::HttpUpgradeFailed,
                format!("the pod answered {} instead of switching protocols", status.as_u16()),
            );
            status = error.status();
            if let Ok(value) = HeaderValue::try_from(error.proxy_status()) {
                headers.insert("proxy-status", value);
            }
        }
        self.begin(status, headers, end)
    }

    fn poll_data(&mut self, cx: &mut Context<'_>, data: &mut Bytes, end: bool) -> Poll<Result<(), Gone>> {
        match &mut self.state {
            Answering::Begun(_) if self.to_head => {
                data.clear();
                Poll::Ready(Ok(()))
            }
            Answering::Begun(send) => send.poll_send(cx, data, end),
            Answering::Client(_) | Answering::Link(_) | Answering::Gone => Poll::Ready(Err(Gone)),
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Gone> {
        match &mut self.state {
            Answering::Begun(_) if self.to_head => Ok(()),
            Answering::Begun(send) => send.end(trailers),
            Answering::Client(_) | Answering::Link(_) | Answering::Gone => Err(Gone),
        }
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        Poll::Ready(Ok(()))
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.state {
            Answering::Client(respond) => respond.poll_reset(cx).map(|_| ()),
            Answering::Link(send) => send.poll_reset(cx).map(|_| ()),
            Answering::Begun(send) => send.poll_reset(cx),
            Answering::Gone => Poll::Ready(()),
        }
    }

    fn abort(&mut self) {
        match &mut self.state {
            // Whole since its head; a reset could still overtake that.
            Answering::Begun(_) if self.to_head => {}
            Answering::Begun(send) => send.reset(Reason::INTERNAL_ERROR),
            Answering::Client(respond) => respond.send_reset(h2::Reason::INTERNAL_ERROR),
            Answering::Link(send) => send.reset(Reason::INTERNAL_ERROR),
            Answering::Gone => {}
        }
    }
}

/// Keeps a future's type out of a caller's: recursion (a tunnel inside a connection) needs it.
pub(crate) type LocalBoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;
