//! From a name and a value as they were coded to a [`Field`], by the rules of RFC 9113 §8.2 and §8.3 for one field.
//! Rules about several fields (order, repetition, which must be there) are the caller's.

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use super::{Field, Pseudo};

/// A field's name, valid or not: an entry of the table may be named by later fields even if it is malformed itself.
#[derive(Clone, Debug)]
pub(super) enum Name {
    Pseudo(Pseudo),
    Regular(HeaderName),
    /// No field may have this name.
    Bad {
        why: &'static str,
        /// How many octets it has; all that the table needs of it.
        len: usize,
    },
}

/// The reason for names that belong to one HTTP/1 connection.
pub(super) const CONNECTION_SPECIFIC: &str = "a connection-specific field";

impl Name {
    pub(super) fn parse(name: &[u8]) -> Self {
        let bad = |why| Self::Bad { why, len: name.len() };
        match name {
            b"" => bad("an empty field name"),
            b":method" => Self::Pseudo(Pseudo::Method),
            b":scheme" => Self::Pseudo(Pseudo::Scheme),
            b":authority" => Self::Pseudo(Pseudo::Authority),
            b":path" => Self::Pseudo(Pseudo::Path),
            b":protocol" => Self::Pseudo(Pseudo::Protocol),
            b":status" => Self::Pseudo(Pseudo::Status),
            [b':', ..] => bad("an unknown pseudo-field"),
            // RFC 9113 §8.2.2.
            b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
                bad(CONNECTION_SPECIFIC)
            }
            _ => HeaderName::from_lowercase(name)
                .map_or_else(|_| bad("a field name that is no token in lower case"), Self::Regular),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Pseudo(pseudo) => pseudo.as_str().len(),
            Self::Regular(name) => name.as_str().len(),
            Self::Bad { len, .. } => *len,
        }
    }
}

impl Field {
    /// Reads `value` as a field `name` has it. `own` gives the same octets as [`Bytes`]; it is called at most once, and
    /// only if the field keeps them.
    pub(super) fn parse(name: &Name, value: &[u8], sensitive: bool, own: impl FnOnce() -> Bytes) -> Self {
        let parsed = match name {
            Name::Bad { why, .. } => return Self::Malformed(why),
            Name::Regular(name) if *name == header::TE && value != b"trailers" => {
                return Self::Malformed("a te other than trailers");
            }
            Name::Regular(name) => {
                let Ok(mut value) = HeaderValue::from_maybe_shared(own()) else {
                    return Self::Malformed("a control character in a field value");
                };
                value.set_sensitive(sensitive);
                return Self::Regular(name.clone(), value);
            }
            Name::Pseudo(Pseudo::Method) => Method::from_bytes(value).map(Self::Method).ok(),
            // `Scheme` would take nothing, and a digit in front, for one.
            Name::Pseudo(Pseudo::Scheme) if !value.first().is_some_and(u8::is_ascii_alphabetic) => None,
            Name::Pseudo(Pseudo::Scheme) => Scheme::try_from(value).map(Self::Scheme).ok(),
            // RFC 9113 §8.3.1: no userinfo.
            Name::Pseudo(Pseudo::Authority) if value.contains(&b'@') => None,
            Name::Pseudo(Pseudo::Authority) => Authority::from_maybe_shared(own()).map(Self::Authority).ok(),
            // `PathAndQuery` would take a query without a path, and drop a fragment without a word.
            Name::Pseudo(Pseudo::Path) if !(value == b"*" || value.starts_with(b"/")) || value.contains(&b'#') => None,
            Name::Pseudo(Pseudo::Path) => PathAndQuery::from_maybe_shared(own()).map(Self::Path).ok(),
            Name::Pseudo(Pseudo::Protocol) if value.is_empty() => None,
            Name::Pseudo(Pseudo::Protocol) => HeaderValue::from_maybe_shared(own()).map(Self::Protocol).ok(),
            Name::Pseudo(Pseudo::Status) => StatusCode::from_bytes(value).map(Self::Status).ok(),
        };
        parsed.unwrap_or(Self::Malformed("a pseudo-field's value is not valid"))
    }
}
