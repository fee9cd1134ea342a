//! The body of an HTTP/2 stream. Flow-control capacity is given back when the next frame is asked for, which is when the
//! other side has taken the one before. While it takes nothing, what arrives is read ahead without giving capacity back:
//! the window still bounds it, small frames are merged, and h2 does not count them against the whole connection.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};

use super::{BodyOf, Frame};
use crate::error::Error;
use crate::h2pool::StreamLease;
use crate::h2stream::RecvStream;
use crate::pressure::Held;

/// Frames below this size are merged when they have to wait.
const SMALL: usize = 4 * 1024;
/// Merged frames up to this size.
const MERGED: usize = 16 * 1024;

pub(crate) struct H2Body {
    recv: RecvStream,
    /// Bytes of the frame that the other side is taking; their capacity is still to be given back.
    taken: usize,
    ahead: VecDeque<Bytes>,
    merged: BytesMut,
    failed: Option<Error>,
    data_done: bool,
    done: bool,
    of: BodyOf,
    held: Held,
    /// Keeps the connection that the stream belongs to.
    lease: Option<StreamLease>,
}

impl H2Body {
    pub(crate) fn new(recv: RecvStream, of: BodyOf) -> Self {
        Self {
            recv,
            taken: 0,
            ahead: VecDeque::new(),
            merged: BytesMut::new(),
            failed: None,
            data_done: false,
            done: false,
            of,
            held: Held::default(),
            lease: None,
        }
    }

    /// Keeps `lease` as long as the body lives.
    pub(crate) fn holding(mut self, lease: StreamLease) -> Self {
        self.lease = Some(lease);
        self
    }

    pub(crate) fn is_end(&self) -> bool {
        self.ahead.is_empty() && self.merged.is_empty() && self.failed.is_none() && (self.done || self.recv.is_end())
    }

    /// Reads what has come while the other side takes nothing.
    pub(crate) fn prefetch(&mut self, cx: &mut Context<'_>) {
        while !self.data_done {
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) if data.len() < SMALL => {
                    self.merged.extend_from_slice(&data);
                    if self.merged.len() >= MERGED {
                        self.ahead.push_back(self.merged.split().freeze());
                    }
                }
                Poll::Ready(Some(Ok(data))) => {
                    if !self.merged.is_empty() {
                        self.ahead.push_back(self.merged.split().freeze());
                    }
                    self.ahead.push_back(data);
                }
                Poll::Ready(Some(Err(_))) => {
                    self.data_done = true;
                    self.failed = Some(self.broken());
                }
                Poll::Ready(None) => self.data_done = true,
                Poll::Pending => break,
            }
        }
        let used = self.recv.used();
        self.held.set(used);
    }

    fn broken(&self) -> Error {
        match self.of {
            BodyOf::Request => Error::client_gone(),
            BodyOf::Response => self.of.broken("the stream was reset in the middle of the body"),
        }
    }

    fn take(&mut self, data: Bytes) -> Poll<Option<Result<Frame, Error>>> {
        self.taken = data.len();
        Poll::Ready(Some(Ok(Frame::Data(data))))
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        if self.taken > 0 {
            self.recv.release(self.taken);
            self.taken = 0;
            if !self.held.is_zero() {
                let used = self.recv.used();
                self.held.set(used);
            }
        }
        if let Some(data) = self.ahead.pop_front() {
            return self.take(data);
        }
        if !self.merged.is_empty() {
            let data = self.merged.split().freeze();
            return self.take(data);
        }
        if let Some(error) = self.failed.take() {
            self.done = true;
            return Poll::Ready(Some(Err(error)));
        }
        while !self.data_done {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => return self.take(data),
                Some(Err(_)) => {
                    self.data_done = true;
                    self.done = true;
                    return Poll::Ready(Some(Err(self.broken())));
                }
                None => self.data_done = true,
            }
        }
        if self.done {
            return Poll::Ready(None);
        }
        let trailers = ready!(self.recv.poll_trailers(cx));
        self.done = true;
        match trailers {
            Ok(Some(mut trailers)) => {
                // Here, because HTTP/1 bodies have theirs filtered by the decoder and not every way on filters.
                crate::h1::strip_hop_by_hop(&mut trailers);
                Poll::Ready(Some(Ok(Frame::Trailers(trailers))))
            }
            Ok(None) => Poll::Ready(None),
            Err(_) => Poll::Ready(Some(Err(self.of.broken("the stream was reset before its trailers")))),
        }
    }
}
