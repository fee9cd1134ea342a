//! Who may call what: the `AuthorizationPolicy` resource and the decision by it. The engine ([`Set`], [`Guard`]) is plain
//! computation over borrowed facts: no IO, no clock. `discovery` fills the set, `proxy` asks it at the receiver's end.

use std::sync::Arc;

mod cel;
mod compile;
mod guard;
mod path;
mod resource;

pub use compile::{Policy, Problem, validate};
pub use guard::{Guard, Set};
pub use path::normalise_path;
pub use resource::{
    Action, AuthorizationPolicy, AuthorizationPolicySpec, AuthorizationPolicyStatus, From, GROUP, KIND, PathMatch,
    Rule, TargetRef, To, VERSION,
};

/// Who asks, as far as it was verified.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The node from which the request comes; empty when unknown.
    pub node: &'a str,
    /// The verified workload; `None` counts as unidentified.
    pub workload: Option<Workload<'a>>,
    /// A workload was claimed that cannot be checked now: it is unidentified to what allows, and whoever it may be to what denies,
    /// so that nobody gets around a denial by not being checked.
    pub doubtful: bool,
}

/// A pod's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub pod: &'a str,
    /// Its service account.
    pub service_account: &'a str,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// One HTTP request.
    Http {
        /// As sent.
        method: &'a str,
        /// In normal form (see [`normalise_path`]), without the query.
        path: &'a str,
        /// The authority without its port.
        host: &'a str,
    },
    /// Bytes that are not looked into.
    Tunnel,
}

/// The pod that is asked.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name; empty when unknown.
    pub pod: &'a str,
    /// The port that it listens on.
    pub port: u16,
}

/// What is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The policy that denies (`namespace/name`), if one does.
    pub denied_by: Option<Arc<str>>,
    /// Why, in words for the client's error.
    pub reason: &'static str,
    /// A policy in dry run that would have denied.
    pub would_deny: Option<Arc<str>>,
}
