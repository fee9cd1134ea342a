//! Byte streams as the connection loops see them: a TCP socket, or anything else behind a box (a secured link, the inside
//! of a tunnel), with a read buffer and a write buffer. [`SharedIo`] is used by reader and writer of one connection
//! within one task: each borrow lasts for one poll and never across an await.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What a boxed stream must do; unlike the model's `Io` it need not leave its thread.
pub(crate) trait LocalIo: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> LocalIo for T {}

/// A byte stream in both directions. TCP is told apart because nearly all are.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Boxed(Box<dyn LocalIo>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::Boxed(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Self::Boxed(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::Boxed(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(s) => s.is_write_vectored(),
            Self::Boxed(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_flush(cx),
            Self::Boxed(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Boxed(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

/// A stream that first gives back bytes that were read from it already.
pub(crate) struct Prefixed {
    pub(crate) prefix: Bytes,
    pub(crate) stream: Stream,
}

impl AsyncRead for Prefixed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.prefix.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let n = this.prefix.len().min(buf.remaining());
        buf.put_slice(&this.prefix.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Room for a first read: one request head of the usual size.
const READ_FIRST: usize = 4 * 1024;
/// A larger empty buffer is given back while its connection waits.
const KEEP: usize = 16 * 1024;
/// Room for reads of a body. 64 KiB: the size from which larger reads stopped paying in loopback runs.
pub(crate) const READ_BODY: usize = 64 * 1024;
/// Data up to this size is copied behind its head so that both leave in one plain write.
const COPY_BELOW: usize = 16 * 1024;

/// An HTTP/1 connection's stream and buffers, for either role.
pub(crate) struct BufferedIo {
    pub(crate) stream: Stream,
    pub(crate) rbuf: BytesMut,
    pub(crate) wbuf: BytesMut,
    /// The current message's body is still being read from (or written to) the stream by its owner.
    pub(crate) body_open: bool,
}

/// A connection shared by the reader and the writer in one task.
pub(crate) type SharedIo = Rc<RefCell<BufferedIo>>;

impl BufferedIo {
    pub(crate) fn new(stream: Stream, rbuf: BytesMut) -> Self {
        Self { stream, rbuf, wbuf: BytesMut::new(), body_open: false }
    }

    pub(crate) fn shared(stream: Stream, rbuf: BytesMut) -> SharedIo {
        Rc::new(RefCell::new(Self::new(stream, rbuf)))
    }

    /// Gives back buffers that a large message has left behind, before a connection waits with nothing in them.
    pub(crate) fn shrink(&mut self) {
        for buffer in [&mut self.rbuf, &mut self.wbuf] {
            if buffer.is_empty() && buffer.capacity() > KEEP {
                *buffer = BytesMut::new();
            }
        }
    }

    /// Reads once into the read buffer; `Ok(0)` is the end of the stream.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        if self.rbuf.capacity() - self.rbuf.len() < READ_FIRST / 2 {
            self.rbuf.reserve(room.max(READ_FIRST));
        }
        // `read_buf` keeps no state between polls, so a fresh one each time loses nothing.
        pin!(self.stream.read_buf(&mut self.rbuf)).poll(cx)
    }

    /// Writes the write buffer out.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.wbuf.is_empty() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.wbuf))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wbuf.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes the write buffer and then `data`, in as few writes as possible; ready when all is written.
    pub(crate) fn poll_write_data(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        if data.len() <= COPY_BELOW && !self.wbuf.is_empty() {
            self.wbuf.extend_from_slice(data);
            data.clear();
        }
        while !data.is_empty() {
            let n = if self.wbuf.is_empty() {
                ready!(Pin::new(&mut self.stream).poll_write(cx, data))?
            } else {
                let slices = [IoSlice::new(&self.wbuf), IoSlice::new(data)];
                ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = n.min(self.wbuf.len());
            self.wbuf.advance(of_head);
            data.advance(n - of_head);
        }
        self.poll_flush(cx)
    }
}

/// Sets what every TCP connection to a pod or client has: no Nagle delay, and an end when the other side has vanished
/// (its veth was taken away, its node lost power): after 60 s of silence it is probed, and unacknowledged bytes are waited
/// for 20 s, as long as an unanswered PING on a link.
pub(crate) fn tune(stream: &TcpStream) {
    // Each fails only on a socket that is broken, which the first read tells.
    let _ = stream.set_nodelay(true);
    let socket = socket2::SockRef::from(stream);
    let probes = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let _ = socket.set_tcp_keepalive(&probes);
    let _ = socket.set_tcp_user_timeout(Some(Duration::from_secs(20)));
}
