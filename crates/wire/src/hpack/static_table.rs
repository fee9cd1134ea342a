//! The static table of RFC 7541 Appendix A: parsed for the decoder, as look-ups for the encoder.

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::decoder::Entry;
use super::field::{CONNECTION_SPECIFIC, Name};
use super::{ENTRY_OVERHEAD, Field, Pseudo};

/// Index 1 is at 0.
pub(super) static TABLE: [Entry; 61] = [
    // Here for its name only; as a field it would be an authority of no characters.
    pseudo(Pseudo::Authority, "", Field::Malformed("an empty :authority")),
    pseudo(Pseudo::Method, "GET", Field::Method(Method::GET)),
    pseudo(Pseudo::Method, "POST", Field::Method(Method::POST)),
    pseudo(Pseudo::Path, "/", Field::Path(PathAndQuery::from_static("/"))),
    pseudo(Pseudo::Path, "/index.html", Field::Path(PathAndQuery::from_static("/index.html"))),
    pseudo(Pseudo::Scheme, "http", Field::Scheme(Scheme::HTTP)),
    pseudo(Pseudo::Scheme, "https", Field::Scheme(Scheme::HTTPS)),
    pseudo(Pseudo::Status, "200", Field::Status(StatusCode::OK)),
    pseudo(Pseudo::Status, "204", Field::Status(StatusCode::NO_CONTENT)),
    pseudo(Pseudo::Status, "206", Field::Status(StatusCode::PARTIAL_CONTENT)),
    pseudo(Pseudo::Status, "304", Field::Status(StatusCode::NOT_MODIFIED)),
    pseudo(Pseudo::Status, "400", Field::Status(StatusCode::BAD_REQUEST)),
    pseudo(Pseudo::Status, "404", Field::Status(StatusCode::NOT_FOUND)),
    pseudo(Pseudo::Status, "500", Field::Status(StatusCode::INTERNAL_SERVER_ERROR)),
    regular("accept-charset", ""),
    regular("accept-encoding", "gzip, deflate"),
    regular("accept-language", ""),
    regular("accept-ranges", ""),
    regular("accept", ""),
    regular("access-control-allow-origin", ""),
    regular("age", ""),
    regular("allow", ""),
    regular("authorization", ""),
    regular("cache-control", ""),
    regular("content-disposition", ""),
    regular("content-encoding", ""),
    regular("content-language", ""),
    regular("content-length", ""),
    regular("content-location", ""),
    regular("content-range", ""),
    regular("content-type", ""),
    regular("cookie", ""),
    regular("date", ""),
    regular("etag", ""),
    regular("expect", ""),
    regular("expires", ""),
    regular("from", ""),
    regular("host", ""),
    regular("if-match", ""),
    regular("if-modified-since", ""),
    regular("if-none-match", ""),
    regular("if-range", ""),
    regular("if-unmodified-since", ""),
    regular("last-modified", ""),
    regular("link", ""),
    regular("location", ""),
    regular("max-forwards", ""),
    regular("proxy-authenticate", ""),
    regular("proxy-authorization", ""),
    regular("range", ""),
    regular("referer", ""),
    regular("refresh", ""),
    regular("retry-after", ""),
    regular("server", ""),
    regular("set-cookie", ""),
    regular("strict-transport-security", ""),
    Entry {
        name: Name::Bad { why: CONNECTION_SPECIFIC, len: "transfer-encoding".len() },
        field: Field::Malformed(CONNECTION_SPECIFIC),
        size: "transfer-encoding".len() + ENTRY_OVERHEAD,
    },
    regular("user-agent", ""),
    regular("vary", ""),
    regular("via", ""),
    regular("www-authenticate", ""),
];

const fn pseudo(name: Pseudo, value: &str, field: Field) -> Entry {
    let size = name.as_str().len() + value.len() + ENTRY_OVERHEAD;
    Entry { name: Name::Pseudo(name), field, size }
}

const fn regular(name: &'static str, value: &'static str) -> Entry {
    Entry {
        name: Name::Regular(HeaderName::from_static(name)),
        field: Field::Regular(HeaderName::from_static(name), HeaderValue::from_static(value)),
        size: name.len() + value.len() + ENTRY_OVERHEAD,
    }
}

/// The index of an entry that is this pseudo-field with this value.
pub(super) fn pseudo_index(name: Pseudo, value: &[u8]) -> Option<usize> {
    Some(match (name, value) {
        (Pseudo::Method, b"GET") => 2,
        (Pseudo::Method, b"POST") => 3,
        (Pseudo::Path, b"/") => 4,
        (Pseudo::Path, b"/index.html") => 5,
        (Pseudo::Scheme, b"http") => 6,
        (Pseudo::Scheme, b"https") => 7,
        (Pseudo::Status, b"200") => 8,
        (Pseudo::Status, b"204") => 9,
        (Pseudo::Status, b"206") => 10,
        (Pseudo::Status, b"304") => 11,
        (Pseudo::Status, b"400") => 12,
        (Pseudo::Status, b"404") => 13,
        (Pseudo::Status, b"500") => 14,
        _ => return None,
    })
}

/// The first index whose entry has this name.
pub(super) fn name_index(name: &str) -> Option<usize> {
    Some(match name {
        ":authority" => 1,
        ":method" => 2,
        ":path" => 4,
        ":scheme" => 6,
        ":status" => 8,
        "accept-charset" => 15,
        "accept-encoding" => 16,
        "accept-language" => 17,
        "accept-ranges" => 18,
        "accept" => 19,
        "access-control-allow-origin" => 20,
        "age" => 21,
        "allow" => 22,
        "authorization" => 23,
        "cache-control" => 24,
        "content-disposition" => 25,
        "content-encoding" => 26,
        "content-language" => 27,
        "content-length" => 28,
        "content-location" => 29,
        "content-range" => 30,
        "content-type" => 31,
        "cookie" => 32,
        "date" => 33,
        "etag" => 34,
        "expect" => 35,
        "expires" => 36,
        "from" => 37,
        "host" => 38,
        "if-match" => 39,
        "if-modified-since" => 40,
        "if-none-match" => 41,
        "if-range" => 42,
        "if-unmodified-since" => 43,
        "last-modified" => 44,
        "link" => 45,
        "location" => 46,
        "max-forwards" => 47,
        "proxy-authenticate" => 48,
        "proxy-authorization" => 49,
        "range" => 50,
        "referer" => 51,
        "refresh" => 52,
        "retry-after" => 53,
        "server" => 54,
        "set-cookie" => 55,
        "strict-transport-security" => 56,
        "transfer-encoding" => 57,
        "user-agent" => 58,
        "vary" => 59,
        "via" => 60,
        "www-authenticate" => 61,
        _ => return None,
    })
}
