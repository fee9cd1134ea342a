//! The admin API: what the proxy knows, for operators, as JSON. Read only. It asks for no password, so it listens on
//! loopback and answers only what a person at this machine (or behind `kubectl port-forward`) can have asked for: a
//! foreign web page in that person's browser is refused by the rules of [`guard`].

mod config;
mod guard;
mod identity;
mod peers;
mod policies;
mod services;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use http::request::Parts;
use http::{Method, Response, StatusCode, header};
use posthouse_discovery::Status;
use posthouse_identity::Certificates;
use posthouse_model::DirectoryHandle;
use posthouse_proxy::LinkStatus;
use serde::Serialize;

use crate::args::Config;
use crate::server::{Body, Handler, full, set, text};
use crate::telemetry::Telemetry;

/// A path of the admin API, as `/` and the reference page show it.
pub(crate) struct PathDoc {
    pub(crate) path: &'static str,
    pub(crate) help: &'static str,
}

/// Every path.
pub(crate) const PATHS: &[PathDoc] = &[
    PathDoc { path: "/", help: "this list" },
    PathDoc { path: "/services", help: "every Service with its ports and the numbers of their endpoints" },
    PathDoc {
        path: "/services/{namespace}/{name}",
        help: "one Service with every endpoint: node, state, requests in flight, latency, failures",
    },
    PathDoc { path: "/peers", help: "the proxies of the other nodes and the links to them" },
    PathDoc { path: "/policies", help: "every AuthorizationPolicy with its targets, and why it is not accepted if so" },
    PathDoc {
        path: "/config",
        help: "effective configuration, state of each watch, what was skipped and why, version",
    },
    PathDoc {
        path: "/identity",
        help: "the certificate that secures links: whose, by whom, how long, where from, trust roots, the last error",
    },
    PathDoc { path: "/metrics", help: "metrics in Prometheus' text format" },
    PathDoc { path: "/livez", help: "200 while the process runs" },
    PathDoc { path: "/readyz", help: "200 while requests can be served, 503 with what is pending otherwise" },
];

/// What the admin API shows.
pub(crate) struct Admin {
    pub(crate) config: Config,
    pub(crate) directory: DirectoryHandle,
    /// How discovery fares.
    pub(crate) discovery: Box<dyn Fn() -> Status + Send + Sync>,
    /// The state of the links.
    pub(crate) links: Box<dyn Fn() -> Vec<LinkStatus> + Send + Sync>,
    /// None with `--tls off`.
    pub(crate) certificates: Option<Certificates>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) started: SystemTime,
}

impl Handler for Admin {
    fn handle(&self, request: Parts) -> Pin<Box<dyn Future<Output = Response<Body>> + Send + '_>> {
        Box::pin(async move {
            let mut response = match guard::check(&request) {
                Err(refusal) => refused(StatusCode::FORBIDDEN, refusal),
                Ok(()) if request.method != Method::GET => {
                    let mut response = refused(StatusCode::METHOD_NOT_ALLOWED, "the admin API is read only: use GET");
                    set(&mut response, header::ALLOW, "GET");
                    response
                }
                Ok(()) => self.route(request.uri.path()).await,
            };
            set(&mut response, header::CACHE_CONTROL, "no-store");
            set(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
            response
        })
    }
}

impl Admin {
    async fn route(&self, path: &str) -> Response<Body> {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        match segments.as_slice() {
            [""] => text(StatusCode::OK, index()),
            ["services"] => services::list(&self.directory.load()),
            ["services", namespace, name] => services::one(&self.directory.load(), namespace, name),
            ["peers"] => peers::list(&self.directory.load(), (self.links)(), &self.config.node_name),
            ["policies"] => policies::list(&self.directory.load()),
            ["config"] => config::show(self),
            ["identity"] => identity::show(self.config.tls.as_ref(), self.certificates.as_ref()),
            ["metrics"] => self.telemetry.metrics().await,
            ["livez"] => self.telemetry.livez(),
            ["readyz"] => self.telemetry.readyz(),
            _ => refused(StatusCode::NOT_FOUND, format!("no such path '{path}'; GET / lists the paths")),
        }
    }
}

fn index() -> String {
    let width = PATHS.iter().map(|doc| doc.path.len()).max().unwrap_or(0);
    let mut page = format!("posthouse {}: admin API (GET only, JSON)\n\n", crate::args::VERSION);
    for PathDoc { path, help } in PATHS {
        page.push_str(&format!("{path:width$}  {help}\n"));
    }
    page
}

/// A JSON answer, indented: people read it with curl.
fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec_pretty(value) {
        Ok(mut content) => {
            content.push(b'\n');
            let mut response = Response::new(full(content));
            *response.status_mut() = status;
            set(&mut response, header::CONTENT_TYPE, "application/json");
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("the answer cannot be written: {error}\n")),
    }
}

/// An error that says what to do.
fn refused(status: StatusCode, error: impl Into<String>) -> Response<Body> {
    json(status, &serde_json::json!({ "error": error.into() }))
}

#[cfg(test)]
mod tests;
