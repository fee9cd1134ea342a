//! `/policies`: who may call what, as this node decides it.

use http::{Response, StatusCode};
use posthouse_model::Directory;
use posthouse_policy::{Action, Policy};
use serde::Serialize;

use super::json;
use crate::server::Body;

#[derive(Serialize)]
struct Policies<'a> {
    directory_version: u64,
    policies: Vec<PolicyView<'a>>,
}

#[derive(Serialize)]
struct PolicyView<'a> {
    namespace: &'a str,
    name: &'a str,
    /// `null`: not accepted, so that it denies every request to its targets.
    action: Option<&'static str>,
    dry_run: bool,
    /// Names of Services; none: the whole namespace.
    targets: Vec<&'a str>,
    accepted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// `/policies`.
pub(super) fn list(directory: &Directory) -> Response<Body> {
    let policies = directory.policies.iter().map(|policy| view(policy)).collect();
    json(StatusCode::OK, &Policies { directory_version: directory.version, policies })
}

fn view(policy: &Policy) -> PolicyView<'_> {
    PolicyView {
        namespace: policy.namespace(),
        name: policy.key().split_once('/').map_or("", |(_, name)| name),
        action: policy.action().map(Action::as_str),
        dry_run: policy.is_dry_run(),
        targets: policy.targets().iter().map(|target| &**target).collect(),
        accepted: policy.problem().is_none(),
        reason: policy.problem().map(|problem| problem.reason()),
        message: policy.problem().map(ToString::to_string),
    }
}
