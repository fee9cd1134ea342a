//! EndpointSlices that name what is no pod: the node's own addresses and those of its bridges. Whoever may write a slice
//! would otherwise reach the kubelet, the link or anything else on the node, from the node itself.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use posthouse_model::directory::{Endpoint, EndpointSet, PodRef, Service, ServicePort};
use posthouse_model::{AppProtocol, EndpointState, Pod as PodObject, ServiceKind, address};
use posthouse_proxy::MissingPeer;
use tokio::net::TcpListener;

use super::connect;
use crate::harness::{A, B, End, Mesh, Pod, Svc, Wire, eventually, pod_ip};

/// An endpoint as discovery makes it of a slice's entry.
fn entry(address: SocketAddr, node: Option<&str>, pod: Option<PodRef>) -> Endpoint {
    Endpoint {
        address,
        node: node.map(Arc::from),
        zone: None,
        hostname: None,
        pod,
        state: EndpointState::Ready,
        refusal: None,
        stats: Arc::default(),
    }
}

fn service(namespace: &str, name: &str, app_protocol: AppProtocol, endpoint: Endpoint) -> Service {
    Service {
        namespace: Arc::from(namespace),
        name: Arc::from(name),
        kind: ServiceKind::ClusterIp(std::iter::empty().collect()),
        tls: None,
        backend: None,
        ports: vec![ServicePort {
            name: Arc::from(""),
            port: 80,
            app_protocol,
            endpoints: Arc::new(EndpointSet::new(vec![Arc::new(endpoint)])),
        }],
        changed: SystemTime::now(),
    }
}

fn named(namespace: &str, name: &str) -> PodRef {
    PodRef { namespace: Arc::from(namespace), name: Arc::from(name), uid: Arc::from(format!("{name}-uid")) }
}

/// A host-network pod on `node`.
fn on_host(id: PodRef, node: &str) -> PodObject {
    PodObject {
        id,
        service_account: Arc::from("default"),
        node: Arc::from(node),
        addresses: [pod_ip(node, 1)].into_iter().collect(),
        host_network: true,
    }
}

async fn listen(ip: IpAddr) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Asserts that nobody connected so far, by the kernel's own account.
#[track_caller]
fn untouched(listener: &TcpListener) {
    let waiting = socket2::SockRef::from(listener).accept();
    let nobody = waiting.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(nobody, "{:?} was dialled: {waiting:?}", listener.local_addr());
}

/// Asks for `host` and answers it from `listener`, which must be what is dialled for it.
async fn is_served(mut client: Wire, host: &'static str, listener: &TcpListener) {
    let mut asking = tokio::spawn(async move { client.get(host, "/").await });
    let pod = async {
        let mut pod = Wire::new(listener.accept().await.unwrap().0);
        pod.head().await;
        pod.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        pod
    };
    let _pod = tokio::select! {
        answer = &mut asking => panic!("not served: {answer:?}"),
        pod = pod => pod,
    };
    assert_eq!(asking.await.unwrap().status, 204);
}

/// The gateway address of a bridge (cni0, cilium_host) lies in the pod range and is the node itself.
#[tokio::test]
async fn an_address_of_the_pod_range_without_a_pod_is_refused() {
    for node in [A, B] {
        let (listener, address) = listen(pod_ip(node, 99)).await;
        let mesh = Mesh::start();
        let mut client = Wire::connect(mesh.a.outbound).await;
        mesh.put(&Svc::new("web").end(End { is_pod: false, ..End::at(node, address) }));
        for host in ["web.demo".to_owned(), address.to_string()] {
            let answer = client.get(&host, "/").await;
            answer.is_error(502, "destination_ip_prohibited");
            assert!(answer.text().contains("no pod's address"), "{answer:?}");
        }
        untouched(&listener);
    }
}

/// The watch of pods lags that of slices by milliseconds: the first request for a new pod must not pay for it.
#[tokio::test]
async fn a_pod_that_appears_a_moment_after_its_endpoint_is_waited_for() {
    for node in [A, B] {
        let mut served = false;
        // The wait is short, and the machine may be busy at the wrong moment: it counts that it happens at all.
        for last in 90..95 {
            let pod = Pod::named(node, last, "pod").await;
            let mesh = Mesh::start();
            mesh.put(&Svc::new("web").end(End { is_pod: false, ..End::from(&pod) }));
            let mut client = Wire::connect(mesh.a.outbound).await;
            client.send("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
            let stats = mesh.a.stats(pod.address);
            eventually("the request", || stats.requests() > 0).await;
            // Nothing tells that the wait has begun; a fifth of it is enough to get there.
            tokio::time::sleep(Duration::from_millis(100)).await;
            // News of something else do not end it.
            mesh.update(|_, _| {});
            mesh.pod(node, pod.address.ip(), "demo");
            let answer = client.answer().await;
            // In one try: a second one after a refusal would find the pod, too.
            if answer.status == 200 && stats.requests() == 1 {
                assert_eq!(answer.text(), "pod");
                served = true;
                break;
            }
        }
        assert!(served, "{node}: never waited for");
    }
}

/// A slice's author chooses the targetRef. It opened every port of the node when it named a host-network pod of
/// kube-system.
#[tokio::test]
async fn a_nodes_address_is_served_for_host_network_pods_of_the_same_namespace_only() {
    for node in [A, B] {
        let (listener, address) = listen(pod_ip(node, 1)).await;
        let mesh = Mesh::start();
        let mut client = Wire::connect(mesh.a.outbound).await;
        let refused = [
            (None, "without a pod"),
            (Some(named("kube-system", "kube-proxy")), "a pod of another namespace"),
            (Some(named("demo", "gone")), "a pod that is not there"),
            (Some(named("demo", "elsewhere")), "a pod on the other node"),
            (Some(named("demo", "plain")), "a pod without host network"),
        ];
        let put = |pod: Option<PodRef>| {
            mesh.update(|name, directory| {
                let other = if node == A { B } else { A };
                if name == node {
                    directory.put_pod(on_host(named("kube-system", "kube-proxy"), node));
                    directory.put_pod(on_host(named("demo", "web-1"), node));
                    directory.put_pod(PodObject {
                        host_network: false,
                        addresses: [pod_ip(node, 50)].into_iter().collect(),
                        ..on_host(named("demo", "plain"), node)
                    });
                } else {
                    directory.put_pod(on_host(named("demo", "elsewhere"), other));
                }
                directory.put_service(service(
                    "demo",
                    "web",
                    AppProtocol::Unknown,
                    entry(address, Some(node), pod.clone()),
                ));
            });
        };
        for (pod, what) in refused {
            put(pod);
            for host in ["web.demo".to_owned(), address.to_string()] {
                let answer = client.get(&host, "/").await;
                let status = answer.head.field("proxy-status");
                assert!(status.contains("error=destination_"), "{node} {what} as {host}: {answer:?}");
            }
            untouched(&listener);
        }
        // The author's own host-network pod is what it is for.
        put(Some(named("demo", "web-1")));
        is_served(client, "web.demo", &listener).await;
    }
}

/// Only the first of the entries for an address was looked at, so any namespace could switch another's endpoint off.
#[tokio::test]
async fn a_foreign_slice_with_the_same_address_does_not_spoil_an_endpoint() {
    for node in [A, B] {
        let (listener, address) = listen(pod_ip(node, 1)).await;
        let mesh = Mesh::start();
        mesh.update(|name, directory| {
            if name == node {
                directory.put_pod(on_host(named("demo", "web-1"), node));
            }
            let refusal = address::check(address.ip(), address.port(), false, directory).err();
            assert!(refusal.is_some());
            let foreign = Endpoint { refusal, ..entry(address, Some(node), None) };
            directory.put_service(service("evil", "spoiler", AppProtocol::Unknown, foreign));
            let endpoint = entry(address, Some(node), Some(named("demo", "web-1")));
            directory.put_service(service("demo", "web", AppProtocol::Unknown, endpoint));
            assert_eq!(&*directory.endpoints_at(address)[0].0, "evil/spoiler", "it stands first");
        });
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.get("spoiler.evil", "/").await;
        untouched(&listener);
        is_served(client, "web.demo", &listener).await;
    }
}

/// Without a node in the slice, or with one that has no proxy, an endpoint is dialled from where the client is, if that is
/// allowed: then nobody else checks that it is not the node itself, on an interface that stands in no Node object.
#[tokio::test]
async fn an_address_of_the_machine_itself_is_never_dialled_directly() {
    // A pod's address (loopback ones are all the machine's own) with a port that turns out to be a listener of the proxy.
    let mut listeners = vec![listen(pod_ip(A, 70)).await];
    let own = listeners[0].1;
    for outside in outside_addresses() {
        listeners.push(listen(outside).await);
    }
    let mesh = Mesh::with(|config| {
        config.missing_peer = MissingPeer::Direct;
        config.own_addresses = vec![own];
    });
    mesh.pod(A, own.ip(), "demo");
    // The proxies' listeners, of which the directory knows the nodes' addresses.
    let known = [mesh.a.link, mesh.a.outbound, mesh.b.link];
    for address in listeners.iter().map(|(_, address)| *address).chain(known) {
        for node in [None, Some("node-c")] {
            for app in [AppProtocol::Unknown, AppProtocol::H2c] {
                mesh.update(|_, directory| {
                    directory.put_service(service("demo", "web", app, entry(address, node, None)));
                });
                for host in ["web.demo".to_owned(), address.to_string()] {
                    let answer = Wire::connect(mesh.a.outbound).await.get(&host, "/").await;
                    let status = answer.head.field("proxy-status");
                    let refused = status.contains("error=destination_ip_prohibited")
                        || address == own && status.contains("error=proxy_loop_detected");
                    assert!(refused, "{address} on {node:?} as {host}: {answer:?}");
                }
            }
            mesh.update(|_, directory| {
                directory.put_service(service("demo", "web", AppProtocol::Tcp, entry(address, node, None)));
            });
            let mut client = Wire::connect(mesh.a.outbound).await;
            connect(&mut client).await;
            client.ended().await;
        }
    }
    for (listener, _) in &listeners {
        untouched(listener);
    }
    // A pod of this node may be dialled this way.
    let (listener, address) = listen(pod_ip(A, 71)).await;
    mesh.pod(A, address.ip(), "demo");
    mesh.update(|_, directory| {
        directory.put_service(service("demo", "web", AppProtocol::Unknown, entry(address, None, None)));
    });
    is_served(Wire::connect(mesh.a.outbound).await, "web.demo", &listener).await;
}

/// The node's ports stay closed where a host-network pod has the address and no Node object says whose it is.
#[tokio::test]
async fn a_port_of_the_nodes_own_is_not_dialled_directly_for_any_host_network_pod() {
    for outside in outside_addresses() {
        let mesh = Mesh::with(|config| config.missing_peer = MissingPeer::Direct);
        mesh.update(|_, directory| {
            let addresses = [outside].into_iter().collect();
            directory.put_pod(PodObject { addresses, ..on_host(named("demo", "web-1"), A) });
        });
        for port in address::NODE_PORTS {
            let address = SocketAddr::new(outside, port);
            mesh.update(|_, directory| {
                let endpoint = entry(address, None, Some(named("demo", "web-1")));
                directory.put_service(service("demo", "web", AppProtocol::Unknown, endpoint));
            });
            let answer = Wire::connect(mesh.a.outbound).await.get("web.demo", "/").await;
            answer.is_error(502, "destination_ip_prohibited");
        }
    }
}

/// The addresses of this machine that are not loopback, one a family; a machine may have none.
fn outside_addresses() -> Vec<IpAddr> {
    let nobody: [(IpAddr, IpAddr); 2] = [
        ([0; 4].into(), [192, 0, 2, 1].into()),
        (IpAddr::from([0; 16]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])),
    ];
    let mut addresses = Vec::new();
    for (any, nobody) in nobody {
        // Sends nothing: it only asks the kernel which address it would send from.
        let asked = UdpSocket::bind((any, 0)).and_then(|socket| {
            socket.connect((nobody, 9))?;
            socket.local_addr()
        });
        if let Ok(address) = asked
            && !address.ip().is_loopback()
        {
            addresses.push(address.ip());
        }
    }
    addresses
}
