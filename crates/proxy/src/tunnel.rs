//! Bytes in both directions between two ends, until both are done, one breaks or nothing moved for too long. Each
//! direction holds at most one chunk, so a reader that stops makes the writer stop; half-closes are passed on.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::exchange::TunnelEnd;
use crate::h2stream::Reason;
use crate::idle::IdleTimer;
use crate::pressure::{Held, Stall};
use crate::stream::READ_BODY;

/// A tunnel on which nothing moves in either direction. 1 h: Envoy's TCP proxy idle timeout; connection pools of databases
/// stay idle for minutes, so the 5 min of HTTP streams would cut them.
pub(crate) const TUNNEL_IDLE: Duration = Duration::from_secs(3600);

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TunnelEndedBy {
    /// Both sides finished.
    Both,
    /// One side broke off.
    Broken,
    /// Nothing moved for too long.
    Idle,
    /// A changed policy denies it.
    Revoked,
}

struct Direction {
    chunk: Bytes,
    held: usize,
    read_done: bool,
    closed: bool,
    stall: Stall,
    kept: Held,
}

impl Direction {
    fn new() -> Self {
        Self {
            chunk: Bytes::new(),
            held: 0,
            read_done: false,
            closed: false,
            stall: Stall::default(),
            kept: Held::default(),
        }
    }

    /// Moves what can be moved. `Ready(Ok)` when this direction is finished.
    fn poll(
        &mut self,
        from: &mut TunnelEnd,
        to: &mut TunnelEnd,
        cx: &mut Context<'_>,
        moved: &mut bool,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            if !self.chunk.is_empty() {
                let before = self.chunk.len();
                match to.poll_write(cx, &mut self.chunk) {
                    Poll::Ready(written) => written?,
                    Poll::Pending => {
                        if self.chunk.len() != before {
                            self.stall.moved();
                        }
                        self.kept.set(from.used() + self.chunk.len());
                        ready!(self.stall.poll(cx));
                        return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
                    }
                }
                *moved = true;
                self.stall.moved();
                if !self.kept.is_zero() {
                    self.kept.set(0);
                }
            }
            from.release(std::mem::take(&mut self.held));
            if self.read_done {
                ready!(to.poll_close(cx))?;
                self.closed = true;
                continue;
            }
            match ready!(from.poll_read(cx))? {
                Some(chunk) => {
                    self.held = chunk.len();
                    self.chunk = chunk;
                    *moved = true;
                }
                None => self.read_done = true,
            }
        }
    }
}

/// Copies between `a` and `b`. Dropping the future breaks both off.
pub(crate) async fn splice(mut a: TunnelEnd, mut b: TunnelEnd, idle: Duration) -> TunnelEndedBy {
    let mut up = Direction::new();
    let mut down = Direction::new();
    let mut timer = IdleTimer::new(idle);
    let ended = poll_fn(|cx| {
        if a.poll_revoked(cx).is_ready() || b.poll_revoked(cx).is_ready() {
            return Poll::Ready(TunnelEndedBy::Revoked);
        }
        let mut moved = false;
        let up = up.poll(&mut a, &mut b, cx, &mut moved);
        let down = down.poll(&mut b, &mut a, cx, &mut moved);
        if moved {
            timer.touch();
        }
        match (up, down) {
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => Poll::Ready(TunnelEndedBy::Broken),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(TunnelEndedBy::Both),
            _ => timer.poll_expired(cx).map(|()| TunnelEndedBy::Idle),
        }
    })
    .await;
    if ended != TunnelEndedBy::Both {
        a.abort();
        b.abort();
    }
    ended
}

impl TunnelEnd {
    fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Io { revoked: Some(revoked), .. } => revoked.as_mut().poll(cx),
            Self::Io { .. } | Self::H2 { .. } => Poll::Pending,
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        match self {
            Self::Io { io, .. } => {
                let mut io = io.borrow_mut();
                if io.rbuf.is_empty() && ready!(io.poll_fill(cx, READ_BODY))? == 0 {
                    return Poll::Ready(Ok(None));
                }
                Poll::Ready(Ok(Some(io.rbuf.split().freeze())))
            }
            Self::H2 { recv, .. } => loop {
                match ready!(recv.poll_data(cx)) {
                    Some(Ok(data)) if data.is_empty() => {}
                    Some(Ok(data)) => return Poll::Ready(Ok(Some(data))),
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None => return Poll::Ready(Ok(None)),
                }
            },
        }
    }

    /// Bytes that have come and whose capacity was not given back.
    fn used(&mut self) -> usize {
        match self {
            Self::H2 { recv, .. } => recv.used(),
            Self::Io { .. } => 0,
        }
    }

    /// Gives flow-control capacity back for bytes that the other end has taken.
    fn release(&mut self, bytes: usize) {
        if let Self::H2 { recv, .. } = self
            && bytes > 0
        {
            recv.release(bytes);
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<io::Result<()>> {
        match self {
            Self::Io { io, .. } => io.borrow_mut().poll_write_data(cx, chunk),
            Self::H2 { send, .. } => {
                send.poll_send(cx, chunk, false).map_err(|_| io::ErrorKind::ConnectionReset.into())
            }
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Io { io, .. } => {
                let mut io = io.borrow_mut();
                ready!(io.poll_flush(cx))?;
                match ready!(Pin::new(&mut io.stream).poll_shutdown(cx)) {
                    // The other side has closed both ways already: nothing is left to be told.
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
                    result => Poll::Ready(result),
                }
            }
            Self::H2 { send, .. } => {
                // An error means the stream is closed, which is what is wanted.
                let _ = send.end(None);
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Breaks off so that the other side does not take it for an orderly end.
    fn abort(&mut self) {
        match self {
            Self::H2 { send, .. } => send.reset(Reason::CANCEL),
            Self::Io { io, .. } => {
                if let crate::stream::Stream::Tcp(stream) = &io.borrow().stream {
                    // RST instead of FIN. Fails only on a socket that is gone.
                    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
                }
            }
        }
    }
}

/// A client's HTTP/2 stream as a byte stream: the inside of a CONNECT that came over HTTP/2.
pub(crate) struct H2Io {
    pub(crate) send: h2::SendStream<Bytes>,
    pub(crate) recv: h2::RecvStream,
    pub(crate) left: Bytes,
}

impl AsyncRead for H2Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.left.is_empty() {
            match ready!(this.recv.poll_data(cx)) {
                Some(Ok(data)) => this.left = data,
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = this.left.len().min(buf.remaining());
        buf.put_slice(&this.left.split_to(n));
        let _ = this.recv.flow_control().release_capacity(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for H2Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let send = &mut self.get_mut().send;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut capacity = send.capacity();
        while capacity == 0 {
            send.reserve_capacity(buf.len().min(READ_BODY));
            capacity = send.capacity();
            if capacity == 0 {
                match ready!(send.poll_capacity(cx)) {
                    Some(Ok(n)) => capacity = n,
                    _ => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                }
            }
        }
        let n = capacity.min(buf.len());
        send.send_data(Bytes::copy_from_slice(&buf[..n]), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // An error means the stream is closed already.
        let _ = self.get_mut().send.send_data(Bytes::new(), true);
        Poll::Ready(Ok(()))
    }
}
