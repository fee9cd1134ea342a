//! Plain objects: what is kept of a Service, EndpointSlice, Pod, Node or AuthorizationPolicy after parsing. They hold only what the directory
//! needs, compare by value (an object that comes again unchanged costs nothing) and can be written back as manifests
//! (see `snapshot`).

use std::net::IpAddr;
use std::sync::Arc;

use posthouse_model::{AppProtocol, EndpointState, Node, Pod, PodRef, ServiceKey, ServiceKind};
use posthouse_policy::Policy;
use serde_json::Value;
use smallvec::SmallVec;

use crate::status::Kind;

/// Names an object: its kind and `namespace/name` (a Node: its name).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) name: Arc<str>,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Stands in for the uid of a Pod that was written by hand without one. No uid has a colon; and none of its parts a slash, which
/// parts the claim of a sender.
pub(crate) fn stand_in_uid(namespace: &str, name: &str) -> Arc<str> {
    Arc::from([namespace, ":", name].concat())
}

/// An object that the directory is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Service(ServiceObject),
    Slice(SliceObject),
    Pod(Pod),
    Node(Node),
    /// Of a Secret or a ConfigMap.
    Material(Material),
    Policy(PolicyObject),
}

/// An AuthorizationPolicy, compiled, and what it was compiled from.
#[derive(Clone, Debug)]
pub(crate) struct PolicyObject {
    pub(crate) name: Arc<str>,
    /// As it was written; null when there was none.
    pub(crate) spec: Arc<Value>,
    pub(crate) policy: Arc<Policy>,
}

impl PartialEq for PolicyObject {
    /// The spec is all that counts: a status or a label changes nothing.
    fn eq(&self, other: &Self) -> bool {
        self.policy.key() == other.policy.key()
            && self.spec == other.spec
            && self.policy.problem() == other.policy.problem()
    }
}

impl Eq for PolicyObject {}

/// A Service without its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceObject {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) kind: ServiceKind,
    /// TCP ports only.
    pub(crate) ports: SmallVec<[PortObject; 1]>,
    /// What is annotated of TLS; mostly nothing.
    pub(crate) tls: Option<Box<TlsAnnotations>>,
}

/// The annotations `posthouse.io/...` of a Service, as they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsAnnotations {
    /// `tls-secret`: a Secret's name.
    pub(crate) secret: Option<Arc<str>>,
    /// `tls-ca-configmap`: a ConfigMap's name.
    pub(crate) ca_config_map: Option<Arc<str>>,
    /// `backend-tls`: `verify` or `insecure`.
    pub(crate) backend: Option<Arc<str>>,
    /// `backend-tls-ca`: `configmap/NAME` or `secret/NAME`.
    pub(crate) backend_ca: Option<Arc<str>>,
    /// `backend-tls-hostname`.
    pub(crate) backend_hostname: Option<Arc<str>>,
}

/// What a Secret or a ConfigMap has of certificates, as PEM; what is empty is absent.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Material {
    /// `tls.crt`.
    pub(crate) certificates: Option<Vec<u8>>,
    /// `tls.key`.
    pub(crate) key: Option<Vec<u8>>,
    /// `ca.crt`.
    pub(crate) roots: Option<Vec<u8>>,
}

impl std::fmt::Debug for Material {
    /// Without any of it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").finish_non_exhaustive()
    }
}

/// A TCP port of a Service or of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortObject {
    pub(crate) name: Arc<str>,
    pub(crate) port: u16,
    pub(crate) app_protocol: AppProtocol,
}

/// An EndpointSlice of addresses (not of names).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SliceObject {
    /// The Service that its label names.
    pub(crate) service: ServiceKey,
    /// TCP ports with a number.
    pub(crate) ports: SmallVec<[PortObject; 1]>,
    pub(crate) endpoints: Box<[EndpointObject]>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointObject {
    pub(crate) ip: IpAddr,
    pub(crate) state: EndpointState,
    pub(crate) node: Option<Arc<str>>,
    pub(crate) zone: Option<Arc<str>>,
    pub(crate) hostname: Option<Arc<str>>,
    pub(crate) pod: Option<PodRef>,
}

/// What an object was reduced to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reduced {
    pub(crate) key: Key,
    /// `None`: it exists but means nothing to us (a finished Pod, another node's Pod, a slice of no Service).
    pub(crate) object: Option<Object>,
    /// Parts of it that were passed over, in words.
    pub(crate) notes: Vec<String>,
}
