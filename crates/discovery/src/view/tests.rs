//! The view and the translation: slices that merge, endpoints that are refused and judged anew, peers, statistics, and
//! that any order of changes ends in the directory that the final objects make.

use std::net::{IpAddr, SocketAddr};

use posthouse_model::address::Refusal;
use posthouse_model::{AppProtocol, EndpointState};
use proptest::prelude::*;

use super::*;
use crate::manifest::{self, Context, Parsed};
use crate::object::Reduced;
use crate::snapshot;

fn view() -> View {
    View::new(Arc::from("node-a"), "mesh")
}

fn read(text: &str) -> Reduced {
    match manifest::yaml(text, &mut Context::new(Arc::from("node-a"))) {
        Ok(Parsed::Object(reduced)) => *reduced,
        other => panic!("{other:?} of {text}"),
    }
}

impl View {
    fn take(&mut self, text: &str) -> Settled {
        let reduced = read(text);
        match reduced.object {
            Some(object) => self.put(reduced.key, object),
            None => self.remove(&reduced.key),
        }
        self.settle()
    }

    fn drop_object(&mut self, kind: Kind, name: &str) -> Settled {
        self.remove(&Key { kind, name: Arc::from(name) });
        self.settle()
    }

    /// Address, state and refusal of each endpoint of a Service's port.
    fn shown(&self, service: &str, port: usize) -> Vec<(String, EndpointState, Option<Refusal>)> {
        let service = self.directory().service(service).unwrap();
        let all = service.ports[port].endpoints.all();
        all.iter().map(|e| (e.address.to_string(), e.state, e.refusal)).collect()
    }
}

fn service(name: &str, ports: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: {ports}}}")
}

fn slice(name: &str, of: &str, ports: &str, endpoints: &str) -> String {
    let family = if endpoints.contains("::") { "IPv6" } else { "IPv4" };
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: {}, labels: \
         {{kubernetes.io/service-name: {of}}}}}\naddressType: {family}\nports: {ports}\nendpoints: {endpoints}",
        if of == "posthouse" { "mesh" } else { "shop" }
    )
}

fn node(name: &str, address: &str, cidr: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDR: {cidr}}}\n\
         status: {{addresses: [{{type: InternalIP, address: '{address}'}}]}}"
    )
}

fn pod(name: &str, uid: &str, ip: &str, host_network: bool) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: {uid}}}\n\
         spec: {{nodeName: node-a, hostNetwork: {host_network}}}\nstatus: {{podIP: {ip}}}"
    )
}

#[test]
fn slices_of_a_service_merge_by_port_name() {
    let mut view = view();
    view.take(&service("web", "[{name: http, port: 80}, {name: admin, port: 81, appProtocol: grpc}]"));
    view.take(&slice(
        "web-4",
        "web",
        "[{name: http, port: 8080}, {name: admin, port: 9000}]",
        "[{addresses: [10.1.0.1]}]",
    ));
    view.take(&slice(
        "web-6",
        "web",
        "[{name: http, port: 8081, appProtocol: kubernetes.io/h2c}]",
        "[{addresses: ['fd00::1']}]",
    ));
    use EndpointState::{Draining, NotReady, Ready};
    assert_eq!(
        view.shown("shop/web", 0),
        [("10.1.0.1:8080".to_owned(), Ready, None), ("[fd00::1]:8081".to_owned(), Ready, None)]
    );
    assert_eq!(view.shown("shop/web", 1), [("10.1.0.1:9000".to_owned(), Ready, None)]);
    let directory = view.directory();
    let web = directory.service("shop/web").unwrap();
    assert_eq!([web.ports[0].app_protocol, web.ports[1].app_protocol], [AppProtocol::H2c, AppProtocol::Grpc]);

    // The same address in several slices counts once, by its best state.
    let ports = "[{name: http, port: 8080}]";
    view.take(&slice("web-4", "web", ports, "[{addresses: [10.1.0.1], conditions: {ready: false}}]"));
    view.take(&slice(
        "web-5",
        "web",
        ports,
        "[{addresses: [10.1.0.1], conditions: {serving: true, terminating: true}}]",
    ));
    assert_eq!(view.shown("shop/web", 0)[1], ("10.1.0.1:8080".to_owned(), Draining, None));
    view.drop_object(Kind::EndpointSlice, "shop/web-5");
    assert_eq!(view.shown("shop/web", 0)[1], ("10.1.0.1:8080".to_owned(), NotReady, None));
    view.drop_object(Kind::EndpointSlice, "shop/web-4");
    assert_eq!(view.shown("shop/web", 0).len(), 1);
    view.drop_object(Kind::Service, "shop/web");
    assert_eq!(view.directory().size(), posthouse_model::directory::Size::default());
}

#[test]
fn two_ports_to_one_place_share_the_endpoint() {
    let mut view = view();
    view.take(&service("web", "[{name: a, port: 80}, {name: b, port: 8080}]"));
    view.take(&slice("web-1", "web", "[{name: a, port: 8080}, {name: b, port: 8080}]", "[{addresses: [10.1.0.1]}]"));
    let web = Arc::clone(view.directory().service("shop/web").unwrap());
    assert!(Arc::ptr_eq(&web.ports[0].endpoints.all()[0], &web.ports[1].endpoints.all()[0]));
    view.drop_object(Kind::Service, "shop/web");
    assert!(view.directory().endpoints_at("10.1.0.1:8080".parse().unwrap()).is_empty());
}

#[test]
fn an_unchanged_object_costs_nothing_and_a_changed_slice_its_service() {
    let mut view = view();
    let ports = "[{port: 80}]";
    for name in ["a", "b", "c"] {
        view.take(&service(name, ports));
        view.take(&slice(
            name,
            name,
            ports,
            "[{addresses: [10.1.0.1], targetRef: {kind: Pod, name: p, uid: u}}, {addresses: [10.1.0.2]}]",
        ));
    }
    let again = view.take(&slice(
        "a",
        "a",
        ports,
        "[{addresses: [10.1.0.1], targetRef: {kind: Pod, name: p, uid: u}}, {addresses: [10.1.0.2]}]",
    ));
    assert!(!again.changed && again.rebuilt == 0);
    let before = Arc::clone(&view.directory().service("shop/a").unwrap().ports[0].endpoints.all()[0]);
    before.stats.begin();
    let changed = view.take(&slice(
        "a",
        "a",
        ports,
        "[{addresses: [10.1.0.1], zone: z, targetRef: {kind: Pod, name: p, uid: u}}, {addresses: [10.1.0.2]}]",
    ));
    assert!(changed.changed && changed.rebuilt == 1);
    let after = Arc::clone(&view.directory().service("shop/a").unwrap().ports[0].endpoints.all()[0]);
    assert_eq!((after.zone.as_deref(), after.stats.in_flight()), (Some("z"), 1), "statistics are kept");
    let other = &view.directory().service("shop/b").unwrap().ports[0].endpoints.all()[0];
    assert!(Arc::ptr_eq(&other.stats, &after.stats), "and shared between the Services of one pod");
    view.take(&slice("a", "a", ports, "[{addresses: [10.1.0.1], targetRef: {kind: Pod, name: q, uid: v}}]"));
    let reborn = &view.directory().service("shop/a").unwrap().ports[0].endpoints.all()[0];
    assert_eq!(reborn.stats.in_flight(), 0, "another pod at the same address begins anew");
}

#[test]
fn endpoints_are_refused_and_judged_anew_when_nodes_and_pods_come() {
    use EndpointState::Ready;
    let mut view = view();
    let ports = "[{port: 80}]";
    for name in ["evil", "host", "local", "calm"] {
        view.take(&service(name, ports));
    }
    let at = |address: &str, refusal| vec![(address.to_owned(), Ready, refusal)];
    view.take(&slice("evil", "evil", ports, "[{addresses: [10.0.0.2]}]"));
    view.take(&slice(
        "host",
        "host",
        ports,
        "[{addresses: [10.0.0.1], nodeName: node-a, targetRef: {kind: Pod, namespace: shop, name: h, uid: h1}}]",
    ));
    view.take(&slice("local", "local", ports, "[{addresses: [127.0.1.5]}]"));
    view.take(&slice("calm", "calm", ports, "[{addresses: [10.9.0.1]}]"));
    assert_eq!(view.shown("shop/evil", 0), at("10.0.0.2:80", None), "no Node is known yet");
    assert_eq!(view.shown("shop/local", 0), at("127.0.1.5:80", Some(Refusal::Loopback)));

    let came = view.take(&node("node-b", "10.0.0.2", "10.2.0.0/24"));
    assert_eq!(came.rebuilt, 2, "its address is one endpoint's, and loopback asks for podCIDRs");
    assert_eq!(view.shown("shop/evil", 0), at("10.0.0.2:80", Some(Refusal::Node)));
    view.take(&node("node-a", "10.0.0.1", "127.0.1.0/24"));
    assert_eq!(view.shown("shop/local", 0), at("127.0.1.5:80", None));
    assert_eq!(view.shown("shop/host", 0), at("10.0.0.1:80", Some(Refusal::Node)), "no such own pod is known");

    // Neither another pod, nor one without the host network, nor one of the same uid and another name will do.
    for own in [pod("x", "x1", "10.0.0.1", true), pod("h", "h1", "10.0.0.1", false), pod("x", "h1", "10.0.0.1", true)] {
        view.take(&own);
        assert_eq!(view.shown("shop/host", 0), at("10.0.0.1:80", Some(Refusal::Node)), "{own}");
        for name in ["shop/x", "shop/h"] {
            view.drop_object(Kind::Pod, name);
        }
    }
    let came = view.take(&pod("h", "h1", "10.0.0.1", true));
    assert_eq!((view.shown("shop/host", 0), came.rebuilt), (at("10.0.0.1:80", None), 1));
    assert_eq!(view.take(&pod("plain", "p1", "10.1.0.9", false)).rebuilt, 0);
    view.drop_object(Kind::Pod, "shop/h");
    assert_eq!(view.shown("shop/host", 0), at("10.0.0.1:80", Some(Refusal::Node)));
    view.drop_object(Kind::Node, "node-b");
    assert_eq!(view.shown("shop/evil", 0), at("10.0.0.2:80", None));

    // On another node the slice's word counts, but not for ports of the node's own.
    view.take(&node("node-b", "10.0.0.2", "10.2.0.0/24"));
    let far = "[{addresses: [10.0.0.2], nodeName: node-b, targetRef: {kind: Pod, name: f, uid: f1}}]";
    view.take(&slice("evil", "evil", ports, far));
    assert_eq!(view.shown("shop/evil", 0), at("10.0.0.2:80", None));
    view.take(&slice("evil", "evil", "[{port: 10250}]", far));
    assert_eq!(view.shown("shop/evil", 0), at("10.0.0.2:10250", Some(Refusal::NodePort)));
    view.take(&slice("evil", "evil", ports, &far.replace("nodeName: node-b", "nodeName: node-a")));
    assert_eq!(view.shown("shop/evil", 0), at("10.0.0.2:80", Some(Refusal::Node)), "not that node's address");
}

#[test]
fn peers_are_one_a_node_at_the_nodes_own_address() {
    let mut view = view();
    view.take(&node("node-a", "10.0.0.1", "10.1.0.0/24"));
    view.take(&node("node-b", "10.0.0.2", "10.2.0.0/24"));
    let link = "[{name: link, port: 4141}]";
    let settled = view.take(&slice(
        "posthouse-1",
        "posthouse",
        link,
        "[{addresses: [10.0.0.1], nodeName: node-a}, {addresses: [10.0.0.2], nodeName: node-b, conditions: {ready: false}}, \
         {addresses: [10.9.9.9], nodeName: node-b}, {addresses: [10.0.0.3]}, {addresses: [127.0.0.1], nodeName: node-c}]",
    ));
    assert_eq!(settled.peer_notes.unwrap().len(), 3);
    let peers = |view: &View| {
        let mut peers: Vec<_> =
            view.directory().peers().map(|p| (p.node.to_string(), p.address.to_string(), p.ready)).collect();
        peers.sort();
        peers
    };
    let want = |ready| {
        vec![
            ("node-a".to_owned(), "10.0.0.1:4141".to_owned(), true),
            ("node-b".to_owned(), "10.0.0.2:4141".to_owned(), ready),
        ]
    };
    assert_eq!(peers(&view), want(false));
    // While one proxy follows another on a node both are listed; the ready one counts.
    view.take(&slice("posthouse-2", "posthouse", link, "[{addresses: [10.0.0.2], nodeName: node-b}]"));
    assert_eq!(peers(&view), want(true));
    let other =
        view.take(&slice("x", "posthouse", "[{name: web, port: 80}]", "[{addresses: [10.0.0.1], nodeName: node-a}]"));
    assert!(other.peer_notes.unwrap().iter().any(|note| note.contains("'link'")));
    view.drop_object(Kind::Node, "node-b");
    view.take(&node("node-b", "10.0.0.7", "10.2.0.0/24"));
    assert_eq!(peers(&view).len(), 1, "an address that is the node's no more is no peer's");
}

#[test]
fn an_address_of_two_nodes_or_pods_stays_known_when_one_of_them_goes() {
    // A machine joins under a new name while its old Node still gets updates; then the old one is deleted. Its address
    // must not become one that endpoints may have.
    let mut view = view();
    view.take(&node("old", "10.0.0.2", "10.2.0.0/24"));
    view.take(&node("new", "10.0.0.2", "10.3.0.0/24"));
    view.take(&node("old", "10.0.0.2", "10.4.0.0/24"));
    view.drop_object(Kind::Node, "old");
    let ip = "10.0.0.2".parse().unwrap();
    assert_eq!(view.directory().node_by_ip(ip).map(|node| &*node.name), Some("new"));
    view.take(&node("new", "10.0.0.3", "10.3.0.0/24"));
    assert!(view.directory().node_by_ip(ip).is_none());

    view.take(&pod("first", "u1", "10.1.0.9", false));
    view.take(&pod("second", "u2", "10.1.0.9", false));
    view.take(&pod("first", "u3", "10.1.0.9", false));
    view.drop_object(Kind::Pod, "shop/first");
    let ip = "10.1.0.9".parse().unwrap();
    assert_eq!(view.directory().pod_by_ip(ip).map(|pod| &*pod.id.uid), Some("u2"));
}

/// Objects that get into each other's way: few names, few addresses.
fn any_object() -> impl Strategy<Value = String> {
    let names = || prop::sample::select(vec!["a", "b"]);
    let ips = || prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "10.1.0.1", "127.0.1.5", "fd00::1"]);
    let bools = any::<bool>;
    prop_oneof![
        (names(), bools()).prop_map(|(name, two)| service(
            name,
            if two { "[{name: a, port: 80}, {name: b, port: 81}]" } else { "[{name: a, port: 80}]" }
        )),
        (names(), names(), prop::collection::vec((ips(), bools(), bools(), names()), 0..3), bools()).prop_map(
            |(name, of, endpoints, b)| {
                let six = endpoints.first().is_some_and(|(ip, ..)| ip.contains(':'));
                let endpoints: Vec<String> = endpoints
                    .iter()
                    .filter(|(ip, ..)| ip.contains(':') == six)
                    .map(|(ip, ready, pod, node)| {
                        let pod = if *pod {
                            format!(", targetRef: {{kind: Pod, namespace: shop, name: {node}, uid: u-{node}}}")
                        } else {
                            String::new()
                        };
                        format!("{{addresses: ['{ip}'], conditions: {{ready: {ready}}}, nodeName: node-{node}{pod}}}")
                    })
                    .collect();
                slice(
                    name,
                    of,
                    if b { "[{name: a, port: 8080}, {name: b, port: 8080}]" } else { "[{name: a, port: 8080}]" },
                    &format!("[{}]", endpoints.join(", ")),
                )
            }
        ),
        (names(), ips(), bools()).prop_map(|(name, ip, host)| pod(
            name,
            &format!("u-{name}"),
            &format!("'{ip}'"),
            host
        )),
        (names(), ips(), bools()).prop_map(|(name, ip, local)| node(
            &format!("node-{name}"),
            ip,
            if local { "127.0.1.0/24" } else { "10.1.0.0/24" }
        )),
        (names(), names(), bools()).prop_map(|(name, target, fits)| format!(
            "apiVersion: posthouse.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{action: {}, targetRefs: [{{kind: Service, name: {target}}}]}}",
            if fits { "Deny" } else { "None" }
        )),
        (names(), ips()).prop_map(|(name, ip)| slice(
            &format!("p{name}"),
            "posthouse",
            "[{name: link, port: 4141}]",
            &format!("[{{addresses: ['{ip}'], nodeName: node-{name}}}]")
        )),
    ]
}

/// Everything of a directory that can be seen, in an order of its own.
fn seen(directory: &Directory) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for service in directory.services() {
        for port in &service.ports {
            let endpoints = port.endpoints.all().iter().map(|e| (e.address, &e.node, &e.pod, e.state, e.refusal));
            all.push(format!(
                "{} {:?} {} {:?} {:?}",
                service.key(),
                service.kind,
                port.port,
                port.app_protocol,
                endpoints.collect::<Vec<_>>()
            ));
        }
        all.push(service.key().to_string());
    }
    let ips = ["10.0.0.1", "10.0.0.2", "10.1.0.1", "127.0.1.5", "fd00::1"];
    for ip in ips.map(|ip| ip.parse::<IpAddr>().unwrap()) {
        let mut at: Vec<String> = directory
            .endpoints_at(SocketAddr::new(ip, 8080))
            .iter()
            .map(|(key, e)| format!("{key} {:?}", e.refusal))
            .collect();
        at.sort();
        all.push(format!("{ip} {at:?}"));
        // The index by address is what a walk over every Service finds.
        let has = |service: &Service| {
            service.ports.iter().flat_map(|port| port.endpoints.all()).any(|endpoint| endpoint.address.ip() == ip)
        };
        let mut walked: Vec<ServiceKey> =
            directory.services().filter(|service| has(service)).map(|service| service.key()).collect();
        let mut found = directory.services_at_ip(ip).to_vec();
        walked.sort();
        found.sort();
        assert_eq!(found, walked, "{ip}");
    }
    all.extend(directory.nodes().map(|node| format!("{node:?}")));
    all.extend(directory.pods().map(|pod| format!("{pod:?}")));
    all.extend(directory.peers().map(|peer| format!("{peer:?}")));
    all.push(format!("{:?}", directory.size()));
    all.extend(directory.policies.iter().map(|policy| format!("{policy:?}")));
    // Who is concerned, by the index.
    all.extend(["a", "b"].map(|name| {
        let guard = directory.policies.concerning("shop", std::iter::once(name));
        format!("{name} {guard:?}")
    }));
    all.sort();
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// What the incremental view comes to is what a view of the final objects alone comes to, and a snapshot of it, too.
    #[test]
    fn any_history_ends_where_its_objects_do(history in prop::collection::vec((any_object(), any::<bool>(), any::<bool>()), 0..24)) {
        let mut view = view();
        let mut objects: std::collections::BTreeMap<Key, Reduced> = std::collections::BTreeMap::new();
        for (text, removed, settle) in history {
            let reduced = read(&text);
            if removed {
                view.remove(&reduced.key);
                objects.remove(&reduced.key);
            } else {
                view.put(reduced.key.clone(), reduced.object.clone().unwrap());
                objects.insert(reduced.key.clone(), reduced);
            }
            if settle {
                view.settle();
            }
        }
        view.settle();
        // Two Nodes with one address have the last one's owner, which no final state can tell.
        let owners: Vec<IpAddr> = view.directory().nodes().flat_map(|node| node.addresses.clone()).collect();
        let distinct: HashSet<&IpAddr> = owners.iter().collect();
        prop_assume!(distinct.len() == owners.len());

        let mut fresh = self::view();
        for (key, reduced) in &objects {
            fresh.put(key.clone(), reduced.object.clone().unwrap());
        }
        fresh.settle();
        prop_assert_eq!(seen(view.directory()), seen(fresh.directory()));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        snapshot::write(&path, &view.objects()).unwrap();
        let mut again = self::view();
        for item in snapshot::read(&path).unwrap().items() {
            let Ok(Parsed::Object(reduced)) = manifest::json_item(item, None, &mut Context::new(Arc::from("node-a"))) else { panic!("{item}") };
            again.put(reduced.key, reduced.object.unwrap());
        }
        again.settle();
        prop_assert_eq!(seen(view.directory()), seen(again.directory()));
    }
}
