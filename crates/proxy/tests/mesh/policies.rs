//! Policies at the receiver: the matrix of crates/policy as real requests over a link, in HTTP/1.1, HTTP/2 and tunnels; and
//! tunnels that a changed policy ends.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use http::Request;
use posthouse_model::directory::{Endpoint, EndpointSet, PodRef, Service, ServicePort};
use posthouse_model::workload::{Checked, Checking, Claim, Identity, Workloads};
use posthouse_model::{AppProtocol, Directory, EndpointState, Pod as PodObject, ServiceKind};
use posthouse_policy::{Policy, Set, normalise_path};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::harness::{A, B, H2, Mesh, Pod, Trust, Wire, pod_ip, within};

/// Vouches for every claim: that it is checked is the subject of `trust.rs`.
struct Believing;

impl Workloads for Believing {
    fn known(&self, claim: &Claim, node: &str) -> Option<Checked> {
        let pod = PodRef { namespace: claim.namespace().into(), name: claim.pod().into(), uid: claim.uid().into() };
        let service_account = claim.service_account().into();
        Some(Checked::Verified(Arc::new(Identity { pod, service_account, node: node.into(), address: None })))
    }

    fn check<'a>(&'a self, claim: &'a Claim, node: &'a str) -> Checking<'a> {
        Box::pin(std::future::ready(self.known(claim, node).unwrap()))
    }
}

fn mesh() -> Mesh {
    Mesh::trusting(|_| {}, &Trust { vouched: true, workloads: Arc::new(Believing) })
}

fn policies(manifests: &Value) -> Set {
    let mut set = Set::default();
    for manifest in manifests.as_array().unwrap() {
        let text = |key: &str| manifest["metadata"][key].as_str().unwrap();
        set.put(Policy::read(text("namespace"), text("name"), &manifest["spec"]));
    }
    set
}

/// The client pod's place on its node.
const CLIENT: u8 = 30;

/// What one case needs in both directories: the called pod behind its Services, the calling pod, the policies.
fn stage(mesh: &Mesh, set: &Set, from: &Value, to: &Value, node: &'static str, address: SocketAddr, app: AppProtocol) {
    let text = |of: &Value, key: &str| of[key].as_str().unwrap().to_owned();
    let (namespace, service) = (text(to, "namespace"), text(to, "service"));
    let name = to["pod"].as_str().map_or_else(|| format!("{service}-0"), str::to_owned);
    let also = to["also"].as_array().into_iter().flatten().map(|also| also.as_str().unwrap().to_owned());
    let services: Vec<String> = also.chain([service]).collect();
    let called = PodRef { namespace: namespace.as_str().into(), name: name.into(), uid: "called".into() };
    mesh.update(|of, directory| {
        directory.policies = set.clone();
        let old: Vec<String> = directory.services().map(|service| service.key().to_string()).collect();
        old.iter().for_each(|key| directory.remove_service(key));
        directory.remove_pod("called");
        directory.remove_pod("calling");
        let put = |directory: &mut Directory, id: PodRef, account: &str, ip| {
            directory.put_pod(PodObject {
                id,
                service_account: account.into(),
                node: of.into(),
                addresses: [ip].into_iter().collect(),
                host_network: false,
            });
        };
        if of == node {
            put(directory, called.clone(), "default", address.ip());
        }
        if of == A && from["namespace"].is_string() {
            let id = PodRef {
                namespace: text(from, "namespace").into(),
                name: text(from, "pod").into(),
                uid: "calling".into(),
            };
            put(directory, id, &text(from, "serviceAccount"), pod_ip(A, CLIENT));
        }
        for service in &services {
            let endpoint = Endpoint {
                address,
                node: Some(node.into()),
                zone: None,
                hostname: None,
                pod: Some(called.clone()),
                state: EndpointState::Ready,
                refusal: None,
                stats: Arc::default(),
            };
            let endpoints = Arc::new(EndpointSet::new(vec![Arc::new(endpoint)]));
            directory.put_service(Service {
                namespace: namespace.as_str().into(),
                name: service.as_str().into(),
                kind: ServiceKind::Headless,
                tls: None,
                backend: None,
                ports: vec![ServicePort { name: "".into(), port: 80, app_protocol: app, endpoints }],
                changed: SystemTime::now(),
            });
        }
    });
}

/// The inside of a tunnel to the case's Service, where any Host may be asked for.
async fn tunnel(mesh: &Mesh, from: &Value, to: &Value) -> Wire {
    let caller = if from["namespace"].is_string() { pod_ip(A, CLIENT) } else { pod_ip(A, 1) };
    let mut wire = Wire::connect_from(caller, mesh.a.outbound).await;
    let (service, namespace) = (to["service"].as_str().unwrap(), to["namespace"].as_str().unwrap());
    wire.send(format!("CONNECT {service}.{namespace}:80 HTTP/1.1\r\nHost: {service}.{namespace}:80\r\n\r\n")).await;
    let head = wire.head().await;
    assert!(head.line.starts_with("HTTP/1.1 200"), "{head:?}");
    wire
}

/// What became of one request.
#[derive(Debug)]
struct Came {
    status: u16,
    proxy_status: String,
    grpc_status: Option<String>,
}

impl Came {
    fn assert(&self, case: &Value, grpc: bool, what: &str) {
        let by = case["by"].as_str().unwrap_or_default();
        match (case["expect"].as_str().unwrap(), grpc) {
            ("allow", _) => assert!(self.status == 200 && self.proxy_status.is_empty(), "{what}: {self:?}"),
            ("deny", true) => {
                assert_eq!(self.grpc_status.as_deref(), Some("7"), "{what}: {self:?}");
                assert!(self.proxy_status.contains(&format!("AuthorizationPolicy {by} ")), "{what}: {self:?}");
            }
            ("deny", false) => {
                assert_eq!(self.status, 403, "{what}: {self:?}");
                assert!(self.proxy_status.contains(&format!("AuthorizationPolicy {by} ")), "{what}: {self:?}");
            }
            ("refuse", _) => assert_eq!(self.status, 400, "{what}: {self:?}"),
            (other, _) => panic!("{other}"),
        }
    }
}

async fn http1(mut wire: Wire, request: &Value) -> Came {
    let text = |key: &str| request[key].as_str().unwrap();
    let (method, path, host) = (text("method"), text("path"), text("host"));
    wire.send(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n")).await;
    let Some(head) = wire.try_head().await else { panic!("no answer to {request}") };
    let status = head.line.split(' ').nth(1).unwrap().parse().unwrap();
    let proxy_status = head.all("proxy-status").first().copied().unwrap_or_default().to_owned();
    Came { status, proxy_status, grpc_status: None }
}

/// `None` when the client library cannot say it.
async fn http2(wire: Wire, request: &Value, grpc: bool) -> Option<Came> {
    let text = |key: &str| request[key].as_str().unwrap();
    let uri = match text("path") {
        "*" => return None,
        path => format!("http://{}{path}", text("host")),
    };
    let mut message = Request::builder().method(text("method")).uri(uri);
    if grpc {
        message = message.header("content-type", "application/grpc").header("te", "trailers");
    }
    let message = message.body(()).ok()?;
    if message.uri().path_and_query()?.as_str() != text("path") {
        return None;
    }
    let client = H2::over(wire.stream).await;
    let reply = client.call(message, b"").await.unwrap();
    let field = |name: &str| reply.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let status = reply.status.as_u16();
    Some(Came { status, proxy_status: field("proxy-status").unwrap_or_default(), grpc_status: field("grpc-status") })
}

/// Whether bytes come through.
async fn opaque(mut wire: Wire) -> bool {
    // It may be broken off before that.
    let _ = wire.stream.write_all(b"GET / HTTP/1.1\r\nHost: inside\r\n\r\n").await;
    wire.try_head().await.is_some()
}

/// Every case that a client of node-a can play, to a pod on the other node and on the same.
#[tokio::test]
async fn the_matrix_holds_for_real_requests_of_both_versions_and_for_tunnels() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy/tests/matrix");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ext| ext == "yaml"));
    files.sort();
    let mesh = mesh();
    let mut pods: HashMap<(&str, u16), Pod> = HashMap::new();
    let (mut by_http1, mut by_http2, mut by_tunnel) = (0, 0, 0);
    for file in files {
        let setting: Value = serde_norway::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let set = policies(&setting["policies"]);
        let of_file = file.file_stem().unwrap().to_str().unwrap();
        for case in setting["cases"].as_array().unwrap() {
            let part = |key: &str| if case[key].is_null() { &setting[key] } else { &case[key] };
            let (from, to, request) = (part("from"), part("to"), part("request"));
            let name = format!("{of_file}: {}", case["name"].as_str().unwrap());
            // The sender is node-a here, and its clients name a host.
            if from["node"].as_str().is_some_and(|node| node != A) || request["host"] == json!("") {
                continue;
            }
            let port = u16::try_from(to["port"].as_u64().unwrap()).unwrap();
            for node in [B, A] {
                let last = 100;
                let pod = match pods.entry((node, port)) {
                    Entry::Occupied(there) => there.into_mut(),
                    Entry::Vacant(free) => free.insert(Pod::named_at(node, last, port, "pod").await),
                };
                let what = format!("{name}, pod on {node}");
                if case["tunnel"] == json!(true) {
                    stage(&mesh, &set, from, to, node, pod.address, AppProtocol::Tcp);
                    let through = opaque(tunnel(&mesh, from, to).await).await;
                    assert_eq!(through, case["expect"] == json!("allow"), "{what}");
                    by_tunnel += 1;
                    continue;
                }
                stage(&mesh, &set, from, to, node, pod.address, AppProtocol::Unknown);
                let before = pod.seen().len();
                // In a tunnel, what does not begin as HTTP/1.1 does is no request but opaque bytes.
                if request["method"].as_str().unwrap().bytes().all(|b| b.is_ascii_uppercase()) {
                    let came = http1(tunnel(&mesh, from, to).await, request).await;
                    came.assert(case, false, &format!("{what}, HTTP/1.1"));
                    by_http1 += 1;
                }
                let grpc = of_file == "grpc";
                if let Some(came) = http2(tunnel(&mesh, from, to).await, request, grpc).await {
                    came.assert(case, grpc, &format!("{what}, HTTP/2"));
                    by_http2 += 1;
                }
                let seen = pod.seen();
                let allowed = case["expect"] == json!("allow");
                assert_eq!(seen.len() > before, allowed, "{what}: what is denied reaches no pod");
                // What was matched is what is forwarded.
                let sent = request["path"].as_str().unwrap();
                let plain = sent.split('?').next().unwrap();
                for seen in &seen[before..] {
                    let got = seen.uri.path();
                    if of_file == "paths" {
                        assert_eq!(got, normalise_path(plain).unwrap(), "{what}");
                    } else {
                        assert!(
                            got == plain || normalise_path(plain).is_ok_and(|normal| got == normal),
                            "{what}: {got}"
                        );
                    }
                }
            }
        }
    }
    assert!(by_http1 >= 2 * 100 && by_http2 >= 2 * 80 && by_tunnel >= 2 * 10, "{by_http1}, {by_http2}, {by_tunnel}");
}

/// A deny for everybody but `web`, or nothing.
fn deny(denied: bool) -> Set {
    let spec = json!({"action": "Deny", "rules": [{"from": [{"serviceAccounts": ["web"]}]}]});
    let mut set = Set::default();
    if denied {
        set.put(Policy::read("shop", "cut", &spec));
    }
    set
}

#[tokio::test]
async fn a_policy_that_comes_ends_the_tunnels_that_it_denies_and_no_others() {
    let from = json!({"namespace": "shop", "pod": "web-0", "serviceAccount": "web"});
    let to = json!({"namespace": "shop", "service": "db", "port": 0});
    for node in [B, A] {
        let pod = Pod::raw(node, 40, |mut wire, _| async move {
            while let Some(word) = wire.try_exactly(4).await {
                wire.send(word).await;
            }
        })
        .await;
        let mesh = mesh();
        stage(&mesh, &deny(false), &from, &to, node, pod.address, AppProtocol::Tcp);
        let mut kept = tunnel(&mesh, &json!("unidentified"), &to).await;
        let mut cut = tunnel(&mesh, &from, &to).await;
        for wire in [&mut kept, &mut cut] {
            wire.send("ping").await;
            assert_eq!(wire.exactly(4).await, b"ping");
        }
        // What changes beside the policies ends nothing.
        mesh.update(|_, _| {});
        cut.send("ping").await;
        assert_eq!(cut.exactly(4).await, b"ping");
        mesh.update(|_, directory| directory.policies = deny(true));
        within("the end of the denied tunnel", cut.ended()).await;
        kept.send("ping").await;
        assert_eq!(kept.exactly(4).await, b"ping", "{node}");
        assert!(!opaque(tunnel(&mesh, &from, &to).await).await, "a new one is denied");
    }
}

#[tokio::test]
async fn a_policy_that_comes_ends_the_websockets_that_it_denies() {
    let from = json!({"namespace": "shop", "pod": "web-0", "serviceAccount": "web"});
    let to = json!({"namespace": "shop", "service": "db", "port": 0});
    for node in [B, A] {
        let pod = Pod::raw(node, 41, |mut wire, _| async move {
            wire.head().await;
            wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
            while let Some(word) = wire.try_exactly(4).await {
                wire.send(word).await;
            }
        })
        .await;
        let mesh = mesh();
        stage(&mesh, &deny(false), &from, &to, node, pod.address, AppProtocol::Unknown);
        let mut client = Wire::connect_from(pod_ip(A, CLIENT), mesh.a.outbound).await;
        client.send("GET / HTTP/1.1\r\nHost: db.shop\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.line.starts_with("HTTP/1.1 101 "), "{head:?}");
        client.send("ping").await;
        assert_eq!(client.exactly(4).await, b"ping");
        mesh.update(|_, directory| directory.policies = deny(true));
        within("the end of the denied WebSocket", client.ended()).await;
    }
}

/// A pod is protected by the Services of its own namespace, whichever of its ports and whoever's Service leads there.
#[tokio::test]
async fn no_service_of_another_namespace_or_port_leads_around_a_policy() {
    let pod = Pod::named(B, 42, "pod").await;
    let mesh = mesh();
    let from = json!({"namespace": "evil", "pod": "e-0", "serviceAccount": "e"});
    let to = json!({"namespace": "shop", "service": "db", "port": 0});
    stage(&mesh, &closed(), &from, &to, B, SocketAddr::new(pod.address.ip(), 1), AppProtocol::Unknown);
    // Another's Service with a slice that names the protected pod by a port that its own Service has not.
    mesh.update(|_, directory| {
        directory.put_service(slice("evil", "way-in", pod.address, B, pod_ref("evil", "e-1")));
    });
    let mut client = Wire::connect_from(pod_ip(A, CLIENT), mesh.a.outbound).await;
    let answer = client.get("way-in.evil", "/").await;
    answer.is_error(403, "http_request_denied");
    assert!(answer.text().contains("AuthorizationPolicy shop/nobody"), "{answer:?}");
    assert_eq!(pod.accepted(), 0);
}

/// An Allow for nobody on Service `db` of namespace `shop`.
fn closed() -> Set {
    let mut set = Set::default();
    let spec = json!({"action": "Allow", "targetRefs": [{"kind": "Service", "name": "db"}], "rules": []});
    set.put(Policy::read("shop", "nobody", &spec));
    set
}

/// A Service of one endpoint whose slice is somebody's own writing.
fn slice(namespace: &str, name: &str, address: SocketAddr, node: &str, pod: PodRef) -> Service {
    let endpoint = Endpoint {
        address,
        node: Some(node.into()),
        zone: None,
        hostname: None,
        pod: Some(pod),
        state: EndpointState::Ready,
        refusal: None,
        stats: Arc::default(),
    };
    Service {
        namespace: namespace.into(),
        name: name.into(),
        kind: ServiceKind::Headless,
        tls: None,
        backend: None,
        ports: vec![ServicePort {
            name: "".into(),
            port: 80,
            app_protocol: AppProtocol::Unknown,
            endpoints: Arc::new(EndpointSet::new(vec![Arc::new(endpoint)])),
        }],
        changed: SystemTime::now(),
    }
}

fn pod_ref(namespace: &str, uid: &str) -> PodRef {
    PodRef { namespace: namespace.into(), name: uid.into(), uid: uid.into() }
}

/// A pod with two addresses is protected on both, although its Service leads to one of them only.
#[tokio::test]
async fn a_second_address_leads_around_no_policy() {
    let pod = Pod::named(B, 44, "pod").await;
    let mesh = mesh();
    let (from, to) = (json!("unidentified"), json!({"namespace": "shop", "service": "db", "port": 0}));
    stage(&mesh, &closed(), &from, &to, B, SocketAddr::new(pod_ip(B, 43), 80), AppProtocol::Unknown);
    mesh.update(|node, directory| {
        if node == B {
            directory.put_pod(PodObject {
                id: pod_ref("shop", "called"),
                service_account: "default".into(),
                node: B.into(),
                addresses: [pod_ip(B, 43), pod_ip(B, 44)].into_iter().collect(),
                host_network: false,
            });
        }
        directory.put_service(slice("evil", "way-in", pod.address, B, pod_ref("evil", "e")));
    });
    let answer = Wire::connect(mesh.a.outbound).await.get("way-in.evil", "/").await;
    answer.is_error(403, "http_request_denied");
    assert_eq!(pod.accepted(), 0);
}

/// Host-network pods share their node's address: a slice that names another pod for it changes nothing.
#[tokio::test]
async fn nobody_elses_slice_takes_a_policy_off_a_host_network_pod() {
    let pod = Pod::named(B, 1, "pod").await;
    let mesh = mesh();
    for evil_first in [true, false] {
        mesh.update(|node, directory| {
            directory.policies = closed();
            directory.remove_service("evil/way-in");
            directory.remove_service("shop/db");
            if node == B {
                directory.put_pod(PodObject {
                    id: pod_ref("shop", "host-pod"),
                    service_account: "default".into(),
                    node: B.into(),
                    addresses: [pod.address.ip()].into_iter().collect(),
                    host_network: true,
                });
            }
            let evil = slice("evil", "way-in", pod.address, B, pod_ref("evil", "e"));
            let own = slice("shop", "db", pod.address, B, pod_ref("shop", "host-pod"));
            let order = if evil_first { [evil, own] } else { [own, evil] };
            order.into_iter().for_each(|service| directory.put_service(service));
        });
        for host in ["db.shop", "way-in.evil"] {
            let answer = Wire::connect(mesh.a.outbound).await.get(host, "/").await;
            assert_eq!(answer.status, 403, "{host}, evil first: {evil_first}: {}", answer.text());
        }
    }
    assert_eq!(pod.accepted(), 0);
}

/// Conditions get the host in one form, as the lists of hosts do.
#[tokio::test]
async fn a_condition_on_the_host_is_not_evaded_by_its_spelling() {
    let pod = Pod::named(B, 45, "pod").await;
    let mesh = mesh();
    let mut set = Set::default();
    let spec = json!({"action": "Deny", "rules": [{"when": "request.host == 'db.shop'"}]});
    set.put(Policy::read("shop", "host", &spec));
    let (from, to) = (json!("unidentified"), json!({"namespace": "shop", "service": "db", "port": 0}));
    stage(&mesh, &set, &from, &to, B, pod.address, AppProtocol::Unknown);
    for host in ["db.shop", "DB.Shop", "db.shop.", "db.shop:80"] {
        let answer = Wire::connect(mesh.a.outbound).await.get(host, "/").await;
        assert_eq!(answer.status, 403, "{host}: {}", answer.text());
    }
    assert_eq!(Wire::connect(mesh.a.outbound).await.get("db.shop.svc", "/").await.status, 200);
}
