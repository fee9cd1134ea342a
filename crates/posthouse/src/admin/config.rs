//! `/config`: what this proxy was told, and what it makes of it: version, effective flags, the state of each watch, and
//! the manifests that were skipped.

use http::{Response, StatusCode};
use posthouse_discovery::Status;
use posthouse_proxy::MissingPeer;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Admin, json as answer};
use crate::args::{Config, LogFormat, TlsConfig, VERSION};
use crate::server::Body;

#[derive(Serialize)]
struct View {
    version: &'static str,
    uptime_seconds: u64,
    ready: bool,
    /// What the proxy waits for, when it is not ready.
    pending: Vec<&'static str>,
    /// Keyed by the flags' names.
    config: Value,
    directory: Value,
    discovery: Status,
}

/// `/config`.
pub(super) fn show(admin: &Admin) -> Response<Body> {
    let directory = admin.directory.load();
    let size = directory.size();
    let pending = admin.telemetry.pending();
    let view = View {
        version: VERSION,
        uptime_seconds: admin.started.elapsed().map_or(0, |uptime| uptime.as_secs()),
        ready: pending.is_empty(),
        pending,
        config: effective(&admin.config),
        directory: json!({
            "version": directory.version,
            "complete": directory.complete,
            "services": size.services,
            "endpoints": size.endpoints,
            "nodes": size.nodes,
            "peers": size.peers,
            "pods": size.pods,
        }),
        discovery: (admin.discovery)(),
    };
    answer(StatusCode::OK, &view)
}

/// Each flag as it is in force. There are no secrets among them.
fn effective(config: &Config) -> Value {
    let Config {
        node_name,
        node_ips,
        source,
        namespace,
        cluster_domain,
        snapshot,
        tls_secret_namespaces,
        outbound_listen,
        link_listen,
        admin_listen,
        admin_socket,
        metrics_listen,
        workers,
        missing_peer,
        egress_allow,
        drain,
        tls,
        trust_domain,
        log,
        log_format,
    } = config;
    let files = tls.as_ref().and_then(|tls| tls.files.as_ref());
    json!({
        "node-name": node_name,
        "node-ip": node_ips,
        "source": source.to_string(),
        "namespace": namespace,
        "cluster-domain": cluster_domain,
        "snapshot": snapshot,
        "tls-secret-namespaces": tls_secret_namespaces,
        "outbound-listen": outbound_listen,
        "link-listen": link_listen,
        "admin-listen": admin_listen,
        "admin-socket": admin_socket,
        "metrics-listen": metrics_listen,
        "workers": workers,
        "missing-peer": match missing_peer {
            MissingPeer::Direct => "direct",
            MissingPeer::Fail => "fail",
        },
        "egress-allow": egress_allow.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "drain": format!("{}ms", drain.as_millis()),
        "tls": tls.as_ref().map_or("off", TlsConfig::mode),
        "tls-cert": files.map(|files| &files.certificates),
        "tls-key": files.map(|files| &files.key),
        "tls-ca": files.map(|files| &files.roots),
        "identity-cache": tls.as_ref().and_then(|tls| tls.cache.as_ref()),
        "tls-permissive": tls.as_ref().is_some_and(|tls| tls.permissive),
        "trust-domain": trust_domain.as_str(),
        "log": log,
        "log-format": match log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        },
    })
}
