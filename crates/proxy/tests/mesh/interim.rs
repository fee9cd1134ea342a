//! Answers before the answer: 100-continue, 103 Early Hints, and final answers to requests whose body is still to come.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use posthouse_model::AppProtocol;
use std::future::poll_fn;

use crate::harness::{A, B, H2, Mesh, Pod, Svc, Wire, within};

const EXPECTING: &str = "POST /upload HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it_from_the_pod() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            let head = wire.head().await;
            assert_eq!(head.field("expect"), "100-continue");
            assert!(wire.buf.is_empty(), "the body came unasked");
            wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(wire.body(&head).await.0, b"hello");
            wire.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
            wire.rest().await;
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        let go_on = client.ask(EXPECTING).await;
        assert_eq!((go_on.status, go_on.head.fields.len()), (100, 0), "{go_on:?}");
        assert_eq!(client.ask("hello").await.status, 201);
    }
}

#[tokio::test]
async fn a_refusal_instead_of_100_reaches_the_client_and_its_body_is_not_waited_for() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            wire.head().await;
            wire.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
            wire.ended().await;
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        let answer = client.ask(EXPECTING).await;
        assert_eq!((answer.status, answer.text().as_str()), (413, "big"));
        // The body may or may not come now, so nothing on this connection can be told from it.
        client.ended().await;
        pod.has_ended(1).await;
        mesh.is_quiet(pod.address).await;
    }
}

#[tokio::test]
async fn a_final_answer_while_the_body_still_comes_reaches_the_client() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            wire.head().await;
            wire.send("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig").await;
            // Reads on without use, as servers do that want their answer to arrive.
            wire.rest().await;
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send(format!("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: {}\r\n\r\n", 64 << 20)).await;
        client.send(vec![b'x'; 100_000]).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (413, "big"));
        client.ended().await;
        pod.has_ended(1).await;
        mesh.is_quiet(pod.address).await;
    }
}

const HINT: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nposthouse-error: x\r\n\r\n";

async fn hinting(node: &'static str) -> Pod {
    Pod::raw(node, 10, |mut wire, _| async move {
        while wire.request().await.is_some() {
            wire.send([HINT, HINT, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfinal"].concat()).await;
        }
    })
    .await
}

#[tokio::test]
async fn early_hints_reach_an_http1_client_in_order() {
    for node in [A, B] {
        let pod = hinting(node).await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        for _ in 0..3 {
            client.send("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
            for _ in 0..2 {
                let hint = client.answer().await;
                assert_eq!((hint.status, hint.head.names()), (103, vec!["link"]), "{hint:?}");
                assert_eq!(hint.head.field("link"), "</a.css>; rel=preload");
            }
            assert_eq!(client.answer().await.text(), "final");
        }
        // HTTP/1.0 knows no interim answers.
        let answer = client.ask("GET / HTTP/1.0\r\nHost: web.demo\r\n\r\n").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "final"));
    }
}

#[tokio::test]
async fn early_hints_of_an_http1_pod_reach_an_http2_client() {
    for node in [A, B] {
        let pod = hinting(node).await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
        hinted(&H2::connect(mesh.a.outbound).await).await;
    }
}

#[tokio::test]
async fn early_hints_of_an_http2_pod_reach_clients_of_either_version() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |wire, _| async move {
            let mut connection = h2::server::handshake(wire.stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let hint = Response::builder().status(103).header("link", "</a.css>; rel=preload").body(()).unwrap();
                respond.send_informational(hint).unwrap();
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                send.send_data(Bytes::from_static(b"final"), true).unwrap();
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
        hinted(&H2::connect(mesh.a.outbound).await).await;
        let mut client = Wire::connect(mesh.a.outbound).await;
        let hint = client.get("web.demo", "/").await;
        assert_eq!((hint.status, hint.head.names()), (103, vec!["link"]), "{hint:?}");
        assert_eq!(client.answer().await.text(), "final");
    }
}

/// Asks for `/` and expects at least one hint before the answer.
async fn hinted(client: &H2) {
    let (mut response, _) = client.open(Request::get("http://web.demo/").body(()).unwrap(), true).await.unwrap();
    let hint = within("a hint", poll_fn(|cx| response.poll_informational(cx))).await.unwrap().unwrap();
    assert_eq!(hint.status(), StatusCode::EARLY_HINTS);
    assert_eq!(hint.headers()["link"], "</a.css>; rel=preload");
    assert_eq!(hint.headers().len(), 1, "{:?}", hint.headers());
    assert_eq!(H2::reply(response).await.unwrap().text(), "final");
}

#[tokio::test]
async fn an_http2_client_that_waits_for_100_gets_it() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            let head = wire.head().await;
            assert_eq!(head.field("expect"), "100-continue");
            wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(wire.body(&head).await.0, b"hello");
            wire.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
            wire.rest().await;
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
        let client = H2::connect(mesh.a.outbound).await;
        let request = Request::post("http://web.demo/").header("expect", "100-continue").header("content-length", 5);
        let (mut response, mut send) = client.open(request.body(()).unwrap(), false).await.unwrap();
        let go_on = within("100", poll_fn(|cx| response.poll_informational(cx))).await.unwrap().unwrap();
        assert_eq!(go_on.status(), StatusCode::CONTINUE);
        send.send_data(Bytes::from_static(b"hello"), true).unwrap();
        assert_eq!(H2::reply(response).await.unwrap().status, StatusCode::CREATED);
    }
}
