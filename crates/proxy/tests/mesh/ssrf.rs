//! The corpus of `crates/model/tests/data/ssrf` over every way into a running proxy: each entry is answered by the error that
//! it should have, and nothing is dialled. Listeners on every address of this host count what comes nevertheless.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use posthouse_model::directory::Node as NodeObject;
use posthouse_model::{Directory, EndpointState, ServiceKind};
use posthouse_proxy::MissingPeer;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

use crate::corpus::{self, Entry};
use crate::harness::{A, B, End, Frames, Mesh, Outcome, Pod, Svc, Wire, pod_ip};

/// Takes connections on one port of all addresses of this host and counts them.
pub(crate) struct Canary {
    pub(crate) port: u16,
    caught: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Canary {
    pub(crate) async fn start() -> Self {
        let v4 = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = v4.local_addr().unwrap().port();
        let mut listeners = vec![v4];
        // Not every machine has IPv6; the answers are asserted all the same.
        if let Ok(socket) = TcpSocket::new_v6() {
            let only_v6 = socket2::SockRef::from(&socket).set_only_v6(true);
            if only_v6.is_ok() && socket.bind(SocketAddr::new(IpAddr::from([0u16; 8]), port)).is_ok() {
                listeners.push(socket.listen(64).unwrap());
            }
        }
        let caught = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for listener in listeners {
            let caught = Arc::clone(&caught);
            tasks.spawn(async move {
                while listener.accept().await.is_ok() {
                    caught.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self { port, caught, _tasks: tasks }
    }

    /// Asserts that nothing came so far, and that it would have been seen.
    pub(crate) async fn caught_nothing(&self) {
        // Connections are taken in their order, so this one is the first only if there was none before.
        let own = Wire::connect(SocketAddr::new([127, 0, 0, 1].into(), self.port)).await;
        crate::harness::eventually("the canary", || self.caught.load(Ordering::SeqCst) > 0).await;
        assert_eq!(self.caught.load(Ordering::SeqCst), 1, "something was dialled");
        drop(own);
        self.caught.store(0, Ordering::SeqCst);
    }
}

/// The cluster of the corpus around the two nodes of the harness; the client is a pod of `shop` on node-a.
pub(crate) fn put_cluster(mesh: &Mesh) {
    let ips = |list: &[&str]| list.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect();
    let cluster_ip = |list: &[&str]| ServiceKind::ClusterIp(list.iter().map(|ip| ip.parse().unwrap()).collect());
    mesh.update(|_, directory: &mut Directory| {
        directory.put_node(NodeObject {
            name: Arc::from("n1"),
            addresses: ips(&["10.1.0.1", "fd01::1"]),
            pod_cidrs: ["10.2.0.0/24", "fd02::/64"].iter().map(|cidr| cidr.parse().unwrap()).collect(),
        });
    });
    let end = |address: &str| End::at("n1", address.parse().unwrap());
    let svc = |name| Svc::new(name).namespace("shop");
    let web = || svc("web").kind(cluster_ip(&["10.96.0.10", "fd96::10"])).end(end("10.2.0.5:8080"));
    mesh.put(&web().end(end("[fd02::5]:8080")));
    mesh.put(&svc("db").kind(ServiceKind::Headless).port(5432).end(end("10.2.0.20:15432")));
    mesh.put(&svc("none").kind(cluster_ip(&["10.96.0.12"])).no_port());
    mesh.pod(A, CLIENT.into(), "shop");
}

const CLIENT: [u8; 4] = [127, 0, 61, 20];

/// Status and token of a verdict at a client's door.
pub(crate) fn expected(verdict: &str) -> (u16, &'static str) {
    match verdict {
        "syntax" => (400, "http_request_error"),
        "unknown" | "outside" => (500, "destination_not_found"),
        _ => (502, "destination_ip_prohibited"),
    }
}

/// The spelling as it is, and with the canary's port where it has none; each with a port if one is needed.
fn variants(entry: &Entry, canary: &Canary, needs_port: bool) -> Vec<String> {
    let text = entry.spelling;
    if text.ends_with(' ') || text.rsplit(']').next().is_some_and(|end| end.contains(':')) {
        return vec![text.to_owned()];
    }
    let with_canary = format!("{text}:{}", canary.port);
    vec![if needs_port { format!("{text}:80") } else { text.to_owned() }, with_canary]
}

/// Asks over HTTP/1.1 and says what came back.
async fn over_http1(mesh: &Mesh, request: String) -> (u16, String) {
    let mut wire = Wire::connect_from(CLIENT.into(), mesh.a.outbound).await;
    let answer = wire.ask(request).await;
    let proxy_status = answer.head.all("proxy-status").first().copied().unwrap_or_default();
    (answer.status, token(proxy_status).to_owned())
}

fn token(proxy_status: &str) -> &str {
    proxy_status.strip_prefix("posthouse; error=").and_then(|rest| rest.split(';').next()).unwrap_or_default()
}

async fn over_http2(mesh: &Mesh, fields: &[(&[u8], &[u8])]) -> Outcome {
    let wire = Wire::connect_from(CLIENT.into(), mesh.a.outbound).await;
    let mut client = Frames::over(wire, &[]).await;
    client.headers(1, fields, true).await;
    client.outcome(1).await
}

/// Every entry at the doors where a client names a destination. `verdict` may judge otherwise than the corpus.
pub(crate) async fn try_clients(
    mesh: &Mesh,
    canary: &Canary,
    judge: impl Fn(&Entry, &'static str) -> (u16, &'static str),
) {
    // All of them, so that one look shows what a change has done.
    let mut wrong = Vec::new();
    for entry in corpus::over("request") {
        for host in variants(&entry, canary, false) {
            let absolute = format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let origin = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            for (door, request) in [("absolute", absolute), ("origin", origin)] {
                let (got, wanted) = (over_http1(mesh, request).await, judge(&entry, door));
                if (got.0, &*got.1) != wanted {
                    wrong.push(format!("{door} '{host}': {got:?} instead of {wanted:?}"));
                }
            }
            let fields: [(&[u8], &[u8]); 4] =
                [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", host.as_bytes()), (b":path", b"/")];
            let (got, wanted) = (over_http2(mesh, &fields).await, judge(&entry, "h2").0);
            if !is_outcome(got, wanted) {
                wrong.push(format!("h2 '{host}': {got:?} instead of {wanted}"));
            }
        }
        for host in variants(&entry, canary, true) {
            let request = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let (got, wanted) = (over_http1(mesh, request).await, judge(&entry, "connect"));
            if (got.0, &*got.1) != wanted {
                wrong.push(format!("connect '{host}': {got:?} instead of {wanted:?}"));
            }
            let fields: [(&[u8], &[u8]); 2] = [(b":method", b"CONNECT"), (b":authority", host.as_bytes())];
            let (got, wanted) = (over_http2(mesh, &fields).await, judge(&entry, "h2-connect").0);
            if !is_outcome(got, wanted) {
                wrong.push(format!("h2-connect '{host}': {got:?} instead of {wanted}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    canary.caught_nothing().await;
}

/// h2 itself ends a stream or connection whose fields cannot be a URI; a tunnel whose far end cannot be had breaks off.
fn is_outcome(outcome: Outcome, status: u16) -> bool {
    if status == 200 {
        return outcome == Outcome::Reset;
    }
    let by_h2 = status == 400 && matches!(outcome, Outcome::Reset | Outcome::Connection);
    by_h2 || outcome == Outcome::Answered(status)
}

#[tokio::test]
async fn no_client_reaches_an_entry_of_the_corpus() {
    let canary = Canary::start().await;
    let mesh = Mesh::start();
    put_cluster(&mesh);
    try_clients(&mesh, &canary, |entry, door| expected(entry.verdict(door))).await;
}

/// Inside a tunnel the authority is only a Host field: the tunnel's own target gets the request, or nobody does.
#[tokio::test]
async fn inside_a_tunnel_an_entry_leads_nowhere_else() {
    let canary = Canary::start().await;
    for node in [A, B] {
        let pod = Pod::named(node, 10, "pod").await;
        let mesh = Mesh::start();
        put_cluster(&mesh);
        mesh.web(&[&pod]);
        let mut wrong = Vec::new();
        for entry in corpus::over("request") {
            for host in variants(&entry, &canary, false) {
                let mut wire = Wire::connect_from(CLIENT.into(), mesh.a.outbound).await;
                wire.send("CONNECT web.demo:80 HTTP/1.1\r\nHost: web.demo:80\r\n\r\n").await;
                assert!(wire.head().await.line.starts_with("HTTP/1.1 200 "));
                let answer = wire.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
                let wanted = if entry.verdict("tunnel") == "syntax" { 400 } else { 200 };
                if answer.status != wanted || (wanted == 200) != (answer.text() == "pod") {
                    wrong.push(format!("tunnel '{host}': {} instead of {wanted}", answer.status));
                }
                // HTTP/2 inside, and in it a CONNECT that would open another way.
                let mut wire = Wire::connect_from(CLIENT.into(), mesh.a.outbound).await;
                wire.send("CONNECT web.demo:80 HTTP/1.1\r\nHost: web.demo:80\r\n\r\n").await;
                assert!(wire.head().await.line.starts_with("HTTP/1.1 200 "));
                let mut client = Frames::over(wire, &[]).await;
                client.headers(1, &[(b":method", b"CONNECT"), (b":authority", host.as_bytes())], true).await;
                let outcome = client.outcome(1).await;
                let refused = matches!(outcome, Outcome::Answered(400 | 403) | Outcome::Reset | Outcome::Connection);
                assert!(refused, "CONNECT '{host}' inside a tunnel: {outcome:?}");
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        canary.caught_nothing().await;
    }
}

/// Endpoints that users wrote: refused when they enter the directory, and again on the way if they had come in.
#[tokio::test]
async fn no_endpoint_slice_leads_to_an_entry() {
    let canary = Canary::start().await;
    for missing_peer in [MissingPeer::Fail, MissingPeer::Direct] {
        let mesh = Mesh::with(|config| config.missing_peer = missing_peer);
        put_cluster(&mesh);
        let mut client = Wire::connect_from(CLIENT.into(), mesh.a.outbound).await;
        let mut tried = 0;
        for entry in corpus::over("slice").iter().filter(|entry| entry.is_refused_address()) {
            let (host, port) = entry.parts();
            let ip: IpAddr = host.parse().unwrap();
            for port in [port.unwrap_or(80), canary.port] {
                // On this node, behind a link, and on a node without a proxy.
                for node in [A, B, "n1"] {
                    for checked in [true, false] {
                        let end = End { checked, is_pod: false, ..End::at(node, SocketAddr::new(ip, port)) };
                        mesh.put(&Svc::new("victim").end(end));
                        let answer = client.get("victim.demo", "/").await;
                        let token = token(answer.head.field("proxy-status"));
                        let refused = matches!(
                            (answer.status, token),
                            (502, "destination_ip_prohibited") | (503, "destination_unavailable")
                        );
                        assert!(refused, "{} on {node}, checked {checked}: {answer:?}", entry.spelling);
                        if checked {
                            assert!(answer.text().contains("refused"), "{answer:?}");
                        }
                        tried += 1;
                    }
                }
            }
        }
        assert!(tried > 1000, "{tried} only");
        canary.caught_nothing().await;
    }
}

/// What an ExternalName names is outside, whatever it is.
#[tokio::test]
async fn no_external_name_leads_to_an_entry() {
    let canary = Canary::start().await;
    let mesh = Mesh::start();
    put_cluster(&mesh);
    let mut client = Wire::connect_from(CLIENT.into(), mesh.a.outbound).await;
    for entry in corpus::over("external") {
        mesh.put(&Svc::new("out").kind(ServiceKind::ExternalName(entry.spelling.into())));
        for host in ["out.demo".to_owned(), format!("out.demo:{}", canary.port)] {
            client.get(&host, "/").await.is_error(500, "destination_not_found");
        }
    }
    canary.caught_nothing().await;
}

/// A pod's own address in a slice is what the others are not.
#[tokio::test]
async fn an_address_that_is_allowed_is_dialled() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    put_cluster(&mesh);
    mesh.put(&Svc::new("victim").end(End::at(B, pod.address).state(EndpointState::Ready)));
    assert_eq!(Wire::connect_from(CLIENT.into(), mesh.a.outbound).await.get("victim.demo", "/").await.text(), "pod");
    assert_eq!(pod.address.ip(), pod_ip(B, 10));
}
