//! HTTP/1.1 messages as bytes: heads in, heads out, chunks both ways. No IO and no waiting happens here; the connection
//! loops own the buffers and ask. Strict on purpose (RFC 9112 with every MAY that is ambiguous refused): what passes here
//! is written anew from what was understood, so no later parser can read another message out of it.
//! Start at [`parse_request`]; the field rules that requests and responses share are in `fields.rs`.

mod chunk;
mod error;
mod fields;
mod request;
mod response;
mod scan;
mod write;

pub use chunk::{Chunk, ChunkDecoder, ChunkError};
pub use error::HeadError;
pub use fields::{is_upgradable_list, strip_hop_by_hop};
pub use request::{RequestHead, TargetForm, parse_request};
pub use response::{ResponseHead, parse_response};
pub use scan::HeadScan;
pub use write::{
    CHUNK_END, write_chunk_head, write_interim_head, write_last_chunk, write_request_head, write_response_head,
};

/// The longest head, and the longest trailer section, in bytes: request line, fields and the empty line together.
/// Source: the 64 KiB that this proxy also sets as HTTP/2's `SETTINGS_MAX_HEADER_LIST_SIZE`.
pub const MAX_HEAD: usize = 64 * 1024;

/// The most fields in one head or trailer section. Twice what hyper and Envoy take by default (100), since requests
/// here have passed gateways and tracing libraries that each add some.
pub const MAX_FIELDS: usize = 200;

/// How a message's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// There is no body, and nothing says how long it would be.
    None,
    /// `Content-Length`; may be 0.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Until the connection closes; responses only.
    UntilClose,
}
