//! Each entry of the two corpora of heads: whole, cut in two at every byte, and byte by byte.

use bytes::BytesMut;
use http::{HeaderMap, Method};
use posthouse_proxy::h1::{
    BodyLength, HeadError, HeadScan, RequestHead, ResponseHead, TargetForm, parse_request, parse_response,
};

use crate::corpus::{Entry, read};

/// Longer entries are cut at some places only, and not fed byte by byte.
const SHORT: usize = 2048;

#[test]
fn requests_are_taken_or_refused_as_the_corpus_says() {
    let entries = read(include_str!("../data/request_heads.txt"));
    assert!(entries.len() >= 250, "the corpus has shrunk to {}", entries.len());
    for entry in &entries {
        let mut buf = BytesMut::from(&entry.bytes[..]);
        let outcome = parse_request(&mut buf, &mut HeadScan::new());
        match (entry.refusal(), &outcome) {
            (Some(words), Err(error)) => {
                assert_eq!(words, [error.status().as_str(), &variant(error)], "{}: {error}", entry.name);
            }
            (None, Ok(Some(head))) => {
                assert_eq!(describe_request(head, buf.len()), entry.expect, "{}", entry.name);
                check_fields(entry, &head.headers);
                assert_eq!(head.expect_continue, head.headers.contains_key("expect"), "{}", entry.name);
                let length = head.headers.get("content-length").map(|v| v.to_str().unwrap().parse::<u64>().unwrap());
                assert_eq!(length, length_of(head.body), "{}", entry.name);
            }
            _ => panic!("{}: expected '{}', got {outcome:?}", entry.name, entry.expect),
        }
        same_when_cut(&entry.bytes, |buf, scan| parse_request(buf, scan).map(|h| h.map(|h| format!("{h:?}"))));
    }
}

#[test]
fn responses_are_taken_or_refused_as_the_corpus_says() {
    let entries = read(include_str!("../data/response_heads.txt"));
    assert!(entries.len() >= 70, "the corpus has shrunk to {}", entries.len());
    for entry in &entries {
        let method: Method = entry.method.as_deref().unwrap_or("GET").parse().unwrap();
        let mut buf = BytesMut::from(&entry.bytes[..]);
        let outcome = parse_response(&mut buf, &mut HeadScan::new(), &method);
        match (entry.refusal(), &outcome) {
            (Some(words), Err(error)) => {
                assert_eq!(words, [variant(error)], "{}: {error}", entry.name);
            }
            (None, Ok(Some(head))) => {
                assert_eq!(describe_response(head, buf.len()), entry.expect, "{}", entry.name);
                check_fields(entry, &head.headers);
            }
            _ => panic!("{}: expected '{}', got {outcome:?}", entry.name, entry.expect),
        }
        same_when_cut(&entry.bytes, |buf, scan| {
            parse_response(buf, scan, &method).map(|h| h.map(|h| format!("{h:?}")))
        });
    }
}

#[test]
fn a_head_that_has_not_ended_is_neither_taken_nor_refused() {
    for bytes in [
        "",
        "\r",
        "\r\n",
        "G",
        "GET / HTTP/1.1",
        "GET / HTTP/1.1\r\nHost: web\r\n",
        "GET / HTTP/1.1\r\nHost: web\r\n\r",
    ] {
        let mut buf = BytesMut::from(bytes);
        assert!(parse_request(&mut buf, &mut HeadScan::new()).unwrap().is_none(), "{bytes:?}");
        assert_eq!(buf, bytes, "nothing is taken");
    }
}

#[test]
fn one_scan_serves_one_head_after_another() {
    let mut buf = BytesMut::new();
    let mut scan = HeadScan::new();
    for n in 0..3 {
        buf.extend_from_slice(format!("GET /{n} HTTP/1.1\r\nHo").as_bytes());
        assert!(parse_request(&mut buf, &mut scan).unwrap().is_none());
        buf.extend_from_slice(b"st: web\r\n\r\n");
        assert_eq!(parse_request(&mut buf, &mut scan).unwrap().unwrap().path.as_str(), format!("/{n}"));
    }
}

/// What the corpus says of a head that is taken.
fn describe_request(head: &RequestHead, rest: usize) -> String {
    let mut words =
        vec![head.method.to_string(), head.authority.to_string(), head.path.to_string(), describe_body(head.body)];
    match head.form {
        TargetForm::Origin => {}
        form => words.push(format!("form={}", format!("{form:?}").to_lowercase())),
    }
    words.extend(head.https.then(|| "https".to_owned()));
    words.extend(head.http10.then(|| "http10".to_owned()));
    words.extend((!head.keep_alive).then(|| "close".to_owned()));
    words.extend(head.expect_continue.then(|| "expect".to_owned()));
    words.extend(head.upgrade.as_ref().map(|v| format!("upgrade={}", v.to_str().unwrap().replace(' ', ""))));
    words.extend((rest > 0).then(|| format!("rest={rest}")));
    words.join(" ")
}

fn describe_response(head: &ResponseHead, rest: usize) -> String {
    let mut words = vec![head.status.as_str().to_owned(), describe_body(head.body)];
    words.extend(head.http10.then(|| "http10".to_owned()));
    words.extend((!head.keep_alive).then(|| "close".to_owned()));
    words.extend(head.upgrade.as_ref().map(|v| format!("upgrade={}", v.to_str().unwrap())));
    words.extend((rest > 0).then(|| format!("rest={rest}")));
    words.join(" ")
}

fn describe_body(body: BodyLength) -> String {
    match body {
        BodyLength::None => "none".to_owned(),
        BodyLength::Length(length) => format!("length={length}"),
        BodyLength::Chunked => "chunked".to_owned(),
        BodyLength::UntilClose => "until-close".to_owned(),
    }
}

fn length_of(body: BodyLength) -> Option<u64> {
    match body {
        BodyLength::Length(length) => Some(length),
        BodyLength::None | BodyLength::Chunked | BodyLength::UntilClose => None,
    }
}

fn check_fields(entry: &Entry, headers: &HeaderMap) {
    for (name, _) in &entry.carried {
        let got: Vec<&[u8]> = headers.get_all(name.as_str()).iter().map(|v| v.as_bytes()).collect();
        let want: Vec<&[u8]> = entry.carried.iter().filter(|(n, _)| n == name).map(|(_, v)| &v[..]).collect();
        assert_eq!(got, want, "{}: values of {name}", entry.name);
    }
    let never = ["host", "connection", "transfer-encoding", "upgrade", "proxy", "keep-alive", "proxy-connection"];
    for name in entry.gone.iter().map(String::as_str).chain(never) {
        assert!(!headers.contains_key(name), "{}: {name} is carried on", entry.name);
    }
    for name in headers.keys() {
        assert!(!name.as_str().starts_with("posthouse-"), "{}: {name} is carried on", entry.name);
    }
}

/// The name of an error's variant.
fn variant(error: &HeadError) -> String {
    format!("{error:?}").split('(').next().unwrap().to_owned()
}

/// However the bytes come, the outcome is the same and the same bytes are left.
pub(crate) fn same_when_cut<T: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    mut parse: impl FnMut(&mut BytesMut, &mut HeadScan) -> Result<Option<T>, HeadError>,
) {
    let mut run = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut buf, mut scan) = (BytesMut::new(), HeadScan::new());
        let mut fed = 0;
        for piece in pieces {
            buf.extend_from_slice(piece);
            fed += piece.len();
            match parse(&mut buf, &mut scan) {
                Ok(None) => {}
                Ok(Some(head)) => return Ok(Some((head, fed - buf.len()))),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    };
    let whole = run(&mut [bytes].into_iter());
    let step = 1 + bytes.len() / SHORT * 509;
    for at in (0..=bytes.len()).step_by(step) {
        let (head, tail) = bytes.split_at(at);
        assert_eq!(run(&mut [head, tail].into_iter()), whole, "cut at {at}: {:?}", bytes.escape_ascii().to_string());
    }
    if bytes.len() <= SHORT {
        assert_eq!(run(&mut bytes.chunks(1)), whole, "byte by byte");
    }
}
