//! Fewer, larger writes for an HTTP/2 connection. The `h2` crate writes each DATA frame on its own; here what it writes in
//! one turn of the connection's task is gathered and leaves in one system call when the turn ends (64 connections of
//! 1 KiB answers: one write instead of 64). Whoever drives the connection calls [`Flusher::poll_flush`] after each poll.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gathered bytes that are written without waiting for the turn's end.
const GATHER: usize = 64 * 1024;
/// Writes of this size and more are not copied.
const COPY_BELOW: usize = 16 * 1024;

/// The stream that is given to `h2`.
pub(crate) struct Coalesced<T>(Rc<RefCell<Inner<T>>>);

/// The driver's hold on it.
pub(crate) struct Flusher<T>(Rc<RefCell<Inner<T>>>);

struct Inner<T> {
    io: T,
    gathered: BytesMut,
    /// `io` may still hold bytes that it took: TLS keeps records that the socket had no room for.
    unflushed: bool,
    /// Flushes are left to the driver; off until there is one (during the handshake).
    deferred: bool,
}

/// Wraps `io`. Until [`Flusher::defer`] is called every flush is done at once.
pub(crate) fn coalesce<T>(io: T) -> (Coalesced<T>, Flusher<T>) {
    let inner = Rc::new(RefCell::new(Inner { io, gathered: BytesMut::new(), unflushed: false, deferred: false }));
    (Coalesced(Rc::clone(&inner)), Flusher(inner))
}

impl<T: AsyncWrite + Unpin> Flusher<T> {
    /// From now on the caller flushes after each turn.
    pub(crate) fn defer(&self) {
        self.0.borrow_mut().deferred = true;
    }

    /// Writes out what was gathered. Errors are kept by the stream and told at its next use.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_flush(cx)
    }
}

impl<T: AsyncWrite + Unpin> Inner<T> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.gathered))?;
            self.unflushed = true;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered.advance(n);
        }
        if self.gathered.capacity() > 4 * GATHER {
            self.gathered = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// [`Self::poll_drain`], and nothing is left in `io` either. Without it the last records of a turn in which the socket was
    /// full would wait for the next turn that writes, which may never come.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let total: usize = bufs.iter().map(|b| b.len()).sum();
        if total < COPY_BELOW {
            if self.gathered.len() + total > GATHER {
                ready!(self.poll_drain(cx))?;
            }
            for buf in bufs {
                self.gathered.extend_from_slice(buf);
            }
            return Poll::Ready(Ok(total));
        }
        self.unflushed = true;
        if self.gathered.is_empty() {
            return Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        }
        let mut all: SmallVec<[IoSlice<'_>; 8]> = SmallVec::new();
        all.push(IoSlice::new(&self.gathered));
        all.extend(bufs.iter().map(|b| IoSlice::new(b)));
        let n = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &all))?;
        drop(all);
        if n == 0 {
            return Poll::Ready(Ok(0));
        }
        let of_gathered = n.min(self.gathered.len());
        self.gathered.advance(of_gathered);
        if n == of_gathered {
            // Nothing of the caller's bytes went yet; the rest of ours must go first.
            ready!(self.poll_drain(cx))?;
            return Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        }
        Poll::Ready(Ok(n - of_gathered))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Coalesced<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Coalesced<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        if inner.deferred { Poll::Ready(Ok(())) } else { inner.poll_flush(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::task::Waker;

    /// Takes at most `step` bytes a write and every other write nothing at all.
    struct Slow {
        taken: Vec<u8>,
        step: usize,
        turn: bool,
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.turn = !self.turn;
            if self.turn {
                return Poll::Pending;
            }
            let n = self.step.min(buf.len());
            self.taken.extend_from_slice(&buf[..n]);
            Poll::Ready(Ok(n))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Takes everything into a buffer of its own, as TLS does, and passes it on in flushes, of which every other must wait.
    #[derive(Default)]
    struct Holding {
        held: Vec<u8>,
        passed: Vec<u8>,
        turn: bool,
    }

    impl AsyncWrite for Holding {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.held.extend_from_slice(buf);
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.turn = !self.turn;
            if self.turn {
                return Poll::Pending;
            }
            let held = std::mem::take(&mut self.held);
            self.passed.extend_from_slice(&held);
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn the_turn_ends_only_when_a_stream_that_holds_bytes_has_passed_them_on() {
        let mut cx = Context::from_waker(Waker::noop());
        for size in [100, COPY_BELOW] {
            let (mut stream, flusher) = coalesce(Holding::default());
            flusher.defer();
            let data = vec![7; size];
            assert!(matches!(Pin::new(&mut stream).poll_write(&mut cx, &data), Poll::Ready(Ok(n)) if n == size));
            assert!(flusher.poll_flush(&mut cx).is_pending(), "the stream still holds them");
            assert!(flusher.poll_flush(&mut cx).is_ready());
            assert_eq!(flusher.0.borrow().io.passed, data);
            // Nothing new, so nothing to wait for: a flush of this stream would have to wait.
            assert!(flusher.poll_flush(&mut cx).is_ready());
        }
    }

    proptest! {
        /// Whatever sizes are written and however slowly they are taken: the same bytes, in order, none twice.
        #[test]
        fn bytes_come_out_as_they_went_in(
            sizes in prop::collection::vec(prop_oneof![1usize..300, 10_000usize..40_000], 1..20),
            step in 1_000usize..50_000,
        ) {
            let (mut stream, flusher) = coalesce(Slow { taken: Vec::new(), step, turn: false });
            flusher.defer();
            let mut cx = Context::from_waker(Waker::noop());
            let mut expected: Vec<u8> = Vec::new();
            for (n, size) in sizes.iter().enumerate() {
                let data: Vec<u8> = (0..*size).map(|i| (i * 7 + n) as u8).collect();
                expected.extend_from_slice(&data);
                let (mut left, mut turns) = (&data[..], 0);
                while !left.is_empty() {
                    let (a, b) = left.split_at(left.len() / 3);
                    if let Poll::Ready(n) = Pin::new(&mut stream).poll_write_vectored(&mut cx, &[IoSlice::new(a), IoSlice::new(b)]) {
                        left = &left[n.unwrap()..];
                    }
                    turns += 1;
                    prop_assert!(turns < 10_000);
                }
            }
            let mut turns = 0;
            while flusher.poll_flush(&mut cx).is_pending() {
                turns += 1;
                prop_assert!(turns < 10_000);
            }
            prop_assert_eq!(&flusher.0.borrow().io.taken, &expected);
        }
    }
}
