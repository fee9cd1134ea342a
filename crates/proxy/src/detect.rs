//! What speaks inside a connection or a CONNECT tunnel: told by its first bytes alone, as a pure function over them.
//! Bias: when in doubt opaque, because an opaque tunnel serves every protocol correctly and only loses the balancing of
//! single requests.

/// The HTTP/2 connection preface (RFC 9113 §3.4).
pub(crate) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest request line that is waited for inside a tunnel; a longer one makes it opaque.
const MAX_REQUEST_LINE: usize = 8 * 1024;

/// The longest method that is taken for HTTP.
const MAX_METHOD: usize = 24;

/// What the bytes so far say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detected {
    /// Not enough of them.
    NeedMore,
    Http1,
    Http2,
    Opaque,
}

/// Whether a connection to the outbound port speaks HTTP/2 (its preface) or, by elimination, HTTP/1.
pub(crate) fn http_version(bytes: &[u8]) -> Detected {
    let n = bytes.len().min(H2_PREFACE.len());
    if bytes[..n] != H2_PREFACE[..n] {
        Detected::Http1
    } else if n == H2_PREFACE.len() {
        Detected::Http2
    } else {
        Detected::NeedMore
    }
}

/// What a client speaks inside a tunnel. HTTP/1 needs a whole request line that ends with the version: `PING`, `EHLO x` or
/// `get key` begin like one.
pub(crate) fn inside_tunnel(bytes: &[u8]) -> Detected {
    match http_version(bytes) {
        Detected::Http1 => {}
        found => return found,
    }
    let mut rest = bytes;
    let method = match rest.iter().position(|b| !(b.is_ascii_uppercase() || *b == b'-' || *b == b'_')) {
        None if rest.len() <= MAX_METHOD => return Detected::NeedMore,
        Some(n) if n > 0 && n <= MAX_METHOD && rest[n] == b' ' => {
            let (method, after) = rest.split_at(n);
            rest = &after[1..];
            method
        }
        None | Some(_) => return Detected::Opaque,
    };
    // A client that asks the far end for a tunnel of its own talks to a proxy there: none of our business.
    if method == b"CONNECT" {
        return Detected::Opaque;
    }
    match rest.first() {
        None => return Detected::NeedMore,
        Some(b'/' | b'*' | b'h' | b'H') => {}
        Some(_) => return Detected::Opaque,
    }
    let Some(target) = rest.iter().position(|b| !(0x21..=0x7e).contains(b)) else {
        return if rest.len() > MAX_REQUEST_LINE { Detected::Opaque } else { Detected::NeedMore };
    };
    let version = &rest[target..];
    let wanted = b" HTTP/1.";
    let n = version.len().min(wanted.len());
    if version[..n] != wanted[..n] {
        Detected::Opaque
    } else if version.len() > wanted.len() {
        Detected::Http1
    } else {
        Detected::NeedMore
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inside_a_tunnel() {
        use Detected::*;
        let table: &[(&[u8], Detected)] = &[
            (b"", NeedMore),
            (b"P", NeedMore),
            (b"PRI * HTTP/2.0\r\n", NeedMore),
            (H2_PREFACE, Http2),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Opaque),
            (b"GET", NeedMore),
            (b"GET ", NeedMore),
            (b"GET /", NeedMore),
            (b"GET /a?b HTTP/1.", NeedMore),
            (b"GET /a?b HTTP/1.1", Http1),
            (b"POST http://x/ HTTP/1.0\r\n", Http1),
            (b"OPTIONS * HTTP/1.1\r\n", Http1),
            (b"M-SEARCH /x HTTP/1.1\r\n", Http1),
            (b"GET /a HTTP/3.0", Opaque),
            (b"GET /a\r\n", Opaque),
            (b"GET  /a", Opaque),
            (b"CONNECT a:1 HTTP/1.1\r\n", Opaque),
            (b"PING\r\n", Opaque),
            (b"EHLO mail\r\n", Opaque),
            (b"get key\r\n", Opaque),
            (b"\x16\x03\x01\x02\x00", Opaque),
            (b"*1\r\n$4\r\nPING\r\n", Opaque),
            (b"AVERYLONGMETHODNAMETHATNOBODYHAS", Opaque),
            (b"\x00\x00\x00\x08", Opaque),
        ];
        for (bytes, expected) in table {
            assert_eq!(inside_tunnel(bytes), *expected, "{:?}", bytes.escape_ascii().to_string());
            // Every beginning of it must be the same or undecided: a split read may not change the verdict.
            for n in 0..bytes.len() {
                let part = inside_tunnel(&bytes[..n]);
                assert!(part == NeedMore || part == *expected, "{:?}: {part:?}", bytes[..n].escape_ascii().to_string());
            }
        }
        assert_eq!(inside_tunnel(&[b"GET /".as_slice(), &[b'a'; 9000]].concat()), Opaque);
    }
}
