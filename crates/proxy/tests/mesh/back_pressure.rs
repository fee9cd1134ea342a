//! A reader that stops makes the writer stop, with bounded memory in between, and nobody else on the link notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use posthouse_model::AppProtocol;
use tokio::io::AsyncWriteExt;

use crate::harness::{A, B, H2, Mesh, Pod, Svc, Wire, within};

/// What may be under way when a writer has stopped: windows of the link (2 MiB) and of HTTP/2 clients and pods (1 MiB),
/// and up to 10 MiB in the kernel's buffers of each TCP connection between (tcp_wmem and tcp_rmem at their usual most).
const BOUND: u64 = 40 << 20;
/// What would be written were nobody stopped.
const ENDLESS: u64 = 1 << 40;

/// Writes until told to stop by the other side's end, counting what was taken.
async fn write_on(wire: &mut Wire, taken: &AtomicU64) {
    let piece = vec![b'x'; 64 << 10];
    while let Ok(n @ 1..) = wire.stream.write(&piece).await {
        taken.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Waits until `taken` stands still, and says where.
async fn stalled(taken: &AtomicU64) -> u64 {
    within("the writer to stop", async {
        let (mut last, mut still) = (u64::MAX, 0);
        while still < 10 {
            // Long enough that a writer that can go on does so in between, even on a busy machine.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = taken.load(Ordering::Relaxed);
            still = if now == last && now > 0 { still + 1 } else { 0 };
            last = now;
            assert!(now < BOUND, "{now} bytes were taken although nobody reads");
        }
        last
    })
    .await
}

/// A pod that writes without end.
async fn writing(node: &'static str, taken: &Arc<AtomicU64>) -> Pod {
    let taken = Arc::clone(taken);
    Pod::raw(node, 10, move |mut wire, _| {
        let taken = Arc::clone(&taken);
        async move {
            wire.head().await;
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {ENDLESS}\r\n\r\n")).await;
            write_on(&mut wire, &taken).await;
        }
    })
    .await
}

/// A pod that takes a request's head and then nothing until `go`; then it reads on.
async fn sleeping(node: &'static str, go: &Arc<tokio::sync::Notify>) -> Pod {
    let go = Arc::clone(go);
    Pod::raw(node, 10, move |mut wire, _| {
        let go = Arc::clone(&go);
        async move {
            wire.head().await;
            go.notified().await;
            let mut sink = vec![0; 1 << 20];
            while matches!(tokio::io::AsyncReadExt::read(&mut wire.stream, &mut sink).await, Ok(1..)) {}
        }
    })
    .await
}

/// Others are served meanwhile, on the same link and to the same pod's node.
async fn others_are_served(mesh: &Mesh, node: &'static str) {
    let other = Pod::named(node, 11, "other").await;
    mesh.put(&Svc::new("other").end(&other));
    let mut client = Wire::connect(mesh.a.outbound).await;
    for _ in 0..20 {
        assert_eq!(client.get("other.demo", "/").await.text(), "other");
    }
    mesh.update(|_, directory| directory.remove_service("demo/other"));
}

#[tokio::test]
async fn a_client_that_stops_reading_stops_the_pod_and_nobody_else() {
    for node in [A, B] {
        let taken = Arc::new(AtomicU64::new(0));
        let pod = writing(node, &taken).await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
        client.head().await;
        let stopped = stalled(&taken).await;
        others_are_served(&mesh, node).await;
        // Reading on lets it go on.
        client.exactly(usize::try_from(stopped).unwrap() + (1 << 20)).await;
        assert!(taken.load(Ordering::Relaxed) > stopped);
        drop(client);
        pod.has_ended(1).await;
        mesh.is_quiet(pod.address).await;
    }
}

#[tokio::test]
async fn an_http2_stream_that_is_not_read_stops_the_pod_and_no_other_stream_of_its_connection() {
    for node in [A, B] {
        let taken = Arc::new(AtomicU64::new(0));
        let pod = writing(node, &taken).await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
        let client = H2::connect(mesh.a.outbound).await;
        let (response, _) = client.open(Request::get("http://web.demo/").body(()).unwrap(), true).await.unwrap();
        let response = within("the head", response).await.unwrap();
        stalled(&taken).await;
        let other = Pod::named(node, 11, "other").await;
        mesh.put(&Svc::new("other").app(AppProtocol::Http1).end(&other));
        // The unread stream holds the client's own connection window, so of another one only the head comes.
        let (head, _) = client.open(Request::head("http://other.demo/").body(()).unwrap(), true).await.unwrap();
        assert_eq!(within("another stream's head", head).await.unwrap().status(), 200);
        mesh.update(|_, directory| directory.remove_service("demo/other"));
        others_are_served(&mesh, node).await;
        drop(response);
        pod.has_ended(1).await;
        mesh.is_quiet(pod.address).await;
    }
}

#[tokio::test]
async fn a_pod_that_stops_reading_stops_the_client_and_nobody_else() {
    for node in [A, B] {
        let go = Arc::new(tokio::sync::Notify::new());
        let pod = sleeping(node, &go).await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let taken = Arc::new(AtomicU64::new(0));
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send(format!("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: {ENDLESS}\r\n\r\n")).await;
        let count = Arc::clone(&taken);
        let writer = tokio::spawn(async move { write_on(&mut client, &count).await });
        let stopped = stalled(&taken).await;
        others_are_served(&mesh, node).await;
        go.notify_one();
        crate::harness::eventually("the client to go on", || taken.load(Ordering::Relaxed) > stopped + (1 << 20)).await;
        writer.abort();
        pod.has_ended(1).await;
        mesh.is_quiet(pod.address).await;
    }
}

#[tokio::test]
async fn an_http2_upload_that_is_not_read_stops_at_the_windows() {
    for node in [A, B] {
        let go = Arc::new(tokio::sync::Notify::new());
        let pod = sleeping(node, &go).await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
        let client = H2::connect(mesh.a.outbound).await;
        let (_response, mut send) =
            client.open(Request::post("http://web.demo/").body(()).unwrap(), false).await.unwrap();
        let taken = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&taken);
        let writer = tokio::spawn(async move {
            let piece = Bytes::from(vec![b'x'; 64 << 10]);
            while crate::harness::send_all(&mut send, piece.clone(), false).await.is_ok() {
                count.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
        });
        stalled(&taken).await;
        others_are_served(&mesh, node).await;
        writer.abort();
        drop(client);
        go.notify_one();
        pod.has_ended(1).await;
        mesh.is_quiet(pod.address).await;
    }
}

#[tokio::test]
async fn a_tunnel_whose_reader_stops_stops_its_writer() {
    for node in [A, B] {
        let taken = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&taken);
        let pod = Pod::raw(node, 10, move |mut wire, _| {
            let taken = Arc::clone(&count);
            async move { write_on(&mut wire, &taken).await }
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Tcp).end(&pod));
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send("CONNECT web.demo:80 HTTP/1.1\r\nHost: web.demo:80\r\n\r\n").await;
        client.head().await;
        stalled(&taken).await;
        others_are_served(&mesh, node).await;
        drop(client);
        pod.has_ended(1).await;
        mesh.is_quiet(pod.address).await;
    }
}
