//! Links without TLS over loopback, where 127.0.1.1 and its kin are nodes as in the demo.

use posthouse_model::Node;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const WAIT: Duration = Duration::from_secs(20);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// node-b by its Node object, node-c by its peer alone, node-d by both families.
fn directory() -> Directory {
    let mut directory = Directory::default();
    for (name, addresses) in [("node-b", vec![ip("127.0.2.1")]), ("node-d", vec![ip("127.0.4.1"), ip("fd00::4")])] {
        directory.put_node(Node {
            name: name.into(),
            addresses: addresses.into_iter().collect(),
            pod_cidrs: ["127.0.2.0/24".parse().unwrap()].into_iter().collect(),
        });
    }
    directory.set_peers([Peer { node: "node-c".into(), address: "127.0.3.1:4141".parse().unwrap(), ready: true }]);
    directory
}

fn peer(address: SocketAddr) -> Peer {
    Peer { node: "node-a".into(), address, ready: true }
}

/// Dials a listener on loopback from `source` and says how its accept ends.
async fn accepted_from(source: &str) -> io::Result<PeerIdentity> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = peer(listener.local_addr().unwrap());
    let dialler = Plain::new(ip(source), WAIT);
    let receiver = Plain::new(ip("127.0.0.1"), WAIT);
    let directory = directory();
    let (dialled, accepted) = tokio::join!(dialler.connect(&peer, None), async {
        let (stream, remote) = listener.accept().await.unwrap();
        receiver.accept(stream, remote, &directory).await
    });
    let mut dialled = dialled.unwrap();
    let (identity, mut io) = accepted?;
    dialled.write_all(b"ping").await.unwrap();
    let mut word = [0; 4];
    io.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"ping");
    Ok(identity)
}

#[tokio::test]
async fn a_peer_is_the_node_whose_address_it_dials_from() {
    for (source, node) in [("127.0.2.1", "node-b"), ("127.0.3.1", "node-c"), ("127.0.4.1", "node-d")] {
        let identity = accepted_from(source).await.unwrap();
        assert_eq!(identity, PeerIdentity::unauthenticated(node.into()), "{source}");
    }
}

#[tokio::test]
async fn pods_and_strangers_are_no_peers() {
    // An address of node-b's pods, and one of nobody.
    for source in ["127.0.2.7", "127.0.9.9"] {
        let error = accepted_from(source).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains(source), "{error}");
    }
}

#[test]
fn nodes_are_known_by_either_family_and_in_one_spelling() {
    let directory = directory();
    assert_eq!(node_of(ip("fd00::4"), &directory).as_deref(), Some("node-d"));
    assert_eq!(node_of(ip("::ffff:127.0.2.1"), &directory), None, "the caller makes addresses canonical");
    assert_eq!(node_of(ip("::ffff:127.0.2.1").to_canonical(), &directory).as_deref(), Some("node-b"));
}

#[tokio::test]
async fn a_dead_peer_is_an_error_and_not_a_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let plain = Plain::new(ip("127.0.0.1"), WAIT);
    let refused = plain.connect(&peer(address), None).await.err().unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_silent_peer_ends_with_the_time_limit() {
    // Nobody accepts: with a backlog of one, further connections wait for an answer that never comes.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let plain = Plain::new(ip("127.0.0.1"), Duration::from_millis(20));
    let mut held = Vec::new();
    let silent = loop {
        match plain.connect(&peer(address), None).await {
            Ok(io) => held.push(io),
            Err(error) => break error,
        }
        assert!(held.len() < 64, "the backlog never fills");
    };
    assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
    assert!(silent.to_string().contains(&address.to_string()), "{silent}");
}

#[tokio::test]
async fn the_source_address_is_used_only_for_its_own_family() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain = Plain::new(ip("fd00::1"), WAIT);
    let peer = peer(listener.local_addr().unwrap());
    let (dialled, accepted) = tokio::join!(plain.connect(&peer, None), listener.accept());
    assert!(dialled.is_ok());
    assert_eq!(accepted.unwrap().1.ip(), ip("127.0.0.1"), "the system chooses");
}
