//! `/identity`: the certificate that this node links with, and what stands in the way of a newer one.

use std::time::SystemTime;

use http::{Response, StatusCode};
use posthouse_identity::{CertificateState, Certificates, Rejected, Root, rfc3339};
use serde_json::{Value, json};

use super::json as answer;
use crate::args::TlsConfig;
use crate::server::Body;

/// `/identity`.
pub(super) fn show(tls: Option<&TlsConfig>, certificates: Option<&Certificates>) -> Response<Body> {
    let view = match (tls, certificates) {
        (Some(tls), Some(certificates)) => view(tls, certificates),
        _ => json!({
            "tls": "off",
            "hint": "links are not encrypted, and a peer is who its address says; --tls node gives each node a certificate",
        }),
    };
    answer(StatusCode::OK, &view)
}

fn view(tls: &TlsConfig, certificates: &Certificates) -> Value {
    let state = certificates.state();
    json!({
        "tls": tls.mode(),
        "permissive": tls.permissive,
        "spiffe_id": state.id.as_str(),
        "epoch": state.epoch,
        "certificate": state.certificate.as_ref().map(certificate),
        "roots": state.certificate.iter().flat_map(|certificate| &certificate.roots).map(root).collect::<Vec<_>>(),
        "last_error": state.rejected.as_ref().map(|Rejected { source, error, at }| json!({
            "source": source,
            "error": error,
            "since": rfc3339(*at),
        })),
    })
}

fn certificate(certificate: &CertificateState) -> Value {
    let CertificateState { serial, fingerprint, issuer, not_before, not_after, roots: _, source, installed } =
        certificate;
    let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
    json!({
        "serial": serial,
        "fingerprint_sha256": fingerprint,
        "issuer": issuer,
        "not_before": rfc3339(*not_before),
        "not_after": rfc3339(*not_after),
        "expires_in_seconds": left.as_secs(),
        "source": source,
        "installed": rfc3339(*installed),
    })
}

fn root(root: &Root) -> Value {
    let Root { subject, fingerprint, not_before, not_after } = root;
    json!({
        "subject": subject,
        "fingerprint_sha256": fingerprint,
        "not_before": rfc3339(*not_before),
        "not_after": rfc3339(*not_after),
    })
}
