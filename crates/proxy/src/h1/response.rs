//! Response heads. As strict about framing as requests are: a response that two parsers would cut in two ways poisons
//! the connection to the pod, and with it the next client's answer.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};

use super::fields::{Fields, Framing, Side};
use super::{BodyLength, HeadError, HeadScan, MAX_FIELDS};

/// A response head.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// 100 to 999; the reason phrase is not kept.
    pub status: StatusCode,
    /// End-to-end fields only. Content-Length is among them when it frames the body or, for HEAD and 304, tells what
    /// it would have been.
    pub headers: HeaderMap,
    /// How the body is delimited.
    pub body: BodyLength,
    /// Whether the connection may carry another request afterwards.
    pub keep_alive: bool,
    /// HTTP/1.0.
    pub http10: bool,
    /// The protocol switched to, for 101 only and when Connection names Upgrade.
    pub upgrade: Option<HeaderValue>,
}

/// Takes one response head from the start of `buf`; `Ok(None)` needs more bytes. `method` is the request's: it decides
/// about the body (RFC 9112 §6.3). See [`super::parse_request`] for `scan`.
///
/// # Errors
/// Any [`HeadError`]; the connection is of no use any more.
pub fn parse_response(
    buf: &mut BytesMut,
    scan: &mut HeadScan,
    method: &Method,
) -> Result<Option<ResponseHead>, HeadError> {
    if buf.first().is_some_and(|b| !matches!(b, b'H' | b'\r' | b'\n')) {
        return Err(HeadError::StartLine);
    }
    // No empty line may come first: after a response it is a sign that the two ends count bytes differently.
    let Some((end, _)) = scan.find_end(buf, 0)? else {
        return Ok(None);
    };
    let head = buf.split_to(end).freeze();
    parse_head(&head, method).map(Some)
}

fn parse_head(head: &Bytes, method: &Method) -> Result<ResponseHead, HeadError> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut response, head, &mut fields) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Ok(_) => return Err(HeadError::StartLine),
        Err(error) => return Err(error.into()),
    }
    let (Some(code), Some(minor)) = (response.code, response.version) else {
        return Err(HeadError::StartLine);
    };
    let status = StatusCode::from_u16(code).map_err(|_| HeadError::Status)?;
    let http10 = minor == 0;
    let mut fields = Fields::read(head, response.headers, Side::Response, http10)?;

    let never_content = status.is_informational() || status == StatusCode::NO_CONTENT;
    let tunnel = *method == Method::CONNECT && status.is_success();
    let (body, length) = match fields.framing {
        // RFC 9110 §8.6, §9.3.6: these have no Content-Length, and one that is there means nothing.
        _ if never_content || tunnel => (BodyLength::None, None),
        Framing::Length(length) if *method == Method::HEAD || status == StatusCode::NOT_MODIFIED => {
            (BodyLength::None, Some(length))
        }
        _ if *method == Method::HEAD || status == StatusCode::NOT_MODIFIED => (BodyLength::None, None),
        Framing::Length(length) => (BodyLength::Length(length), Some(length)),
        Framing::Chunked => (BodyLength::Chunked, None),
        Framing::Nothing => (BodyLength::UntilClose, None),
    };
    if let Some(length) = length {
        let written = fields.length_header(head, length)?;
        fields.headers.insert(header::CONTENT_LENGTH, written);
    }
    // A server that frames a body where none can be may well send it.
    let suspect = never_content && !matches!(fields.framing, Framing::Nothing | Framing::Length(0));
    let persistent = !fields.close && (!http10 || fields.keep_alive);
    Ok(ResponseHead {
        status,
        body,
        keep_alive: persistent && body != BodyLength::UntilClose && !suspect,
        http10,
        upgrade: if status == StatusCode::SWITCHING_PROTOCOLS { fields.upgrade_header(head) } else { None },
        headers: fields.headers,
    })
}
