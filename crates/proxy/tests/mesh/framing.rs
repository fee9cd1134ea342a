//! Bodies that are shorter or longer than they said: the other side must notice, the connection is not used again, and
//! nothing of the surplus is read as a message.

use std::sync::Arc;

use http::Request;
use posthouse_model::AppProtocol;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;

use crate::harness::{A, B, H2, Mesh, Pod, Svc, Wire, read_body, within};

#[tokio::test]
async fn a_clients_body_that_breaks_off_never_looks_whole_to_the_pod() {
    for node in [A, B] {
        for framing in
            ["Content-Length: 100\r\n\r\n0123456789", "Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n"]
        {
            let pod = Pod::raw(node, 10, |mut wire, _| async move {
                let head = wire.head().await;
                let rest = String::from_utf8(wire.rest().await).unwrap();
                assert!(
                    rest.contains("0123456789") && rest.len() < 100 && !rest.contains("0\r\n\r\n"),
                    "{head:?} {rest:?}"
                );
            })
            .await;
            let mesh = Mesh::start();
            mesh.web(&[&pod]);
            // Once by closing both ways, once by closing its own way only and waiting for an answer.
            for waits in [false, true] {
                let mut client = Wire::connect(mesh.a.outbound).await;
                client.send(format!("POST / HTTP/1.1\r\nHost: web.demo\r\n{framing}")).await;
                pod.has_accepted(usize::from(waits) + 1).await;
                if waits {
                    client.finish().await;
                    let answer = client.rest().await;
                    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400 "), "{}", answer.escape_ascii());
                }
                drop(client);
                pod.has_ended(usize::from(waits) + 1).await;
            }
            mesh.is_quiet(pod.address).await;
        }
    }
}

/// A pod that begins an answer by `cut.0` and, once the client has seen that, ends it by `cut.1` and its connection.
async fn cutting(node: &'static str, cut: (&'static str, &'static str), go: &Arc<Notify>) -> Pod {
    let go = Arc::clone(go);
    Pod::raw(node, 10, move |mut wire, n| {
        let go = Arc::clone(&go);
        async move {
            wire.head().await;
            if n >= 2 {
                return wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
            wire.send(cut.0).await;
            go.notified().await;
            wire.send(cut.1).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_pods_body_that_breaks_off_never_looks_whole_to_the_client() {
    const LENGTH: &str = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nbegun";
    const CUT: &[(&str, &str)] = &[
        (LENGTH, ""),
        (LENGTH, " and on"),
        (CHUNKED, ""),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n", ""),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n", "0\r\nX: y\r\n"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n", "x\r\n\r\n"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun", "surplus\r\n0\r\n\r\n"),
    ];
    for node in [A, B] {
        for cut in CUT {
            let go = Arc::new(Notify::new());
            let pod = cutting(node, *cut, &go).await;
            let mesh = Mesh::start();
            mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
            let mut client = Wire::connect(mesh.a.outbound).await;
            client.send("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
            let head = client.head().await;
            let chunked = head.all("transfer-encoding") == ["chunked"];
            assert!(chunked || head.field("content-length") == "100", "{head:?}");
            let begun: &[u8] = if chunked { b"5\r\nbegun\r\n" } else { b"begun" };
            assert_eq!(client.exactly(begun.len()).await, begun);
            go.notify_one();
            let rest = String::from_utf8(client.rest().await).unwrap();
            assert!(rest.len() < 50 && !rest.contains("0\r\n\r\n"), "{cut:?}: {rest:?}");

            let client = H2::connect(mesh.a.outbound).await;
            let (response, _) = client.open(Request::get("http://web.demo/").body(()).unwrap(), true).await.unwrap();
            let mut recv = within("the head", response).await.unwrap().into_body();
            assert_eq!(within("the beginning", recv.data()).await.unwrap().unwrap(), "begun");
            go.notify_one();
            assert!(within("the end", read_body(&mut recv)).await.is_err(), "{cut:?} looked whole");
            assert_eq!(client.get("http://web.demo/").await.unwrap().text(), "ok", "the client's connection lives");
            mesh.is_quiet(pod.address).await;
        }
    }
}

/// Ends with the connection, which breaks: an end that was not in order must not look like one that was.
#[tokio::test]
async fn a_pods_reset_in_an_answer_without_a_length_is_no_orderly_end_for_the_client() {
    for node in [A, B] {
        let go = Arc::new(Notify::new());
        let pod_go = Arc::clone(&go);
        let pod = Pod::raw(node, 10, move |mut wire, _| {
            let go = Arc::clone(&pod_go);
            async move {
                wire.head().await;
                wire.send("HTTP/1.0 200 OK\r\n\r\nbegun").await;
                go.notified().await;
                wire.reset();
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        for (version, begun) in [("1.1", "5\r\nbegun\r\n"), ("1.0", "begun")] {
            let mut client = Wire::connect(mesh.a.outbound).await;
            client.send(format!("GET / HTTP/{version}\r\nHost: web.demo\r\n\r\n")).await;
            client.head().await;
            assert_eq!(client.exactly(begun.len()).await, begun.as_bytes());
            go.notify_one();
            let end = within("the end", client.stream.read(&mut [0; 64])).await;
            // For HTTP/1.0 the end of the connection is the end of the answer: only a reset says that it broke.
            assert!(end.is_err() || version == "1.1" && matches!(end, Ok(0)), "HTTP/{version} from {node}: {end:?}");
        }
    }
}

#[tokio::test]
async fn a_pods_surplus_is_dropped_with_its_connection() {
    const SURPLUS: &[&str] = &[
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst\r\n",
    ];
    for node in [A, B] {
        for surplus in SURPLUS {
            let pod = Pod::raw(node, 10, move |mut wire, n| async move {
                wire.head().await;
                wire.send(if n == 0 { surplus } else { "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond" }).await;
                wire.ended().await;
            })
            .await;
            let mesh = Mesh::start();
            mesh.web(&[&pod]);
            let mut client = Wire::connect(mesh.a.outbound).await;
            assert_eq!(client.get("web.demo", "/").await.text(), "first");
            assert_eq!(client.get("web.demo", "/").await.text(), "second");
            drop(mesh);
            pod.has_ended(2).await;
            assert_eq!(pod.accepted(), 2);
        }
    }
}

/// Answers that have no body by their status, with one all the same.
#[tokio::test]
async fn a_body_where_none_can_be_is_not_the_next_answer() {
    for node in [A, B] {
        for (method, evil) in [
            ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil"),
            ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil"),
            ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
        ] {
            let pod = Pod::raw(node, 10, move |mut wire, n| async move {
                if wire.try_head().await.is_some() {
                    wire.send(if n == 0 { evil } else { "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond" }).await;
                    wire.rest().await;
                }
            })
            .await;
            let mesh = Mesh::start();
            mesh.web(&[&pod]);
            let mut client = Wire::connect(mesh.a.outbound).await;
            client.send(format!("{method} / HTTP/1.1\r\nHost: web.demo\r\n\r\n")).await;
            let head = client.head().await;
            assert_eq!(head.line.get(9..12), evil.get(9..12), "{head:?}");
            assert_eq!(client.get("web.demo", "/").await.text(), "second", "after {evil:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_two_parsers_could_cut_differently_is_refused() {
    const AMBIGUOUS: &[&str] = &[
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n folded\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ];
    for node in [A, B] {
        for ambiguous in AMBIGUOUS {
            let pod = Pod::raw(node, 10, move |mut wire, _| async move {
                wire.head().await;
                wire.send(ambiguous).await;
                wire.rest().await;
            })
            .await;
            let mesh = Mesh::start();
            mesh.web(&[&pod]);
            let mut client = Wire::connect(mesh.a.outbound).await;
            client.get("web.demo", "/").await.is_error(502, "http_protocol_error");
            pod.has_ended(1).await;
            assert_eq!(pod.accepted(), 1, "an answer was seen, so the request is not sent again");
        }
    }
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    let pod = Pod::raw(B, 10, move |mut wire, _| {
        let long = long.clone();
        async move {
            wire.head().await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut wire.stream, long.as_bytes()).await;
            wire.rest().await;
        }
    })
    .await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    Wire::connect(mesh.a.outbound).await.get("web.demo", "/").await.is_error(502, "http_protocol_error");
    let client = H2::connect(mesh.a.outbound).await;
    mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
    let reply = client.call(Request::get("http://web.demo/").body(()).unwrap(), b"").await.unwrap();
    assert!(reply.field("proxy-status").contains("http_protocol_error"), "{reply:?}");
}
