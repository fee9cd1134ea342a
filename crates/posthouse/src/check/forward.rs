//! HTTP/1.1 to a port of a pod, through the API server and the kubelet (port-forward). The proxies are on their nodes'
//! network, so to them it comes from 127.0.0.1.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::Portforwarder;
use posthouse_discovery::chain;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::api::{Cluster, Trouble};

/// `/peers` of 5,000 nodes is 1.3 MB. An application's answer is cut off here.
const MAX_BODY: usize = 8 << 20;
/// How long the kubelet's own words are waited for after the connection broke.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A connection to one port of a pod.
pub(super) struct Forwarded {
    sender: SendRequest<Empty<Bytes>>,
    port: u16,
    patience: Duration,
    refusal: Refusal,
    forwarder: Portforwarder,
    /// Ends with this.
    _connection: JoinSet<()>,
}

/// Resolves when the kubelet cannot reach the port, in its words; once.
struct Refusal(Option<Pin<Box<dyn Future<Output = Option<String>> + Send>>>);

impl Refusal {
    /// May be dropped and called again.
    async fn words(&mut self) -> Option<String> {
        let words = self.0.as_mut()?.await;
        self.0 = None;
        words
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

/// An answer and how long it took.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) took: Duration,
    /// This machine's time half-way.
    pub(super) asked: SystemTime,
}

impl Forwarded {
    pub(super) async fn open(cluster: &Cluster, pod: &str, port: u16) -> Result<Self, Trouble> {
        let api = Api::<Pod>::namespaced(cluster.client.clone(), &cluster.namespace);
        let mut forwarder = cluster.ask(api.portforward(pod, &[port])).await?;
        let (Some(stream), Some(refusal)) = (forwarder.take_stream(port), forwarder.take_error(port)) else {
            return Err(Trouble::Other(format!("port {port} is not forwarded")));
        };
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Trouble::Other(chain(&error)))?;
        let mut running = JoinSet::new();
        running.spawn(async move {
            // How it ended shows in the answer.
            let _ = connection.await;
        });
        let patience = cluster.patience;
        Ok(Self { sender, port, patience, refusal: Refusal(Some(Box::pin(refusal))), forwarder, _connection: running })
    }

    /// Sends a GET; an absolute URI goes out as one, as to a proxy.
    pub(super) async fn get(&mut self, uri: &Uri) -> Result<Answer, Trouble> {
        let host = uri.authority().map_or_else(|| format!("localhost:{}", self.port), ToString::to_string);
        let request = Request::get(uri)
            .header(header::HOST, host)
            .header(header::USER_AGENT, concat!("posthouse-check/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| Trouble::Other(error.to_string()))?;
        let (wall, begun) = (SystemTime::now(), Instant::now());
        let sender = &mut self.sender;
        let exchange = async {
            sender.ready().await?;
            let (head, body) = sender.send_request(request).await?.into_parts();
            let took = begun.elapsed();
            // The head counts; a body that is too long is none of ours.
            let body = Limited::new(body, MAX_BODY).collect().await.map(http_body_util::Collected::to_bytes);
            Ok((head, body.unwrap_or_default(), took))
        };
        tokio::pin!(exchange);
        let answered = tokio::select! {
            answered = timeout(self.patience, &mut exchange) => answered,
            Some(words) = self.refusal.words() => return Err(Trouble::Other(refused(self.port, &words))),
        };
        let error: hyper::Error = match answered {
            Ok(Ok((head, body, took))) => {
                let asked = wall + took / 2;
                return Ok(Answer { status: head.status, headers: head.headers, body, took, asked });
            }
            Ok(Err(error)) => error,
            Err(_) => return Err(Trouble::Slow(self.patience)),
        };
        match timeout(LAST_WORDS, self.refusal.words()).await {
            Ok(Some(words)) => Err(Trouble::Other(refused(self.port, &words))),
            _ => Err(Trouble::Other(format!("the connection to port {} ended: {}", self.port, chain(&error)))),
        }
    }
}

/// The kubelet's words are long, and mostly mean one thing.
fn refused(port: u16, words: &str) -> String {
    match words.contains("connection refused") {
        true => format!("nothing listens on 127.0.0.1:{port} of the node"),
        false => format!("port {port} cannot be reached: {}", words.trim()),
    }
}
