//! What is counted of links' security. Names and meanings are in [`METRICS`], which the reference page is held against.

use posthouse_model::MetricDoc;

pub(crate) const CERTIFICATE_EXPIRY: &str = "posthouse_certificate_expiry_timestamp_seconds";
pub(crate) const INSTALLS: &str = "posthouse_certificate_installs_total";

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
];
