//! Between HTTP versions: what a Service port's appProtocol says decides how its pods are spoken to.

use http::{Request, Version};
use posthouse_model::AppProtocol;

use crate::harness::{A, B, H2, Mesh, Pod, Svc, Wire};

#[tokio::test]
async fn the_translation_table() {
    use AppProtocol::{Grpc, H2c, Http1, Unknown, WebSocket};
    use Version as V;
    let table = [
        (Unknown, V::HTTP_11, V::HTTP_2),
        (Http1, V::HTTP_11, V::HTTP_11),
        (WebSocket, V::HTTP_11, V::HTTP_11),
        (H2c, V::HTTP_2, V::HTTP_2),
        (Grpc, V::HTTP_2, V::HTTP_2),
    ];
    for node in [A, B] {
        for (app, from_http1, from_http2) in table {
            let pod = Pod::named(node, 10, "pod").await;
            let mesh = Mesh::start();
            mesh.put(&Svc::new("web").app(app).end(&pod));
            assert_eq!(Wire::connect(mesh.a.outbound).await.get("web.demo", "/x?y").await.text(), "pod");
            assert_eq!(H2::connect(mesh.a.outbound).await.get("http://web.demo/x?y").await.unwrap().text(), "pod");
            let seen = pod.seen();
            assert_eq!((seen[0].version, seen[1].version), (from_http1, from_http2), "{app:?} on {node}");
            for request in seen {
                assert_eq!(request.uri.path_and_query().unwrap(), "/x?y");
                let authority = request.uri.authority().map(http::uri::Authority::as_str);
                assert_eq!(authority.or_else(|| request.headers.get("host")?.to_str().ok()), Some("web.demo"));
            }
        }
    }
}

#[tokio::test]
async fn an_http1_pod_gets_one_cookie_field_and_no_te() {
    for node in [A, B] {
        let pod = Pod::named(node, 10, "pod").await;
        let mesh = Mesh::start();
        for (app, cookies) in [(AppProtocol::Http1, 1), (AppProtocol::H2c, 3)] {
            mesh.put(&Svc::new("web").app(app).end(&pod));
            let client = H2::connect(mesh.a.outbound).await;
            let request = Request::get("http://web.demo/").header("te", "trailers");
            let request = request.header("cookie", "a=1").header("cookie", "b=2").header("cookie", "c=3");
            assert_eq!(client.call(request.body(()).unwrap(), b"").await.unwrap().text(), "pod");
            let headers = pod.seen().pop().unwrap().headers;
            let all: Vec<_> = headers.get_all("cookie").iter().map(|v| v.to_str().unwrap()).collect();
            assert_eq!((all.len(), all.join("; ").as_str()), (cookies, "a=1; b=2; c=3"), "{app:?}");
            // Over HTTP/2 it is end-to-end in effect, and gRPC insists on it.
            assert_eq!(headers.contains_key("te"), app == AppProtocol::H2c, "{app:?}");
        }
    }
}

#[tokio::test]
async fn grpc_to_a_port_that_is_said_to_be_http1_is_a_clear_error() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
    let client = H2::connect(mesh.a.outbound).await;
    let request = Request::post("http://web.demo/s/m").header("content-type", "application/grpc").body(()).unwrap();
    let reply = client.call(request, b"\0\0\0\0\0").await.unwrap();
    assert_eq!(reply.field("grpc-status"), "12");
    assert!(reply.field("grpc-message").contains("set it to 'grpc' or 'kubernetes.io/h2c'"), "{reply:?}");
    assert_eq!(pod.accepted(), 0);
}

#[tokio::test]
async fn a_plain_request_to_a_port_that_is_said_to_be_tcp_or_tls_is_a_clear_error() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    for (app, name) in [(AppProtocol::Tcp, "'tcp'"), (AppProtocol::Tls, "'tls'")] {
        mesh.put(&Svc::new("web").app(app).end(&pod));
        let answer = Wire::connect(mesh.a.outbound).await.get("web.demo", "/").await;
        answer.is_error(502, "http_upgrade_failed");
        assert!(answer.text().contains(name) && answer.text().contains("reached by CONNECT only"), "{answer:?}");
    }
    assert_eq!(pod.accepted(), 0);
}

#[tokio::test]
async fn a_pod_that_does_not_speak_what_its_service_says_is_a_clear_error() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            // What HTTP/1.1 servers say to the HTTP/2 preface.
            wire.exactly(24).await;
            wire.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
        let answer = Wire::connect(mesh.a.outbound).await.get("web.demo", "/").await;
        assert_eq!(answer.status, 502, "{answer:?}");
        assert!(answer.head.field("proxy-status").starts_with("posthouse; error="), "{answer:?}");
        mesh.is_quiet(pod.address).await;
    }
}
