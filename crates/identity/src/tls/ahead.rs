//! Fewer, larger reads under TLS. rustls reads 4 KiB at a time, which is five system calls for a full record; here as much as a
//! peer sends in one go is taken from the socket at once, and rustls reads that.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Four records of the largest size (RFC 8446 §5.2): what rustls encrypts before it writes.
const AHEAD: usize = 4 * (5 + (1 << 14) + 256);

thread_local! {
    /// One buffer a thread waits for the next read: links hold one only while they have read what nobody has taken, so thousands
    /// of idle links cost nothing.
    static SPARE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// A byte stream that is read ahead.
pub(super) struct Ahead<T> {
    io: T,
    read: Option<Read>,
}

/// `bytes[at..end]` is to be taken; never empty.
struct Read {
    bytes: Box<[u8]>,
    at: usize,
    end: usize,
}

impl<T> Ahead<T> {
    pub(super) fn new(io: T) -> Self {
        Self { io, read: None }
    }
}

impl<T: AsyncRead + Unpin> Ahead<T> {
    /// None at the stream's end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Read>>> {
        if let Some(read) = self.read.take() {
            return Poll::Ready(Ok(Some(read)));
        }
        let mut bytes = SPARE.take().unwrap_or_else(|| vec![0; AHEAD].into_boxed_slice());
        let mut space = ReadBuf::new(&mut bytes);
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut space);
        let end = space.filled().len();
        if end > 0 {
            return Poll::Ready(Ok(Some(Read { bytes, at: 0, end })));
        }
        SPARE.set(Some(bytes));
        ready!(polled)?;
        Poll::Ready(Ok(None))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Ahead<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let Some(mut read) = ready!(self.poll_fill(cx))? else { return Poll::Ready(Ok(())) };
        let n = buf.remaining().min(read.end - read.at);
        buf.put_slice(&read.bytes[read.at..read.at + n]);
        read.at += n;
        if read.at < read.end {
            self.read = Some(read);
        } else {
            SPARE.set(Some(read.bytes));
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Ahead<T> {
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

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Gives the bytes of a pattern in pieces of the given sizes, with a wait before each, and then an end.
    struct Pieces {
        sizes: Vec<usize>,
        given: usize,
        waited: bool,
        reads: usize,
    }

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.waited = !self.waited;
            if self.waited {
                return Poll::Pending;
            }
            self.reads += 1;
            if self.sizes.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let n = self.sizes.remove(0);
            assert!(n <= buf.remaining(), "all that has come is asked for");
            for at in self.given..self.given + n {
                buf.put_slice(&[pattern(at)]);
            }
            self.given += n;
            Poll::Ready(Ok(()))
        }
    }

    fn pattern(at: usize) -> u8 {
        u8::try_from(at % 251).unwrap()
    }

    /// Every byte once and in order, two streams by turns on one thread, and one read of the stream a piece.
    #[test]
    fn bytes_come_as_they_were_sent_and_a_piece_is_one_read() {
        let pieces = vec![1, 4096, AHEAD, 5, 40_000, 16_406];
        let total: usize = pieces.iter().sum();
        let stream = || Ahead::new(Pieces { sizes: pieces.clone(), given: 0, waited: false, reads: 0 });
        let mut streams = [stream(), stream()];
        let mut taken = [0, 0];
        let mut ended = [false, false];
        let mut cx = Context::from_waker(Waker::noop());
        while ended != [true, true] {
            for number in [0, 1] {
                if ended[number] {
                    continue;
                }
                let mut space = [0; 4096];
                let mut buf = ReadBuf::new(&mut space[..if number == 0 { 4096 } else { 777 }]);
                if Pin::new(&mut streams[number]).poll_read(&mut cx, &mut buf).is_pending() {
                    assert!(streams[number].read.is_none(), "who waits holds no buffer");
                    continue;
                }
                ended[number] = buf.filled().is_empty();
                for byte in buf.filled() {
                    assert_eq!(*byte, pattern(taken[number]), "byte {}", taken[number]);
                    taken[number] += 1;
                }
            }
        }
        assert_eq!(taken, [total, total]);
        // The end was read, too.
        assert!(streams.iter().all(|stream| stream.io.reads == pieces.len() + 1));
    }
}
