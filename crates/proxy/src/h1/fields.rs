//! The fields of a head, read once: which belong to this connection alone, which frame the message, and what is left
//! to carry on. Requests and responses share these rules; what differs between them is in `request.rs`, `response.rs`.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::HeadError;

/// The most field names that Connection may list. A list this long is an attempt to make us work, not a need.
const MAX_NAMED: usize = 32;

/// The largest Content-Length that is believed. RFC 9110 §8.6 sets no limit; many parsers keep it in a signed 64-bit
/// number, where a larger one would become a negative length.
const MAX_LENGTH: u64 = i64::MAX as u64;

/// What a field means to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    EndToEnd,
    Host,
    Length,
    Coding,
    Connection,
    Upgrade,
    Te,
    Expect,
    /// For one connection only, or never to be passed on.
    Dropped,
    /// `Content_Length`, `Transfer_Encoding`: servers that make environment variables of fields read them as the real
    /// ones, so a message that has one is framed in two ways.
    LookAlike,
}

/// By length first: nearly all fields are known as end-to-end after one comparison.
#[inline]
pub(super) fn role(name: &str) -> Role {
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    match name.len() {
        2 if is("te") => Role::Te,
        4 if is("host") => Role::Host,
        // CVE-2016-5385 ("httpoxy"): CGI programs read it as the HTTP_PROXY variable.
        5 if is("proxy") => Role::Dropped,
        6 if is("expect") => Role::Expect,
        7 if is("upgrade") => Role::Upgrade,
        10 if is("connection") => Role::Connection,
        10 if is("keep-alive") => Role::Dropped,
        14 if is("content-length") => Role::Length,
        14 if is("content_length") => Role::LookAlike,
        14 if is("http2-settings") => Role::Dropped,
        16 if is("proxy-connection") => Role::Dropped,
        17 if is("transfer-encoding") => Role::Coding,
        17 if is("transfer_encoding") => Role::LookAlike,
        18 if is("proxy-authenticate") => Role::Dropped,
        19 if is("proxy-authorization") => Role::Dropped,
        25 if is("proxy-authentication-info") => Role::Dropped,
        15 if is_forwarded_for_in_disguise(name) => Role::Dropped,
        10.. if is_ours(name) => Role::Dropped,
        _ => Role::EndToEnd,
    }
}

/// `posthouse-*`: the link's metadata, which a pod may neither send nor see. With an underscore, too: servers that hand fields to
/// programs as variables (CGI, WSGI, Rack) make both one.
#[inline]
fn is_ours(name: &str) -> bool {
    name.as_bytes().split_first_chunk::<9>().is_some_and(|(start, rest)| {
        start.eq_ignore_ascii_case(b"posthouse") && matches!(rest.first(), Some(b'-' | b'_'))
    })
}

/// `x-forwarded-for` with underscores, which would stand beside ours for the same reason.
fn is_forwarded_for_in_disguise(name: &str) -> bool {
    name.bytes().any(|b| b == b'_')
        && name
            .bytes()
            .zip(*b"x-forwarded-for")
            .all(|(b, wanted)| if b == b'_' { wanted == b'-' } else { b.eq_ignore_ascii_case(&wanted) })
}

/// How Transfer-Encoding and Content-Length frame the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Nothing,
    Length(u64),
    Chunked,
}

/// All that the fields of one head say.
#[derive(Debug)]
pub(super) struct Fields<'h> {
    /// The end-to-end fields. Host, Expect, TE and Content-Length are not in it: they go back in when they still apply.
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    /// Content-Length as written, when it is in the usual spelling.
    pub(super) length_value: Option<&'h [u8]>,
    pub(super) host: Option<&'h [u8]>,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    /// Connection names `upgrade`.
    pub(super) upgrade_named: bool,
    pub(super) upgrade: SmallVec<[&'h [u8]; 1]>,
    /// `te: trailers`, named by Connection as it must be (RFC 9110 §10.1.4).
    pub(super) te_trailers: bool,
    /// `expect: 100-continue` as written.
    pub(super) expect: Option<&'h [u8]>,
}

/// Which kind of message the fields are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Request,
    Response,
}

impl<'h> Fields<'h> {
    /// Reads `fields`, which httparse found in `head`.
    #[inline]
    pub(super) fn read(
        head: &Bytes,
        fields: &[httparse::Header<'h>],
        side: Side,
        http10: bool,
    ) -> Result<Self, HeadError> {
        let mut this = Self {
            headers: HeaderMap::with_capacity(fields.len()),
            framing: Framing::Nothing,
            length_value: None,
            host: None,
            close: false,
            keep_alive: false,
            upgrade_named: false,
            upgrade: SmallVec::new(),
            te_trailers: false,
            expect: None,
        };
        let mut named: SmallVec<[&str; 4]> = SmallVec::new();
        let mut te = Te::default();
        let mut coding: Option<Coding> = None;
        let mut length = None;
        for field in fields {
            match role(field.name) {
                Role::EndToEnd => {
                    this.headers.append(name(field.name)?, value(head, field.value)?);
                }
                Role::Expect if side == Side::Response => {}
                Role::Dropped => {}
                Role::Host if this.host.replace(field.value).is_some() => {
                    return Err(HeadError::HostRepeated);
                }
                Role::Host => {}
                Role::Length if length.replace(parse_length(field.value)?).is_some() => {
                    // RFC 9112 §6.3 lets a recipient take repeated equal ones. Nothing sends them on purpose: someone
                    // before us has joined two messages' fields, and others would read them in another way.
                    return Err(HeadError::LengthRepeated);
                }
                Role::Length => {
                    this.length_value = Some(field.value).filter(|v| v.len() == 1 || !v.starts_with(b"0"));
                }
                Role::Coding => coding.get_or_insert_default().add(field.value),
                Role::Connection => this.read_connection(field.value, side, &mut named, &mut te)?,
                Role::Upgrade => this.upgrade.push(field.value),
                Role::Te => te.add(field.value),
                Role::Expect => {
                    if this.expect.is_some() || !field.value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(HeadError::Expectation);
                    }
                    this.expect = Some(field.value);
                }
                Role::LookAlike => return Err(HeadError::FieldName),
            }
        }
        this.framing = match (length, coding) {
            (None, None) => Framing::Nothing,
            (Some(length), None) => Framing::Length(length),
            (Some(_), Some(_)) => return Err(HeadError::LengthAndCoding),
            (None, Some(_)) if http10 => return Err(HeadError::CodingInHttp10),
            (None, Some(coding)) => coding.check()?,
        };
        for name in named {
            this.headers.remove(name);
        }
        this.te_trailers = te.named && te.trailers && !te.other;
        Ok(this)
    }

    /// Content-Length for [`Fields::headers`], in its usual spelling.
    #[inline]
    pub(super) fn length_header(&self, head: &Bytes, length: u64) -> Result<HeaderValue, HeadError> {
        match self.length_value {
            Some(written) => value(head, written),
            // `0005` is five to us but not to every parser.
            None => Ok(HeaderValue::from(length)),
        }
    }

    fn read_connection(
        &mut self,
        list: &'h [u8],
        side: Side,
        named: &mut SmallVec<[&'h str; 4]>,
        te: &mut Te,
    ) -> Result<(), HeadError> {
        for option in elements(list) {
            let option = token(option).ok_or(HeadError::Connection)?;
            if option.eq_ignore_ascii_case("close") {
                self.close = true;
                continue;
            }
            match role(option) {
                Role::Upgrade => self.upgrade_named = true,
                Role::Te => te.named = true,
                Role::Dropped => self.keep_alive |= option.eq_ignore_ascii_case("keep-alive"),
                // Some origins and CDNs name it, and hop-by-hop it is; a request that does is an attack on a proxy
                // that would drop the field and keep the chunks.
                Role::Coding if side == Side::Response => {}
                // A field that frames or routes the message is not for this connection alone. Removing it would give
                // the next hop another message than the one that we saw.
                Role::Coding | Role::Host | Role::Length | Role::Expect | Role::Connection | Role::LookAlike => {
                    return Err(HeadError::Connection);
                }
                Role::EndToEnd if named.len() == MAX_NAMED => return Err(HeadError::Connection),
                Role::EndToEnd => named.push(option),
            }
        }
        Ok(())
    }

    /// The protocols that an Upgrade offers, without those that must not be tunnelled blindly. `None` when there are
    /// none left.
    pub(super) fn upgrade_header(&self, head: &Bytes) -> Option<HeaderValue> {
        if !self.upgrade_named || self.upgrade.is_empty() {
            return None;
        }
        let offered = || self.upgrade.iter().flat_map(|list| elements(list));
        if let [list] = self.upgrade.as_slice()
            && offered().all(is_upgradable)
            && offered().next().is_some()
        {
            return value(head, list).ok();
        }
        let kept: SmallVec<[&[u8]; 4]> = offered().filter(|protocol| is_upgradable(protocol)).collect();
        if kept.is_empty() { None } else { HeaderValue::from_bytes(&kept.join(&b", "[..])).ok() }
    }
}

/// Whether bytes of this protocol may be passed without looking into them. HTTP/2 and TLS would hide requests from
/// routing and policy ("h2c smuggling"); both have their own way in (prior knowledge, CONNECT).
fn is_upgradable(protocol: &[u8]) -> bool {
    let mut parts = protocol.splitn(2, |b| *b == b'/');
    let Some(name) = parts.next().and_then(token) else {
        return false;
    };
    parts.next().is_none_or(|version| token(version).is_some())
        && !["h2c", "h2", "http", "tls"].iter().any(|not| name.eq_ignore_ascii_case(not))
}

/// Whether each protocol of an Upgrade list (or a `:protocol`) may be passed: none that would hide requests (h2c, TLS).
pub fn is_upgradable_list(list: &[u8]) -> bool {
    list.split(|b| *b == b',').all(|protocol| is_upgradable(protocol.trim_ascii()))
}

#[derive(Default)]
struct Te {
    named: bool,
    trailers: bool,
    other: bool,
}

impl Te {
    fn add(&mut self, list: &[u8]) {
        if list.eq_ignore_ascii_case(b"trailers") {
            self.trailers = true;
        } else {
            self.other = true;
        }
    }
}

/// Transfer-Encoding over all its fields.
#[derive(Default)]
struct Coding {
    chunked: u32,
    chunked_last: bool,
    other: bool,
    obfuscated: bool,
}

impl Coding {
    fn add(&mut self, list: &[u8]) {
        for coding in list.split(|b| *b == b',') {
            let coding = trim(coding);
            self.chunked_last = coding.eq_ignore_ascii_case(b"chunked");
            if self.chunked_last {
                self.chunked += 1;
            } else if token(coding).is_some() {
                self.other = true;
            } else {
                self.obfuscated = true;
            }
        }
    }

    /// RFC 9112 §6.3: without a final `chunked` the end of a request cannot be known (400). What is framed well but
    /// coded in a way that we do not decode is §6.1's 501.
    fn check(&self) -> Result<Framing, HeadError> {
        if self.obfuscated || self.chunked != 1 || !self.chunked_last {
            Err(HeadError::Coding)
        } else if self.other {
            Err(HeadError::CodingUnknown)
        } else {
            Ok(Framing::Chunked)
        }
    }
}

/// Digits only: no sign, no space, no list.
fn parse_length(digits: &[u8]) -> Result<u64, HeadError> {
    if digits.is_empty() {
        return Err(HeadError::Length);
    }
    let mut length: u64 = 0;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return Err(HeadError::Length);
        }
        length = length
            .checked_mul(10)
            .and_then(|l| l.checked_add(u64::from(digit)))
            .filter(|l| *l <= MAX_LENGTH)
            .ok_or(HeadError::Length)?;
    }
    Ok(length)
}

#[inline]
pub(super) fn name(raw: &str) -> Result<HeaderName, HeadError> {
    HeaderName::from_bytes(raw.as_bytes()).map_err(|_| HeadError::FieldName)
}

/// A value that shares the head's memory.
#[inline]
pub(super) fn value(head: &Bytes, raw: &[u8]) -> Result<HeaderValue, HeadError> {
    HeaderValue::from_maybe_shared(head.slice_ref(raw)).map_err(|_| HeadError::FieldValue)
}

/// The elements of a comma-separated list, trimmed; empty ones are skipped (RFC 9110 §5.6.1).
fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == b',').map(trim).filter(|element| !element.is_empty())
}

/// Without the optional white space around it: SP and HTAB only, unlike `trim_ascii`.
fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// `bytes` as text when they are a token (RFC 9110 §5.6.2).
fn token(bytes: &[u8]) -> Option<&str> {
    if bytes.is_empty() || !bytes.iter().all(|b| is_token_char(*b)) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

#[inline]
pub(super) fn is_token_char(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Removes what is for one connection only from fields that came over HTTP/2 or are about to leave: Connection and the
/// fields that it names, Keep-Alive, Proxy-Connection, Transfer-Encoding, Upgrade, HTTP2-Settings, the fields of proxy
/// authentication, TE unless it is exactly `trailers`, `proxy`, and every `posthouse-*`. Host and Content-Length stay.
/// One look at each field; nothing is allocated when there is nothing to remove.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let mut doomed: SmallVec<[HeaderName; 4]> = SmallVec::new();
    for name in headers.keys() {
        match role(name.as_str()) {
            Role::EndToEnd | Role::Host | Role::Length | Role::Expect | Role::LookAlike => {}
            Role::Connection => {
                // What frames or routes is not Connection's to remove.
                let named = headers.get_all(header::CONNECTION).into_iter().flat_map(|list| elements(list.as_bytes()));
                doomed.extend(
                    named
                        .filter_map(token)
                        .filter(|option| matches!(role(option), Role::EndToEnd))
                        .take(MAX_NAMED)
                        .filter_map(|option| HeaderName::from_bytes(option.as_bytes()).ok()),
                );
                doomed.push(name.clone());
            }
            Role::Te => {
                let mut values = headers.get_all(header::TE).into_iter();
                let trailers = |v: &HeaderValue| v.as_bytes().eq_ignore_ascii_case(b"trailers");
                if !values.next().is_some_and(trailers) || values.next().is_some() {
                    doomed.push(name.clone());
                }
            }
            Role::Coding | Role::Upgrade | Role::Dropped => doomed.push(name.clone()),
        }
    }
    for name in doomed {
        headers.remove(&name);
    }
}
