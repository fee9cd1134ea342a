//! What leaves the cluster, and what does not: a world of the tests' own, in which documentation addresses are hosts and names
//! resolve to whatever an attacker would like.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Version};
use posthouse_model::directory::Node as NodeObject;
use posthouse_model::{Authority, Directory, ServiceKind, Unresolved};
use posthouse_proxy::egress::Work;
use posthouse_proxy::{Config, Egress, Outside};
use tokio::net::TcpStream;

use crate::corpus;
use crate::harness::{A, B, End, H2, Mesh, Pod, Svc, Wire};
use crate::ssrf::{Canary, expected, put_cluster, try_clients};

/// Names with their answers, each one used once and the last for good; addresses with the listener that stands for each.
#[derive(Debug, Default)]
pub(crate) struct World {
    names: Mutex<HashMap<&'static str, VecDeque<Vec<IpAddr>>>>,
    hosts: Mutex<HashMap<IpAddr, SocketAddr>>,
    /// What every other name resolves to.
    rest: Mutex<Vec<IpAddr>>,
    silent: bool,
    asked: Mutex<Vec<String>>,
    dialled: Mutex<Vec<SocketAddr>>,
}

impl World {
    fn name(self, name: &'static str, answers: &[&[&str]]) -> Self {
        let answers = answers.iter().map(|answer| answer.iter().map(|ip| ip.parse().unwrap()).collect()).collect();
        self.names.lock().unwrap().insert(name, answers);
        self
    }

    fn host(self, ip: &str, pod: &Pod) -> Self {
        self.hosts.lock().unwrap().insert(ip.parse().unwrap(), pod.address);
        self
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn dialled(&self) -> Vec<String> {
        self.dialled.lock().unwrap().iter().map(ToString::to_string).collect()
    }
}

impl Outside for World {
    fn resolve(&self, name: &str) -> Work<Vec<IpAddr>> {
        self.asked.lock().unwrap().push(name.to_owned());
        if self.silent {
            return Box::pin(std::future::pending());
        }
        let mut names = self.names.lock().unwrap();
        let answer = match names.get_mut(name) {
            Some(answers) if answers.len() > 1 => answers.pop_front(),
            Some(answers) => answers.front().cloned(),
            None => Some(self.rest.lock().unwrap().clone()),
        };
        let answer = answer.ok_or_else(|| io::Error::other("no such host"));
        Box::pin(std::future::ready(answer))
    }

    fn connect(&self, address: SocketAddr) -> Work<TcpStream> {
        self.dialled.lock().unwrap().push(address);
        match self.hosts.lock().unwrap().get(&address.ip()) {
            Some(listener) => Box::pin(TcpStream::connect(*listener)),
            None => Box::pin(std::future::ready(Err(io::ErrorKind::ConnectionRefused.into()))),
        }
    }
}

fn open(config: &mut Config, allow: &[&str], world: &Arc<World>) {
    let allow = allow.iter().map(|text| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))).collect();
    config.egress = Egress { allow, outside: Arc::clone(world) as _ };
}

fn mesh(allow: &[&str], world: &Arc<World>) -> Mesh {
    Mesh::with(|config| open(config, allow, world))
}

/// Every answer is used for one request only.
fn forgetful(allow: &[&str], world: &Arc<World>) -> Mesh {
    Mesh::with(|config| {
        open(config, allow, world);
        config.timeouts.egress_life = Duration::ZERO;
    })
}

const PUBLIC: &str = "203.0.113.7";

#[tokio::test]
async fn a_listed_name_is_served_over_every_kind_of_request() {
    let host = Pod::named(A, 10, "outside").await;
    let world = Arc::new(World::default().name("api.example.com", &[&[PUBLIC]]).host(PUBLIC, &host));
    let mesh = mesh(&["api.example.com"], &world);
    let mut client = Wire::connect(mesh.a.outbound).await;
    for name in ["api.example.com", "API.Example.com.", "api.example.com:80", "api.example.com:443"] {
        let answer = client.get(name, "/x?y").await;
        assert_eq!((answer.status, &*answer.text()), (200, "outside"), "{name}");
        let seen = host.seen().pop().unwrap();
        assert_eq!(
            (&seen.headers["host"], seen.uri.to_string()),
            (&http::HeaderValue::from_static(name), "/x?y".into())
        );
        assert!(seen.headers.keys().all(|field| !field.as_str().starts_with("posthouse")), "{seen:?}");
    }
    let answer = client.ask("GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n").await;
    assert_eq!(answer.text(), "outside", "origin-form");
    // HTTP/2 to the proxy is HTTP/1.1 for a host that nobody said speaks HTTP/2, and HTTP/2 for gRPC.
    let h2 = H2::connect(mesh.a.outbound).await;
    assert_eq!(h2.get("http://api.example.com/").await.unwrap().text(), "outside");
    assert_eq!(host.seen().pop().unwrap().version, Version::HTTP_11);
    let grpc = Request::post("http://api.example.com:443/a.B/C").header("content-type", "application/grpc");
    assert_eq!(h2.call(grpc.body(()).unwrap(), b"\0\0\0\0\0").await.unwrap().status, 200);
    assert_eq!(host.seen().pop().unwrap().version, Version::HTTP_2);
    // Inside a tunnel each speaks as it came.
    let mut tunnel = connect(&mesh, "api.example.com:443").await;
    assert_eq!(tunnel.ask("GET / HTTP/1.1\r\nHost: other.example\r\n\r\n").await.text(), "outside");
    let inside = H2::over(connect(&mesh, "api.example.com:443").await.stream).await;
    assert_eq!(inside.get("http://api.example.com/").await.unwrap().text(), "outside");
    assert_eq!(host.seen().pop().unwrap().version, Version::HTTP_2);
    // The address that was checked, whatever the name would be by now; nothing over links.
    let dialled = world.dialled();
    assert!(dialled.iter().all(|address| address.starts_with("203.0.113.7:")), "{dialled:?}");
    assert!(mesh.a.proxy.links().is_empty());
    assert!(world.asked().iter().all(|name| name == "api.example.com"), "{:?}", world.asked());
    assert_eq!(world.asked().len(), 1, "one lookup for them all");
}

async fn connect(mesh: &Mesh, authority: &str) -> Wire {
    let mut wire = Wire::connect(mesh.a.outbound).await;
    wire.send(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")).await;
    let head = wire.head().await;
    assert!(head.line.starts_with("HTTP/1.1 200 "), "{head:?}");
    wire
}

#[tokio::test]
async fn a_tunnel_carries_what_is_no_http_as_it_is() {
    let host = Pod::raw(A, 10, |mut wire, _| async move {
        assert_eq!(wire.exactly(5).await, b"\x16\x03\x01\x02\x00");
        wire.send("\x15\x03\x03").await;
        assert_eq!(wire.rest().await, b"bye");
    })
    .await;
    let world = Arc::new(World::default().name("api.example.com", &[&[PUBLIC]]).host(PUBLIC, &host));
    let mesh = mesh(&["*.example.com:443"], &world);
    let mut tunnel = connect(&mesh, "api.example.com:443").await;
    tunnel.send("\x16\x03\x01\x02\x00").await;
    assert_eq!(tunnel.exactly(3).await, b"\x15\x03\x03");
    tunnel.send("bye").await;
    tunnel.finish().await;
    tunnel.ended().await;
    assert_eq!(world.dialled(), ["203.0.113.7:443"]);
    host.has_ended(1).await;
}

#[tokio::test]
async fn what_is_not_listed_stays_refused_and_is_never_looked_up() {
    let world = Arc::new(World::default());
    world.rest.lock().unwrap().push(PUBLIC.parse().unwrap());
    let listed = ["api.example.com", "*.example.org:8443", "198.51.100.0/24", "[2001:db8::/32]:443"];
    let mesh = mesh(&listed, &world);
    let mut client = Wire::connect(mesh.a.outbound).await;
    let h2 = H2::connect(mesh.a.outbound).await;
    let cases = [
        ("example.com", 500, "destination_not_found"),
        ("www.api.example.com", 500, "destination_not_found"),
        ("example.org:8443", 500, "destination_not_found"),
        ("api", 500, "destination_not_found"),
        (PUBLIC, 500, "destination_not_found"),
        ("[2001:db9::1]:443", 500, "destination_not_found"),
        ("api.example.com:8443", 403, "http_request_denied"),
        ("a.example.org", 403, "http_request_denied"),
        ("198.51.100.7:22", 403, "http_request_denied"),
        ("[2001:db8::1]", 403, "http_request_denied"),
    ];
    for (host, status, token) in cases {
        let answer = client.get(host, "/").await;
        answer.is_error(status, token);
        assert!(answer.text().contains("--egress-allow") || host == "api", "{answer:?}");
        let reply = h2.get(&format!("http://{host}/")).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.text()), (status, answer.text()), "{host}");
        let connect = if host.contains("]:") || host.ends_with("43") || host.ends_with(":22") { "" } else { ":80" };
        let mut wire = Wire::connect(mesh.a.outbound).await;
        wire.ask(format!("CONNECT {host}{connect} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await.is_error(status, token);
    }
    assert_eq!((world.asked(), world.dialled()), (vec![], vec![]));
}

/// A name that was good at the check and is bad at the next: each use of an answer is a check of it.
#[tokio::test]
async fn a_name_that_is_bound_anew_to_the_inside_is_refused() {
    let host = Pod::named(A, 10, "outside").await;
    let canary = Canary::start().await;
    for inside in ["127.0.0.1", "169.254.169.254", "100.100.100.200", "127.0.61.1", "127.0.62.1", "10.96.0.10", "::1"] {
        let world = World::default().name("re.example.com", &[&[PUBLIC], &[inside]]).host(PUBLIC, &host);
        let world = Arc::new(world);
        let ports = format!("*.example.com:{}", canary.port);
        let mesh = forgetful(&[&ports], &world);
        put_cluster(&mesh);
        let name = format!("re.example.com:{}", canary.port);
        let mut client = Wire::connect(mesh.a.outbound).await;
        assert_eq!(client.get(&name, "/").await.text(), "outside");
        let dialled = world.dialled();
        for _ in 0..2 {
            let answer = client.get(&name, "/").await;
            answer.is_error(502, "destination_ip_prohibited");
            assert!(answer.text().contains(inside), "{answer:?}");
        }
        let mut wire = Wire::connect(mesh.a.outbound).await;
        let request = format!("CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n");
        wire.ask(request).await.is_error(502, "destination_ip_prohibited");
        assert_eq!(world.dialled(), dialled, "{inside}");
    }
    canary.caught_nothing().await;
}

/// One bad address among good ones would be dialled when the good ones do not answer.
#[tokio::test]
async fn one_bad_address_spoils_a_name() {
    let world = Arc::new(
        World::default()
            .name("first.example.com", &[&["127.0.0.1", PUBLIC]])
            .name("last.example.com", &[&[PUBLIC, "198.51.100.1", "2001:db8::1", "::ffff:127.0.0.1"]])
            .name("many.example.com", &[&[[PUBLIC; 40].as_slice(), &["10.2.0.5"]].concat()])
            .name("node.example.com", &[&[PUBLIC, "10.1.0.1"]])
            .name("nat64.example.com", &[&["64:ff9b::a9fe:a9fe"]]),
    );
    let mesh = mesh(&["*.example.com"], &world);
    put_cluster(&mesh);
    let mut client = Wire::connect(mesh.a.outbound).await;
    for name in ["first", "last", "many", "node", "nat64"] {
        client.get(&format!("{name}.example.com"), "/").await.is_error(502, "destination_ip_prohibited");
    }
    assert_eq!(world.dialled(), [""; 0]);
}

/// Where Nodes do not say which addresses their pods have, a private one may be a pod's: no name leads there, a listed network does.
#[tokio::test]
async fn a_name_leads_to_no_private_address_where_pod_ranges_are_unknown() {
    let host = Pod::named(A, 10, "inside").await;
    let private = ["10.77.0.9", "172.20.0.9", "192.168.7.9", "100.72.0.9", "fd77::9"];
    for (listed, status) in [(None, 502), (Some("10.77.0.0/16"), 200)] {
        let mut world = World::default().name("api.example.com", &[&[PUBLIC]]).host(PUBLIC, &host);
        for (at, ip) in private.into_iter().enumerate() {
            let name = ["a.corp.example", "b.corp.example", "c.corp.example", "d.corp.example", "e.corp.example"][at];
            world = world.name(name, &[&[ip]]).host(ip, &host);
        }
        let world = Arc::new(world);
        // The whole world is nobody's word for a private network.
        let entries: Vec<&str> =
            ["*.example.com", "*.corp.example", "0.0.0.0/0", "[::/0]"].into_iter().chain(listed).collect();
        let mesh = mesh(&entries, &world);
        let mut client = Wire::connect(mesh.a.outbound).await;
        assert_eq!(client.get("a.corp.example", "/").await.text(), "inside", "all pod ranges are known");
        mesh.update(|_, directory: &mut Directory| {
            directory.put_node(NodeObject {
                name: Arc::from("of-a-cloud"),
                addresses: std::iter::empty().collect(),
                pod_cidrs: std::iter::empty().collect(),
            });
        });
        let answer = client.get("a.corp.example", "/").await;
        assert_eq!(answer.status, status, "{answer:?}");
        for name in ["b.corp.example", "c.corp.example", "d.corp.example", "e.corp.example"] {
            let answer = client.get(name, "/").await;
            answer.is_error(502, "destination_ip_prohibited");
            assert!(answer.text().contains("list its network in --egress-allow, too"), "{answer:?}");
        }
        assert_eq!(client.get("api.example.com", "/").await.text(), "inside", "a public address is no pod's");
    }
}

/// A slice that names a listed host's address must not close the way for others, nor open one.
#[tokio::test]
async fn a_slice_does_not_close_the_way_out() {
    let host = Pod::named(A, 10, "outside").await;
    let world = Arc::new(World::default().name("api.example.com", &[&[PUBLIC]]).host(PUBLIC, &host));
    let mesh = mesh(&["api.example.com"], &world);
    let end = |ip: &str| End { is_pod: false, ..End::at(B, SocketAddr::new(ip.parse().unwrap(), 80)) };
    mesh.put(&Svc::new("squatter").end(end(PUBLIC)));
    let mut client = Wire::connect(mesh.a.outbound).await;
    assert_eq!(client.get("api.example.com", "/").await.text(), "outside");
    // But the API server's is the cluster's own.
    mesh.put(&Svc::new("kubernetes").namespace("default").end(end(PUBLIC)));
    client.get("api.example.com", "/").await.is_error(502, "destination_ip_prohibited");
}

/// What was allowed when the tunnel was opened is asked again before the dial, and what is remembered before each request.
#[tokio::test]
async fn an_address_that_becomes_a_nodes_is_dialled_no_more() {
    let host = Pod::named(A, 10, "outside").await;
    let world = Arc::new(World::default().name("api.example.com", &[&[PUBLIC]]).host(PUBLIC, &host));
    let mesh = mesh(&["api.example.com"], &world);
    let mut client = Wire::connect(mesh.a.outbound).await;
    assert_eq!(client.get("api.example.com", "/").await.text(), "outside");
    let mut tunnel = connect(&mesh, "api.example.com:443").await;
    mesh.update(|_, directory: &mut Directory| {
        directory.put_node(NodeObject {
            name: Arc::from("new"),
            addresses: [PUBLIC.parse().unwrap()].into_iter().collect(),
            pod_cidrs: std::iter::empty().collect(),
        });
    });
    client.get("api.example.com", "/").await.is_error(502, "destination_ip_prohibited");
    tunnel.send("\x16\x03\x01\x02\x00").await;
    tunnel.ended().await;
    assert_eq!(host.accepted(), 1);
}

#[tokio::test]
async fn an_external_name_is_served_when_its_target_is_listed() {
    let host = Pod::named(A, 10, "outside").await;
    let world = World::default().name("db.example.com", &[&[PUBLIC]]).name("bad.example.com", &[&["127.0.0.1"]]);
    let world = Arc::new(world.host(PUBLIC, &host));
    let mesh = mesh(&["*.example.com", "198.51.100.7"], &world);
    let external = |target: &str| mesh.put(&Svc::new("out").kind(ServiceKind::ExternalName(target.into())));
    let mut client = Wire::connect(mesh.a.outbound).await;
    external("DB.example.com");
    assert_eq!(client.get("out.demo.svc.cluster.local", "/").await.text(), "outside");
    assert_eq!(host.seen()[0].headers["host"], "out.demo.svc.cluster.local", "as the client wrote it");
    client.get("out.demo:8080", "/").await.is_error(403, "http_request_denied");
    for (target, status, token) in [
        ("bad.example.com", 502, "destination_ip_prohibited"),
        ("db.example.org", 500, "destination_not_found"),
        ("web.demo.svc.cluster.local", 500, "destination_not_found"),
        ("db.example.com:80", 500, "destination_not_found"),
        ("127.0.0.1", 500, "destination_not_found"),
        ("localhost", 500, "destination_not_found"),
    ] {
        external(target);
        client.get("out.demo", "/").await.is_error(status, token);
    }
    assert_eq!(world.dialled(), ["203.0.113.7:80"]);
}

#[tokio::test]
async fn names_of_the_cluster_never_go_out() {
    let world = Arc::new(World::default());
    world.rest.lock().unwrap().push(PUBLIC.parse().unwrap());
    let mesh = mesh(&["*.local", "*.demo", "*.example"], &world);
    let mut client = Wire::connect(mesh.a.outbound).await;
    for name in ["gone.demo.svc.cluster.local", "gone.demo.svc", "x.cluster.local", "cluster.local", "localhost"] {
        client.get(name, "/").await.is_error(500, "destination_not_found");
    }
    assert_eq!(world.asked(), [""; 0]);
    // `name.namespace` cannot be told from a domain: who lists it gets what is no Service.
    client.get("gone.demo", "/").await.is_error(502, "connection_refused");
    // A Service goes before the list.
    let pod = Pod::named(B, 10, "pod").await;
    mesh.web(&[&pod]);
    assert_eq!(client.get("web.demo", "/").await.text(), "pod");
    assert_eq!(world.asked(), ["gone.demo"]);
}

#[tokio::test]
async fn https_without_a_tunnel_is_not_sent_in_the_clear() {
    let world = Arc::new(World::default().name("api.example.com", &[&[PUBLIC]]));
    let mesh = mesh(&["api.example.com"], &world);
    let mut client = Wire::connect(mesh.a.outbound).await;
    let answer = client.ask("GET https://api.example.com/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n").await;
    answer.is_error(403, "http_request_denied");
    assert!(answer.text().contains("CONNECT"), "{answer:?}");
    let h2 = H2::connect(mesh.a.outbound).await;
    assert_eq!(h2.get("https://api.example.com/").await.unwrap().status, 403);
    assert_eq!(world.dialled(), [""; 0]);
}

#[tokio::test]
async fn lookups_that_fail_or_hang_are_told() {
    let world = Arc::new(World { silent: true, ..World::default() });
    let hanging = Mesh::with(|config| {
        open(config, &["*.example.com"], &world);
        config.timeouts.dns = Duration::from_millis(20);
    });
    let mut client = Wire::connect(hanging.a.outbound).await;
    client.get("api.example.com", "/").await.is_error(504, "dns_timeout");
    let world = World::default();
    world.names.lock().unwrap().insert("none.example.com", VecDeque::new());
    let world = Arc::new(world);
    let mesh = mesh(&["*.example.com"], &world);
    let mut client = Wire::connect(mesh.a.outbound).await;
    client.get("none.example.com", "/").await.is_error(502, "dns_error");
    let answer = client.get("empty.example.com", "/").await;
    answer.is_error(502, "dns_error");
    assert!(answer.text().contains("has no address"), "{answer:?}");
}

#[tokio::test]
async fn many_who_ask_for_one_name_share_a_lookup() {
    let host = Pod::named(A, 10, "outside").await;
    let world = Arc::new(World::default().name("api.example.com", &[&[PUBLIC]]).host(PUBLIC, &host));
    let mesh = mesh(&["api.example.com"], &world);
    let asking = (0..50).map(|_| {
        let to = mesh.a.outbound;
        tokio::spawn(async move { Wire::connect(to).await.get("api.example.com", "/").await.text() })
    });
    for asked in asking.collect::<Vec<_>>() {
        assert_eq!(asked.await.unwrap(), "outside");
    }
    assert_eq!(world.asked().len(), 1);
}

/// The whole corpus with everything open that can be opened, and a resolver that answers every name with this host.
#[tokio::test]
async fn nor_with_everything_open_does_a_client_reach_an_entry() {
    // The private networks by name: some Node of this cluster does not say where its IPv6 pods live.
    const OPEN: [&str; 6] = [
        "0.0.0.0/0:1-65535",
        "[::/0]:1-65535",
        "10.0.0.0/8:1-65535",
        "172.16.0.0/12:1-65535",
        "192.168.0.0/16:1-65535",
        "[fc00::/7]:1-65535",
    ];
    let canary = Canary::start().await;
    let world = Arc::new(World::default());
    world.rest.lock().unwrap().push([127, 0, 0, 1].into());
    let mut allow: Vec<String> = OPEN.map(str::to_owned).to_vec();
    for entry in corpus::entries() {
        // Each name's last label, as far as it is one.
        let (host, _) = entry.parts();
        let base = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
        let text = format!("*.{base}:1-65535");
        if let Ok(parsed) = text.parse::<posthouse_proxy::Allow>()
            && !parsed.is_of_cluster("cluster.local")
            && !allow.contains(&text)
        {
            allow.push(text);
        }
    }
    assert!(allow.len() > 20, "{allow:?}");
    let mesh = mesh(&allow.iter().map(String::as_str).collect::<Vec<_>>(), &world);
    put_cluster(&mesh);
    let directory = mesh.a.directory.load_full();
    try_clients(&mesh, &canary, |entry, door| match entry.verdict(door) {
        // Open, and nobody is there.
        "outside" => match door {
            "connect" | "h2-connect" => (200, ""),
            _ => (502, "connection_refused"),
        },
        // What could be a name outside is looked up, and its answer is refused.
        "unknown" if may_be_outside(&directory, entry.spelling) => expected("Loopback"),
        verdict => expected(verdict),
    })
    .await;
    let outside: Vec<IpAddr> = corpus::over("request")
        .iter()
        .filter(|entry| entry.verdict("absolute") == "outside")
        .map(|entry| entry.parts().0.parse().unwrap())
        .collect();
    let dialled = world.dialled.lock().unwrap().clone();
    assert!(dialled.iter().all(|address| outside.contains(&address.ip())), "{dialled:?}");
}

/// Whether an entry is one that the list could open, as far as the directory goes: a whole name or an address that it does not
/// know at all.
fn may_be_outside(directory: &Directory, spelling: &str) -> bool {
    let authority = Authority::parse(spelling).unwrap();
    match directory.resolve(&authority, 80, Some("shop"), "cluster.local") {
        Err(Unresolved::UnknownAddress { .. }) => true,
        Err(Unresolved::UnknownName { name, .. }) => {
            let name = name.to_ascii_lowercase();
            name.contains('.') && !name.ends_with(".svc") && !format!(".{name}").ends_with(".cluster.local")
        }
        _ => false,
    }
}
