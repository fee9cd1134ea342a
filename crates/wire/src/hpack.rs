//! HPACK, RFC 7541: how a link's two ends write fields in few octets. Its door is [`Decoder`], which turns a header
//! block into [`Field`]s, and [`Encoder`], which writes one. Each keeps a table for one direction of one connection, so
//! blocks must pass through in the order in which they are on the wire, and after a [`DecodeError`] the connection is
//! lost. Both are made for links, where nearly every field of a block has been there before.

mod decoder;
mod encoder;
mod field;
mod huffman;
mod static_table;
#[cfg(test)]
mod tests;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use thiserror::Error;

pub(crate) use decoder::Decoder;
pub(crate) use encoder::Encoder;

/// SETTINGS_HEADER_TABLE_SIZE before any SETTINGS, in octets. Source: RFC 9113 §6.5.2.
const DEFAULT_TABLE_SIZE: usize = 4096;

/// What an entry counts beside its name and value, in octets. Source: RFC 7541 §4.1.
const ENTRY_OVERHEAD: usize = 32;

/// The index of the newest dynamic entry: the static table has 61. Source: RFC 7541 §2.3.3.
const FIRST_DYNAMIC: usize = static_table::TABLE.len() + 1;

/// One field line of a block, parsed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Field {
    Method(Method),
    Scheme(Scheme),
    Authority(Authority),
    Path(PathAndQuery),
    /// `:protocol`, RFC 8441.
    Protocol(HeaderValue),
    Status(StatusCode),
    /// The value is sensitive when the peer wrote it as never indexed (RFC 7541 §6.2.3), so that it stays so when it is
    /// passed on.
    Regular(HeaderName, HeaderValue),
    /// Well coded, but no valid field of HTTP/2: the message is malformed (RFC 9113 §8.1.1), while the connection's
    /// tables stay in step. Holds why.
    Malformed(&'static str),
}

/// The pseudo-fields of RFC 9113 §8.3 and RFC 8441 §4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pseudo {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
}

impl Pseudo {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Method => ":method",
            Self::Scheme => ":scheme",
            Self::Authority => ":authority",
            Self::Path => ":path",
            Self::Protocol => ":protocol",
            Self::Status => ":status",
        }
    }
}

/// Why a block could not be decoded: a COMPRESSION_ERROR of the connection (RFC 9113 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub(crate) struct DecodeError(pub(crate) &'static str);
