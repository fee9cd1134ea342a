//! The corpus of spellings: each is stopped, and by what the corpus says.

use posthouse_model::{Authority, Directory, Pod, PodRef, Unresolved, address};

use crate::corpus;
use crate::fixture::{DOMAIN, cluster, node};

#[test]
fn no_spelling_reaches_what_is_not_in_the_directory() {
    let directory = cluster();
    for entry in corpus::over("request") {
        let spelling = entry.spelling;
        for (namespace, port) in [(None, 80), (Some("shop"), 80), (Some("shop"), 443), (Some("svc"), 80)] {
            let got = match Authority::parse(spelling) {
                Err(_) => "syntax".to_owned(),
                Ok(authority) => match directory.resolve(&authority, port, namespace, DOMAIN) {
                    Err(Unresolved::Refused { refusal, .. }) => format!("{refusal:?}"),
                    Err(
                        Unresolved::UnknownName { .. }
                        | Unresolved::NeedsNamespace { .. }
                        | Unresolved::UnknownHostname { .. }
                        | Unresolved::UnknownPort { .. },
                    ) => "unknown".to_owned(),
                    // Which of them are the cluster's own, only the egress list asks.
                    Err(Unresolved::UnknownAddress { .. }) if entry.verdict("model") == "unknown" => {
                        "unknown".to_owned()
                    }
                    Err(Unresolved::UnknownAddress { .. }) => "outside".to_owned(),
                    other => panic!("'{spelling}' leads to {other:?}"),
                },
            };
            assert_eq!(got, entry.verdict("model"), "'{spelling}' for a client in {namespace:?}");
        }
    }
}

/// Private addresses may be pods' wherever the Nodes' podCIDRs are not all there is to know.
#[test]
fn a_private_address_may_be_a_pods_unless_the_pod_ranges_tell_them_all() {
    let may_be = |nodes: &[&[&str]], pod: Option<(&str, bool)>, ip: &str| {
        let mut directory = Directory::default();
        for (number, cidrs) in nodes.iter().enumerate() {
            directory.put_node(node(&format!("node-{number}"), &[], cidrs));
        }
        if let Some((address, host_network)) = pod {
            directory.put_pod(Pod {
                id: PodRef { namespace: "shop".into(), name: "web".into(), uid: "u".into() },
                service_account: "default".into(),
                node: "node-0".into(),
                addresses: [address.parse().unwrap()].into_iter().collect(),
                host_network,
            });
        }
        address::may_be_pod(ip.parse().unwrap(), &directory)
    };
    let known: &[&[&str]] = &[&["10.2.0.0/24"], &["10.2.1.0/24"]];
    assert!(!may_be(known, Some(("10.2.0.7", false)), "192.168.219.70"), "all pods are where the Nodes say");
    assert!(may_be(&[], None, "10.77.0.9"), "no Node is known");
    assert!(may_be(&[&["10.2.0.0/24"], &[]], None, "10.77.0.9"), "one does not say");
    assert!(may_be(known, None, "fd77::9"), "none says it of IPv6");
    assert!(may_be(known, Some(("192.168.219.64", false)), "192.168.219.70"), "a pod is elsewhere");
    assert!(
        !may_be(known, Some(("192.168.219.64", true)), "192.168.219.70"),
        "on the host's network it is no pod's range"
    );
    for (ip, private) in [("100.64.0.1", true), ("100.127.255.255", true), ("172.31.0.1", true), ("fdff::1", true)]
        .into_iter()
        .chain([("100.128.0.1", false), ("198.51.100.7", false), ("2001:db8::1", false), ("172.32.0.1", false)])
    {
        assert_eq!(may_be(&[], None, ip), private, "{ip}");
    }
}
