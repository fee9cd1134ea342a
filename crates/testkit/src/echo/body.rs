//! The body of `/bytes/N`: made as it is read, so that N has no part in this pod's memory and back-pressure shows in a
//! counter that stands still.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::Counters;

/// Bytes a frame.
const CHUNK: usize = 64 * 1024;
static BLOCK: [u8; CHUNK] = [b'x'; CHUNK];

/// `N` times the letter x.
pub(super) struct Made {
    left: u64,
    counters: Arc<Counters>,
}

impl Made {
    pub(super) fn new(count: u64, counters: Arc<Counters>) -> Self {
        Self { left: count, counters }
    }
}

impl Body for Made {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let len = usize::try_from(self.left).unwrap_or(CHUNK).min(CHUNK);
        self.left -= len as u64;
        self.counters.bytes_made.fetch_add(len as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&BLOCK[..len])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
