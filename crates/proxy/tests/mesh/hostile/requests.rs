//! Clients that try to make a pod see another request than the one that was routed, and what else is refused for that.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use posthouse_model::AppProtocol;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

use super::{connect, contains};
use crate::harness::{A, B, Frames, H2, Mesh, Outcome, Pod, Svc, Wire, within};

type Fields = [(&'static [u8], &'static [u8])];

/// NO_ERROR means success only when a server says it (RFC 9113 §8.1).
#[tokio::test]
async fn an_upload_that_is_reset_with_no_error_does_not_look_whole_to_the_pod() {
    for node in [A, B] {
        let got = Arc::new(Notify::new());
        let tell = Arc::clone(&got);
        let (seen, mut saw) = tokio::sync::mpsc::unbounded_channel();
        let pod = Pod::raw(node, 10, move |mut wire, _| {
            let (got, seen) = (Arc::clone(&tell), seen.clone());
            async move {
                wire.head().await;
                assert_eq!(wire.exactly(9).await, b"4\r\nHALF\r\n");
                got.notify_one();
                seen.send(wire.rest().await).unwrap();
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
        for cancel in [false, true] {
            let mut client = Frames::connect(mesh.a.outbound).await;
            let fields: &Fields =
                &[(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"web.demo"), (b":path", b"/")];
            client.headers(1, fields, false).await;
            client.data(1, b"HALF", false).await;
            within("half of the body", got.notified()).await;
            if cancel {
                client.reset(1).await;
            } else {
                client.wire.send(Frames::reset_bytes(1, 0)).await;
            }
            let rest = within("the end of the pod's connection", saw.recv()).await.unwrap();
            assert_eq!(rest.escape_ascii().to_string(), "", "{node} cancel {cancel}");
        }
    }
}

fn extended(protocol: &'static str) -> Request<()> {
    let mut request = Request::connect("http://web.demo/ws").body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static(protocol));
    request
}

/// `:protocol h2c` made a tunnel in which requests went past routing and the strip of our own fields.
#[tokio::test]
async fn an_extended_connect_opens_websockets_and_nothing_else() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            let head = wire.head().await;
            wire.send(format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {}\r\n\r\nhello",
                head.field("upgrade")
            ))
            .await;
            wire.rest().await;
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
        let client = H2::connect(mesh.a.outbound).await;
        client.takes_extended_connect().await;
        for protocol in ["h2c", "H2C", "h2", "TLS/1.0", "http/1.1", "connect-udp", "websocket, h2c"] {
            let (response, _send) = client.open(extended(protocol), false).await.unwrap();
            let reply = H2::reply(response).await.unwrap();
            assert_eq!(reply.status, StatusCode::NOT_IMPLEMENTED, "{protocol}: {reply:?}");
        }
        assert_eq!(pod.accepted(), 0);
        let (response, _send) = client.open(extended("websocket"), false).await.unwrap();
        let mut response = within("the answer", response).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(within("the greeting", response.body_mut().data()).await.unwrap().unwrap(), "hello");
    }
}

/// Nor does a peer that was taken over open one.
#[tokio::test]
async fn a_link_carries_no_upgrade_that_hides_requests() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let link = H2::connect_from([127, 0, 61, 1].into(), mesh.b.link).await;
    link.takes_extended_connect().await;
    for protocol in ["h2c", "websocket, h2c", "TLS/1.0"] {
        let mut request = extended(protocol);
        for (name, value) in [
            ("posthouse-target", &*pod.address.to_string()),
            ("posthouse-source", "-"),
            ("posthouse-protocol", "http/1.1"),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let (response, _send) = link.open(request, false).await.unwrap();
        let reply = H2::reply(response).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.field("posthouse-error")), (400, "http_request_error"), "{protocol}");
    }
    assert_eq!(pod.accepted(), 0);
}

/// How a request with these pseudo-fields ends, outside of a tunnel or inside of one.
async fn outcome(mesh: &Mesh, inside: bool, method: &str, authority: &str, path: &str) -> Outcome {
    let mut wire = Wire::connect(mesh.a.outbound).await;
    if inside {
        connect(&mut wire).await;
    }
    let mut client = Frames::over(wire, &[]).await;
    let fields: [(&[u8], &[u8]); 4] = [
        (b":method", method.as_bytes()),
        (b":scheme", b"http"),
        (b":authority", authority.as_bytes()),
        (b":path", path.as_bytes()),
    ];
    client.headers(1, &fields, true).await;
    client.outcome(1).await
}

/// `:path` and `:authority` become a request line and a Host field of HTTP/1.1, which allow less.
#[tokio::test]
async fn pseudo_fields_that_http1_does_not_allow_are_refused_inside_of_tunnels_too() {
    for node in [A, B] {
        let pod = Pod::named(node, 10, "pod").await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
        for inside in [false, true] {
            assert_eq!(outcome(&mesh, inside, "GET", "web.demo", "/").await, Outcome::Answered(200));
            assert_eq!(outcome(&mesh, inside, "OPTIONS", "web.demo", "*").await, Outcome::Answered(200));
            let served = pod.seen().len();
            for (method, authority, path) in [
                ("GET", "web.demo", "?q=1"),
                ("GET", "web.demo", "*"),
                ("GET", "user@web.demo", "/"),
                ("GET", "user:secret@web.demo:80", "/"),
                ("GET", "web%2edemo", "/"),
            ] {
                let ended = outcome(&mesh, inside, method, authority, path).await;
                // h2 itself may refuse what is no URI at all, by a reset.
                let refused = matches!(ended, Outcome::Answered(400) | Outcome::Reset);
                assert!(refused, "inside {inside} {method} {authority} {path}: {ended:?}");
            }
            assert_eq!(pod.seen().len(), served, "one reached the pod");
        }
    }
}

/// Plain HTTP bytes went to a Redis port when the request asked for an upgrade.
#[tokio::test]
async fn an_upgrade_does_not_lead_around_what_the_service_port_speaks() {
    for node in [A, B] {
        for app in [AppProtocol::Tcp, AppProtocol::Tls, AppProtocol::Grpc] {
            let pod = Pod::raw(node, 10, |_, _| async { panic!("dialled") }).await;
            let mesh = Mesh::start();
            mesh.put(&Svc::new("web").app(app).end(&pod));
            let mut client = Wire::connect(mesh.a.outbound).await;
            let answer = client
                .ask("GET / HTTP/1.1\r\nHost: web.demo\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                .await;
            answer.is_error(502, "http_upgrade_failed");
            assert!(answer.text().contains("appProtocol"), "{answer:?}");
            let client = H2::connect(mesh.a.outbound).await;
            client.takes_extended_connect().await;
            let (response, _send) = client.open(extended("websocket"), false).await.unwrap();
            let reply = H2::reply(response).await.unwrap();
            assert_eq!(reply.status, 502, "{app:?}: {reply:?}");
            assert!(reply.text().contains("appProtocol"), "{app:?}: {reply:?}");
            assert_eq!(pod.accepted(), 0);
        }
    }
}

/// Inside a tunnel to a Service that says http, each byte of a request line gave another hour.
#[tokio::test]
async fn a_slow_request_line_inside_a_tunnel_ends_by_the_limit_on_heads() {
    let pod = Pod::named(A, 10, "pod").await;
    let mesh = Mesh::with(|config| config.timeouts.request_header = Duration::from_millis(300));
    mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
    let mut client = Wire::connect(mesh.a.outbound).await;
    connect(&mut client).await;
    client.send("GET /").await;
    let (mut read, mut write) = client.stream.into_split();
    let dripping = async {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut got = Vec::new();
    let reading = async {
        // An error ends it as well: bytes on their way meet a closed socket.
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut got).await;
    };
    within("the end of a slow request line", async {
        tokio::select! { () = dripping => {}, () = reading => {} }
    })
    .await;
    assert!(!contains(&got, " 200 "), "{}", got.escape_ascii());
    assert_eq!(pod.accepted(), 0);
}

/// A client that is not told reuses the connection, and its next POST is lost.
#[tokio::test]
async fn an_answer_under_way_when_draining_begins_says_that_the_connection_closes() {
    for node in [A, B] {
        let go = Arc::new(Notify::new());
        let told = Arc::clone(&go);
        let pod = Pod::http(node, 10, move |_| {
            let go = Arc::clone(&told);
            async move {
                go.notified().await;
                crate::harness::answer("done")
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        let mut idle = Wire::connect(mesh.a.outbound).await;
        // Served, so that it is surely past its acceptance.
        go.notify_one();
        assert_eq!(idle.get("web.demo", "/").await.text(), "done");
        client.send("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
        crate::harness::eventually("the request", || pod.seen().len() == 2).await;
        let Mesh { a, b } = mesh;
        let draining = tokio::spawn(a.drain(Duration::from_secs(60)));
        idle.ended().await;
        go.notify_one();
        let answer = client.answer().await;
        assert_eq!((answer.text().as_str(), answer.head.field("connection")), ("done", "close"), "{node}");
        client.ended().await;
        assert!(draining.await.unwrap(), "all was done in time");
        drop(b);
    }
}
