//! What is known of one stream.

use std::collections::VecDeque;
use std::task::{Context, Waker};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use crate::error::Error;
use crate::head::ResponseHead;

/// What a stream's other end sends.
pub(super) enum Receiving {
    /// Its head has not come.
    Head,
    Body,
    Ended,
}

pub(super) struct Stream {
    pub(super) id: u32,
    /// The handle that reads and the one that writes.
    pub(super) reader: bool,
    pub(super) writer: bool,
    /// Counts towards the limit on open streams.
    pub(super) open: bool,
    pub(super) error: Option<Error>,
    pub(super) send_window: i64,
    pub(super) send_ended: bool,
    pub(super) send_waker: Option<Waker>,
    /// In `Core::waiting`.
    pub(super) queued: bool,
    /// Its turn has come.
    pub(super) granted: bool,
    pub(super) receiving: Receiving,
    /// A body is not allowed although its length may be told (HEAD, 204, 304).
    pub(super) bodiless: bool,
    /// Of a CONNECT: what follows is no content, so no length is declared of it (RFC 9110 §9.3.6).
    pub(super) tunnel: bool,
    /// What is still owed of a declared length.
    pub(super) owed: Option<u64>,
    pub(super) interims: VecDeque<ResponseHead>,
    pub(super) head: Option<ResponseHead>,
    pub(super) chunks: VecDeque<Bytes>,
    pub(super) small: BytesMut,
    pub(super) trailers: Option<HeaderMap>,
    pub(super) recv_window: i64,
    /// Received and not yet given back.
    pub(super) used: usize,
    /// Given back and not yet told.
    pub(super) given: u32,
    pub(super) recv_waker: Option<Waker>,
}

impl Stream {
    pub(super) fn has_data(&self) -> bool {
        !self.chunks.is_empty() || !self.small.is_empty()
    }

    pub(super) fn receive_ended(&self) -> bool {
        matches!(self.receiving, Receiving::Ended)
    }

    pub(super) fn wake_reader(&mut self) {
        if let Some(waker) = self.recv_waker.take() {
            waker.wake();
        }
    }

    pub(super) fn wake_writer(&mut self) {
        if let Some(waker) = self.send_waker.take() {
            waker.wake();
        }
    }
}

pub(super) fn keep_waker(slot: &mut Option<Waker>, cx: &Context<'_>) {
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}
