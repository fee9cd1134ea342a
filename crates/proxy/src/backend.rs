//! Where a pod is asked: its address and, for `https` ports, how TLS is made to it. Whether it is made is decided at the
//! receiver's end, by the Services that lead to the pod, so that the link carries the same request either way.

use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use posthouse_model::directory::BackendTls;
use posthouse_model::{AppProtocol, Destination, Directory};

/// A value that counts by its place in memory: a new one is a new value, whatever it says.
#[derive(Debug)]
pub(crate) struct Same<T>(pub(crate) Arc<T>);

impl<T> Clone for Same<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> PartialEq for Same<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Eq for Same<T> {}

impl<T> Hash for Same<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// A pod's port, and how it is spoken to. Connections are kept by it: one that was verified in one way is not used for another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<Same<BackendTls>>,
}

impl Backend {
    /// How another node's pod is asked without its node's proxy: as the Service says that was asked for.
    pub(crate) fn of_service(address: SocketAddr, destination: &Destination) -> Self {
        let https = destination.service_port().app_protocol == AppProtocol::Https;
        let tls = destination.service.backend.as_ref().filter(|_| https).map(|backend| Same(Arc::clone(backend)));
        Self { address, tls }
    }

    /// How the pod of this node at `address` is asked. Anyone may write a slice with a pod's address, so the Services of the pod's own namespace
    /// decide where there are any, and TLS is made only where none of them says otherwise.
    pub(crate) fn find(address: SocketAddr, directory: &Directory) -> Self {
        let home = directory.pod_by_ip(address.ip()).map(|pod| &*pod.id.namespace);
        let entries = directory.endpoints_at(address);
        let at_home = |key: &str| home.is_none_or(|home| key.split_once('/').is_some_and(|(of, _)| of == home));
        let any_at_home = entries.iter().any(|(key, _)| at_home(key));
        let mut tls = None;
        for (key, _) in entries.iter().filter(|(key, _)| at_home(key) || !any_at_home) {
            let Some(service) = directory.service(key) else { continue };
            let leads_here = service
                .ports
                .iter()
                .filter(|port| port.endpoints.all().iter().any(|endpoint| endpoint.address == address));
            for port in leads_here {
                match (&service.backend, port.app_protocol) {
                    (Some(backend), AppProtocol::Https) => tls = Some(Same(Arc::clone(backend))),
                    _ => return Self { address, tls: None },
                }
            }
        }
        Self { address, tls }
    }
}
