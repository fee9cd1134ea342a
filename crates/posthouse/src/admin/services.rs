//! `/services` and `/services/{namespace}/{name}`. The list of a big cluster is megabytes, so it is written piece by
//! piece, as fast as the reader reads, from one snapshot of the directory.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use http::{Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame};
use posthouse_model::stats::now_nanos;
use posthouse_model::{Directory, Endpoint, EndpointState, Service, ServiceKind, ServicePort};
use serde::Serialize;

use super::{json, refused};
use crate::server::{Body, set};

/// Roughly how much of the list is written at once.
const PIECE: usize = 32 * 1024;

#[derive(Serialize)]
struct ServiceView<'a, Port> {
    namespace: &'a str,
    name: &'a str,
    kind: &'static str,
    #[serde(skip_serializing_if = "<[IpAddr]>::is_empty")]
    cluster_ips: &'a [IpAddr],
    #[serde(skip_serializing_if = "Option::is_none")]
    external_name: Option<&'a str>,
    changed_seconds_ago: u64,
    ports: Vec<Port>,
}

#[derive(Serialize)]
struct PortSummary<'a> {
    name: &'a str,
    port: u16,
    app_protocol: &'static str,
    endpoints: Counts,
}

#[derive(Serialize)]
struct Counts {
    ready: usize,
    total: usize,
}

#[derive(Serialize)]
struct PortView<'a> {
    name: &'a str,
    port: u16,
    app_protocol: &'static str,
    ready: usize,
    endpoints: Vec<EndpointView<'a>>,
}

#[derive(Serialize)]
struct EndpointView<'a> {
    address: SocketAddr,
    state: &'static str,
    /// Why the address is never dialled; absent when it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    node: Option<&'a str>,
    zone: Option<&'a str>,
    hostname: Option<&'a str>,
    pod: Option<String>,
    in_flight: u32,
    latency_ms: Option<f64>,
    requests: u64,
    failures: u64,
    /// It refused a connection a moment ago, so others are preferred.
    passed_over: bool,
}

/// `/services`.
pub(super) fn list(directory: &Directory) -> Response<Body> {
    let mut services: Vec<Arc<Service>> = directory.services().cloned().collect();
    services.sort_unstable_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let body = ServiceList { rest: services.into_iter(), version: directory.version, phase: ListPhase::Open };
    let mut response = Response::new(body.boxed_unsync());
    set(&mut response, header::CONTENT_TYPE, "application/json");
    response
}

/// `/services/{namespace}/{name}`.
pub(super) fn one(directory: &Directory, namespace: &str, name: &str) -> Response<Body> {
    let key = posthouse_model::directory::service_key(namespace, name);
    match directory.service(&key) {
        Some(service) => {
            let now = now_nanos();
            let port = |port| port_view(port, now);
            json(StatusCode::OK, &service_view(service, port))
        }
        None => {
            refused(StatusCode::NOT_FOUND, format!("no Service '{key}' is known; GET /services lists those that are"))
        }
    }
}

fn service_view<'a, Port>(service: &'a Service, port: impl Fn(&'a ServicePort) -> Port) -> ServiceView<'a, Port> {
    let (kind, cluster_ips, external_name): (_, &[IpAddr], _) = match &service.kind {
        ServiceKind::ClusterIp(ips) => ("ClusterIP", ips.as_slice(), None),
        ServiceKind::Headless => ("Headless", &[], None),
        ServiceKind::ExternalName(target) => ("ExternalName", &[], Some(&**target)),
    };
    ServiceView {
        namespace: &service.namespace,
        name: &service.name,
        kind,
        cluster_ips,
        external_name,
        changed_seconds_ago: SystemTime::now().duration_since(service.changed).map_or(0, |age| age.as_secs()),
        ports: service.ports.iter().map(port).collect(),
    }
}

fn port_summary(port: &ServicePort) -> PortSummary<'_> {
    PortSummary {
        name: &port.name,
        port: port.port,
        app_protocol: port.app_protocol.as_str(),
        endpoints: Counts { ready: port.endpoints.ready(), total: port.endpoints.all().len() },
    }
}

fn port_view(port: &ServicePort, now: u64) -> PortView<'_> {
    PortView {
        name: &port.name,
        port: port.port,
        app_protocol: port.app_protocol.as_str(),
        ready: port.endpoints.ready(),
        endpoints: port.endpoints.all().iter().map(|endpoint| endpoint_view(endpoint, now)).collect(),
    }
}

fn endpoint_view(endpoint: &Endpoint, now: u64) -> EndpointView<'_> {
    let stats = &endpoint.stats;
    EndpointView {
        address: endpoint.address,
        state: match endpoint.state {
            EndpointState::Ready => "ready",
            EndpointState::Draining => "draining",
            EndpointState::NotReady => "not_ready",
        },
        refused: endpoint.refusal.map(|refusal| refusal.to_string()),
        node: endpoint.node.as_deref(),
        zone: endpoint.zone.as_deref(),
        hostname: endpoint.hostname.as_deref(),
        pod: endpoint.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)),
        in_flight: stats.in_flight(),
        latency_ms: stats.latency_nanos().map(|nanos| (nanos as f64 / 1e3).round() / 1e3),
        requests: stats.requests(),
        failures: stats.failures(),
        passed_over: stats.avoided(now),
    }
}

/// The list as a body: one line a Service, so that grep works on it, too.
struct ServiceList {
    rest: std::vec::IntoIter<Arc<Service>>,
    version: u64,
    phase: ListPhase,
}

#[derive(PartialEq)]
enum ListPhase {
    Open,
    Items,
    Closed,
}

impl hyper::body::Body for ServiceList {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut piece = Vec::with_capacity(PIECE + 4096);
        match self.phase {
            ListPhase::Open => {
                piece.extend_from_slice(
                    format!("{{\"directory_version\": {}, \"services\": [", self.version).as_bytes(),
                );
                self.phase = ListPhase::Items;
            }
            ListPhase::Items => piece.push(b','),
            ListPhase::Closed => return Poll::Ready(None),
        }
        while piece.len() < PIECE {
            let Some(service) = self.rest.next() else { break };
            piece.push(b'\n');
            // Plain data into memory: neither the serializer nor the writer can fail.
            let _ = serde_json::to_writer(&mut piece, &service_view(&service, port_summary));
            if self.rest.len() > 0 && piece.len() < PIECE {
                piece.push(b',');
            }
        }
        if self.rest.len() == 0 {
            piece.extend_from_slice(b"\n]}\n");
            self.phase = ListPhase::Closed;
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.phase == ListPhase::Closed
    }
}
