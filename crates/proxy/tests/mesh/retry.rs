//! Other endpoints after a failure: which requests may be sent again, with what body, and how often in all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use http::Request;
use posthouse_model::{AppProtocol, EndpointState, ServiceKind};

use tokio::sync::Notify;

use crate::harness::{A, Answer, B, End, H2, Mesh, Pod, Svc, Wire, assert_same, pattern, refusing};

/// Requests by their `x-id` as pods saw them.
type Log = Arc<Mutex<HashMap<String, usize>>>;

/// A pod that reads requests to their end and closes without an answer.
async fn mute(node: &'static str, last: u8, log: &Log) -> Pod {
    let log = Arc::clone(log);
    Pod::raw(node, last, move |mut wire, _| {
        let log = Arc::clone(&log);
        async move {
            if let Some((head, _)) = wire.request().await {
                *log.lock().unwrap().entry(head.all("x-id").concat()).or_default() += 1;
            }
        }
    })
    .await
}

/// A pod that answers with the length of the body.
async fn good(node: &'static str, last: u8, log: &Log) -> Pod {
    let log = Arc::clone(log);
    Pod::raw(node, last, move |mut wire, _| {
        let log = Arc::clone(&log);
        async move {
            while let Some((head, body)) = wire.request().await {
                *log.lock().unwrap().entry(head.all("x-id").concat()).or_default() += 1;
                assert_same(&body, &pattern(body.len()), "the body");
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n{:06}", body.len())).await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_pod_that_refuses_connections_costs_no_request_and_is_soon_hardly_tried() {
    for node in [A, B] {
        let (dead, _socket) = refusing(node, 12);
        let (one, two) = (Pod::named(node, 10, "ok").await, Pod::named(node, 11, "ok").await);
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").end(&one).end(&two).end(dead.clone()));
        let mut client = Wire::connect(mesh.a.outbound).await;
        for n in 0..200 {
            // POST as well: nothing of it reached a pod.
            let method = if n % 2 == 0 { "GET" } else { "POST" };
            let answer =
                client.ask(format!("{method} / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 0\r\n\r\n")).await;
            assert_eq!(answer.text(), "ok", "{n}: {answer:?}");
        }
        let tried = mesh.a.stats(dead.address).requests();
        // 67 were it picked like the others. It is avoided for 0.5 s, 1 s, 2 s, ... so a slow machine tries it more often.
        assert!((1..=20).contains(&tried), "the dead pod was tried {tried} times");
        let others = mesh.a.stats(one.address).requests().min(mesh.a.stats(two.address).requests());
        assert!(others >= 50, "the others share: {others}");
    }
}

#[tokio::test]
async fn a_pod_that_closes_without_an_answer_fails_posts_and_no_idempotent_requests() {
    for node in [A, B] {
        let log = Log::default();
        let (bad, fine) = (mute(node, 10, &log).await, good(node, 11, &log).await);
        let mesh = Mesh::start();
        mesh.web(&[&bad, &fine]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        let mut failed = 0;
        for n in 0..60 {
            let method = ["GET", "PUT", "POST"][n % 3];
            let body = if method == "GET" { 0 } else { 1000 };
            client
                .send(format!("{method} / HTTP/1.1\r\nHost: web.demo\r\nX-Id: {n}\r\nContent-Length: {body}\r\n\r\n"))
                .await;
            let answer = client.ask(pattern(body)).await;
            if method == "POST" && answer.status != 200 {
                failed += 1;
                answer.is_error(502, "connection_terminated");
            } else {
                assert_eq!(answer.text(), format!("{body:06}"), "{method} {n}");
            }
        }
        assert!((1..20).contains(&failed), "{failed} of 20 POSTs failed, so the bad pod was never or always picked");
        let log = log.lock().unwrap();
        for n in 0..60 {
            let seen = log[&n.to_string()];
            assert!(seen == 1 || n % 3 != 2 && seen == 2, "request {n} was seen {seen} times");
        }
    }
}

/// When a Service shrinks without care, a request may meet a pod that ends twice in a row.
#[tokio::test]
async fn two_pods_in_a_row_that_close_fail_no_idempotent_request() {
    for node in [A, B] {
        let log = Log::default();
        let (bad, worse) = (mute(node, 10, &log).await, mute(node, 11, &log).await);
        let fine = good(node, 12, &log).await;
        let mesh = Mesh::start();
        mesh.web(&[&bad, &worse, &fine]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        for n in 0..30 {
            client.send(format!("GET / HTTP/1.1\r\nHost: web.demo\r\nX-Id: {n}\r\n\r\n")).await;
            assert_eq!(client.answer().await.text(), "000000", "{node}: GET {n}");
        }
        let log = log.lock().unwrap();
        assert!(log.values().any(|seen| *seen == 3), "no request met both: {log:?}");
    }
}

/// Makes `pod` look busy, so that the balancer takes the other of two.
fn look_busy(mesh: &Mesh, pod: &Pod) {
    mesh.a.stats(pod.address).begin();
}

#[tokio::test]
async fn a_body_within_64_kib_is_sent_again_whole_and_a_longer_one_not_at_all() {
    for node in [A, B] {
        for (length, again) in [(60_000, true), (100_000, false)] {
            let log = Log::default();
            let (bad, fine) = (mute(node, 10, &log).await, good(node, 11, &log).await);
            let mesh = Mesh::start();
            mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&bad).end(&fine));
            look_busy(&mesh, &fine);
            let mut client = Wire::connect(mesh.a.outbound).await;
            client.send(format!("PUT / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: {length}\r\n\r\n")).await;
            let answer = client.ask(pattern(length)).await;
            if bad.accepted() > 0 && !again {
                answer.is_error(502, "connection_terminated");
            } else {
                assert_eq!(answer.text(), format!("{length:06}"));
            }
            let client = H2::connect(mesh.a.outbound).await;
            let request = Request::put("http://web.demo/").body(()).unwrap();
            let before = bad.accepted();
            let reply = client.call(request, &pattern(length)).await.unwrap();
            let ok = bad.accepted() == before || again;
            assert_eq!(reply.status, if ok { 200 } else { 502 }, "{reply:?}");
            assert!(bad.accepted() > 0, "the busy pod was picked twice (one in 250,000)");
        }
    }
}

#[tokio::test]
async fn a_request_is_tried_at_each_refusing_pod_at_most_once_and_at_ten_at_most() {
    let refused: Vec<(End, _)> = (10..22).map(|last| refusing(B, last)).collect();
    let mesh = Mesh::start();
    mesh.put(&refused.iter().fold(Svc::new("web"), |svc, (end, _)| svc.end(end.clone())));
    let mut client = Wire::connect(mesh.a.outbound).await;
    let answer = client.get("web.demo", "/").await;
    answer.is_error(502, "connection_refused");
    let tries: Vec<u64> = refused.iter().map(|(end, _)| mesh.a.stats(end.address).requests()).collect();
    assert_eq!((tries.iter().sum::<u64>(), tries.iter().max()), (10, Some(&1)), "{tries:?}");
}

#[tokio::test]
async fn a_full_outage_is_not_amplified_beyond_the_retry_budget() {
    const REQUESTS: usize = 600;
    let log = Log::default();
    let pods = [mute(B, 10, &log).await, mute(B, 11, &log).await, mute(A, 12, &log).await];
    let mesh = Mesh::start();
    mesh.web(&[&pods[0], &pods[1], &pods[2]]);
    let clients = (0..20).map(|c| {
        let outbound = mesh.a.outbound;
        tokio::spawn(async move {
            let mut client = Wire::connect(outbound).await;
            for n in 0..REQUESTS / 20 {
                let request = format!("GET / HTTP/1.1\r\nHost: web.demo\r\nX-Id: {c}-{n}\r\n\r\n");
                client.ask(request).await.is_error(502, "connection_terminated");
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let attempts: usize = log.lock().unwrap().values().sum();
    // The budget is 100 in ten seconds and a fifth of the requests: 820 attempts. Twice the floor, should it take longer;
    // without a budget it would be 1200.
    assert!((REQUESTS..=REQUESTS + REQUESTS / 5 + 200).contains(&attempts), "{attempts} attempts");
    assert!(attempts > REQUESTS + 50, "some are tried again: {attempts}");
}

#[tokio::test]
async fn a_pod_that_is_named_is_never_replaced_by_another() {
    for node in [A, B] {
        let (dead, _socket) = refusing(node, 10);
        let fine = Pod::named(node, 11, "fine").await;
        let mesh = Mesh::start();
        let headless = ServiceKind::Headless;
        mesh.put(
            &Svc::new("web").kind(headless).end(dead.clone().hostname("web-0")).end(End::from(&fine).hostname("web-1")),
        );
        let mut client = Wire::connect(mesh.a.outbound).await;
        for host in ["web-0.web.demo".to_owned(), dead.address.to_string()] {
            client.get(&host, "/").await.is_error(502, "connection_refused");
        }
        assert_eq!(fine.accepted(), 0);
    }
}

#[tokio::test]
async fn a_draining_pod_is_no_second_choice_while_another_is_ready() {
    let (dead, _socket) = refusing(B, 10);
    let draining = Pod::named(B, 11, "draining").await;
    let mesh = Mesh::start();
    mesh.put(&Svc::new("web").end(dead).end(End::from(&draining).state(EndpointState::Draining)));
    let mut client = Wire::connect(mesh.a.outbound).await;
    client.get("web.demo", "/").await.is_error(502, "connection_refused");
    assert_eq!(draining.accepted(), 0);
}

/// A Service that shrinks at once: most of its pods are gone before the API says so.
#[tokio::test]
async fn nine_of_ten_pods_may_refuse_in_one_moment() {
    for node in [A, B] {
        let alive = Pod::named(node, 10, "ok").await;
        for _ in 0..10 {
            // Anew each time, since those that refused are passed over for a while.
            let mesh = Mesh::start();
            let dead: Vec<_> = (11..20).map(|last| refusing(node, last)).collect();
            let service = dead.iter().fold(Svc::new("web").end(&alive), |service, (end, _)| service.end(end.clone()));
            mesh.put(&service);
            let answer = Wire::connect(mesh.a.outbound).await.get("web.demo", "/").await;
            assert_eq!(answer.text(), "ok", "{answer:?}");
        }
    }
}

/// A GET for `host` at a pod that ends under it, after the Service has changed from what `before` makes of that pod to what `after` makes of
/// another one.
async fn dies_after_a_change(
    node: &'static str,
    host: &str,
    before: impl Fn(End) -> Svc,
    after: impl Fn(End) -> Svc,
) -> Answer {
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    let go = Arc::new(Notify::new());
    let end = Arc::clone(&go);
    let old = Pod::raw(node, 10, move |mut wire, _| {
        let (asked, end) = (asked.clone(), Arc::clone(&end));
        async move {
            wire.request().await;
            asked.send(()).unwrap();
            end.notified().await;
        }
    })
    .await;
    let new = Pod::named(node, 11, "new").await;
    let mesh = Mesh::start();
    mesh.put(&before(End::from(&old)));
    let mut client = Wire::connect(mesh.a.outbound).await;
    client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    was_asked.recv().await;
    mesh.put(&after(End::from(&new)));
    go.notify_one();
    client.answer().await
}

#[tokio::test]
async fn the_next_try_goes_by_what_is_known_by_then() {
    for node in [A, B] {
        let web = |end| Svc::new("web").end(end);
        let answer = dies_after_a_change(node, "web.demo", web, web).await;
        assert_eq!(answer.text(), "new", "{answer:?}");
        // A pod that has a name of its own comes back at another address.
        let named = |end: End| Svc::new("web").kind(ServiceKind::Headless).end(end.hostname("web-0"));
        let answer = dies_after_a_change(node, "web-0.web.demo", named, named).await;
        assert_eq!(answer.text(), "new", "{answer:?}");
    }
}

/// Its port speaks something else by then, for which the request was not prepared.
#[tokio::test]
async fn a_request_does_not_follow_a_service_whose_protocol_changes() {
    for node in [A, B] {
        let tcp = |end| Svc::new("web").app(AppProtocol::Tcp).end(end);
        let answer = dies_after_a_change(node, "web.demo", |end| Svc::new("web").end(end), tcp).await;
        answer.is_error(502, "connection_terminated");
    }
}
