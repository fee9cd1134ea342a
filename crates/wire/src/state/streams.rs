//! What the handles of streams ask for: heads, data and trailers in both directions, windows, and ends.

use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};

use super::stream::keep_waker;
use super::{CLOGGED, Core, Leaving, OUTPUT, Role};
use crate::error::{Error, Reason};
use crate::frame;
use crate::head::{Ask, ResponseHead};
use crate::hpack::{Encoder, Pseudo};

impl Core {
    /// Streams that the other end lets us have open; none while it takes nothing.
    pub(crate) fn limit(&self) -> usize {
        if self.out.len() > CLOGGED { 0 } else { self.peer_max_streams as usize }
    }

    /// Whether no stream will ever be opened again.
    pub(crate) fn takes_no_more(&self) -> bool {
        self.failed.is_some() || self.peer_leaves || self.leaving != Leaving::No || self.next_id > frame::MAX_31
    }

    pub(crate) fn wake_readers(&mut self) {
        for (_, stream) in &mut self.streams {
            stream.wake_reader();
        }
    }

    pub(crate) fn ask(&mut self, ask: &Ask<'_>, end: bool) -> Result<usize, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.takes_no_more() || self.open as usize >= self.limit() {
            return Err(Error::NoRoom);
        }
        let id = self.next_id;
        self.next_id += 2;
        let window = self.peer_window;
        let key = self.insert(id, window);
        if let Some(stream) = self.streams.get_mut(key) {
            stream.bodiless = *ask.method == Method::HEAD;
            stream.tunnel = *ask.method == Method::CONNECT;
            stream.send_ended = end;
        }
        self.put_block(id, end, |encoder, out| {
            encoder.pseudo(Pseudo::Method, ask.method.as_str().as_bytes(), out);
            if let Some(protocol) = ask.protocol {
                encoder.pseudo(Pseudo::Protocol, protocol.as_bytes(), out);
            }
            if let Some(scheme) = ask.scheme {
                encoder.pseudo(Pseudo::Scheme, scheme.as_str().as_bytes(), out);
            }
            encoder.pseudo(Pseudo::Authority, ask.authority, out);
            if let Some(path) = ask.path {
                encoder.pseudo(Pseudo::Path, path.as_str().as_bytes(), out);
            }
            for (name, value) in ask.extra {
                encoder.field(name, value, out);
            }
            for (name, value) in ask.headers {
                encoder.field(name, value, out);
            }
        });
        Ok(key)
    }

    /// Writes HEADERS, cut to the other end's frame size.
    fn put_block(&mut self, id: u32, end: bool, fill: impl FnOnce(&mut Encoder, &mut BytesMut)) {
        let Self { out, encoder, peer_max_frame, .. } = self;
        let flags = if end { frame::END_STREAM } else { 0 };
        out.put(|out| {
            let start = out.len();
            frame::put_head(out, 0, frame::HEADERS, flags | frame::END_HEADERS, id);
            encoder.begin(out);
            fill(encoder, out);
            let len = out.len() - start - frame::HEADER;
            if len <= *peer_max_frame {
                let [_, l0, l1, l2] = (len as u32).to_be_bytes();
                if let Some(place) = out.get_mut(start..start + 3) {
                    place.copy_from_slice(&[l0, l1, l2]);
                }
                return;
            }
            let block = out.split_off(start + frame::HEADER);
            out.truncate(start);
            let mut parts = block.chunks(*peer_max_frame).peekable();
            let (mut kind, mut flags) = (frame::HEADERS, flags);
            while let Some(part) = parts.next() {
                if parts.peek().is_none() {
                    flags |= frame::END_HEADERS;
                }
                frame::put_head(out, part.len(), kind, flags, id);
                out.extend_from_slice(part);
                (kind, flags) = (frame::CONTINUATION, 0);
            }
        });
        self.schedule();
    }

    /// Writes the head of an answer.
    pub(crate) fn answer(
        &mut self,
        key: usize,
        status: StatusCode,
        headers: &HeaderMap,
        end: bool,
    ) -> Result<(), Error> {
        let id = self.writable(key)?;
        self.put_block(id, end, |encoder, out| {
            encoder.pseudo(Pseudo::Status, status.as_str().as_bytes(), out);
            for (name, value) in headers {
                encoder.field(name, value, out);
            }
        });
        if end {
            self.sent_end(key);
        }
        Ok(())
    }

    pub(crate) fn trailers(&mut self, key: usize, trailers: &HeaderMap) -> Result<(), Error> {
        let id = self.writable(key)?;
        self.put_block(id, true, |encoder, out| {
            for (name, value) in trailers {
                encoder.field(name, value, out);
            }
        });
        self.sent_end(key);
        Ok(())
    }

    /// The identifier of a stream that may still be written to.
    fn writable(&mut self, key: usize) -> Result<u32, Error> {
        let stream = self.streams.get(key).ok_or(Error::Ended)?;
        if let Some(error) = &stream.error {
            return Err(error.clone());
        }
        if stream.send_ended { Err(Error::Ended) } else { Ok(stream.id) }
    }

    fn sent_end(&mut self, key: usize) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.send_ended = true;
            if stream.receive_ended() {
                self.closed(key);
            }
        }
    }

    /// Ends our half without more data.
    pub(crate) fn end(&mut self, key: usize) -> Result<(), Error> {
        let id = self.writable(key)?;
        self.out.put(|out| frame::put_head(out, 0, frame::DATA, frame::END_STREAM, id));
        self.schedule();
        self.sent_end(key);
        Ok(())
    }

    /// Sends of `data` what windows and the output have room for; ready when that is all.
    pub(crate) fn poll_send(
        &mut self,
        key: usize,
        cx: &Context<'_>,
        data: &mut Bytes,
        end: bool,
    ) -> Poll<Result<(), Error>> {
        let id = match self.writable(key) {
            Ok(id) => id,
            Err(error) => return Poll::Ready(Err(error)),
        };
        if data.is_empty() {
            return Poll::Ready(if end { self.end(key) } else { Ok(()) });
        }
        loop {
            let Some(stream) = self.streams.get_mut(key) else { return Poll::Ready(Err(Error::Ended)) };
            if stream.send_window <= 0 {
                // Its turn is another's; it queues again when its own window opens.
                stream.granted = false;
                keep_waker(&mut stream.send_waker, cx);
                return Poll::Pending;
            }
            let others_first = !self.waiting.is_empty() && !stream.granted;
            if others_first || self.send_window <= 0 || self.out.len() >= OUTPUT {
                keep_waker(&mut stream.send_waker, cx);
                if !std::mem::replace(&mut stream.queued, true) {
                    self.waiting.push_back(key);
                }
                return Poll::Pending;
            }
            stream.granted = false;
            let room = stream.send_window.min(self.send_window).min(self.peer_max_frame as i64) as usize;
            let part = data.split_to(room.min(data.len()));
            let len = part.len();
            stream.send_window -= len as i64;
            self.send_window -= len as i64;
            let last = data.is_empty();
            let flags = if last && end { frame::END_STREAM } else { 0 };
            self.out.put(|out| frame::put_head(out, len, frame::DATA, flags, id));
            self.out.payload(part);
            self.schedule();
            if last {
                if end {
                    self.sent_end(key);
                }
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Ready when the stream has ended before its time.
    pub(crate) fn poll_reset(&mut self, key: usize, cx: &Context<'_>) -> Poll<Error> {
        let Some(stream) = self.streams.get_mut(key) else { return Poll::Ready(Error::Ended) };
        if let Some(error) = &stream.error {
            return Poll::Ready(error.clone());
        }
        keep_waker(&mut stream.send_waker, cx);
        Poll::Pending
    }

    /// Gives a stream up.
    pub(crate) fn cancel(&mut self, key: usize, reason: Reason) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.error.is_some() || (stream.send_ended && stream.receive_ended()) {
            return;
        }
        let id = stream.id;
        self.out.put(|out| frame::put_reset(out, id, reason));
        self.schedule();
        self.end_with(key, Error::GivenUp("by us"));
        self.discard_unfinished(key);
    }

    pub(crate) fn poll_interim(&mut self, key: usize) -> Option<ResponseHead> {
        self.streams.get_mut(key)?.interims.pop_front()
    }

    pub(crate) fn poll_head(&mut self, key: usize, cx: &Context<'_>) -> Poll<Result<ResponseHead, Error>> {
        let Some(stream) = self.streams.get_mut(key) else { return Poll::Ready(Err(Error::Ended)) };
        if let Some(head) = stream.head.take() {
            return Poll::Ready(Ok(head));
        }
        if let Some(error) = &stream.error {
            return Poll::Ready(Err(error.clone()));
        }
        if stream.receive_ended() {
            return Poll::Ready(Err(Error::Ended));
        }
        keep_waker(&mut stream.recv_waker, cx);
        Poll::Pending
    }

    pub(crate) fn poll_data(&mut self, key: usize, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let Some(stream) = self.streams.get_mut(key) else { return Poll::Ready(Some(Err(Error::Ended))) };
        if let Some(data) = stream.chunks.pop_front() {
            return Poll::Ready(Some(Ok(data)));
        }
        if !stream.small.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut stream.small).freeze())));
        }
        if stream.receive_ended() {
            return Poll::Ready(None);
        }
        if let Some(error) = &stream.error {
            return Poll::Ready(Some(Err(error.clone())));
        }
        if stream.trailers.is_some() {
            return Poll::Ready(None);
        }
        keep_waker(&mut stream.recv_waker, cx);
        Poll::Pending
    }

    pub(crate) fn poll_trailers(&mut self, key: usize, cx: &Context<'_>) -> Poll<Result<Option<HeaderMap>, Error>> {
        let Some(stream) = self.streams.get_mut(key) else { return Poll::Ready(Err(Error::Ended)) };
        if stream.receive_ended() {
            return Poll::Ready(Ok(stream.trailers.take()));
        }
        if let Some(error) = &stream.error {
            return Poll::Ready(Err(error.clone()));
        }
        keep_waker(&mut stream.recv_waker, cx);
        Poll::Pending
    }

    /// Whether nothing more will be read.
    pub(crate) fn is_end(&self, key: usize) -> bool {
        self.streams.get(key).is_none_or(|s| s.receive_ended() && !s.has_data() && s.trailers.is_none())
    }

    /// Bytes that have come and were not given back.
    pub(crate) fn used(&self, key: usize) -> usize {
        self.streams.get(key).map_or(0, |stream| stream.used)
    }

    /// Gives window back for bytes that were read.
    pub(crate) fn release(&mut self, key: usize, bytes: usize) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let bytes = bytes.min(stream.used);
        stream.used -= bytes;
        self.give(key, bytes as u32);
    }

    pub(super) fn give(&mut self, key: usize, bytes: u32) {
        if let Some(stream) = self.streams.get_mut(key)
            && !stream.receive_ended()
            && stream.error.is_none()
        {
            stream.given += bytes;
            if stream.given >= self.config.stream_window / 2 {
                let (id, given) = (stream.id, std::mem::take(&mut stream.given));
                stream.recv_window += i64::from(given);
                self.out.put(|out| frame::put_window(out, id, given));
                self.schedule();
            }
        }
        self.give_connection(bytes);
    }

    pub(super) fn give_connection(&mut self, bytes: u32) {
        self.given += bytes;
        if self.given >= self.config.connection_window.max(frame::DEFAULT_WINDOW) / 2 {
            let given = std::mem::take(&mut self.given);
            self.recv_window += i64::from(given);
            self.out.put(|out| frame::put_window(out, 0, given));
            self.schedule();
        }
    }

    /// The reading handle is gone.
    pub(crate) fn drop_reader(&mut self, key: usize) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.reader = false;
            stream.recv_waker = None;
            self.discard(key);
            self.drop_one(key);
        }
    }

    /// The writing handle is gone.
    pub(crate) fn drop_writer(&mut self, key: usize) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.writer = false;
            stream.send_waker = None;
            self.drop_one(key);
        }
    }

    fn drop_one(&mut self, key: usize) {
        let Some(stream) = self.streams.get(key).filter(|stream| !stream.reader && !stream.writer) else { return };
        // An answer that is whole needs no more of its request; anything else is given up.
        let reason = if self.role == Role::Server && stream.send_ended { Reason::NO_ERROR } else { Reason::CANCEL };
        if self.failed.is_none() {
            self.cancel(key, reason);
        }
        self.closed(key);
        if let Some(stream) = self.streams.try_remove(key) {
            self.by_id.remove(&stream.id);
            if matches!(stream.error, Some(Error::GivenUp(_) | Error::GoneAway)) && !stream.receive_ended() {
                self.given_up.add(stream.id);
            }
            if stream.queued {
                self.waiting.retain(|waiting| *waiting != key);
            }
            if stream.queued || stream.granted || self.streams.is_empty() {
                // A turn that it did not take is another's; the last one may be what the driver's end waits for.
                self.schedule();
            }
        }
    }
}
