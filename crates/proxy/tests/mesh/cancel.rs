//! A client that goes away: the pod is told, and nothing stays counted as under way.

use http::{Request, Response};
use posthouse_model::AppProtocol;
use std::future::poll_fn;

use crate::harness::{A, B, H2, Mesh, Pod, Svc, Wire, within};

const GET: &str = "GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n";

/// A pod that answers the beginning or nothing, and then waits for the end of its connection.
async fn hanging(node: &'static str, begun: &'static str) -> Pod {
    Pod::raw(node, 10, move |mut wire, _| async move {
        wire.head().await;
        wire.send(begun).await;
        wire.ended().await;
    })
    .await
}

const BEGUN: [&str; 3] = [
    "",
    "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n",
];

#[tokio::test]
async fn an_http1_client_that_disconnects_ends_the_pods_connection() {
    for node in [A, B] {
        for begun in BEGUN {
            let pod = hanging(node, begun).await;
            let mesh = Mesh::start();
            mesh.web(&[&pod]);
            let mut client = Wire::connect(mesh.a.outbound).await;
            client.send(GET).await;
            pod.has_accepted(1).await;
            if !begun.is_empty() {
                client.head().await;
            }
            assert_eq!(mesh.a.stats(pod.address).in_flight(), 1);
            drop(client);
            pod.has_ended(1).await;
            mesh.is_quiet(pod.address).await;
        }
    }
}

#[tokio::test]
async fn an_http1_client_that_disconnects_while_it_sends_ends_the_pods_connection() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            wire.head().await;
            wire.exactly(3).await;
            wire.rest().await;
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 1000\r\n\r\nabc").await;
        pod.has_accepted(1).await;
        client.reset();
        pod.has_ended(1).await;
        mesh.is_quiet(pod.address).await;
    }
}

#[tokio::test]
async fn an_http2_client_that_resets_a_stream_ends_an_http1_pods_connection() {
    for node in [A, B] {
        for begun in BEGUN {
            let pod = hanging(node, begun).await;
            let mesh = Mesh::start();
            mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
            let client = H2::connect(mesh.a.outbound).await;
            let (response, mut send) =
                client.open(Request::get("http://web.demo/").body(()).unwrap(), true).await.unwrap();
            pod.has_accepted(1).await;
            let held = if begun.is_empty() { None } else { Some(within("the head", response).await.unwrap()) };
            send.send_reset(h2::Reason::CANCEL);
            pod.has_ended(1).await;
            drop(held);
            mesh.is_quiet(pod.address).await;
        }
    }
}

#[tokio::test]
async fn an_http2_client_that_resets_a_stream_resets_it_at_an_http2_pod() {
    for node in [A, B] {
        for begun in [false, true] {
            let pod = Pod::raw(node, 10, move |wire, _| async move {
                let mut connection = h2::server::handshake(wire.stream).await.unwrap();
                let (_, mut respond) = connection.accept().await.unwrap().unwrap();
                let mut send = begun.then(|| respond.send_response(Response::new(()), false).unwrap());
                let reset = poll_fn(|cx| match &mut send {
                    Some(send) => send.poll_reset(cx),
                    None => respond.poll_reset(cx),
                });
                // The connection is what moves the stream.
                tokio::select! {
                    reason = reset => assert_eq!(reason.unwrap(), h2::Reason::CANCEL),
                    more = connection.accept() => panic!("another stream or the end came first: {:?}", more.is_some()),
                }
            })
            .await;
            let mesh = Mesh::start();
            mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
            let client = H2::connect(mesh.a.outbound).await;
            let (response, mut send) =
                client.open(Request::get("http://web.demo/").body(()).unwrap(), true).await.unwrap();
            pod.has_accepted(1).await;
            let held = if begun { Some(within("the head", response).await.unwrap()) } else { None };
            send.send_reset(h2::Reason::CANCEL);
            pod.has_ended(1).await;
            drop(held);
            mesh.is_quiet(pod.address).await;
        }
    }
}

/// One client of many on a link goes; the others do not notice.
#[tokio::test]
async fn a_cancelled_stream_leaves_the_others_of_its_link_alone() {
    let pod = hanging(B, "").await;
    let other = Pod::named(B, 11, "other").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    mesh.put(&Svc::new("other").end(&other));
    let mut client = Wire::connect(mesh.a.outbound).await;
    for n in 1..=20 {
        let mut leaving = Wire::connect(mesh.a.outbound).await;
        leaving.send(GET).await;
        pod.has_accepted(n).await;
        drop(leaving);
        assert_eq!(client.get("other.demo", "/").await.text(), "other");
    }
    pod.has_ended(20).await;
    mesh.is_quiet(pod.address).await;
    assert_eq!(mesh.a.proxy.links()[0].opened, 1, "one link for all of it");
}
