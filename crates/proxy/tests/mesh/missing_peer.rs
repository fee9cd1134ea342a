//! Nodes without a ready proxy: their pods are dialled directly or refused, as the setting says.

use posthouse_model::directory::Peer;
use posthouse_model::{AppProtocol, Directory};
use posthouse_proxy::MissingPeer;

use crate::harness::{B, H2, Mesh, Pod, Svc, Wire, refusing};

fn mesh(missing: MissingPeer) -> Mesh {
    Mesh::with(|config| config.missing_peer = missing)
}

/// Node-b's proxy as node-a knows it.
fn peer(mesh: &Mesh, change: impl Fn(&mut Vec<Peer>)) {
    mesh.update(|_, directory: &mut Directory| {
        let mut peers: Vec<Peer> = directory.peers().map(|peer| (**peer).clone()).collect();
        change(&mut peers);
        directory.set_peers(peers);
    });
}

#[tokio::test]
async fn a_pod_of_a_node_without_a_proxy_is_dialled_directly_when_that_is_allowed() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = mesh(MissingPeer::Direct);
    mesh.web(&[&pod]);
    for listed in [true, false] {
        peer(&mesh, |peers| {
            peers.iter_mut().for_each(|peer| peer.ready = false);
            peers.retain(|peer| listed || &*peer.node != B);
        });
        let mut client = Wire::connect(mesh.a.outbound).await;
        assert_eq!(client.get("web.demo", "/").await.text(), "pod");
        client.send("CONNECT web.demo:80 HTTP/1.1\r\nHost: web.demo:80\r\n\r\n").await;
        client.head().await;
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await.text(), "pod");
    }
    assert!(mesh.a.proxy.links().is_empty(), "no link was tried: {:?}", mesh.a.proxy.links());
}

#[tokio::test]
async fn a_pod_of_a_node_without_a_proxy_is_refused_when_it_must_not_be_dialled() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = mesh(MissingPeer::Fail);
    mesh.web(&[&pod]);
    peer(&mesh, |peers| peers.retain(|peer| &*peer.node != B));
    let mut client = Wire::connect(mesh.a.outbound).await;
    let answer = client.get("web.demo", "/").await;
    answer.is_error(503, "destination_unavailable");
    assert!(answer.text().contains("node node-b") && answer.text().contains("--missing-peer"), "{answer:?}");
    mesh.put(&Svc::new("web").app(AppProtocol::Tcp).end(&pod));
    client.send("CONNECT web.demo:80 HTTP/1.1\r\nHost: web.demo:80\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.line.starts_with("HTTP/1.1 503 ") || client.rest().await.is_empty(), "{head:?}");
    assert_eq!(pod.accepted(), 0);
}

#[tokio::test]
async fn a_listed_peer_that_cannot_be_linked_to_is_passed_by_when_that_is_allowed() {
    let (closed, _socket) = refusing(B, 1);
    for missing in [MissingPeer::Direct, MissingPeer::Fail] {
        let pod = Pod::named(B, 10, "pod").await;
        let mesh = mesh(missing);
        mesh.web(&[&pod]);
        peer(&mesh, |peers| peers.iter_mut().for_each(|peer| peer.address = closed.address));
        let answer = Wire::connect(mesh.a.outbound).await.get("web.demo", "/").await;
        let mut tunnel = Wire::connect(mesh.a.outbound).await;
        tunnel.send("CONNECT web.demo:80 HTTP/1.1\r\nHost: web.demo:80\r\n\r\n").await;
        tunnel.head().await;
        let inside = tunnel.ask("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
        for answer in [answer, inside] {
            if missing == MissingPeer::Direct {
                assert_eq!(answer.text(), "pod", "{answer:?}");
            } else {
                answer.is_error(502, "connection_refused");
                assert!(answer.text().contains("no link to the proxy on node node-b"), "{answer:?}");
            }
        }
        assert_eq!(pod.accepted(), usize::from(missing == MissingPeer::Direct));
        let links = mesh.a.proxy.links();
        assert!(links[0].failures > 0 && links[0].last_error.is_some(), "{links:?}");
    }
}

/// With a broken link to one node its pods are passed over, all of them, for those of other nodes.
#[tokio::test]
async fn a_broken_link_costs_no_request_while_other_nodes_have_pods() {
    let (closed, _socket) = refusing(B, 1);
    let behind = [Pod::named(B, 10, "b").await, Pod::named(B, 11, "b").await, Pod::named(B, 12, "b").await];
    let here = Pod::named(crate::harness::A, 10, "a").await;
    let mesh = mesh(MissingPeer::Fail);
    mesh.web(&[&behind[0], &behind[1], &behind[2], &here]);
    peer(&mesh, |peers| peers.iter_mut().for_each(|peer| peer.address = closed.address));
    let mut client = Wire::connect(mesh.a.outbound).await;
    for _ in 0..50 {
        let answer = client.ask("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(answer.text(), "a", "{answer:?}");
    }
}

/// A peer that went away and came back elsewhere is found again without a restart.
#[tokio::test]
async fn a_peer_that_moves_is_linked_to_anew() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = mesh(MissingPeer::Fail);
    mesh.web(&[&pod]);
    let address = mesh.b.link;
    let (closed, _socket) = refusing(B, 1);
    let client = H2::connect(mesh.a.outbound).await;
    for round in 0..3 {
        assert_eq!(client.get("http://web.demo/").await.unwrap().text(), "pod", "{round}");
        peer(&mesh, |peers| peers.iter_mut().for_each(|peer| peer.address = closed.address));
        assert_eq!(client.get("http://web.demo/").await.unwrap().status, 502);
        peer(&mesh, |peers| peers.iter_mut().for_each(|peer| peer.address = address));
    }
}
