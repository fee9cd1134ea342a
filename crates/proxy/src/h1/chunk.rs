//! Decodes `Transfer-Encoding: chunked` as the bytes come, whatever way they are cut. Line ends are CRLF and nothing
//! else, chunk extensions are skipped within a budget, trailers lose what may not be one.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use thiserror::Error;

use super::fields::{Role, name, role, value};
use super::{HeadError, HeadScan, MAX_FIELDS};

/// What all chunk extensions of one message may take together, in bytes. Source: hyper's limit of 16 KiB.
const MAX_EXTENSIONS: usize = 16 * 1024;

/// The most hexadecimal digits in a chunk's size: what a 64-bit number needs, leading zeros included.
const MAX_DIGITS: u8 = 16;

/// What [`ChunkDecoder::decode`] found next.
#[derive(Debug)]
pub enum Chunk {
    /// The buffer holds nothing more to decode; read more.
    NeedMore,
    /// Some of the body, never empty.
    Data(Bytes),
    /// The body is over, with the trailers that may be passed on; what follows in the buffer is the next message.
    End(Option<HeaderMap>),
}

/// Why a chunked body is refused. Nothing after it may be read as a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChunkError {
    /// A size that is no plain hexadecimal number of at most 63 bits, or a line that does not end with CRLF.
    #[error("a chunk's size is malformed")]
    Size,
    /// An extension with a control character.
    #[error("a chunk extension has a control character")]
    Extension,
    /// More than 16 KiB of extensions in one message.
    #[error("the chunk extensions are longer than 16 KiB")]
    ExtensionsTooLong,
    /// Data that is not followed by CRLF.
    #[error("a chunk's data is longer than its size")]
    DataEnd,
    /// The trailer section, by the rules for fields.
    #[error("the trailers are malformed: {0}")]
    Trailer(HeadError),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// In the digits of a size.
    #[default]
    Size,
    /// After white space behind the size; only an extension may follow.
    Space,
    Extension,
    /// After the CR of a size line.
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers,
    Done,
}

/// An incremental decoder for one body.
#[derive(Debug, Default)]
pub struct ChunkDecoder {
    state: State,
    /// The size while it is read, then what is left of the chunk's data.
    left: u64,
    digits: u8,
    extensions: usize,
    scan: HeadScan,
}

impl ChunkDecoder {
    /// At the start of a body.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what can be decoded from the start of `buf`: one piece of data, or the end. Call again until
    /// [`Chunk::NeedMore`]. After the end it says so again and takes nothing.
    ///
    /// # Errors
    /// Any [`ChunkError`]; do not call again.
    #[inline]
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Chunk, ChunkError> {
        loop {
            match self.state {
                State::Data => {
                    if buf.is_empty() {
                        return Ok(Chunk::NeedMore);
                    }
                    let take = usize::try_from(self.left).map_or(buf.len(), |left| left.min(buf.len()));
                    let data = buf.split_to(take).freeze();
                    self.left -= take as u64;
                    if self.left == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Chunk::Data(data));
                }
                State::Trailers => return self.trailers(buf),
                State::Done => return Ok(Chunk::End(None)),
                _ => {
                    if !self.line(buf)? {
                        return Ok(Chunk::NeedMore);
                    }
                }
            }
        }
    }

    /// Whether no more of the body is to come.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Reads up to the end of a size line; false when it has not all come.
    fn line(&mut self, buf: &mut BytesMut) -> Result<bool, ChunkError> {
        let mut used = 0;
        for &b in buf.iter() {
            used += 1;
            self.state = match (self.state, b) {
                (State::DataCr, b'\r') => State::DataLf,
                (State::DataLf, b'\n') => {
                    self.digits = 0;
                    State::Size
                }
                (State::DataCr | State::DataLf, _) => return Err(ChunkError::DataEnd),
                (State::Size, _) if b.is_ascii_hexdigit() => {
                    if self.digits == MAX_DIGITS {
                        return Err(ChunkError::Size);
                    }
                    self.digits += 1;
                    self.left = self.left << 4 | u64::from(hex(b));
                    State::Size
                }
                // 63 bits: as for Content-Length.
                (State::Size, _) if self.digits == 0 || self.left > i64::MAX as u64 => {
                    return Err(ChunkError::Size);
                }
                (State::Size | State::Extension, b'\r') => State::SizeLf,
                (State::Size | State::Space, b';') => self.extension()?,
                (State::Size | State::Space, b' ' | b'\t') => {
                    self.extension()?;
                    State::Space
                }
                (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => self.extension()?,
                (State::Extension, _) => return Err(ChunkError::Extension),
                (State::SizeLf, b'\n') => {
                    self.state = if self.left == 0 { State::Trailers } else { State::Data };
                    buf.advance(used);
                    return Ok(true);
                }
                _ => return Err(ChunkError::Size),
            };
        }
        buf.clear();
        Ok(false)
    }

    /// Counts one byte of an extension.
    fn extension(&mut self) -> Result<State, ChunkError> {
        self.extensions += 1;
        if self.extensions > MAX_EXTENSIONS { Err(ChunkError::ExtensionsTooLong) } else { Ok(State::Extension) }
    }

    fn trailers(&mut self, buf: &mut BytesMut) -> Result<Chunk, ChunkError> {
        match buf.as_ref() {
            [] | [b'\r'] => return Ok(Chunk::NeedMore),
            [b'\r', b'\n', ..] => {
                buf.advance(2);
                self.state = State::Done;
                return Ok(Chunk::End(None));
            }
            _ => {}
        }
        let Some((end, _)) = self.scan.find_end(buf, 0).map_err(ChunkError::Trailer)? else {
            return Ok(Chunk::NeedMore);
        };
        let section = buf.split_to(end).freeze();
        let trailers = parse_trailers(&section).map_err(ChunkError::Trailer)?;
        self.state = State::Done;
        Ok(Chunk::End(Some(trailers).filter(|map| !map.is_empty())))
    }
}

/// The value of a hexadecimal digit.
#[inline]
fn hex(digit: u8) -> u8 {
    (digit & 0xf) + if digit.is_ascii_digit() { 0 } else { 9 }
}

fn parse_trailers(section: &Bytes) -> Result<HeaderMap, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let fields = match httparse::parse_headers(section, &mut fields) {
        Ok(httparse::Status::Complete((len, fields))) if len == section.len() => fields,
        Ok(_) => return Err(HeadError::FieldName),
        Err(error) => return Err(error.into()),
    };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        if is_trailer(field.name) {
            trailers.append(name(field.name)?, value(section, field.value)?);
        }
    }
    Ok(trailers)
}

/// Whether a field may come after the body (RFC 9110 §6.5.1): not what frames, routes, authenticates or says how to
/// read the content, all of which has been decided by then, and perhaps by someone who never saw the trailers.
pub(super) fn is_trailer(name: &str) -> bool {
    const NEVER: [&str; 20] = [
        "age",
        "authorization",
        "cache-control",
        "content-encoding",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expires",
        "forwarded",
        "location",
        "max-forwards",
        "pragma",
        "range",
        "retry-after",
        "set-cookie",
        "trailer",
        "vary",
        "via",
        "x-forwarded-for",
    ];
    role(name) == Role::EndToEnd && !NEVER.iter().any(|never| name.eq_ignore_ascii_case(never))
}
