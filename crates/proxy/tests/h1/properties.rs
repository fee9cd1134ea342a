//! What must hold for all heads: what is written is read back as it was, what is read can be written and read again,
//! and no bytes bring the parser down or change their meaning by how they are cut.

use bytes::BytesMut;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use posthouse_proxy::h1::{
    BodyLength, HeadScan, RequestHead, ResponseHead, TargetForm, parse_request, parse_response, strip_hop_by_hop,
    write_interim_head, write_request_head, write_response_head,
};
use proptest::prelude::*;

use crate::heads::same_when_cut;

fn request(bytes: &[u8]) -> RequestHead {
    let mut buf = BytesMut::from(bytes);
    let head = parse_request(&mut buf, &mut HeadScan::new()).unwrap().unwrap();
    assert!(buf.is_empty());
    head
}

fn response(bytes: &[u8], method: &Method) -> ResponseHead {
    let mut buf = BytesMut::from(bytes);
    let head = parse_response(&mut buf, &mut HeadScan::new(), method).unwrap().unwrap();
    assert!(buf.is_empty());
    head
}

/// Writes a head as the data plane would send it on.
pub(crate) fn rewrite(head: &RequestHead) -> BytesMut {
    let mut out = BytesMut::new();
    let (path, host) = match head.form {
        TargetForm::Authority => (head.authority.as_str(), head.authority.as_str()),
        _ => (head.path.as_str(), head.authority.as_str()),
    };
    write_request_head(&mut out, &head.method, path, host, &head.headers, head.body, head.upgrade.as_ref());
    out
}

fn methods() -> impl Strategy<Value = Method> {
    prop_oneof![
        4 => prop::sample::select(vec![Method::GET, Method::POST, Method::HEAD, Method::DELETE, Method::TRACE]),
        1 => "[A-Za-z!#$%&'*+.^_`|~0-9-]{1,32}".prop_filter_map("CONNECT has its own form", |m| {
            Some(Method::from_bytes(m.as_bytes()).unwrap()).filter(|m| *m != Method::CONNECT)
        }),
    ]
}

/// End-to-end fields, some repeated.
fn fields() -> impl Strategy<Value = HeaderMap> {
    let name = prop_oneof![
        3 => prop::sample::select(vec!["accept", "cookie", "user-agent", "content-type", "x-request-id", "set-cookie"])
            .prop_map(str::to_owned),
        1 => "x-[a-z0-9!#$%&'*+.^_`|~-]{0,70}",
    ];
    let value = prop_oneof![
        3 => "([!-~]([ -~\t]{0,40}[!-~])?)?".prop_map(String::into_bytes),
        1 => prop::collection::vec(0x80_u8..=0xff, 0..20),
    ];
    prop::collection::vec((name, value), 0..12).prop_map(|fields| {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(&value).unwrap());
        }
        map
    })
}

fn bodies() -> impl Strategy<Value = BodyLength> {
    prop_oneof![
        Just(BodyLength::None),
        (0..=i64::MAX as u64).prop_map(BodyLength::Length),
        Just(BodyLength::Length(0)),
        Just(BodyLength::Chunked),
    ]
}

/// The fields that a head read back has besides those written.
fn with_length(headers: &HeaderMap, body: BodyLength) -> HeaderMap {
    let mut headers = headers.clone();
    if let BodyLength::Length(length) = body {
        headers.insert("content-length", length.into());
    }
    headers
}

proptest! {
    #[test]
    fn a_written_request_is_read_back_as_it_was(
        method in methods(),
        path in "/[a-z0-9/._~%-]{0,60}(\\?[a-z0-9=&/?]{0,30})?",
        host in "([a-z]([a-z0-9-]{0,20}[a-z0-9])?)(\\.[a-z]{1,10}){0,3}(:[1-9][0-9]{0,3})?",
        headers in fields(),
        body in bodies(),
        upgrade in prop::option::of("(websocket|foo/1\\.1)"),
        te in any::<bool>(),
    ) {
        let upgrade = upgrade.map(|u| HeaderValue::try_from(u).unwrap());
        let mut headers = headers;
        if te {
            headers.insert("te", HeaderValue::from_static("trailers"));
        }
        let mut out = BytesMut::new();
        write_request_head(&mut out, &method, &path, &host, &headers, body, upgrade.as_ref());
        let head = request(&out);
        prop_assert_eq!(&head.method, &method);
        prop_assert_eq!(head.path.as_str(), &path);
        prop_assert_eq!(head.authority.as_str(), &host);
        prop_assert_eq!(head.body, body);
        prop_assert_eq!(&head.headers, &with_length(&headers, body));
        prop_assert!(head.keep_alive && !head.https && !head.http10 && head.form == TargetForm::Origin);
        let no_body = matches!(body, BodyLength::None | BodyLength::Length(0));
        prop_assert_eq!(head.upgrade, upgrade.filter(|_| no_body));
    }

    #[test]
    fn a_written_response_is_read_back_as_it_was(
        code in 200_u16..1000,
        headers in fields(),
        body in bodies(),
        keep_alive in any::<bool>(),
    ) {
        let status = StatusCode::from_u16(code).unwrap();
        let none = matches!(code, 204 | 304);
        let body = if none { BodyLength::None } else if body == BodyLength::None { BodyLength::UntilClose } else { body };
        let mut out = BytesMut::new();
        write_response_head(&mut out, status, &headers, body, keep_alive, false, None);
        let head = response(&out, &Method::GET);
        prop_assert_eq!(head.status, status);
        prop_assert_eq!(head.body, body);
        prop_assert_eq!(&head.headers, &with_length(&headers, body));
        prop_assert_eq!(head.keep_alive, keep_alive && body != BodyLength::UntilClose);
        prop_assert!(!head.http10 && head.upgrade.is_none());
    }

    #[test]
    fn nothing_in_the_fields_can_frame_a_message_that_we_write(
        headers in fields(),
        body in bodies(),
        extra in prop::collection::vec(
            prop::sample::select(vec![
                ("content-length", "7"), ("transfer-encoding", "chunked"), ("connection", "close"), ("upgrade", "h2c"),
                ("host", "evil"), ("proxy", "x"), ("posthouse-source", "x"), ("keep-alive", "x"), ("content_length", "7"),
            ]),
            0..5,
        ),
    ) {
        let mut dirty = headers.clone();
        for (name, value) in extra {
            dirty.append(name, HeaderValue::from_static(value));
        }
        let (mut clean_out, mut dirty_out) = (BytesMut::new(), BytesMut::new());
        write_request_head(&mut clean_out, &Method::POST, "/", "web", &headers, body, None);
        write_request_head(&mut dirty_out, &Method::POST, "/", "web", &dirty, body, None);
        prop_assert_eq!(&clean_out, &dirty_out);
        let body = if body == BodyLength::None { BodyLength::UntilClose } else { body };
        clean_out.clear();
        dirty_out.clear();
        write_response_head(&mut clean_out, StatusCode::OK, &headers, body, true, false, None);
        write_response_head(&mut dirty_out, StatusCode::OK, &dirty, body, true, false, None);
        prop_assert_eq!(clean_out, dirty_out);
    }

    #[test]
    fn random_bytes_bring_nothing_down(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        same_when_cut(&bytes, |buf, scan| parse_request(buf, scan).map(|h| h.map(|h| format!("{h:?}"))));
        same_when_cut(&bytes, |buf, scan| parse_response(buf, scan, &Method::GET).map(|h| h.map(|h| format!("{h:?}"))));
    }

    #[test]
    fn pieces_of_requests_mean_the_same_however_cut_and_once_rewritten(bytes in pieces()) {
        same_when_cut(&bytes, |buf, scan| parse_request(buf, scan).map(|h| h.map(|h| format!("{h:?}"))));
        if let Ok(Some(head)) = parse_request(&mut BytesMut::from(&bytes[..]), &mut HeadScan::new()) {
            let again = request(&rewrite(&head));
            prop_assert_eq!(&again.method, &head.method);
            prop_assert_eq!(&again.path, &head.path);
            prop_assert_eq!(&again.authority, &head.authority);
            prop_assert_eq!(&again.headers, &head.headers);
            prop_assert_eq!(again.body, head.body);
            prop_assert_eq!(&again.upgrade, &head.upgrade);
            prop_assert_eq!(rewrite(&again), rewrite(&head));
        }
    }

    #[test]
    fn stripping_leaves_what_parsing_leaves(headers in fields(), hop in prop::collection::vec(hop_by_hop(), 0..6)) {
        let mut map = headers.clone();
        for (name, value) in hop {
            map.append(name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut map);
        prop_assert_eq!(map, headers);
    }
}

fn hop_by_hop() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop::sample::select(vec![
        ("connection", "close, x-hop"),
        ("connection", "content-length, host, \u{7f}"),
        ("x-hop", "1"),
        ("te", "gzip"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("proxy-authorization", "x"),
        ("proxy-authenticate", "x"),
        ("http2-settings", "x"),
        ("proxy", "x"),
        ("posthouse-target", "x"),
    ])
    .prop_filter("only valid values", |(_, value)| HeaderValue::from_str(value).is_ok())
    // A field that Connection names is one only beside that Connection.
    .prop_filter("named alone", |(name, _)| *name != "x-hop")
}

/// Requests put together from what requests, and attacks on them, are made of.
pub(crate) fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let starts = [
        "GET / HTTP/1.1\r\n",
        "POST /a?b HTTP/1.1\r\n",
        "GET http://web/x HTTP/1.1\r\n",
        "CONNECT web:80 HTTP/1.1\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "OPTIONS http://web HTTP/1.1\r\n",
        "GET / HTTP/1.0\r\n",
        "\r\nGET / HTTP/1.1\r\n",
        "HEAD http://web?q HTTP/1.1\r\n",
        "GET //x/..;a/ HTTP/1.1\r\n",
    ];
    let lines = [
        "Host: web\r\n",
        "Host: web:80\r\n",
        "host: [fd00::1]\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 0\r\n",
        "content-length: 05\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Connection: close\r\n",
        "Connection: upgrade, te, x-a\r\n",
        "Connection: keep-alive\r\n",
        "Upgrade: websocket\r\n",
        "Upgrade: h2c, foo\r\n",
        "TE: trailers\r\n",
        "Expect: 100-continue\r\n",
        "X-A: b\r\n",
        "X-B:\r\n",
        "Proxy: x\r\n",
        "posthouse-source: x\r\n",
        "X-C: \u{e9}\r\n",
        " folded\r\n",
        "X-D : e\r\n",
        "X-E: f\n",
        "X-F: g\rh\r\n",
        "Trailer: x-sum\r\n",
    ];
    let odd = ["\r", "\n", "\0", " ", "\t", ":", ",", "\r\n\r\n", "chunked"];
    let line = prop_oneof![12 => prop::sample::select(lines.to_vec()), 1 => prop::sample::select(odd.to_vec())];
    (prop::sample::select(starts.to_vec()), prop::bool::weighted(0.9), prop::collection::vec(line, 0..7)).prop_map(
        |(start, host, lines)| {
            let host = if host { "Host: web\r\n" } else { "" };
            [start, host, &lines.concat(), "\r\n"].concat().into_bytes()
        },
    )
}

#[test]
fn stripping_takes_what_connection_names_and_keeps_te_trailers() {
    let mut map = HeaderMap::new();
    for (name, value) in
        [("connection", "x-hop , content-length"), ("x-hop", "1"), ("content-length", "5"), ("x-end", "2")]
    {
        map.append(name, HeaderValue::from_static(value));
    }
    map.insert("te", HeaderValue::from_static("trailers"));
    strip_hop_by_hop(&mut map);
    let mut names: Vec<_> = map.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "te", "x-end"]);
    map.append("te", HeaderValue::from_static("trailers"));
    strip_hop_by_hop(&mut map);
    assert!(!map.contains_key("te"), "twice is not exactly 'trailers'");
}

#[test]
fn responses_say_what_becomes_of_the_connection() {
    let written = |status: u16, body, keep_alive, http10, upgrade: Option<&'static str>| {
        let mut headers = HeaderMap::new();
        headers.insert("content-length", HeaderValue::from_static("9"));
        let mut out = BytesMut::new();
        let upgrade = upgrade.map(HeaderValue::from_static);
        let status = StatusCode::from_u16(status).unwrap();
        write_response_head(&mut out, status, &headers, body, keep_alive, http10, upgrade.as_ref());
        String::from_utf8(out.to_vec()).unwrap()
    };
    let length = BodyLength::Length(5);
    assert_eq!(written(200, length, true, false, None), "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
    assert_eq!(
        written(404, length, false, false, None),
        "HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\nconnection: close\r\n\r\n"
    );
    assert_eq!(
        written(200, length, true, true, None),
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\n"
    );
    assert_eq!(
        written(200, BodyLength::UntilClose, true, true, None),
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
        "a body that ends with the connection closes it whatever the caller says"
    );
    assert_eq!(
        written(304, BodyLength::None, true, false, None),
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
        "HEAD and 304 tell the length of what they do not carry"
    );
    assert_eq!(written(204, BodyLength::None, true, false, None), "HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(
        written(101, BodyLength::None, true, false, Some("websocket")),
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    );
    assert_eq!(written(799, length, true, false, None), "HTTP/1.1 799 \r\ncontent-length: 5\r\n\r\n");
    let mut out = BytesMut::new();
    write_interim_head(&mut out, StatusCode::EARLY_HINTS, &HeaderMap::new());
    assert_eq!(out, "HTTP/1.1 103 Early Hints\r\n\r\n");
}
