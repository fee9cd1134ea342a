//! Workloads that a proxy is shown and tested with: [`hello`], [`echo`] and [`greeter`] are the demo's pods, [`load`] is
//! a client that counts. Each server takes a bound listener and a token that ends it, so that the same code serves
//! as a process of the demo (`posthouse-demo-app`) and inside another crate's test.
//! Nothing here knows of the proxy: these are plain applications.

pub mod client;
pub mod echo;
pub mod greeter;
pub mod hello;
pub mod histogram;
pub mod load;
mod server;

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
}
