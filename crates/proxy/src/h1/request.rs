//! Request heads: the four forms of the target, the authority, the body's framing. What is refused and why is named in
//! [`HeadError`]; the corpus in `tests/data/request_heads.txt` shows each case.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Version};
use posthouse_model::AuthorityError;

use super::fields::{Fields, Framing, Side, is_token_char, value};
use super::{BodyLength, HeadError, HeadScan, MAX_FIELDS};

/// RFC 9112 §2.2: a server should ignore at least one empty line before the request line, because old clients sent
/// one after a POST body.
const LEADING_EMPTY_LINES: u8 = 2;

/// The longest method. IANA's longest (`UPDATEREDIRECTREF`) has 17 characters.
const MAX_METHOD: usize = 32;

/// The form of the request target (RFC 9112 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path`: the authority is Host's.
    Origin,
    /// `http://host/path`: what clients send to a proxy.
    Absolute,
    /// `host:port`, CONNECT only.
    Authority,
    /// `*`, OPTIONS only.
    Asterisk,
}

/// A request head that is plain to every parser.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// Any token of at most 32 characters.
    pub method: Method,
    /// Path and query as sent on in origin-form; `*` for `OPTIONS *` (and for OPTIONS with an absolute target without a
    /// path, RFC 9112 §3.2.4), `/` for CONNECT.
    pub path: PathAndQuery,
    /// As written in the absolute target, else in Host, else as CONNECT's target; `posthouse_model::Authority::parse`
    /// takes it.
    pub authority: Authority,
    /// An absolute target with the `https` scheme.
    pub https: bool,
    /// HTTP/1.0, which has neither chunks nor interim answers.
    pub http10: bool,
    /// End-to-end fields only. Content-Length is among them when it frames the body, `te: trailers` when Connection
    /// named it, Expect when it is `100-continue` and there is a body to wait for; Host is not.
    pub headers: HeaderMap,
    /// How the body is delimited; never [`BodyLength::UntilClose`].
    pub body: BodyLength,
    /// Whether the client allows another request on this connection.
    pub keep_alive: bool,
    /// The protocols of Upgrade, when Connection names it, the request has no body and something besides HTTP and TLS
    /// is offered.
    pub upgrade: Option<HeaderValue>,
    /// The client waits for 100 before it sends the body.
    pub expect_continue: bool,
    /// Which form the target had.
    pub form: TargetForm,
}

impl RequestHead {
    /// As `http` names it.
    #[must_use]
    pub fn version(&self) -> Version {
        if self.http10 { Version::HTTP_10 } else { Version::HTTP_11 }
    }
}

/// Takes one request head from the start of `buf`; `Ok(None)` needs more bytes. Each byte is searched for the head's end
/// once, however often this is called, as long as `scan` stays with the buffer.
///
/// # Errors
/// Any [`HeadError`]; the buffer's content is then undefined and nothing on the connection may be read as a request.
pub fn parse_request(buf: &mut BytesMut, scan: &mut HeadScan) -> Result<Option<RequestHead>, HeadError> {
    // What is no HTTP at all (a TLS hello, say) often has no line end either: tell at once.
    if buf.first().is_some_and(|b| !is_token_char(*b) && !matches!(b, b'\r' | b'\n')) {
        return Err(HeadError::Method);
    }
    let Some((end, start)) = scan.find_end(buf, LEADING_EMPTY_LINES)? else {
        return Ok(None);
    };
    let mut head = buf.split_to(end).freeze();
    head.advance(start);
    parse_head(&head).map(Some)
}

fn parse_head(head: &Bytes) -> Result<RequestHead, HeadError> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut fields) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Ok(_) => return Err(HeadError::StartLine),
        Err(httparse::Error::Version) => return Err(version_error(head)),
        Err(error) => return Err(error.into()),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(HeadError::StartLine);
    };
    if method.len() > MAX_METHOD {
        return Err(HeadError::Method);
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::Method)?;
    let http10 = minor == 0;
    let fields = Fields::read(head, request.headers, Side::Request, http10)?;
    let target = Target::read(head, target, &method)?;
    let authority = authority(head, &target, fields.host, http10)?;
    finish(head, method, target, authority, fields, http10)
}

fn finish(
    head: &Bytes,
    method: Method,
    target: Target<'_>,
    authority: Authority,
    mut fields: Fields<'_>,
    http10: bool,
) -> Result<RequestHead, HeadError> {
    let body = match fields.framing {
        Framing::Nothing => BodyLength::None,
        // RFC 9110 §9.3.6: CONNECT has no content. `Content-Length: 0` is harmless and goes away.
        Framing::Length(0) if target.form == TargetForm::Authority => BodyLength::None,
        _ if target.form == TargetForm::Authority => return Err(HeadError::ConnectBody),
        Framing::Length(length) => {
            let written = fields.length_header(head, length)?;
            fields.headers.insert(header::CONTENT_LENGTH, written);
            BodyLength::Length(length)
        }
        Framing::Chunked => BodyLength::Chunked,
    };
    let has_body = !matches!(body, BodyLength::None | BodyLength::Length(0));
    // RFC 9110 §10.1.1: no expectation without content, and none from HTTP/1.0. Passed on without a body it makes
    // servers and proxies disagree on who is to speak next.
    let expect = fields.expect.filter(|_| has_body && !http10);
    if let Some(written) = expect {
        fields.headers.insert(header::EXPECT, value(head, written)?);
    }
    if fields.te_trailers {
        fields.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    // A server may ignore Upgrade (RFC 9110 §7.8), and must in HTTP/1.0. With a body nobody agrees on where the new
    // protocol begins.
    let upgrade =
        if has_body || http10 || target.form == TargetForm::Authority { None } else { fields.upgrade_header(head) };
    Ok(RequestHead {
        method,
        path: target.path,
        authority,
        https: target.https,
        http10,
        keep_alive: !fields.close && (!http10 || fields.keep_alive),
        headers: fields.headers,
        body,
        upgrade,
        expect_continue: expect.is_some(),
        form: target.form,
    })
}

/// Tells a version that we do not speak (505) from a line that has none (400).
fn version_error(head: &[u8]) -> HeadError {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    match line.split(|b| *b == b' ').nth(2) {
        Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
            if major.is_ascii_digit() && minor.is_ascii_digit() && line.split(|b| *b == b' ').count() == 3 =>
        {
            HeadError::Version
        }
        _ => HeadError::StartLine,
    }
}

struct Target<'h> {
    form: TargetForm,
    path: PathAndQuery,
    https: bool,
    /// The authority in the target itself.
    authority: Option<&'h str>,
}

impl<'h> Target<'h> {
    fn read(head: &Bytes, target: &'h str, method: &Method) -> Result<Self, HeadError> {
        if !target.is_ascii() {
            return Err(HeadError::Target("it has characters that are not ASCII"));
        }
        // `http` would cut it off silently, and a policy on the path would see less than the server does.
        if memchr::memchr(b'#', target.as_bytes()).is_some() {
            return Err(HeadError::Target("it has a fragment"));
        }
        let origin = |path: &str| {
            PathAndQuery::from_maybe_shared(head.slice_ref(path.as_bytes()))
                .map_err(|_| HeadError::Target("the path has characters that are not allowed"))
        };
        if *method == Method::CONNECT {
            let path = PathAndQuery::from_static("/");
            return Ok(Self { form: TargetForm::Authority, path, https: false, authority: Some(target) });
        }
        if target.starts_with('/') {
            return Ok(Self { form: TargetForm::Origin, path: origin(target)?, https: false, authority: None });
        }
        if target == "*" {
            if *method != Method::OPTIONS {
                return Err(HeadError::Target("'*' is for OPTIONS only"));
            }
            let path = PathAndQuery::from_static("*");
            return Ok(Self { form: TargetForm::Asterisk, path, https: false, authority: None });
        }
        let (https, rest) = scheme(target)?;
        let (authority, rest) = rest.split_at(memchr::memchr2(b'/', b'?', rest.as_bytes()).unwrap_or(rest.len()));
        let path = match rest.as_bytes().first() {
            None if *method == Method::OPTIONS => PathAndQuery::from_static("*"),
            None => PathAndQuery::from_static("/"),
            Some(b'?') => PathAndQuery::try_from(format!("/{rest}"))
                .map_err(|_| HeadError::Target("the query has characters that are not allowed"))?,
            Some(_) => origin(rest)?,
        };
        Ok(Self { form: TargetForm::Absolute, path, https, authority: Some(authority) })
    }
}

/// Whether the scheme is https, and what follows it.
fn scheme(target: &str) -> Result<(bool, &str), HeadError> {
    for (scheme, https) in [("http://", false), ("https://", true)] {
        if let Some((start, rest)) = target.split_at_checked(scheme.len())
            && start.eq_ignore_ascii_case(scheme)
        {
            return Ok((https, rest));
        }
    }
    Err(HeadError::Target("it is neither a path nor an http or https URI"))
}

fn authority(head: &Bytes, target: &Target<'_>, host: Option<&[u8]>, http10: bool) -> Result<Authority, HeadError> {
    let host = match host {
        // RFC 9112 §3.2: HTTP/1.1 always has it; in HTTP/1.0 the target may stand alone.
        None if !http10 || target.authority.is_none() => return Err(HeadError::HostMissing),
        None => None,
        Some(b"") => return Err(AuthorityError::Empty.into()),
        // The tunnel's target alone counts; this is never passed on, and clients differ on whom to name here.
        Some(_) if target.form == TargetForm::Authority => None,
        Some(host) => {
            let host = std::str::from_utf8(host).map_err(|_| AuthorityError::Host)?;
            // Invalid is refused even where the target wins (RFC 9112 §3.2). Mostly the two are the same text.
            if target.authority != Some(host) {
                posthouse_model::Authority::parse(host)?;
            }
            Some(host)
        }
    };
    let text = match target.authority {
        Some(text) => {
            let parsed = posthouse_model::Authority::parse(text)?;
            if target.form == TargetForm::Authority && parsed.port.is_none() {
                return Err(HeadError::Target("CONNECT needs a port"));
            }
            text
        }
        None => host.ok_or(HeadError::HostMissing)?,
    };
    Authority::from_maybe_shared(head.slice_ref(text.as_bytes())).map_err(|_| AuthorityError::Host.into())
}
