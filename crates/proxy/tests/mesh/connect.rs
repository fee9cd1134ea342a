//! CONNECT: what is inside is looked at, and requests in it are balanced one by one; the rest is carried as it is.

use std::collections::HashSet;
use std::time::Duration;

use http::Request;
use posthouse_model::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{A, B, End, H2, Mesh, Pod, Svc, Wire, pattern, refusing, send_all, within};

const CONNECT: &str = "CONNECT web.demo:80 HTTP/1.1\r\nHost: web.demo:80\r\n\r\n";

const GET: &str = "GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n";

/// A tunnel to `web.demo:80`.
async fn tunnel(mesh: &Mesh) -> Wire {
    let mut client = Wire::connect(mesh.a.outbound).await;
    client.send(CONNECT).await;
    let head = client.head().await;
    assert!(head.line.starts_with("HTTP/1.1 200 "), "{head:?}");
    assert!(head.fields.is_empty(), "neither length nor coding may stand there: {head:?}");
    client
}

async fn three() -> [Pod; 3] {
    [Pod::named(A, 10, "a").await, Pod::named(B, 11, "b").await, Pod::named(B, 12, "c").await]
}

/// 30 requests miss one of three pods once in 60,000 runs.
const REQUESTS: usize = 30;

#[tokio::test]
async fn requests_of_http1_inside_a_tunnel_are_balanced_one_by_one() {
    let pods = three().await;
    let mesh = Mesh::start();
    mesh.web(&[&pods[0], &pods[1], &pods[2]]);
    let mut client = tunnel(&mesh).await;
    let mut reached = HashSet::new();
    for _ in 0..REQUESTS {
        reached.insert(client.ask("GET /x HTTP/1.1\r\nHost: web.demo\r\n\r\n").await.text());
    }
    assert_eq!(reached.len(), 3, "{reached:?}");
    assert_eq!(pods[0].seen()[0].headers["via"], "1.1 node-a.posthouse");
}

#[tokio::test]
async fn streams_of_http2_inside_a_tunnel_are_balanced_one_by_one() {
    let pods = three().await;
    let mesh = Mesh::start();
    mesh.web(&[&pods[0], &pods[1], &pods[2]]);
    for app in [AppProtocol::Unknown, AppProtocol::Grpc, AppProtocol::H2c, AppProtocol::Http1] {
        mesh.put(&pods.iter().fold(Svc::new("web").app(app), |svc, pod| svc.end(pod)));
        let client = H2::over(tunnel(&mesh).await.stream).await;
        let mut reached = HashSet::new();
        for _ in 0..REQUESTS {
            reached.insert(client.get("http://web.demo/").await.unwrap().text());
        }
        assert_eq!(reached.len(), 3, "{app:?} {reached:?}");
    }
}

#[tokio::test]
async fn nothing_inside_a_tunnel_leads_out_of_its_target() {
    let (web, other) = (Pod::named(B, 10, "web").await, Pod::named(B, 11, "other").await);
    let mesh = Mesh::start();
    mesh.web(&[&web]);
    mesh.put(&Svc::new("other").end(&other));
    let mut client = tunnel(&mesh).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: other.demo\r\n\r\n",
        "GET http://other.demo/ HTTP/1.1\r\nHost: other.demo\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: other.demo:81\r\n\r\n",
    ] {
        assert_eq!(client.ask(request).await.text(), "web", "{request:?}");
    }
    let client = H2::over(tunnel(&mesh).await.stream).await;
    for authority in ["other.demo", "169.254.169.254", "nobody.nowhere:1"] {
        assert_eq!(client.get(&format!("http://{authority}/")).await.unwrap().text(), "web", "{authority}");
    }
    // Nor does a tunnel inside the tunnel: to us it is refused, and by HTTP/1 it is the far end's business.
    let (response, _send) = client.open(Request::connect("other.demo:80").body(()).unwrap(), false).await.unwrap();
    let reply = H2::reply(response).await.unwrap();
    assert_eq!(reply.status, 403, "{reply:?}");
    assert_eq!(other.accepted(), 0);
}

/// A second CONNECT after a request inside: no longer the first bytes, so it is parsed, and refused.
#[tokio::test]
async fn a_connect_after_a_request_inside_a_tunnel_is_refused() {
    let (web, other) = (Pod::named(B, 10, "web").await, Pod::named(B, 11, "other").await);
    let mesh = Mesh::start();
    mesh.web(&[&web]);
    mesh.put(&Svc::new("other").end(&other));
    let mut client = tunnel(&mesh).await;
    assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await.text(), "web");
    client
        .send("CONNECT other.demo:80 HTTP/1.1\r\nHost: other.demo:80\r\n\r\nGET / HTTP/1.1\r\nHost: other.demo\r\n\r\n")
        .await;
    client.answer().await.is_error(403, "http_request_denied");
    client.ended().await;
    assert_eq!(other.accepted(), 0);
}

/// A pod that sends back bytes as they are until the client's end, and then says so.
async fn raw_echo(node: &'static str, last: u8) -> Pod {
    Pod::raw(node, last, |mut wire, _| async move {
        let mut buf = vec![0; 64 << 10];
        while let Ok(n @ 1..) = wire.stream.read(&mut buf).await {
            wire.send(&buf[..n]).await;
        }
        wire.send("end").await;
    })
    .await
}

#[tokio::test]
async fn bytes_that_are_no_http_go_through_as_they_are() {
    for node in [A, B] {
        let pod = raw_echo(node, 10).await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let long = pattern(3 << 20);
        let hello: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
        for first in
            [hello, b"\0\0\0\x08", b"PING\r\n", b"EHLO mail.demo\r\n", b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"GET", &long]
        {
            let mut client = tunnel(&mesh).await;
            client.pour(first).await;
            assert!(client.exactly(first.len()).await == first, "{node}: an echo of {} bytes differs", first.len());
            client.send("more").await;
            assert_eq!(client.exactly(4).await, b"more");
            client.finish().await;
            assert_eq!(
                client.rest().await,
                b"end",
                "the client's end reaches the pod, whose last words reach the client"
            );
        }
        mesh.is_quiet(pod.address).await;
    }
}

#[tokio::test]
async fn bytes_that_come_with_the_connect_belong_to_the_tunnel() {
    for node in [A, B] {
        let (echo, web) = (raw_echo(node, 10).await, Pod::named(node, 11, "web").await);
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Tcp).end(&echo));
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send([CONNECT, GET].concat()).await;
        client.head().await;
        assert_eq!(client.exactly(GET.len()).await, GET.as_bytes());
        mesh.web(&[&web]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send([CONNECT, GET].concat()).await;
        client.head().await;
        assert_eq!(client.answer().await.text(), "web");
    }
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            wire.send("220 ready\r\n").await;
            assert_eq!(wire.exactly(6).await, b"QUIT\r\n");
            wire.send("221 bye\r\n").await;
        })
        .await;
        let mesh = Mesh::with(|config| config.timeouts.peek = Duration::from_millis(20));
        mesh.web(&[&pod]);
        let mut client = tunnel(&mesh).await;
        assert_eq!(client.exactly(11).await, b"220 ready\r\n");
        client.send("QUIT\r\n").await;
        assert_eq!(client.rest().await, b"221 bye\r\n");
        drop(client);
        pod.has_ended(1).await;
        mesh.is_quiet(pod.address).await;
    }
}

#[tokio::test]
async fn a_port_that_is_said_to_be_tcp_or_tls_is_not_looked_into_and_not_waited_for() {
    for node in [A, B] {
        for app in [AppProtocol::Tcp, AppProtocol::Https, AppProtocol::Tls] {
            let pod = Pod::raw(node, 10, |mut wire, n| async move {
                if n == 0 {
                    wire.send("banner").await;
                }
                let request = wire.rest().await;
                assert!(n == 0 || request == b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "{}", request.escape_ascii());
            })
            .await;
            // A peek that would never end.
            let mesh = Mesh::with(|config| config.timeouts.peek = Duration::from_secs(3600));
            mesh.put(&Svc::new("web").app(app).end(&pod));
            assert_eq!(tunnel(&mesh).await.exactly(6).await, b"banner");
            let mut client = tunnel(&mesh).await;
            client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
            client.finish().await;
            client.ended().await;
            pod.has_ended(2).await;
        }
    }
}

#[tokio::test]
async fn either_side_may_end_its_direction_first() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            wire.send("last words").await;
            wire.finish().await;
            // Still listens.
            assert_eq!(wire.rest().await, b"\x01\x02\x03answer after the pod's end");
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Tcp).end(&pod));
        let mut client = tunnel(&mesh).await;
        client.send(b"\x01\x02\x03").await;
        assert_eq!(client.rest().await, b"last words");
        client.send("answer after the pod's end").await;
        client.finish().await;
        pod.has_ended(1).await;
        mesh.is_quiet(pod.address).await;
    }
}

#[tokio::test]
async fn a_reset_in_a_tunnel_reaches_the_other_side() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, n| async move {
            wire.exactly(1).await;
            if n == 0 {
                return wire.reset();
            }
            let end = within("the end", wire.stream.read(&mut [0; 16])).await;
            assert!(end.is_err(), "an orderly end: {end:?}");
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Tcp).end(&pod));
        let mut client = tunnel(&mesh).await;
        client.send("x").await;
        let end = within("the end", client.stream.read(&mut [0; 16])).await;
        assert!(end.is_err(), "{node}: an orderly end: {end:?}");
        let mut client = tunnel(&mesh).await;
        client.send("x").await;
        // Once the byte is at the pod, or the reset would take it along.
        pod.has_accepted(2).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.reset();
        pod.has_ended(2).await;
        mesh.is_quiet(pod.address).await;
    }
}

#[tokio::test]
async fn a_tunnel_to_a_pod_that_refuses_goes_to_another_or_breaks() {
    for node in [A, B] {
        let (dead, _socket) = refusing(node, 11);
        let pod = raw_echo(node, 10).await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Tcp).end(&pod).end(dead.clone()));
        for _ in 0..20 {
            let mut client = tunnel(&mesh).await;
            client.send("hello").await;
            assert_eq!(client.exactly(5).await, b"hello");
        }
        mesh.put(&Svc::new("web").app(AppProtocol::Tcp).end(dead));
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send(CONNECT).await;
        let head = client.head().await;
        // Answered before the pod was dialled, so all that is left is to break off; or refused in words.
        let broken = client.stream.write_all(b"hello").await.is_err() || client.rest().await.is_empty();
        assert!(head.line.starts_with("HTTP/1.1 502 ") || broken, "{head:?}");
    }
}

#[tokio::test]
async fn a_connect_over_http2_carries_bytes_and_requests_alike() {
    for node in [A, B] {
        let (echo, web) = (raw_echo(node, 10).await, Pod::named(node, 11, "web").await);
        let mesh = Mesh::start();
        mesh.web(&[&echo]);
        let client = H2::connect(mesh.a.outbound).await;
        let connect = || Request::connect("web.demo:80").body(()).unwrap();
        let (response, mut send) = client.open(connect(), false).await.unwrap();
        let response = within("the tunnel", response).await.unwrap();
        assert_eq!((response.status().as_u16(), response.headers().len()), (200, 0), "{response:?}");
        let mut recv = response.into_body();
        within("room", send_all(&mut send, b"\0\x01\x02".to_vec().into(), false)).await.unwrap();
        assert_eq!(within("the echo", recv.data()).await.unwrap().unwrap(), b"\0\x01\x02".as_slice());
        send.send_data("".into(), true).unwrap();
        assert_eq!(within("the end", crate::harness::read_body(&mut recv)).await.unwrap(), b"end");
        // HTTP inside.
        mesh.web(&[&web]);
        let (response, mut send) = client.open(connect(), false).await.unwrap();
        let mut recv = within("the tunnel", response).await.unwrap().into_body();
        let request = "GET / HTTP/1.1\r\nHost: web.demo\r\nConnection: close\r\n\r\n";
        within("room", send_all(&mut send, request.into(), false)).await.unwrap();
        let answer = within("the answer", crate::harness::read_body(&mut recv)).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"web"), "{}", answer.escape_ascii());
        // And a refusal.
        let (response, _send) = client.open(Request::connect("nobody.demo:80").body(()).unwrap(), false).await.unwrap();
        let reply = H2::reply(response).await.unwrap();
        assert!(reply.status == 500 && reply.field("proxy-status").contains("destination_not_found"), "{reply:?}");
        assert_eq!(web.seen()[0].headers["via"], "1.1 node-a.posthouse");
    }
}

#[tokio::test]
async fn a_tunnel_to_a_pods_address_reaches_that_pod() {
    let pods = three().await;
    let mesh = Mesh::start();
    mesh.web(&[&pods[0], &pods[1], &pods[2]]);
    for (pod, name) in pods.iter().zip(["a", "b", "c"]) {
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", End::from(pod).address)).await;
        assert!(client.head().await.line.starts_with("HTTP/1.1 200 "));
        for _ in 0..5 {
            assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await.text(), name);
        }
    }
}
