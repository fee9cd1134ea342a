//! Permissions, by the API server's own reviews: what the person who installs may do, and what the proxies may.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Api;
use kube::api::PostParams;
use posthouse_discovery::PERMISSIONS;

use super::api::{Cluster, Trouble};
use super::{Finding, Id};

/// The chart calls its ClusterRole so whatever the release is called.
const ROLE: &str = "posthouse";

/// One thing to do with one kind of object.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Action {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    /// `None`: of the whole cluster.
    namespace: Option<String>,
}

impl Action {
    fn attributes(&self) -> ResourceAttributes {
        ResourceAttributes {
            verb: Some(self.verb.to_owned()),
            group: Some(self.group.to_owned()),
            resource: Some(self.resource.to_owned()),
            namespace: self.namespace.clone(),
            ..ResourceAttributes::default()
        }
    }

    /// As `kubectl auth can-i` takes it.
    fn words(&self) -> String {
        match self.group {
            "" => format!("{} {}", self.verb, self.resource),
            group => format!("{} {}.{group}", self.verb, self.resource),
        }
    }
}

/// What `helm install` of the chart creates, with the default values, and the Secret that Helm keeps its release in.
fn created(namespace: &str, namespace_is_new: bool) -> Vec<Action> {
    let within = |group, resource| Action { verb: "create", group, resource, namespace: Some(namespace.to_owned()) };
    let cluster = |group, resource| Action { verb: "create", group, resource, namespace: None };
    let rbac = "rbac.authorization.k8s.io";
    let mut actions = vec![
        within("apps", "daemonsets"),
        within("", "services"),
        within("", "serviceaccounts"),
        within("", "secrets"),
        cluster(rbac, "clusterroles"),
        cluster(rbac, "clusterrolebindings"),
    ];
    if namespace_is_new {
        actions.insert(0, cluster("", "namespaces"));
    }
    actions
}

/// What the proxies do, which who grants it must be allowed, too (or have the verb `escalate`).
fn read() -> Vec<Action> {
    let of = |permission: &posthouse_discovery::Permission| {
        let (group, resource) = (permission.group, permission.resource);
        permission.verbs.iter().map(move |verb| Action { verb: verb.as_str(), group, resource, namespace: None })
    };
    PERMISSIONS.iter().flat_map(of).collect()
}

type Answer = (Action, Result<bool, Trouble>);

/// May you install it?
pub(super) async fn to_install(cluster: &Cluster, namespace_is_new: bool) -> Vec<Finding> {
    let creating = own(cluster, created(&cluster.namespace, namespace_is_new)).await;
    let rbac = "rbac.authorization.k8s.io";
    let escalate = Action { verb: "escalate", group: rbac, resource: "clusterroles", namespace: None };
    let granting = match may(cluster, &escalate).await {
        Ok(true) => Vec::new(),
        _ => own(cluster, read()).await,
    };
    let role = cluster.ask(Api::<ClusterRole>::all(cluster.client.clone()).get(ROLE)).await;
    let mut findings = vec![judge_creating(&creating), judge_granting(&granting)];
    findings.extend(judge_role(&role, &cluster.namespace));
    findings
}

/// Helm refuses to install over an object that is not its release's.
fn judge_role(role: &Result<ClusterRole, Trouble>, namespace: &str) -> Option<Finding> {
    let role = match role {
        Ok(role) => role,
        Err(Trouble::Missing) => return None,
        Err(trouble) => {
            let permission = "get clusterroles.rbac.authorization.k8s.io";
            return Some(trouble.finding(Id::Permissions, "whether another release has the ClusterRole", permission));
        }
    };
    let annotations = role.metadata.annotations.clone().unwrap_or_default();
    let release = |key: &str| annotations.get(&format!("meta.helm.sh/release-{key}")).map(String::as_str);
    match release("namespace") {
        Some(owner) if owner == namespace => None,
        Some(owner) => Some(
            Finding::fail(
                Id::Permissions,
                format!(
                    "the ClusterRole '{ROLE}' belongs to the release '{}' in the namespace '{owner}': Helm will refuse to install another",
                    release("name").unwrap_or(ROLE),
                ),
            )
            .hint(format!("there is one mesh a cluster: posthouse check --namespace {owner}, or 'helm uninstall' it first")),
        ),
        None => Some(
            Finding::warn(
                Id::Permissions,
                format!("there is a ClusterRole '{ROLE}' already, and it is not Helm's: Helm will refuse to replace it"),
            )
            .hint("rbac.create=false leaves it as it is; or delete it and its binding"),
        ),
    }
}

async fn own(cluster: &Cluster, actions: Vec<Action>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for action in actions {
        let answer = may(cluster, &action).await;
        answers.push((action, answer));
    }
    answers
}

async fn may(cluster: &Cluster, action: &Action) -> Result<bool, Trouble> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(action.attributes()),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api = Api::<SelfSubjectAccessReview>::all(cluster.client.clone());
    let answer = cluster.ask(api.create(&PostParams::default(), &review)).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

fn judge_creating(answers: &[Answer]) -> Finding {
    match lacking(answers) {
        Err(trouble) => trouble.finding(Id::Permissions, "your own permissions", "create selfsubjectaccessreviews"),
        Ok(lacking) if lacking.is_empty() => {
            Finding::ok(Id::Permissions, format!("you may create what the chart installs ({} kinds)", answers.len()))
        }
        Ok(lacking) => {
            let hint = match lacking.iter().all(|words| words.contains("clusterrole")) {
                true => {
                    "install as a cluster administrator, or let one create the role and its binding and set rbac.create=false"
                }
                false => "install as a cluster administrator",
            };
            Finding::fail(Id::Permissions, format!("you may not {}", lacking.join(", "))).hint(hint)
        }
    }
}

/// `answers` is empty for who may grant anything.
fn judge_granting(answers: &[Answer]) -> Finding {
    match lacking(answers) {
        Err(trouble) => trouble.finding(Id::Permissions, "your own permissions", "create selfsubjectaccessreviews"),
        Ok(lacking) if lacking.is_empty() => {
            Finding::ok(Id::Permissions, "you may grant the proxies what they need to read".to_owned())
        }
        Ok(lacking) => Finding::fail(
            Id::Permissions,
            format!("you may not grant the proxies what you may not do yourself: {}", lacking.join(", ")),
        )
        .hint(
            "install as a cluster administrator, or let one create the role and its binding and set rbac.create=false",
        ),
    }
}

/// May the proxies do what they need to?
pub(super) async fn of_proxies(cluster: &Cluster, daemonset: &DaemonSet) -> Vec<Finding> {
    let account = daemonset.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()?.service_account_name.clone());
    let account = account.unwrap_or_else(|| "default".to_owned());
    let api = Api::<SubjectAccessReview>::all(cluster.client.clone());
    let mut answers = Vec::new();
    for action in read() {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(format!("system:serviceaccount:{}:{account}", cluster.namespace)),
                // Those that the API server gives to every service account; a binding may be to one of them.
                groups: Some(vec![
                    "system:serviceaccounts".to_owned(),
                    format!("system:serviceaccounts:{}", cluster.namespace),
                    "system:authenticated".to_owned(),
                ]),
                resource_attributes: Some(action.attributes()),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = cluster.ask(api.create(&PostParams::default(), &review)).await;
        let answer = answer.map(|review| review.status.is_some_and(|status| status.allowed));
        let refused = answer.is_err();
        answers.push((action, answer));
        if refused {
            break;
        }
    }
    vec![judge_proxies(&answers, &cluster.namespace, &account)]
}

fn judge_proxies(answers: &[Answer], namespace: &str, account: &str) -> Finding {
    match lacking(answers) {
        Err(trouble) => {
            trouble.finding(Id::Permissions, "the proxies' permissions", "create subjectaccessreviews.authorization.k8s.io")
        }
        Ok(lacking) if lacking.is_empty() => {
            Finding::ok(Id::Permissions, format!("the proxies' service account {account} may read what they need"))
        }
        Ok(lacking) => Finding::fail(
            Id::Permissions,
            format!("the proxies' service account {account} may not {}", lacking.join(", ")),
        )
        .hint(format!(
            "the ClusterRole and ClusterRoleBinding 'posthouse' grant it to {namespace}/{account}: rbac.create=true, then 'helm upgrade'"
        )),
    }
}

/// What is not allowed, or why that is not known.
fn lacking(answers: &[Answer]) -> Result<Vec<String>, Trouble> {
    let mut lacking = Vec::new();
    for (action, answer) in answers {
        if !answer.clone()? {
            lacking.push(action.words());
        }
    }
    Ok(lacking)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn answers(actions: Vec<Action>, denied: &[&str]) -> Vec<Answer> {
        actions.into_iter().map(|action| (action.clone(), Ok(!denied.contains(&action.words().as_str())))).collect()
    }

    #[test]
    fn an_administrator_may_install() {
        assert_eq!(judge_creating(&answers(created("mesh", true), &[])).verdict, Verdict::Ok);
        assert_eq!(judge_granting(&[]).verdict, Verdict::Ok, "escalate");
        assert_eq!(judge_granting(&answers(read(), &[])).verdict, Verdict::Ok);
    }

    #[test]
    fn what_is_lacking_is_named_with_who_can_help() {
        let cluster =
            ["create clusterroles.rbac.authorization.k8s.io", "create clusterrolebindings.rbac.authorization.k8s.io"];
        let finding = judge_creating(&answers(created("mesh", false), &cluster));
        assert_eq!(finding.verdict, Verdict::Fail);
        assert_eq!(finding.message, format!("you may not {}", cluster.join(", ")));
        assert!(finding.hint.unwrap().contains("rbac.create=false"));
        let finding = judge_creating(&answers(created("mesh", true), &["create namespaces", "create daemonsets.apps"]));
        assert_eq!(finding.message, "you may not create namespaces, create daemonsets.apps");
        let finding = judge_granting(&answers(read(), &["watch nodes"]));
        assert!(finding.verdict == Verdict::Fail && finding.message.ends_with(": watch nodes"), "{finding:?}");
    }

    #[test]
    fn a_role_of_another_release_is_in_the_way() {
        let judge = |annotations: serde_json::Value| {
            let object =
                serde_json::json!({"metadata": {"name": "posthouse", "annotations": annotations}, "rules": []});
            judge_role(&Ok(serde_json::from_value(object).unwrap()), "mesh")
        };
        let of = |namespace: &str| {
            judge(serde_json::json!({"meta.helm.sh/release-name": "ph", "meta.helm.sh/release-namespace": namespace}))
        };
        assert_eq!(of("mesh"), None, "its own: an upgrade");
        let other = of("other").unwrap();
        assert_eq!(other.verdict, Verdict::Fail);
        assert!(other.message.contains("the release 'ph' in the namespace 'other'"), "{other:?}");
        let by_hand = judge(serde_json::json!({})).unwrap();
        assert!(by_hand.verdict == Verdict::Warn && by_hand.hint.unwrap().contains("rbac.create=false"));
        assert_eq!(judge_role(&Err(Trouble::Missing), "mesh"), None);
        assert_eq!(judge_role(&Err(Trouble::Forbidden("no".into())), "mesh").unwrap().verdict, Verdict::Skipped);
    }

    #[test]
    fn the_proxies_account_is_held_against_what_discovery_asks() {
        let all = read();
        assert!(all.len() >= 8, "{all:?}");
        assert_eq!(judge_proxies(&answers(all.clone(), &[]), "mesh", "p").verdict, Verdict::Ok);
        let finding = judge_proxies(&answers(all, &["watch endpointslices.discovery.k8s.io"]), "mesh", "p");
        assert!(finding.message.ends_with("account p may not watch endpointslices.discovery.k8s.io"), "{finding:?}");
    }

    #[test]
    fn who_may_not_ask_gets_no_verdict() {
        let mut some = answers(read(), &["list nodes"]);
        some.push((some[0].0.clone(), Err(Trouble::Forbidden("no".into()))));
        let finding = judge_proxies(&some, "mesh", "p");
        assert_eq!(finding.verdict, Verdict::Skipped);
        assert!(finding.hint.unwrap().contains("subjectaccessreviews"));
    }
}
