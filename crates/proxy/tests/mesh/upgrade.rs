//! WebSocket and its kin: HTTP/1.1 Upgrade on the same node and over the link, and extended CONNECT (RFC 8441).

use http::{Request, Version};
use posthouse_model::AppProtocol;

use crate::harness::{A, B, H2, Mesh, Pod, Svc, Wire, pattern, read_body, send_all, within};

const UPGRADE: &str = "GET /ws?room=1 HTTP/1.1\r\nHost: web.demo\r\nConnection: keep-alive, Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: chat\r\n\r\n";

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n";

/// Switches protocols with a greeting, then sends back what comes until its end.
async fn switching(node: &'static str) -> Pod {
    Pod::raw(node, 10, |mut wire, _| async move {
        let head = wire.head().await;
        assert_eq!(head.line, "GET /ws?room=1 HTTP/1.1");
        assert_eq!((head.field("host"), head.field("upgrade")), ("web.demo", "websocket"));
        assert_eq!(head.field("connection").to_ascii_lowercase(), "upgrade");
        assert_eq!(head.field("sec-websocket-version"), "13");
        assert_eq!(head.field("sec-websocket-key").len(), 24);
        assert_eq!(head.field("sec-websocket-protocol"), "chat");
        assert_eq!(head.field("via"), "1.1 node-a.posthouse");
        assert_eq!(head.names().len(), 7, "{head:?}");
        wire.send([SWITCH, "greeting"].concat()).await;
        loop {
            let buffered = wire.buf.split();
            wire.send(buffered).await;
            if !matches!(tokio::io::AsyncReadExt::read_buf(&mut wire.stream, &mut wire.buf).await, Ok(1..)) {
                break;
            }
        }
        wire.send("end").await;
    })
    .await
}

#[tokio::test]
async fn an_upgrade_becomes_a_stream_of_bytes_in_both_directions() {
    for node in [A, B] {
        for app in [AppProtocol::Unknown, AppProtocol::Http1, AppProtocol::WebSocket] {
            let pod = switching(node).await;
            let mesh = Mesh::start();
            mesh.put(&Svc::new("web").app(app).end(&pod));
            let mut client = Wire::connect(mesh.a.outbound).await;
            client.send(UPGRADE).await;
            let head = client.head().await;
            assert_eq!(head.line, "HTTP/1.1 101 Switching Protocols", "{app:?} on {node}: {head:?}");
            assert_eq!((head.field("upgrade"), head.field("connection")), ("websocket", "upgrade"));
            assert_eq!(head.field("sec-websocket-accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
            assert_eq!(head.names().len(), 4, "{head:?}");
            assert_eq!(client.exactly(8).await, b"greeting");
            let long = pattern(1 << 20);
            client.pour(&long).await;
            assert!(client.exactly(long.len()).await == long, "an echo differs");
            assert_eq!(mesh.a.stats(pod.address).in_flight(), 1, "it counts as long as it lasts");
            client.finish().await;
            assert_eq!(client.rest().await, b"end");
            pod.has_ended(1).await;
            mesh.is_quiet(pod.address).await;
        }
    }
}

#[tokio::test]
async fn an_upgraded_connection_ends_with_either_side() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, n| async move {
            wire.head().await;
            wire.send(SWITCH).await;
            if n == 0 {
                wire.rest().await;
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send(UPGRADE).await;
        client.head().await;
        client.reset();
        pod.has_ended(1).await;
        mesh.is_quiet(pod.address).await;
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send(UPGRADE).await;
        client.head().await;
        client.ended().await;
        drop(client);
        mesh.is_quiet(pod.address).await;
    }
}

/// An upgrade whose pod says no is an answer like any other; one whose pod is not there is an error.
#[tokio::test]
async fn an_upgrade_may_be_refused_or_fail() {
    for node in [A, B] {
        let pod = Pod::named(node, 10, "no upgrades here").await;
        let (dead, _socket) = crate::harness::refusing(node, 11);
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let answer = Wire::connect(mesh.a.outbound).await.ask(UPGRADE).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "no upgrades here"));
        assert_eq!(pod.seen()[0].version, Version::HTTP_11);
        mesh.put(&Svc::new("web").end(dead));
        Wire::connect(mesh.a.outbound).await.ask(UPGRADE).await.is_error(502, "connection_refused");
    }
}

fn extended(protocol: &'static str) -> Request<()> {
    let mut request = Request::connect("http://web.demo/ws?room=1").body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static(protocol));
    request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    request.headers_mut().insert("sec-websocket-protocol", "chat".parse().unwrap());
    request
}

#[tokio::test]
async fn an_extended_connect_over_http2_is_an_upgrade_for_the_pod() {
    for node in [A, B] {
        for app in [AppProtocol::Unknown, AppProtocol::WebSocket] {
            let pod = switching(node).await;
            let mesh = Mesh::start();
            mesh.put(&Svc::new("web").app(app).end(&pod));
            let client = H2::connect(mesh.a.outbound).await;
            client.takes_extended_connect().await;
            let (response, mut send) = client.open(extended("websocket"), false).await.unwrap();
            let response = within("the switch", response).await.unwrap();
            assert_eq!(response.status(), 200, "{response:?}");
            let names: Vec<&str> = response.headers().keys().map(http::HeaderName::as_str).collect();
            assert_eq!(names, ["sec-websocket-protocol"], "neither Accept nor anything of HTTP/1.1's upgrade");
            let mut recv = response.into_body();
            let greeting = within("the greeting", recv.data()).await.unwrap().unwrap();
            assert_eq!(greeting, "greeting");
            within("room", send_all(&mut send, "frame".into(), false)).await.unwrap();
            assert_eq!(within("the echo", recv.data()).await.unwrap().unwrap(), "frame");
            send.send_data("".into(), true).unwrap();
            assert_eq!(within("the end", read_body(&mut recv)).await.unwrap(), b"end");
            pod.has_ended(1).await;
            drop((send, recv));
            mesh.is_quiet(pod.address).await;
        }
    }
}

#[tokio::test]
async fn an_extended_connect_that_the_pod_refuses_is_answered_as_the_pod_says() {
    for node in [A, B] {
        let pod = Pod::http(node, 10, |_| async {
            http::Response::builder().status(403).body(crate::harness::full("no")).unwrap()
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let client = H2::connect(mesh.a.outbound).await;
        client.takes_extended_connect().await;
        let (response, _send) = client.open(extended("websocket"), false).await.unwrap();
        let reply = H2::reply(response).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (403, "no"));
        mesh.is_quiet(pod.address).await;
    }
}

/// A 200 to a GET with Upgrade is no switch; taken for one, the pod's body would be bytes of the other protocol.
#[tokio::test]
async fn a_success_that_is_no_switch_is_not_taken_for_one_over_http2() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            wire.head().await;
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain").await;
            wire.rest().await;
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let client = H2::connect(mesh.a.outbound).await;
        client.takes_extended_connect().await;
        let (response, mut send) = client.open(extended("websocket"), false).await.unwrap();
        // To RFC 8441 any 2xx is a tunnel.
        let reply = H2::reply(response).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (502, "plain"));
        assert!(reply.field("proxy-status").contains("error=http_upgrade_failed"), "{reply:?}");
        let _ = send.send_data("frame".into(), true);
        mesh.is_quiet(pod.address).await;
    }
}
