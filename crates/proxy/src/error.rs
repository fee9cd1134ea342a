//! Every failure on the request path: what happened (a token of RFC 9209), on whose side, and whether another endpoint may
//! be tried. This file alone decides what the client is answered and what the metric, the log and the hint say.

use std::borrow::Cow;
use std::fmt;

use http::StatusCode;

/// What happened: the error types of RFC 9209 §2.3 that a proxy like this one can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The authority names nothing that we serve.
    DestinationNotFound,
    /// The Service is known, but no endpoint of it can be used.
    DestinationUnavailable,
    /// The resolver has no address for a name outside.
    DnsError,
    /// The resolver did not answer in time.
    DnsTimeout,
    /// The address is one that must never be dialled.
    DestinationIpProhibited,
    /// The pod or peer refused the connection.
    ConnectionRefused,
    /// The connection broke before the answer was complete.
    ConnectionTerminated,
    /// The pod or peer did not accept the connection in time.
    ConnectionTimeout,
    /// A limit of ours on connections or streams is reached.
    ConnectionLimitReached,
    /// The pod's certificate, or what it shall be verified by, is not right.
    TlsCertificateError,
    /// The TLS handshake with the pod failed.
    TlsProtocolError,
    /// The request is malformed or ambiguous.
    HttpRequestError,
    /// The request is well-formed but not allowed.
    HttpRequestDenied,
    /// The answer broke off.
    HttpResponseIncomplete,
    /// No answer, or nothing more of it, in time.
    HttpResponseTimeout,
    /// The pod's answer is malformed.
    HttpProtocolError,
    /// An upgrade or the translation between HTTP versions cannot be done.
    HttpUpgradeFailed,
    /// The request came round to us again.
    ProxyLoopDetected,
    /// A fault of ours.
    ProxyInternalError,
}

impl ErrorKind {
    /// Every kind, for the reference page and its test.
    pub const ALL: [Self; 19] = [
        Self::DestinationNotFound,
        Self::DestinationUnavailable,
        Self::DnsError,
        Self::DnsTimeout,
        Self::DestinationIpProhibited,
        Self::ConnectionRefused,
        Self::ConnectionTerminated,
        Self::ConnectionTimeout,
        Self::ConnectionLimitReached,
        Self::TlsCertificateError,
        Self::TlsProtocolError,
        Self::HttpRequestError,
        Self::HttpRequestDenied,
        Self::HttpResponseIncomplete,
        Self::HttpResponseTimeout,
        Self::HttpProtocolError,
        Self::HttpUpgradeFailed,
        Self::ProxyLoopDetected,
        Self::ProxyInternalError,
    ];

    /// The token of RFC 9209; also the metrics label and the log field.
    #[must_use]
    pub const fn token(self) -> &'static str {
        match self {
            Self::DestinationNotFound => "destination_not_found",
            Self::DestinationUnavailable => "destination_unavailable",
            Self::DnsError => "dns_error",
            Self::DnsTimeout => "dns_timeout",
            Self::DestinationIpProhibited => "destination_ip_prohibited",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectionTerminated => "connection_terminated",
            Self::ConnectionTimeout => "connection_timeout",
            Self::ConnectionLimitReached => "connection_limit_reached",
            Self::TlsCertificateError => "tls_certificate_error",
            Self::TlsProtocolError => "tls_protocol_error",
            Self::HttpRequestError => "http_request_error",
            Self::HttpRequestDenied => "http_request_denied",
            Self::HttpResponseIncomplete => "http_response_incomplete",
            Self::HttpResponseTimeout => "http_response_timeout",
            Self::HttpProtocolError => "http_protocol_error",
            Self::HttpUpgradeFailed => "http_upgrade_failed",
            Self::ProxyLoopDetected => "proxy_loop_detected",
            Self::ProxyInternalError => "proxy_internal_error",
        }
    }

    /// The kind with this token.
    #[must_use]
    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.token() == token)
    }

    /// The status that RFC 9209 recommends.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::DestinationNotFound | Self::ProxyInternalError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::DestinationUnavailable | Self::ConnectionLimitReached => StatusCode::SERVICE_UNAVAILABLE,
            Self::DnsError
            | Self::DestinationIpProhibited
            | Self::ConnectionRefused
            | Self::ConnectionTerminated
            | Self::TlsCertificateError
            | Self::TlsProtocolError
            | Self::HttpResponseIncomplete
            | Self::HttpProtocolError
            | Self::HttpUpgradeFailed
            | Self::ProxyLoopDetected => StatusCode::BAD_GATEWAY,
            Self::DnsTimeout | Self::ConnectionTimeout | Self::HttpResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::HttpRequestError => StatusCode::BAD_REQUEST,
            Self::HttpRequestDenied => StatusCode::FORBIDDEN,
        }
    }

    /// The gRPC code for a gRPC request: UNAVAILABLE (14) where another try may succeed, so that gRPC clients retry
    /// by their own policy. Source: gRPC's "HTTP to gRPC Status Code Mapping", which has 14 for 502 to 504.
    #[must_use]
    pub const fn grpc_status(self) -> u8 {
        match self {
            Self::HttpRequestError | Self::HttpProtocolError | Self::ProxyInternalError | Self::ProxyLoopDetected => 13,
            Self::HttpRequestDenied | Self::DestinationIpProhibited => 7,
            Self::HttpUpgradeFailed => 12,
            Self::HttpResponseTimeout => 4,
            Self::DestinationNotFound
            | Self::DestinationUnavailable
            | Self::DnsError
            | Self::DnsTimeout
            | Self::ConnectionRefused
            | Self::ConnectionTerminated
            | Self::ConnectionTimeout
            | Self::ConnectionLimitReached
            | Self::TlsCertificateError
            | Self::TlsProtocolError
            | Self::HttpResponseIncomplete => 14,
        }
    }
}

/// On whose side it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client: a bad request, or it went away.
    Client,
    /// The pod or its node's proxy.
    Upstream,
    /// The link: no connection to the peer could be had, so nothing was sent; or the peer fell silent.
    Link,
    /// Ourselves.
    Internal,
}

/// Whether the request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Nothing of it reached a pod: always.
    Safe,
    /// A pod may have begun with it: only when the method is idempotent (RFC 9110 §9.2.2).
    IfIdempotent,
    /// No.
    Never,
}

/// A failure on the request path.
#[derive(Clone, Debug)]
pub struct Error {
    /// What happened.
    pub kind: ErrorKind,
    /// Where.
    pub side: Side,
    /// Whether another try is allowed.
    pub retry: Retry,
    /// What the operator should know and do; becomes the body and Proxy-Status' details.
    pub details: Cow<'static, str>,
    /// An exact status where the kind has several (431, 501, 505).
    pub status: Option<StatusCode>,
}

impl Error {
    /// The client's fault.
    pub(crate) fn client(kind: ErrorKind, details: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, side: Side::Client, retry: Retry::Never, details: details.into(), status: None }
    }

    /// A failure at or on the way to the pod.
    pub(crate) fn upstream(kind: ErrorKind, retry: Retry, details: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, side: Side::Upstream, retry, details: details.into(), status: None }
    }

    /// No link to a peer.
    pub(crate) fn link(kind: ErrorKind, details: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, side: Side::Link, retry: Retry::Safe, details: details.into(), status: None }
    }

    /// Our own fault or limit.
    pub(crate) fn internal(kind: ErrorKind, details: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, side: Side::Internal, retry: Retry::Never, details: details.into(), status: None }
    }

    /// The client went away; nobody is left to be answered.
    pub(crate) fn client_gone() -> Self {
        Self::client(ErrorKind::ConnectionTerminated, "the client went away before the answer was complete")
    }

    /// Whether there is nobody left to be answered (and nothing that we failed).
    #[must_use]
    pub fn is_client_gone(&self) -> bool {
        self.side == Side::Client && self.kind == ErrorKind::ConnectionTerminated
    }

    /// The status for the client.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| self.kind.status())
    }

    /// The value of the Proxy-Status field: an RFC 8941 string holds printable ASCII only.
    #[must_use]
    pub fn proxy_status(&self) -> String {
        let mut value = format!("posthouse; error={}; details=\"", self.kind.token());
        for c in self.details.chars().take(512) {
            match c {
                '"' | '\\' => {
                    value.push('\\');
                    value.push(c);
                }
                ' '..='~' => value.push(c),
                _ => value.push('?'),
            }
        }
        value.push('"');
        value
    }

    /// `grpc-message`: percent-encoded as gRPC over HTTP/2 asks.
    #[must_use]
    pub fn grpc_message(&self) -> String {
        let mut value = String::with_capacity(self.details.len() + 16);
        value.push_str("posthouse: ");
        for byte in self.details.bytes().take(512) {
            match byte {
                b' '..=b'~' if byte != b'%' => value.push(char::from(byte)),
                _ => {
                    use fmt::Write;
                    let _ = write!(value, "%{byte:02X}");
                }
            }
        }
        value
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.token(), self.details)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_known_again_and_none_is_doubled() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_token(kind.token()), Some(kind));
        }
    }

    #[test]
    fn details_cannot_break_out_of_the_field() {
        let error = Error::client(ErrorKind::HttpRequestError, "a \"quoted\" \\ thing\r\nSet-Cookie: x é");
        let value = error.proxy_status();
        assert!(http::HeaderValue::from_str(&value).is_ok());
        assert_eq!(value, r#"posthouse; error=http_request_error; details="a \"quoted\" \\ thing??Set-Cookie: x ?""#);
        assert!(http::HeaderValue::from_str(&error.grpc_message()).is_ok());
        assert!(error.grpc_message().contains("%0D%0A"));
    }
}
