//! From authorities to destinations, as tables over the fixture's cluster.

use std::net::SocketAddr;

use posthouse_model::address::Refusal;
use posthouse_model::{Authority, Directory, ServiceKind, Unresolved};

use crate::fixture::{DOMAIN, Pod, cluster, cluster_ip, node, pod, resolve, service};

/// `namespace/name:port`, with the endpoint when one is meant.
fn found(d: &Directory, authority: &str, namespace: Option<&str>) -> Result<String, Unresolved> {
    resolve(d, authority, namespace).map(|destination| {
        let service = &destination.service;
        let port = destination.service_port().port;
        let endpoint = destination.endpoint.as_ref().map(|e| format!(" at {}", e.address)).unwrap_or_default();
        format!("{}/{}:{port}{endpoint}", service.namespace, service.name)
    })
}

#[test]
fn names_in_all_their_lengths() {
    let d = cluster();
    for (authority, namespace, want) in [
        ("web", Some("shop"), "shop/web:80"),
        ("web", Some("other"), "other/web:80"),
        ("web.shop", None, "shop/web:80"),
        ("web.shop", Some("other"), "shop/web:80"),
        ("web.shop.svc", Some("other"), "shop/web:80"),
        ("web.shop.svc.cluster.local", None, "shop/web:80"),
        ("web.", Some("shop"), "shop/web:80"),
        ("web.shop.", None, "shop/web:80"),
        ("web.shop.svc.cluster.local.", None, "shop/web:80"),
        ("WEB.Shop.SVC.Cluster.Local", None, "shop/web:80"),
        ("web:80", Some("shop"), "shop/web:80"),
        ("web:9090", Some("shop"), "shop/web:9090"),
        ("web.shop.svc.cluster.local.:9090", None, "shop/web:9090"),
        // A namespace may be called svc.
        ("api.svc", None, "svc/api:80"),
        ("api.svc.svc", None, "svc/api:80"),
        ("api.svc.svc.cluster.local", None, "svc/api:80"),
        // The only port stands in for the default one, which the client did not write.
        ("cache", Some("shop"), "shop/cache:11211"),
        ("db.shop", None, "shop/db:5432"),
    ] {
        assert_eq!(found(&d, authority, namespace).as_deref(), Ok(want), "{authority} from {namespace:?}");
    }
    let https = d.resolve(&Authority::parse("host.shop").unwrap(), 443, None, DOMAIN).unwrap();
    assert_eq!(https.service_port().port, 443);
}

#[test]
fn pods_of_a_headless_service() {
    let d = cluster();
    for (authority, namespace, want) in [
        // Of two with the same hostname (a StatefulSet that rolls) the ready one.
        ("db-0.db", Some("shop"), "shop/db:5432 at 10.2.0.21:15432"),
        ("db-0.db.shop", None, "shop/db:5432 at 10.2.0.21:15432"),
        ("db-0.db.shop.svc", None, "shop/db:5432 at 10.2.0.21:15432"),
        ("DB-0.db.shop.svc.cluster.local.", None, "shop/db:5432 at 10.2.0.21:15432"),
        ("db-0.db.shop:5432", None, "shop/db:5432 at 10.2.0.21:15432"),
        // Named directly, one that is not ready is still that one: the caller decides what to do with it.
        ("db-1.db.shop", None, "shop/db:5432 at 10.2.0.22:15432"),
        // Nothing translates the ports of a headless Service, so clients may write the pods' own.
        ("db-0.db.shop:15432", None, "shop/db:5432 at 10.2.0.21:15432"),
        ("db.shop:15432", None, "shop/db:5432"),
    ] {
        assert_eq!(found(&d, authority, namespace).as_deref(), Ok(want), "{authority} from {namespace:?}");
    }
    assert_eq!(
        found(&d, "db-9.db.shop", None),
        Err(Unresolved::UnknownHostname { service: "shop/db".into(), hostname: "db-9".into() })
    );
    assert_eq!(found(&d, "db-0.db.shop", Some("other")).as_deref(), Ok("shop/db:5432 at 10.2.0.21:15432"));
    assert!(matches!(found(&d, "db-0.db", Some("other")), Err(Unresolved::UnknownName { .. })));
}

#[test]
fn addresses_of_services_and_pods() {
    let d = cluster();
    for (authority, want) in [
        ("10.96.0.10", "shop/web:80"),
        ("10.96.0.10:9090", "shop/web:9090"),
        ("[fd96::10]", "shop/web:80"),
        ("[fd96:0:0::10]:9090", "shop/web:9090"),
        ("10.96.0.11", "shop/cache:11211"),
        ("10.2.0.5:8080", "shop/web:80 at 10.2.0.5:8080"),
        ("10.2.0.5:9090", "shop/web:9090 at 10.2.0.5:9090"),
        ("[fd02::5]:8080", "shop/web:80 at [fd02::5]:8080"),
        ("10.2.0.50", "other/web:80 at 10.2.0.50:80"),
        // A host-network pod has its node's address.
        ("10.1.0.1:8443", "shop/host:443 at 10.1.0.1:8443"),
    ] {
        assert_eq!(found(&d, authority, None).as_deref(), Ok(want), "{authority}");
    }
}

#[test]
fn what_leads_nowhere_says_why() {
    let d = cluster();
    let unknown_port = |service: &str, port, ports: &str| Unresolved::UnknownPort {
        service: service.into(),
        port,
        ports: ports.into(),
    };
    let refused = |ip: &str, refusal| Unresolved::Refused { ip: ip.parse().unwrap(), refusal };
    for (authority, namespace, want) in [
        ("web:81", Some("shop"), unknown_port("shop/web", 81, "80, 9090")),
        ("10.96.0.10:443", None, unknown_port("shop/web", 443, "80, 9090")),
        ("cache:80", Some("shop"), unknown_port("shop/cache", 80, "11211")),
        ("none.shop", None, unknown_port("shop/none", 80, "none")),
        // A port of the pods is none of a Service with a cluster address.
        ("web:8080", Some("shop"), unknown_port("shop/web", 8080, "80, 9090")),
        ("web", None, Unresolved::NeedsNamespace { name: "web".into() }),
        ("nope.shop", None, Unresolved::UnknownName { name: "nope.shop".into(), namespace: None }),
        ("Nope", Some("shop"), Unresolved::UnknownName { name: "Nope".into(), namespace: Some("shop".into()) }),
        ("old.shop", None, Unresolved::ExternalName { service: "shop/old".into(), target: "example.com".into() }),
        ("127.0.0.1:8081", None, refused("127.0.0.1", Refusal::Loopback)),
        ("169.254.169.254", None, refused("169.254.169.254", Refusal::LinkLocal)),
        ("10.1.0.1:10250", None, refused("10.1.0.1", Refusal::Node)),
        ("[::ffff:10.2.0.5]", None, refused("::ffff:10.2.0.5", Refusal::Embedded)),
        ("10.2.0.77:80", None, Unresolved::UnknownAddress { ip: "10.2.0.77".parse().unwrap(), port: 80 }),
    ] {
        assert_eq!(found(&d, authority, namespace), Err(want), "{authority} from {namespace:?}");
    }
    let words = found(&d, "web:81", Some("shop")).unwrap_err().to_string();
    assert_eq!(words, "Service shop/web has no port 81; its ports are 80, 9090");
}

#[test]
fn a_refused_endpoint_is_in_no_usable_set() {
    let d = cluster();
    let bad = &resolve(&d, "bad.shop", None).unwrap();
    assert_eq!(bad.service_port().endpoints.all().len(), 4);
    assert!(bad.service_port().endpoints.usable().is_empty(), "all four addresses are forbidden");
}

#[test]
fn an_endpoint_that_may_be_dialled_goes_before_one_that_may_not() {
    // Someone writes a slice of their own that names a host-network pod's address, before or after the real one.
    for stranger_first in [true, false] {
        let mut d = Directory::default();
        d.put_node(node("n1", &["10.1.0.1"], &[]));
        let stranger = service(&d, "aaa/stranger", ServiceKind::Headless, &[(8443, &[pod("10.1.0.1:8443")])]);
        let host = Pod { host_network: true, ..pod("10.1.0.1:8443") };
        let real = service(&d, "shop/host", cluster_ip(&["10.96.0.13"]), &[(443, &[host])]);
        let (first, second) = if stranger_first { (stranger, real) } else { (real, stranger) };
        d.put_service(first);
        d.put_service(second);
        assert_eq!(found(&d, "10.1.0.1:8443", None).as_deref(), Ok("shop/host:443 at 10.1.0.1:8443"));
    }
}

#[test]
fn services_that_share_an_endpoint_are_chosen_alike_whatever_came_first() {
    for names in [["shop/a", "shop/b"], ["shop/b", "shop/a"]] {
        let mut d = Directory::default();
        for name in names {
            d.put_service(service(&d, name, ServiceKind::Headless, &[(80, &[pod("10.2.0.5:80")])]));
        }
        assert_eq!(found(&d, "10.2.0.5", None).as_deref(), Ok("shop/a:80 at 10.2.0.5:80"));
    }
}

#[test]
fn a_loopback_address_is_a_pod_where_a_node_says_so() {
    let mut d = Directory::default();
    d.put_node(node("node-a", &["127.0.1.1"], &["127.0.1.0/24"]));
    let endpoints = [pod("127.0.1.10:80"), pod("127.0.1.1:80"), pod("127.0.2.10:80")];
    d.put_service(service(&d, "demo/hello", ServiceKind::Headless, &[(80, &endpoints)]));
    let hello = resolve(&d, "hello.demo", None).unwrap();
    let usable: Vec<SocketAddr> = hello.service_port().endpoints.usable().iter().map(|e| e.address).collect();
    assert_eq!(usable, ["127.0.1.10:80".parse().unwrap()], "not the node itself, and not where no podCIDR reaches");
}
