//! Who may use the outbound port: pods of this node and the node itself, and for a moment those who are not known yet.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::harness::{A, B, H2, Mesh, Pod, Wire, pod_ip};

const FOREVER: Duration = Duration::from_secs(3600);
const GET: &str = "GET http://web.demo/ HTTP/1.1\r\nHost: web.demo\r\n\r\n";

#[tokio::test]
async fn pods_and_proxies_of_other_nodes_are_refused_at_once() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::with(|config| config.timeouts.unknown_client = FOREVER);
    mesh.web(&[&pod]);
    // A known pod of node-b, one that only its range tells, node-b itself.
    for from in [pod.address.ip(), pod_ip(B, 99), pod_ip(B, 1)] {
        let mut client = Wire::connect_from(from, mesh.a.outbound).await;
        let answer = client.ask(GET).await;
        answer.is_error(403, "http_request_denied");
        assert_eq!(answer.head.field("connection"), "close");
        assert!(answer.text().contains("a pod uses the proxy of its own node"), "{answer:?}");
        client.ended().await;
    }
    // Their own proxy serves them.
    let mut client = Wire::connect_from(pod.address.ip(), mesh.b.outbound).await;
    assert_eq!(client.ask(GET).await.text(), "pod");
    assert_eq!(pod.seen().len(), 1);
}

/// A refusal is told before a word of the client: clients that speak HTTP/2 or wait for a greeting get it, too.
#[tokio::test]
async fn a_refused_client_that_does_not_speak_is_told_as_well() {
    let mesh = Mesh::start();
    let mut client = Wire::connect_from(pod_ip(B, 99), mesh.a.outbound).await;
    client.answer().await.is_error(403, "http_request_denied");
    client.ended().await;
}

#[tokio::test]
async fn the_node_itself_may_send_from_any_of_its_addresses() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::with(|config| config.timeouts.unknown_client = FOREVER);
    mesh.web(&[&pod]);
    for from in [[127, 0, 0, 1], [127, 0, 61, 1]] {
        let mut client = Wire::connect_from(from.into(), mesh.a.outbound).await;
        assert_eq!(client.ask(GET).await.text(), "pod");
    }
}

#[tokio::test]
async fn a_pod_that_starts_is_held_until_the_directory_knows_it_and_then_served_as_itself() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::with(|config| config.timeouts.unknown_client = FOREVER);
    mesh.web(&[&pod]);
    let starting = pod_ip(A, 77);
    let mut client = Wire::connect_from(starting, mesh.a.outbound).await;
    client.send("GET http://web/ HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let early = tokio::time::timeout(Duration::from_millis(50), client.head()).await;
    assert!(early.is_err(), "answered before it was known: {early:?}");
    // News that has nothing to do with it does not end the hold.
    mesh.update(|_, _| {});
    let early = tokio::time::timeout(Duration::from_millis(50), client.head()).await;
    assert!(early.is_err(), "answered before it was known: {early:?}");
    mesh.pod(A, starting, "demo");
    let answer = client.answer().await;
    assert_eq!(answer.text(), "pod", "the short name says that its namespace is known: {answer:?}");
}

#[tokio::test]
async fn a_held_client_that_turns_out_to_be_from_elsewhere_is_refused() {
    let mesh = Mesh::with(|config| config.timeouts.unknown_client = FOREVER);
    let Some(outside) = outside_address() else { return };
    let mut client = Wire::connect_from(outside, mesh.a.outbound).await;
    client.send(GET).await;
    mesh.update(|_, directory| {
        directory.put_node(posthouse_model::Node {
            name: "node-c".into(),
            addresses: [outside].into_iter().collect(),
            pod_cidrs: std::iter::empty().collect(),
        });
    });
    client.answer().await.is_error(403, "http_request_denied");
}

#[tokio::test]
async fn an_unknown_client_of_the_pod_range_is_served_unidentified_after_the_hold() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::with(|config| config.timeouts.unknown_client = Duration::from_millis(50));
    mesh.web(&[&pod]);
    let mut client = Wire::connect_from(pod_ip(A, 78), mesh.a.outbound).await;
    assert_eq!(client.ask(GET).await.text(), "pod");
    let answer = client.get("web", "/").await;
    answer.is_error(500, "destination_not_found");
    assert!(answer.text().contains("namespace"), "nobody's namespace: {answer:?}");
    let client = H2::connect_from(pod_ip(A, 79), mesh.a.outbound).await;
    assert_eq!(client.get("http://web.demo/").await.unwrap().text(), "pod");
}

#[tokio::test]
async fn an_unknown_client_from_outside_is_refused_after_the_hold() {
    let mesh = Mesh::with(|config| config.timeouts.unknown_client = Duration::from_millis(50));
    let Some(outside) = outside_address() else { return };
    let mut client = Wire::connect_from(outside, mesh.a.outbound).await;
    client.ask(GET).await.is_error(403, "http_request_denied");
    client.ended().await;
}

/// An address of this machine that is not loopback (loopback ones are the node itself); a machine may have none.
fn outside_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Sends nothing: it only asks the kernel which address it would send from.
    socket.connect(SocketAddr::from(([192, 0, 2, 1], 9))).ok()?;
    let ip = socket.local_addr().unwrap().ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}
