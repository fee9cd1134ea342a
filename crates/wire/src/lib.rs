//! The links' own HTTP/2 (RFC 9113): one connection, many streams, few copies. Between proxies a request is a dozen fields
//! that nearly all went over the connection before, and a body; what that costs is what this crate is for (docs/decisions.md
//! has the figures). It speaks plain HTTP/2: the tests have the `h2` crate at the other end.
//!
//! Everything of a connection lives on one thread. One task polls the [`Connection`]; the handles of its streams
//! ([`RecvStream`], [`SendStream`]) work on the shared state at once and let that task write.

mod conn;

mod error;
mod frame;
mod head;
mod hpack;
mod output;
mod state;

pub use crate::conn::{Accepted, Connection, Heard, Opener, Pinger, RecvStream, SendStream, accept, connect};
pub use crate::error::{Error, Reason};
pub use crate::head::{Ask, RequestHead, ResponseHead};
pub use crate::state::Config;
