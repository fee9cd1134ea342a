//! Pods that refuse, close or misunderstand: what can still be served is, and what cannot says why.

use std::sync::Arc;

use http::Request;
use posthouse_model::AppProtocol;
use tokio::sync::Notify;

use super::h2_pod;
use crate::harness::{A, B, FrameKind, Frames, H2, Mesh, Pod, Svc, Wire};

/// REFUSED_STREAM says that nothing was done (RFC 9113 §8.7), so even the only endpoint of a Service is asked again.
#[tokio::test]
async fn a_stream_that_the_only_endpoint_refused_is_tried_there_again() {
    for node in [A, B] {
        let pod = h2_pod(node, 10, |mut frames, _| async move {
            let mut streams = 0;
            while let Some(stream) = frames.stream().await {
                streams += 1;
                if streams % 2 == 1 {
                    frames.wire.send(Frames::reset_bytes(stream, 7)).await;
                } else {
                    frames.headers(stream, &[(b":status", b"204")], true).await;
                }
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
        let mut client = Wire::connect(mesh.a.outbound).await;
        for host in ["web.demo".to_owned(), pod.address.to_string()] {
            for method in ["GET", "POST"] {
                let request = format!("{method} / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello");
                let answer = client.ask(request).await;
                assert_eq!(answer.status, 204, "{node} {method} {host}: {answer:?}");
            }
        }
    }
}

/// A request that crosses a GOAWAY on its way was not looked at (RFC 9113 §6.8): it failed although another connection was to
/// be had, and each rolling update hit some.
#[tokio::test]
async fn a_request_that_a_goaway_leaves_out_is_sent_again_on_a_fresh_connection() {
    for node in [A, B] {
        let pod = h2_pod(node, 10, |mut frames, n| async move {
            while let Some(stream) = frames.stream().await {
                if n % 2 == 0 {
                    // Its last stream is 0: none was looked at.
                    frames.send(FrameKind::GoAway, 0, 0, &[0; 8]).await;
                    frames.wire.rest().await;
                    return;
                }
                frames.headers(stream, &[(b":status", b"204")], true).await;
            }
        })
        .await;
        for (n, method) in ["GET", "POST"].into_iter().enumerate() {
            let mesh = Mesh::start();
            mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
            let request = format!("{method} / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 5\r\n\r\nhello");
            let answer = Wire::connect(mesh.a.outbound).await.ask(request).await;
            assert_eq!(answer.status, 204, "{node} {method}: {answer:?}");
            assert_eq!(pod.accepted(), 2 * (n + 1));
        }
    }
}

/// A server's keep-alive ends a moment before the next request. A POST cannot be sent twice, so it must not be sent on a
/// connection whose end the kernel knows already.
#[tokio::test]
async fn a_post_is_not_sent_on_a_connection_that_the_pod_has_closed() {
    const ROUNDS: usize = 150;
    const NOWHERE: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    const POST: &str = "POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 5\r\n\r\nhello";
    for node in [A, B] {
        let (close, closed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (told, done) = (Arc::clone(&close), Arc::clone(&closed));
        let pod = Pod::raw(node, 10, move |mut wire, _| {
            let (close, closed) = (Arc::clone(&told), Arc::clone(&done));
            async move {
                assert!(wire.request().await.is_some());
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                close.notified().await;
                drop(wire);
                closed.notify_one();
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
        let mut client = Wire::connect(mesh.a.outbound).await;
        for n in 0..ROUNDS {
            // Requests that need no pod, in one turn of the connection's task: after some number of them tokio's budget for a
            // turn ends just where the idle connection is looked at, and every connection looks open then.
            client.send([NOWHERE.repeat(n), POST.to_owned()].concat()).await;
            for _ in 0..n {
                client.answer().await.is_error(500, "destination_not_found");
            }
            let answer = client.answer().await;
            assert_eq!(answer.text(), "ok", "{node} {n}: {answer:?}");
            close.notify_one();
            closed.notified().await;
        }
        // One request each: none was sent twice.
        assert_eq!(pod.accepted(), ROUNDS);
    }
}

/// The client's HTTP/2 is passed on where the Service says nothing; to a pod without it the answer was a riddle.
#[tokio::test]
async fn http2_to_a_pod_without_it_says_which_field_to_set() {
    const BAD: &str = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 11\r\n\r\nBad Request";
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            wire.head().await;
            wire.send(BAD).await;
            wire.rest().await;
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let client = H2::connect(mesh.a.outbound).await;
        let reply = client.get("http://web.demo/").await.unwrap();
        assert_eq!(reply.status, 502, "{reply:?}");
        assert!(reply.text().contains("http_protocol_error"), "{reply:?}");
        assert!(reply.text().contains("appProtocol"), "{reply:?}");
    }
}

/// Fields between proxies are none of an HTTP/2 pod's business, not even behind a body.
#[tokio::test]
async fn trailers_of_ours_do_not_reach_an_http2_pod() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |wire, _| async move {
            let mut connection = h2::server::handshake(wire.stream).await.unwrap();
            while let Some(accepted) = connection.accept().await {
                let Ok((request, mut respond)) = accepted else { return };
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    let sent = crate::harness::read_body(&mut body).await.unwrap();
                    assert_eq!(sent, b"hello");
                    let trailers = body.trailers().await.unwrap().unwrap_or_default();
                    let names: Vec<&str> = trailers.keys().map(http::HeaderName::as_str).collect();
                    let mut answer = http::Response::new(());
                    answer.headers_mut().insert("x-seen", names.join(",").parse().unwrap());
                    respond.send_response(answer, true).unwrap();
                });
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
        let client = H2::connect(mesh.a.outbound).await;
        let (response, mut send) =
            client.open(Request::post("http://web.demo/").body(()).unwrap(), false).await.unwrap();
        send.send_data("hello".into(), false).unwrap();
        let mut trailers = http::HeaderMap::new();
        for name in ["posthouse-target", "posthouse-x", "x-checksum"] {
            trailers.insert(name, "1".parse().unwrap());
        }
        send.send_trailers(trailers).unwrap();
        let reply = H2::reply(response).await.unwrap();
        assert_eq!(reply.field("x-seen"), "x-checksum", "{node}");
    }
}
