//! Bytes on their way to the other end: small ones are gathered so that one turn's frames leave in one write, large ones
//! go as they are.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// Payloads from this size on are not copied.
const COPY_BELOW: usize = 8 * 1024;
/// A larger empty buffer is given back.
const KEEP: usize = 64 * 1024;
/// Pieces that one write takes.
const PIECES: usize = 16;

#[derive(Default)]
pub(crate) struct Output {
    /// Goes first.
    whole: VecDeque<Bytes>,
    /// Goes after it; its first `sent` bytes have gone.
    gathered: BytesMut,
    sent: usize,
    len: usize,
    written: u64,
    /// The stream below may still hold bytes that it took: TLS keeps records that the socket had no room for.
    unflushed: bool,
}

impl Output {
    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes that have gone, in all.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    pub(crate) fn is_flushed(&self) -> bool {
        self.len == 0 && !self.unflushed
    }

    /// Writes something small with `put`.
    pub(crate) fn put<R>(&mut self, put: impl FnOnce(&mut BytesMut) -> R) -> R {
        let before = self.gathered.len();
        let result = put(&mut self.gathered);
        self.len += self.gathered.len() - before;
        result
    }

    pub(crate) fn payload(&mut self, data: Bytes) {
        self.len += data.len();
        if data.len() < COPY_BELOW {
            self.gathered.extend_from_slice(&data);
            return;
        }
        if self.gathered.len() > self.sent {
            let mut gathered = std::mem::take(&mut self.gathered).freeze();
            gathered.advance(self.sent);
            self.whole.push_back(gathered);
        }
        self.gathered.clear();
        self.sent = 0;
        self.whole.push_back(data);
    }

    /// Writes until all is written, also below.
    pub(crate) fn poll_flush(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.len > 0 {
            let mut written = if self.whole.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, &self.gathered[self.sent..]))?
            } else {
                let mut pieces = [IoSlice::new(&[]); PIECES];
                let rest = std::iter::once(&self.gathered[self.sent..]);
                let all = self.whole.iter().map(|piece| &piece[..]).chain(rest);
                let mut count = 0;
                for (slot, piece) in pieces.iter_mut().zip(all) {
                    *slot = IoSlice::new(piece);
                    count += 1;
                }
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &pieces[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.len -= written;
            self.written += written as u64;
            while let Some(piece) = self.whole.front_mut() {
                let part = written.min(piece.len());
                piece.advance(part);
                written -= part;
                if !piece.is_empty() {
                    break;
                }
                self.whole.pop_front();
            }
            self.sent += written;
            if self.sent >= KEEP {
                // More may be gathered before all is gone.
                self.gathered.advance(self.sent);
                self.sent = 0;
            }
        }
        self.gathered.clear();
        self.sent = 0;
        if self.gathered.capacity() > KEEP {
            self.gathered = BytesMut::new();
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use proptest::prelude::*;

    use super::*;

    /// Takes at most `step` bytes a write, and nothing at every other one.
    struct Slow {
        taken: Vec<u8>,
        step: usize,
        turn: bool,
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.turn = !self.turn;
            if !self.turn {
                return Poll::Pending;
            }
            let n = buf.len().min(self.step);
            self.taken.extend_from_slice(&buf[..n]);
            Poll::Ready(Ok(n))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.turn = !self.turn;
            if !self.turn {
                return Poll::Pending;
            }
            let (before, step) = (self.taken.len(), self.step);
            for buf in bufs {
                let left = step - (self.taken.len() - before);
                self.taken.extend_from_slice(&buf[..buf.len().min(left)]);
            }
            Poll::Ready(Ok(self.taken.len() - before))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        /// Whatever is put in and however slowly it is taken: the same bytes, in order, none twice.
        #[test]
        fn bytes_come_out_as_they_went_in(
            sizes in prop::collection::vec((prop_oneof![1usize..300, 7_000usize..40_000], any::<bool>(), 0usize..3), 1..40),
            step in 500usize..50_000,
        ) {
            let mut io = Slow { taken: Vec::new(), step, turn: false };
            let (mut output, mut expected) = (Output::default(), Vec::new());
            let mut cx = Context::from_waker(Waker::noop());
            for (n, (size, small, turns)) in sizes.into_iter().enumerate() {
                let data: Vec<u8> = (0..size).map(|i| (i * 7 + n) as u8).collect();
                expected.extend_from_slice(&data);
                if small {
                    output.put(|out| out.extend_from_slice(&data));
                } else {
                    output.payload(data.into());
                }
                for _ in 0..turns {
                    let _ = output.poll_flush(&mut io, &mut cx);
                }
                prop_assert_eq!(output.len(), expected.len() - io.taken.len());
            }
            let mut turns = 0;
            while output.poll_flush(&mut io, &mut cx).is_pending() {
                turns += 1;
                prop_assert!(turns < 10_000);
            }
            prop_assert!(output.is_flushed());
            prop_assert_eq!(output.written(), expected.len() as u64);
            prop_assert_eq!(&io.taken, &expected);
        }
    }
}
