//! The end of a proxy: what is under way finishes, what is idle is told or closes, nothing new is taken.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use posthouse_model::AppProtocol;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::harness::{A, B, H2, LIMIT, Mesh, Pod, Svc, Wire, within};

const GET: &str = "GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n";

/// A pod that answers when told to.
async fn waiting(node: &'static str, go: &Arc<Semaphore>) -> Pod {
    let go = Arc::clone(go);
    Pod::http(node, 10, move |_| {
        let go = Arc::clone(&go);
        async move {
            go.acquire().await.unwrap().forget();
            crate::harness::answer("late")
        }
    })
    .await
}

/// Begins to drain `node` and waits until its listener is closed.
async fn draining(node: crate::harness::Node, deadline: Duration) -> JoinHandle<bool> {
    let outbound = node.outbound;
    let drain = tokio::spawn(node.drain(deadline));
    is_closed(outbound).await;
    drain
}

async fn is_closed(address: SocketAddr) {
    within("the listener to close", async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_proxy_without_clients_ends_at_once() {
    let mesh = Mesh::start();
    let link = mesh.a.link;
    assert!(within("the drain", mesh.a.drain(LIMIT * 100)).await);
    is_closed(link).await;
}

/// The client may be sending its next request while the proxy decides to end, and must not send a POST twice.
#[tokio::test]
async fn a_kept_alive_connection_is_told_with_its_next_answer() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let mut kept = Wire::connect(mesh.a.outbound).await;
    assert_eq!(kept.get("web.demo", "/").await.text(), "pod");
    let mut fresh = Wire::connect(mesh.a.outbound).await;
    // Accepted before the drain begins: another client's answer takes longer than that.
    assert_eq!(Wire::connect(mesh.a.outbound).await.get("web.demo", "/").await.text(), "pod");
    let drain = draining(mesh.a, LIMIT * 10).await;
    for client in [&mut kept, &mut fresh] {
        let answer = client.ask("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 2\r\n\r\nhi").await;
        assert_eq!((answer.text().as_str(), answer.head.field("connection")), ("pod", "close"));
        client.ended().await;
    }
    drop((kept, fresh));
    assert!(within("the drain", drain).await.unwrap());
}

/// Its head said nothing of an end, so the client may send another request behind it.
#[tokio::test]
async fn a_client_whose_answer_was_under_way_may_ask_once_more() {
    let go = Arc::new(Semaphore::new(0));
    let slow = Arc::clone(&go);
    let pod = Pod::raw(B, 10, move |mut wire, _| {
        let slow = Arc::clone(&slow);
        async move {
            while let Some((head, _)) = wire.request().await {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst").await;
                if head.line.starts_with("GET") {
                    slow.acquire().await.unwrap().forget();
                }
                wire.send("after").await;
            }
        }
    })
    .await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let mut client = Wire::connect(mesh.a.outbound).await;
    client.send(GET).await;
    let head = client.head().await;
    assert!(head.all("connection").is_empty(), "{head:?}");
    assert_eq!(client.exactly(5).await, b"first");
    let drain = draining(mesh.a, LIMIT * 10).await;
    go.add_permits(1);
    assert_eq!(client.exactly(5).await, b"after");
    let answer = client.ask("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 2\r\n\r\nhi").await;
    assert_eq!((answer.text().as_str(), answer.head.field("connection")), ("firstafter", "close"));
    client.ended().await;
    drop(client);
    assert!(within("the drain", drain).await.unwrap());
}

#[tokio::test]
async fn what_stays_idle_is_closed_before_the_deadline() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let (outbound, link) = (mesh.a.outbound, mesh.a.link);
    let mut idle = Wire::connect(outbound).await;
    assert_eq!(idle.get("web.demo", "/").await.text(), "pod");
    let mut silent = Wire::connect(outbound).await;
    let h2 = H2::connect(outbound).await;
    assert_eq!(h2.get("http://web.demo/").await.unwrap().text(), "pod");
    assert!(within("the drain", mesh.a.drain(Duration::from_secs(4))).await, "in time");
    idle.ended().await;
    silent.ended().await;
    assert!(h2.get("http://web.demo/").await.is_err());
    is_closed(outbound).await;
    is_closed(link).await;
}

#[tokio::test]
async fn a_request_in_flight_finishes_and_its_connection_closes() {
    for node in [A, B] {
        let go = Arc::new(Semaphore::new(0));
        let pod = waiting(node, &go).await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send(GET).await;
        let h2 = H2::connect(mesh.a.outbound).await;
        let (response, _) = h2.open(Request::get("http://web.demo/").body(()).unwrap(), true).await.unwrap();
        pod.has_accepted(2).await;
        let drain = draining(mesh.a, LIMIT * 10).await;
        assert!(!drain.is_finished());
        go.add_permits(2);
        let answer = client.answer().await;
        assert_eq!((answer.text().as_str(), answer.head.field("connection")), ("late", "close"));
        client.ended().await;
        drop(client);
        assert_eq!(H2::reply(response).await.unwrap().text(), "late");
        assert!(h2.get("http://web.demo/").await.is_err(), "GOAWAY: no more streams");
        assert!(within("the drain", drain).await.unwrap());
    }
}

#[tokio::test]
async fn a_receiving_proxy_finishes_what_it_delivers_and_its_peer_needs_no_new_request_for_it() {
    let go = Arc::new(Semaphore::new(0));
    let pod = waiting(B, &go).await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let mut client = Wire::connect(mesh.a.outbound).await;
    client.send(GET).await;
    pod.has_accepted(1).await;
    let drain = draining(mesh.b, LIMIT * 10).await;
    go.add_permits(1);
    let answer = client.answer().await;
    assert_eq!(answer.text(), "late");
    assert!(answer.head.all("connection").is_empty(), "the client's own proxy stays");
    assert!(within("the drain", drain).await.unwrap());
    client.get("web.demo", "/").await.is_error(502, "connection_refused");
    assert_eq!(pod.seen().len(), 1);
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_off_at_the_deadline() {
    for node in [A, B] {
        let pod = waiting(node, &Arc::new(Semaphore::new(0))).await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send(GET).await;
        pod.has_accepted(1).await;
        assert!(!within("the deadline", mesh.a.drain(Duration::from_millis(100))).await);
        client.ended().await;
        pod.has_ended(usize::from(node == A)).await;
    }
}

#[tokio::test]
async fn a_tunnel_lasts_until_the_deadline() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            wire.send("hello").await;
            wire.rest().await;
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Tcp).end(&pod));
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send("CONNECT web.demo:80 HTTP/1.1\r\nHost: web.demo:80\r\n\r\n").await;
        client.head().await;
        assert_eq!(client.exactly(5).await, b"hello");
        assert!(!within("the deadline", mesh.a.drain(Duration::from_millis(100))).await);
        client.ended().await;
        pod.has_ended(1).await;
    }
}

/// A client that was accepted just before the listener closed and speaks only then is served, once.
#[tokio::test]
async fn a_request_that_has_begun_to_arrive_is_served() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let mut client = Wire::connect(mesh.a.outbound).await;
    assert_eq!(client.get("web.demo", "/").await.text(), "pod");
    client.send("GET / HTTP/1.1\r\nHost: web.").await;
    // Its first byte must be there before the drain begins: another client's answer takes longer than that.
    assert_eq!(Wire::connect(mesh.a.outbound).await.get("web.demo", "/").await.text(), "pod");
    let drain = draining(mesh.a, LIMIT * 10).await;
    let answer = client.ask("demo\r\n\r\n").await;
    assert_eq!((answer.text().as_str(), answer.head.field("connection")), ("pod", "close"));
    client.ended().await;
    drop(client);
    assert!(within("the drain", drain).await.unwrap());
}
