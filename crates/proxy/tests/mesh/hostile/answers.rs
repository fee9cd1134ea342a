//! Pods whose answers try to be more than the answer to the request they got.

use std::sync::Arc;

use posthouse_model::AppProtocol;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

use super::{contains, h2_pod, is_broken_off};
use crate::harness::{A, B, FrameKind, Frames, H2, Mesh, Pod, Svc, Wire, within};

const GET: &str = "GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n";

/// HTTP/2 does not forbid DATA behind a 204. Written on an HTTP/1.1 connection it was the answer to the client's next
/// request, which went to another Service.
#[tokio::test]
async fn data_behind_an_answer_without_a_body_is_not_the_answer_to_the_next_request() {
    const SPLIT: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nEVIL!";
    for node in [A, B] {
        for (method, status) in [("GET", "204"), ("GET", "304"), ("HEAD", "200"), ("POST", "204")] {
            for late in [false, true] {
                let what = format!("{node} {method} {status} late {late}");
                let go = Arc::new(Notify::new());
                let told = Arc::clone(&go);
                let evil = h2_pod(node, 10, move |mut frames, _| {
                    let go = Arc::clone(&told);
                    async move {
                        let Some(stream) = frames.stream().await else { return };
                        let head = Frames::headers_bytes(stream, &[(b":status", status.as_bytes())], false);
                        let split = Frames::data_bytes(stream, SPLIT, true);
                        if late {
                            frames.wire.send(head).await;
                            go.notified().await;
                            // The stream may be given up by now, and the connection with it.
                            let _ = frames.wire.stream.write_all(&split).await;
                        } else {
                            frames.wire.send([head, split].concat()).await;
                        }
                        frames.wire.rest().await;
                    }
                })
                .await;
                let victim = Pod::named(node, 11, "victim").await;
                let mesh = Mesh::start();
                mesh.put(&Svc::new("evil").app(AppProtocol::H2c).end(&evil));
                mesh.put(&Svc::new("victim").end(&victim));
                let mut client = Wire::connect(mesh.a.outbound).await;
                client.send(format!("{method} / HTTP/1.1\r\nHost: evil.demo\r\nContent-Length: 0\r\n\r\n")).await;
                // The connection may be broken off before or after the head, which is as good.
                if let Some(head) = client.try_head().await {
                    let told = head.line.starts_with(&format!("HTTP/1.1 {status}"));
                    assert!(told || head.line.starts_with("HTTP/1.1 502"), "{what}: {head:?}");
                }
                let next = b"GET / HTTP/1.1\r\nHost: victim.demo\r\nConnection: close\r\n\r\n";
                let _ = client.stream.write_all(next).await;
                go.notify_one();
                let rest = client.rest().await;
                assert!(!contains(&rest, "EVIL"), "{what}: {}", rest.escape_ascii());
                assert!(rest.is_empty() || rest.ends_with(b"victim"), "{what}: {}", rest.escape_ascii());
                assert_eq!(Wire::connect(mesh.a.outbound).await.get("victim.demo", "/").await.text(), "victim");
            }
        }
    }
}

/// 101 does not exist in HTTP/2 (RFC 9113 §8.6); passed on, the client would take all that follows for another protocol.
#[tokio::test]
async fn an_http2_pod_cannot_switch_protocols() {
    for node in [A, B] {
        let pod = h2_pod(node, 10, |mut frames, _| async move {
            while let Some(stream) = frames.stream().await {
                let interim = Frames::headers_bytes(stream, &[(b":status", b"101"), (b"x", b"y")], false);
                let last = Frames::headers_bytes(stream, &[(b":status", b"200")], true);
                let _ = frames.wire.stream.write_all(&[interim, last].concat()).await;
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
        Wire::connect(mesh.a.outbound).await.ask(GET).await.is_error(502, "http_protocol_error");
        let reply = H2::connect(mesh.a.outbound).await.get("http://web.demo/").await.unwrap();
        assert_eq!(reply.status, 502, "{reply:?}");
    }
}

/// Interim answers on an HTTP/2 stream until its last frame, and the status then.
async fn interims(to: std::net::SocketAddr) -> (usize, u16) {
    let mut client = Frames::connect(to).await;
    let fields: [(&[u8], &[u8]); 4] =
        [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"web.demo"), (b":path", b"/")];
    client.headers(1, &fields, true).await;
    let (mut heads, mut status) = (0, 0);
    loop {
        let frame = client.next().await.expect("the answer's end");
        if frame.is(FrameKind::Headers) {
            heads += 1;
            status = frame.status();
        }
        assert!(!frame.is(FrameKind::Reset) && !frame.is(FrameKind::GoAway), "{frame:?}");
        if frame.is_last() {
            return (heads - 1, status);
        }
    }
}

/// A pod whose every request is answered with `n` times 103 of `len` bytes and then 204, in HTTP/2 or HTTP/1.1.
async fn hinting(node: &'static str, h2: bool, n: usize, len: usize) -> Pod {
    let link = "x".repeat(len);
    if h2 {
        return h2_pod(node, 10, move |mut frames, _| {
            let link = link.clone();
            async move {
                while let Some(stream) = frames.stream().await {
                    let hint =
                        Frames::headers_bytes(stream, &[(b":status", b"103"), (b"link", link.as_bytes())], false);
                    let last = Frames::headers_bytes(stream, &[(b":status", b"204")], true);
                    // It may be given up in the middle.
                    let _ = frames.wire.stream.write_all(&[hint.repeat(n), last].concat()).await;
                }
            }
        })
        .await;
    }
    Pod::raw(node, 10, move |mut wire, _| {
        let link = link.clone();
        async move {
            while wire.request().await.is_some() {
                let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: {link}\r\n\r\n");
                let all = [hint.repeat(n), "HTTP/1.1 204 No Content\r\n\r\n".to_owned()].concat();
                let _ = wire.stream.write_all(all.as_bytes()).await;
            }
        }
    })
    .await
}

/// HEADERS know no flow control: a pod that repeated 103 filled the proxy's memory by 200 MB a second.
#[tokio::test]
async fn a_pod_that_floods_interim_answers_is_cut_off_after_sixteen() {
    for node in [A, B] {
        for h2 in [true, false] {
            for (n, len, most, expected) in
                [(16, 10, 16, 204), (17, 10, 16, 502), (3000, 10, 16, 502), (8, 15_000, 4, 502)]
            {
                let what = format!("{node} h2 {h2} {n} of {len} bytes");
                let pod = hinting(node, h2, n, len).await;
                let mesh = Mesh::start();
                let app = if h2 { AppProtocol::H2c } else { AppProtocol::Http1 };
                mesh.put(&Svc::new("web").app(app).end(&pod));
                let (passed, status) = within(&what, interims(mesh.a.outbound)).await;
                assert_eq!(status, expected, "{what}");
                assert!(passed <= most, "{what}: {passed} passed");
                let mut client = Wire::connect(mesh.a.outbound).await;
                client.send(GET).await;
                let (mut passed, mut answer) = (0, client.answer().await);
                while answer.status == 103 {
                    passed += 1;
                    answer = client.answer().await;
                }
                assert_eq!(answer.status, expected, "{what}: {answer:?}");
                assert!(passed <= most, "{what}: {passed} passed");
                assert!(expected != 204 || passed == n, "{what}: {passed} passed");
            }
        }
    }
}

/// An answer that lasts until the close is whole when it ends in good order, so a broken one must not.
#[tokio::test]
async fn an_http10_client_sees_that_the_pod_broke_off() {
    for node in [A, B] {
        let go = Arc::new(Notify::new());
        let told = Arc::clone(&go);
        let pod = Pod::raw(node, 10, move |mut wire, _| {
            let go = Arc::clone(&told);
            async move {
                wire.head().await;
                wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
                go.notified().await;
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send("GET / HTTP/1.0\r\nHost: web.demo\r\n\r\n").await;
        client.head().await;
        assert_eq!(client.exactly(5).await, b"hello");
        go.notify_one();
        assert!(is_broken_off(&mut client).await, "{node}: a clean end");
        assert_eq!(client.buf, "");

        // Inside a tunnel on an HTTP/2 stream it is the stream that must not end well.
        let client = H2::connect(mesh.a.outbound).await;
        let (response, mut send) =
            client.open(http::Request::connect("web.demo:80").body(()).unwrap(), false).await.unwrap();
        send.send_data("GET / HTTP/1.0\r\nHost: web.demo\r\n\r\n".into(), false).unwrap();
        let mut recv = within("the tunnel", response).await.unwrap().into_body();
        let mut got = Vec::new();
        let ended = within("the stream's end", async {
            loop {
                match recv.data().await {
                    Some(Ok(data)) => got.extend(data),
                    Some(Err(error)) => return Err(error),
                    None => return Ok(()),
                }
                if got.ends_with(b"hello") {
                    go.notify_one();
                }
            }
        })
        .await;
        assert!(got.ends_with(b"hello"));
        assert!(ended.is_err(), "{node}: a clean end in a tunnel");
    }
}

/// The 101 named the client's whole list instead of what the pod switched to (RFC 9110 §7.8).
#[tokio::test]
async fn a_101_names_the_protocol_that_the_pod_chose_and_only_one_that_was_offered() {
    const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: web.demo\r\nConnection: Upgrade\r\nUpgrade: aaa, bbb\r\n\r\n";
    for node in [A, B] {
        for (chosen, taken) in
            [("Upgrade: bbb\r\n", true), ("Upgrade: aaa\r\n", true), ("Upgrade: ccc\r\n", false), ("", false)]
        {
            let pod = Pod::raw(node, 10, move |mut wire, _| async move {
                wire.head().await;
                wire.send(format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{chosen}\r\nbytes"))
                    .await;
                wire.rest().await;
            })
            .await;
            let mesh = Mesh::start();
            mesh.web(&[&pod]);
            let mut client = Wire::connect(mesh.a.outbound).await;
            client.send(UPGRADE).await;
            if taken {
                let head = client.head().await;
                assert_eq!(head.line, "HTTP/1.1 101 Switching Protocols");
                assert_eq!(format!("Upgrade: {}\r\n", head.field("upgrade")), chosen, "{node}");
                assert_eq!(client.exactly(5).await, b"bytes");
            } else {
                let answer = client.answer().await;
                answer.is_error(502, "http_protocol_error");
                assert!(!contains(&client.rest().await, "bytes"));
            }
        }
    }
}
