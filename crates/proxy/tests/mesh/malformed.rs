//! Requests that two parsers could read differently: refused, the connection closed, nothing of what follows is ever a
//! request. Each one here is followed by a pipelined `GET /smuggled`, which no pod may see.

use std::time::Duration;

use posthouse_model::AppProtocol;

use crate::harness::{Answer, B, H2, Mesh, Pod, Svc, Wire};

const SMUGGLED: &str = "GET http://web.demo/smuggled HTTP/1.1\r\nHost: web.demo\r\n\r\n";

/// The bytes of the head up to where the smuggled request begins, and the status that refuses them.
const HEADS: &[(&str, u16)] = &[
    // Framing.
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 0\r\nContent-Length: 60\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 0, 60\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 0, 0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: +0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: -1\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 0x0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length:\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 0 0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 18446744073709551616\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 9223372036854775808\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nContent_Length: 60\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: identity\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    (
        "POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer_Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    ("POST / HTTP/1.0\r\nHost: web.demo\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nConnection: content-length\r\nContent-Length: 60\r\n\r\n", 400),
    (
        "POST / HTTP/1.1\r\nHost: web.demo\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\nConnection: host\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\nConnection: a b\r\n\r\n", 400),
    // Fields.
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length : 60\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding\0: chunked\r\n\r\n0\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost : web.demo\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\n Host: web.demo\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\nX: a\r\n b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\nX: a\r\n\tb\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\nX: a\rb\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\nX: a\0b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\nX: a\x7fb\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\nX: a\nY: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\nHost: web.demo\n\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\n\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\nno colon here\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\n: no name\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\nX(Y): z\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\nExpect: 200-ok\r\n\r\n", 417),
    // Host and target.
    ("GET / HTTP/1.1\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\nHost: web.demo\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo\r\nHost: other.demo\r\n\r\n", 400),
    ("GET http://web.demo/ HTTP/1.1\r\n\r\n", 400),
    ("GET http://web.demo/ HTTP/1.1\r\nHost: user@web.demo\r\n\r\n", 400),
    ("GET http://user:secret@web.demo/ HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: other.demo@web.demo\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo:99999\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo:080\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo:+80\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo/x\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo other.demo\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: web.demo, other.demo\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: 0177.0.0.1\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: 2130706433\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: 0x7f000001\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: [fe80::1%25lo]\r\n\r\n", 400),
    ("GET ftp://web.demo/ HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("GET http:///path HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("GET path HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("GET * HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("GET /a#b HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("GET /\u{e9} HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("GET /a b HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("CONNECT web.demo HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("CONNECT http://web.demo:80/ HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("CONNECT web.demo:80 HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 5\r\n\r\n", 400),
    ("CONNECT web.demo:80 HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    // The request line.
    ("GET  / HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("GET /  HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("GET\t/\tHTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    (" GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("G(T / HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("GETGETGETGETGETGETGETGETGETGETGETGET / HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("GET /\r\n\r\n", 400),
    ("GET / http/1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("GET / HTTP/1.2\r\nHost: web.demo\r\n\r\n", 505),
    ("GET / HTTP/2.0\r\nHost: web.demo\r\n\r\n", 505),
    ("GET / HTTP/3.0\r\nHost: web.demo\r\n\r\n", 505),
    ("GET / HTTP/1.1.1\r\nHost: web.demo\r\n\r\n", 400),
    ("\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: web.demo\r\n\r\n", 400),
    // No HTTP at all: a TLS hello, a command of another protocol.
    ("\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03", 400),
    ("EHLO mail.demo\r\n\r\n", 400),
];

#[tokio::test]
async fn malformed_and_ambiguous_heads_are_refused_and_nothing_behind_them_is_read_as_a_request() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    for (head, status) in HEADS {
        let case = head.escape_debug().to_string();
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send([head, SMUGGLED].concat()).await;
        refused_and_closed(&mut client, *status, &case).await;
        assert_eq!(pod.accepted(), 0, "a pod was reached by {case}");
    }
}

/// The same inside a tunnel, where heads are parsed as well; what is plainly no HTTP goes to the pod as it is there.
#[tokio::test]
async fn malformed_heads_inside_a_tunnel_are_refused_like_those_outside() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    for (head, status) in HEADS.iter().filter(|(head, _)| head.starts_with("POST / HTTP/1.1")) {
        let case = head.escape_debug().to_string();
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send("CONNECT web.demo:80 HTTP/1.1\r\nHost: web.demo:80\r\n\r\n").await;
        assert_eq!(client.head().await.line, "HTTP/1.1 200 Connection established");
        client.send([head, SMUGGLED].concat()).await;
        refused_and_closed(&mut client, *status, &case).await;
        assert_eq!(pod.accepted(), 0, "a pod was reached by {case}");
    }
}

async fn refused_and_closed(client: &mut Wire, status: u16, case: &str) -> Answer {
    let Some(head) = client.try_head().await else { panic!("closed without an answer: {case}") };
    let (body, trailers) = client.body(&head).await;
    assert!(head.line.starts_with(&format!("HTTP/1.1 {status} ")), "{case}: {head:?}");
    assert_eq!(head.field("connection"), "close", "{case}");
    let rest = client.rest().await;
    assert!(rest.is_empty(), "{case}: more came: {}", rest.escape_ascii());
    let answer = Answer { status, head, body, trailers };
    answer.is_error(status, "http_request_error");
    answer
}

/// Bodies that begin well; the pod may see the request's beginning, but never its end nor what follows.
#[tokio::test]
async fn malformed_chunks_end_the_request_and_the_connection() {
    const BODIES: &[&str] = &[
        "x\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "2\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "3;\0\r\nabc\r\n0\r\n\r\n",
        "3 4\r\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\n\n",
        "3\r\nabc\r\n0\r\nX : y\r\n\r\n",
        "3\r\nabc\r\n0\r\nX: a\0b\r\n\r\n",
        "3\r\nabc\r\n0\r\nno colon\r\n\r\n",
        "3\r\nabc\r\n0\r\n folded: x\r\n\r\n",
    ];
    let pod = Pod::raw(B, 10, |mut wire, _| async move {
        let Some(head) = wire.try_head().await else { return };
        assert_eq!(head.line, "POST / HTTP/1.1");
        let rest = String::from_utf8(wire.rest().await).unwrap();
        assert!(!rest.contains("smuggled") && !rest.ends_with("0\r\n\r\n"), "{rest:?}");
    })
    .await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    for body in BODIES {
        let mut client = Wire::connect(mesh.a.outbound).await;
        let head = "POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send([head, body, SMUGGLED].concat()).await;
        refused_and_closed(&mut client, 400, body).await;
    }
    pod.has_ended(pod.accepted()).await;
    mesh.is_quiet(pod.address).await;
}

#[tokio::test]
async fn a_header_list_over_64_kib_is_answered_431() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let long = "x".repeat(70_000);
    let many: String = (0..300).map(|n| format!("x-{n}: y\r\n")).collect();
    for fields in [format!("X: {long}\r\n"), many] {
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: web.demo\r\n{fields}\r\n{SMUGGLED}")).await;
        refused_and_closed(&mut client, 431, "long header list").await;
    }
    let mut client = Wire::connect(mesh.a.outbound).await;
    client.send(format!("GET /{long} HTTP/1.1\r\nHost: web.demo\r\n\r\n{SMUGGLED}")).await;
    refused_and_closed(&mut client, 431, "long target").await;

    let client = H2::connect(mesh.a.outbound).await;
    let request = http::Request::get("http://web.demo/").header("x", &long).body(()).unwrap();
    match client.call(request, b"").await {
        Ok(reply) => assert_eq!(reply.status, 431),
        Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
    }
    assert_eq!(pod.accepted(), 0);
    // What the pod's own parser takes is not the question: HTTP/1.1 is lenient there.
    mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
    let below = "x".repeat(60_000);
    let request = http::Request::get("http://web.demo/").header("x", &below).body(()).unwrap();
    let client = H2::connect(mesh.a.outbound).await;
    assert_eq!(client.call(request, b"").await.unwrap().status, 200, "60 KiB are carried, over the link, too");
}

#[tokio::test]
async fn a_head_that_does_not_arrive_in_time_is_answered_408() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::with(|config| config.timeouts.request_header = Duration::from_millis(100));
    mesh.web(&[&pod]);
    for part in ["G", "GET / HTTP/1.1\r\nHost: web.demo\r\n", "GET / HTTP/1.1\r\nHost: web.demo\r\n\r"] {
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send(part).await;
        refused_and_closed(&mut client, 408, part).await;
    }
    // The limit runs from the first byte: a connection without one is idle, not slow.
    let mut quiet = Wire::connect(mesh.a.outbound).await;
    let mut slow = Wire::connect(mesh.a.outbound).await;
    slow.send("GET / HTTP").await;
    refused_and_closed(&mut slow, 408, "the clock that the quiet one outlives").await;
    assert_eq!(quiet.get("web.demo", "/").await.text(), "pod");
    // Nor does it end what is kept alive.
    let mut slow = Wire::connect(mesh.a.outbound).await;
    slow.send("PRI * HTTP/2.0\r\n").await;
    slow.rest().await;
    assert_eq!(quiet.get("web.demo", "/").await.text(), "pod");
}
