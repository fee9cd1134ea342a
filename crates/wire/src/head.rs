//! The heads of messages: what a block's fields make, and whether that is a message at all (RFC 9113 §8.3).

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode};

use crate::hpack::Field;

/// A request's head.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// CONNECT when `protocol` is set, whatever the message was before.
    pub method: Method,
    /// None for a plain CONNECT.
    pub scheme: Option<Scheme>,
    /// Of the resource; the target of a CONNECT.
    pub authority: Option<Authority>,
    /// None for a plain CONNECT.
    pub path: Option<PathAndQuery>,
    /// The protocol of an extended CONNECT (RFC 8441).
    pub protocol: Option<HeaderValue>,
    /// All other fields.
    pub headers: HeaderMap,
}

/// A request to be sent: what [`RequestHead`] holds, borrowed, so that a request that may be sent again need not be cloned.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// CONNECT for a tunnel.
    pub method: &'a Method,
    /// `http` or `https`; None for a plain CONNECT.
    pub scheme: Option<&'a Scheme>,
    /// Of the resource; the target of a CONNECT.
    pub authority: &'a [u8],
    /// None for a plain CONNECT.
    pub path: Option<&'a PathAndQuery>,
    /// The protocol of an extended CONNECT.
    pub protocol: Option<&'a HeaderValue>,
    /// The request's fields.
    pub headers: &'a HeaderMap,
    /// Fields that are sent before them.
    pub extra: &'a [(&'a HeaderName, &'a HeaderValue)],
}

/// An answer's head.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// Its status.
    pub status: StatusCode,
    /// All fields.
    pub headers: HeaderMap,
}

/// Fields for which a map has room from the start; one that grows on the way is hashed anew.
const USUAL_FIELDS: usize = 12;

/// A block that is being read.
#[derive(Default)]
pub(crate) struct Building {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Authority>,
    path: Option<PathAndQuery>,
    protocol: Option<HeaderValue>,
    status: Option<StatusCode>,
    headers: HeaderMap,
    /// Declared length of the body.
    pub(crate) length: Option<u64>,
    malformed: Option<&'static str>,
}

impl Building {
    pub(crate) fn take(&mut self, field: Field) {
        match field {
            Field::Regular(name, value) => {
                if self.headers.capacity() == 0 {
                    self.headers.reserve(USUAL_FIELDS);
                }
                if name == CONTENT_LENGTH {
                    let length = value.to_str().ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
                    match length.and_then(|v| v.parse().ok()) {
                        Some(length) if self.length.is_none_or(|other| other == length) => self.length = Some(length),
                        _ => self.broken("Content-Length is no length, or there are two"),
                    }
                }
                if self.headers.try_append(name, value).is_err() {
                    self.broken("more fields than a message may have");
                }
            }
            Field::Method(value) => self.pseudo(|b| &mut b.method, value),
            Field::Scheme(value) => self.pseudo(|b| &mut b.scheme, value),
            Field::Authority(value) => self.pseudo(|b| &mut b.authority, value),
            Field::Path(value) => self.pseudo(|b| &mut b.path, value),
            Field::Protocol(value) => self.pseudo(|b| &mut b.protocol, value),
            Field::Status(value) => self.pseudo(|b| &mut b.status, value),
            Field::Malformed(why) => self.broken(why),
        }
    }

    fn pseudo<T>(&mut self, slot: impl FnOnce(&mut Self) -> &mut Option<T>, value: T) {
        if !self.headers.is_empty() {
            return self.broken("a pseudo-field behind other fields");
        }
        if slot(self).replace(value).is_some() {
            self.broken("a pseudo-field twice");
        }
    }

    fn broken(&mut self, why: &'static str) {
        self.malformed.get_or_insert(why);
    }

    pub(crate) fn request(self) -> Result<RequestHead, &'static str> {
        let Self { method, scheme, authority, path, protocol, status, headers, malformed, .. } = self;
        if let Some(why) = malformed {
            return Err(why);
        }
        let method = method.ok_or("a request without :method")?;
        if status.is_some() {
            return Err("a request with :status");
        }
        if protocol.is_some() && method != Method::CONNECT {
            return Err(":protocol without CONNECT");
        }
        if method == Method::CONNECT && protocol.is_none() {
            if scheme.is_some() || path.is_some() || authority.is_none() {
                return Err("a CONNECT has :authority, and neither :scheme nor :path");
            }
        } else if scheme.is_none() || path.is_none() {
            return Err("a request without :scheme or :path");
        }
        Ok(RequestHead { method, scheme, authority, path, protocol, headers })
    }

    pub(crate) fn response(self) -> Result<ResponseHead, &'static str> {
        if let Some(why) = self.malformed {
            return Err(why);
        }
        let status = self.status.ok_or("an answer without :status")?;
        if self.method.is_some()
            || self.scheme.is_some()
            || self.authority.is_some()
            || self.path.is_some()
            || self.protocol.is_some()
        {
            return Err("an answer with a request's pseudo-field");
        }
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Err("101 does not exist in HTTP/2");
        }
        Ok(ResponseHead { status, headers: self.headers })
    }

    pub(crate) fn trailers(self) -> Result<HeaderMap, &'static str> {
        if let Some(why) = self.malformed {
            return Err(why);
        }
        if self.method.is_some()
            || self.scheme.is_some()
            || self.authority.is_some()
            || self.path.is_some()
            || self.protocol.is_some()
            || self.status.is_some()
        {
            return Err("trailers with a pseudo-field");
        }
        Ok(self.headers)
    }
}
