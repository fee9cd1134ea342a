//! One connection's state without its IO: frames go in, frames come out, tasks are woken. Handles of streams and the
//! connection's driver share it within one thread; each borrow lasts for one call. Here is what concerns the connection;
//! `receive.rs` has what the other end sends, `streams.rs` what the handles ask for.

mod late;
mod receive;
mod stream;
mod streams;

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use slab::Slab;

use crate::error::{Error, Reason};
use crate::frame;
use crate::head::RequestHead;
use crate::hpack::{Decoder, Encoder};
use crate::output::Output;

use late::{GivenUp, Replies};
use stream::{Stream, keep_waker};

/// Limits of one end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bytes of DATA that a stream may have under way to us.
    pub stream_window: u32,
    /// Bytes of DATA that all streams may have under way to us.
    pub connection_window: u32,
    /// The largest frame that we take.
    pub max_frame: u32,
    /// Streams that the other end may have open. Until its SETTINGS come, it is taken to allow us as many.
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
/// Bytes that may wait for the socket at all. Beyond it no stream is opened or taken: an end that writes and never reads would have us
/// keep the answers to all that it asks. 4 MiB: a KiB of head for each of the streams that a link may have open.
const CLOGGED: usize = 4 << 20;

/// The PING of a shutdown in good order and of a caller's question.
const SHUTDOWN_PING: [u8; 8] = *b"goodbye\0";
const ALIVE_PING: [u8; 8] = *b"alive?\0\0";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
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
    /// A PING of a caller is not answered yet.
    pinged: bool,
    ping_waker: Option<Waker>,
    failed: Option<Error>,
    replies: Replies,
    given_up: GivenUp,
    /// Streams refused for want of room since the last look.
    pub(crate) refused: u64,
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
            // Both ends of a link are alike. A lower guess made a burst of requests open a second link until the SETTINGS came; one
            // that is too high costs a REFUSED_STREAM, after which the request goes again.
            peer_max_streams: config.max_streams,
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
            pinged: false,
            ping_waker: None,
            failed: None,
            replies: Replies::default(),
            given_up: GivenUp::default(),
            refused: 0,
            driver: None,
            scheduled: false,
            heard: Rc::new(Cell::new(false)),
        }
    }

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
            // A stream that is gone is not in the list: see `drop_one`.
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
        if !std::mem::replace(&mut self.pinged, true) {
            self.out.put(|out| frame::put_ping(out, false, ALIVE_PING));
            self.schedule();
        }
    }

    pub(crate) fn poll_alive(&mut self, cx: &Context<'_>) -> Poll<Result<(), Error>> {
        if let Some(error) = &self.failed {
            return Poll::Ready(Err(error.clone()));
        }
        if self.pinged {
            keep_waker(&mut self.ping_waker, cx);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
