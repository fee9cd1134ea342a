//! Frames as bytes (RFC 9113 §4, §6).

use bytes::{BufMut, BytesMut};

use crate::error::Reason;

/// What a client sends first (§3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Octets of a frame's header.
pub(crate) const HEADER: usize = 9;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const WITH_PRIORITY: u8 = 32;

pub(crate) const SETTINGS_HEADER_TABLE_SIZE: u16 = 1;
pub(crate) const SETTINGS_ENABLE_PUSH: u16 = 2;
pub(crate) const SETTINGS_MAX_CONCURRENT_STREAMS: u16 = 3;
pub(crate) const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;
pub(crate) const SETTINGS_MAX_FRAME_SIZE: u16 = 5;
pub(crate) const SETTINGS_MAX_HEADER_LIST_SIZE: u16 = 6;
pub(crate) const SETTINGS_ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// The largest window, and the largest stream identifier.
pub(crate) const MAX_31: u32 = (1 << 31) - 1;
/// Windows and frames before SETTINGS say otherwise.
pub(crate) const DEFAULT_WINDOW: u32 = 65_535;
pub(crate) const DEFAULT_MAX_FRAME: usize = 16_384;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) len: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) id: u32,
}

impl Head {
    /// Reads a header; `None` while it is not whole.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let &[l0, l1, l2, kind, flags, i0, i1, i2, i3] = bytes.first_chunk::<HEADER>()?;
        Some(Self {
            len: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            // The highest bit has no meaning and is ignored (§4.1).
            id: u32::from_be_bytes([i0, i1, i2, i3]) & MAX_31,
        })
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Writes a frame's header. Lengths stay below 2^24: callers bound them by the peer's frame size.
pub(crate) fn put_head(out: &mut BytesMut, len: usize, kind: u8, flags: u8, id: u32) {
    let [_, l0, l1, l2] = (len as u32).to_be_bytes();
    let [i0, i1, i2, i3] = id.to_be_bytes();
    out.put_slice(&[l0, l1, l2, kind, flags, i0, i1, i2, i3]);
}

pub(crate) fn put_settings(out: &mut BytesMut, settings: &[(u16, u32)]) {
    put_head(out, settings.len() * 6, SETTINGS, 0, 0);
    for (name, value) in settings {
        out.put_u16(*name);
        out.put_u32(*value);
    }
}

pub(crate) fn put_settings_ack(out: &mut BytesMut) {
    put_head(out, 0, SETTINGS, ACK, 0);
}

pub(crate) fn put_ping(out: &mut BytesMut, ack: bool, payload: [u8; 8]) {
    put_head(out, 8, PING, if ack { ACK } else { 0 }, 0);
    out.put_slice(&payload);
}

pub(crate) fn put_reset(out: &mut BytesMut, id: u32, reason: Reason) {
    put_head(out, 4, RST_STREAM, 0, id);
    out.put_u32(reason.code());
}

pub(crate) fn put_window(out: &mut BytesMut, id: u32, increment: u32) {
    put_head(out, 4, WINDOW_UPDATE, 0, id);
    out.put_u32(increment);
}

pub(crate) fn put_goaway(out: &mut BytesMut, last: u32, reason: Reason, why: &str) {
    put_head(out, 8 + why.len(), GOAWAY, 0, 0);
    out.put_u32(last);
    out.put_u32(reason.code());
    out.put_slice(why.as_bytes());
}

/// Reads four octets.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A payload without its padding (§6.1) and, in HEADERS, without its priority (§6.2); `None` when it is malformed.
pub(crate) fn unpadded(head: Head, payload: &[u8]) -> Option<(usize, usize)> {
    let (mut start, mut end) = (0, payload.len());
    if head.has(PADDED) {
        let padding = usize::from(*payload.first()?);
        start = 1;
        end = end.checked_sub(padding)?;
    }
    if head.kind == HEADERS && head.has(WITH_PRIORITY) {
        start += 5;
    }
    (start <= end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let mut out = BytesMut::new();
        put_head(&mut out, 0x01_02_03, HEADERS, END_STREAM | END_HEADERS, 77);
        let head = Head::read(&out).unwrap();
        assert_eq!(head, Head { len: 0x01_02_03, kind: HEADERS, flags: 5, id: 77 });
        assert!(head.has(END_STREAM) && head.has(END_HEADERS) && !head.has(PADDED));
        assert_eq!(Head::read(&out[..8]), None);
        // The reserved bit.
        out[5] |= 0x80;
        assert_eq!(Head::read(&out).unwrap().id, 77);
    }

    #[test]
    fn padding_and_priority_are_cut_off_or_refused() {
        let head = |kind, flags| Head { len: 0, kind, flags, id: 1 };
        assert_eq!(unpadded(head(DATA, 0), b"abc"), Some((0, 3)));
        assert_eq!(unpadded(head(DATA, PADDED), &[2, b'a', 0, 0]), Some((1, 2)));
        // Nothing but padding.
        assert_eq!(unpadded(head(DATA, PADDED), &[2, 0, 0]), Some((1, 1)));
        // As much padding as there is payload, its own length octet included (§6.1: an error).
        assert_eq!(unpadded(head(DATA, PADDED), &[3, 0, 0]), None);
        assert_eq!(unpadded(head(DATA, PADDED), &[]), None);
        assert_eq!(unpadded(head(HEADERS, WITH_PRIORITY), &[0; 6]), Some((5, 6)));
        assert_eq!(unpadded(head(HEADERS, WITH_PRIORITY), &[0; 4]), None);
        assert_eq!(unpadded(head(HEADERS, WITH_PRIORITY | PADDED), &[1, 0, 0, 0, 0, 0, b'x', 0]), Some((6, 7)));
    }
}
