//! Message bodies on their way through, pulled frame by frame: a frame is asked for only when the one before has been
//! taken by the other side, so a slow reader slows the writer down from end to end. [`Replay`] keeps the beginning
//! of a request's body, so that it can be sent once more.

mod h2;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;

use crate::error::{Error, ErrorKind, Retry};
use crate::h1::{BodyLength, Chunk, ChunkDecoder};
use crate::pods::PodLease;
use crate::stream::{READ_BODY, SharedIo};

pub(crate) use h2::H2Body;

/// A part of a body.
#[derive(Debug)]
pub(crate) enum Frame {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// A body, whatever it comes from.
pub(crate) enum Body {
    Empty,
    H1(H1Body),
    H2(H2Body),
    Replay(ReplayReader),
}

impl Body {
    /// The next frame; `None` at the end.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::H1(body) => body.poll_frame(cx),
            Self::H2(body) => body.poll_frame(cx),
            Self::Replay(body) => body.poll_frame(cx),
        }
    }

    /// Called while the other side takes nothing: reads ahead what would otherwise pile up in small pieces elsewhere.
    pub(crate) fn prefetch(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::H2(body) => body.prefetch(cx),
            Self::Replay(body) => body.prefetch(cx),
            // Read from a socket when wanted: what waits, waits in the kernel.
            Self::Empty | Self::H1(_) => {}
        }
    }

    /// Whether nothing more can come (may be false although nothing comes).
    pub(crate) fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::H1(body) => body.is_end(),
            Self::H2(body) => body.is_end(),
            Self::Replay(body) => body.is_end(),
        }
    }
}

/// Who is to blame when a body breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyOf {
    Request,
    Response,
}

impl BodyOf {
    fn broken(self, details: &'static str) -> Error {
        match self {
            Self::Request => Error::client(ErrorKind::HttpRequestError, details),
            Self::Response => Error::upstream(ErrorKind::HttpResponseIncomplete, Retry::Never, details),
        }
    }
}

enum Decode {
    Length(u64),
    Chunked(Box<ChunkDecoder>),
    UntilClose,
    Done,
}

/// The body of an HTTP/1 message, read from its connection.
pub(crate) struct H1Body {
    io: SharedIo,
    decode: Decode,
    of: BodyOf,
    /// Takes the connection back when the body has ended well.
    lease: Option<PodLease>,
}

impl H1Body {
    pub(crate) fn new(io: SharedIo, length: BodyLength, of: BodyOf, lease: Option<PodLease>) -> Self {
        let decode = match length {
            BodyLength::None | BodyLength::Length(0) => Decode::Done,
            BodyLength::Length(n) => Decode::Length(n),
            BodyLength::Chunked => Decode::Chunked(Box::new(ChunkDecoder::new())),
            BodyLength::UntilClose => Decode::UntilClose,
        };
        let mut body = Self { io, decode, of, lease };
        if body.is_end() {
            body.end();
        } else if of == BodyOf::Request {
            body.io.borrow_mut().body_open = true;
        }
        body
    }

    fn is_end(&self) -> bool {
        matches!(self.decode, Decode::Done)
    }

    fn end(&mut self) {
        self.decode = Decode::Done;
        if self.of == BodyOf::Request {
            self.io.borrow_mut().body_open = false;
        }
        if let Some(lease) = self.lease.take() {
            lease.release(&self.io);
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        loop {
            let mut io = self.io.borrow_mut();
            match &mut self.decode {
                Decode::Done => return Poll::Ready(None),
                Decode::Length(left) if !io.rbuf.is_empty() => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(io.rbuf.len());
                    let data = io.rbuf.split_to(take).freeze();
                    *left -= take as u64;
                    let done = *left == 0;
                    drop(io);
                    if done {
                        self.end();
                    }
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Decode::UntilClose if !io.rbuf.is_empty() => {
                    return Poll::Ready(Some(Ok(Frame::Data(io.rbuf.split().freeze()))));
                }
                Decode::Chunked(decoder) if !io.rbuf.is_empty() => match decoder.decode(&mut io.rbuf) {
                    Ok(Chunk::Data(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                    Ok(Chunk::End(trailers)) => {
                        drop(io);
                        self.end();
                        return Poll::Ready(trailers.map(|t| Ok(Frame::Trailers(t))));
                    }
                    Ok(Chunk::NeedMore) => {}
                    Err(_) => {
                        drop(io);
                        self.decode = Decode::Done;
                        return Poll::Ready(Some(Err(self.of.broken("the body's chunked coding is malformed"))));
                    }
                },
                Decode::Length(_) | Decode::UntilClose | Decode::Chunked(_) => {}
            }
            let read = ready!(io.poll_fill(cx, READ_BODY));
            drop(io);
            match read {
                Ok(0) if matches!(self.decode, Decode::UntilClose) => {
                    self.decode = Decode::Done;
                    return Poll::Ready(None);
                }
                Ok(0) | Err(_) => {
                    self.decode = Decode::Done;
                    return Poll::Ready(Some(Err(self.of.broken("the connection closed in the middle of the body"))));
                }
                Ok(_) => {}
            }
        }
    }
}

/// Bytes of a request's body that are kept for a second try. 64 KiB: linkerd2-proxy's replay window.
pub(crate) const REPLAY_WINDOW: usize = 64 * 1024;

/// A request's body that can be read again from its start as long as it fits into the window.
pub(crate) struct Replay {
    source: Body,
    frames: VecDeque<Kept>,
    kept: usize,
    /// Too long, or no longer wanted: frames go through without being kept.
    committed: bool,
    ended: bool,
    failed: Option<Error>,
}

enum Kept {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// A handle on a [`Replay`], which each try reads with a reader of its own.
#[derive(Clone)]
pub(crate) struct ReplayBody {
    inner: Rc<RefCell<Replay>>,
    /// Counts frames that moved, so that the idle limit sees uploads, too.
    moved: Rc<Cell<u64>>,
}

impl ReplayBody {
    pub(crate) fn new(source: Body) -> Self {
        let replay = Replay { source, frames: VecDeque::new(), kept: 0, committed: false, ended: false, failed: None };
        Self { inner: Rc::new(RefCell::new(replay)), moved: Rc::new(Cell::new(0)) }
    }

    /// A body that starts at the beginning.
    pub(crate) fn reader(&self) -> Body {
        Body::Replay(ReplayReader { body: self.clone(), position: 0 })
    }

    /// Whether a reader made now would see the whole body.
    pub(crate) fn can_replay(&self) -> bool {
        let replay = self.inner.borrow();
        !replay.committed && replay.failed.is_none()
    }

    /// No more tries: stop keeping.
    pub(crate) fn commit(&self) {
        self.inner.borrow_mut().committed = true;
    }

    /// Frames that have gone through so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.get()
    }
}

/// One try's view of a [`Replay`].
pub(crate) struct ReplayReader {
    body: ReplayBody,
    position: usize,
}

impl ReplayReader {
    fn is_end(&self) -> bool {
        let replay = self.body.inner.borrow();
        self.position >= replay.frames.len() && (replay.ended || replay.source.is_end()) && replay.failed.is_none()
    }

    fn prefetch(&mut self, cx: &mut Context<'_>) {
        let mut replay = self.body.inner.borrow_mut();
        if !replay.ended && replay.failed.is_none() {
            replay.source.prefetch(cx);
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let mut replay = self.body.inner.borrow_mut();
        if let Some(kept) = replay.frames.get(self.position) {
            let frame = match kept {
                Kept::Data(data) => Frame::Data(data.clone()),
                Kept::Trailers(trailers) => Frame::Trailers(trailers.clone()),
            };
            self.position += 1;
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(error) = &replay.failed {
            return Poll::Ready(Some(Err(error.clone())));
        }
        if replay.ended {
            return Poll::Ready(None);
        }
        if replay.committed && !replay.frames.is_empty() {
            replay.frames.clear();
            self.position = 0;
        }
        let frame = ready!(replay.source.poll_frame(cx));
        self.body.moved.set(self.body.moved.get() + 1);
        match frame {
            None => {
                replay.ended = true;
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                replay.failed = Some(error.clone());
                Poll::Ready(Some(Err(error)))
            }
            Some(Ok(frame)) => {
                if !replay.committed {
                    let (size, kept) = match &frame {
                        Frame::Data(data) => (data.len(), Kept::Data(data.clone())),
                        Frame::Trailers(trailers) => {
                            let size = trailers.iter().map(|(n, v)| n.as_str().len() + v.len()).sum();
                            (size, Kept::Trailers(trailers.clone()))
                        }
                    };
                    // Many tiny frames cost more than their bytes.
                    if replay.kept + size + 64 > REPLAY_WINDOW {
                        replay.committed = true;
                    } else {
                        replay.kept += size + 64;
                        replay.frames.push_back(kept);
                        self.position += 1;
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }
}
