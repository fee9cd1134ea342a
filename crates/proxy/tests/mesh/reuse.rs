//! Warm connections to pods: one that the pod closed under us costs no request, and one that is not clean serves none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::harness::{A, B, Mesh, Pod, Wire, within};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A pod whose first connection serves one request and ends, without an answer, when the second has come; so does a pod
/// that closed an idle connection while the request was on its way. Counts requests by method.
async fn closing_under_us(node: &'static str, posts: &Arc<AtomicUsize>) -> Pod {
    let posts = Arc::clone(posts);
    Pod::raw(node, 10, move |mut wire, n| {
        let posts = Arc::clone(&posts);
        async move {
            let mut served = 0;
            while let Some((head, _)) = wire.request().await {
                if head.line.starts_with("POST") {
                    posts.fetch_add(1, Ordering::SeqCst);
                }
                if n == 0 && served == 1 {
                    return;
                }
                served += 1;
                wire.send(OK).await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_get_on_a_connection_that_the_pod_closes_under_us_is_sent_again_on_a_fresh_one() {
    for node in [A, B] {
        for body in ["", "Content-Length: 5\r\n\r\nhello"] {
            let pod = closing_under_us(node, &Arc::default()).await;
            let mesh = Mesh::start();
            mesh.web(&[&pod]);
            let mut client = Wire::connect(mesh.a.outbound).await;
            assert_eq!(client.get("web.demo", "/").await.text(), "ok");
            let fields = if body.is_empty() { "\r\n" } else { body };
            let answer = client.ask(format!("PUT / HTTP/1.1\r\nHost: web.demo\r\n{fields}")).await;
            assert_eq!(answer.text(), "ok");
            assert_eq!(pod.accepted(), 2);
        }
    }
}

#[tokio::test]
async fn a_post_on_a_connection_that_the_pod_closes_under_us_is_not_sent_twice() {
    for node in [A, B] {
        let posts = Arc::new(AtomicUsize::new(0));
        let pod = closing_under_us(node, &posts).await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        assert_eq!(client.get("web.demo", "/").await.text(), "ok");
        let answer = client.ask("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 5\r\n\r\nhello").await;
        answer.is_error(502, "connection_terminated");
        assert_eq!((posts.load(Ordering::SeqCst), pod.accepted()), (1, 1));
        let answer = client.ask("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 5\r\n\r\nhello").await;
        assert_eq!(answer.text(), "ok", "the client's connection is kept, and the pod gets a fresh one");
    }
}

/// Once its end has come, a warm connection is not even tried: then a POST is safe, too.
#[tokio::test]
async fn a_post_after_the_pods_idle_close_goes_to_a_fresh_connection() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            wire.request().await.unwrap();
            wire.send(OK).await;
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        for n in 1..=5 {
            let answer = client.ask("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 5\r\n\r\nhello").await;
            assert_eq!(answer.text(), "ok", "{n}");
            pod.has_ended(n).await;
        }
        assert_eq!(pod.accepted(), 5);
    }
}

#[tokio::test]
async fn a_pod_that_closes_after_half_a_request_fails_it_once() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            wire.head().await;
            wire.exactly(70_000).await;
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 1000000\r\n\r\n").await;
        client.send(vec![b'x'; 200_000]).await;
        client.answer().await.is_error(502, "connection_terminated");
        client.ended().await;
        assert_eq!(pod.accepted(), 1);
        mesh.is_quiet(pod.address).await;
    }
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_ends_the_connection_and_is_given_to_nobody() {
    for node in [A, B] {
        let (speak, spoken) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (pod_speak, pod_spoken) = (Arc::clone(&speak), Arc::clone(&spoken));
        let pod = Pod::raw(node, 10, move |mut wire, n| {
            let (speak, spoken) = (Arc::clone(&pod_speak), Arc::clone(&pod_spoken));
            async move {
                wire.request().await.unwrap();
                wire.send(OK).await;
                if n == 0 {
                    // Later, on the idle connection.
                    speak.notified().await;
                    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").await;
                    spoken.notify_one();
                }
                wire.ended().await;
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        assert_eq!(client.get("web.demo", "/").await.text(), "ok");
        speak.notify_one();
        within("the unasked answer", spoken.notified()).await;
        assert_eq!(client.get("web.demo", "/").await.text(), "ok");
        pod.has_ended(1).await;
        assert_eq!(pod.accepted(), 2);
    }
}

#[tokio::test]
async fn a_pod_that_says_close_is_not_asked_again_on_that_connection() {
    for node in [A, B] {
        for head in ["HTTP/1.1 200 OK\r\nConnection: close", "HTTP/1.0 200 OK"] {
            let pod = Pod::raw(node, 10, move |mut wire, _| async move {
                wire.request().await.unwrap();
                wire.send(format!("{head}\r\nContent-Length: 2\r\n\r\nok")).await;
                wire.ended().await;
            })
            .await;
            let mesh = Mesh::start();
            mesh.web(&[&pod]);
            let mut client = Wire::connect(mesh.a.outbound).await;
            for _ in 0..3 {
                let answer = client.get("web.demo", "/").await;
                assert_eq!((answer.text().as_str(), answer.head.names()), ("ok", vec!["content-length"]));
            }
            assert_eq!(pod.accepted(), 3);
            pod.has_ended(3).await;
        }
    }
}

/// The answer is there, the rest of the request is not: what is left of it would be read as the next request.
#[tokio::test]
async fn a_connection_whose_request_was_not_sent_whole_is_not_used_again() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            let head = wire.head().await;
            wire.send(OK).await;
            let rest = String::from_utf8(wire.rest().await).unwrap();
            assert!(!rest.contains("HTTP/1.1"), "{head:?}: {rest:?}");
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        for n in 1..=3 {
            let mut client = Wire::connect(mesh.a.outbound).await;
            client.send("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 100\r\n\r\nhalf").await;
            assert_eq!(client.answer().await.text(), "ok");
            drop(client);
            pod.has_ended(n).await;
        }
        assert_eq!(pod.accepted(), 3);
    }
}
