//! The warm start's snapshot: the plain objects, written as one JSON `List` of manifests that the same parser reads (so
//! does a person, and `--source dir`). It only holds what was kept of each object.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use posthouse_model::{AppProtocol, EndpointState, Node, Pod, ServiceKind};
use posthouse_policy::{GROUP, KIND, VERSION};

use crate::manifest::raw::{
    RawAnnotations, RawConditions, RawEndpoint, RawLabels, RawMeta, RawNodeAddress, RawObject, RawPodIp, RawPort,
    RawSpec, RawStatus, RawTargetRef,
};
use crate::manifest::split;
use crate::object::{EndpointObject, PolicyObject, PortObject, ServiceObject, SliceObject};
use crate::status::Kind;
use crate::view::Objects;

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// There is none (yet).
    #[error("there is none")]
    Missing,
    #[error("it cannot be read: {0}")]
    Io(io::Error),
    #[error("it is broken: {0}")]
    Broken(String),
}

/// A snapshot as it was read.
#[derive(Debug)]
pub(crate) struct Snapshot {
    text: String,
    /// When it was written.
    pub(crate) written: SystemTime,
    /// The kinds of objects that whoever wrote it knew. One that is not among them was not seen, which is not to say that
    /// there is none.
    pub(crate) kinds: Vec<String>,
}

/// The first line holds the time of writing, in seconds since 1970.
#[derive(serde::Deserialize, serde::Serialize)]
struct Written {
    written: u64,
    #[serde(default = "first_kinds")]
    kinds: Vec<String>,
}

/// What the first version knew, which did not say so.
fn first_kinds() -> Vec<String> {
    [Kind::Service, Kind::EndpointSlice, Kind::Pod, Kind::Node].map(|kind| kind.as_str().to_owned()).into()
}

impl Snapshot {
    /// The objects as texts.
    pub(crate) fn items(&self) -> Vec<&str> {
        let body = self.text.split_once('\n').map_or("", |(_, body)| body);
        split::json(body).0.into_iter().map(|document| document.text).collect()
    }
}

/// Reads the snapshot at `path`.
pub(crate) fn read(path: &Path) -> Result<Snapshot, ReadError> {
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ReadError::Missing,
        _ => ReadError::Io(error),
    })?;
    let broken = |error: &dyn std::fmt::Display| ReadError::Broken(error.to_string());
    let (first, body) = text.split_once('\n').ok_or_else(|| broken(&"it has one line only"))?;
    let written: Written = serde_json::from_str(first).map_err(|error| broken(&error))?;
    let (_, error) = split::json(body);
    if let Some(error) = error {
        return Err(broken(&error));
    }
    let Written { written, kinds } = written;
    let written = SystemTime::UNIX_EPOCH + Duration::from_secs(written);
    Ok(Snapshot { text, written, kinds })
}

/// Writes `objects` to `path`: whole or not at all.
pub(crate) fn write(path: &Path, objects: &Objects) -> io::Result<()> {
    let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    name.push(".new");
    let new: PathBuf = path.with_file_name(name);
    let mut out = BufWriter::new(File::create(&new)?);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let kinds = Kind::ALL.map(|kind| kind.as_str().to_owned()).into();
    serde_json::to_writer(&mut out, &Written { written: now, kinds })?;
    writeln!(out)?;
    write!(out, "{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[")?;
    let nodes = objects.nodes.iter().map(|node| of_node(node));
    let pods = objects.pods.iter().map(|pod| of_pod(pod));
    let services = objects.services.iter().map(|service| of_service(service));
    let slices = objects.slices.iter().map(|(name, slice)| of_slice(name, slice));
    let mut parted = false;
    let mut part =
        |out: &mut BufWriter<File>| out.write_all(if std::mem::replace(&mut parted, true) { b",\n" } else { b"\n" });
    for object in nodes.chain(pods).chain(services).chain(slices) {
        part(&mut out)?;
        serde_json::to_writer(&mut out, &object)?;
    }
    for policy in &objects.policies {
        part(&mut out)?;
        serde_json::to_writer(&mut out, &of_policy(policy))?;
    }
    out.write_all(b"\n]}\n")?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&new, path)
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn object(kind: &str, api_version: &str, namespace: &str, name: &str) -> RawObject {
    RawObject {
        api_version: text(api_version),
        kind: text(kind),
        metadata: RawMeta { name: text(name), namespace: text(namespace), ..RawMeta::default() },
        ..RawObject::default()
    }
}

fn of_node(node: &Node) -> RawObject {
    let address = |ip: &IpAddr| RawNodeAddress { kind: text("InternalIP"), address: Some(ip.to_string()) };
    RawObject {
        spec: Some(RawSpec {
            pod_cidrs: Some(node.pod_cidrs.iter().map(ToString::to_string).collect()),
            ..RawSpec::default()
        }),
        status: Some(RawStatus {
            addresses: Some(node.addresses.iter().map(address).collect()),
            ..RawStatus::default()
        }),
        ..object("Node", "v1", "", &node.name)
    }
}

fn of_pod(pod: &Pod) -> RawObject {
    let ip = |ip: &IpAddr| RawPodIp { ip: Some(ip.to_string()) };
    let mut raw = RawObject {
        spec: Some(RawSpec {
            node_name: text(&pod.node),
            host_network: Some(pod.host_network),
            service_account_name: text(&pod.service_account),
            ..RawSpec::default()
        }),
        status: Some(RawStatus { pod_ips: Some(pod.addresses.iter().map(ip).collect()), ..RawStatus::default() }),
        ..object("Pod", "v1", &pod.id.namespace, &pod.id.name)
    };
    raw.metadata.uid = text(&pod.id.uid);
    raw
}

fn of_service(service: &ServiceObject) -> RawObject {
    let mut spec = RawSpec { ports: Some(of_ports(&service.ports)), ..RawSpec::default() };
    match &service.kind {
        ServiceKind::ClusterIp(ips) => {
            spec.cluster_ips = Some(ips.iter().map(ToString::to_string).collect());
        }
        ServiceKind::Headless => spec.cluster_ips = Some(vec!["None".to_owned()]),
        ServiceKind::ExternalName(target) => {
            spec.kind = text("ExternalName");
            spec.external_name = text(target);
        }
    }
    let mut raw = RawObject { spec: Some(spec), ..object("Service", "v1", &service.namespace, &service.name) };
    // The names of Secrets; what is in them is never written.
    raw.metadata.annotations = service.tls.as_ref().map(|tls| {
        let text = |of: &Option<std::sync::Arc<str>>| of.as_deref().and_then(text);
        RawAnnotations {
            tls_secret: text(&tls.secret),
            tls_ca_config_map: text(&tls.ca_config_map),
            backend_tls: text(&tls.backend),
            backend_tls_ca: text(&tls.backend_ca),
            backend_tls_hostname: text(&tls.backend_hostname),
        }
    });
    raw
}

fn of_ports(ports: &[PortObject]) -> Vec<RawPort> {
    let of_port = |port: &PortObject| RawPort {
        name: text(&port.name),
        port: Some(port.port),
        protocol: None,
        app_protocol: (port.app_protocol != AppProtocol::Unknown).then(|| port.app_protocol.as_str().to_owned()),
    };
    ports.iter().map(of_port).collect()
}

/// The API gives policies in this version, whatever they were written in.
fn of_policy(policy: &PolicyObject) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": KIND,
        "metadata": {"name": policy.name, "namespace": policy.policy.namespace()},
        "spec": policy.spec,
    })
}

/// `key` is `namespace/name`; the Service is in the same namespace.
fn of_slice(key: &str, slice: &SliceObject) -> RawObject {
    let (namespace, name) = key.split_once('/').unwrap_or_default();
    let service = slice.service.split_once('/').map_or("", |(_, service)| service);
    let ipv6 = slice.endpoints.first().is_some_and(|endpoint| endpoint.ip.is_ipv6());
    let mut raw = RawObject {
        address_type: text(if ipv6 { "IPv6" } else { "IPv4" }),
        ports: Some(of_ports(&slice.ports)),
        endpoints: Some(slice.endpoints.iter().map(of_endpoint).collect()),
        ..object("EndpointSlice", "discovery.k8s.io/v1", namespace, name)
    };
    raw.metadata.labels = Some(RawLabels { service_name: text(service) });
    raw
}

fn of_endpoint(endpoint: &EndpointObject) -> RawEndpoint {
    let (ready, serving, terminating) = match endpoint.state {
        EndpointState::Ready => (true, true, false),
        EndpointState::Draining => (false, true, true),
        EndpointState::NotReady => (false, false, false),
    };
    RawEndpoint {
        addresses: Some(vec![endpoint.ip.to_string()]),
        conditions: Some(RawConditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) }),
        hostname: endpoint.hostname.as_deref().and_then(text),
        node_name: endpoint.node.as_deref().and_then(text),
        zone: endpoint.zone.as_deref().and_then(text),
        target_ref: endpoint.pod.as_ref().map(|pod| RawTargetRef {
            kind: text("Pod"),
            namespace: text(&pod.namespace),
            name: text(&pod.name),
            uid: text(&pod.uid),
        }),
    }
}
