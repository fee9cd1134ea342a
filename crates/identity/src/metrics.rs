//! What is counted of links' security. Names and meanings are in [`METRICS`], which the reference page is held against.

use posthouse_model::MetricDoc;

pub(crate) const CERTIFICATE_EXPIRY: &str = "posthouse_certificate_expiry_timestamp_seconds";
pub(crate) const INSTALLS: &str = "posthouse_certificate_installs_total";
pub(crate) const HANDSHAKES: &str = "posthouse_link_handshakes_total";
pub(crate) const PLAIN_LINKS: &str = "posthouse_link_plain_connections";
pub(crate) const PLAIN_LINKS_TOTAL: &str = "posthouse_link_plain_connections_total";
/// The data plane's, which documents it: one place for all limits.
pub(crate) const LIMIT_REACHED: &str = "posthouse_limit_reached_total";

/// Every metric of this crate.
pub const METRICS: &[MetricDoc] = &[
    MetricDoc {
        name: CERTIFICATE_EXPIRY,
        kind: "gauge",
        labels: &[],
        help: "When the node's certificate ends, in seconds since 1970; absent without TLS.",
    },
    MetricDoc {
        name: INSTALLS,
        kind: "counter",
        labels: &["result"],
        help: "Certificates of the node that were taken into use ('ok') or could not be ('rejected'; the one before is kept, /identity says why).",
    },
    MetricDoc {
        name: HANDSHAKES,
        kind: "counter",
        labels: &["direction", "result", "kind"],
        help: "TLS handshakes of links, 'in' (from peers) and 'out' (to peers), by kind 'full', 'resumed' or 'none' (failed before it was known) and result: 'ok'; 'no_certificate', 'expired', 'not_yet_valid', 'unknown_issuer', 'identity' (another node's name, or none), 'certificate' (any other fault of the peer's certificate); 'unknown_node' (of the trust domain, but not in the directory), 'address' (the address is another node's); 'peer_refused' (by an alert, or closed after the handshake); 'no_alpn', 'plain' (no TLS), 'protocol', 'closed', 'timeout', 'limit'; 'own_certificate' (this node has none that is valid), 'service_certificate' (a Service's own cannot be used).",
    },
    MetricDoc {
        name: PLAIN_LINKS,
        kind: "gauge",
        labels: &["direction"],
        help: "Links without TLS that are open while --tls-permissive allows them, 'in' and 'out'.",
    },
    MetricDoc {
        name: PLAIN_LINKS_TOTAL,
        kind: "counter",
        labels: &["direction"],
        help: "Links without TLS that were made while --tls-permissive allowed them, 'in' and 'out'. When it no longer grows on any node, --tls-permissive can be taken away.",
    },
];
