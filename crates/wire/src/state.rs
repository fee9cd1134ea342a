//! One connection's state without its IO: frames go in, frames come out, tasks are woken. Handles of streams and the
//! connection's driver share it within one thread; each borrow lasts for one call.

use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use slab::Slab;

use crate::error::{Error, Reason};
use crate::frame::{self, Head};
use crate::head::{Ask, Building, RequestHead, ResponseHead};
use crate::hpack::{Decoder, Encoder, Pseudo};
use crate::output::Output;

/// Limits of one end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bytes of DATA that a stream may have under way to us.
    pub stream_window: u32,
    /// Bytes of DATA that all streams may have under way to us.
    pub connection_window: u32,
    /// The largest frame that we take.
    pub max_frame: u32,
    /// Streams that the other end may have open.
    pub max_streams: u32,
    /// Octets of a message's fields (RFC 9113 §6.5.2).
    pub max_header_list: u32,
}

/// Octets of each direction's table of fields, at most. 16 KiB: the fields of some 150 pods and clients; the default of 4 KiB holds
/// those of 40, and more would be looked up in vain.
const TABLE: usize = 16 * 1024;
/// Bytes that may wait for the socket before streams have to wait with theirs: two of the largest frames, so that one can be
/// written while the next is made.
const OUTPUT: usize = 128 * 1024;
/// A stream's DATA below this size are merged while they wait: a frame of a few bytes must not cost a hundred.
const MERGE_BELOW: usize = 4 * 1024;
const MERGED: usize = 16 * 1024;
/// Bytes that may wait for the socket at all. Beyond it no stream is opened or taken: an end that writes and never reads would have us
/// keep the answers to all that it asks. 4 MiB: a KiB of head for each of the streams that a link may have open.
const CLOGGED: usize = 4 << 20;
/// Frames that one block may be cut into: at the default frame size 64 carry 1 MiB, far above any limit on fields. An end that sends
/// more does so to make work (CVE-2024-27316).
const MAX_CONTINUATIONS: usize = 64;
/// Answers to the other end's frames (PING, SETTINGS, refused streams) that may wait for it to read them.
const MAX_REPLIES: usize = 8192;
/// Streams that we gave up and remember: as many as may be open.
const MAX_GIVEN_UP: usize = 4096;
/// 1xx heads of one stream that may wait for its task.
const MAX_INTERIMS: usize = 32;
/// Streams that we open before the other end's SETTINGS are known. Source: what RFC 9113 §6.5.2 recommends as the least limit.
const FIRST_STREAMS: u32 = 100;

/// The PING of a shutdown in good order and of a caller's question.
const SHUTDOWN_PING: [u8; 8] = *b"goodbye\0";
const ALIVE_PING: [u8; 8] = *b"alive?\0\0";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// What a stream's other end sends.
enum Receiving {
    /// Its head has not come.
    Head,
    Body,
    Ended,
}

pub(crate) struct Stream {
    id: u32,
    /// The handle that reads and the one that writes.
    reader: bool,
    writer: bool,
    /// Counts towards the limit on open streams.
    open: bool,
    error: Option<Error>,
    send_window: i64,
    send_ended: bool,
    send_waker: Option<Waker>,
    /// In `Core::waiting`.
    queued: bool,
    /// Its turn has come.
    granted: bool,
    receiving: Receiving,
    /// A body is not allowed although its length may be told (HEAD, 204, 304).
    bodiless: bool,
    /// Of a CONNECT: what follows is no content, so no length is declared of it (RFC 9110 §9.3.6).
    tunnel: bool,
    /// What is still owed of a declared length.
    owed: Option<u64>,
    interims: VecDeque<ResponseHead>,
    head: Option<ResponseHead>,
    chunks: VecDeque<Bytes>,
    small: BytesMut,
    trailers: Option<HeaderMap>,
    recv_window: i64,
    /// Received and not yet given back.
    used: usize,
    /// Given back and not yet told.
    given: u32,
    recv_waker: Option<Waker>,
}

impl Stream {
    fn has_data(&self) -> bool {
        !self.chunks.is_empty() || !self.small.is_empty()
    }

    fn receive_ended(&self) -> bool {
        matches!(self.receiving, Receiving::Ended)
    }

    fn wake_reader(&mut self) {
        if let Some(waker) = self.recv_waker.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.send_waker.take() {
            waker.wake();
        }
    }
}

fn keep_waker(slot: &mut Option<Waker>, cx: &Context<'_>) {
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}

/// A block whose CONTINUATION frames are still to come.
struct Block {
    id: u32,
    end_stream: bool,
    bytes: BytesMut,
    frames: usize,
}

/// How far our own going away is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// The other end was told; streams that it opened before it knew are still taken.
    Told,
    /// No stream above this one.
    After(u32),
}

enum Asked {
    Nothing,
    Waiting,
    Answered,
}

/// Streams that we gave up while the other end may not have known: its frames for them are late, not wrong (RFC 9113 §5.1). The
/// newest are known by number; all up to the highest that was forgotten get the benefit of the doubt.
#[derive(Default)]
struct GivenUp {
    order: VecDeque<u32>,
    known: HashSet<u32, foldhash::fast::RandomState>,
    forgotten: u32,
}

impl GivenUp {
    fn add(&mut self, id: u32) {
        if self.known.insert(id) {
            self.order.push_back(id);
        }
        if self.order.len() > MAX_GIVEN_UP
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
            self.forgotten = self.forgotten.max(oldest);
        }
    }

    fn has(&self, id: u32) -> bool {
        id <= self.forgotten || self.known.contains(&id)
    }
}

/// Answers to the other end's frames that it has not taken yet, counted so that one that asks and never reads cannot fill our
/// memory. The output may not be empty for hours, so they are counted in two parts: those before a mark in it, and those behind.
#[derive(Default)]
struct Replies {
    before: usize,
    mark: u64,
    behind: usize,
}

impl Replies {
    fn add(&mut self, out: &Output) -> Result<(), Fatal> {
        self.behind += 1;
        if out.written() >= self.mark {
            self.before = std::mem::take(&mut self.behind);
            self.mark = out.written() + out.len() as u64;
        }
        if self.before + self.behind > MAX_REPLIES {
            return Err((Reason::ENHANCE_YOUR_CALM, "questions faster than their answers are read"));
        }
        Ok(())
    }
}

/// A stream that the other end opened.
pub(crate) struct Opened {
    pub(crate) key: usize,
    pub(crate) head: RequestHead,
}

pub(crate) struct Core {
    role: Role,
    config: Config,
    pub(crate) out: Output,
    encoder: Encoder,
    decoder: Decoder,
    streams: Slab<Stream>,
    by_id: HashMap<u32, usize, foldhash::fast::RandomState>,
    next_id: u32,
    /// The highest stream that the other end opened.
    last_id: u32,
    open: u32,
    greeted: bool,
    peer_max_streams: u32,
    peer_window: u32,
    peer_max_frame: usize,
    send_window: i64,
    recv_window: i64,
    given: u32,
    /// Streams that wait for the connection's window or for room in the output, in the order in which they came.
    waiting: VecDeque<usize>,
    opened: VecDeque<Opened>,
    block: Option<Block>,
    leaving: Leaving,
    /// The other end opens or takes no new streams.
    peer_leaves: bool,
    /// The highest stream that it still handles, as far as it said.
    peer_last: u32,
    ping: Asked,
    ping_waker: Option<Waker>,
    failed: Option<Error>,
    replies: Replies,
    given_up: GivenUp,
    driver: Option<Waker>,
    scheduled: bool,
    pub(crate) heard: Rc<Cell<bool>>,
}

/// An error of the whole connection.
pub(crate) type Fatal = (Reason, &'static str);

impl Core {
    pub(crate) fn new(role: Role, config: Config) -> Self {
        let mut out = Output::default();
        let mut settings = vec![
            (frame::SETTINGS_HEADER_TABLE_SIZE, TABLE as u32),
            (frame::SETTINGS_INITIAL_WINDOW_SIZE, config.stream_window),
            (frame::SETTINGS_MAX_FRAME_SIZE, config.max_frame),
            (frame::SETTINGS_MAX_HEADER_LIST_SIZE, config.max_header_list),
        ];
        match role {
            Role::Client => settings.push((frame::SETTINGS_ENABLE_PUSH, 0)),
            Role::Server => {
                settings.push((frame::SETTINGS_MAX_CONCURRENT_STREAMS, config.max_streams));
                settings.push((frame::SETTINGS_ENABLE_CONNECT_PROTOCOL, 1));
            }
        }
        out.put(|out| {
            if role == Role::Client {
                out.extend_from_slice(frame::PREFACE);
            }
            frame::put_settings(out, &settings);
            let more = config.connection_window.saturating_sub(frame::DEFAULT_WINDOW);
            if more > 0 {
                frame::put_window(out, 0, more);
            }
        });
        Self {
            role,
            config,
            out,
            encoder: Encoder::new(TABLE),
            decoder: Decoder::new(TABLE),
            streams: Slab::new(),
            by_id: HashMap::default(),
            next_id: 1,
            last_id: 0,
            open: 0,
            greeted: false,
            peer_max_streams: FIRST_STREAMS,
            peer_window: frame::DEFAULT_WINDOW,
            peer_max_frame: frame::DEFAULT_MAX_FRAME,
            send_window: i64::from(frame::DEFAULT_WINDOW),
            recv_window: i64::from(config.connection_window.max(frame::DEFAULT_WINDOW)),
            given: 0,
            waiting: VecDeque::new(),
            opened: VecDeque::new(),
            block: None,
            leaving: Leaving::No,
            peer_leaves: false,
            peer_last: frame::MAX_31,
            ping: Asked::Nothing,
            ping_waker: None,
            failed: None,
            replies: Replies::default(),
            given_up: GivenUp::default(),
            driver: None,
            scheduled: false,
            heard: Rc::new(Cell::new(false)),
        }
    }

    // ---- the driver's side

    pub(crate) fn begin_turn(&mut self, cx: &Context<'_>) {
        self.scheduled = false;
        keep_waker(&mut self.driver, cx);
    }

    /// Lets the driver run: there is something to write.
    fn schedule(&mut self) {
        if !self.scheduled {
            self.scheduled = true;
            if let Some(driver) = &self.driver {
                driver.wake_by_ref();
            }
        }
    }

    pub(crate) fn max_frame(&self) -> usize {
        self.config.max_frame as usize
    }

    pub(crate) fn failed(&self) -> Option<&Error> {
        self.failed.as_ref()
    }

    pub(crate) fn next_opened(&mut self) -> Option<Opened> {
        self.opened.pop_front()
    }

    /// Whether no stream waits for anything from the other end.
    pub(crate) fn all_ended(&self) -> bool {
        self.open == 0
    }

    /// Whether nothing more will come or go in good order.
    pub(crate) fn is_over(&self) -> bool {
        let leaves = self.peer_leaves || matches!(self.leaving, Leaving::After(_));
        leaves && self.streams.is_empty() && self.opened.is_empty() && self.out.is_flushed()
    }

    /// Wakes streams that wait for room, as many as there is room for. The driver comes back until none waits or the room is used.
    pub(crate) fn serve_waiting(&mut self) {
        let mut room = OUTPUT.saturating_sub(self.out.len());
        while room > 0 && self.send_window > 0 {
            let Some(key) = self.waiting.pop_front() else { return };
            // A stream that is gone is not in the list: see `remove`.
            if let Some(stream) = self.streams.get_mut(key) {
                stream.queued = false;
                stream.granted = true;
                stream.wake_writer();
            }
            room = room.saturating_sub(self.peer_max_frame);
        }
        if !self.waiting.is_empty() && room == 0 && self.out.len() < OUTPUT && self.send_window > 0 {
            self.schedule();
        }
    }

    /// The connection has failed: all streams end.
    pub(crate) fn fail(&mut self, error: Error) {
        if self.failed.is_some() {
            return;
        }
        for (_, stream) in &mut self.streams {
            // What has come whole stays readable.
            if stream.error.is_none() && !(stream.receive_ended() && stream.send_ended) {
                stream.error = Some(error.clone());
            }
            stream.wake_reader();
            stream.wake_writer();
        }
        self.failed = Some(error);
        self.waiting.clear();
        if let Some(waker) = self.ping_waker.take() {
            waker.wake();
        }
    }

    /// Fails for what the other end did, and tells it.
    pub(crate) fn fault(&mut self, (reason, why): Fatal) {
        if self.failed.is_none() {
            let last = self.last_id;
            self.out.put(|out| frame::put_goaway(out, last, reason, why));
            self.fail(Error::Protocol(reason, why));
        }
    }

    // ---- frames from the other end

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
                self.replies.add(&self.out)
            }
        }
    }

    fn insert(&mut self, id: u32, window: u32) -> usize {
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
    fn closed(&mut self, key: usize) {
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
    fn end_with(&mut self, key: usize, error: Error) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.error.is_some() || (stream.send_ended && stream.receive_ended()) {
            return;
        }
        stream.error = Some(error);
        stream.wake_reader();
        stream.wake_writer();
        self.closed(key);
    }

    /// Throws away what nobody will read any more.
    fn discard(&mut self, key: usize) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.chunks = VecDeque::new();
            stream.small = BytesMut::new();
            stream.trailers = None;
            let used = std::mem::take(&mut stream.used);
            self.give_connection(used as u32);
        }
    }

    /// Resets a stream for what the other end did.
    fn reset(&mut self, key: usize, reason: Reason, why: &'static str) -> Result<(), Fatal> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        let id = stream.id;
        self.out.put(|out| frame::put_reset(out, id, reason));
        self.end_with(key, Error::GivenUp(why));
        self.discard(key);
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
        if payload == ALIVE_PING && matches!(self.ping, Asked::Waiting) {
            self.ping = Asked::Answered;
            if let Some(waker) = self.ping_waker.take() {
                waker.wake();
            }
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

    // ---- the streams' side

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
        self.discard(key);
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

    fn give(&mut self, key: usize, bytes: u32) {
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

    fn give_connection(&mut self, bytes: u32) {
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
            if matches!(stream.error, Some(Error::GivenUp(_))) && !stream.receive_ended() {
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

    // ---- the connection's side

    /// Goes away in good order: streams that are open go on.
    pub(crate) fn leave(&mut self) {
        if self.leaving == Leaving::No && self.failed.is_none() {
            self.leaving = Leaving::Told;
            self.out.put(|out| {
                frame::put_goaway(out, frame::MAX_31, Reason::NO_ERROR, "");
                frame::put_ping(out, false, SHUTDOWN_PING);
            });
            self.schedule();
        }
    }

    /// Goes away for good: no streams are taken or opened from now on.
    pub(crate) fn close(&mut self) {
        if !matches!(self.leaving, Leaving::After(_)) && self.failed.is_none() {
            let last = self.last_id;
            self.leaving = Leaving::After(last);
            self.out.put(|out| frame::put_goaway(out, last, Reason::NO_ERROR, ""));
            self.schedule();
        }
    }

    pub(crate) fn ask_alive(&mut self) {
        if !matches!(self.ping, Asked::Waiting) {
            self.out.put(|out| frame::put_ping(out, false, ALIVE_PING));
            self.schedule();
        }
        self.ping = Asked::Waiting;
    }

    pub(crate) fn poll_alive(&mut self, cx: &Context<'_>) -> Poll<Result<(), Error>> {
        if let Some(error) = &self.failed {
            return Poll::Ready(Err(error.clone()));
        }
        if matches!(self.ping, Asked::Waiting) {
            keep_waker(&mut self.ping_waker, cx);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

fn unpadded(head: Head, payload: &[u8]) -> Result<(usize, usize), Fatal> {
    frame::unpadded(head, payload).ok_or((Reason::PROTOCOL_ERROR, "more padding than payload"))
}

#[cfg(test)]
mod tests;
