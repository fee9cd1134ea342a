//! Plain requests: what the pod and the client see of each other, and of us, on the same node and across the link.

use http::header::HeaderName;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use posthouse_model::AppProtocol;

use crate::harness::{A, Answering, B, H2, Mesh, Pod, Svc, Wire, answer, send_all, within};

const REQUEST_FIELDS: &str = "Host: web.demo\r\nX-Kept: 1\r\nConnection: keep-alive, X-Named\r\nX-Named: gone\r\n\
    Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic x\r\nProxy: http://evil\r\n\
    Posthouse-Target: 127.0.62.1:1\r\nposthouse-source: demo/other/uid/default\r\nPOSTHOUSE-PROTOCOL: h2\r\n\
    posthouse-anything: x\r\nTE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Kept: 1\r\nConnection: keep-alive, X-Named\r\n\
    X-Named: gone\r\nKeep-Alive: timeout=5\r\nPosthouse-Error: connection_refused\r\nposthouse-retry: safe\r\n\
    Posthouse-Upgraded: 1\r\nposthouse-load: 1\r\nUpgrade: h2c\r\n\r\nok";

#[tokio::test]
async fn either_form_of_a_request_reaches_a_pod_of_this_and_of_another_node_without_what_is_not_for_it() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            while let Some((head, _)) = wire.request().await {
                assert_eq!(head.line, "GET /path?q=1&r=%20 HTTP/1.1");
                assert_eq!(head.names(), ["host", "via", "x-kept"], "{head:?}");
                assert_eq!(head.field("host"), "web.demo");
                assert_eq!(head.field("via"), "1.1 node-a.posthouse");
                wire.send(ANSWER).await;
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        for target in ["/path?q=1&r=%20", "http://web.demo/path?q=1&r=%20", "HTTP://web.demo/path?q=1&r=%20"] {
            let answer = client.ask(format!("GET {target} HTTP/1.1\r\n{REQUEST_FIELDS}")).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.text(), "ok");
            assert_eq!(answer.head.names(), ["content-length", "x-kept"], "{answer:?}");
        }
        assert_eq!(pod.accepted(), 1, "one connection serves all of a client's requests");
    }
}

#[tokio::test]
async fn the_via_of_earlier_proxies_is_kept_before_ours() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let mut client = Wire::connect(mesh.a.outbound).await;
    let answer = client.ask("GET / HTTP/1.1\r\nHost: web.demo\r\nVia: 1.0 first, 1.1 second\r\n\r\n").await;
    assert_eq!(answer.text(), "pod");
    let via: Vec<_> = pod.seen()[0].headers.get_all("via").iter().map(|v| v.to_str().unwrap().to_owned()).collect();
    assert_eq!(via, ["1.0 first, 1.1 second", "1.1 node-a.posthouse"]);
}

#[tokio::test]
async fn connections_are_kept_and_reused_on_both_sides() {
    for node in [A, B] {
        let pod = Pod::named(node, 10, "pod").await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        for _ in 0..3 {
            let mut client = Wire::connect(mesh.a.outbound).await;
            for _ in 0..5 {
                assert_eq!(client.get("web.demo", "/").await.text(), "pod");
            }
        }
        assert_eq!((pod.accepted(), pod.seen().len()), (1, 15), "clients one after the other share a warm connection");
        if node == B {
            let links = mesh.a.proxy.links();
            assert_eq!((links.len(), links[0].connections, links[0].opened), (1, 1, 1), "{links:?}");
        }
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let pod = Pod::http(B, 10, |request| async move { answer(request.uri().path().to_owned()) }).await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let mut client = Wire::connect(mesh.a.outbound).await;
    let requests: String = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: web.demo\r\n\r\n")).collect();
    client.send(requests).await;
    for n in 0..20 {
        assert_eq!(client.answer().await.text(), format!("/{n}"));
    }
}

#[tokio::test]
async fn an_absolute_target_that_disagrees_with_host_wins_and_host_is_replaced() {
    let (web, other) = (Pod::named(B, 10, "web").await, Pod::named(B, 11, "other").await);
    let mesh = Mesh::start();
    mesh.web(&[&web]);
    mesh.put(&Svc::new("other").end(&other));
    let mut client = Wire::connect(mesh.a.outbound).await;
    let answer = client.ask("GET http://web.demo/ HTTP/1.1\r\nHost: other.demo\r\n\r\n").await;
    assert_eq!(answer.text(), "web");
    assert_eq!(web.seen()[0].headers["host"], "web.demo");
    assert_eq!(other.accepted(), 0);
}

/// What a pod must not see of a client that speaks HTTP/2, trailers included.
#[tokio::test]
async fn http2_requests_and_trailers_carry_no_metadata_of_the_link_in_either_direction() {
    for node in [A, B] {
        let pod = Pod::http(node, 10, |request| async move {
            let trailers = request.into_body().collect().await.unwrap().trailers().cloned().unwrap_or_default();
            let seen: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
            let mut response = Response::new(with_trailers(fields(&["posthouse-error", "x-trailer"])));
            *response.headers_mut() = fields(&["posthouse-error", "posthouse-upgraded", "posthouse-load"]);
            response.headers_mut().insert("x-trailers-seen", seen.join(",").parse().unwrap());
            response
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
        let client = H2::connect(mesh.a.outbound).await;
        let mut request = Request::post("http://web.demo/").body(()).unwrap();
        *request.headers_mut() = fields(&["posthouse-target", "posthouse-source", "posthouse-protocol", "x-kept"]);
        let (response, mut send) = client.open(request, false).await.unwrap();
        within("the body", send_all(&mut send, "body".into(), false)).await.unwrap();
        send.send_trailers(fields(&["posthouse-target", "x-trailer"])).unwrap();
        let reply = H2::reply(response).await.unwrap();
        let headers = &pod.seen()[0].headers;
        assert!(!headers.keys().any(|name| name.as_str().starts_with("posthouse-")), "{headers:?}");
        assert!(headers.contains_key("x-kept"));
        assert_eq!(reply.field("x-trailers-seen"), "x-trailer", "request trailers");
        let trailers = reply.trailers.unwrap();
        let ours = |headers: &HeaderMap| headers.keys().any(|name| name.as_str().starts_with("posthouse-"));
        assert!(!ours(&reply.headers) && !ours(&trailers), "{:?} {trailers:?}", reply.headers);
        assert!(trailers.contains_key("x-trailer"));
    }
}

fn fields(names: &[&'static str]) -> HeaderMap {
    names.iter().map(|name| (HeaderName::from_static(name), "safe".parse().unwrap())).collect()
}

fn with_trailers(trailers: HeaderMap) -> Answering {
    let frames = [Ok(Frame::data("answer".into())), Ok(Frame::trailers(trailers))];
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)))
}

#[tokio::test]
async fn a_client_on_the_other_node_is_served_by_the_other_proxy() {
    let pod = Pod::named(A, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let mut client = Wire::connect(mesh.b.outbound).await;
    assert_eq!(client.get("web.demo", "/").await.text(), "pod");
    assert_eq!(pod.seen()[0].headers["via"], "1.1 node-b.posthouse");
}
