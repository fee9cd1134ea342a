//! The resource as a user writes it. Its words are the schema's, so that `kubectl explain` shows them.

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// The API group of our resources.
pub const GROUP: &str = "posthouse.io";
/// The version of the resource.
pub const VERSION: &str = "v1alpha1";
/// Its kind.
pub const KIND: &str = "AuthorizationPolicy";

/// Who may call which pods, and how. Enforced by the proxy on the called pod's node.
///
/// Deny wins. Where an Allow policy concerns a pod, what no Allow policy matches is denied; where none does, everything is
/// allowed that no Deny policy matches. A policy that is not accepted denies every request to its targets.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "posthouse.io",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    namespaced,
    status = "AuthorizationPolicyStatus",
    shortname = "authzpolicy",
    category = "posthouse",
    printcolumn = r#"{"name":"Action","type":"string","jsonPath":".spec.action"}"#,
    printcolumn = r#"{"name":"DryRun","type":"boolean","jsonPath":".spec.dryRun"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    doc = "Who may call which pods, and how. Enforced by the proxy on the called pod's node. Deny wins. Where an Allow policy concerns a pod, what no Allow policy matches is denied; where none does, everything is allowed that no Deny policy matches. A policy that is not accepted denies every request to its targets.",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// The Services of this namespace whose pods it concerns, on all their ports. Absent or empty: every pod of the namespace.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub target_refs: Option<Vec<TargetRef>>,
    /// What happens to a request that the policy matches.
    pub action: Action,
    /// Only report what the policy would deny, in metrics and logs; nothing is denied by it.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    /// The policy matches where any of its rules does. No rules match nothing: an Allow policy without rules allows nothing,
    /// which denies every request to its targets that no other Allow policy matches.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub rules: Option<Vec<Rule>>,
}

/// A Service of the policy's own namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// The API group: the core group, which is written as nothing.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [""]))]
    pub group: Option<String>,
    /// `Service`.
    #[schemars(extend("enum" = ["Service"]))]
    pub kind: String,
    /// Its name. The Service need not exist yet.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// What happens to a request that a policy matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// It is allowed, unless a Deny policy matches it, too; what no Allow policy matches is denied.
    Allow,
    /// It is denied.
    Deny,
}

impl Action {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "Allow",
            Self::Deny => "Deny",
        }
    }
}

/// Matches a request when `from`, `to` and `when` do. A rule without any of them matches every request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Who asks: one of these. Absent or empty: anyone, whether identified or not.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub from: Option<Vec<From>>,
    /// What is asked for: one of these. Absent or empty: anything.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub to: Option<Vec<To>>,
    /// A condition in CEL, of at most 4096 bytes, over `source` (`namespace`, `pod`, `serviceAccount`, `node`, `identified`),
    /// `request` (`method`, `path`, `host`; null for a tunnel) and `target` (`namespace`, `pod`, `port`). Macros may walk over
    /// lists that are written out. What fails to evaluate does not match in an Allow policy and matches in a Deny policy.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub when: Option<String>,
}

/// Who asks: every field that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct From {
    /// One of these service accounts: `namespace/name`, `name` (of the policy's own namespace) or `namespace/*`.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub service_accounts: Option<Vec<String>>,
    /// A pod in one of these namespaces.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub namespaces: Option<Vec<String>>,
    /// From one of these nodes. A node is known by its certificate, also where the pod is not.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub nodes: Option<Vec<String>>,
    /// true: only those who are not identified as a pod. false: only those who are. A Deny policy on certain accounts or
    /// namespaces does not match who is not identified; where that matters, write an Allow policy.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub unidentified: Option<bool>,
}

/// What is asked for: every field that is given must match. Bytes that are not looked into (a tunnel) have no method, path or
/// host: an entry with one of these matches no tunnel in an Allow policy, and in a Deny policy it matches tunnels as if
/// these fields did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct To {
    /// One of these HTTP methods, in capitals. gRPC calls have POST.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub methods: Option<Vec<String>>,
    /// One of these paths. Paths are compared without the query, in normal form and with percent-encoding undone; they are
    /// case-sensitive. gRPC calls have `/package.Service/Method`.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub paths: Option<Vec<PathMatch>>,
    /// One of these ports that the pod listens on (not the Service's).
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), inner(range(min = 1, max = 65535)))]
    pub ports: Option<Vec<u16>>,
    /// One of these hosts, as the client wrote it and without a port: exact, or `*.example.org` for every name below
    /// `example.org`. Case does not matter.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub hosts: Option<Vec<String>>,
}

/// A path: exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub struct PathMatch {
    /// This path: absolute, in normal form, without query. `*` is that of `OPTIONS *`. A slash at the end makes a difference
    /// here, but not to every server: a Deny rule is safer with `prefix`.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub exact: Option<String>,
    /// This path and every one below it, by whole segments: `/api` matches `/api` and `/api/x`, not `/apix`. A slash at the
    /// end makes no difference.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub prefix: Option<String>,
}

/// A field that is given has a value: null, which is what a template makes of a value that is missing, would mean anyone or
/// anything.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// How the policy fares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicyStatus {
    /// `Accepted` says whether the policy can be used; when it is False, every request to its targets is denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>,
}

/// metav1.Condition, a map by type.
fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "`Accepted` says whether the policy can be used; when it is False, every request to its targets is denied.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {"type": "string", "maxLength": 316},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                "lastTransitionTime": {"type": "string", "format": "date-time"},
                "reason": {"type": "string", "minLength": 1, "maxLength": 1024},
                "message": {"type": "string", "maxLength": 32768}
            }
        }
    })
}
