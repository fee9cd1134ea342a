//! Byte streams with a memory: what a peer said first, and that a link without TLS is open.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use metrics::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::ahead::Ahead;
use crate::metrics::{PLAIN_LINKS, PLAIN_LINKS_TOTAL};

/// A TLS record with part of a handshake (RFC 8446 §5.1).
pub(super) const HANDSHAKE_RECORD: u8 = 0x16;
/// A TLS record with an alert.
const ALERT_RECORD: u8 = 0x15;

/// A connection that remembers the first byte that came.
pub(super) struct Noting {
    io: Ahead<TcpStream>,
    first: Option<u8>,
}

impl Noting {
    pub(super) fn new(io: TcpStream) -> Self {
        Self { io: Ahead::new(io), first: None }
    }

    /// Whether the peer answered a ClientHello as TLS does, be it by an alert.
    pub(super) fn spoke_tls(&self) -> bool {
        matches!(self.first, Some(HANDSHAKE_RECORD | ALERT_RECORD))
    }
}

impl AsyncRead for Noting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if self.first.is_none() {
            self.first = buf.filled().get(before).copied();
        }
        polled
    }
}

impl AsyncWrite for Noting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A link without TLS, counted while it is open.
pub(super) struct PlainLink<T> {
    io: T,
    open: Gauge,
}

impl<T> PlainLink<T> {
    pub(super) fn new(io: T, direction: &'static str) -> Self {
        metrics::counter!(PLAIN_LINKS_TOTAL, "direction" => direction).increment(1);
        let open = metrics::gauge!(PLAIN_LINKS, "direction" => direction);
        open.increment(1.0);
        Self { io, open }
    }
}

impl<T> Drop for PlainLink<T> {
    fn drop(&mut self) {
        self.open.decrement(1.0);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for PlainLink<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for PlainLink<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
