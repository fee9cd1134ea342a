//! What ends a stream or a connection.

use std::fmt;
use std::sync::Arc;

/// An error code (RFC 9113 §7).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Reason(u32);

impl Reason {
    /// An end in good order.
    pub const NO_ERROR: Self = Self(0);
    /// The other end broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// A fault of our own.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// More DATA than the window allowed.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// A frame for a half that had ended.
    pub const STREAM_CLOSED: Self = Self(5);
    /// A frame of a length that its type does not have, or above the limit.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// Nothing was done for the stream.
    pub const REFUSED_STREAM: Self = Self(7);
    /// Nobody needs the stream any more.
    pub const CANCEL: Self = Self(8);
    /// The header compression is out of step.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// The other end asks for work without end.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);

    pub(crate) fn new(code: u32) -> Self {
        Self(code)
    }

    /// As a number.
    #[must_use]
    pub fn code(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "error {:#x}", self.0),
        }
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a stream or a connection can no longer be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The other end reset the stream.
    #[error("the stream was reset: {0}")]
    Reset(Reason),
    /// The other end goes away and has done nothing for the stream.
    #[error("the other end takes no new streams")]
    GoneAway,
    /// We reset the stream.
    #[error("the stream was given up: {0}")]
    GivenUp(&'static str),
    /// All streams that the other end allows are open, or the connection takes no more.
    #[error("no stream can be opened")]
    NoRoom,
    /// The stream or its half has ended already.
    #[error("the stream has ended")]
    Ended,
    /// The bytes' way broke.
    #[error("{0}")]
    Io(Arc<str>),
    /// The other end broke the protocol.
    #[error("{1} ({0})")]
    Protocol(Reason, &'static str),
    /// The other end ended the connection for a fault that it sees.
    #[error("the other end ended the connection: {0}{colon}{1}", colon = if .1.is_empty() { "" } else { ": " })]
    Refused(Reason, Arc<str>),
}

impl Error {
    pub(crate) fn io(error: &std::io::Error) -> Self {
        Self::Io(error.to_string().into())
    }
}
