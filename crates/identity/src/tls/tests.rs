//! Handshakes over loopback, where node-1 is 127.0.1.1, node-2 127.0.2.1 and so on. The receiver is node-9 and says "hello" as
//! soon as a link is taken, as HTTP/2 would.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use posthouse_model::Node;
use posthouse_model::directory::{ServiceKind, ServiceTls};
use rustls::{ClientConfig, NamedGroup};
use rustls_pki_types::{ServerName, UnixTime};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::material::Material;
use crate::test_ca::{Ca, Issued, id, node_params};

const WAIT: Duration = Duration::from_secs(20);

/// A clock that tests put forward.
#[derive(Debug)]
struct Clock(AtomicU64);

impl Clock {
    fn now() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(UnixTime::now().as_secs())))
    }

    fn forward(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::Relaxed);
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Ordering::Relaxed))))
    }
}

fn material(node: &str, issued: &Issued, roots: &str) -> Material {
    Material::parse(&issued.pem(roots), &id(node), SystemTime::now()).unwrap()
}

fn options(node: &str) -> Options {
    let source = format!("127.0.{}.1", node.strip_prefix("node-").unwrap()).parse().unwrap();
    Options { source, connect_timeout: WAIT, permissive: false, service_domain: None }
}

fn tls_at(node: &str, issued: &Issued, roots: &str, clock: &Arc<Clock>) -> Tls {
    let certificates = Certificates::new(id(node));
    certificates.install(material(node, issued, roots), "test");
    Tls::at(certificates, options(node), Arc::clone(clock) as _)
}

fn tls_with(node: &str, issued: &Issued, roots: &str, change: impl FnOnce(&mut Options)) -> Tls {
    let certificates = Certificates::new(id(node));
    certificates.install(material(node, issued, roots), "test");
    let mut options = options(node);
    change(&mut options);
    Tls::new(certificates, options)
}

/// A node of `ca`, which it trusts alone.
fn tls(node: &str, ca: &Ca) -> Tls {
    tls_with(node, &ca.node(node), &ca.pem(), |_| {})
}

fn directory() -> Directory {
    let mut directory = Directory::default();
    for number in [1, 2, 9] {
        directory.put_node(Node {
            name: format!("node-{number}").into(),
            addresses: [format!("127.0.{number}.1").parse().unwrap()].into_iter().collect(),
            pod_cidrs: Default::default(),
        });
    }
    directory
}

fn peer(node: &str, address: SocketAddr) -> Peer {
    Peer { node: node.into(), address, ready: true }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Takes one connection as `receiver` does, and says hello.
async fn take(receiver: &Tls, listener: &TcpListener, directory: &Directory) -> io::Result<(PeerIdentity, BoxIo)> {
    let (stream, remote) = listener.accept().await.unwrap();
    let (peer, mut io) = receiver.accept(stream, remote, directory).await?;
    io.write_all(b"hello").await?;
    io.flush().await?;
    Ok((peer, io))
}

type Both = (io::Result<BoxIo>, io::Result<(PeerIdentity, BoxIo)>);

async fn link_to(
    dialled: &str,
    sender: &Tls,
    receiver: &Tls,
    service: Option<&Service>,
    directory: &Directory,
) -> Both {
    let (listener, address) = listener().await;
    let peer = peer(dialled, address);
    tokio::time::timeout(WAIT, async {
        tokio::join!(sender.connect(&peer, service), take(receiver, &listener, directory))
    })
    .await
    .expect("both ends come to an end")
}

async fn link(sender: &Tls, receiver: &Tls) -> Both {
    link_to("node-9", sender, receiver, None, &directory()).await
}

/// Both ends have a link that carries bytes both ways; what the receiver knows of its peer.
async fn works(both: Both) -> (PeerIdentity, BoxIo, BoxIo) {
    let (mut sender, (identity, mut receiver)) = (both.0.unwrap(), both.1.unwrap());
    hello(&mut sender).await;
    echo(&mut sender, &mut receiver).await;
    (identity, sender, receiver)
}

async fn hello(io: &mut BoxIo) {
    let mut word = [0; 5];
    io.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"hello");
}

async fn echo(sender: &mut BoxIo, receiver: &mut BoxIo) {
    for (from, to) in [(&mut *sender, &mut *receiver)] {
        from.write_all(b"ping").await.unwrap();
        from.flush().await.unwrap();
        let mut word = [0; 4];
        to.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"ping");
        to.write_all(b"pong").await.unwrap();
        to.flush().await.unwrap();
        from.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"pong");
    }
}

fn refusals(both: Both) -> ((io::ErrorKind, String), (io::ErrorKind, String)) {
    let told = |error: io::Error| (error.kind(), error.to_string());
    (told(both.0.err().expect("the sender fails")), told(both.1.err().expect("the receiver fails")))
}

#[tokio::test]
async fn nodes_of_one_ca_link_and_know_each_other() {
    let ca = Ca::new("ca");
    let (sender, receiver) = (tls("node-1", &ca), tls("node-9", &ca));
    let (identity, _, _) = works(link(&sender, &receiver).await).await;
    let expires = Some(sender.certificates.current().unwrap().material.not_after());
    assert_eq!(identity, PeerIdentity { node: "node-1".into(), authenticated: true, service: None, expires });
}

#[tokio::test]
async fn roots_that_overlap_are_enough_while_they_rotate() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let bundle = old.pem() + &new.pem();
    let sender = tls_with("node-1", &old.node("node-1"), &bundle, |_| {});
    let receiver = tls_with("node-9", &new.node("node-9"), &bundle, |_| {});
    works(link(&sender, &receiver).await).await;
}

#[tokio::test]
async fn another_node_than_the_dialled_one_is_refused() {
    let ca = Ca::new("ca");
    let (sender, receiver) = (tls("node-1", &ca), tls("node-9", &ca));
    let (sent, received) = refusals(link_to("node-2", &sender, &receiver, None, &directory()).await);
    let line =
        "peer: the certificate is for spiffe://cluster.local/node/node-9, not for spiffe://cluster.local/node/node-2";
    assert_eq!(sent, (io::ErrorKind::PermissionDenied, line.to_owned()));
    assert_eq!(received.1, "the peer refused by the TLS alert CertificateUnknown; its log says why");
}

#[tokio::test]
async fn certificates_of_another_ca_are_refused_at_both_ends() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let (sent, received) = refusals(link(&tls("node-1", &ca), &tls("node-9", &other)).await);
    assert!(sent.1.starts_with("peer: the certificate is not signed by a root of the trust bundle"), "{sent:?}");
    assert_eq!(received.1, "the peer refused by the TLS alert UnknownCA; its log says why");
    // The sender trusts both, the receiver only its own.
    let both = ca.pem() + &other.pem();
    let sender = tls_with("node-1", &ca.node("node-1"), &both, |_| {});
    let (sent, received) = refusals(link(&sender, &tls("node-9", &other)).await);
    assert_eq!(sent.1, "the peer refused by the TLS alert UnknownCA; its log says why");
    assert!(
        received.1.starts_with("peer: the certificate is not signed by a root of the trust bundle"),
        "{received:?}"
    );
    assert_eq!((sent.0, received.0), (io::ErrorKind::PermissionDenied, io::ErrorKind::PermissionDenied));
}

#[tokio::test]
async fn each_end_goes_by_its_own_clock() {
    let ca = Ca::new("ca");
    let (now, hour) = (OffsetDateTime::now_utc(), Duration::from_secs(3600));
    let short = |node| ca.node_valid(node, now - hour, now + hour);
    let late = Clock::now();
    late.forward(2 * hour);
    let early = Arc::new(Clock(AtomicU64::new(UnixTime::now().as_secs() - 2 * 3600)));
    let on_time = Clock::now();
    for (clock, line, alert) in [
        (&late, "peer: the certificate is expired since ", "CertificateExpired"),
        (&early, "peer: the certificate is not valid before ", "CertificateExpired"),
    ] {
        let sender = tls_at("node-1", &short("node-1"), &ca.pem(), &on_time);
        let receiver = tls_at("node-9", &ca.node("node-9"), &ca.pem(), clock);
        let (sent, received) = refusals(link(&sender, &receiver).await);
        assert!(received.1.starts_with(line), "{received:?}");
        assert_eq!(sent.1, format!("the peer refused by the TLS alert {alert}; its log says why"));

        let sender = tls_at("node-1", &ca.node("node-1"), &ca.pem(), clock);
        let receiver = tls_at("node-9", &short("node-9"), &ca.pem(), &on_time);
        let (sent, _) = refusals(link(&sender, &receiver).await);
        assert!(sent.1.starts_with(line), "{sent:?}");
    }
    let own = tls_at("node-1", &short("node-1"), &ca.pem(), &late);
    let (listener, address) = listener().await;
    let error = own.connect(&peer("node-9", address), None).await.err().unwrap();
    assert!(error.to_string().starts_with("this node cannot link: the certificate is expired since "), "{error}");
    drop(listener);
}

#[tokio::test]
async fn without_a_certificate_there_is_no_link() {
    let (listener, address) = listener().await;
    let tls = Tls::new(Certificates::new(id("node-1")), options("node-1"));
    let error = tls.connect(&peer("node-9", address), None).await.err().unwrap();
    assert_eq!(error.to_string(), "this node has no certificate yet");
    assert_eq!(tls.epoch(), 0);
    drop(listener);
}

#[tokio::test]
async fn a_certificate_is_worth_nothing_from_another_nodes_address_or_of_no_node() {
    let ca = Ca::new("ca");
    let receiver = tls("node-9", &ca);
    let thief =
        tls_with("node-1", &ca.node("node-1"), &ca.pem(), |options| options.source = "127.0.2.1".parse().unwrap());
    let (sent, received) = refusals(link(&thief, &receiver).await);
    let line = "the certificate is node-1's, the address 127.0.2.1 is node-2's";
    assert_eq!(received, (io::ErrorKind::PermissionDenied, line.to_owned()));
    assert_eq!(sent.1, "the peer closed the link after the handshake; its log says why");

    let stranger = tls("node-3", &ca);
    let (_, received) = refusals(link(&stranger, &receiver).await);
    let line = "the certificate is node-3's, which is no node of this cluster";
    assert_eq!(received, (io::ErrorKind::PermissionDenied, line.to_owned()));

    // Known by its peer alone, from an address of nobody: NAT.
    let mut directory = directory();
    directory.set_peers([peer("node-3", "10.0.0.3:4141".parse().unwrap())]);
    let (identity, ..) = works(link_to("node-9", &stranger, &receiver, None, &directory).await).await;
    assert_eq!(&*identity.node, "node-3");
}

/// What a receiver says to something that is no posthouse.
async fn received(receiver: &Tls, client: impl AsyncFnOnce(TcpStream)) -> (io::ErrorKind, String) {
    let (listener, address) = listener().await;
    let directory = directory();
    let client = async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.1.1:0".parse().unwrap()).unwrap();
        client(socket.connect(address).await.unwrap()).await;
    };
    let both = async { tokio::join!(client, take(receiver, &listener, &directory)) };
    let (_, taken) = tokio::time::timeout(WAIT, both).await.unwrap();
    let error = taken.err().expect("nothing else is taken");
    (error.kind(), error.to_string())
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// A client that is no posthouse, with node-1's certificate or none.
fn foreign(ca: &Ca, with_certificate: bool, alpn: &[&[u8]]) -> ClientConfig {
    let tls = tls("node-1", ca);
    let mut config = ClientConfig::clone(&tls.configs().unwrap().client);
    if !with_certificate {
        config.client_auth_cert_resolver = Arc::new(NoCertificate);
    }
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

async fn shake(config: ClientConfig, stream: TcpStream) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let name = ServerName::try_from("node-9").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    // What the server thinks of the certificate comes after the handshake.
    stream.read_u8().await?;
    Ok(stream)
}

#[tokio::test]
async fn strangers_are_told_apart() {
    let ca = Ca::new("ca");
    let receiver = tls("node-9", &ca);
    let told =
        received(&receiver, async |mut stream| stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap())
            .await;
    let line = "the peer speaks no TLS; is it run with --tls off? --tls-permissive would let it in";
    assert_eq!(told, (io::ErrorKind::InvalidData, line.to_owned()));

    let told =
        received(&receiver, async |stream| drop(shake(foreign(&ca, false, &[b"h2"]), stream).await.unwrap_err())).await;
    assert_eq!(told, (io::ErrorKind::PermissionDenied, "the peer has presented no certificate".to_owned()));

    for alpn in [&[][..], &[&b"http/1.1"[..]]] {
        let told =
            received(&receiver, async |stream| drop(shake(foreign(&ca, true, alpn), stream).await.unwrap_err())).await;
        assert_eq!(told, (io::ErrorKind::InvalidData, "the peer does not offer HTTP/2 (ALPN h2)".to_owned()));
    }

    let told = received(&receiver, async |stream| drop(stream)).await;
    assert_eq!(told, (io::ErrorKind::UnexpectedEof, "the connection was closed before a word".to_owned()));

    let told = received(&receiver, async |mut stream| stream.write_all(b"\x16\x03\x01\xff\xff").await.unwrap()).await;
    assert_eq!(told.0, io::ErrorKind::InvalidData, "{told:?}");
}

#[tokio::test]
async fn tls_1_2_is_not_spoken() {
    let ca = Ca::new("ca");
    // A ClientHello without supported_versions: TLS 1.2 with ECDHE-ECDSA-AES128-GCM, P-256 and ecdsa_secp256r1_sha256.
    let extensions = [
        &[0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17][..],
        &[0x00, 0x0b, 0x00, 0x02, 0x01, 0x00],
        &[0x00, 0x0d, 0x00, 0x04, 0x00, 0x02, 0x04, 0x03],
    ]
    .concat();
    let mut hello = [&[0x03, 0x03][..], &[7; 32], &[0x00, 0x00, 0x02, 0xc0, 0x2b, 0x01, 0x00]].concat();
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend((hello.len() as u16 + 4).to_be_bytes());
    record.extend([0x01, 0x00]);
    record.extend((hello.len() as u16).to_be_bytes());
    record.extend(hello);
    let told = received(&tls("node-9", &ca), async |mut stream| {
        stream.write_all(&record).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 70], "the alert protocol_version");
    })
    .await;
    assert_eq!(told.0, io::ErrorKind::InvalidData, "{told:?}");
}

#[tokio::test]
async fn keys_are_agreed_on_post_quantum() {
    let ca = Ca::new("ca");
    let receiver = tls("node-9", &ca);
    let (listener, address) = listener().await;
    let directory = directory();
    let stream = TcpStream::connect(address).await.unwrap();
    let (shaken, _taken) =
        tokio::join!(shake(foreign(&ca, true, &[b"h2"]), stream), take(&receiver, &listener, &directory));
    let shaken = shaken.unwrap();
    let group = shaken.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    assert_eq!(shaken.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

/// Links once and says how the handshake went, or how the sender failed.
async fn kind(sender: &Tls, receiver: &Tls) -> Result<HandshakeKind, String> {
    let (listener, address) = listener().await;
    let (directory, peer) = (directory(), peer("node-9", address));
    let sent = async {
        let stream = sender.plain.dial(address).await.unwrap();
        sender::handshake(sender, stream, &peer, None).await
    };
    let (sent, taken) =
        tokio::time::timeout(WAIT, async { tokio::join!(sent, take(receiver, &listener, &directory)) }).await.unwrap();
    match sent {
        Ok((_, kind)) => {
            taken.unwrap();
            Ok(kind.unwrap())
        }
        Err(sender::Refused::Failed(failure)) => Err(io::Error::from(failure).to_string()),
        Err(sender::Refused::NoTls) => Err("no TLS".to_owned()),
    }
}

#[tokio::test]
async fn sessions_are_resumed_and_judged_anew() {
    let ca = Ca::new("ca");
    let (now, hour) = (OffsetDateTime::now_utc(), Duration::from_secs(3600));
    let short = ca.node_valid("node-1", now - hour, now + hour);
    let (clock, receivers) = (Clock::now(), Clock::now());
    let sender = tls_at("node-1", &short, &ca.pem(), &clock);
    let receiver = tls_at("node-9", &ca.node("node-9"), &ca.pem(), &receivers);
    assert_eq!(kind(&sender, &receiver).await, Ok(HandshakeKind::Full));
    assert_eq!(kind(&sender, &receiver).await, Ok(HandshakeKind::Resumed));

    // The directory is asked each time, too.
    let (_, taken) = link_to("node-9", &sender, &receiver, None, &Directory::default()).await;
    assert_eq!(taken.err().unwrap().to_string(), "the certificate is node-1's, which is no node of this cluster");

    // No alert: the handshake itself was good, as that of a resumed session is, and the judgement after it was not.
    receivers.forward(2 * hour);
    assert_eq!(
        kind(&sender, &receiver).await,
        Err("the peer closed the link after the handshake; its log says why".to_owned())
    );
}

#[tokio::test]
async fn a_resumed_server_is_judged_anew() {
    let ca = Ca::new("ca");
    let (now, hour) = (OffsetDateTime::now_utc(), Duration::from_secs(3600));
    let short = ca.node_valid("node-9", now - hour, now + hour);
    let (clock, receivers) = (Clock::now(), Clock::now());
    let sender = tls_at("node-1", &ca.node("node-1"), &ca.pem(), &clock);
    let receiver = tls_at("node-9", &short, &ca.pem(), &receivers);
    assert_eq!(kind(&sender, &receiver).await, Ok(HandshakeKind::Full));
    assert_eq!(kind(&sender, &receiver).await, Ok(HandshakeKind::Resumed));
    clock.forward(2 * hour);
    let error = kind(&sender, &receiver).await.unwrap_err();
    assert!(error.starts_with("peer: the certificate is expired since "), "{error}");
}

#[tokio::test]
async fn a_session_ends_with_the_roots_it_was_made_under() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let both = ca.pem() + &other.pem();
    let sender = tls_with("node-1", &ca.node("node-1"), &both, |_| {});
    let receiver = tls_with("node-9", &other.node("node-9"), &both, |_| {});
    assert_eq!(kind(&sender, &receiver).await, Ok(HandshakeKind::Full));
    assert_eq!(kind(&sender, &receiver).await, Ok(HandshakeKind::Resumed));
    receiver.certificates.install(material("node-9", &other.node("node-9"), &other.pem()), "test");
    let refused = "the peer refused by the TLS alert UnknownCA; its log says why";
    assert_eq!(kind(&sender, &receiver).await, Err(refused.to_owned()));
}

#[tokio::test]
async fn a_new_certificate_leaves_open_links_alone_and_is_shown_by_new_ones() {
    let ca = Ca::new("ca");
    let (sender, receiver) = (tls("node-1", &ca), tls("node-9", &ca));
    let (first, mut out, mut taken) = works(link(&sender, &receiver).await).await;
    let hour = Duration::from_secs(3600);
    let now = OffsetDateTime::now_utc();
    let next = ca.node_valid("node-1", now - hour, now + hour);
    sender.certificates.install(material("node-1", &next, &ca.pem()), "test");
    assert_eq!((sender.epoch(), receiver.epoch()), (2, 1));
    echo(&mut out, &mut taken).await;
    let (second, ..) = works(link(&sender, &receiver).await).await;
    assert_ne!(first.expires, second.expires);
    assert_eq!(second.expires, Some(sender.certificates.current().unwrap().material.not_after()));
    receiver.certificates.install(material("node-9", &ca.node("node-9"), &ca.pem()), "test");
    works(link(&sender, &receiver).await).await;
    echo(&mut out, &mut taken).await;
}

#[tokio::test]
async fn a_permissive_receiver_takes_plain_links_by_their_address() {
    let ca = Ca::new("ca");
    let receiver = tls_with("node-9", &ca.node("node-9"), &ca.pem(), |options| options.permissive = true);
    let plain = |source: &str| Plain::new(source.parse().unwrap(), WAIT);
    for (source, node) in [("127.0.1.1", Some("node-1")), ("127.0.8.8", None)] {
        let (listener, address) = listener().await;
        let (peer, directory) = (peer("node-9", address), directory());
        let sender = plain(source);
        let sent = async {
            let mut io = sender.connect(&peer, None).await.unwrap();
            io.write_all(b"PRI").await.unwrap();
            let mut hello = Vec::new();
            // A refused peer gets a reset or an end.
            let _ = io.read_to_end(&mut hello).await;
            hello
        };
        let taken = async { take(&receiver, &listener, &directory).await.map(|(identity, _)| identity) };
        let (hello, taken) = tokio::time::timeout(WAIT, async { tokio::join!(sent, taken) }).await.unwrap();
        match node {
            Some(node) => {
                assert_eq!(taken.unwrap(), PeerIdentity::unauthenticated(node.into()));
                assert_eq!(hello, b"hello");
            }
            None => assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::PermissionDenied),
        }
    }
    // With TLS it is as strict as any.
    works(link(&tls("node-1", &ca), &receiver).await).await;
    let (_, received) = refusals(link(&tls("node-1", &Ca::new("other")), &receiver).await);
    assert!(received.1.contains("UnknownCA"), "{received:?}");
}

/// Accepts until `connections` came and counts them; each is answered with `answer` and closed, but the last is kept.
async fn no_tls(listener: TcpListener, answer: &[u8], connections: usize) -> TcpStream {
    for _ in 1..connections {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(answer).await.unwrap();
        let mut hello = [0; 64];
        stream.read_exact(&mut hello).await.unwrap();
    }
    listener.accept().await.unwrap().0
}

#[tokio::test]
async fn a_permissive_sender_goes_plain_only_when_the_peer_speaks_no_tls() {
    let ca = Ca::new("ca");
    let permissive = |ca: &Ca| tls_with("node-1", &ca.node("node-1"), &ca.pem(), |options| options.permissive = true);
    // A receiver without TLS closes at the ClientHello, with or without its HTTP/2 settings before.
    for answer in [&b""[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]] {
        let (listener, address) = listener().await;
        let (sender, peer) = (permissive(&ca), peer("node-9", address));
        let (sent, mut taken) = tokio::time::timeout(WAIT, async {
            tokio::join!(sender.connect(&peer, None), no_tls(listener, answer, 2))
        })
        .await
        .unwrap();
        sent.unwrap().write_all(b"plain").await.unwrap();
        let mut word = [0; 5];
        taken.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"plain");
    }
    // Strict ones do not.
    let (listener, address) = listener().await;
    let (strict, peer) = (tls("node-1", &ca), peer("node-9", address));
    let error = tokio::select! {
        sent = strict.connect(&peer, None) => sent.err().unwrap(),
        _ = no_tls(listener, b"", 2) => panic!("it came again"),
    };
    let line = "the peer does not speak TLS on its link port; is it run with --tls off?";
    assert_eq!((error.kind(), error.to_string()), (io::ErrorKind::InvalidData, line.to_owned()));

    // A wrong certificate is no reason, and neither is being refused.
    let (sent, _) = refusals(link(&permissive(&ca), &tls("node-9", &Ca::new("other"))).await);
    assert!(sent.1.starts_with("peer: the certificate is not signed"), "{sent:?}");
    let other = Ca::new("other");
    let sender =
        tls_with("node-1", &ca.node("node-1"), &(ca.pem() + &other.pem()), |options| options.permissive = true);
    let (sent, _) = refusals(link(&sender, &tls("node-9", &other)).await);
    assert!(sent.1.contains("UnknownCA"), "{sent:?}");
}

/// A Service with a certificate of its own by `ca`.
fn service(name: &str, ca: &Ca) -> Service {
    let mut params = node_params(name);
    params.subject_alt_names =
        vec![rcgen::SanType::DnsName(format!("{name}.shop.svc.cluster.local").try_into().unwrap())];
    let issued = ca.issue(&params);
    with_tls(name, &issued, &ca.pem())
}

fn with_tls(name: &str, issued: &Issued, roots: &str) -> Service {
    let tls = ServiceTls {
        certificates: issued.certificate.clone().into(),
        key: issued.key.clone().into(),
        roots: roots.as_bytes().to_vec(),
        problem: None,
    };
    Service {
        namespace: "shop".into(),
        name: name.into(),
        kind: ServiceKind::Headless,
        backend: None,
        tls: Some(Arc::new(tls)),
        ports: Vec::new(),
        changed: SystemTime::now(),
    }
}

#[tokio::test]
async fn services_prove_themselves_by_certificates_of_their_own() {
    let (ca, team, rival) = (Ca::new("ca"), Ca::new("team"), Ca::new("rival"));
    let mode = |options: &mut Options| options.service_domain = Some("cluster.local".into());
    let sender = tls_with("node-1", &ca.node("node-1"), &ca.pem(), mode);
    let receiver = tls_with("node-9", &ca.node("node-9"), &ca.pem(), mode);
    let (web, cart) = (service("web", &team), service("cart", &rival));
    let mut directory = directory();
    directory.put_service(web.clone());
    directory.put_service(cart.clone());
    for wanted in [&web, &cart] {
        let (peer, ..) = works(link_to("node-9", &sender, &receiver, Some(wanted), &directory).await).await;
        assert_eq!((&*peer.node, peer.authenticated, peer.service), ("node-1", true, Some(wanted.key())));
    }
    // Without a Service, and for one without a certificate, it is the nodes' links.
    let none = Service { tls: None, ..web.clone() };
    for wanted in [None, Some(&none)] {
        let (peer, ..) = works(link_to("node-9", &sender, &receiver, wanted, &directory).await).await;
        assert_eq!(peer.service, None);
    }
    // A Service that the receiver does not know: the node's certificate does not prove it.
    let (sent, _) = refusals(link_to("node-9", &sender, &receiver, Some(&service("pay", &team)), &directory).await);
    assert!(sent.1.starts_with("peer: the certificate is not signed by a root"), "{sent:?}");
    // The same name by another CA than the sender's bundle of the Service has.
    let mut forged = directory.clone();
    forged.put_service(service("web", &rival));
    let receiver_of_forged = tls_with("node-9", &ca.node("node-9"), &ca.pem(), mode);
    let (sent, _) = refusals(link_to("node-9", &sender, &receiver_of_forged, Some(&web), &forged).await);
    assert!(sent.1.starts_with("peer: the certificate is not signed by a root"), "{sent:?}");
    // The nodes' own authentication stays: a node of another CA gets no Service either.
    let stranger = tls_with("node-1", &rival.node("node-1"), &rival.pem(), mode);
    let (_, received) = refusals(link_to("node-9", &stranger, &receiver, Some(&web), &directory).await);
    assert!(received.1.starts_with("peer: the certificate is not signed by a root"), "{received:?}");
}

#[tokio::test]
async fn a_services_certificate_is_replaced_alone_and_a_broken_one_is_not_taken() {
    let (ca, team) = (Ca::new("ca"), Ca::new("team"));
    let mode = |options: &mut Options| options.service_domain = Some("cluster.local".into());
    let sender = tls_with("node-1", &ca.node("node-1"), &ca.pem(), mode);
    let receiver = tls_with("node-9", &ca.node("node-9"), &ca.pem(), mode);
    let (web, cart) = (service("web", &team), service("cart", &team));
    let mut first = directory();
    first.put_service(web.clone());
    first.put_service(cart.clone());
    works(link_to("node-9", &sender, &receiver, Some(&web), &first).await).await;
    works(link_to("node-9", &sender, &receiver, Some(&cart), &first).await).await;

    // Everything of web is broken now: both ends keep what was good.
    let broken = with_tls("web", &Issued { certificate: "?".to_owned(), key: "?".to_owned() }, "?");
    let mut second = first.clone();
    second.put_service(broken.clone());
    works(link_to("node-9", &sender, &receiver, Some(&broken), &second).await).await;
    works(link_to("node-9", &sender, &receiver, Some(&cart), &second).await).await;

    // A new CA for web: the old bundle does not verify it, the new one does; cart goes on.
    let renewed = service("web", &Ca::new("team, next year"));
    let mut third = second.clone();
    third.put_service(renewed.clone());
    works(link_to("node-9", &sender, &receiver, Some(&renewed), &third).await).await;
    let (sent, _) = refusals(link_to("node-9", &sender, &receiver, Some(&web), &third).await);
    assert!(sent.1.starts_with("peer: the certificate is not signed by a root"), "{sent:?}");
    works(link_to("node-9", &sender, &receiver, Some(&cart), &third).await).await;

    // The node's own renewal is in the Services' handshakes, too.
    receiver.certificates.install(material("node-9", &ca.node("node-9"), &ca.pem()), "test");
    sender.certificates.install(material("node-1", &ca.node("node-1"), &ca.pem()), "test");
    works(link_to("node-9", &sender, &receiver, Some(&renewed), &third).await).await;

    // One that was never good is refused in words.
    let fresh = tls_with("node-1", &ca.node("node-1"), &ca.pem(), mode);
    let (listener, address) = listener().await;
    let error = fresh.connect(&peer("node-9", address), Some(&broken)).await.err().unwrap().to_string();
    let line = "the certificate of Service shop/web cannot be used: the trust bundle has no certificate; it must have the CA's certificate in PEM";
    assert_eq!(error, line);
    drop(listener);
    // And a certificate for another name is broken, too.
    let misnamed = Service { name: "web2".into(), ..web.clone() };
    let mut fourth = directory();
    fourth.put_service(misnamed.clone());
    let (_, received) = refusals(link_to("node-9", &sender, &receiver, Some(&misnamed), &fourth).await);
    let line = "the certificate of Service shop/web2 cannot be used: the certificate is not for the name web2.shop.svc.cluster.local";
    assert_eq!(received.1, line);
}

/// It becomes good by time alone: no change of its Secret tells.
#[tokio::test]
async fn a_services_certificate_is_used_when_its_time_has_come() {
    let (ca, team) = (Ca::new("ca"), Ca::new("team"));
    let mut params = node_params("web");
    params.subject_alt_names = vec![rcgen::SanType::DnsName("web.shop.svc.cluster.local".try_into().unwrap())];
    params.not_before = (SystemTime::now() + Duration::from_secs(600)).into();
    let web = with_tls("web", &team.issue(&params), &team.pem());
    let mut directory = directory();
    directory.put_service(web.clone());
    let clock = Clock::now();
    let at_clock = |node: &str| {
        let certificates = Certificates::new(id(node));
        certificates.install(material(node, &ca.node(node), &ca.pem()), "test");
        let options = Options { service_domain: Some("cluster.local".into()), ..options(node) };
        Tls::at(certificates, options, Arc::clone(&clock) as _)
    };
    let (sender, receiver) = (at_clock("node-1"), at_clock("node-9"));
    for _ in 0..2 {
        let (_, received) = refusals(link_to("node-9", &sender, &receiver, Some(&web), &directory).await);
        assert!(received.1.contains("shop/web cannot be used: the certificate is not valid before"), "{received:?}");
    }
    clock.forward(Duration::from_secs(601));
    works(link_to("node-9", &sender, &receiver, Some(&web), &directory).await).await;
}

#[test]
fn only_full_names_of_services_ask_for_their_certificates() {
    let services = Services::new("cluster.local".into());
    assert_eq!(services.key_of("Web.shop.svc.cluster.local").as_deref(), Some("shop/web"));
    for name in [
        "node-9",
        "web.shop.svc",
        "web.shop.svc.other.local",
        "a.web.shop.svc.cluster.local",
        ".svc.cluster.local",
        "web.shopsvc.cluster.local",
    ] {
        assert_eq!(services.key_of(name), None, "{name}");
    }
}
