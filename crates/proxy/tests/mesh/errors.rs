//! What a client is told when its request cannot be served: the token and status of RFC 9209, and words that say what to do.

use http::Request;
use posthouse_model::{AppProtocol, EndpointState, ServiceKind};
use tokio::net::TcpListener;

use crate::harness::{A, B, End, H2, Mesh, Pod, Svc, Wire, refusing};

/// Authority, status, token, words of the text, gRPC status.
type Case = (String, u16, &'static str, &'static str, &'static str);

fn cases(mesh: &Mesh) -> Vec<Case> {
    let case = |host: &str, status, token, words, grpc| (host.to_owned(), status, token, words, grpc);
    vec![
        case("nobody.demo", 500, "destination_not_found", "nobody.demo", "14"),
        case("web.demo:81", 500, "destination_not_found", "has no port 81", "14"),
        case("short", 500, "destination_not_found", "namespace", "14"),
        case("example.com", 500, "destination_not_found", "example.com", "14"),
        case("outside.demo", 500, "destination_not_found", "db.example.com", "14"),
        case("192.0.2.1", 500, "destination_not_found", "192.0.2.1:80", "14"),
        case("empty.demo", 503, "destination_unavailable", "do its selector and its pods' labels match?", "14"),
        case("unready.demo", 503, "destination_unavailable", "has 1 endpoint, none ready; last change", "14"),
        case("refusing.demo", 502, "connection_refused", "is the process listening on that port?", "14"),
        case("169.254.169.254", 502, "destination_ip_prohibited", "a link-local address", "7"),
        case("100.100.100.200", 502, "destination_ip_prohibited", "metadata", "7"),
        case("127.0.0.1", 502, "destination_ip_prohibited", "loopback", "7"),
        case("[::1]", 502, "destination_ip_prohibited", "loopback", "7"),
        case("[::ffff:127.0.0.1]", 502, "destination_ip_prohibited", "", "7"),
        case("[64:ff9b::7f00:1]", 502, "destination_ip_prohibited", "", "7"),
        case("0.0.0.0", 502, "destination_ip_prohibited", "unspecified", "7"),
        case("224.0.0.1", 502, "destination_ip_prohibited", "multicast", "7"),
        (mesh.b.outbound.to_string(), 502, "destination_ip_prohibited", "a node's own address", "7"),
        (mesh.a.link.to_string(), 502, "destination_ip_prohibited", "a node's own address", "7"),
    ]
}

fn put_services(mesh: &Mesh, web: &Pod, refusing: End) {
    mesh.web(&[web]);
    mesh.put(&Svc::new("empty"));
    mesh.put(&Svc::new("unready").end(End::from(web).state(EndpointState::NotReady)));
    mesh.put(&Svc::new("refusing").end(refusing));
    mesh.put(&Svc::new("outside").kind(ServiceKind::ExternalName("db.example.com".into())));
}

#[tokio::test]
async fn each_failure_has_its_token_its_status_and_words_that_help() {
    let pod = Pod::named(B, 10, "pod").await;
    let (dead, _socket) = refusing(B, 11);
    let mesh = Mesh::start();
    put_services(&mesh, &pod, dead);
    let mut client = Wire::connect(mesh.a.outbound).await;
    let h2 = H2::connect(mesh.a.outbound).await;
    for (host, status, token, words, _) in cases(&mesh) {
        let answer = client.get(&host, "/").await;
        answer.is_error(status, token);
        assert!(answer.text().contains(words), "{host}: {answer:?}");
        let details = answer.head.field("proxy-status").replace('\\', "");
        assert!(details.contains(words), "{host}: {details}");
        assert!(answer.head.field("content-type").starts_with("text/plain"));
        let reply = h2.get(&format!("http://{host}/")).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.text()), (status, answer.text()), "{host} by HTTP/2");
        assert!(reply.field("proxy-status").starts_with(&format!("posthouse; error={token};")), "{host}");
    }
    // All of it on one connection.
    assert_eq!(client.get("web.demo", "/").await.text(), "pod");
    assert_eq!(pod.accepted(), 1);
}

#[tokio::test]
async fn a_failure_of_a_head_request_has_no_text_and_keeps_the_connection() {
    let pod = Pod::named(B, 10, "pod").await;
    let (dead, _socket) = refusing(B, 11);
    let mesh = Mesh::start();
    put_services(&mesh, &pod, dead);
    let mut client = Wire::connect(mesh.a.outbound).await;
    let h2 = H2::connect(mesh.a.outbound).await;
    for (host, status) in [("nobody.demo", 500), ("empty.demo", 503), ("refusing.demo", 502)] {
        client.send(format!("HEAD / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let head = client.head().await;
        assert!(head.line.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}");
        assert!(head.field("proxy-status").starts_with("posthouse; error="), "{head:?}");
        assert_eq!(client.get("web.demo", "/").await.text(), "pod", "after a HEAD of {host}");
        let reply = h2.call(Request::head(format!("http://{host}/")).body(()).unwrap(), b"").await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.body.len()), (status, 0), "{reply:?}");
    }
}

#[tokio::test]
async fn a_grpc_client_gets_its_failures_as_trailers_only_answers() {
    let pod = Pod::named(B, 10, "pod").await;
    let (dead, _socket) = refusing(A, 11);
    let mesh = Mesh::start();
    put_services(&mesh, &pod, dead);
    mesh.put(&Svc::new("http").app(AppProtocol::Http1).end(&pod));
    let client = H2::connect(mesh.a.outbound).await;
    let mut cases = cases(&mesh);
    cases.push(("http.demo".into(), 0, "http_upgrade_failed", "set it to 'grpc'", "12"));
    for (host, _, token, words, grpc) in cases {
        for content_type in ["application/grpc", "application/grpc+proto"] {
            let request = Request::post(format!("http://{host}/helloworld.Greeter/SayHello"));
            let request = request.header("content-type", content_type).header("te", "trailers").body(()).unwrap();
            let reply = client.call(request, b"\0\0\0\0\0").await.unwrap();
            assert_eq!((reply.status.as_u16(), reply.field("grpc-status")), (200, grpc), "{host}: {reply:?}");
            assert_eq!(reply.field("content-type"), "application/grpc");
            assert!(reply.field("grpc-message").contains(words), "{host}: {reply:?}");
            assert!(reply.field("proxy-status").contains(token), "{host}: {reply:?}");
            assert!(reply.body.is_empty() && reply.trailers.is_none(), "{host}: {reply:?}");
        }
    }
    assert_eq!(pod.accepted(), 0);
}

#[tokio::test]
async fn a_request_for_one_of_our_own_listeners_is_a_loop() {
    let admin = TcpListener::bind("127.0.61.1:0").await.unwrap();
    let address = admin.local_addr().unwrap();
    let mesh = Mesh::with(|config| config.own_addresses = vec![address, "0.0.0.0:9991".parse().unwrap()]);
    let mut client = Wire::connect(mesh.a.outbound).await;
    for host in [address.to_string(), "127.0.61.1:9991".to_owned(), "127.0.0.1:9991".to_owned()] {
        let answer = client.get(&host, "/").await;
        answer.is_error(502, "proxy_loop_detected");
        assert!(answer.text().contains("send the request with the Service's name as its host"), "{answer:?}");
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        client.answer().await.is_error(502, "proxy_loop_detected");
    }
    let accepted = tokio::time::timeout(std::time::Duration::from_millis(50), admin.accept()).await;
    assert!(accepted.is_err(), "nothing was dialled");
}

#[tokio::test]
async fn a_request_that_goes_round_ends_after_eight_passes() {
    for node in [A, B] {
        // A pod that sends what it gets back to the proxy, as a misconfigured gateway does.
        let outbound = std::sync::Arc::new(std::sync::OnceLock::new());
        let to = outbound.clone();
        let pod = Pod::raw(node, 10, move |mut wire, _| {
            let to = to.clone();
            async move {
                while let Some((head, _)) = wire.request().await {
                    let via: String = head.all("via").iter().map(|via| format!("Via: {via}\r\n")).collect();
                    let request = format!("GET http://web.demo/ HTTP/1.1\r\nHost: web.demo\r\n{via}\r\n");
                    let answer = Wire::connect(*to.get().unwrap()).await.ask(request).await;
                    let status = answer.head.all("proxy-status").concat();
                    let head = format!("HTTP/1.1 {} Back\r\nProxy-Status: {status}", answer.status);
                    wire.send(format!("{head}\r\nContent-Length: {}\r\n\r\n{}", answer.body.len(), answer.text()))
                        .await;
                }
            }
        })
        .await;
        let mesh = Mesh::start();
        outbound.set(mesh.a.outbound).unwrap();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        let answer = client.get("web.demo", "/").await;
        answer.is_error(502, "proxy_loop_detected");
        assert_eq!(mesh.a.stats(pod.address).requests(), 8);
        // The others' names are no passes of ours.
        let via = "1.1 node-a.posthouse.example, 1.1 node-aa.posthouse, 1.1 node-b.posthouse, ".repeat(10);
        let other = Pod::named(node, 11, "other").await;
        mesh.put(&Svc::new("other").end(&other));
        let request = format!("GET / HTTP/1.1\r\nHost: other.demo\r\nVia: {via} 1.1 node-a.posthouse\r\n\r\n");
        assert_eq!(client.ask(request).await.text(), "other");
    }
}

#[tokio::test]
async fn a_silent_pod_is_given_up_after_the_stream_idle_limit() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            wire.head().await;
            wire.rest().await;
        })
        .await;
        let mesh = Mesh::with(|config| config.timeouts.stream_idle = std::time::Duration::from_millis(200));
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.get("web.demo", "/").await.is_error(504, "http_response_timeout");
        pod.has_ended(1).await;
        mesh.is_quiet(pod.address).await;
        assert_eq!(pod.accepted(), 1, "a request that may be under way is not sent again");
    }
}
