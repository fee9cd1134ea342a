//! The link's far end against a peer that was taken over, and against those who are no peers: only pods of this node on
//! known ports are ever dialled.

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderMap, Method, Request};
use posthouse_model::AppProtocol;
use tokio::net::TcpListener;

use crate::harness::{A, B, End, Frames, H2, Mesh, Pod, Reply, Svc, Wire, pod_ip, within};

const NODE_A: [u8; 4] = [127, 0, 61, 1];

/// A request as node-a's proxy would send it over the link.
fn order(target: &str, protocol: &str) -> Request<()> {
    let request = if protocol == "opaque" { Request::connect("web.demo:80") } else { Request::get("http://web.demo/") };
    request
        .header("posthouse-target", target)
        .header("posthouse-source", "-")
        .header("posthouse-protocol", protocol)
        .body(())
        .unwrap()
}

async fn give(link: &H2, request: Request<()>) -> Reply {
    let open = *request.method() == Method::CONNECT;
    let (response, _send) = link.open(request, !open).await.unwrap();
    H2::reply(response).await.unwrap()
}

#[track_caller]
fn refused(reply: &Reply, what: &str) -> String {
    assert!(reply.status.as_u16() >= 400, "{what}: {reply:?}");
    assert!(reply.headers.contains_key("posthouse-details"), "{what}: {reply:?}");
    reply.field("posthouse-error").to_owned()
}

/// Asserts that nobody connected.
async fn untouched(listener: &TcpListener) {
    let accepted = tokio::time::timeout(Duration::from_millis(20), listener.accept()).await;
    assert!(accepted.is_err(), "{:?} was dialled", listener.local_addr());
}

#[tokio::test]
async fn a_peer_reaches_the_nodes_own_pods_and_nothing_else() {
    let (own, foreign) = (Pod::named(B, 10, "own").await, Pod::named(A, 10, "foreign").await);
    let loopback = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = TcpListener::bind("127.0.62.1:0").await.unwrap();
    // A port of the pod that no EndpointSlice names.
    let debug = TcpListener::bind(SocketAddr::new(own.address.ip(), 0)).await.unwrap();
    let mesh = Mesh::start();
    mesh.web(&[&own, &foreign]);
    let link = H2::connect_from(NODE_A.into(), mesh.b.link).await;
    assert_eq!(give(&link, order(&own.address.to_string(), "http/1.1")).await.text(), "own");
    let targets = [
        "169.254.169.254:80".to_owned(),
        loopback.local_addr().unwrap().to_string(),
        admin.local_addr().unwrap().to_string(),
        debug.local_addr().unwrap().to_string(),
        foreign.address.to_string(),
        mesh.b.outbound.to_string(),
        mesh.b.link.to_string(),
        mesh.a.outbound.to_string(),
        "192.0.2.1:80".to_owned(),
        "[::1]:80".to_owned(),
        format!("[::ffff:{}]:{}", own.address.ip(), own.address.port()),
    ];
    for target in &targets {
        for protocol in ["http/1.1", "h2", "opaque"] {
            let token = refused(&give(&link, order(target, protocol)).await, &format!("{target} {protocol}"));
            assert!(token.starts_with("destination_"), "{target}: {token}");
        }
    }
    for listener in [&loopback, &admin, &debug] {
        untouched(listener).await;
    }
    assert_eq!(foreign.accepted(), 0);
    assert_eq!(give(&link, order(&own.address.to_string(), "http/1.1")).await.text(), "own", "the link lives");
}

/// An EndpointSlice is written by users; the address in it may be anything.
#[tokio::test]
async fn an_endpoint_whose_address_is_no_pods_is_never_dialled_although_a_slice_says_so() {
    let loopback = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (node_a, node_b) =
        (TcpListener::bind("127.0.61.1:0").await.unwrap(), TcpListener::bind("127.0.62.1:0").await.unwrap());
    let elsewhere = TcpListener::bind("127.0.63.10:0").await.unwrap();
    let listeners = [&loopback, &node_a, &node_b, &elsewhere];
    let known =
        |port| ["169.254.169.254", "100.100.100.200", "192.0.2.1"].map(|ip| format!("{ip}:{port}").parse().unwrap());
    let addresses: Vec<SocketAddr> =
        listeners.iter().map(|l| l.local_addr().unwrap()).chain(known(80)).chain(known(10250)).collect();
    for direct in [false, true] {
        let mesh = Mesh::with(|config| {
            if direct {
                config.missing_peer = posthouse_proxy::MissingPeer::Direct;
            }
            // 192.0.2.1 is nobody's: not to be waited for, should it be dialled.
            config.timeouts.connect = Duration::from_secs(2);
        });
        let link = H2::connect_from(NODE_A.into(), mesh.b.link).await;
        let mut client = Wire::connect(mesh.a.outbound).await;
        for address in &addresses {
            for node in [A, B] {
                for checked in [true, false] {
                    let what = format!("{address} on {node} checked {checked} direct {direct}");
                    let end = End { checked, is_pod: false, ..End::at(node, *address) };
                    for app in [AppProtocol::Http1, AppProtocol::Tcp] {
                        mesh.put(&Svc::new("web").app(app).end(end.clone()));
                        if node == B {
                            let protocol = if app == AppProtocol::Tcp { "opaque" } else { "http/1.1" };
                            refused(&give(&link, order(&address.to_string(), protocol)).await, &what);
                        }
                    }
                    mesh.put(&Svc::new("web").end(end.clone()));
                    for host in ["web.demo".to_owned(), address.to_string()] {
                        let answer = client.get(&host, "/").await;
                        let status = answer.head.field("proxy-status");
                        assert!(status.contains("error=destination_"), "{what} as {host}: {answer:?}");
                    }
                }
            }
        }
        for listener in listeners {
            untouched(listener).await;
        }
    }
}

#[tokio::test]
async fn who_is_no_peer_cannot_link() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    // The node itself, a pod of either node, an address of nobody.
    for from in [[127, 0, 0, 1], [127, 0, 62, 10], [127, 0, 61, 10], [127, 0, 63, 1]] {
        let stream = Wire::connect_from(from.into(), mesh.b.link).await.stream;
        let refused = async {
            let (sender, connection) = h2::client::handshake(stream).await?;
            let driver = tokio::spawn(connection);
            let mut sender = sender.ready().await?;
            let (response, _) = sender.send_request(order(&pod.address.to_string(), "http/1.1"), true)?;
            let answer = response.await;
            driver.abort();
            answer.map(|_| ())
        };
        let refused: Result<(), h2::Error> = within("the refusal", refused).await;
        assert!(refused.is_err(), "{from:?} was taken for a peer");
    }
    // Nor does the link's port serve what the outbound port does.
    let mut client = Wire::connect(mesh.b.link).await;
    client.send("GET http://web.demo/ HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
    client.ended().await;
    let mut client = Wire::connect_from(NODE_A.into(), mesh.b.link).await;
    client.send("GET http://web.demo/ HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
    let answer = client.rest().await;
    assert!(!answer.starts_with(b"HTTP/1"), "{}", answer.escape_ascii());
    assert_eq!(pod.accepted(), 0);
}

#[tokio::test]
async fn a_stream_with_missing_or_broken_metadata_is_refused() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let target = pod.address.to_string();
    let link = H2::connect_from(NODE_A.into(), mesh.b.link).await;
    let without = |name: &str| {
        let mut request = order(&target, "http/1.1");
        request.headers_mut().remove(name);
        request
    };
    let with = |name: &'static str, value: &'static str| {
        let mut request = order(&target, "http/1.1");
        request.headers_mut().insert(name, value.parse().unwrap());
        request
    };
    let mut connect = order(&target, "opaque");
    connect.headers_mut().insert("posthouse-protocol", "http/1.1".parse().unwrap());
    let mut get = order(&target, "http/1.1");
    get.headers_mut().insert("posthouse-protocol", "opaque".parse().unwrap());
    let cases = [
        without("posthouse-target"),
        without("posthouse-protocol"),
        with("posthouse-target", ""),
        with("posthouse-target", "web.demo:80"),
        with("posthouse-target", "127.0.62.10"),
        with("posthouse-target", "127.0.62.10:80, 127.0.62.11:80"),
        with("posthouse-protocol", ""),
        with("posthouse-protocol", "HTTP/1.1"),
        with("posthouse-protocol", "spdy"),
        connect,
        get,
    ];
    for request in cases {
        let what = format!("{request:?}");
        let reply = give(&link, request).await;
        assert_eq!((refused(&reply, &what).as_str(), reply.status.as_u16()), ("http_request_error", 400), "{what}");
    }
    assert_eq!(pod.accepted(), 0);
    assert_eq!(give(&link, order(&target, "http/1.1")).await.text(), "pod", "the link lives");
}

/// The two directories are not updated at the same moment: a pod that the receiver does not have any more fails in a way
/// that lets the sender try another.
#[tokio::test]
async fn a_pod_that_only_the_sender_still_knows_costs_no_request() {
    let (old, new) = (Pod::named(B, 10, "old").await, Pod::named(B, 11, "new").await);
    let mesh = Mesh::start();
    mesh.web(&[&old, &new]);
    let mut directory = (**mesh.b.directory.load()).clone();
    directory.remove_service("demo/web");
    mesh.b.directory.publish(directory);
    let mut client = Wire::connect(mesh.a.outbound).await;
    client.get("web.demo", "/").await.is_error(503, "destination_unavailable");
    // Now it knows one of the two.
    mesh.web(&[&new]);
    let mut both = (**mesh.a.directory.load()).clone();
    let only_b = mesh.b.directory.load_full();
    mesh.web(&[&old, &new]);
    both.put_service((**mesh.a.directory.load().service("demo/web").unwrap()).clone());
    mesh.a.directory.publish(both);
    mesh.b.directory.publish((*only_b).clone());
    for _ in 0..50 {
        let answer = client.ask("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 5\r\n\r\nhello").await;
        assert_eq!(answer.text(), "new", "{answer:?}");
    }
    assert_eq!(old.accepted(), 0);
}

/// A Service that shrinks at once, and the sender is the last to hear of it: as many tries as when the pods refuse themselves.
#[tokio::test]
async fn nine_of_ten_pods_may_be_gone_before_the_sender_knows() {
    let alive = Pod::named(B, 10, "ok").await;
    let gone = (11..20).map(|last| End::at(B, SocketAddr::new(pod_ip(B, last), 8080)));
    let all = gone.fold(Svc::new("web").end(&alive), Svc::end);
    for _ in 0..10 {
        // Anew each time, since those that are unknown there are passed over for a while.
        let mesh = Mesh::start();
        mesh.web(&[&alive]);
        let new = mesh.b.directory.load_full();
        mesh.put(&all);
        mesh.b.directory.publish((*new).clone());
        let post = "POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 5\r\n\r\nhello";
        let answer = Wire::connect(mesh.a.outbound).await.ask(post).await;
        assert_eq!(answer.text(), "ok", "{answer:?}");
    }
}

/// The tries at pods that are gone leave those for other trouble as they were.
#[tokio::test]
async fn pods_that_are_gone_and_one_that_refuses_the_stream_cost_no_request() {
    let refuses = Pod::raw(B, 10, |wire, _| async move {
        let mut frames = Frames::accept(wire, &[]).await.unwrap();
        while let Some(stream) = frames.stream().await {
            // REFUSED_STREAM
            frames.wire.send(Frames::reset_bytes(stream, 7)).await;
        }
    })
    .await;
    let answers = Pod::raw(B, 11, |wire, _| async move {
        let mut frames = Frames::accept(wire, &[]).await.unwrap();
        while let Some(stream) = frames.stream().await {
            frames.headers(stream, &[(b":status", b"204")], true).await;
        }
    })
    .await;
    let alive = || Svc::new("web").app(AppProtocol::H2c).end(&refuses).end(&answers);
    let gone = (12..19).map(|last| End::at(B, SocketAddr::new(pod_ip(B, last), 8080)));
    let all = gone.fold(alive(), Svc::end);
    for _ in 0..10 {
        let mesh = Mesh::start();
        mesh.put(&alive());
        let new = mesh.b.directory.load_full();
        mesh.put(&all);
        mesh.b.directory.publish((*new).clone());
        let answer = Wire::connect(mesh.a.outbound).await.get("web.demo", "/").await;
        assert_eq!(answer.status, 204, "{answer:?}");
    }
}

/// What the far end says of a failure is for the near end; a client sees only what is meant for it.
#[tokio::test]
async fn the_answer_of_a_far_failure_shows_no_metadata() {
    let (dead, _socket) = crate::harness::refusing(B, 10);
    let mesh = Mesh::start();
    mesh.put(&Svc::new("web").end(dead));
    let answer = Wire::connect(mesh.a.outbound).await.get("web.demo", "/").await;
    answer.is_error(502, "connection_refused");
    assert_eq!(answer.head.names(), ["content-length", "content-type", "proxy-status"]);
    let reply = H2::connect(mesh.a.outbound).await.get("http://web.demo/").await.unwrap();
    let ours = |headers: &HeaderMap| headers.keys().any(|name| name.as_str().starts_with("posthouse-"));
    assert!(!ours(&reply.headers), "{reply:?}");
}
