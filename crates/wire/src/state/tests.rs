//! What a hand-made or a broken other end does to the state, and that nothing is lost on the way: frames by hand, frames at
//! random, and two states that play at random against each other.

use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use proptest::prelude::*;

use super::late::MAX_GIVEN_UP;
use super::*;
use crate::frame::Head;
use crate::head::Ask;

const CONFIG: Config = Config {
    stream_window: 3_000,
    connection_window: 80_000,
    max_frame: 16_384,
    max_streams: 8,
    max_header_list: 4_096,
};

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame::put_head(&mut out, payload.len(), kind, flags, id);
    out.extend_from_slice(payload);
    out.to_vec()
}

/// All that waits to be written.
fn written(core: &mut Core) -> Vec<u8> {
    struct All(Vec<u8>);
    impl tokio::io::AsyncWrite for All {
        fn poll_write(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            self.0.extend_from_slice(buf);
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_flush(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
    let mut all = All(Vec::new());
    assert!(core.out.poll_flush(&mut all, &mut Context::from_waker(Waker::noop())).is_ready());
    all.0
}

/// Feeds whole frames, as the connection does.
fn feed(core: &mut Core, mut bytes: &[u8]) {
    while let Some(head) = Head::read(bytes) {
        let Some(payload) = bytes.get(frame::HEADER..frame::HEADER + head.len) else { return };
        let taken = if core.takes_whole(head) {
            core.receive_data(head, Bytes::copy_from_slice(payload))
        } else {
            core.receive(head, payload)
        };
        bytes.advance(frame::HEADER + head.len);
        if let Err(fatal) = taken {
            return core.fault(fatal);
        }
    }
}

/// What the frames of an answer say, in the order in which they came: SETTINGS, WINDOW_UPDATE and PING are left out.
fn outcome(mut bytes: &[u8]) -> Vec<String> {
    let mut said = Vec::new();
    while let Some(head) = Head::read(bytes) {
        let payload = &bytes[frame::HEADER..frame::HEADER + head.len];
        match head.kind {
            frame::RST_STREAM => {
                said.push(format!("RST {} {}", head.id, Reason::new(frame::u32_at(payload, 0).unwrap())));
            }
            frame::GOAWAY => said.push(format!("GOAWAY {}", Reason::new(frame::u32_at(payload, 4).unwrap()))),
            _ => {}
        }
        bytes.advance(frame::HEADER + head.len);
    }
    said
}

/// `GET http://(none)/`.
const GET: &[u8] = &[0x82, 0x86, 0x84];
/// The same as a POST.
const POST: &[u8] = &[0x83, 0x86, 0x84];
const OK_200: &[u8] = &[0x88];

fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![0, name.len() as u8];
    out.extend_from_slice(name);
    out.push(value.len() as u8);
    out.extend_from_slice(value);
    out
}

fn with(block: &[u8], fields: &[(&str, &str)]) -> Vec<u8> {
    let fields = fields.iter().map(|(name, value)| literal(name.as_bytes(), value.as_bytes()));
    std::iter::once(block.to_vec()).chain(fields).flatten().collect()
}

/// A server that has greeted and was greeted.
fn server() -> Core {
    let mut core = Core::new(Role::Server, CONFIG);
    feed(&mut core, &frame(frame::SETTINGS, 0, 0, &[]));
    written(&mut core);
    core
}

/// A client with one open request, stream 1.
fn client(method: &Method) -> (Core, usize) {
    let mut core = Core::new(Role::Client, CONFIG);
    feed(&mut core, &frame(frame::SETTINGS, 0, 0, &[]));
    let key = core.ask(&ask(method, &PathAndQuery::from_static("/"), &HeaderMap::new()), false).unwrap();
    written(&mut core);
    (core, key)
}

fn ask<'a>(method: &'a Method, path: &'a PathAndQuery, headers: &'a HeaderMap) -> Ask<'a> {
    let scheme = Some(&http::uri::Scheme::HTTP);
    Ask { method, scheme, authority: b"web", path: Some(path), protocol: None, headers, extra: &[] }
}

const END: u8 = frame::END_STREAM;
const HEAD: u8 = frame::END_HEADERS;
const WHOLE: u8 = END | HEAD;

/// Frames of a client, and what a server of ours says to them: RFC 9113, section by section.
#[test]
fn a_server_answers_each_fault_by_the_code_that_the_rfc_names() {
    use frame::{CONTINUATION, DATA, GOAWAY, HEADERS, PADDED, PING, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS};
    let window = |id, by: u32| frame(frame::WINDOW_UPDATE, 0, id, &by.to_be_bytes());
    let setting =
        |name: u16, value: u32| frame(SETTINGS, 0, 0, &[&name.to_be_bytes()[..], &value.to_be_bytes()[..]].concat());
    let head = |id, flags, block: &[u8]| frame(HEADERS, flags, id, block);
    let post = head(1, HEAD, POST);
    let request = |fields: &[(&str, &str)]| head(1, WHOLE, &with(GET, fields));
    // What it is, the frames, and what is said to them.
    #[allow(clippy::type_complexity, reason = "a table")]
    let cases: Vec<(&str, Vec<Vec<u8>>, &[&str])> = vec![
        ("a whole request", vec![request(&[("x-a", "b")])], &[]),
        // 4.2, 4.3
        ("PING of 7 octets", vec![frame(PING, 0, 0, &[0; 7])], &["GOAWAY FRAME_SIZE_ERROR"]),
        (
            "compression out of step",
            vec![head(1, WHOLE, &[0xff, 0xff, 0xff, 0xff, 0x0f])],
            &["GOAWAY COMPRESSION_ERROR"],
        ),
        ("a frame within a block", vec![head(1, 0, GET), frame(PING, 0, 0, &[0; 8])], &["GOAWAY PROTOCOL_ERROR"]),
        ("another stream's block within", vec![head(1, 0, GET), head(3, HEAD, GET)], &["GOAWAY PROTOCOL_ERROR"]),
        ("another stream's rest", vec![head(1, 0, GET), frame(CONTINUATION, HEAD, 3, &[])], &["GOAWAY PROTOCOL_ERROR"]),
        ("a rest of nothing", vec![frame(CONTINUATION, HEAD, 1, &[])], &["GOAWAY PROTOCOL_ERROR"]),
        (
            "blocks without end",
            [vec![head(1, 0, GET)], vec![frame(CONTINUATION, 0, 1, &[]); 65]].concat(),
            &["GOAWAY ENHANCE_YOUR_CALM"],
        ),
        (
            "a block in three parts",
            vec![
                head(1, END, &GET[..1]),
                frame(CONTINUATION, 0, 1, &GET[1..2]),
                frame(CONTINUATION, HEAD, 1, &GET[2..]),
            ],
            &[],
        ),
        // 5.1
        ("DATA of an idle stream", vec![frame(DATA, 0, 1, b"x")], &["GOAWAY PROTOCOL_ERROR"]),
        ("RST_STREAM of an idle stream", vec![frame(RST_STREAM, 0, 1, &[0; 4])], &["GOAWAY PROTOCOL_ERROR"]),
        ("WINDOW_UPDATE of an idle stream", vec![window(1, 1)], &["GOAWAY PROTOCOL_ERROR"]),
        ("PRIORITY of an idle stream", vec![frame(PRIORITY, 0, 1, &[0; 5])], &[]),
        ("an even number", vec![head(2, WHOLE, GET)], &["GOAWAY PROTOCOL_ERROR"]),
        ("a number below the last", vec![head(5, WHOLE, GET), head(3, WHOLE, GET)], &["GOAWAY STREAM_CLOSED"]),
        ("DATA behind the end", vec![head(1, WHOLE, POST), frame(DATA, 0, 1, b"x")], &["RST 1 STREAM_CLOSED"]),
        ("HEADERS behind the end", vec![head(1, WHOLE, POST), head(1, WHOLE, GET)], &["RST 1 STREAM_CLOSED"]),
        (
            "DATA behind its RST_STREAM",
            vec![post.clone(), frame(RST_STREAM, 0, 1, &[0; 4]), frame(DATA, 0, 1, b"x")],
            &["RST 1 STREAM_CLOSED"],
        ),
        (
            "HEADERS behind its RST_STREAM",
            vec![post.clone(), frame(RST_STREAM, 0, 1, &[0; 4]), head(1, WHOLE, GET)],
            &["RST 1 STREAM_CLOSED"],
        ),
        (
            "more streams than may be open",
            (0..9).map(|n| head(1 + 2 * n, HEAD, POST)).collect(),
            &["RST 17 REFUSED_STREAM"],
        ),
        // 6
        ("DATA of no stream", vec![frame(DATA, 0, 0, b"x")], &["GOAWAY PROTOCOL_ERROR"]),
        ("more padding than payload", vec![post.clone(), frame(DATA, PADDED, 1, &[2, 0])], &["GOAWAY PROTOCOL_ERROR"]),
        ("HEADERS of no stream", vec![head(0, WHOLE, GET)], &["GOAWAY PROTOCOL_ERROR"]),
        ("PRIORITY of no stream", vec![frame(PRIORITY, 0, 0, &[0; 5])], &["GOAWAY PROTOCOL_ERROR"]),
        ("PRIORITY of 4 octets", vec![frame(PRIORITY, 0, 1, &[0; 4])], &["GOAWAY FRAME_SIZE_ERROR"]),
        ("RST_STREAM of 3 octets", vec![post.clone(), frame(RST_STREAM, 0, 1, &[0; 3])], &["GOAWAY FRAME_SIZE_ERROR"]),
        ("RST_STREAM of no stream", vec![frame(RST_STREAM, 0, 0, &[0; 4])], &["GOAWAY PROTOCOL_ERROR"]),
        ("SETTINGS of a stream", vec![frame(SETTINGS, 0, 1, &[])], &["GOAWAY PROTOCOL_ERROR"]),
        ("SETTINGS of 5 octets", vec![frame(SETTINGS, 0, 0, &[0; 5])], &["GOAWAY FRAME_SIZE_ERROR"]),
        ("an ACK with a payload", vec![frame(SETTINGS, frame::ACK, 0, &[0; 6])], &["GOAWAY FRAME_SIZE_ERROR"]),
        ("ENABLE_PUSH of 2", vec![setting(2, 2)], &["GOAWAY PROTOCOL_ERROR"]),
        ("INITIAL_WINDOW_SIZE of 2^31", vec![setting(4, 1 << 31)], &["GOAWAY FLOW_CONTROL_ERROR"]),
        ("MAX_FRAME_SIZE too small", vec![setting(5, 16_383)], &["GOAWAY PROTOCOL_ERROR"]),
        ("MAX_FRAME_SIZE too large", vec![setting(5, 1 << 24)], &["GOAWAY PROTOCOL_ERROR"]),
        ("an unknown setting", vec![setting(0x99, 7)], &[]),
        ("an unknown frame", vec![frame(0x99, 0xff, 7, b"whatever")], &[]),
        ("PUSH_PROMISE", vec![frame(PUSH_PROMISE, HEAD, 1, &[0; 4])], &["GOAWAY PROTOCOL_ERROR"]),
        ("PING of a stream", vec![frame(PING, 0, 1, &[0; 8])], &["GOAWAY PROTOCOL_ERROR"]),
        ("GOAWAY of a stream", vec![frame(GOAWAY, 0, 1, &[0; 8])], &["GOAWAY PROTOCOL_ERROR"]),
        ("GOAWAY of 7 octets", vec![frame(GOAWAY, 0, 0, &[0; 7])], &["GOAWAY FRAME_SIZE_ERROR"]),
        ("WINDOW_UPDATE of 3 octets", vec![frame(frame::WINDOW_UPDATE, 0, 0, &[0; 3])], &["GOAWAY FRAME_SIZE_ERROR"]),
        ("WINDOW_UPDATE by nothing", vec![window(0, 0)], &["GOAWAY PROTOCOL_ERROR"]),
        ("a stream's by nothing", vec![post.clone(), window(1, 0)], &["RST 1 PROTOCOL_ERROR"]),
        ("a window above 2^31-1", vec![window(0, frame::MAX_31)], &["GOAWAY FLOW_CONTROL_ERROR"]),
        ("a stream's above 2^31-1", vec![post.clone(), window(1, frame::MAX_31)], &["RST 1 FLOW_CONTROL_ERROR"]),
        (
            "one above 2^31-1 by SETTINGS",
            vec![post.clone(), window(1, frame::MAX_31 - 65_535), setting(4, 65_536)],
            &["GOAWAY FLOW_CONTROL_ERROR"],
        ),
        (
            "more DATA than the stream's window",
            vec![post.clone(), frame(DATA, 0, 1, &[0; 3_001])],
            &["RST 1 FLOW_CONTROL_ERROR"],
        ),
        (
            "padding counts",
            vec![post.clone(), frame(DATA, PADDED, 1, &[&[100][..], &[0; 3_000]].concat())],
            &["RST 1 FLOW_CONTROL_ERROR"],
        ),
        // 8
        ("no :path", vec![head(1, WHOLE, &[0x82, 0x86])], &["RST 1 PROTOCOL_ERROR"]),
        (":path twice", vec![head(1, WHOLE, &[0x82, 0x86, 0x84, 0x84])], &["RST 1 PROTOCOL_ERROR"]),
        (
            ":path behind a field",
            vec![head(1, WHOLE, &[with(&GET[..2], &[("x", "y")]), vec![0x84]].concat())],
            &["RST 1 PROTOCOL_ERROR"],
        ),
        ("an answer's pseudo-field", vec![head(1, WHOLE, &[GET, OK_200].concat())], &["RST 1 PROTOCOL_ERROR"]),
        ("an upper-case name", vec![request(&[("X-a", "b")])], &["RST 1 PROTOCOL_ERROR"]),
        ("a connection-specific field", vec![request(&[("connection", "close")])], &["RST 1 PROTOCOL_ERROR"]),
        ("te other than trailers", vec![request(&[("te", "gzip")])], &["RST 1 PROTOCOL_ERROR"]),
        ("te: trailers", vec![request(&[("te", "trailers")])], &[]),
        (
            ":protocol without CONNECT",
            vec![head(1, WHOLE, &with(GET, &[(":protocol", "websocket")]))],
            &["RST 1 PROTOCOL_ERROR"],
        ),
        ("more fields than we take", vec![head(1, WHOLE, &with(GET, &[("x", "y"); 120]))], &["RST 1 PROTOCOL_ERROR"]),
        ("two lengths", vec![request(&[("content-length", "0"), ("content-length", "1")])], &["RST 1 PROTOCOL_ERROR"]),
        ("no number as length", vec![request(&[("content-length", "+0")])], &["RST 1 PROTOCOL_ERROR"]),
        ("a length and no body", vec![request(&[("content-length", "1")])], &["RST 1 PROTOCOL_ERROR"]),
        (
            "a body longer than its length",
            vec![head(1, HEAD, &with(POST, &[("content-length", "1")])), frame(DATA, 0, 1, b"ab")],
            &["RST 1 PROTOCOL_ERROR"],
        ),
        (
            "a body shorter than its length",
            vec![head(1, HEAD, &with(POST, &[("content-length", "3")])), frame(DATA, END, 1, b"ab")],
            &["RST 1 PROTOCOL_ERROR"],
        ),
        (
            "a body of its length",
            vec![head(1, HEAD, &with(POST, &[("content-length", "2")])), frame(DATA, END, 1, b"ab")],
            &[],
        ),
        ("trailers", vec![post.clone(), head(1, WHOLE, &with(&[], &[("x", "y")]))], &[]),
        (
            "trailers without the end",
            vec![post.clone(), head(1, HEAD, &with(&[], &[("x", "y")]))],
            &["RST 1 PROTOCOL_ERROR"],
        ),
        ("trailers with a pseudo-field", vec![post, head(1, WHOLE, &[0x84])], &["RST 1 PROTOCOL_ERROR"]),
    ];
    for (what, frames, expected) in cases {
        let mut core = server();
        feed(&mut core, &frames.concat());
        assert_eq!(outcome(&written(&mut core)), expected, "{what}");
    }
}

#[test]
fn a_client_answers_each_fault_by_the_code_that_the_rfc_names() {
    use frame::{DATA, HEADERS, RST_STREAM};
    let head = |flags, block: &[u8]| frame(HEADERS, flags, 1, block);
    #[allow(clippy::type_complexity, reason = "a table")]
    let cases: Vec<(&str, Method, Vec<Vec<u8>>, &[&str])> = vec![
        ("a whole answer", Method::GET, vec![head(WHOLE, OK_200)], &[]),
        ("DATA before the head", Method::GET, vec![frame(DATA, 0, 1, b"x")], &["RST 1 PROTOCOL_ERROR"]),
        ("a pushed stream", Method::GET, vec![frame(HEADERS, WHOLE, 2, OK_200)], &["GOAWAY PROTOCOL_ERROR"]),
        (
            "a stream that we did not open",
            Method::GET,
            vec![frame(HEADERS, WHOLE, 3, OK_200)],
            &["GOAWAY PROTOCOL_ERROR"],
        ),
        ("101", Method::GET, vec![head(HEAD, &with(&[], &[(":status", "101")]))], &["RST 1 PROTOCOL_ERROR"]),
        (
            "1xx that ends the stream",
            Method::GET,
            vec![head(WHOLE, &with(&[], &[(":status", "103")]))],
            &["RST 1 PROTOCOL_ERROR"],
        ),
        ("33 of 1xx", Method::GET, vec![head(HEAD, &with(&[], &[(":status", "103")])); 33], &["RST 1 PROTOCOL_ERROR"]),
        ("no :status", Method::GET, vec![head(WHOLE, &with(&[], &[("x", "y")]))], &["RST 1 PROTOCOL_ERROR"]),
        ("a request's pseudo-field", Method::GET, vec![head(WHOLE, &[0x88, 0x84])], &["RST 1 PROTOCOL_ERROR"]),
        (
            "a body behind HEAD",
            Method::HEAD,
            vec![head(HEAD, OK_200), frame(DATA, END, 1, b"x")],
            &["RST 1 PROTOCOL_ERROR"],
        ),
        ("a length behind HEAD", Method::HEAD, vec![head(WHOLE, &with(OK_200, &[("content-length", "9")]))], &[]),
        ("a length behind 204", Method::GET, vec![head(WHOLE, &with(&[0x89], &[("content-length", "9")]))], &[]),
        (
            "a length of a tunnel",
            Method::CONNECT,
            vec![head(HEAD, &with(OK_200, &[("content-length", "0")])), frame(DATA, 0, 1, b"x")],
            &[],
        ),
        ("an early reset", Method::GET, vec![frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])], &[]),
    ];
    for (what, method, frames, expected) in cases {
        let (mut core, _) = client(&method);
        feed(&mut core, &frames.concat());
        assert_eq!(outcome(&written(&mut core)), expected, "{what}");
    }
    let mut core = Core::new(Role::Client, CONFIG);
    feed(&mut core, &frame(frame::PING, 0, 0, &[0; 8]));
    assert_eq!(outcome(&written(&mut core)[frame::PREFACE.len()..]), ["GOAWAY PROTOCOL_ERROR"], "SETTINGS come first");
}

#[test]
fn what_comes_late_for_a_stream_that_we_gave_up_is_no_fault() {
    let (mut core, key) = client(&Method::GET);
    core.drop_reader(key);
    core.drop_writer(key);
    assert_eq!(outcome(&written(&mut core)), ["RST 1 CANCEL"]);
    let late = [frame(frame::HEADERS, HEAD, 1, OK_200), frame(frame::DATA, END, 1, &[0; 2_000])];
    feed(&mut core, &late.concat());
    assert_eq!(outcome(&written(&mut core)), [""; 0]);
    assert_eq!((core.open, core.by_id.len(), core.streams.len()), (0, 0, 0));
    assert_eq!(core.given, 2_000, "its bytes are not lost to the connection's window");

    // However many were given up since: the oldest get the benefit of the doubt.
    for _ in 0..MAX_GIVEN_UP + 10 {
        let key = core.ask(&ask(&Method::GET, &PathAndQuery::from_static("/"), &HeaderMap::new()), true).unwrap();
        core.drop_reader(key);
        core.drop_writer(key);
    }
    written(&mut core);
    feed(&mut core, &late.concat());
    assert_eq!(outcome(&written(&mut core)), [""; 0]);
    assert!(core.given_up.order.len() <= MAX_GIVEN_UP && core.given_up.known.len() <= MAX_GIVEN_UP);
}

/// A fault behind the end must not cut what came before it: cut, it would look whole.
#[test]
fn a_message_that_came_whole_stays_whole_whatever_follows() {
    let cx = Context::from_waker(Waker::noop());
    let answer = [frame(frame::HEADERS, HEAD, 1, OK_200), frame(frame::DATA, END, 1, b"the whole answer")].concat();
    let faults = [
        frame(frame::DATA, 0, 1, b"x"),
        frame(frame::WINDOW_UPDATE, 0, 1, &[0; 4]),
        [frame(frame::RST_STREAM, 0, 1, &[0; 4]), frame(frame::DATA, 0, 1, b"x")].concat(),
    ];
    for request_ended in [false, true] {
        for fault in &faults {
            let (mut core, key) = client(&Method::POST);
            if request_ended {
                core.end(key).unwrap();
            }
            feed(&mut core, &[&answer[..], fault].concat());
            assert_eq!(core.poll_head(key, &cx).map(|head| head.unwrap().status), Poll::Ready(StatusCode::OK));
            let data = core.poll_data(key, &cx).map(|data| data.unwrap().unwrap());
            assert_eq!(data, Poll::Ready(Bytes::from_static(b"the whole answer")));
            assert!(core.poll_data(key, &cx) == Poll::Ready(None) && core.failed.is_none());
        }
    }
}

#[test]
fn a_stream_that_was_reset_frees_its_place_although_its_task_is_still_there() {
    let mut core = server();
    let open = |from: u32| (0..8).map(|n| frame(frame::HEADERS, HEAD, from + 2 * n, POST)).collect::<Vec<_>>().concat();
    let reset =
        |from: u32| (0..8).map(|n| frame(frame::RST_STREAM, 0, from + 2 * n, &[0; 4])).collect::<Vec<_>>().concat();
    feed(&mut core, &[open(1), reset(1), open(17), reset(17)].concat());
    assert_eq!(outcome(&written(&mut core)), [""; 0]);
    assert_eq!((core.open, core.opened.len()), (0, 16));
    // But not more than twice as many tasks as streams.
    feed(&mut core, &frame(frame::HEADERS, HEAD, 33, POST));
    assert_eq!(outcome(&written(&mut core)), ["RST 33 REFUSED_STREAM"]);
}

#[test]
fn requests_that_the_other_end_does_not_take_are_bounded() {
    let (mut core, _) = client(&Method::GET);
    let (path, mut headers) = (PathAndQuery::from_static("/"), HeaderMap::new());
    headers.insert("cookie", HeaderValue::try_from("v".repeat(50_000)).unwrap());
    let full = (0..1_000).find_map(|_| core.ask(&ask(&Method::GET, &path, &headers), true).err());
    assert_eq!((full, core.limit()), (Some(Error::NoRoom), 0));
    assert!((CLOGGED..CLOGGED + 51_000).contains(&core.out.len()), "{}", core.out.len());
    written(&mut core);
    core.ask(&ask(&Method::GET, &path, &headers), true).unwrap();
}

#[test]
fn until_the_other_end_speaks_it_is_taken_to_allow_what_we_allow() {
    for (settings, then) in [(vec![], u32::MAX), (vec![0, 3, 0, 0, 0, 5], 5)] {
        let mut core = Core::new(Role::Client, CONFIG);
        assert_eq!(core.limit(), CONFIG.max_streams as usize);
        feed(&mut core, &frame(frame::SETTINGS, 0, 0, &settings));
        assert_eq!(core.limit(), then as usize);
    }
}

#[test]
fn a_connection_whose_numbers_are_used_up_is_closed_for_new_streams() {
    let (mut core, key) = client(&Method::GET);
    core.next_id = frame::MAX_31;
    let path = PathAndQuery::from_static("/");
    core.ask(&ask(&Method::GET, &path, &HeaderMap::new()), true).unwrap();
    assert!(core.takes_no_more());
    assert_eq!(core.ask(&ask(&Method::GET, &path, &HeaderMap::new()), true), Err(Error::NoRoom));
    assert!(core.streams.contains(key), "what is open goes on");
}

#[test]
fn one_frame_of_ten_thousand_windows_walks_over_the_streams_once() {
    let mut core = server();
    feed(&mut core, &frame(frame::HEADERS, HEAD, 1, POST));
    let many: Vec<u8> = (0..2_000u32).flat_map(|n| [&[0, 4][..], &(1_000 + n).to_be_bytes()[..]].concat()).collect();
    feed(&mut core, &frame(frame::SETTINGS, 0, 0, &many));
    let stream = core.streams.iter().next().unwrap().1;
    assert_eq!((core.peer_window, stream.send_window), (2_999, 2_999));
}

#[test]
fn a_head_longer_than_a_frame_is_cut_and_comes_out_whole() {
    let (mut core, _) = client(&Method::GET);
    let mut headers = HeaderMap::new();
    headers.insert("x-long", HeaderValue::try_from("v".repeat(40_000)).unwrap());
    core.ask(&ask(&Method::GET, &PathAndQuery::from_static("/long"), &headers), true).unwrap();
    let out = written(&mut core);
    let mut peer = Core::new(Role::Server, Config { max_header_list: 64 << 10, ..CONFIG });
    feed(&mut peer, &frame(frame::SETTINGS, 0, 0, &[]));
    // Stream 1 was written before; the number jumps.
    feed(&mut peer, &out);
    let opened = peer.next_opened().unwrap();
    assert_eq!(opened.head.headers, headers);
    assert!(peer.streams.get(opened.key).unwrap().receive_ended());
    let mut kinds = Vec::new();
    let mut rest = &out[..];
    while let Some(head) = Head::read(rest) {
        assert!(head.len <= frame::DEFAULT_MAX_FRAME);
        kinds.push((head.kind, head.flags));
        rest.advance(frame::HEADER + head.len);
    }
    assert_eq!(kinds, [(frame::HEADERS, END), (frame::CONTINUATION, 0), (frame::CONTINUATION, HEAD)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Frames of any kind for a few streams, their payloads sensible or not: no panic, and limits hold.
    #[test]
    fn no_frames_break_the_state(
        frames in prop::collection::vec(
            (0u8..11, any::<u8>(), 0u32..8, prop_oneof![
                prop::collection::vec(any::<u8>(), 0..12),
                Just(GET.to_vec()), Just(POST.to_vec()), Just(OK_200.to_vec()),
                Just(with(POST, &[("content-length", "3")])),
                Just(vec![0; 4]), Just(vec![0, 0, 0, 9]), Just(vec![0; 8]), Just(vec![7; 3_000]),
            ], 0u8..6),
            0..40,
        ),
        as_client: bool,
    ) {
        let (mut core, mut keys) = if as_client {
            let (core, key) = client(&Method::POST);
            (core, vec![key])
        } else {
            (server(), Vec::new())
        };
        let cx = Context::from_waker(Waker::noop());
        for (kind, flags, id, payload, then) in frames {
            feed(&mut core, &frame(kind, flags, id, &payload));
            while let Some(opened) = core.next_opened() {
                keys.push(opened.key);
            }
            let Some(&key) = keys.last() else { continue };
            match then {
                0 => drop(core.answer(key, StatusCode::OK, &HeaderMap::new(), false)),
                1 => drop(core.poll_send(key, &cx, &mut Bytes::from(vec![1; 2_000]), true)),
                2 => if let Poll::Ready(Some(Ok(data))) = core.poll_data(key, &cx) { core.release(key, data.len()) },
                3 => {
                    keys.pop();
                    core.drop_reader(key);
                    core.drop_writer(key);
                }
                4 => core.serve_waiting(),
                _ => drop(written(&mut core)),
            }
            prop_assert!(core.open <= CONFIG.max_streams.max(1));
            prop_assert!(core.recv_window >= 0);
        }
        for key in keys {
            core.drop_reader(key);
            core.drop_writer(key);
        }
        while let Some(opened) = core.next_opened() {
            core.drop_reader(opened.key);
            core.drop_writer(opened.key);
        }
        prop_assert_eq!((core.open, core.by_id.len(), core.streams.len()), (0, 0, 0));
        // Whatever came and whoever read it: nothing of the connection's window is lost.
        prop_assert_eq!(core.recv_window + i64::from(core.given), 80_000);
    }

    /// Two ends of ours that do whatever they may, with frames under way in both directions for a while: at the end all that was sent
    /// was received, no window is lost, and nothing is left.
    #[test]
    fn two_ends_lose_nothing(steps in prop::collection::vec((0u8..10, 0usize..8, 0usize..50_000), 1..150)) {
        // Two busy streams use the connection's window up.
        let config = Config { stream_window: 40_000, connection_window: 65_535, ..CONFIG };
        let mut a = Core::new(Role::Client, config);
        let mut b = Core::new(Role::Server, config);
        let cx = Context::from_waker(Waker::noop());
        let path = PathAndQuery::from_static("/");
        let (mut ours, mut theirs): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        let deliver = |from: &mut Core, to: &mut Core| {
            let out = written(from);
            let out = out.strip_prefix(&frame::PREFACE[..]).unwrap_or(&out);
            feed(to, out);
            from.serve_waiting();
        };
        for (step, which, size) in steps {
            while let Some(opened) = b.next_opened() {
                theirs.push(opened.key);
            }
            let (mine, their) = (which.checked_rem(ours.len()).map(|n| ours[n]), which.checked_rem(theirs.len()).map(|n| theirs[n]));
            match (step, mine, their) {
                (0, _, _) => {
                    let mut headers = HeaderMap::new();
                    headers.insert("x-size", HeaderValue::from(size / 10_000));
                    match a.ask(&ask(&Method::POST, &path, &headers), size % 7 == 0) {
                        Ok(key) => ours.push(key),
                        Err(error) => prop_assert_eq!(error, Error::NoRoom),
                    }
                }
                (1, Some(key), _) => drop(a.poll_send(key, &cx, &mut Bytes::from(vec![1; size]), size % 3 == 0)),
                (2, Some(key), _) => if let Poll::Ready(Some(Ok(data))) = a.poll_data(key, &cx) { a.release(key, data.len()) },
                (3, Some(key), _) => {
                    ours.retain(|other| *other != key);
                    a.drop_reader(key);
                    a.drop_writer(key);
                }
                (4, _, Some(key)) => drop(b.answer(key, StatusCode::OK, &HeaderMap::new(), size % 5 == 0)),
                (5, _, Some(key)) => drop(b.poll_send(key, &cx, &mut Bytes::from(vec![2; size]), size % 3 == 0)),
                (6, _, Some(key)) => if let Poll::Ready(Some(Ok(data))) = b.poll_data(key, &cx) { b.release(key, data.len()) },
                (7, _, Some(key)) => {
                    theirs.retain(|other| *other != key);
                    b.drop_reader(key);
                    b.drop_writer(key);
                }
                (8, _, _) => deliver(&mut a, &mut b),
                (9, _, _) => deliver(&mut b, &mut a),
                _ => {}
            }
            for core in [&a, &b] {
                prop_assert!(core.failed.is_none(), "{:?}", core.failed);
                let queued = core.streams.iter().filter(|(_, stream)| stream.queued).count();
                prop_assert_eq!(core.waiting.len(), queued, "one place for each that waits");
                prop_assert!(core.waiting.iter().all(|key| core.streams.get(*key).is_some_and(|stream| stream.queued)));
            }
        }
        for _ in 0..3 {
            deliver(&mut a, &mut b);
            deliver(&mut b, &mut a);
        }
        while let Some(opened) = b.next_opened() {
            theirs.push(opened.key);
        }
        for key in ours {
            a.drop_reader(key);
            a.drop_writer(key);
        }
        for key in theirs {
            b.drop_reader(key);
            b.drop_writer(key);
        }
        for _ in 0..3 {
            deliver(&mut a, &mut b);
            deliver(&mut b, &mut a);
        }
        prop_assert!(a.failed.is_none() && b.failed.is_none(), "{:?} {:?}", a.failed, b.failed);
        for core in [&a, &b] {
            prop_assert_eq!((core.open, core.by_id.len(), core.streams.len(), core.waiting.len()), (0, 0, 0, 0));
            prop_assert_eq!(core.recv_window + i64::from(core.given), 65_535);
        }
        // What one may still send is what the other may still receive.
        prop_assert_eq!(a.send_window, b.recv_window);
        prop_assert_eq!(b.send_window, a.recv_window);
    }
}
