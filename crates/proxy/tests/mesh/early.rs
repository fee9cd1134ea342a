//! Bytes that a client sends before it knows whether its CONNECT or Upgrade is taken: of the other protocol, so never a
//! request, and for the pod when it is taken.

use crate::harness::{A, B, Mesh, Pod, Wire};

const EARLY: &str = "GET http://web.demo/smuggled HTTP/1.1\r\nHost: web.demo\r\n\r\n";

#[tokio::test]
async fn early_bytes_after_a_refused_connect_are_never_parsed_as_a_request() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    for target in ["nobody.demo:80", "web.demo:81", "169.254.169.254:80", "127.0.0.1:80", "example.com:443"] {
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n{EARLY}")).await;
        let answer = client.answer().await;
        assert!(answer.status >= 500, "{answer:?}");
        assert!(answer.head.field("proxy-status").starts_with("posthouse; error=destination_"), "{answer:?}");
        assert_eq!(answer.head.field("connection"), "close");
        client.ended().await;
    }
    assert_eq!(pod.accepted(), 0);
}

#[tokio::test]
async fn early_bytes_after_a_refused_upgrade_are_never_parsed_as_a_request() {
    for node in [A, B] {
        for status in [200, 403, 426] {
            let pod = Pod::raw(node, 10, move |mut wire, _| async move {
                let head = wire.head().await;
                assert_eq!(head.field("upgrade"), "websocket");
                wire.send(format!("HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\nno")).await;
                let rest = wire.rest().await;
                assert!(rest.is_empty(), "{}", rest.escape_ascii());
            })
            .await;
            let mesh = Mesh::start();
            mesh.web(&[&pod]);
            let mut client = Wire::connect(mesh.a.outbound).await;
            let upgrade = "GET /ws HTTP/1.1\r\nHost: web.demo\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            client.send([upgrade, EARLY].concat()).await;
            let answer = client.answer().await;
            assert_eq!((answer.status, answer.text().as_str()), (status, "no"));
            client.ended().await;
            assert_eq!(pod.accepted(), 1);
            drop(mesh);
            pod.has_ended(1).await;
        }
    }
}

#[tokio::test]
async fn early_bytes_after_an_accepted_upgrade_reach_the_pod_as_they_are() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            wire.head().await;
            wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
                .await;
            assert_eq!(wire.exactly(EARLY.len()).await, EARLY.as_bytes());
            wire.send("done").await;
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        let upgrade = "GET /ws HTTP/1.1\r\nHost: web.demo\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        client.send([upgrade, EARLY].concat()).await;
        assert_eq!(client.head().await.line, "HTTP/1.1 101 Switching Protocols");
        assert_eq!(client.exactly(9).await, b"hellodone");
    }
}

#[tokio::test]
async fn a_switch_of_protocols_that_nobody_asked_for_is_a_broken_answer() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            if wire.try_head().await.is_some() {
                wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await;
                wire.ended().await;
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.get("web.demo", "/").await.is_error(502, "http_protocol_error");
    }
}

#[tokio::test]
async fn an_upgrade_to_http2_or_tls_is_served_without_it() {
    let pod = Pod::raw(B, 10, |mut wire, _| async move {
        while let Some((head, _)) = wire.request().await {
            assert_eq!(head.names(), ["host", "via"]);
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    for protocol in ["h2c", "TLS/1.3", "HTTP/2.0"] {
        let mut client = Wire::connect(mesh.a.outbound).await;
        let fields = format!("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABk");
        let answer = client.ask(format!("GET / HTTP/1.1\r\nHost: web.demo\r\n{fields}\r\n\r\n")).await;
        assert_eq!(answer.text(), "ok");
    }
}
