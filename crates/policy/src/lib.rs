//! Who may call what: the `AuthorizationPolicy` resource and the decision by it. The engine ([`Set`], [`Guard`]) is plain
//! computation over borrowed facts: no IO, no clock. `discovery` fills the set, `proxy` asks it at the receiver's end.

use std::sync::Arc;

/// Who asks, as far as it was verified.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The node from which the request comes; empty when unknown.
    pub node: &'a str,
    /// The verified workload; `None` counts as unidentified.
    pub workload: Option<Workload<'a>>,
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

/// Every policy of the cluster, compiled. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Set {}

impl Set {
    /// The policies that concern pods of `namespace` behind `services` (names of Services there); `None` when no policy does.
    #[must_use]
    pub fn concerning<'a>(&self, _namespace: &str, _services: impl Iterator<Item = &'a str>) -> Option<Arc<Guard>> {
        None
    }
}

/// The policies that concern one target.
#[derive(Debug)]
pub struct Guard {}

impl Guard {
    /// Whether a decision depends on who asks, so that the claim must be verified.
    #[must_use]
    pub fn reads_source(&self) -> bool {
        true
    }

    /// Whether a decision depends on the path, so that it must be in normal form and forwarded so.
    #[must_use]
    pub fn reads_path(&self) -> bool {
        true
    }

    /// Decides.
    #[must_use]
    pub fn decide(&self, _source: &Source<'_>, _target: &Target<'_>, _operation: &Operation<'_>) -> Verdict {
        Verdict { denied_by: None, reason: "", would_deny: None }
    }
}

/// A path in the form in which policies match it and pods get it, or why it has none.
///
/// # Errors
/// A path that servers read in different ways.
pub fn normalise_path(path: &str) -> Result<std::borrow::Cow<'_, str>, &'static str> {
    Ok(path.into())
}
