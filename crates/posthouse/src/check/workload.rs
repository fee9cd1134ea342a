//! The namespace, the DaemonSet and its pods, as the API server shows them: which nodes should have a proxy, which have one,
//! and why the others have none.

mod placement;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, ContainerStateTerminated, ContainerStatus, Event, Namespace, Node, Pod};
use kube::Api;
use kube::api::{ListParams, LogParams, PostParams};
use serde_json::json;

use super::api::{Cluster, Trouble};
use super::ports::TAKEN;
use super::{Finding, Id};
use placement::{Placement, place};

/// The chart calls the DaemonSet so whatever the release is called.
const NAME: &str = "posthouse";
/// Pods whose log is read for a reason; where more fail they mostly fail for the same.
const MAX_LOGS: usize = 10;
/// As much of a message of somebody else's as one line bears.
const MAX_WORDS: usize = 300;

/// Pod security of a namespace. Where it is absent the API server's own configuration decides, which nobody can read.
const LEVEL: &str = "pod-security.kubernetes.io/enforce";

/// Creates a pod like a proxy's as a dry run: the API server has its rules look at it, and keeps nothing. `None`: there is no
/// namespace to create it in.
pub(super) async fn try_host_network(
    cluster: &Cluster,
    namespace: &Result<Namespace, Trouble>,
) -> Option<Result<(), Trouble>> {
    if namespace.as_ref().is_ok_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
        || matches!(namespace, Err(Trouble::Missing))
    {
        return None;
    }
    // Apart from the host's network it has what the strictest rules ask for, so that only that can be refused.
    let pod = json!({
        "metadata": {"generateName": "posthouse-check-", "labels": {"app.kubernetes.io/name": "posthouse-check"}},
        "spec": {
            "hostNetwork": true,
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 41404, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "posthouse",
                "image": "posthouse.invalid/check:none",
                "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": "1m", "memory": "1Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    });
    let pod: Pod = serde_json::from_value(pod).expect("the literal above is a pod");
    let api = Api::<Pod>::namespaced(cluster.client.clone(), &cluster.namespace);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    Some(cluster.ask(api.create(&dry_run, &pod)).await.map(drop))
}

/// Does the namespace admit pods on the host's network? `tried`: by [`try_host_network`].
pub(super) fn namespace(
    namespace: &Result<Namespace, Trouble>,
    name: &str,
    tried: &Option<Result<(), Trouble>>,
) -> Finding {
    let namespace = match namespace {
        Ok(namespace) => namespace,
        Err(Trouble::Missing) => {
            return Finding::ok(
                Id::Namespace,
                format!(
                    "there is no namespace '{name}' yet: no label forbids pods on the host's network; a cluster-wide default \
                     is seen only after the namespace exists, and 'helm install --create-namespace' sets no label against it"
                ),
            )
            .hint(format!("kubectl create namespace {name} && kubectl label namespace {name} {LEVEL}=privileged"));
        }
        Err(trouble) => return trouble.finding(Id::Namespace, &format!("the namespace '{name}'"), "get namespaces"),
    };
    if namespace.metadata.deletion_timestamp.is_some() {
        return Finding::fail(Id::Namespace, format!("the namespace '{name}' is being deleted"))
            .hint(format!("wait for its end: kubectl get namespace {name}"));
    }
    let privileged = format!("kubectl label --overwrite namespace {name} {LEVEL}=privileged");
    let level = namespace.metadata.labels.as_ref().and_then(|labels| labels.get(LEVEL)).map(String::as_str);
    if let Some(level @ ("baseline" | "restricted")) = level {
        let message = format!("the namespace '{name}' refuses pods on the host's network (pod security '{level}')");
        return Finding::fail(Id::Namespace, message).hint(privileged);
    }
    let Some(Err(trouble)) = tried else {
        return Finding::ok(Id::Namespace, format!("the namespace '{name}' admits pods on the host's network"));
    };
    let why = cut(&trouble.to_string());
    if why.contains("violates PodSecurity") {
        let message =
            format!("the namespace '{name}' refuses pods on the host's network, by the cluster's default: {why}");
        return Finding::fail(Id::Namespace, message).hint(privileged);
    }
    // A webhook "denied the request", a ValidatingAdmissionPolicy "denied request".
    if why.contains("denied the request") || why.contains("denied request") {
        let message =
            format!("a rule of the cluster refuses a pod on the host's network in the namespace '{name}': {why}");
        return Finding::warn(Id::Namespace, message).hint(
            "the rule may need an exception for the proxies: the DaemonSet's events tell whether they are refused",
        );
    }
    let unseen = match level {
        Some(_) => String::new(),
        None => format!("; a cluster-wide default was not seen, since a pod could not be tried: {why}"),
    };
    Finding::ok(Id::Namespace, format!("no label of the namespace '{name}' forbids pods on the host's network{unseen}"))
}

/// The DaemonSet; without one the findings say so. `before`: an installation is planned.
pub(super) async fn find(cluster: &Cluster, before: bool) -> (Vec<Finding>, Option<DaemonSet>) {
    let namespaced = Api::<DaemonSet>::namespaced(cluster.client.clone(), &cluster.namespace);
    match cluster.ask(namespaced.get(NAME)).await {
        Ok(daemonset) if before => {
            let message =
                format!("installed in the namespace '{}' already, and not looked at (--pre)", cluster.namespace);
            let finding = Finding::not_yet(Id::Daemonset, message);
            (vec![finding.hint("'helm upgrade' changes it; without --pre it is checked")], Some(daemonset))
        }
        Ok(daemonset) => (Vec::new(), Some(daemonset)),
        Err(Trouble::Missing) => {
            // A wrong --namespace looks the same.
            let everywhere = Api::<DaemonSet>::all(cluster.client.clone());
            let labelled = ListParams::default().labels("app.kubernetes.io/name=posthouse");
            let others = cluster.list(&everywhere, labelled, |daemonset| daemonset.metadata.namespace).await;
            let mut findings = Vec::new();
            let others = others.unwrap_or_else(|trouble| {
                let permission = "list daemonsets.apps of all namespaces";
                findings.push(trouble.finding(Id::Daemonset, "whether another namespace has a mesh", permission));
                Vec::new()
            });
            findings.insert(0, not_installed(&cluster.namespace, &others, before));
            (findings, None)
        }
        Err(trouble) if before => {
            (vec![trouble.finding(Id::Daemonset, "the DaemonSet 'posthouse'", "get daemonsets.apps")], None)
        }
        // Whether it is installed is the first thing that was asked.
        Err(trouble) => {
            let finding = trouble.finding(Id::Daemonset, "the DaemonSet 'posthouse'", "get daemonsets.apps");
            (vec![Finding { verdict: super::Verdict::Fail, ..finding }], None)
        }
    }
}

fn not_installed(namespace: &str, others: &[String], before: bool) -> Finding {
    let message = format!("not installed in the namespace '{namespace}': only what matters before that is checked");
    match others {
        [] => Finding::not_yet(Id::Daemonset, message),
        [other, ..] if before => {
            Finding::fail(Id::Daemonset, format!("the cluster has a mesh already, in the namespace '{other}'")).hint(
                format!(
                    "there is one mesh a cluster: posthouse check --namespace {other}, or 'helm uninstall' it first"
                ),
            )
        }
        [other, ..] => Finding::warn(Id::Daemonset, format!("{message}; but it is in '{other}'")).hint(format!(
            "posthouse check --namespace {other}; a second mesh on the same nodes would find its ports taken"
        )),
    }
}

/// The proxies' pods.
pub(super) async fn pods(cluster: &Cluster, daemonset: &DaemonSet) -> Result<Vec<Pod>, Trouble> {
    let labels = daemonset.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let api = Api::<Pod>::namespaced(cluster.client.clone(), &cluster.namespace);
    cluster.list(&api, ListParams::default().labels(&labels.join(",")), Some).await
}

/// What pods that end again and again said last, by their names: the termination message, or the end of the log.
pub(super) async fn last_words(cluster: &Cluster, pods: &[Pod]) -> HashMap<String, String> {
    let api = Api::<Pod>::namespaced(cluster.client.clone(), &cluster.namespace);
    let mut words = HashMap::new();
    let mut logs = 0;
    for pod in pods.iter().filter(|pod| !is_ready(pod)) {
        let Some(ended) = container(pod).and_then(ended) else { continue };
        let said = ended.message.as_deref().and_then(last_line);
        let said = match said {
            None if logs < MAX_LOGS => {
                logs += 1;
                // A container that is to start again, or has, left its words in the log before.
                let begun_anew =
                    container(pod).is_some_and(|c| c.state.as_ref().is_some_and(|s| s.terminated.is_none()));
                let params = LogParams { previous: begun_anew, tail_lines: Some(5), ..LogParams::default() };
                // Without permission there are no words.
                let log = cluster.ask(api.logs(name(pod), &params)).await.unwrap_or_default();
                last_line(&log)
            }
            said => said,
        };
        if let Some(said) = said {
            words.insert(name(pod).to_owned(), said);
        }
    }
    words
}

fn last_line(text: &str) -> Option<String> {
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(cut(line))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_WORDS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// What the DaemonSet's controller complains about, when a node has no pod at all: only then it is asked.
pub(super) async fn events(cluster: &Cluster, pods: &[Pod], nodes: &[Node]) -> Option<String> {
    let with_pod: BTreeSet<&str> = pods.iter().filter_map(node_of).collect();
    if nodes.iter().all(|node| with_pod.contains(node_name(node))) {
        return None;
    }
    let api = Api::<Event>::namespaced(cluster.client.clone(), &cluster.namespace);
    let params =
        ListParams::default().fields(&format!("involvedObject.kind=DaemonSet,involvedObject.name={NAME},type=Warning"));
    let events = cluster.list(&api, params, Some).await.unwrap_or_default();
    let last = events.into_iter().max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0))?;
    last.message.as_deref().map(cut)
}

/// Every node: has it a proxy, should it have one, and why has it none?
pub(super) fn judge(
    daemonset: &DaemonSet,
    nodes: &[Node],
    pods: &[Pod],
    last_words: &HashMap<String, String>,
    event: Option<&str>,
) -> Vec<Finding> {
    let namespace = daemonset.metadata.namespace.as_deref().unwrap_or_default();
    let template = daemonset.spec.as_ref().and_then(|spec| spec.template.spec.clone()).unwrap_or_default();
    let ready = ready_nodes(pods);
    let mut by_node: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in pods {
        by_node.entry(node_of(pod).unwrap_or_default()).or_default().push(pod);
    }
    let (mut wanted, mut served) = (0, 0);
    let mut findings = Vec::new();
    for node in nodes {
        let name = node_name(node);
        let here = by_node.get(name).map(Vec::as_slice).unwrap_or_default();
        match place(node, &template) {
            Placement::OtherSystem => continue,
            Placement::NotSelected if here.is_empty() => {
                findings
                    .push(Finding::ok(Id::Daemonset, "left out by the DaemonSet's node selector or affinity").on(name));
                continue;
            }
            Placement::Tainted(taint) if here.is_empty() => {
                findings.push(
                    Finding::warn(
                        Id::Daemonset,
                        format!("no proxy: its taint {taint} is not tolerated; its pods have none to ask"),
                    )
                    .on(name)
                    .hint("the chart's value 'tolerations'"),
                );
                continue;
            }
            _ => wanted += 1,
        }
        let lame: Vec<&&Pod> = here.iter().filter(|pod| !is_ready(pod) && !is_leaving(pod)).collect();
        match (ready.contains(name), lame.first()) {
            (true, None) => served += 1,
            (true, Some(new)) => {
                served += 1;
                let (why, hint) = why_not_ready(new, last_words.get(self::name(new)), namespace);
                findings.push(
                    Finding::warn(Id::Daemonset, format!("the old proxy serves, the new one does not yet: {why}"))
                        .on(name)
                        .hint(hint),
                );
            }
            (false, pod) => findings.push(without(node, pod.copied().or(here.first()), last_words, namespace, event)),
        }
    }
    let mut all = Vec::new();
    if wanted == 0 {
        all.push(
            Finding::warn(Id::Daemonset, "no node of this cluster should have a proxy")
                .hint("the chart's values 'nodeSelector', 'tolerations' and 'affinity'"),
        );
    } else if served == wanted {
        all.push(Finding::ok(Id::Daemonset, format!("{served} of {wanted} nodes have a ready proxy")));
    }
    all.extend(findings);
    all.extend(rollout(daemonset));
    all
}

/// The finding for a node without a ready proxy.
fn without(
    node: &Node,
    pod: Option<&&Pod>,
    last_words: &HashMap<String, String>,
    namespace: &str,
    event: Option<&str>,
) -> Finding {
    let name = node_name(node);
    let (why, hint) = match (pod, event) {
        (Some(pod), _) => why_not_ready(pod, last_words.get(self::name(pod)), namespace),
        (None, Some(event)) => {
            (format!("it has no pod: {event}"), format!("kubectl -n {namespace} describe daemonset {NAME}"))
        }
        (None, None) => ("it has no pod".to_owned(), format!("kubectl -n {namespace} describe daemonset {NAME}")),
    };
    if node_is_ready(node) {
        Finding::fail(Id::Daemonset, format!("no ready proxy: {why}")).on(name).hint(hint)
    } else {
        // Nothing runs there; the proxy is the least of it.
        Finding::warn(Id::Daemonset, "the node itself is not ready")
            .on(name)
            .hint(format!("kubectl describe node {name}"))
    }
}

/// Why a pod is not ready, and what helps.
fn why_not_ready(pod: &Pod, last_words: Option<&String>, namespace: &str) -> (String, String) {
    let name = name(pod);
    let describe = format!("kubectl -n {namespace} describe pod {name}");
    if is_leaving(pod) {
        return (format!("pod {name} is being deleted"), describe);
    }
    let status = pod.status.clone().unwrap_or_default();
    if status.phase.as_deref() == Some("Failed") {
        let why = [status.reason, status.message].into_iter().flatten().collect::<Vec<_>>().join(": ");
        return (format!("pod {name} failed: {}", cut(&why)), describe);
    }
    let scheduled = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled");
    if let Some(condition) = scheduled.filter(|condition| condition.status == "False") {
        let why = cut(condition.message.as_deref().or(condition.reason.as_deref()).unwrap_or("no reason is given"));
        let hint = match why {
            _ if why.contains("free ports") => "another pod declares one of the ports: see 'ports'".to_owned(),
            _ if why.contains("Insufficient") => {
                "the chart's values 'resources.requests' and 'priorityClassName'".to_owned()
            }
            _ => describe,
        };
        return (format!("pod {name} finds no place: {why}"), hint);
    }
    let Some(container) = container(pod) else {
        return (format!("pod {name} has not started yet"), describe);
    };
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    let waiting = waiting.filter(|waiting| waiting.reason.as_deref() != Some("CrashLoopBackOff"));
    if let (Some(end), None) = (ended(container), waiting) {
        let restarts = match container.restart_count {
            1 => "1 restart".to_owned(),
            n => format!("{n} restarts"),
        };
        let code = end.exit_code;
        let reason = end.reason.as_deref().unwrap_or_default();
        let words = last_words.map(|words| format!(": {words}")).unwrap_or_default();
        let hint = match (code, reason) {
            (_, "OOMKilled") => "the chart's value 'resources.limits.memory'".to_owned(),
            _ if last_words.is_some_and(|words| words.contains(TAKEN)) => {
                "on the node, 'ss -ltnp' shows which program has the port; 'ports' names pods that declare it"
                    .to_owned()
            }
            (64, _) => {
                format!("a flag or a variable of the DaemonSet is wrong: kubectl -n {namespace} logs {name} --previous")
            }
            _ => format!("kubectl -n {namespace} logs {name} --previous"),
        };
        let reason = if reason.is_empty() || reason == "Error" { String::new() } else { format!("{reason}, ") };
        return (format!("pod {name} ended ({reason}exit code {code}, {restarts}){words}"), hint);
    }
    if let Some(waiting) = waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let hint = match reason {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
                "the chart's values 'image.repository', 'image.tag' and 'image.pullSecrets'".to_owned()
            }
            _ => describe,
        };
        let message = waiting.message.as_deref().map(|message| format!(": {}", cut(message))).unwrap_or_default();
        return (format!("pod {name} waits ({reason}){message}"), hint);
    }
    (format!("pod {name} runs but is not ready"), format!("kubectl -n {namespace} exec {name} -- /posthouse ready"))
}

/// Whether the pods are being replaced.
pub(super) fn rolling_out(daemonset: &DaemonSet) -> bool {
    let status = daemonset.status.clone().unwrap_or_default();
    status.observed_generation < daemonset.metadata.generation
        || status.updated_number_scheduled.unwrap_or_default() < status.desired_number_scheduled
}

fn rollout(daemonset: &DaemonSet) -> Option<Finding> {
    if !rolling_out(daemonset) {
        return None;
    }
    let status = daemonset.status.clone().unwrap_or_default();
    let (updated, desired) = (status.updated_number_scheduled.unwrap_or_default(), status.desired_number_scheduled);
    let by_hand = daemonset.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref()?.type_.as_deref());
    let hint = match by_hand {
        Some("OnDelete") => {
            "updateStrategy.type is OnDelete: the old pods are replaced when you delete them".to_owned()
        }
        _ => format!(
            "kubectl -n {} rollout status daemonset {NAME}",
            daemonset.metadata.namespace.as_deref().unwrap_or_default()
        ),
    };
    Some(
        Finding::warn(Id::Daemonset, format!("a rollout runs: {updated} of {desired} nodes have the new pod"))
            .hint(hint),
    )
}

/// The nodes with a ready proxy.
pub(super) fn ready_nodes(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter().filter(|pod| is_ready(pod)).filter_map(node_of).map(str::to_owned).collect()
}

/// For each of these nodes the pod to ask: a ready one, or else one that runs. A node that is not ready is not asked: the
/// way leads through its kubelet, and what is wrong with it has been said.
pub(super) fn to_ask(nodes: &[Node], pods: &[Pod]) -> Vec<(String, String)> {
    let mut targets: BTreeMap<&str, (bool, &str)> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| runs(pod) && !is_leaving(pod)) {
        let Some(node) = node_of(pod) else { continue };
        let ready = is_ready(pod);
        let target = targets.entry(node).or_insert((ready, name(pod)));
        if ready && !target.0 {
            *target = (true, name(pod));
        }
    }
    let pod_of = |node: &Node| {
        let (_, pod) = targets.get(node_name(node))?;
        Some((node_name(node).to_owned(), (*pod).to_owned()))
    };
    nodes.iter().filter(|node| node_is_ready(node)).filter_map(pod_of).collect()
}

/// The proxy's ports on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) outbound: u16,
    pub(super) link: u16,
    pub(super) admin: u16,
    pub(super) metrics: u16,
}

impl Ports {
    /// By the DaemonSet's flags and variables, or the program's defaults.
    pub(super) fn of(daemonset: Option<&DaemonSet>) -> Self {
        let spec = daemonset.and_then(|daemonset| daemonset.spec.as_ref()?.template.spec.as_ref());
        let container =
            spec.and_then(|spec| spec.containers.iter().find(|c| c.name == NAME).or(spec.containers.first()));
        let port = |flag: &str, default: u16| {
            let listen = container.and_then(|container| setting(container, flag));
            let port = listen.and_then(|listen| listen.split(',').next()?.rsplit(':').next()?.parse().ok());
            port.unwrap_or(default)
        };
        Self {
            outbound: port("outbound-listen", 4140),
            link: port("link-listen", 4141),
            admin: port("admin-listen", 9990),
            metrics: port("metrics-listen", 9991),
        }
    }

    pub(super) fn all(self) -> [u16; 4] {
        [self.outbound, self.link, self.admin, self.metrics]
    }
}

/// A flag of `posthouse run`, as a container gives it.
fn setting(container: &Container, flag: &str) -> Option<String> {
    let words: Vec<&String> = container.command.iter().flatten().chain(container.args.iter().flatten()).collect();
    let long = format!("--{flag}");
    for (at, word) in words.iter().enumerate() {
        match word.strip_prefix(&long) {
            Some("") => return words.get(at + 1).map(|value| (*value).clone()),
            Some(value) if value.starts_with('=') => return value.get(1..).map(str::to_owned),
            _ => {}
        }
    }
    let variable = format!("POSTHOUSE_{}", flag.to_ascii_uppercase().replace('-', "_"));
    container.env.iter().flatten().find(|env| env.name == variable)?.value.clone()
}

pub(super) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(super) fn node_name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

/// The node that a pod is on, or is meant for: a DaemonSet's pod that finds no place names it by its affinity.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref() {
        return Some(node);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let field = terms.iter().flat_map(|term| term.match_fields.iter().flatten()).find(|f| f.key == "metadata.name")?;
    field.values.as_ref()?.first().map(String::as_str)
}

fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Ready, and not about to end.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    !is_leaving(pod) && conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn node_is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == NAME).or(statuses.first())
}

fn runs(pod: &Pod) -> bool {
    container(pod).is_some_and(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()))
}

/// How the container ended, now or before its last restart.
fn ended(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let now = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    now.or_else(|| container.last_state.as_ref()?.terminated.as_ref())
}

#[cfg(test)]
mod tests;
