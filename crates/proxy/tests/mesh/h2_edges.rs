//! HTTP/2 that an HTTP/1.1 pod would read as something else: fields and paths with line ends, lengths that lie, framing
//! smuggled in as fields. Each case is written as raw frames; the pod records every byte that it gets.

use std::sync::{Arc, Mutex};

use posthouse_model::AppProtocol;

use crate::harness::{A, B, Frames, Mesh, Outcome, Pod, Svc};

type Fields<'a> = &'a [(&'a [u8], &'a [u8])];

/// Every byte that a pod's connections got, one text a connection.
type Bytes = Arc<Mutex<Vec<String>>>;

/// Answers each request, however it is framed, and keeps what came.
async fn recording(node: &'static str, bytes: &Bytes) -> Pod {
    let bytes = Arc::clone(bytes);
    Pod::raw(node, 10, move |mut wire, n| {
        let bytes = Arc::clone(&bytes);
        async move {
            loop {
                let complete = {
                    let mut bytes = bytes.lock().unwrap();
                    if bytes.len() <= n {
                        bytes.resize(n + 1, String::new());
                    }
                    bytes[n].push_str(&String::from_utf8_lossy(&wire.buf.split()));
                    bytes[n].ends_with("\r\n\r\n") || bytes[n].ends_with("hello")
                };
                if complete {
                    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                }
                if !matches!(tokio::io::AsyncReadExt::read_buf(&mut wire.stream, &mut wire.buf).await, Ok(1..)) {
                    return;
                }
            }
        }
    })
    .await
}

const METHOD: (&[u8], &[u8]) = (b":method", b"GET");
const POST: (&[u8], &[u8]) = (b":method", b"POST");
const SCHEME: (&[u8], &[u8]) = (b":scheme", b"http");
const AUTHORITY: (&[u8], &[u8]) = (b":authority", b"web.demo");
const PATH: (&[u8], &[u8]) = (b":path", b"/");

async fn start(node: &'static str, bytes: &Bytes) -> (Mesh, Pod) {
    let pod = recording(node, bytes).await;
    let mesh = Mesh::start();
    mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
    (mesh, pod)
}

async fn outcome(mesh: &Mesh, fields: Fields<'_>, body: Option<&[u8]>) -> Outcome {
    let mut client = Frames::connect(mesh.a.outbound).await;
    client.headers(1, fields, body.is_none()).await;
    if let Some(body) = body {
        client.data(1, body, true).await;
    }
    client.outcome(1).await
}

#[tokio::test]
async fn fields_and_paths_that_would_break_out_of_an_http1_head_never_reach_a_pod() {
    let evil: &[Fields<'_>] = &[
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"x", b"a\r\nsmuggled: 1")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"x", b"a\nsmuggled: 1")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"x", b"a\rsmuggled: 1")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"x", b"smuggled\0")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"x", b"a\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: web.demo\r\n\r\n")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"x\r\nsmuggled", b"1")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"x: y\r\nsmuggled", b"1")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"smuggled ", b"1")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"Smuggled", b"1")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"smuggled:", b"1")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"", b"smuggled")],
        &[METHOD, SCHEME, AUTHORITY, (b":path", b"/ HTTP/1.1\r\nhost: web.demo\r\n\r\nGET /smuggled")],
        &[METHOD, SCHEME, AUTHORITY, (b":path", b"/ HTTP/1.1\r\nsmuggled: 1")],
        &[METHOD, SCHEME, AUTHORITY, (b":path", b"/smuggled HTTP/1.1")],
        &[METHOD, SCHEME, AUTHORITY, (b":path", b"/\0smuggled")],
        &[METHOD, SCHEME, AUTHORITY, (b":path", b"/\tsmuggled")],
        &[METHOD, SCHEME, AUTHORITY, (b":path", b"smuggled")],
        &[METHOD, SCHEME, AUTHORITY, (b":path", b"http://other.demo/smuggled")],
        &[METHOD, SCHEME, AUTHORITY, (b":path", b"@other.demo/smuggled")],
        &[METHOD, SCHEME, AUTHORITY, (b":path", b"")],
        &[METHOD, SCHEME, AUTHORITY],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b":path", b"/smuggled")],
        &[METHOD, SCHEME, AUTHORITY, (b":path", b"*")],
        &[(b":method", b"GET /smuggled HTTP/1.1\r\nhost: web.demo\r\n\r\nGET"), SCHEME, AUTHORITY, PATH],
        &[(b":method", b"GET /smuggled"), SCHEME, AUTHORITY, PATH],
        &[(b":method", b""), SCHEME, AUTHORITY, PATH],
        &[METHOD, (b":method", b"POST"), SCHEME, AUTHORITY, PATH],
        &[SCHEME, AUTHORITY, PATH],
        &[METHOD, SCHEME, (b":authority", b"web.demo\r\nsmuggled: 1"), PATH],
        &[METHOD, SCHEME, (b":authority", b"smuggled@web.demo"), PATH],
        &[METHOD, SCHEME, (b":authority", b"web.demo/smuggled"), PATH],
        &[METHOD, SCHEME, (b":authority", b"web.demo:80:80"), PATH],
        &[METHOD, SCHEME, (b":authority", b""), PATH],
        &[METHOD, SCHEME, PATH],
        &[METHOD, SCHEME, PATH, (b"host", b"web.demo"), (b"host", b"smuggled")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b":smuggled", b"1")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b":status", b"200")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"connection", b"x-kept")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"connection", b"keep-alive")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"keep-alive", b"timeout=5")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"proxy-connection", b"keep-alive")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"transfer-encoding", b"chunked")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"upgrade", b"websocket")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"te", b"gzip")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"content_length", b"5")],
        &[METHOD, SCHEME, AUTHORITY, PATH, (b"transfer_encoding", b"chunked")],
        &[(b":method", b"CONNECT"), AUTHORITY],
        &[(b":method", b"CONNECT"), SCHEME, AUTHORITY, PATH],
    ];
    for node in [A, B] {
        let bytes = Bytes::default();
        let (mesh, pod) = start(node, &bytes).await;
        for fields in evil {
            let shown: Vec<_> =
                fields.iter().map(|(n, v)| format!("{}: {}", n.escape_ascii(), v.escape_ascii())).collect();
            bytes.lock().unwrap().clear();
            let outcome = outcome(&mesh, fields, None).await;
            let got = bytes.lock().unwrap().concat();
            // Refused, or served without what was evil in it.
            for bad in
                ["smuggled", "transfer-encoding", "transfer_encoding", "content_length", "upgrade", "keep-alive", "te:"]
            {
                assert!(!got.to_ascii_lowercase().contains(bad), "{shown:?} ({outcome:?}): {got:?}");
            }
            assert!(got.is_empty() || got.starts_with("GET / HTTP/1.1\r\nhost: web.demo\r\n"), "{shown:?}: {got:?}");
            assert!(got.is_empty() || outcome == Outcome::Answered(200), "{shown:?} {outcome:?}: {got:?}");
        }
        mesh.is_quiet(pod.address).await;
    }
}

#[tokio::test]
async fn a_body_that_disagrees_with_its_content_length_is_never_whole_for_the_pod_and_nothing_of_it_is_a_request() {
    const SMUGGLED: &[u8] = b"helloGET /smuggled HTTP/1.1\r\nhost: web.demo\r\n\r\n";
    let cases: &[(Fields<'_>, Option<&[u8]>)] = &[
        (&[POST, SCHEME, AUTHORITY, PATH, (b"content-length", b"5")], Some(SMUGGLED)),
        (&[POST, SCHEME, AUTHORITY, PATH, (b"content-length", b"0")], Some(SMUGGLED)),
        (&[POST, SCHEME, AUTHORITY, PATH, (b"content-length", b"100")], Some(b"hello")),
        (&[POST, SCHEME, AUTHORITY, PATH, (b"content-length", b"5")], None),
        (&[METHOD, SCHEME, AUTHORITY, PATH, (b"content-length", b"5")], None),
        (&[POST, SCHEME, AUTHORITY, PATH, (b"content-length", b"5"), (b"content-length", b"100")], Some(b"hello")),
        (&[POST, SCHEME, AUTHORITY, PATH, (b"content-length", b"100"), (b"content-length", b"5")], Some(b"hello")),
        (&[POST, SCHEME, AUTHORITY, PATH, (b"content-length", b"5, 100")], Some(b"hello")),
        (&[POST, SCHEME, AUTHORITY, PATH, (b"content-length", b"+5")], Some(b"hello")),
        (&[POST, SCHEME, AUTHORITY, PATH, (b"content-length", b"-5")], Some(b"hello")),
        (&[POST, SCHEME, AUTHORITY, PATH, (b"content-length", b"0x5")], Some(b"hello")),
        (&[POST, SCHEME, AUTHORITY, PATH, (b"content-length", b"")], Some(b"hello")),
        (&[POST, SCHEME, AUTHORITY, PATH, (b"content-length", b"18446744073709551621")], Some(b"hello")),
    ];
    for node in [A, B] {
        for (fields, body) in cases {
            let bytes = Bytes::default();
            let (mesh, pod) = start(node, &bytes).await;
            let length = String::from_utf8_lossy(fields[4].1);
            let what = format!("{node} {length:?} {:?}", body.map(<[u8]>::len));
            let outcome = outcome(&mesh, fields, *body).await;
            mesh.is_quiet(pod.address).await;
            // Whatever is left on a connection must not meet the next request.
            let next = self::outcome(&mesh, &[METHOD, SCHEME, AUTHORITY, (b":path", b"/next")], None).await;
            assert_eq!(next, Outcome::Answered(200), "{what}");
            let got = bytes.lock().unwrap().clone();
            assert!(!got.concat().contains("smuggled"), "{what}: {got:?}");
            for connection in &got {
                let whole = requests(connection);
                assert!(whole.is_some_and(|paths| paths.iter().all(|p| p == "/" || p == "/next")), "{what}: {got:?}");
            }
            if let Outcome::Answered(status) = outcome {
                assert!(status == 400 || status == 502 || status == 200, "{what}: {status}");
                let disagrees = body.is_some_and(|body| body.len() != 5) || length == "100";
                assert!(status != 200 || !disagrees, "{what} was served: {got:?}");
            }
        }
    }
}

/// The paths of the requests that are whole in `bytes`, read as strictly as pods ought to; `None` when something between
/// them is no request. One that is cut off at the end is none, and no harm.
fn requests(bytes: &str) -> Option<Vec<String>> {
    let mut paths = Vec::new();
    let mut rest = bytes;
    while let Some((head, after)) = rest.split_once("\r\n\r\n") {
        let mut lines = head.split("\r\n");
        let mut line = lines.next()?.split(' ');
        let (_, path, version) = (line.next()?, line.next()?, line.next()?);
        if version != "HTTP/1.1" || line.next().is_some() {
            return None;
        }
        let fields: Vec<(&str, &str)> = lines.map(|l| l.split_once(": ")).collect::<Option<_>>()?;
        let lengths: Vec<_> = fields.iter().filter(|(name, _)| *name == "content-length").collect();
        let chunked = fields.iter().any(|(name, _)| *name == "transfer-encoding");
        let body = match (lengths.as_slice(), chunked) {
            ([], false) => Some(after),
            ([(_, length)], false) => after.get(length.parse().ok()?..),
            ([], true) => after.split_once("0\r\n\r\n").map(|(_, after)| after),
            _ => return None,
        };
        let Some(after) = body else { return Some(paths) };
        paths.push(path.to_owned());
        rest = after;
    }
    Some(paths)
}

#[tokio::test]
async fn the_reader_of_requests_in_this_test_reads_them() {
    assert_eq!(
        requests("GET / HTTP/1.1\r\nhost: x\r\n\r\nPOST /a HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello").unwrap().len(),
        2
    );
    assert_eq!(requests("POST /a HTTP/1.1\r\ncontent-length: 9\r\n\r\nhello").unwrap().len(), 0);
    assert_eq!(
        requests("POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").unwrap().len(),
        1
    );
    assert!(requests("GET / HTTP/1.1\r\nhost: x\r\n\r\nhello\r\n\r\n").is_none());
}

#[tokio::test]
async fn trailers_of_http2_that_frame_or_route_are_no_trailers_for_an_http1_pod() {
    for node in [A, B] {
        let bytes = Bytes::default();
        let (mesh, pod) = start(node, &bytes).await;
        let mut client = Frames::connect(mesh.a.outbound).await;
        client.headers(1, &[POST, SCHEME, AUTHORITY, PATH], false).await;
        client.data(1, b"hello", false).await;
        let trailers: Fields<'_> = &[
            (b"content-length", b"100"),
            (b"host", b"smuggled"),
            (b"authorization", b"smuggled"),
            (b"posthouse-target", b"smuggled"),
            (b"x-sum", b"5"),
        ];
        client.headers(1, trailers, true).await;
        client.outcome(1).await;
        mesh.is_quiet(pod.address).await;
        let got = bytes.lock().unwrap().concat();
        assert!(!got.contains("smuggled") && !got.contains("content-length"), "{got:?}");
    }
}

/// The authority and Host: the pod sees one of them, the one that was routed by.
#[tokio::test]
async fn host_is_replaced_by_the_authority_and_used_without_one() {
    for node in [A, B] {
        let bytes = Bytes::default();
        let (mesh, _pod) = start(node, &bytes).await;
        let both: Fields<'_> = &[METHOD, SCHEME, AUTHORITY, PATH, (b"host", b"other.demo")];
        let host: Fields<'_> = &[METHOD, SCHEME, PATH, (b"host", b"web.demo")];
        for fields in [both, host] {
            bytes.lock().unwrap().clear();
            assert_eq!(outcome(&mesh, fields, None).await, Outcome::Answered(200));
            let got = bytes.lock().unwrap().concat();
            assert!(got.contains("\r\nhost: web.demo\r\n") && !got.contains("other.demo"), "{got:?}");
        }
    }
}
