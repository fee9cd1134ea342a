//! What the controller asks of the API server: the one list. Tests hold the chart's roles against it, and the fake API server
//! of the tests refuses whatever is not in it.

use posthouse_model::issuance::{BUNDLE, Grant, SIGNER, Scope};

use crate::keeper::{DEPLOYMENT, SECRET};
use crate::leader::LEASE;
use crate::reports::ROTATION;

/// Everything that is asked for.
pub const PERMISSIONS: &[Grant] = &[
    Grant {
        scope: Scope::Cluster,
        group: "certificates.k8s.io",
        resource: "certificatesigningrequests",
        names: &[],
        verbs: &["list", "watch"],
        why: "nodes' certificate requests; asked for with spec.signerName = posthouse.io/node",
    },
    Grant {
        scope: Scope::Cluster,
        group: "certificates.k8s.io",
        resource: "certificatesigningrequests/approval",
        names: &[],
        verbs: &["update"],
        why: "to approve and deny them",
    },
    Grant {
        scope: Scope::Cluster,
        group: "certificates.k8s.io",
        resource: "certificatesigningrequests/status",
        names: &[],
        verbs: &["update"],
        why: "to write the certificate into them",
    },
    Grant {
        scope: Scope::Cluster,
        group: "certificates.k8s.io",
        resource: "signers",
        names: &[SIGNER],
        verbs: &["approve", "sign"],
        why: "only for this signer do the two above count",
    },
    Grant {
        scope: Scope::Cluster,
        group: "posthouse.io",
        resource: "authorizationpolicies",
        names: &[],
        verbs: &["list", "watch"],
        why: "whether each can be used",
    },
    Grant {
        scope: Scope::Cluster,
        group: "posthouse.io",
        resource: "authorizationpolicies/status",
        names: &[],
        verbs: &["update"],
        why: "to write that into it",
    },
    Grant {
        scope: Scope::Namespace,
        group: "",
        resource: "secrets",
        names: &[SECRET],
        verbs: &["get", "update"],
        why: "the authority's certificate and key",
    },
    Grant {
        scope: Scope::Namespace,
        group: "",
        resource: "secrets",
        names: &[],
        verbs: &["create"],
        why: "to make it (RBAC cannot restrict the names of what is made)",
    },
    Grant {
        scope: Scope::Namespace,
        group: "",
        resource: "configmaps",
        names: &[BUNDLE, ROTATION],
        verbs: &["get", "update"],
        why: "the trust bundle; which nodes have loaded it",
    },
    Grant {
        scope: Scope::Namespace,
        group: "",
        resource: "configmaps",
        names: &[],
        verbs: &["create"],
        why: "to make them",
    },
    Grant {
        scope: Scope::Namespace,
        group: "discovery.k8s.io",
        resource: "endpointslices",
        names: &[],
        verbs: &["list"],
        why: "on which nodes there are proxies that must know a new root",
    },
    Grant {
        scope: Scope::Namespace,
        group: "apps",
        resource: "deployments",
        names: &[DEPLOYMENT],
        verbs: &["get"],
        why: "the owner of what it makes, so that an uninstall takes that away",
    },
    Grant {
        scope: Scope::Namespace,
        group: "coordination.k8s.io",
        resource: "leases",
        names: &[LEASE],
        verbs: &["get", "update"],
        why: "which replica acts",
    },
    Grant {
        scope: Scope::Namespace,
        group: "coordination.k8s.io",
        resource: "leases",
        names: &[],
        verbs: &["create"],
        why: "to make it",
    },
];
