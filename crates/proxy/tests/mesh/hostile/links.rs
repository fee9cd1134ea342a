//! What one pod or client does on a link must not end or stop everybody else's streams on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Response, StatusCode};
use posthouse_model::{AppProtocol, Peer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Notify;

use super::h2_pod;
use crate::harness::{
    A, B, FrameKind, Frames, Mesh, Outcome, Pod, Svc, Wire, answer, assert_same, eventually, full, pattern,
};

/// SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW: u16 = 4;
const NODE_A: [u8; 4] = [127, 0, 61, 1];

type Fields<'a> = Vec<(&'a [u8], &'a [u8])>;

/// A request's fields as node-a's proxy would send them over the link.
fn order<'a>(method: &'a str, target: &'a str, protocol: &'a str) -> Fields<'a> {
    vec![
        (b":method", method.as_bytes()),
        (b":scheme", b"http"),
        (b":authority", b"web.demo"),
        (b":path", b"/"),
        (b"posthouse-target", target.as_bytes()),
        (b"posthouse-source", b"-"),
        (b"posthouse-protocol", protocol.as_bytes()),
    ]
}

/// A request's fields as a client sends them.
fn get<'a>() -> Fields<'a> {
    vec![(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"web.demo"), (b":path", b"/")]
}

/// Asserts that node-a's one link to node-b is still the first.
#[track_caller]
fn one_link(mesh: &Mesh) {
    let links = mesh.a.proxy.links();
    assert_eq!((links.len(), links[0].opened, links[0].failures), (1, 1, 0), "one link for all of it");
}

/// The link's connection window was shared: nine clients that did not read their answers took it all, and every other
/// answer between the two nodes waited for them.
#[tokio::test]
async fn twenty_readers_that_stall_do_not_stop_another_request_over_their_link() {
    const STALLED: usize = 20;
    let taken: Arc<Vec<AtomicU64>> = Arc::new((0..STALLED).map(|_| AtomicU64::new(0)).collect());
    let count = Arc::clone(&taken);
    let pod = Pod::raw(B, 10, move |mut wire, n| {
        let taken = Arc::clone(&count);
        async move {
            wire.head().await;
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1u64 << 40)).await;
            let piece = vec![b'x'; 64 << 10];
            while let Ok(len @ 1..) = wire.stream.write(&piece).await {
                taken[n].fetch_add(len as u64, Ordering::Relaxed);
            }
        }
    })
    .await;
    let other = Pod::http(B, 11, |_| async { answer(vec![b'y'; 4 << 20]) }).await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    mesh.put(&Svc::new("other").end(&other));
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut client = Wire::new(socket.connect(mesh.a.outbound).await.unwrap());
        client.send("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
        client.head().await;
        stalled.push(client);
    }
    // A stream's window (1.5 MiB) each, 30 MiB in all.
    eventually("every stream's window to be full", || {
        taken.iter().all(|taken| taken.load(Ordering::Relaxed) >= 3 << 19)
    })
    .await;
    for _ in 0..3 {
        let answer = Wire::connect(mesh.a.outbound).await.get("other.demo", "/").await;
        assert_eq!((answer.status, answer.body.len()), (200, 4 << 20));
    }
    one_link(&mesh);
    drop(stalled);
    pod.has_ended(STALLED).await;
    mesh.is_quiet(pod.address).await;
}

/// h2 counts small DATA frames that nobody takes against the whole connection, and ended the link for them.
#[tokio::test]
async fn sixty_thousand_one_byte_chunks_to_a_pod_without_a_window_do_not_end_the_link() {
    const CHUNKS: usize = 60_000;
    let body = pattern(CHUNKS);
    let (go, expected) = (Arc::new(Notify::new()), body.clone());
    let opened = Arc::clone(&go);
    let pod = Pod::raw(B, 10, move |wire, _| {
        let (go, expected) = (Arc::clone(&opened), expected.clone());
        async move {
            let mut frames = Frames::accept(wire, &[(INITIAL_WINDOW, 0)]).await.unwrap();
            let stream = frames.stream().await.unwrap();
            go.notified().await;
            frames.settings(&[(INITIAL_WINDOW, 65_535)]).await;
            let (mut got, mut ended) = (Vec::new(), false);
            while !ended {
                let frame = frames.next().await.expect("the rest of the body");
                ended = frame.is_last();
                if frame.is(FrameKind::Data) {
                    got.extend(frame.payload);
                }
            }
            assert_same(&got, &expected, "the chunks together");
            frames.headers(stream, &[(b":status", b"204")], true).await;
            while frames.next().await.is_some() {}
        }
    })
    .await;
    let other = Pod::named(B, 11, "other").await;
    let mesh = Mesh::start();
    mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
    mesh.put(&Svc::new("other").end(&other));
    let mut others = Wire::connect(mesh.a.outbound).await;
    let mut client = Wire::connect(mesh.a.outbound).await;
    client.send("POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for part in body.chunks(1000) {
        let chunks: Vec<u8> = part.iter().flat_map(|byte| [b'1', b'\r', b'\n', *byte, b'\r', b'\n']).collect();
        client.send(chunks).await;
        assert_eq!(others.get("other.demo", "/").await.text(), "other");
    }
    go.notify_one();
    assert_eq!(client.ask("0\r\n\r\n").await.status, 204);
    one_link(&mesh);
}

/// The same as one peer, so that it is certain that all frames arrive before the next stream: 76 MB of h2's counting.
#[tokio::test]
async fn three_hundred_thousand_one_byte_frames_that_wait_at_the_far_end_do_not_end_the_link() {
    let pod = Pod::raw(B, 10, |wire, _| async move {
        let mut frames = Frames::accept(wire, &[(INITIAL_WINDOW, 0)]).await.unwrap();
        while frames.next().await.is_some() {}
    })
    .await;
    let other = Pod::named(B, 11, "other").await;
    let mesh = Mesh::start();
    mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
    mesh.put(&Svc::new("other").end(&other));
    let (stalled, target) = (pod.address.to_string(), other.address.to_string());
    let mut link = Frames::over(Wire::connect_from(NODE_A.into(), mesh.b.link).await, &[]).await;
    link.headers(1, &order("POST", &stalled, "h2"), false).await;
    for _ in 0..300 {
        link.wire.send(Frames::data_bytes(1, b"x", false).repeat(1000)).await;
    }
    link.headers(3, &order("GET", &target, "http/1.1"), true).await;
    assert_eq!(link.outcome(3).await, Outcome::Answered(200));
}

/// The other way round: a gRPC stream of small messages to a client that does not read them. The test is node-b's proxy.
#[tokio::test]
async fn small_frames_for_clients_that_do_not_read_do_not_end_the_link() {
    const FRAMES: usize = 150_000;
    let pod = Pod::named(B, 10, "never asked").await;
    let listener = TcpListener::bind("127.0.62.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mesh = Mesh::start();
    mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
    mesh.update(|_, directory| directory.set_peers([Peer { node: B.into(), address, ready: true }]));
    let far = tokio::spawn(async move {
        let mut link = Frames::accept(Wire::new(listener.accept().await.unwrap().0), &[]).await.unwrap();
        for _ in 0..2 {
            let stream = link.stream().await.unwrap();
            link.headers(stream, &[(b":status", b"200")], false).await;
            // 1.2 MB, within the stream's window; 37 MB of h2's counting.
            for _ in 0..FRAMES / 1000 {
                link.wire.send(Frames::data_bytes(stream, b"8 bytes.", false).repeat(1000)).await;
            }
        }
        let stream = link.stream().await.expect("a third stream");
        link.headers(stream, &[(b":status", b"204")], true).await;
        while link.next().await.is_some() {}
    });
    let mut client = Frames::over(Wire::connect(mesh.a.outbound).await, &[(INITIAL_WINDOW, 0)]).await;
    for stream in [1, 3] {
        client.headers(stream, &get(), true).await;
        // Its head: that stream is under way.
        assert_eq!(client.stream().await, Some(stream));
    }
    assert_eq!(Wire::connect(mesh.a.outbound).await.get("web.demo", "/").await.status, 204);
    one_link(&mesh);
    drop((client, mesh));
    far.await.unwrap();
}

/// The first burst to a node comes before its SETTINGS do: it waits for no second handshake.
#[tokio::test]
async fn two_hundred_requests_go_over_a_link_whose_other_end_has_not_spoken() {
    const AT_ONCE: usize = 200;
    let pod = Pod::named(B, 10, "never asked").await;
    let listener = TcpListener::bind("127.0.62.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    mesh.update(|_, directory| directory.set_peers([Peer { node: B.into(), address, ready: true }]));
    let far = tokio::spawn(async move {
        let wire = Wire::new(listener.accept().await.unwrap().0);
        let (mut link, streams) = Frames::accept_late(wire, AT_ONCE).await.unwrap();
        for stream in streams {
            link.headers(stream, &[(b":status", b"204")], true).await;
        }
        while link.next().await.is_some() {}
    });
    let mut clients = Vec::new();
    for _ in 0..AT_ONCE {
        clients.push(Wire::connect(mesh.a.outbound).await);
    }
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
    }
    for client in &mut clients {
        let answer = client.answer().await;
        assert_eq!(answer.status, 204, "{answer:?}");
    }
    one_link(&mesh);
    drop((clients, mesh));
    far.await.unwrap();
}

/// h2's cap of twenty resets is against one abusive client; on a link the streams are those of all clients.
#[tokio::test]
async fn two_hundred_streams_that_are_cancelled_at_once_do_not_end_the_link() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let target = pod.address.to_string();
    let mut link = Frames::over(Wire::connect_from(NODE_A.into(), mesh.b.link).await, &[]).await;
    let mut cancelled = Vec::new();
    for n in 0..200 {
        cancelled.extend(Frames::headers_bytes(2 * n + 1, &order("GET", &target, "http/1.1"), true));
        cancelled.extend(Frames::reset_bytes(2 * n + 1, 8));
    }
    link.wire.send(&cancelled).await;
    link.headers(401, &order("GET", &target, "http/1.1"), true).await;
    assert_eq!(link.outcome(401).await, Outcome::Answered(200));
}

#[tokio::test]
async fn two_hundred_clients_that_leave_at_once_do_not_end_the_link() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let mut other = Wire::connect(mesh.a.outbound).await;
    for _ in 0..3 {
        let mut clients = Vec::new();
        for _ in 0..200 {
            clients.push(Wire::connect(mesh.a.outbound).await);
        }
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
        }
        clients.into_iter().for_each(Wire::reset);
        assert_eq!(other.get("web.demo", "/").await.text(), "pod");
    }
    mesh.is_quiet(pod.address).await;
    one_link(&mesh);
}

/// Every gRPC server with MAX_CONNECTION_AGE sends a GOAWAY with streams open; the connection stayed first in the pool and
/// failed each new request as long as an old stream lasted.
#[tokio::test]
async fn after_a_pods_goaway_requests_go_on_a_fresh_connection_and_the_open_stream_goes_on() {
    for node in [A, B] {
        let go = Arc::new(Notify::new());
        let finish = Arc::clone(&go);
        let pod = h2_pod(node, 10, move |mut frames, n| {
            let finish = Arc::clone(&finish);
            async move {
                if n == 0 {
                    let stream = frames.stream().await.unwrap();
                    frames.headers(stream, &[(b":status", b"200")], false).await;
                    let goaway = [stream.to_be_bytes(), [0; 4]].concat();
                    frames.send(FrameKind::GoAway, 0, 0, &goaway).await;
                    frames.data(stream, b"first", false).await;
                    finish.notified().await;
                    frames.data(stream, b"last", true).await;
                }
                while let Some(stream) = frames.stream().await {
                    assert!(n > 0, "a stream after GOAWAY");
                    frames.headers(stream, &[(b":status", b"204")], true).await;
                }
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
        let mut watching = Wire::connect(mesh.a.outbound).await;
        watching.send("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
        let head = watching.head().await;
        assert_eq!(watching.exactly(10).await, b"5\r\nfirst\r\n");
        let mut client = Wire::connect(mesh.a.outbound).await;
        for n in 0..10 {
            // POST as well: it is no matter of a second try.
            let method = ["GET", "POST"][n % 2];
            let answer = client.ask(format!("{method} / HTTP/1.1\r\nHost: web.demo\r\n\r\n")).await;
            assert_eq!(answer.status, 204, "{node} {n}: {answer:?}");
        }
        go.notify_one();
        assert_eq!(watching.body(&head).await.0, b"last");
        assert_eq!(pod.accepted(), 2);
    }
}

/// A pod that answers `/slow` when told to, anything else at once.
async fn slow(go: &Arc<Notify>) -> Pod {
    let go = Arc::clone(go);
    Pod::http(B, 10, move |request| {
        let go = Arc::clone(&go);
        async move {
            if request.uri().path() == "/slow" {
                go.notified().await;
            }
            Response::new(full(request.uri().path().to_owned()))
        }
    })
    .await
}

/// A rolling update of the DaemonSet: the new proxy listens already, the old one finishes what it has.
#[tokio::test]
async fn requests_move_to_a_peers_successor_while_the_old_proxy_finishes_its_own() {
    let go = Arc::new(Notify::new());
    let pod = slow(&go).await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let host = pod.address.to_string();
    let mut old = Wire::connect(mesh.a.outbound).await;
    old.send(format!("GET /slow HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    eventually("the slow request", || pod.seen().len() == 1).await;
    let Mesh { a, b } = mesh;
    let _successor = b.successor();
    let draining = tokio::spawn(b.drain(Duration::from_secs(60)));
    let mut client = Wire::connect(a.outbound).await;
    // By its address there is no other pod to go to.
    while a.proxy.links()[0].opened < 2 {
        let answer = client.get(&host, "/quick").await;
        assert_eq!(answer.text(), "/quick", "{answer:?}");
    }
    assert_eq!(client.get(&host, "/quick").await.text(), "/quick");
    go.notify_one();
    assert_eq!(old.answer().await.text(), "/slow");
    assert!(draining.await.unwrap(), "the old proxy is done");
}

#[tokio::test]
async fn requests_to_a_peer_that_drains_without_a_successor_fail_clearly_and_the_open_one_finishes() {
    let go = Arc::new(Notify::new());
    let pod = slow(&go).await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let host = pod.address.to_string();
    let mut old = Wire::connect(mesh.a.outbound).await;
    old.send(format!("GET /slow HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    eventually("the slow request", || pod.seen().len() == 1).await;
    let Mesh { a, b } = mesh;
    let draining = tokio::spawn(b.drain(Duration::from_secs(60)));
    let mut client = Wire::connect(a.outbound).await;
    let mut answer = client.get(&host, "/quick").await;
    while answer.status == StatusCode::OK {
        answer = client.get(&host, "/quick").await;
    }
    for _ in 0..3 {
        answer.is_error(502, "connection_refused");
        assert!(answer.text().contains("no link to the proxy on node node-b"), "{answer:?}");
        answer = client.get(&host, "/quick").await;
    }
    go.notify_one();
    assert_eq!(old.answer().await.text(), "/slow");
    assert!(draining.await.unwrap(), "the old proxy is done");
}
