//! HTTP/2 written by hand, frame by frame, for what no decent library would send.

use std::net::SocketAddr;

use super::Wire;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose frames the test writes itself.
pub(crate) struct Frames {
    pub(crate) wire: Wire,
}

/// The kinds that tests ask for (RFC 9113 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    Data = 0,
    Headers = 1,
    Reset = 3,
    Settings = 4,
    GoAway = 7,
}

/// A frame from the proxy.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn is(&self, kind: FrameKind) -> bool {
        self.kind == kind as u8
    }
}

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PING: u8 = 6;

impl Frames {
    /// Connects and sends the preface with empty SETTINGS.
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let mut this = Self { wire: Wire::connect(to).await };
        this.wire.send(PREFACE).await;
        this.send(FrameKind::Settings, 0, 0, &[]).await;
        this
    }

    pub(crate) async fn send(&mut self, kind: FrameKind, flags: u8, stream: u32, payload: &[u8]) {
        self.wire.send(frame(kind as u8, flags, stream, payload)).await;
    }

    /// Opens `stream` with these fields, as literals that are not indexed.
    pub(crate) async fn headers(&mut self, stream: u32, fields: &[(&[u8], &[u8])], end: bool) {
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        self.send(FrameKind::Headers, flags, stream, &block(fields)).await;
    }

    pub(crate) async fn data(&mut self, stream: u32, data: &[u8], end: bool) {
        self.send(FrameKind::Data, if end { END_STREAM } else { 0 }, stream, data).await;
    }

    pub(crate) async fn reset(&mut self, stream: u32) {
        // CANCEL
        self.send(FrameKind::Reset, 0, stream, &8u32.to_be_bytes()).await;
    }

    /// The next frame that matters, with SETTINGS and PING acknowledged; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            let frame = self.read().await?;
            match frame.kind {
                PING if frame.flags & ACK == 0 => self.acknowledge(PING, &frame.payload).await,
                PING => {}
                _ if frame.is(FrameKind::Settings) && frame.flags & ACK == 0 => {
                    self.acknowledge(FrameKind::Settings as u8, &[]).await;
                    return Some(frame);
                }
                _ if frame.is(FrameKind::Settings) => {}
                _ => return Some(frame),
            }
        }
    }

    async fn acknowledge(&mut self, kind: u8, payload: &[u8]) {
        // The other side may have closed after its last frames, which are still to be read.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut self.wire.stream, &frame(kind, ACK, 0, payload)).await;
    }

    async fn read(&mut self) -> Option<Frame> {
        let head = self.wire.try_exactly(9).await?;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head.try_into().ok()?;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let payload = self.wire.try_exactly(length as usize).await?;
        Some(Frame { kind, flags, stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]), payload })
    }

    /// How `stream` ends: the kinds of its frames until one ends it, or until the connection does.
    pub(crate) async fn outcome(&mut self, stream: u32) -> Outcome {
        let mut answered = None;
        while let Some(frame) = self.next().await {
            if frame.is(FrameKind::GoAway) {
                return Outcome::Connection;
            }
            if frame.stream != stream {
                continue;
            }
            if frame.is(FrameKind::Reset) {
                return Outcome::Reset;
            }
            if frame.is(FrameKind::Headers) && answered.is_none() {
                answered = Some(status(&frame.payload));
            }
            if frame.flags & END_STREAM != 0
                && (frame.is(FrameKind::Headers) || frame.is(FrameKind::Data))
                && let Some(status) = answered
            {
                return Outcome::Answered(status);
            }
        }
        Outcome::Connection
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With a whole answer of this status (0 when it is not in the static table nor plain).
    Answered(u16),
    Reset,
    /// The whole connection was ended.
    Connection,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Fields as literals without indexing, names written out (RFC 7541 §6.2.2).
pub(crate) fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

/// A length with a prefix of seven bits (RFC 7541 §5.1), not Huffman-coded.
fn integer(block: &mut Vec<u8>, n: usize) {
    if n < 127 {
        block.push(n as u8);
        return;
    }
    block.push(127);
    let mut rest = n - 127;
    while rest >= 128 {
        block.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// The status of an answer's first field: indexed (RFC 7541 appendix A) or a literal with that name.
fn status(block: &[u8]) -> u16 {
    const STATIC: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    // A change of the dynamic table's size may come first.
    let block = match block {
        [0x20..=0x3f, rest @ ..] => rest,
        block => block,
    };
    match block {
        [indexed @ 0x88..=0x8e, ..] => STATIC[usize::from(indexed - 0x88)],
        [0x08..=0x0e | 0x48..=0x4e, 3, digits @ ..] => {
            std::str::from_utf8(&digits[..3]).ok().and_then(|d| d.parse().ok()).unwrap_or_default()
        }
        [0x08..=0x0e | 0x48..=0x4e, 0x82 | 0x83, huffman @ ..] => huffman_digits(huffman),
        _ => 0,
    }
}

/// Three digits in Huffman code (RFC 7541 appendix B): 0, 1 and 2 have five bits, the others six.
fn huffman_digits(bytes: &[u8]) -> u16 {
    // At most 18 bits; what stands behind them is not looked at.
    let bits =
        bytes.iter().take(3).fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (4 - bytes.len().min(3)));
    let (mut at, mut status) = (0, 0);
    for _ in 0..3 {
        let five = (bits << at) >> 27;
        let digit = if five < 3 {
            at += 5;
            five
        } else {
            let six = (bits << at) >> 26;
            at += 6;
            // '3' is 0x19 up to '9' at 0x1f.
            six.wrapping_sub(0x19) + 3
        };
        status = status * 10 + digit;
    }
    u16::try_from(status).unwrap_or_default()
}

/// The other side of a connection, and frames that must arrive together.
impl Frames {
    /// The client's side over a connection that is there already; `settings` by their numbers (RFC 9113 §6.5.2).
    pub(crate) async fn over(wire: Wire, settings: &[(u16, u32)]) -> Self {
        let mut this = Self { wire };
        this.wire.send(PREFACE).await;
        this.settings(settings).await;
        this
    }

    /// The server's side: reads the preface and sends `settings`; `None` when the connection ends before.
    pub(crate) async fn accept(wire: Wire, settings: &[(u16, u32)]) -> Option<Self> {
        let mut this = Self::greeted(wire).await?;
        this.settings(settings).await;
        Some(this)
    }

    /// The server's side that says nothing at all before `count` streams are open; and their numbers.
    pub(crate) async fn accept_late(wire: Wire, count: usize) -> Option<(Self, Vec<u32>)> {
        let mut this = Self::greeted(wire).await?;
        let mut streams = Vec::new();
        while streams.len() < count {
            let frame = this.read().await?;
            if frame.is(FrameKind::Headers) {
                streams.push(frame.stream);
            }
        }
        this.settings(&[]).await;
        Some((this, streams))
    }

    async fn greeted(mut wire: Wire) -> Option<Self> {
        let preface = wire.try_exactly(PREFACE.len()).await?;
        assert_eq!(preface, PREFACE);
        Some(Self { wire })
    }

    pub(crate) async fn settings(&mut self, settings: &[(u16, u32)]) {
        let payload: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        self.send(FrameKind::Settings, 0, 0, &payload).await;
    }

    /// The next stream that the other side opens, `None` at the end of the connection.
    pub(crate) async fn stream(&mut self) -> Option<u32> {
        loop {
            let frame = self.next().await?;
            if frame.is(FrameKind::Headers) {
                return Some(frame.stream);
            }
        }
    }

    pub(crate) fn headers_bytes(stream: u32, fields: &[(&[u8], &[u8])], end: bool) -> Vec<u8> {
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        frame(FrameKind::Headers as u8, flags, stream, &block(fields))
    }

    pub(crate) fn data_bytes(stream: u32, data: &[u8], end: bool) -> Vec<u8> {
        frame(FrameKind::Data as u8, if end { END_STREAM } else { 0 }, stream, data)
    }

    /// RST_STREAM with this code (RFC 9113 §7).
    pub(crate) fn reset_bytes(stream: u32, code: u32) -> Vec<u8> {
        frame(FrameKind::Reset as u8, 0, stream, &code.to_be_bytes())
    }
}

impl Frame {
    /// Whether it ends its stream in good order.
    pub(crate) fn is_last(&self) -> bool {
        (self.is(FrameKind::Headers) || self.is(FrameKind::Data)) && self.flags & END_STREAM != 0
    }

    /// The status of an answer's HEADERS, 0 when it is not told by the static table.
    pub(crate) fn status(&self) -> u16 {
        status(&self.payload)
    }
}
