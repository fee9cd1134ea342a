//! What the controller counts.

use posthouse_model::MetricDoc;

pub(crate) const SIGNED: &str = "posthouse_controller_certificates_signed_total";
pub(crate) const DENIED: &str = "posthouse_controller_requests_denied_total";
pub(crate) const FAILURES: &str = "posthouse_controller_failures_total";
pub(crate) const LEADER: &str = "posthouse_controller_leader";
pub(crate) const CA_EXPIRY: &str = "posthouse_controller_ca_expiry_timestamp_seconds";
pub(crate) const ROOTS: &str = "posthouse_controller_trusted_roots";
pub(crate) const UNINFORMED: &str = "posthouse_controller_rotation_nodes_missing";

/// Every metric of the controller.
pub const METRICS: &[MetricDoc] = &[
    MetricDoc { name: SIGNED, kind: "counter", labels: &[], help: "Certificates that were signed for nodes." },
    MetricDoc {
        name: DENIED,
        kind: "counter",
        labels: &["reason"],
        help: "Certificate requests that were denied, by the reason in their condition: NotAProxy, NodeUnknown, WrongName, WrongUsages, WeakKey, UnwantedExtension, BadRequest. Anything but 0 is a proxy that is set up wrong or somebody who tries.",
    },
    MetricDoc {
        name: FAILURES,
        kind: "counter",
        labels: &["task"],
        help: "What the leader could not do and tries again: authority (its Secret, the trust bundle), request (a certificate request), policy (the status of an AuthorizationPolicy).",
    },
    MetricDoc {
        name: LEADER,
        kind: "gauge",
        labels: &[],
        help: "1 on the replica that acts. The sum over all replicas is 1 except for seconds after a leader's death.",
    },
    MetricDoc {
        name: CA_EXPIRY,
        kind: "gauge",
        labels: &[],
        help: "When the certificate of the authority that signs ends, in seconds since 1970. The leader has it.",
    },
    MetricDoc {
        name: ROOTS,
        kind: "gauge",
        labels: &[],
        help: "Roots in the trust bundle: more than 1 while one authority follows another. The leader has it.",
    },
    MetricDoc {
        name: UNINFORMED,
        kind: "gauge",
        labels: &[],
        help: "Nodes that have not yet said that they trust the next authority, while a rotation waits for them. The leader has it.",
    },
];
