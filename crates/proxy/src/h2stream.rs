//! The two kinds of HTTP/2 stream as one: of a client's or a pod's connection (the `h2` crate) and of a link (`posthouse-wire`).
//! What reads a body, answers or carries a tunnel need not know which it has.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use posthouse_wire as wire;

use crate::exchange::Gone;

pub(crate) use wire::Reason;

/// What goes on a stream.
pub(crate) enum SendStream {
    H2(h2::SendStream<Bytes>),
    Link(wire::SendStream),
}

/// What comes on a stream.
pub(crate) enum RecvStream {
    H2(h2::RecvStream),
    Link(wire::RecvStream),
}

impl SendStream {
    /// Sends `data` as the other end's windows allow; ready when all of it was taken.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes, end: bool) -> Poll<Result<(), Gone>> {
        match self {
            Self::H2(send) => poll_send_h2(send, cx, data, end),
            Self::Link(send) => send.poll_send(cx, data, end).map_err(|_| Gone),
        }
    }

    /// Ends the body.
    pub(crate) fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Gone> {
        match (self, trailers) {
            (Self::H2(send), Some(trailers)) => send.send_trailers(trailers).map_err(|_| Gone),
            (Self::H2(send), None) => send.send_data(Bytes::new(), true).map_err(|_| Gone),
            (Self::Link(send), Some(trailers)) => send.trailers(&trailers).map_err(|_| Gone),
            (Self::Link(send), None) => send.end().map_err(|_| Gone),
        }
    }

    pub(crate) fn reset(&mut self, reason: Reason) {
        match self {
            Self::H2(send) => send.send_reset(reason.code().into()),
            Self::Link(send) => send.reset(reason),
        }
    }

    /// Ready when the other end wants no more, or is gone.
    pub(crate) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H2(send) => send.poll_reset(cx).map(|_| ()),
            Self::Link(send) => send.poll_reset(cx).map(|_| ()),
        }
    }
}

fn poll_send_h2(
    send: &mut h2::SendStream<Bytes>,
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

impl RecvStream {
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self {
            Self::H2(recv) => recv.poll_data(cx).map_err(io::Error::other),
            Self::Link(recv) => recv.poll_data(cx).map_err(io::Error::other),
        }
    }

    pub(crate) fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<HeaderMap>>> {
        match self {
            Self::H2(recv) => recv.poll_trailers(cx).map_err(io::Error::other),
            Self::Link(recv) => recv.poll_trailers(cx).map_err(io::Error::other),
        }
    }

    pub(crate) fn is_end(&self) -> bool {
        match self {
            Self::H2(recv) => recv.is_end_stream(),
            Self::Link(recv) => recv.is_end(),
        }
    }

    /// Bytes that have come and whose capacity was not given back.
    pub(crate) fn used(&mut self) -> usize {
        match self {
            Self::H2(recv) => recv.flow_control().used_capacity(),
            Self::Link(recv) => recv.used(),
        }
    }

    /// Gives flow-control capacity back for bytes that were taken.
    pub(crate) fn release(&mut self, bytes: usize) {
        match self {
            // Fails only when the stream is gone, which the next read tells.
            Self::H2(recv) => {
                let _ = recv.flow_control().release_capacity(bytes);
            }
            Self::Link(recv) => recv.release(bytes),
        }
    }
}
