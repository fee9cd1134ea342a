//! Why a message is refused, in words for the client, and with which status.

use http::StatusCode;
use posthouse_model::AuthorityError;
use thiserror::Error;

/// Why a head is refused. After any of these nothing more on the connection may be read as a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// A line that ends with LF alone.
    #[error("a line ends without CRLF")]
    LineEnd,
    /// Empty lines before the first line, more than are taken.
    #[error("there are empty lines before the message")]
    EmptyLines,
    /// Longer than [`super::MAX_HEAD`].
    #[error("the message's head is longer than 64 KiB")]
    TooLong,
    /// More than [`super::MAX_FIELDS`] fields.
    #[error("the message has more than 200 header fields")]
    TooManyFields,
    /// The request or status line is not of the right shape.
    #[error("the first line is malformed")]
    StartLine,
    /// The method is no token, or longer than 32 bytes.
    #[error("the method is not a token of at most 32 characters")]
    Method,
    /// The request target is none of the four forms, or not for this method.
    #[error("the request target is malformed: {0}")]
    Target(&'static str),
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("the HTTP version is neither 1.0 nor 1.1")]
    Version,
    /// A status code that is not 100 to 999.
    #[error("the status code is malformed")]
    Status,
    /// A field name that is no token; a space before the colon and a folded line are seen as this, too.
    #[error("a header field's name is empty or has a character that is not allowed (such as a space before the colon)")]
    FieldName,
    /// A control character in a field value (bare CR and NUL among them).
    #[error("a header field's value has a control character")]
    FieldValue,
    /// No Host field in HTTP/1.1, or no authority at all in HTTP/1.0.
    #[error("the Host field is missing")]
    HostMissing,
    /// More than one Host field.
    #[error("there is more than one Host field")]
    HostRepeated,
    /// The authority of the target or of Host.
    #[error("the authority is malformed: {0}")]
    Authority(#[from] AuthorityError),
    /// Both Content-Length and Transfer-Encoding.
    #[error("both Content-Length and Transfer-Encoding are there")]
    LengthAndCoding,
    /// A Content-Length that is no plain number, or too large.
    #[error("the Content-Length is not a number of bytes")]
    Length,
    /// More than one Content-Length, even if they agree.
    #[error("there is more than one Content-Length")]
    LengthRepeated,
    /// Transfer-Encoding that does not end with exactly one `chunked`, or is obfuscated.
    #[error("the Transfer-Encoding is not exactly 'chunked'")]
    Coding,
    /// A well-formed Transfer-Encoding with a coding besides the final `chunked`.
    #[error("the transfer coding is not supported; only 'chunked' is")]
    CodingUnknown,
    /// Transfer-Encoding in HTTP/1.0, which does not have it.
    #[error("Transfer-Encoding is not allowed in HTTP/1.0")]
    CodingInHttp10,
    /// The Connection field is no list of tokens, or names a field that frames or routes the message.
    #[error("the Connection field names a field that is not for this connection alone, or is malformed")]
    Connection,
    /// An expectation other than `100-continue`.
    #[error("the expectation is not '100-continue'")]
    Expectation,
    /// CONNECT with a body.
    #[error("a CONNECT request has a body")]
    ConnectBody,
}

impl HeadError {
    /// The status to answer a refused request with. (A refused response is the backend's fault: 502.)
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::TooLong | Self::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::CodingUnknown => StatusCode::NOT_IMPLEMENTED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::LineEnd
            | Self::EmptyLines
            | Self::StartLine
            | Self::Method
            | Self::Target(_)
            | Self::Status
            | Self::FieldName
            | Self::FieldValue
            | Self::HostMissing
            | Self::HostRepeated
            | Self::Authority(_)
            | Self::LengthAndCoding
            | Self::Length
            | Self::LengthRepeated
            | Self::Coding
            | Self::CodingInHttp10
            | Self::Connection
            | Self::ConnectBody => StatusCode::BAD_REQUEST,
        }
    }
}

impl From<httparse::Error> for HeadError {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::HeaderName => Self::FieldName,
            httparse::Error::HeaderValue => Self::FieldValue,
            httparse::Error::TooManyHeaders => Self::TooManyFields,
            httparse::Error::Status => Self::Status,
            httparse::Error::Version => Self::Version,
            httparse::Error::Token | httparse::Error::NewLine => Self::StartLine,
        }
    }
}
