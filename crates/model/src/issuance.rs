//! What the controller and the nodes' proxies agree on when certificates come from Kubernetes: names of objects and
//! annotations, and how a permission to use the API is written down.

use std::fmt;

/// The signer that nodes' certificate requests name.
pub const SIGNER: &str = "posthouse.io/node";
/// The ConfigMap, in the release's namespace, that holds the trusted roots.
pub const BUNDLE: &str = "posthouse-trust";
/// The key in it: certificates as PEM.
pub const BUNDLE_KEY: &str = "ca.crt";
/// On the ConfigMap: which bundle this is. On a certificate request: the bundle that the node has loaded.
pub const BUNDLE_ANNOTATION: &str = "posthouse.io/trust-bundle";

/// The name of a node in its certificate.
#[must_use]
pub fn node_uri(trust_domain: &str, node: &str) -> String {
    format!("spiffe://{trust_domain}/node/{node}")
}

/// Where a permission counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In the whole cluster.
    Cluster,
    /// In the release's namespace.
    Namespace,
}

/// One thing that is asked of the API server, as RBAC words it. Tests hold the chart's roles against lists of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Where.
    pub scope: Scope,
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The plural, with its subresource if there is one.
    pub resource: &'static str,
    /// Only objects of these names; empty for all.
    pub names: &'static [&'static str],
    /// What is done, as a role has it.
    pub verbs: &'static [&'static str],
    /// What it is needed for, for people who review the role.
    pub why: &'static str,
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verbs.join(","), self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        match self.names {
            [] => Ok(()),
            names => write!(f, " ({})", names.join(", ")),
        }
    }
}
