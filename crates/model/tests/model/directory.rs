//! The directory's indexes against a model that has none: it keeps what was put, in order, and walks over all of it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use posthouse_model::{
    Directory, DirectoryHandle, EndpointSet, EndpointState, Node, Peer, Pod, PodRef, Service, ServiceKind,
};
use proptest::prelude::*;

use crate::fixture::{self, cluster_ip, node, service};

#[derive(Clone, Debug)]
enum Op {
    /// Name, cluster addresses, endpoints of two ports.
    PutService(u8, Vec<u8>, [Vec<u8>; 2]),
    RemoveService(u8),
    PutNode(u8, Vec<u8>),
    RemoveNode(u8),
    /// Uid, addresses, host network.
    PutPod(u8, Vec<u8>, bool),
    RemovePod(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let few = || prop::collection::vec(0_u8..5, 0..3);
    let op = prop_oneof![
        (0_u8..4, few(), [few(), few()]).prop_map(|(n, ips, ports)| Op::PutService(n, ips, ports)),
        (0_u8..4).prop_map(Op::RemoveService),
        (0_u8..3, few()).prop_map(|(n, ips)| Op::PutNode(n, ips)),
        (0_u8..3).prop_map(Op::RemoveNode),
        (0_u8..4, few(), prop::bool::weighted(0.2)).prop_map(|(n, ips, host)| Op::PutPod(n, ips, host)),
        (0_u8..4).prop_map(Op::RemovePod),
    ];
    prop::collection::vec(op, 0..40)
}

/// What was put and not removed, the latest last.
#[derive(Default)]
struct Naive {
    services: Vec<Arc<Service>>,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
}

fn ip(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn ips(list: &[u8]) -> impl Iterator<Item = IpAddr> {
    list.iter().map(|n| ip(*n))
}

fn make_pod(n: u8, addresses: &[u8], host_network: bool) -> Pod {
    let name: Arc<str> = format!("pod-{n}").into();
    Pod {
        id: PodRef { namespace: "shop".into(), name: Arc::clone(&name), uid: name },
        service_account: "default".into(),
        node: "n1".into(),
        addresses: ips(addresses).collect(),
        host_network,
    }
}

fn apply(op: &Op, directory: &mut Directory, naive: &mut Naive) {
    match op {
        Op::PutService(n, cluster, ports) => {
            let addresses =
                ports.each_ref().map(|list| list.iter().map(|n| format!("{}:80", ip(*n))).collect::<Vec<_>>());
            let pods = addresses.each_ref().map(|list| list.iter().map(|a| fixture::pod(a)).collect::<Vec<_>>());
            let made = service(
                &Directory::default(),
                &format!("shop/s{n}"),
                ServiceKind::ClusterIp(ips(cluster).collect()),
                &[(80, &pods[0]), (81, &pods[1])],
            );
            naive.services.retain(|s| s.name != made.name);
            naive.services.push(Arc::new(made.clone()));
            directory.put_service(made);
        }
        Op::RemoveService(n) => {
            naive.services.retain(|s| *s.name != *format!("s{n}"));
            directory.remove_service(&format!("shop/s{n}"));
        }
        Op::PutNode(n, addresses) => {
            let made = Node {
                name: format!("n{n}").into(),
                addresses: ips(addresses).collect(),
                pod_cidrs: [].into_iter().collect(),
            };
            naive.nodes.retain(|x| x.name != made.name);
            naive.nodes.push(made.clone());
            directory.put_node(made);
        }
        Op::RemoveNode(n) => {
            naive.nodes.retain(|x| *x.name != *format!("n{n}"));
            directory.remove_node(&format!("n{n}"));
        }
        Op::PutPod(n, addresses, host) => {
            let made = make_pod(*n, addresses, *host);
            naive.pods.retain(|p| p.id.uid != made.id.uid);
            naive.pods.push(made.clone());
            directory.put_pod(made);
        }
        Op::RemovePod(n) => {
            naive.pods.retain(|p| *p.id.uid != *format!("pod-{n}"));
            directory.remove_pod(&format!("pod-{n}"));
        }
    }
}

fn compare(directory: &Directory, naive: &Naive) {
    let endpoints = || {
        naive
            .services
            .iter()
            .flat_map(|s| s.ports.iter().flat_map(move |p| p.endpoints.all().iter().map(move |e| (s, e))))
    };
    let size = directory.size();
    assert_eq!((size.services, size.nodes, size.pods), (naive.services.len(), naive.nodes.len(), naive.pods.len()));
    assert_eq!(size.endpoints, endpoints().count());
    for service in &naive.services {
        let got = directory.service(&service.key()).unwrap();
        assert!(got.ports.iter().zip(&service.ports).all(|(a, b)| Arc::ptr_eq(&a.endpoints, &b.endpoints)));
    }
    for n in 0..6 {
        let ip = ip(n);
        let owner =
            naive.services.iter().rfind(|s| matches!(&s.kind, ServiceKind::ClusterIp(ips) if ips.contains(&ip)));
        assert_eq!(
            directory.service_by_cluster_ip(ip).map(|s| &s.name),
            owner.map(|s| &s.name),
            "cluster address {ip}"
        );
        let owner = naive.nodes.iter().rfind(|x| x.addresses.contains(&ip));
        assert_eq!(directory.node_by_ip(ip).map(|x| &x.name), owner.map(|x| &x.name), "node address {ip}");
        let owner = naive.pods.iter().rfind(|p| !p.host_network && p.addresses.contains(&ip));
        assert_eq!(directory.pod_by_ip(ip).map(|p| &p.id), owner.map(|p| &p.id), "pod address {ip}");
        let at = SocketAddr::new(ip, 80);
        let mut got: Vec<_> =
            directory.endpoints_at(at).iter().map(|(key, e)| (key.to_string(), Arc::as_ptr(e))).collect();
        let mut want: Vec<_> =
            endpoints().filter(|(_, e)| e.address == at).map(|(s, e)| (s.key().to_string(), Arc::as_ptr(e))).collect();
        got.sort();
        want.sort();
        assert_eq!(got, want, "endpoints at {at}");
        let mut got: Vec<_> = directory.services_at_ip(ip).iter().map(ToString::to_string).collect();
        let mut want: Vec<_> =
            endpoints().filter(|(_, e)| e.address.ip() == ip).map(|(s, _)| s.key().to_string()).collect();
        got.sort();
        want.sort();
        want.dedup();
        assert_eq!(got, want, "Services at {ip}");
    }
}

proptest! {
    #[test]
    fn the_indexes_say_what_a_walk_over_everything_says(ops in ops()) {
        let (mut directory, mut naive) = (Directory::default(), Naive::default());
        for op in &ops {
            let before = directory.clone();
            let size = before.size();
            apply(op, &mut directory, &mut naive);
            compare(&directory, &naive);
            prop_assert_eq!(before.size(), size, "an older snapshot does not change");
        }
        let (keys, nodes, pods): (Vec<_>, Vec<_>, Vec<_>) = (
            directory.services().map(|s| s.key()).collect(),
            directory.nodes().map(|n| Arc::clone(&n.name)).collect(),
            directory.pods().map(|p| Arc::clone(&p.id.uid)).collect(),
        );
        keys.iter().for_each(|key| directory.remove_service(key));
        nodes.iter().for_each(|name| directory.remove_node(name));
        pods.iter().for_each(|uid| directory.remove_pod(uid));
        compare(&directory, &Naive::default());
    }
}

#[test]
fn an_address_that_is_used_again_is_the_new_pods_whatever_comes_late() {
    let mut d = Directory::default();
    let address = ip(1);
    d.put_pod(make_pod(1, &[1], false));
    d.put_pod(make_pod(2, &[1], false));
    assert_eq!(&*d.pod_by_ip(address).unwrap().id.uid, "pod-2");
    d.remove_pod("pod-1");
    assert_eq!(
        &*d.pod_by_ip(address).unwrap().id.uid,
        "pod-2",
        "the old pod's end comes after the new one's beginning"
    );

    // A last update of a pod that has ended takes the address for a moment; its end gives it back.
    d.put_pod(make_pod(1, &[1], false));
    d.remove_pod("pod-1");
    assert_eq!(&*d.pod_by_ip(address).unwrap().id.uid, "pod-2");

    d.put_pod(make_pod(2, &[2], false));
    assert!(d.pod_by_ip(address).is_none() && d.pod_by_ip(ip(2)).is_some(), "a pod may change its address");
    d.put_pod(make_pod(2, &[2], true));
    assert!(d.pod_by_ip(ip(2)).is_none() && d.pod("pod-2").is_some(), "a host-network pod is not found by address");
}

#[test]
fn a_cluster_address_goes_back_to_the_service_that_still_has_it() {
    let mut d = Directory::default();
    for key in ["shop/a", "shop/b"] {
        d.put_service(service(&Directory::default(), key, cluster_ip(&["10.96.0.1"]), &[]));
    }
    let owner = |d: &Directory| d.service_by_cluster_ip("10.96.0.1".parse().unwrap()).map(|s| s.key().to_string());
    assert_eq!(owner(&d).as_deref(), Some("shop/b"));
    d.remove_service("shop/b");
    assert_eq!(owner(&d).as_deref(), Some("shop/a"));
    d.put_service(service(&Directory::default(), "shop/a", ServiceKind::Headless, &[]));
    assert_eq!(owner(&d), None);
}

#[test]
fn statistics_are_found_by_address_and_uid() {
    let mut d = Directory::default();
    let web =
        service(&Directory::default(), "shop/web", ServiceKind::Headless, &[(80, &[fixture::pod("10.2.0.5:80")])]);
    let stats = Arc::clone(&web.ports[0].endpoints.all()[0].stats);
    d.put_service(web);
    let address = "10.2.0.5:80".parse().unwrap();
    assert!(Arc::ptr_eq(&d.stats_for(address, "10.2.0.5:80").unwrap(), &stats));
    assert!(d.stats_for(address, "another pod").is_none(), "a new pod at the same address begins anew");
    assert!(d.stats_for("10.2.0.5:81".parse().unwrap(), "10.2.0.5:80").is_none());
}

#[test]
fn terminating_endpoints_are_used_only_when_nothing_else_is_left() {
    let usable = |states: &[EndpointState]| -> Vec<EndpointState> {
        let endpoints = states.iter().enumerate().map(|(n, state)| {
            let address = format!("10.2.0.{}:80", 100 - n);
            fixture::Pod { state: *state, ..fixture::pod(&address) }.endpoint(&Directory::default())
        });
        EndpointSet::new(endpoints.collect()).usable().iter().map(|e| e.state).collect()
    };
    use EndpointState::{Draining, NotReady, Ready};
    assert_eq!(usable(&[Draining, Ready, NotReady, Ready]), [Ready, Ready]);
    assert_eq!(usable(&[NotReady, Draining, Draining]), [Draining, Draining]);
    assert_eq!(usable(&[NotReady]), []);
    assert_eq!(usable(&[]), []);
}

#[test]
fn publishing_counts_versions_and_wakes_those_that_wait() {
    let handle = DirectoryHandle::default();
    let mut changed = handle.subscribe();
    let old = handle.load_full();
    let mut next = (*old).clone();
    next.put_node(node("n1", &["10.1.0.1"], &[]));
    next.set_peers([Peer { node: "n1".into(), address: "10.1.0.1:4141".parse().unwrap(), ready: true }]);
    handle.publish(next);
    assert!(changed.has_changed().unwrap());
    assert_eq!(*changed.borrow_and_update(), old.version + 1);
    assert_eq!(handle.load().version, old.version + 1);
    assert!(old.node("n1").is_none() && handle.load().node("n1").is_some() && handle.load().peer("n1").is_some());
}
