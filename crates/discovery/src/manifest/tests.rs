//! Manifests and the plain objects that they come to, as tables; and that whatever was reduced comes back the same from
//! a snapshot.

use posthouse_model::{AppProtocol, EndpointState, ServiceKind};
use proptest::prelude::*;

use super::*;
use crate::object::{Object, PolicyObject, ServiceObject, SliceObject};

fn context() -> Context {
    Context::new(Arc::from("node-a"))
}

fn one(text: &str) -> Reduced {
    match yaml(text, &mut context()) {
        Ok(Parsed::Object(reduced)) => *reduced,
        other => panic!("{other:?} of {text}"),
    }
}

fn service(spec: &str) -> ServiceObject {
    match one(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}")).object
    {
        Some(Object::Service(service)) => service,
        other => panic!("{other:?}"),
    }
}

fn slice(rest: &str) -> (Option<SliceObject>, Vec<String>) {
    let head = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web, version: 1.0}}\n";
    let reduced = one(&format!("{head}{rest}"));
    match reduced.object {
        Some(Object::Slice(slice)) => (Some(slice), reduced.notes),
        None => (None, reduced.notes),
        other => panic!("{other:?}"),
    }
}

#[test]
fn services_by_kind() {
    let ip = |text: &str| text.parse().unwrap();
    for (spec, want) in [
        ("{}", ServiceKind::ClusterIp([].into_iter().collect())),
        ("{clusterIP: ''}", ServiceKind::ClusterIp([].into_iter().collect())),
        ("{clusterIP: 10.0.0.1}", ServiceKind::ClusterIp([ip("10.0.0.1")].into_iter().collect())),
        (
            "{clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 'fd00::1']}",
            ServiceKind::ClusterIp([ip("10.0.0.1"), ip("fd00::1")].into_iter().collect()),
        ),
        ("{clusterIP: nonsense}", ServiceKind::ClusterIp([].into_iter().collect())),
        ("{clusterIP: None}", ServiceKind::Headless),
        ("{clusterIPs: [None]}", ServiceKind::Headless),
        ("{type: ExternalName, externalName: DB.Example.com.}", ServiceKind::ExternalName(Arc::from("db.example.com"))),
    ] {
        assert_eq!(service(spec).kind, want, "{spec}");
    }
}

#[test]
fn service_ports_are_the_tcp_ones() {
    let ports = service(
        "{ports: [{name: a, port: 80, targetPort: web, appProtocol: kubernetes.io/h2c}, {name: b, port: 53, protocol: UDP}, \
         {port: 81, protocol: TCP, nodePort: 30000}, {name: c, protocol: TCP}]}",
    )
    .ports;
    let ports: Vec<_> = ports.iter().map(|p| (&*p.name, p.port, p.app_protocol)).collect();
    assert_eq!(ports, [("a", 80, AppProtocol::H2c), ("", 81, AppProtocol::Unknown)]);
}

#[test]
fn conditions_have_the_apis_meaning_when_absent() {
    use EndpointState::{Draining, NotReady, Ready};
    for (conditions, want) in [
        ("", Ready),
        ("conditions: {}", Ready),
        ("conditions: null", Ready),
        ("conditions: {ready: null, serving: null, terminating: null}", Ready),
        ("conditions: {ready: true}", Ready),
        ("conditions: {ready: false}", NotReady),
        ("conditions: {ready: false, serving: true}", NotReady),
        ("conditions: {ready: false, serving: true, terminating: true}", Draining),
        ("conditions: {ready: false, serving: false, terminating: true}", NotReady),
        ("conditions: {terminating: true}", Draining),
        ("conditions: {ready: true, terminating: true}", Draining),
        ("conditions: {ready: false, terminating: true}", NotReady),
    ] {
        let text = format!("addressType: IPv4\nendpoints:\n- addresses: [10.1.0.1]\n  {conditions}");
        assert_eq!(slice(&text).0.unwrap().endpoints[0].state, want, "{conditions}");
    }
}

#[test]
fn slices_keep_what_fits_and_say_what_does_not() {
    let (slice_, notes) = slice(
        "addressType: IPv6\nports: [{name: http, port: 8080}, {port: null}, {port: 53, protocol: UDP}]\nendpoints:\n\
         - {addresses: ['fd00::1', 'fd00::2'], nodeName: n, zone: z, hostname: web-0, targetRef: {kind: Pod, name: p, uid: u}}\n\
         - {addresses: [10.1.0.1]}\n- {addresses: [not-an-address]}\n- {addresses: []}\n\
         - {addresses: ['fd00::3'], targetRef: {kind: Node, name: n}, nodeName: ''}",
    );
    let slice_ = slice_.unwrap();
    assert_eq!(&*slice_.service, "shop/web");
    assert_eq!(slice_.ports.len(), 1);
    let ips: Vec<String> = slice_.endpoints.iter().map(|e| e.ip.to_string()).collect();
    assert_eq!(ips, ["fd00::1", "fd00::3"], "the first address counts");
    let first = &slice_.endpoints[0];
    assert_eq!(
        (first.node.as_deref(), first.zone.as_deref(), first.hostname.as_deref()),
        (Some("n"), Some("z"), Some("web-0"))
    );
    let pod = first.pod.as_ref().unwrap();
    assert_eq!((&*pod.namespace, &*pod.name, &*pod.uid), ("shop", "p", "u"));
    assert!(slice_.endpoints[1].pod.is_none() && slice_.endpoints[1].node.is_none());
    assert_eq!(notes.len(), 3, "{notes:?}");

    // A host-network pod of another namespace would lend its right to the node's address.
    let (foreign, notes) = slice(
        "addressType: IPv4\nports: [{port: 80}]\nendpoints:\n\
         - {addresses: [10.1.0.1], nodeName: n, targetRef: {kind: Pod, namespace: kube-system, name: kube-proxy, uid: u}}",
    );
    assert!(foreign.unwrap().endpoints[0].pod.is_none() && notes[0].contains("another namespace"), "{notes:?}");

    let (none, notes) = slice("addressType: FQDN\nendpoints: [{addresses: [db.example.com]}]");
    assert!(none.is_none() && notes[0].contains("FQDN"), "{notes:?}");
    let (empty, notes) = slice("addressType: IPv4\nendpoints: null\nports: null");
    assert!(empty.unwrap().endpoints.is_empty() && notes.is_empty());
    let unlabelled =
        one("{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a}, addressType: IPv4}");
    assert!(unlabelled.object.is_none() && unlabelled.notes.is_empty());
}

#[test]
fn pods_of_this_node_that_live() {
    let pod = |rest: &str| {
        one(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: shop, uid: u}}\n{rest}")).object
    };
    let Some(Object::Pod(own)) = pod("spec: {nodeName: node-a, serviceAccountName: sa, hostNetwork: true}\n\
         status: {phase: Running, podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}]}")
    else {
        panic!("an own Pod is one");
    };
    assert_eq!((own.addresses.len(), &*own.service_account, own.host_network), (2, "sa", true));
    let Some(Object::Pod(bare)) = pod("spec: {nodeName: node-a}") else { panic!("a Pod that begins is one") };
    assert_eq!((bare.addresses.len(), &*bare.service_account, &*bare.id.uid), (0, "default", "u"));
    for rest in [
        "spec: {nodeName: node-b}",
        "spec: {}",
        "status: {phase: Running}",
        "spec: {nodeName: node-a}\nstatus: {phase: Succeeded, podIP: 10.1.0.1}",
        "spec: {nodeName: node-a}\nstatus: {phase: Failed, podIP: 10.1.0.1}",
    ] {
        assert!(pod(rest).is_none(), "{rest}");
    }
}

#[test]
fn nodes_with_their_addresses_and_networks() {
    let reduced = one(
        "apiVersion: v1\nkind: Node\nmetadata: {name: n}\nspec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.7/24, 'fd00::/64', x]}\n\
         status: {addresses: [{type: Hostname, address: n}, {type: ExternalIP, address: 192.0.2.1}, {type: InternalIP, address: 10.0.0.1}, \
         {type: InternalIP, address: 10.0.0.1}, {type: InternalIP, address: bad}]}",
    );
    let Some(Object::Node(node)) = reduced.object else { panic!() };
    let text: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["10.0.0.1", "192.0.2.1"], "the internal one first");
    let text: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["10.1.0.0/24", "fd00::/64"]);
    assert_eq!(reduced.notes.len(), 2, "{:?}", reduced.notes);
}

#[test]
fn what_does_not_fit_is_named_as_well_as_possible() {
    let service = "apiVersion: v1\nkind: Service\n";
    for (text, key, words) in [
        (
            format!("{service}metadata: {{name: web}}\nspec: {{ports: [{{port: many}}]}}"),
            Some("Service default/web"),
            "u16",
        ),
        (
            format!("{service}metadata: {{name: web}}\nspec: {{ports: [{{port: 70000}}]}}"),
            Some("Service default/web"),
            "70000",
        ),
        (format!("{service}metadata: {{name: web}}"), Some("Service default/web"), "no spec"),
        (format!("{service}metadata: {{name: a/b}}\nspec: {{}}"), None, "a/b"),
        (format!("{service}metadata: {{name: Web}}\nspec: {{}}"), None, "Web"),
        (format!("{service}spec: {{}}"), None, "metadata.name"),
        (format!("{service}metadata: {{name: web\nspec"), None, "line 3"),
        ("just a text".to_owned(), None, "expected"),
        ("a: 1".to_owned(), None, "no 'kind'"),
    ] {
        let unfit = yaml(&text, &mut context()).unwrap_err();
        assert_eq!(unfit.key.map(|key| key.to_string()).as_deref(), key, "{text}");
        assert!(unfit.error.contains(words), "{}: {text}", unfit.error);
    }
}

#[test]
fn other_kinds_are_passed_over_whatever_is_in_them() {
    for text in [
        "{apiVersion: v1, kind: Event, metadata: {name: Not A Name}}",
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {ports: none}}",
        "{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: s}, spec: {ports: none}}",
        "{apiVersion: v1, kind: Endpoints, metadata: {name: web}, subsets: []}",
    ] {
        assert!(matches!(yaml(text, &mut context()), Ok(Parsed::Other)), "{text}");
    }
}

#[test]
fn a_list_gives_its_good_items() {
    let items = "[{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {}}, {apiVersion: v1, kind: Service, metadata: \
                 {name: b}, spec: {ports: 7}}, {apiVersion: v1, kind: Event}, {apiVersion: v1, kind: Service, metadata: {name: c}, spec: {}}]";
    let yaml_text = format!("apiVersion: v1\nkind: List\nitems: {items}");
    let value: serde_norway::Value = serde_norway::from_str(&yaml_text).unwrap();
    let json_text = serde_json::to_string(&value).unwrap();
    for parsed in [yaml(&yaml_text, &mut context()), json(&json_text, &mut context())] {
        let Ok(Parsed::List(items)) = parsed else { panic!("{parsed:?}") };
        let shapes: Vec<_> = items
            .iter()
            .map(|item| match item {
                Ok(Parsed::Object(reduced)) => reduced.key.to_string(),
                Ok(_) => "other".to_owned(),
                Err(unfit) => format!("bad {}", unfit.key.as_ref().unwrap()),
            })
            .collect();
        assert_eq!(shapes, ["Service default/a", "bad Service default/b", "other", "Service default/c"]);
    }
    // Typed lists leave their items' kind out.
    let typed = r#"{"apiVersion":"v1","kind":"NodeList","items":[{"metadata":{"name":"n"}}]}"#;
    let Ok(Parsed::List(items)) = json(typed, &mut context()) else { panic!() };
    assert!(matches!(&items[..], [Ok(Parsed::Object(reduced))] if reduced.key.to_string() == "Node n"));
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}", noise in prop::sample::subsequence(vec![
        "apiVersion: v1\n", "kind: Service\n", "kind: List\n", "metadata: {name: a}\n", "spec: {}\n", "items: []\n", "---\n", "{", "[", "&a *a\n",
    ], 0..10)) {
        let text = noise.concat() + &text;
        let mut context = context();
        for document in split::yaml(&text) {
            let _ = yaml(document.text, &mut context);
        }
        for document in split::json(&text).0 {
            let _ = json(document.text, &mut context);
        }
    }

    #[test]
    fn splitting_loses_no_line_of_content(lines in prop::collection::vec(prop::sample::select(vec!["a: 1", "# b", "---", "--- c: 1", "...", "", "  ---", "%YAML 1.2"]), 0..12)) {
        let text = lines.join("\n");
        let content = |text: &str| text.matches("a: 1").count() + text.matches("c: 1").count();
        let parts: usize = split::yaml(&text).iter().map(|document| content(document.text)).sum();
        prop_assert_eq!(parts, content(&text));
        for document in split::yaml(&text) {
            prop_assert!(document.line >= 1 && document.line <= lines.len());
        }
    }
}

/// Each policy of a text: its key, whether it is accepted, its targets.
fn policies(parsed: Result<Parsed, Unfit>) -> Vec<(String, bool, Vec<String>)> {
    match parsed {
        Ok(Parsed::List(items)) => items.into_iter().flat_map(policies).collect(),
        Ok(Parsed::Object(reduced)) => match reduced.object {
            Some(Object::Policy(PolicyObject { policy, .. })) => {
                assert_eq!(*policy.key(), reduced.key.name);
                assert_eq!(policy.problem().is_some(), !reduced.notes.is_empty());
                let targets = policy.targets().iter().map(ToString::to_string).collect();
                vec![(policy.key().to_string(), policy.problem().is_none(), targets)]
            }
            _ => vec![],
        },
        _ => vec![],
    }
}

#[test]
fn a_policy_that_does_not_fit_is_kept_as_broken() {
    let web = "targetRefs: [{kind: Service, name: web}]";
    let head = "apiVersion: posthouse.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}";
    let of = |text: &str| policies(yaml(text, &mut context()));
    let kept = |accepted, targets: &[&str]| {
        vec![("shop/p".to_owned(), accepted, targets.iter().map(|target| (*target).to_owned()).collect::<Vec<_>>())]
    };
    assert_eq!(of(&format!("{head}\nspec: {{action: Deny, {web}}}")), kept(true, &["web"]));
    assert_eq!(of(&format!("spec: {{action: Deny, {web}}}\n{head}")), kept(true, &["web"]), "in any order");
    for broken in [
        "spec: {action: Deny, ports: x, targetRefs: [{kind: Service, name: web}]}",
        "spec: {action: [], targetRefs: [{kind: Service, name: web}]}",
        "spec: {targetRefs: [{kind: Service, name: web}], podCIDRs: 7}",
    ] {
        assert_eq!(of(&format!("{head}\n{broken}")), kept(false, &["web"]), "{broken}");
    }
    for broken in
        ["", "spec: text", "spec: [1]", "spec: {action: Deny, targetRefs: web}", "spec: {1: 2}", "spec: {[a]: 2}"]
    {
        assert_eq!(of(&format!("{head}\n{broken}")), kept(false, &[]), "{broken}");
    }
    let newer = head.replace("v1alpha1", "v2");
    assert_eq!(of(&format!("{newer}\nspec: {{action: Deny, {web}}}")), kept(false, &["web"]), "an unknown version");
    let other = head.replace("posthouse.io", "linkerd.io");
    assert!(matches!(yaml(&format!("{other}\nspec: {{}}"), &mut context()), Ok(Parsed::Other)));
    let nameless = "apiVersion: posthouse.io/v1alpha1\nkind: AuthorizationPolicy\nspec: {}";
    assert!(yaml(nameless, &mut context()).is_err());

    // In lists, with others beside them, and as JSON.
    let list = format!(
        "kind: List\nitems:\n- {{kind: Service, apiVersion: v1, metadata: {{name: web}}, spec: {{ports: []}}}}\n- {}\n- {}",
        format!("{head}\nspec: {{action: Deny, {web}}}").replace('\n', "\n  "),
        format!("{head}\nspec: text").replace('\n', "\n  "),
    );
    let wanted: Vec<_> = kept(true, &["web"]).into_iter().chain(kept(false, &[])).collect();
    assert_eq!(of(&list), wanted);
    let value: serde_json::Value = serde_norway::from_str(&list).unwrap();
    assert_eq!(policies(json(&value.to_string(), &mut context())), wanted);
    for item in value["items"].as_array().unwrap() {
        let item = item.to_string();
        assert_eq!(policies(json_item(&item, None, &mut context())).len(), usize::from(item.contains("posthouse")));
        let typed = policies(json_item(&item, Some(Kind::AuthorizationPolicy), &mut context()));
        assert_eq!(typed.len(), usize::from(item.contains("posthouse")), "another kind is none of ours");
    }
    let typed = list.replace("kind: List", "kind: AuthorizationPolicyList");
    assert_eq!(of(&typed), wanted);
}
