//! A connection over its byte stream, and the handles of its streams.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::error::{Error, Reason};
use crate::frame::{self, Head};
use crate::head::{Ask, RequestHead, ResponseHead};
use crate::state::{Config, Core, Role};

/// Room for a read: what many small messages fill, and a quarter of the largest frame.
const READ: usize = 16 * 1024;
/// Bytes that are read in one turn before what they ask for is written.
const TURN: usize = 256 * 1024;
/// A larger empty buffer is given back.
const KEEP: usize = 64 * 1024;

type Shared = Rc<RefCell<Core>>;

/// A connection: reads, dispatches and writes when it is polled, which one task does.
pub struct Connection<T> {
    io: T,
    core: Shared,
    input: BytesMut,
    heard: Rc<Cell<bool>>,
    /// The other end has closed its half.
    eof: bool,
    preface: usize,
    /// Bytes that were read since the last write.
    turn: usize,
}

/// Whether the other end has sent anything since the last look.
pub struct Heard(Rc<Cell<bool>>);

impl Heard {
    /// Tells, and forgets.
    #[must_use]
    pub fn take(&self) -> bool {
        self.0.replace(false)
    }
}

/// Opens streams.
#[derive(Clone)]
pub struct Opener(Shared);

/// Asks the other end for a sign of life.
pub struct Pinger(Shared);

/// Begins a connection as its client.
pub fn connect<T: AsyncRead + AsyncWrite + Unpin>(io: T, config: Config) -> (Opener, Connection<T>) {
    let connection = Connection::new(io, Role::Client, config);
    (Opener(Rc::clone(&connection.core)), connection)
}

/// Takes a connection as its server, once the client has said that it speaks HTTP/2.
///
/// # Errors
/// What comes is not HTTP/2, or the stream broke.
pub async fn accept<T: AsyncRead + AsyncWrite + Unpin>(io: T, config: Config) -> Result<Connection<T>, Error> {
    let mut connection = Connection::new(io, Role::Server, config);
    poll_fn(|cx| connection.poll_preface(cx)).await?;
    Ok(connection)
}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection<T> {
    fn new(io: T, role: Role, config: Config) -> Self {
        let core = Core::new(role, config);
        let heard = Rc::clone(&core.heard);
        let preface = if role == Role::Server { frame::PREFACE.len() } else { 0 };
        Self { io, core: Rc::new(RefCell::new(core)), input: BytesMut::new(), heard, eof: false, preface, turn: 0 }
    }

    /// For whoever watches over the other end.
    #[must_use]
    pub fn heard(&self) -> Heard {
        Heard(Rc::clone(&self.heard))
    }

    /// For whoever watches over the other end.
    #[must_use]
    pub fn pinger(&self) -> Pinger {
        Pinger(Rc::clone(&self.core))
    }

    /// Tells the other end to open no more streams. Those that are open go on; the connection ends with the last.
    pub fn leave(&mut self) {
        self.core.borrow_mut().leave();
    }

    /// Says good-bye: no streams are opened or taken any more, and the connection ends with the last that is open.
    pub fn close(&mut self) {
        self.core.borrow_mut().close();
    }

    /// Streams of the other end that were refused since the last call: more than may be open, or it takes no answers.
    pub fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.core.borrow_mut().refused)
    }

    fn poll_preface(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // Our SETTINGS go first: a client under TLS 1.3 learns only from what we send that its certificate was taken.
        if let Poll::Ready(Err(error)) = self.core.borrow_mut().out.poll_flush(&mut self.io, cx) {
            return Poll::Ready(Err(Error::io(&error)));
        }
        while self.preface > 0 {
            let said = self.input.len().min(self.preface);
            if self.input.get(..said) != frame::PREFACE.get(..said) {
                return Poll::Ready(Err(Error::Protocol(Reason::PROTOCOL_ERROR, "no HTTP/2 preface")));
            }
            if said == self.preface {
                self.input.advance(said);
                self.preface = 0;
                // What came with it: the next read may be long in coming.
                self.dispatch(&mut Rc::clone(&self.core).borrow_mut());
                break;
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) => return Poll::Ready(Err(Error::Io("the connection closed before its preface".into()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(Error::io(&error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.is_empty() && self.input.capacity() > KEEP {
            self.input = BytesMut::new();
        }
        if self.input.capacity() - self.input.len() < READ / 4 {
            self.input.reserve(READ);
        }
        // `read_buf` keeps no state between polls, so a fresh one each time loses nothing.
        let read = ready!(pin!(self.io.read_buf(&mut self.input)).poll(cx));
        if matches!(read, Ok(n) if n > 0) {
            self.heard.set(true);
        }
        Poll::Ready(read)
    }

    /// Hands on the frames that are whole.
    fn dispatch(&mut self, core: &mut Core) {
        let max_frame = core.max_frame();
        while core.failed().is_none() {
            let Some(head) = Head::read(&self.input) else { return };
            if head.len > max_frame {
                return core.fault((Reason::FRAME_SIZE_ERROR, "a frame above our limit"));
            }
            let whole = frame::HEADER + head.len;
            let Some(payload) = self.input.get(frame::HEADER..whole) else {
                // Room for the rest at once.
                return self.input.reserve(whole - self.input.len());
            };
            let taken = if core.takes_whole(head) {
                self.input.advance(frame::HEADER);
                let data = self.input.split_to(head.len).freeze();
                core.receive_data(head, data)
            } else {
                let taken = core.receive(head, payload);
                self.input.advance(whole);
                taken
            };
            if let Err(fatal) = taken {
                return core.fault(fatal);
            }
        }
    }

    /// Reads and writes as far as possible. Ready with a stream that the other end opened, with None when the connection has ended in
    /// good order, or with what ended it.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Accepted, Error>>> {
        let shared = Rc::clone(&self.core);
        shared.borrow_mut().begin_turn(cx);
        loop {
            let mut core = shared.borrow_mut();
            if let Some(error) = core.failed().cloned() {
                // The other end learns why, if it still reads.
                let _ = core.out.poll_flush(&mut self.io, cx);
                return Poll::Ready(Some(Err(error)));
            }
            if let Some(opened) = core.next_opened() {
                drop(core);
                let handle = |writes| Handle { core: Rc::clone(&shared), key: opened.key, writes };
                let (head, recv, send) = (opened.head, RecvStream(handle(false)), SendStream(handle(true)));
                return Poll::Ready(Some(Ok(Accepted { head, recv, send })));
            }
            if self.eof || self.turn >= TURN {
                break;
            }
            drop(core);
            match self.poll_fill(cx) {
                Poll::Ready(Ok(0)) => self.eof = true,
                Poll::Ready(Ok(n)) => {
                    self.turn += n;
                    self.dispatch(&mut shared.borrow_mut());
                }
                Poll::Ready(Err(error)) => shared.borrow_mut().fail(Error::io(&error)),
                Poll::Pending => break,
            }
        }
        let mut core = shared.borrow_mut();
        if std::mem::take(&mut self.turn) >= TURN {
            cx.waker().wake_by_ref();
        }
        match core.out.poll_flush(&mut self.io, cx) {
            Poll::Ready(Ok(())) | Poll::Pending => {}
            Poll::Ready(Err(error)) => {
                let error = Error::io(&error);
                core.fail(error.clone());
                return Poll::Ready(Some(Err(error)));
            }
        }
        core.serve_waiting();
        if core.is_over() {
            // The other end is told below, too (TLS: close_notify).
            return Pin::new(&mut self.io).poll_shutdown(cx).map(|_| None);
        }
        if self.eof {
            let ended_well = core.all_ended() && self.input.is_empty();
            core.fail(Error::Io("the other end closed the connection".into()));
            return Poll::Ready(if ended_well { None } else { core.failed().cloned().map(Err) });
        }
        Poll::Pending
    }

    /// [`Self::poll_accept`] for a client, to which no streams are opened: ready when the connection has ended.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match ready!(self.poll_accept(cx)) {
            Some(Err(error)) => Poll::Ready(Err(error)),
            Some(Ok(_)) | None => Poll::Ready(Ok(())),
        }
    }
}

impl<T> Drop for Connection<T> {
    fn drop(&mut self) {
        // Nobody drives its streams any more.
        self.core.borrow_mut().fail(Error::Io("the connection has ended".into()));
    }
}

/// A stream that the other end opened.
pub struct Accepted {
    /// Its request.
    pub head: RequestHead,
    /// Its body.
    pub recv: RecvStream,
    /// Its answer.
    pub send: SendStream,
}

impl Opener {
    /// Streams that the other end lets us have open.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.borrow().limit()
    }

    /// Has the reading tasks of all streams look again.
    pub fn wake_readers(&self) {
        self.0.borrow_mut().wake_readers();
    }

    /// Whether no stream can ever be opened again: broken, ended, told so by the other end, or out of numbers.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.borrow().takes_no_more()
    }

    /// Opens a stream; `end` when no body follows.
    ///
    /// # Errors
    /// Nothing was sent: there is no room, or the connection is broken.
    pub fn open(&self, ask: &Ask<'_>, end: bool) -> Result<(RecvStream, SendStream), Error> {
        let key = self.0.borrow_mut().ask(ask, end)?;
        let handle = |writes| Handle { core: Rc::clone(&self.0), key, writes };
        Ok((RecvStream(handle(false)), SendStream(handle(true))))
    }
}

impl Pinger {
    /// Ends when the other end has answered a PING.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn ping(&mut self) -> impl Future<Output = Result<(), Error>> + use<> {
        self.0.borrow_mut().ask_alive();
        let core = Rc::clone(&self.0);
        poll_fn(move |cx| core.borrow_mut().poll_alive(cx))
    }
}

struct Handle {
    core: Shared,
    key: usize,
    writes: bool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut core = self.core.borrow_mut();
        if self.writes { core.drop_writer(self.key) } else { core.drop_reader(self.key) }
    }
}

/// What comes on a stream. When this and its [`SendStream`] are dropped before the stream has ended, it is reset.
pub struct RecvStream(Handle);

impl RecvStream {
    /// A 1xx head that has come.
    pub fn interim(&mut self) -> Option<ResponseHead> {
        self.0.core.borrow_mut().poll_interim(self.0.key)
    }

    /// The head of the answer, behind all 1xx.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Error>> {
        self.0.core.borrow_mut().poll_head(self.0.key, cx)
    }

    /// The next part of the body; None at its end.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        self.0.core.borrow_mut().poll_data(self.0.key, cx)
    }

    /// The trailers, behind the end of the body.
    pub fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, Error>> {
        self.0.core.borrow_mut().poll_trailers(self.0.key, cx)
    }

    /// Whether everything was read.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.0.core.borrow().is_end(self.0.key)
    }

    /// Bytes that have come and were not released.
    #[must_use]
    pub fn used(&self) -> usize {
        self.0.core.borrow().used(self.0.key)
    }

    /// Lets the other end send as many bytes more.
    pub fn release(&mut self, bytes: usize) {
        self.0.core.borrow_mut().release(self.0.key, bytes);
    }
}

/// What goes on a stream.
pub struct SendStream(Handle);

impl SendStream {
    /// Sends the head of the answer, or of a 1xx answer before it; `end` when no body follows.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn answer(&mut self, status: StatusCode, headers: &HeaderMap, end: bool) -> Result<(), Error> {
        self.0.core.borrow_mut().answer(self.0.key, status, headers, end)
    }

    /// Sends of `data` what there is room for; ready when that is all. `end` when it is the last.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes, end: bool) -> Poll<Result<(), Error>> {
        self.0.core.borrow_mut().poll_send(self.0.key, cx, data, end)
    }

    /// Ends the body.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn end(&mut self) -> Result<(), Error> {
        self.0.core.borrow_mut().end(self.0.key)
    }

    /// Ends the body with trailers.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn trailers(&mut self, trailers: &HeaderMap) -> Result<(), Error> {
        self.0.core.borrow_mut().trailers(self.0.key, trailers)
    }

    /// Gives the stream up.
    pub fn reset(&mut self, reason: Reason) {
        self.0.core.borrow_mut().cancel(self.0.key, reason);
    }

    /// Ready when the stream has ended before its time.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        self.0.core.borrow_mut().poll_reset(self.0.key, cx)
    }
}

macro_rules! opaque_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}

opaque_debug!(Opener, Pinger, Heard, RecvStream, SendStream, Accepted);
