//! From a manifest's shape to a plain object: here stand the API's rules for absent fields. Sources: the reference of the
//! Kubernetes API for Service v1, EndpointSlice v1 discovery.k8s.io, Pod v1 and Node v1.

use std::net::IpAddr;
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine};
use ipnet::IpNet;
use posthouse_model::directory::service_key;
use posthouse_model::{AppProtocol, EndpointState, Node, Pod, PodRef, ServiceKind};
use smallvec::SmallVec;

use super::Context;
use super::raw::{
    RawAnnotations, RawConditions, RawData, RawEndpoint, RawMeta, RawObject, RawPort, RawSpec, RawTargetRef, Value,
};
use crate::object::{
    EndpointObject, Key, Material, Object, PortObject, ServiceObject, SliceObject, TlsAnnotations, stand_in_uid,
};
use crate::status::Kind;

/// Where objects without a namespace are, as kubectl has it.
const DEFAULT_NAMESPACE: &str = "default";

/// The only type of Secret that is read.
pub(crate) const TLS_SECRET: &str = "kubernetes.io/tls";

type Notes = Vec<String>;

/// The object's key.
///
/// # Errors
/// Its name or namespace is missing or no DNS name; such a name could pass for another object's key.
pub(super) fn key(kind: Kind, meta: &RawMeta, context: &mut Context) -> Result<Key, String> {
    let name = meta.name.as_deref().unwrap_or_default();
    if !is_name(name) {
        return Err(format!("its metadata.name '{name}' is no DNS name"));
    }
    if kind == Kind::Node {
        return Ok(Key { kind, name: context.interner.get(name) });
    }
    let namespace = namespace(meta);
    if !is_name(namespace) {
        return Err(format!("its metadata.namespace '{namespace}' is no DNS name"));
    }
    Ok(Key { kind, name: service_key(namespace, name) })
}

fn namespace(meta: &RawMeta) -> &str {
    meta.namespace.as_deref().filter(|ns| !ns.is_empty()).unwrap_or(DEFAULT_NAMESPACE)
}

fn is_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
}

/// The object and what was passed over in it; no object when it means nothing to us.
///
/// # Errors
/// Why it cannot be used at all.
pub(super) fn object(
    kind: Kind,
    raw: &RawObject,
    key: &Key,
    context: &mut Context,
) -> Result<(Option<Object>, Notes), String> {
    let mut notes = Notes::new();
    let object = match kind {
        Kind::Service => Some(Object::Service(service(raw, context, &mut notes)?)),
        Kind::EndpointSlice => slice(raw, key, context, &mut notes).map(Object::Slice),
        Kind::Pod => pod(raw, context, &mut notes).map(Object::Pod),
        Kind::Node => Some(Object::Node(node(raw, key, &mut notes))),
        Kind::Secret => secret(raw)?.map(Object::Material),
        Kind::ConfigMap => config_map(raw)?.map(Object::Material),
        // They have a way of their own; see `policy`.
        Kind::AuthorizationPolicy => None,
    };
    Ok((object, notes))
}

fn service(raw: &RawObject, context: &mut Context, notes: &mut Notes) -> Result<ServiceObject, String> {
    let spec = raw.spec.as_ref().ok_or("it has no spec")?;
    let ports = spec.ports.as_deref().unwrap_or_default();
    Ok(ServiceObject {
        namespace: context.interner.get(namespace(&raw.metadata)),
        name: Arc::from(raw.metadata.name.as_deref().unwrap_or_default()),
        kind: service_kind(spec, notes)?,
        ports: ports.iter().filter_map(|port| tcp_port(port, context)).collect(),
        tls: raw.metadata.annotations.as_ref().and_then(tls_annotations),
    })
}

fn tls_annotations(raw: &RawAnnotations) -> Option<Box<TlsAnnotations>> {
    let text = |written: &Option<String>| written.as_deref().filter(|text| !text.is_empty()).map(Arc::from);
    let found = TlsAnnotations {
        secret: text(&raw.tls_secret),
        ca_config_map: text(&raw.tls_ca_config_map),
        backend: text(&raw.backend_tls),
        backend_ca: text(&raw.backend_tls_ca),
        backend_hostname: text(&raw.backend_tls_hostname),
    };
    (found != TlsAnnotations::default()).then(|| Box::new(found))
}

/// A Secret of type kubernetes.io/tls. Its errors never quote it.
fn secret(raw: &RawObject) -> Result<Option<Material>, String> {
    if raw.secret_type.as_deref() != Some(TLS_SECRET) {
        return Ok(None);
    }
    let none = RawData::default();
    let (data, plain) = (raw.data.as_ref().unwrap_or(&none), raw.string_data.as_ref().unwrap_or(&none));
    if data.unfit || plain.unfit {
        return Err("its data is no map".to_owned());
    }
    // As the API server has it: stringData wins.
    let entry = |name: &str, data: &Option<Value>, plain: &Option<Value>| match (plain, data) {
        (Some(Value::Text(text)), _) => Ok(present(text.clone().into_bytes())),
        (None, Some(Value::Text(text))) => decoded(text).map(present).ok_or_else(|| format!("its {name} is no base64")),
        (None, None) => Ok(None),
        (Some(Value::Unfit), _) | (None, Some(Value::Unfit)) => Err(format!("its {name} is no text")),
    };
    Ok(Some(Material {
        certificates: entry("tls.crt", &data.certificates, &plain.certificates)?,
        key: entry("tls.key", &data.key, &plain.key)?,
        roots: entry("ca.crt", &data.roots, &plain.roots)?,
    }))
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    // People break long lines in manifests.
    let joined: String = text.split_ascii_whitespace().collect();
    BASE64_STANDARD.decode(joined).ok()
}

fn present(bytes: Vec<u8>) -> Option<Vec<u8>> {
    (!bytes.is_empty()).then_some(bytes)
}

/// A ConfigMap with certificates of authorities.
fn config_map(raw: &RawObject) -> Result<Option<Material>, String> {
    match raw.data.as_ref().and_then(|data| data.roots.as_ref()) {
        None => Ok(None),
        Some(Value::Text(text)) => {
            Ok(Some(Material { roots: present(text.clone().into_bytes()), ..Material::default() }))
        }
        Some(Value::Unfit) => Err("its ca.crt is no text".to_owned()),
    }
}

fn service_kind(spec: &RawSpec, notes: &mut Notes) -> Result<ServiceKind, String> {
    if spec.kind.as_deref() == Some("ExternalName") {
        let target = spec.external_name.as_deref().map(|name| name.trim_end_matches('.')).unwrap_or_default();
        if target.is_empty() {
            return Err("it is of type ExternalName and has no spec.externalName".to_owned());
        }
        return Ok(ServiceKind::ExternalName(Arc::from(target.to_ascii_lowercase())));
    }
    let single = spec.cluster_ip.as_slice();
    let written = spec.cluster_ips.as_deref().filter(|ips| !ips.is_empty()).unwrap_or(single);
    if written.iter().any(|ip| ip == "None") {
        return Ok(ServiceKind::Headless);
    }
    // Empty: not allocated yet, or written by hand for a folder; its name works all the same.
    let written = written.iter().filter(|ip| !ip.is_empty());
    Ok(ServiceKind::ClusterIp(addresses(written.map(String::as_str), "spec.clusterIPs", notes)))
}

/// The port, when it is TCP and has a number. Absent protocol means TCP.
fn tcp_port(raw: &RawPort, context: &mut Context) -> Option<PortObject> {
    let protocol = raw.protocol.as_deref().filter(|protocol| !protocol.is_empty()).unwrap_or("TCP");
    let port = raw.port.filter(|port| *port != 0)?;
    (protocol == "TCP").then(|| PortObject {
        name: context.interner.get(raw.name.as_deref().unwrap_or_default()),
        port,
        app_protocol: AppProtocol::parse(raw.app_protocol.as_deref()),
    })
}

fn slice(raw: &RawObject, key: &Key, context: &mut Context, notes: &mut Notes) -> Option<SliceObject> {
    // A slice without the label belongs to no Service but to whoever made it.
    let service = raw.metadata.labels.as_ref()?.service_name.as_deref().filter(|name| !name.is_empty())?;
    let ipv6 = match raw.address_type.as_deref() {
        Some("IPv4") => false,
        Some("IPv6") => true,
        other => {
            notes
                .push(format!("its addressType is {}: only IPv4 and IPv6 slices are used", other.unwrap_or("missing")));
            return None;
        }
    };
    let namespace = context.interner.get(namespace(&raw.metadata));
    let endpoints = raw.endpoints.as_deref().unwrap_or_default();
    let ports = raw.ports.as_deref().unwrap_or_default();
    debug_assert!(key.name.starts_with(&*namespace), "the key was made from the same metadata");
    Some(SliceObject {
        service: context.interner.get(&service_key(&namespace, service)),
        ports: ports.iter().filter_map(|port| tcp_port(port, context)).collect(),
        endpoints: endpoints.iter().filter_map(|e| endpoint(e, ipv6, &namespace, context, notes)).collect(),
    })
}

fn endpoint(
    raw: &RawEndpoint,
    ipv6: bool,
    namespace: &Arc<str>,
    context: &mut Context,
    notes: &mut Notes,
) -> Option<EndpointObject> {
    // "No semantics are defined for additional addresses beyond the first, and kube-proxy does not look at them."
    let Some(written) = raw.addresses.as_ref().and_then(|addresses| addresses.first()) else {
        notes.push("an endpoint without an address is passed over".to_owned());
        return None;
    };
    let ip = match written.parse::<IpAddr>() {
        Ok(ip) if ip.is_ipv6() == ipv6 => ip,
        _ => {
            let family = if ipv6 { "IPv6" } else { "IPv4" };
            notes.push(format!("the endpoint '{written}' is passed over: it is no {family} address"));
            return None;
        }
    };
    // A slice's controller names pods of the slice's own namespace only. Another namespace is a claim by whoever wrote the
    // slice, and believing it would let them borrow a host-network pod's right to the node's address.
    let own = |target: &&RawTargetRef| target.namespace.as_deref().is_none_or(|ns| ns.is_empty() || *ns == **namespace);
    let named = raw.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    let pod = named.filter(own);
    if named.is_some() && pod.is_none() {
        notes.push(format!("the endpoint '{written}' names a Pod of another namespace, which is not believed"));
    }
    let pod = pod.and_then(|target| {
        Some(PodRef {
            namespace: Arc::clone(namespace),
            name: Arc::from(target.name.as_deref().filter(|name| !name.is_empty())?),
            uid: Arc::from(target.uid.as_deref().unwrap_or_default()),
        })
    });
    Some(EndpointObject {
        ip,
        state: state(raw.conditions.unwrap_or_default()),
        node: context.interner.some(raw.node_name.as_deref()),
        zone: context.interner.some(raw.zone.as_deref()),
        hostname: raw.hostname.as_deref().filter(|name| !name.is_empty()).map(Arc::from),
        pod,
    })
}

/// The API's rules: `ready` "a nil value should be interpreted as true"; `serving` "if nil, consumers should defer to the
/// ready condition"; `terminating` "a nil value should be interpreted as false".
fn state(conditions: RawConditions) -> EndpointState {
    let ready = conditions.ready.unwrap_or(true);
    let serving = conditions.serving.unwrap_or(ready);
    match (conditions.terminating.unwrap_or(false), ready, serving) {
        (false, true, _) => EndpointState::Ready,
        (true, _, true) => EndpointState::Draining,
        (false, false, _) | (true, _, false) => EndpointState::NotReady,
    }
}

fn pod(raw: &RawObject, context: &mut Context, notes: &mut Notes) -> Option<Pod> {
    let spec = raw.spec.as_ref()?;
    let status = raw.status.as_ref();
    let node = spec
        .node_name
        .as_deref()
        .filter(|node| !node.is_empty() && (context.every_node || **node == *context.node_name))?;
    // A finished pod keeps its address in its status although another pod may have it by now.
    if matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")) {
        return None;
    }
    let name = raw.metadata.name.as_deref().unwrap_or_default();
    let namespace = context.interner.get(namespace(&raw.metadata));
    // Manifests written by hand have no uid; the directory keys pods by it, so a name that no uid can be stands in.
    let uid = match raw.metadata.uid.as_deref().filter(|uid| !uid.is_empty()) {
        Some(uid) => Arc::from(uid),
        None => stand_in_uid(&namespace, name),
    };
    let many = status.and_then(|s| s.pod_ips.as_deref()).unwrap_or_default();
    let mut written: SmallVec<[&str; 2]> = many.iter().filter_map(|ip| ip.ip.as_deref()).collect();
    if written.is_empty() {
        written.extend(status.and_then(|s| s.pod_ip.as_deref()));
    }
    let written = written.into_iter().filter(|ip| !ip.is_empty());
    let service_account = spec.service_account_name.as_deref().filter(|name| !name.is_empty());
    Some(Pod {
        id: PodRef { namespace, name: Arc::from(name), uid },
        // The API server's admission fills it in; the same default as there.
        service_account: context.interner.get(service_account.unwrap_or("default")),
        node: context.interner.get(node),
        addresses: addresses(written, "status.podIPs", notes),
        host_network: spec.host_network.unwrap_or(false),
    })
}

fn node(raw: &RawObject, key: &Key, notes: &mut Notes) -> Node {
    let listed = raw.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
    let mut own: SmallVec<[IpAddr; 2]> = SmallVec::new();
    // Internal ones first: the first is the one that links use.
    for kind in ["InternalIP", "ExternalIP"] {
        let written = listed.iter().filter(|a| a.kind.as_deref() == Some(kind)).filter_map(|a| a.address.as_deref());
        for ip in addresses(written, "status.addresses", notes) {
            if !own.contains(&ip) {
                own.push(ip);
            }
        }
    }
    let spec = raw.spec.as_ref();
    let single = spec.map(|s| s.pod_cidr.as_slice()).unwrap_or_default();
    let many = spec.and_then(|s| s.pod_cidrs.as_deref()).filter(|cidrs| !cidrs.is_empty()).unwrap_or(single);
    let mut pod_cidrs: SmallVec<[IpNet; 2]> = SmallVec::new();
    for written in many.iter().filter(|cidr| !cidr.is_empty()) {
        match written.parse::<IpNet>() {
            Ok(cidr) => pod_cidrs.push(cidr.trunc()),
            Err(_) => notes.push(format!("the podCIDR '{written}' is passed over: it is no network")),
        }
    }
    Node { name: Arc::clone(&key.name), addresses: own, pod_cidrs }
}

fn addresses<'a>(written: impl IntoIterator<Item = &'a str>, field: &str, notes: &mut Notes) -> SmallVec<[IpAddr; 2]> {
    let mut ips: SmallVec<[IpAddr; 2]> = SmallVec::new();
    for text in written {
        match text.parse::<IpAddr>() {
            Ok(ip) if ips.contains(&ip) => {}
            Ok(ip) => ips.push(ip),
            Err(_) => notes.push(format!("'{text}' in {field} is passed over: it is no address")),
        }
    }
    ips
}
