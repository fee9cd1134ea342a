//! The authority of a request: `host[:port]` as it stands in an absolute-form target, a Host field, a CONNECT target or
//! `:authority`. Strict on purpose: what is not plainly a DNS name or an IP literal is refused, so that no second
//! parser down the line can read it in another way (userinfo, zone ids, octal and hex numbers).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// A parsed authority that borrows its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// Name or address.
    pub host: Host<'a>,
    /// The port, when one is written.
    pub port: Option<u16>,
}

/// The host of an [`Authority`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host<'a> {
    /// A DNS name as written, without its trailing dot; case is kept.
    Name(&'a str),
    /// An IPv4 literal in dotted-quad form or an IPv6 literal in brackets.
    Ip(IpAddr),
}

/// Why an authority is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AuthorityError {
    /// Nothing there.
    #[error("the host is empty")]
    Empty,
    /// `user@host`.
    #[error("userinfo ('@') is not allowed in an authority")]
    Userinfo,
    /// A port that is not 1 to 65535 in plain digits.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// A bracketed host that is no IPv6 address (zone ids included).
    #[error("the bracketed host is not an IPv6 address")]
    Bracket,
    /// A host that is neither a DNS name nor an IPv4 address in its one usual spelling.
    #[error("the host is neither a DNS name nor an IP address in its usual form")]
    Host,
}

/// The longest DNS name in presentation form (RFC 1035 §2.3.4).
const MAX_NAME: usize = 253;
/// The longest label (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;

impl<'a> Authority<'a> {
    /// Parses `host[:port]`.
    ///
    /// # Errors
    /// See [`AuthorityError`]; nothing is repaired.
    pub fn parse(text: &'a str) -> Result<Self, AuthorityError> {
        // Looked for only when something is wrong anyway: '@' is in no valid host.
        Self::read(text).map_err(|error| if text.contains('@') { AuthorityError::Userinfo } else { error })
    }

    fn read(text: &'a str) -> Result<Self, AuthorityError> {
        if text.is_empty() {
            return Err(AuthorityError::Empty);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (literal, after) = rest.split_once(']').ok_or(AuthorityError::Bracket)?;
            let ip: Ipv6Addr = literal.parse().map_err(|_| AuthorityError::Bracket)?;
            let port = match after.strip_prefix(':') {
                Some(digits) => Some(parse_port(digits)?),
                None if after.is_empty() => None,
                None => return Err(AuthorityError::Bracket),
            };
            return Ok(Self { host: Host::Ip(IpAddr::V6(ip)), port });
        }
        let (host, port) = match text.bytes().position(|b| b == b':') {
            Some(colon) => {
                let (host, port) = text.split_at(colon);
                (host, Some(parse_port(port.strip_prefix(':').unwrap_or(port))?))
            }
            None => (text, None),
        };
        Ok(Self { host: parse_host(host)?, port })
    }
}

fn parse_port(digits: &str) -> Result<u16, AuthorityError> {
    // `u16::from_str` takes a leading '+'; leading zeros are a second spelling.
    if !digits.bytes().all(|b| b.is_ascii_digit()) || digits.starts_with('0') {
        return Err(AuthorityError::Port);
    }
    digits.parse().map_err(|_| AuthorityError::Port)
}

fn parse_host(text: &str) -> Result<Host<'_>, AuthorityError> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty() {
        return Err(AuthorityError::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(AuthorityError::Host);
    }
    // One pass: this is asked for each request.
    let bytes = name.as_bytes();
    let mut label = 0;
    for (at, b) in bytes.iter().enumerate() {
        match b {
            // Underscores are no host name characters but occur in real DNS names; Kubernetes never has them in
            // Service names.
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => {}
            b'.' if is_label(at - label) => label = at + 1,
            _ => return Err(AuthorityError::Host),
        }
    }
    if !is_label(bytes.len() - label) {
        return Err(AuthorityError::Host);
    }
    // As in the URL standard: a last label that is a number (decimal, octal or hex) makes it an IPv4 address, and of
    // those only the dotted quad without leading zeros is let through.
    if is_numeric(&bytes[label..]) {
        let ip: Ipv4Addr = name.parse().map_err(|_| AuthorityError::Host)?;
        if name.len() != text.len() {
            return Err(AuthorityError::Host);
        }
        return Ok(Host::Ip(IpAddr::V4(ip)));
    }
    Ok(Host::Name(name))
}

fn is_label(len: usize) -> bool {
    (1..=MAX_LABEL).contains(&len)
}

fn is_numeric(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_digit)
        || bytes.len() >= 2
            && bytes[0] == b'0'
            && (bytes[1] | 0x20) == b'x'
            && bytes[2..].iter().all(u8::is_ascii_hexdigit)
}
