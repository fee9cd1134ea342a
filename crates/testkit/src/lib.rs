//! Workloads that a proxy is shown and tested with: [`hello`], [`echo`], [`greeter`] and [`tcp`] are pods; [`load`],
//! [`follow`] and [`get`] are clients that take their proxy from the standard variables ([`proxies`]). Each server takes a
//! bound listener and a token that ends it, so that the same code serves as a process or a container
//! (`posthouse-demo-app`) and inside another crate's test.
//! Nothing here knows of the proxy: these are plain applications.

pub mod client;
pub mod echo;
pub mod follow;
pub mod get;
pub mod greeter;
pub mod hello;
pub mod histogram;
pub mod load;
pub mod proxies;
mod server;
pub mod target;
pub mod tcp;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue};

pub use server::Shutdown;

/// The header of hello's and echo's answers that names the pod.
const POD_HEADER: &str = "x-pod";
/// The header of hello's and echo's answers that names the pod's node.
const NODE_HEADER: &str = "x-node";

/// Who answers: a pod says its own and its node's name in each answer, so that a caller sees where a request went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The pod's name.
    pub pod: String,
    /// Its node's name.
    pub node: String,
}

impl Place {
    /// A pod on a node.
    #[must_use]
    pub fn new(pod: impl Into<String>, node: impl Into<String>) -> Self {
        Self { pod: pod.into(), node: node.into() }
    }

    /// Names the pod and its node in an answer's headers; names that no header can hold are left out.
    fn mark(&self, headers: &mut HeaderMap) {
        for (name, value) in [(POD_HEADER, &self.pod), (NODE_HEADER, &self.node)] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
    }

    /// Reads what [`Place::mark`] wrote.
    fn marked(headers: &HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        Some(Self::new(text(POD_HEADER)?, text(NODE_HEADER)?))
    }
}

/// Seconds since 1970, to a tenth of a millisecond: how these clients' lines tell the time.
fn unix_seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs_f64() * 10_000.0).round() / 10_000.0
}

/// Milliseconds, to a thousandth of one.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}
