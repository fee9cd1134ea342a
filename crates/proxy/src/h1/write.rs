//! Writes heads and chunks. The framing is the caller's decision alone: whatever the fields say of Content-Length,
//! Transfer-Encoding, Connection, Upgrade and Host is not written, so a message that came in by HTTP/2 or from another
//! parser cannot bring framing of its own.

use bytes::{BufMut, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use crate::authorise::CLIENT;

use super::BodyLength;
use super::chunk::is_trailer;
use super::fields::{Role, role};

/// Ends a chunk's data.
pub const CHUNK_END: &[u8] = b"\r\n";

/// A field's usual size with its separators, to reserve once for most heads.
const USUAL_FIELD: usize = 48;

/// Appends a request head in origin-form. `path` is a valid path and query, `host` a valid authority. `Length(n)` writes
/// Content-Length (once, whatever `headers` has), `Chunked` Transfer-Encoding, `None` neither. With `upgrade` the
/// request asks for it; `te: trailers` is named in Connection.
pub fn write_request_head(
    dst: &mut BytesMut,
    method: &Method,
    path: &str,
    host: &str,
    headers: &HeaderMap,
    body: BodyLength,
    upgrade: Option<&HeaderValue>,
) {
    dst.reserve(64 + path.len() + host.len() + headers.len() * USUAL_FIELD);
    put(dst, method.as_str().as_bytes());
    put(dst, b" ");
    put(dst, path.as_bytes());
    put(dst, b" HTTP/1.1\r\nhost: ");
    put(dst, host.as_bytes());
    put(dst, b"\r\n");
    let mut te = false;
    for (name, value) in headers {
        match role(name.as_str()) {
            Role::EndToEnd | Role::Expect => put_field(dst, name, value),
            // The one field of ours that a pod sees; what a client sent under the name was dropped when it came.
            Role::Dropped if *name == CLIENT => put_field(dst, name, value),
            Role::Te => {
                te = true;
                put_field(dst, name, value);
            }
            // HTTP/2 has it with an END_STREAM on the head; of an absent body it says nothing new.
            Role::Length if body == BodyLength::None && value.as_bytes() == b"0" => {
                put_field(dst, name, value);
            }
            Role::Length | Role::Host | Role::Coding | Role::Connection | Role::Upgrade => {}
            Role::Dropped | Role::LookAlike => {}
        }
    }
    put_framing(dst, body);
    match (upgrade.is_some(), te) {
        (true, true) => put(dst, b"connection: upgrade, te\r\n"),
        (true, false) => put(dst, b"connection: upgrade\r\n"),
        (false, true) => put(dst, b"connection: te\r\n"),
        (false, false) => {}
    }
    if let Some(protocols) = upgrade {
        put(dst, b"upgrade: ");
        put(dst, protocols.as_bytes());
        put(dst, b"\r\n");
    }
    put(dst, b"\r\n");
}

/// Appends a final response head (or 101 with `upgrade`). `keep_alive` false, and every body that ends with the
/// connection, writes `Connection: close`; for an HTTP/1.0 client keeping it is said aloud. Answers to HEAD and 304 have
/// `BodyLength::None` and keep the Content-Length of `headers`; a 204 has none. `Chunked` must not go to an HTTP/1.0
/// client.
pub fn write_response_head(
    dst: &mut BytesMut,
    status: StatusCode,
    headers: &HeaderMap,
    body: BodyLength,
    keep_alive: bool,
    http10: bool,
    upgrade: Option<&HeaderValue>,
) {
    debug_assert!(!(http10 && body == BodyLength::Chunked), "HTTP/1.0 has no chunks");
    put_status(dst, status, headers);
    let keeps_length = body == BodyLength::None && !status.is_informational() && status != StatusCode::NO_CONTENT;
    for (name, value) in headers {
        match role(name.as_str()) {
            Role::EndToEnd => put_field(dst, name, value),
            Role::Length if keeps_length => put_field(dst, name, value),
            Role::Length | Role::Host | Role::Coding | Role::Connection | Role::Upgrade | Role::Te => {}
            Role::Expect | Role::Dropped | Role::LookAlike => {}
        }
    }
    put_framing(dst, body);
    if let Some(protocol) = upgrade {
        put(dst, b"connection: upgrade\r\nupgrade: ");
        put(dst, protocol.as_bytes());
        put(dst, b"\r\n");
    } else if !keep_alive || body == BodyLength::UntilClose {
        put(dst, b"connection: close\r\n");
    } else if http10 {
        put(dst, b"connection: keep-alive\r\n");
    }
    put(dst, b"\r\n");
}

/// Appends an interim response (1xx, not 101). Never send one to an HTTP/1.0 client.
pub fn write_interim_head(dst: &mut BytesMut, status: StatusCode, headers: &HeaderMap) {
    put_status(dst, status, headers);
    for (name, value) in headers {
        if role(name.as_str()) == Role::EndToEnd {
            put_field(dst, name, value);
        }
    }
    put(dst, b"\r\n");
}

/// Appends the size line of a chunk of `len` bytes; after the data comes [`CHUNK_END`]. `len` is not 0: that would end
/// the body.
pub fn write_chunk_head(dst: &mut BytesMut, len: usize) {
    debug_assert!(len > 0, "an empty chunk ends the body");
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut line = [b'\r'; 18];
    line[17] = b'\n';
    let mut at = 16;
    let mut rest = len;
    loop {
        at -= 1;
        line[at] = DIGITS[rest & 0xf];
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    put(dst, &line[at..]);
}

/// Appends the last chunk and those of `trailers` that may be one.
pub fn write_last_chunk(dst: &mut BytesMut, trailers: Option<&HeaderMap>) {
    put(dst, b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        if is_trailer(name.as_str()) {
            put_field(dst, name, value);
        }
    }
    put(dst, b"\r\n");
}

fn put_status(dst: &mut BytesMut, status: StatusCode, headers: &HeaderMap) {
    dst.reserve(64 + headers.len() * USUAL_FIELD);
    if status == StatusCode::OK {
        put(dst, b"HTTP/1.1 200 OK\r\n");
        return;
    }
    put(dst, b"HTTP/1.1 ");
    put(dst, status.as_str().as_bytes());
    // The space is there even without a phrase (RFC 9112 §4).
    put(dst, b" ");
    put(dst, status.canonical_reason().unwrap_or_default().as_bytes());
    put(dst, b"\r\n");
}

fn put_framing(dst: &mut BytesMut, body: BodyLength) {
    match body {
        BodyLength::Length(length) => {
            put(dst, b"content-length: ");
            put(dst, itoa::Buffer::new().format(length).as_bytes());
            put(dst, b"\r\n");
        }
        BodyLength::Chunked => put(dst, b"transfer-encoding: chunked\r\n"),
        BodyLength::None | BodyLength::UntilClose => {}
    }
}

#[inline]
fn put_field(dst: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    dst.reserve(name.len() + value.len() + 4);
    put(dst, name);
    put(dst, b": ");
    put(dst, value);
    put(dst, b"\r\n");
}

#[inline]
fn put(dst: &mut BytesMut, bytes: &[u8]) {
    dst.put_slice(bytes);
}
