//! What source `kube` asks of the API server. This is the one list: the requests' paths are made from it, and tests hold the
//! chart's ClusterRole and the table in docs/discovery.md against it, so that a node's proxy is allowed what it needs and
//! nothing else.

use std::fmt;

use crate::status::Kind;

/// What is done with a resource, as RBAC names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The whole collection, in pages.
    List,
    /// Its changes.
    Watch,
}

impl Verb {
    /// As a role has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Watch => "watch",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One resource and what is done with it. All of them are of the whole cluster: RBAC knows no field selector, so that the
/// Pods of one node cannot be granted without the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version in the path. RBAC does not name it.
    pub version: &'static str,
    /// The plural, as in paths and roles.
    pub resource: &'static str,
    /// What is done; nothing else may be asked for.
    pub verbs: &'static [Verb],
    /// What it is needed for, for people who review the role.
    pub why: &'static str,
}

/// Everything that is asked for.
pub const PERMISSIONS: [Permission; 5] = [
    Permission::to_read(Kind::Service),
    Permission::to_read(Kind::EndpointSlice),
    Permission::to_read(Kind::Node),
    Permission::to_read(Kind::Pod),
    Permission::to_read(Kind::AuthorizationPolicy),
];

/// What is asked for in each namespace of `--tls-secret-namespaces`, and in no other. RBAC knows neither types nor names that are not
/// known in advance, so it is all Secrets there, although only those of type kubernetes.io/tls are asked for.
pub const TLS_PERMISSIONS: [Permission; 2] = [Permission::to_read(Kind::Secret), Permission::to_read(Kind::ConfigMap)];

impl Permission {
    /// What it takes to know every object of a kind.
    pub(crate) const fn to_read(kind: Kind) -> Self {
        const VERBS: &[Verb] = &[Verb::List, Verb::Watch];
        let (group, resource, why) = match kind {
            Kind::AuthorizationPolicy => (posthouse_policy::GROUP, "authorizationpolicies", "who may call what"),
            Kind::Service => ("", "services", "names, ports and cluster addresses"),
            Kind::EndpointSlice => ("discovery.k8s.io", "endpointslices", "pods of each Service; the other proxies"),
            Kind::Node => ("", "nodes", "which addresses are nodes and which are pods"),
            Kind::Pod => (
                "",
                "pods",
                "who asks, who is asked; requested for `spec.nodeName` = this node, and for other nodes whose claims are checked",
            ),
            Kind::Secret => ("", "secrets", "certificates of Services; requested for `type` = kubernetes.io/tls"),
            Kind::ConfigMap => ("", "configmaps", "`ca.crt`, by which Services and their pods are verified"),
        };
        let version = match kind {
            Kind::AuthorizationPolicy => posthouse_policy::VERSION,
            Kind::Service | Kind::EndpointSlice | Kind::Node | Kind::Pod | Kind::Secret | Kind::ConfigMap => "v1",
        };
        Self { group, version, resource, verbs: VERBS, why }
    }

    /// The path of a namespace's part of the collection.
    pub(crate) fn path_in(&self, namespace: &str) -> String {
        format!("/api/{}/namespaces/{namespace}/{}", self.version, self.resource)
    }

    /// The collection's path on the API server.
    pub(crate) fn path(&self) -> String {
        let Self { group, version, resource, .. } = self;
        match *group {
            "" => format!("/api/{version}/{resource}"),
            group => format!("/apis/{group}/{version}/{resource}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_in_the_list_once() {
        for kind in Kind::ALL {
            let found = PERMISSIONS.iter().filter(|permission| **permission == Permission::to_read(kind)).count();
            assert_eq!(found, 1, "{kind}");
        }
        assert_eq!(PERMISSIONS.len(), Kind::ALL.len());
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let paths = PERMISSIONS.map(|permission| permission.path());
        let wanted = [
            "/api/v1/services",
            "/apis/discovery.k8s.io/v1/endpointslices",
            "/api/v1/nodes",
            "/api/v1/pods",
            "/apis/posthouse.io/v1alpha1/authorizationpolicies",
        ];
        assert_eq!(paths, wanted);
    }
}
