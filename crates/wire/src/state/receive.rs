//! Frames from the other end: what each does to the state, and which fault it is if it may not come (RFC 9113 §5, §6, §8).

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode};

use super::stream::{Receiving, Stream};
use super::{ALIVE_PING, Block, CLOGGED, Core, Fatal, Leaving, Opened, Role, SHUTDOWN_PING};
use crate::error::{Error, Reason};
use crate::frame::{self, Head};
use crate::head::{Building, ResponseHead};

/// A stream's DATA below this size are merged while they wait: a frame of a few bytes must not cost a hundred.
const MERGE_BELOW: usize = 4 * 1024;
const MERGED: usize = 16 * 1024;
/// Frames that one block may be cut into: at the default frame size 64 carry 1 MiB, far above any limit on fields. An end that sends
/// more does so to make work (CVE-2024-27316).
const MAX_CONTINUATIONS: usize = 64;
/// 1xx heads of one stream that may wait for its task.
const MAX_INTERIMS: usize = 32;

impl Core {
    /// One frame. `payload` has exactly its bytes.
    pub(crate) fn receive(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if !self.greeted && (head.kind != frame::SETTINGS || head.has(frame::ACK)) {
            return Err((Reason::PROTOCOL_ERROR, "the first frame is not SETTINGS"));
        }
        if self.block.is_some() && head.kind != frame::CONTINUATION {
            return Err((Reason::PROTOCOL_ERROR, "a frame between HEADERS and CONTINUATION"));
        }
        match head.kind {
            frame::DATA => {
                let (start, end) = unpadded(head, payload)?;
                let data = payload.get(start..end).unwrap_or_default();
                self.data(head, data.len(), |stream| stream.small.extend_from_slice(data))
            }
            frame::HEADERS => self.headers(head, payload),
            frame::CONTINUATION => self.continuation(head, payload),
            frame::PRIORITY if head.id == 0 => Err((Reason::PROTOCOL_ERROR, "PRIORITY of no stream")),
            frame::PRIORITY if payload.len() != 5 => Err((Reason::FRAME_SIZE_ERROR, "PRIORITY of another length")),
            frame::RST_STREAM => self.reset_received(head, payload),
            frame::SETTINGS => self.settings(head, payload),
            frame::PING => self.ping_received(head, payload),
            frame::GOAWAY => self.goaway(head, payload),
            frame::WINDOW_UPDATE => self.window_update(head, payload),
            frame::PUSH_PROMISE => Err((Reason::PROTOCOL_ERROR, "PUSH_PROMISE")),
            // PRIORITY says nothing that we go by; unknown types are ignored (§5.5).
            _ => Ok(()),
        }
    }

    /// Whether DATA of this length are taken by [`Self::receive_data`], without a copy.
    pub(crate) fn takes_whole(&self, head: Head) -> bool {
        head.kind == frame::DATA
            && head.len >= MERGE_BELOW
            && !head.has(frame::PADDED)
            && self.greeted
            && self.block.is_none()
    }

    pub(crate) fn receive_data(&mut self, head: Head, data: Bytes) -> Result<(), Fatal> {
        let len = data.len();
        self.data(head, len, |stream| {
            if !stream.small.is_empty() {
                let small = std::mem::take(&mut stream.small).freeze();
                stream.chunks.push_back(small);
            }
            stream.chunks.push_back(data);
        })
    }

    /// The stream of a frame; None when it has ended and is forgotten.
    fn find(&self, id: u32) -> Result<Option<usize>, Fatal> {
        if id == 0 {
            return Err((Reason::PROTOCOL_ERROR, "a stream's frame of no stream"));
        }
        if let Some(&key) = self.by_id.get(&id) {
            return Ok(Some(key));
        }
        let was = match self.role {
            Role::Client => id % 2 == 1 && id < self.next_id,
            Role::Server => (id % 2 == 1 && id <= self.last_id) || self.is_left_out(id),
        };
        if was { Ok(None) } else { Err((Reason::PROTOCOL_ERROR, "a frame of a stream that was never opened")) }
    }

    /// Whether the other end opened a stream before it knew that we take no more.
    fn is_left_out(&self, id: u32) -> bool {
        self.role == Role::Server && id % 2 == 1 && matches!(self.leaving, Leaving::After(last) if id > last)
    }

    fn data(&mut self, head: Head, len: usize, put: impl FnOnce(&mut Stream)) -> Result<(), Fatal> {
        // Padding counts, too (§6.1).
        let flow = head.len as u32;
        if i64::from(flow) > self.recv_window {
            return Err((Reason::FLOW_CONTROL_ERROR, "more DATA than the connection's window"));
        }
        let key = self.find(head.id)?;
        self.recv_window -= i64::from(flow);
        let Some((key, stream)) = key.and_then(|key| Some((key, self.streams.get_mut(key)?))) else {
            self.give_connection(flow);
            if self.given_up.has(head.id) || self.is_left_out(head.id) {
                return Ok(());
            }
            self.out.put(|out| frame::put_reset(out, head.id, Reason::STREAM_CLOSED));
            return self.replies.add(&self.out);
        };
        let wrong = match stream.receiving {
            _ if matches!(stream.error, Some(Error::Reset(_))) => {
                Some(Some((Reason::STREAM_CLOSED, "DATA behind RST_STREAM")))
            }
            _ if stream.error.is_some() => Some(None),
            Receiving::Ended => Some(Some((Reason::STREAM_CLOSED, "DATA behind the end of its stream"))),
            Receiving::Head => Some(Some((Reason::PROTOCOL_ERROR, "DATA before the head"))),
            Receiving::Body if i64::from(flow) > stream.recv_window => {
                Some(Some((Reason::FLOW_CONTROL_ERROR, "more DATA than the stream's window")))
            }
            Receiving::Body if stream.bodiless && len > 0 => {
                Some(Some((Reason::PROTOCOL_ERROR, "a body where there can be none")))
            }
            Receiving::Body => match &mut stream.owed {
                Some(owed) if len as u64 > *owed => {
                    Some(Some((Reason::PROTOCOL_ERROR, "a body longer than its Content-Length")))
                }
                Some(owed) => {
                    *owed -= len as u64;
                    None
                }
                None => None,
            },
        };
        if let Some(fault) = wrong {
            self.give_connection(flow);
            return match fault {
                Some((reason, why)) => self.reset(key, reason, why),
                None => Ok(()),
            };
        }
        stream.recv_window -= i64::from(flow);
        let padding = flow - len as u32;
        if stream.reader {
            if len > 0 {
                stream.used += len;
                put(stream);
                if stream.small.len() >= MERGED {
                    let small = std::mem::take(&mut stream.small).freeze();
                    stream.chunks.push_back(small);
                }
                stream.wake_reader();
            }
            if padding > 0 {
                self.give(key, padding);
            }
        } else {
            // Nobody reads it. The stream's own window is not opened again.
            self.give_connection(flow);
        }
        if head.has(frame::END_STREAM) { self.receive_end(key) } else { Ok(()) }
    }

    fn headers(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.id == 0 {
            return Err((Reason::PROTOCOL_ERROR, "HEADERS of no stream"));
        }
        let (start, end) = unpadded(head, payload)?;
        let part = payload.get(start..end).unwrap_or_default();
        let end_stream = head.has(frame::END_STREAM);
        if head.has(frame::END_HEADERS) {
            return self.block_received(head.id, end_stream, part);
        }
        self.block = Some(Block { id: head.id, end_stream, bytes: BytesMut::from(part), frames: 0 });
        Ok(())
    }

    fn continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        let limit = self.config.max_header_list as usize + frame::DEFAULT_MAX_FRAME;
        let Some(block) = self.block.as_mut().filter(|block| block.id == head.id) else {
            return Err((Reason::PROTOCOL_ERROR, "CONTINUATION of nothing"));
        };
        block.frames += 1;
        if block.frames > MAX_CONTINUATIONS || block.bytes.len() + payload.len() > limit {
            return Err((Reason::ENHANCE_YOUR_CALM, "fields without end"));
        }
        block.bytes.extend_from_slice(payload);
        if !head.has(frame::END_HEADERS) {
            return Ok(());
        }
        match self.block.take() {
            Some(Block { id, end_stream, bytes, .. }) => self.block_received(id, end_stream, &bytes),
            None => Ok(()),
        }
    }

    fn block_received(&mut self, id: u32, end_stream: bool, block: &[u8]) -> Result<(), Fatal> {
        let mut building = Building::default();
        let fits = self
            .decoder
            .decode(block, self.config.max_header_list as usize, &mut |field| building.take(field))
            .map_err(|error| (Reason::COMPRESSION_ERROR, error.0))?;
        if self.role == Role::Server && id > self.last_id {
            return self.open_received(id, end_stream, fits, building);
        }
        let Some(key) = self.find(id)? else {
            let late = self.given_up.has(id) || self.is_left_out(id);
            return if late { Ok(()) } else { Err((Reason::STREAM_CLOSED, "HEADERS of a stream that has ended")) };
        };
        let Some(stream) = self.streams.get_mut(key) else {
            return Ok(());
        };
        if stream.error.is_some() && !matches!(stream.error, Some(Error::Reset(_))) {
            return Ok(());
        }
        let result = match stream.receiving {
            _ if !fits => Err("more fields than we take"),
            Receiving::Ended if stream.send_ended => {
                return Err((Reason::STREAM_CLOSED, "HEADERS of a stream that has ended"));
            }
            _ if stream.error.is_some() => {
                return self.reset(key, Reason::STREAM_CLOSED, "HEADERS behind RST_STREAM");
            }
            Receiving::Ended => {
                return self.reset(key, Reason::STREAM_CLOSED, "HEADERS behind the end of its stream");
            }
            Receiving::Body if !end_stream => Err("trailers that do not end the stream"),
            Receiving::Body => building.trailers().map(|trailers| {
                stream.trailers = Some(trailers);
            }),
            Receiving::Head => {
                let length = building.length;
                building.response().and_then(|head| Self::head_received(stream, head, length, end_stream))
            }
        };
        match result {
            Ok(()) => {
                stream.wake_reader();
                if end_stream { self.receive_end(key) } else { Ok(()) }
            }
            Err(why) => self.reset(key, Reason::PROTOCOL_ERROR, why),
        }
    }

    fn head_received(
        stream: &mut Stream,
        head: ResponseHead,
        length: Option<u64>,
        end_stream: bool,
    ) -> Result<(), &'static str> {
        if head.status.is_informational() {
            if end_stream {
                return Err("an interim answer that ends the stream");
            }
            if stream.interims.len() >= MAX_INTERIMS {
                return Err("interim answers without end");
            }
            stream.interims.push_back(head);
            return Ok(());
        }
        stream.bodiless |= head.status == StatusCode::NO_CONTENT || head.status == StatusCode::NOT_MODIFIED;
        stream.owed = length.filter(|_| !stream.bodiless && !stream.tunnel);
        stream.head = Some(head);
        stream.receiving = Receiving::Body;
        Ok(())
    }

    fn open_received(&mut self, id: u32, end_stream: bool, fits: bool, building: Building) -> Result<(), Fatal> {
        if id.is_multiple_of(2) {
            return Err((Reason::PROTOCOL_ERROR, "a client's stream has an odd number"));
        }
        if let Leaving::After(last) = self.leaving
            && id > last
        {
            // It learns so from our GOAWAY.
            return Ok(());
        }
        self.last_id = id;
        let length = building.length;
        let head = match building.request() {
            // A stream that was reset may still have its task; both together are bounded.
            _ if self.open >= self.config.max_streams
                || self.streams.len() >= 2 * self.config.max_streams as usize
                || self.out.len() > CLOGGED =>
            {
                Err(Reason::REFUSED_STREAM)
            }
            Ok(head) if fits && (head.method == Method::CONNECT || !end_stream || length.is_none_or(|n| n == 0)) => {
                Ok(head)
            }
            _ => Err(Reason::PROTOCOL_ERROR),
        };
        match head {
            Ok(head) => {
                let tunnel = head.method == Method::CONNECT;
                let window = self.peer_window;
                let key = self.insert(id, window);
                if let Some(stream) = self.streams.get_mut(key) {
                    stream.tunnel = tunnel;
                    stream.owed = length.filter(|_| !tunnel);
                    stream.receiving = if end_stream { Receiving::Ended } else { Receiving::Body };
                }
                self.opened.push_back(Opened { key, head });
                Ok(())
            }
            Err(reason) => {
                self.out.put(|out| frame::put_reset(out, id, reason));
                self.given_up.add(id);
                self.refused += u64::from(reason == Reason::REFUSED_STREAM);
                self.replies.add(&self.out)
            }
        }
    }

    pub(super) fn insert(&mut self, id: u32, window: u32) -> usize {
        self.open += 1;
        let key = self.streams.insert(Stream {
            id,
            reader: true,
            writer: true,
            open: true,
            error: None,
            send_window: i64::from(window),
            send_ended: false,
            send_waker: None,
            queued: false,
            granted: false,
            receiving: Receiving::Head,
            bodiless: false,
            tunnel: false,
            owed: None,
            interims: VecDeque::new(),
            head: None,
            chunks: VecDeque::new(),
            small: BytesMut::new(),
            trailers: None,
            recv_window: i64::from(self.config.stream_window),
            used: 0,
            given: 0,
            recv_waker: None,
        });
        self.by_id.insert(id, key);
        key
    }

    fn receive_end(&mut self, key: usize) -> Result<(), Fatal> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        if stream.owed.is_some_and(|owed| owed > 0) {
            return self.reset(key, Reason::PROTOCOL_ERROR, "a body shorter than its Content-Length");
        }
        stream.receiving = Receiving::Ended;
        stream.wake_reader();
        if stream.send_ended {
            self.closed(key);
        }
        Ok(())
    }

    /// Both halves have ended: the stream no longer counts.
    pub(super) fn closed(&mut self, key: usize) {
        if let Some(stream) = self.streams.get_mut(key)
            && std::mem::replace(&mut stream.open, false)
        {
            self.open -= 1;
        }
    }

    fn reset_received(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        let Some(code) = frame::u32_at(payload, 0).filter(|_| payload.len() == 4) else {
            return Err((Reason::FRAME_SIZE_ERROR, "RST_STREAM of another length"));
        };
        let Some(key) = self.find(head.id)? else { return Ok(()) };
        self.end_with(key, Error::Reset(Reason::new(code)));
        Ok(())
    }

    /// Ends a stream that is not complete. What has come stays readable: the last lines of a log, say, before its pod was killed.
    pub(super) fn end_with(&mut self, key: usize, error: Error) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.error.is_some() || (stream.send_ended && stream.receive_ended()) {
            return;
        }
        stream.error = Some(error);
        stream.wake_reader();
        stream.wake_writer();
        self.closed(key);
    }

    /// Throws away what came of a message that will not be whole. One that came whole stays readable: cut, it would look whole.
    pub(super) fn discard_unfinished(&mut self, key: usize) {
        if self.streams.get(key).is_some_and(|stream| !stream.receive_ended()) {
            self.discard(key);
        }
    }

    /// Throws away what nobody will read any more.
    pub(super) fn discard(&mut self, key: usize) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.chunks = VecDeque::new();
            stream.small = BytesMut::new();
            stream.trailers = None;
            let used = std::mem::take(&mut stream.used);
            self.give_connection(used as u32);
        }
    }

    /// Resets a stream for what the other end did.
    pub(super) fn reset(&mut self, key: usize, reason: Reason, why: &'static str) -> Result<(), Fatal> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        let id = stream.id;
        self.out.put(|out| frame::put_reset(out, id, reason));
        self.end_with(key, Error::GivenUp(why));
        self.discard_unfinished(key);
        self.replies.add(&self.out)
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.id != 0 {
            return Err((Reason::PROTOCOL_ERROR, "SETTINGS of a stream"));
        }
        if head.has(frame::ACK) {
            let empty = payload.is_empty();
            return if empty { Ok(()) } else { Err((Reason::FRAME_SIZE_ERROR, "SETTINGS' ACK with a payload")) };
        }
        if !payload.len().is_multiple_of(6) {
            return Err((Reason::FRAME_SIZE_ERROR, "SETTINGS of another length"));
        }
        let first = !std::mem::replace(&mut self.greeted, true);
        if first && self.role == Role::Client {
            // None is said: no limit (§6.5.2).
            self.peer_max_streams = u32::MAX;
        }
        let mut window = None;
        for mut setting in payload.chunks_exact(6) {
            let (name, value) = (setting.get_u16(), setting.get_u32());
            match name {
                frame::SETTINGS_HEADER_TABLE_SIZE => self.encoder.set_peer_size(value),
                frame::SETTINGS_ENABLE_PUSH if value > 1 => {
                    return Err((Reason::PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1"));
                }
                frame::SETTINGS_MAX_CONCURRENT_STREAMS => self.peer_max_streams = value,
                frame::SETTINGS_INITIAL_WINDOW_SIZE if value > frame::MAX_31 => {
                    return Err((Reason::FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE above 2^31-1"));
                }
                // Once for the frame, which may hold thousands: each is a walk over all streams.
                frame::SETTINGS_INITIAL_WINDOW_SIZE => window = Some(value),
                frame::SETTINGS_MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => {
                    return Err((Reason::PROTOCOL_ERROR, "MAX_FRAME_SIZE out of its range"));
                }
                // Larger frames than ours would only let others wait longer.
                frame::SETTINGS_MAX_FRAME_SIZE => {
                    self.peer_max_frame = (value as usize).min((self.config.max_frame as usize).max(1 << 14));
                }
                _ => {}
            }
        }
        if let Some(window) = window {
            self.initial_window(window)?;
        }
        self.out.put(frame::put_settings_ack);
        self.replies.add(&self.out)
    }

    fn initial_window(&mut self, value: u32) -> Result<(), Fatal> {
        let difference = i64::from(value) - i64::from(self.peer_window);
        self.peer_window = value;
        for (_, stream) in &mut self.streams {
            stream.send_window += difference;
            if stream.send_window > i64::from(frame::MAX_31) {
                return Err((Reason::FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE makes a window too large"));
            }
            if difference > 0 {
                stream.wake_writer();
            }
        }
        Ok(())
    }

    fn ping_received(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.id != 0 {
            return Err((Reason::PROTOCOL_ERROR, "PING of a stream"));
        }
        let Ok(payload) = <[u8; 8]>::try_from(payload) else {
            return Err((Reason::FRAME_SIZE_ERROR, "PING of another length"));
        };
        if !head.has(frame::ACK) {
            self.out.put(|out| frame::put_ping(out, true, payload));
            return self.replies.add(&self.out);
        }
        if payload == ALIVE_PING
            && std::mem::take(&mut self.pinged)
            && let Some(waker) = self.ping_waker.take()
        {
            waker.wake();
        }
        if payload == SHUTDOWN_PING && self.leaving == Leaving::Told {
            let last = self.last_id;
            self.leaving = Leaving::After(last);
            self.out.put(|out| frame::put_goaway(out, last, Reason::NO_ERROR, ""));
        }
        Ok(())
    }

    fn goaway(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.id != 0 {
            return Err((Reason::PROTOCOL_ERROR, "GOAWAY of a stream"));
        }
        let (Some(last), Some(code)) = (frame::u32_at(payload, 0), frame::u32_at(payload, 4)) else {
            return Err((Reason::FRAME_SIZE_ERROR, "GOAWAY of another length"));
        };
        self.peer_leaves = true;
        let last = last & frame::MAX_31;
        if self.role == Role::Client && last < self.peer_last {
            self.peer_last = last;
            let above: Vec<usize> = self.streams.iter().filter(|(_, s)| s.id > last).map(|(key, _)| key).collect();
            for key in above {
                self.end_with(key, Error::GoneAway);
            }
        }
        let reason = Reason::new(code);
        if reason != Reason::NO_ERROR {
            let why = String::from_utf8_lossy(payload.get(8..).unwrap_or_default());
            let why: String = why.chars().filter(|c| !c.is_control()).take(200).collect();
            self.fail(Error::Refused(reason, why.into()));
        }
        Ok(())
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        let Some(increment) = frame::u32_at(payload, 0).filter(|_| payload.len() == 4) else {
            return Err((Reason::FRAME_SIZE_ERROR, "WINDOW_UPDATE of another length"));
        };
        let increment = i64::from(increment & frame::MAX_31);
        let most = i64::from(frame::MAX_31);
        if head.id == 0 {
            self.send_window += increment;
            return match increment {
                0 => Err((Reason::PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")),
                _ if self.send_window > most => Err((Reason::FLOW_CONTROL_ERROR, "a window above 2^31-1")),
                _ => Ok(()),
            };
        }
        let Some(key) = self.find(head.id)? else { return Ok(()) };
        let Some(stream) = self.streams.get_mut(key).filter(|stream| stream.error.is_none()) else { return Ok(()) };
        stream.send_window += increment;
        if increment == 0 {
            return self.reset(key, Reason::PROTOCOL_ERROR, "WINDOW_UPDATE by nothing");
        }
        if stream.send_window > most {
            return self.reset(key, Reason::FLOW_CONTROL_ERROR, "a window above 2^31-1");
        }
        stream.wake_writer();
        Ok(())
    }
}

fn unpadded(head: Head, payload: &[u8]) -> Result<(usize, usize), Fatal> {
    frame::unpadded(head, payload).ok_or((Reason::PROTOCOL_ERROR, "more padding than payload"))
}
