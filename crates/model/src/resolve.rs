//! From an authority to a destination, by our own table and never by DNS: Service names in all their lengths, headless
//! pod names, cluster addresses and pod addresses. What is not found is refused with a reason that tells the operator
//! what to do.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::address::{self, Refusal};
use crate::authority::{Authority, Host};
use crate::directory::{Directory, Endpoint, Service, ServiceKind, ServicePort};

/// Where a request goes: a Service port and, when the name meant one pod, that endpoint alone.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The Service.
    pub service: Arc<Service>,
    /// Index into the Service's ports.
    pub port: usize,
    /// The one endpoint that was named (headless pod name, pod address).
    pub endpoint: Option<Arc<Endpoint>>,
}

impl Destination {
    /// The Service port that was resolved.
    #[must_use]
    pub fn service_port(&self) -> &ServicePort {
        &self.service.ports[self.port]
    }
}

/// Why an authority leads nowhere. `Display` gives the words for the client and the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// Names no Service of the cluster.
    #[error("no Service '{name}' is known{}; names outside the cluster are served only where --egress-allow has them, else list them in the application's NO_PROXY", .namespace.as_ref().map(|ns| format!(" from namespace '{ns}'")).unwrap_or_default())]
    UnknownName {
        /// As the client wrote it.
        name: String,
        /// The client's namespace.
        namespace: Option<String>,
    },
    /// The name is complete only with a namespace, and the client has none (not a pod of this node).
    #[error(
        "the short name '{name}' needs the client's namespace, but the client is not a known pod; write '{name}.<namespace>'"
    )]
    NeedsNamespace {
        /// As the client wrote it.
        name: String,
    },
    /// The Service has no such port.
    #[error("Service {service} has no port {port}; its ports are {ports}")]
    UnknownPort {
        /// namespace/name.
        service: String,
        /// The asked port.
        port: u16,
        /// Those that exist.
        ports: String,
    },
    /// A headless Service has no endpoint of that hostname.
    #[error("Service {service} has no endpoint with hostname '{hostname}'")]
    UnknownHostname {
        /// namespace/name.
        service: String,
        /// The asked one.
        hostname: String,
    },
    /// A Service of type ExternalName.
    #[error(
        "Service {service} is an ExternalName for '{target}', which is outside the cluster and not in --egress-allow: list it there or in the application's NO_PROXY"
    )]
    ExternalName {
        /// namespace/name.
        service: String,
        /// Its target.
        target: String,
    },
    /// An IP literal that is no Service and no endpoint.
    #[error(
        "{ip}:{port} is neither a Service's cluster address nor a known endpoint; other addresses are served only where --egress-allow has them, else list them in the application's NO_PROXY"
    )]
    UnknownAddress {
        /// The address.
        ip: IpAddr,
        /// The port.
        port: u16,
    },
    /// An IP literal that is never allowed.
    #[error("{ip} is refused: {refusal}; if the application needs it, list it in its NO_PROXY")]
    Refused {
        /// The address.
        ip: IpAddr,
        /// Why.
        refusal: Refusal,
    },
}

impl Directory {
    /// Finds the destination of `authority` for a client in `namespace` (`None`: not a known pod). `default_port` is 80
    /// (443 for https); a Service that lacks it and has exactly one port is reached by that one.
    ///
    /// # Errors
    /// The reason in words for the operator.
    pub fn resolve(
        &self,
        authority: &Authority<'_>,
        default_port: u16,
        namespace: Option<&str>,
        cluster_domain: &str,
    ) -> Result<Destination, Unresolved> {
        match authority.host {
            Host::Ip(ip) => self.resolve_ip(ip, authority.port, default_port),
            Host::Name(name) => self.resolve_name(name, authority.port, default_port, namespace, cluster_domain),
        }
    }

    fn resolve_ip(&self, ip: IpAddr, port: Option<u16>, default_port: u16) -> Result<Destination, Unresolved> {
        if let Some(service) = self.service_by_cluster_ip(ip) {
            return select_port(service, port, default_port, None);
        }
        let port = port.unwrap_or(default_port);
        // Services may share the endpoint: one that may be dialled goes before one that may not (a Service without a
        // selector can name any address), then the first by name, so that all nodes choose alike.
        let entries = self.endpoints_at(SocketAddr::new(ip, port));
        if let Some((key, endpoint)) = entries.iter().min_by_key(|(key, e)| (e.refusal.is_some(), key)) {
            if let Some(refusal) = endpoint.refusal {
                return Err(Unresolved::Refused { ip, refusal });
            }
            if let Some(service) = self.service(key)
                && let Some(at) =
                    service.ports.iter().position(|p| p.endpoints.all().iter().any(|e| Arc::ptr_eq(e, endpoint)))
            {
                return Ok(Destination {
                    service: Arc::clone(service),
                    port: at,
                    endpoint: Some(Arc::clone(endpoint)),
                });
            }
        }
        match address::check(ip, port, false, self) {
            Err(refusal) => Err(Unresolved::Refused { ip, refusal }),
            Ok(()) => Err(Unresolved::UnknownAddress { ip, port }),
        }
    }

    fn resolve_name(
        &self,
        written: &str,
        port: Option<u16>,
        default_port: u16,
        namespace: Option<&str>,
        cluster_domain: &str,
    ) -> Result<Destination, Unresolved> {
        let unknown = || Unresolved::UnknownName { name: written.to_owned(), namespace: namespace.map(str::to_owned) };
        let lower = written.to_ascii_lowercase();
        // Right to left: cluster domain, "svc", namespace, service, pod hostname.
        let name = lower
            .strip_suffix(cluster_domain)
            .and_then(|rest| rest.strip_suffix('.'))
            .filter(|rest| rest.ends_with(".svc"))
            .unwrap_or(&lower);
        let labels: SmallVec<[&str; 4]> = name.split('.').collect();
        let lookup = |ns: &str, svc: &str| self.service(&key_on_stack(ns, svc));
        let (service, hostname) = match labels.as_slice() {
            [svc] => {
                let ns = namespace.ok_or_else(|| Unresolved::NeedsNamespace { name: written.to_owned() })?;
                (lookup(ns, svc).ok_or_else(unknown)?, None)
            }
            [svc, ns, "svc"] => (lookup(ns, svc).ok_or_else(unknown)?, None),
            [host, svc, ns, "svc"] => (lookup(ns, svc).ok_or_else(unknown)?, Some(*host)),
            [svc, ns] => match lookup(ns, svc) {
                Some(service) => (service, None),
                // As a resolver with the pod's search list would: `pod.svc` in the client's own namespace.
                None => (namespace.and_then(|own| lookup(own, ns)).ok_or_else(unknown)?, Some(*svc)),
            },
            [host, svc, ns] => (lookup(ns, svc).ok_or_else(unknown)?, Some(*host)),
            _ => return Err(unknown()),
        };
        select_port(service, port, default_port, hostname)
    }
}

/// `namespace/name` without a second allocation for the two parts.
fn key_on_stack(namespace: &str, name: &str) -> String {
    let mut key = String::with_capacity(namespace.len() + name.len() + 1);
    key.push_str(namespace);
    key.push('/');
    key.push_str(name);
    key
}

fn select_port(
    service: &Arc<Service>,
    port: Option<u16>,
    default_port: u16,
    hostname: Option<&str>,
) -> Result<Destination, Unresolved> {
    let name = || format!("{}/{}", service.namespace, service.name);
    if let ServiceKind::ExternalName(target) = &service.kind {
        return Err(Unresolved::ExternalName { service: name(), target: target.to_string() });
    }
    let wanted = port.unwrap_or(default_port);
    let by_number = service.ports.iter().position(|p| p.port == wanted);
    let only_one = || (port.is_none() && service.ports.len() == 1).then_some(0);
    let Some(at) = by_number.or_else(only_one).or_else(|| headless_port(service, wanted)) else {
        let ports: Vec<String> = service.ports.iter().map(|p| p.port.to_string()).collect();
        let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(", ") };
        return Err(Unresolved::UnknownPort { service: name(), port: wanted, ports });
    };
    let endpoint = match hostname {
        None => None,
        Some(hostname) => Some(
            service.ports[at]
                .endpoints
                .all()
                .iter()
                .find(|e| e.refusal.is_none() && e.hostname.as_deref() == Some(hostname))
                .cloned()
                .ok_or_else(|| Unresolved::UnknownHostname { service: name(), hostname: hostname.to_owned() })?,
        ),
    };
    Ok(Destination { service: Arc::clone(service), port: at, endpoint })
}

/// The port of a headless Service whose pods listen on `wanted`: without a cluster address nothing translates ports, so
/// clients write the pods' own.
fn headless_port(service: &Service, wanted: u16) -> Option<usize> {
    let listens = |p: &ServicePort| p.endpoints.all().iter().any(|e| e.address.port() == wanted);
    (service.kind == ServiceKind::Headless).then(|| service.ports.iter().position(listens)).flatten()
}
