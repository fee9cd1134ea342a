//! What the proxies themselves say, judged: each node's admin API, and requests through its outbound port.

mod answers;
mod ask;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::Uri;
use k8s_openapi::api::core::v1::Node;

use super::api::judge_clock;
use super::report::NodeSummary;
use super::workload::node_name;
use super::{Finding, Id};
use answers::{Certificate, Identity, NodeConfig, Peers, Rejected, proxy_status, short};
use ask::{Admin, NodeAnswers, Probe};

pub(super) use ask::ask;

/// Two bookmarks missed, as in discovery, which then begins the watch anew.
const STALE: Duration = Duration::from_secs(120);
/// The part of a certificate's life in which a new one should be there: ours renew at the half, cert-manager's when a third is left.
const OVERDUE: i64 = 4;

/// The nodes that could not be asked.
pub(super) fn unreachable(answers: &[NodeAnswers]) -> Vec<Finding> {
    let finding = |answer: &NodeAnswers| {
        let trouble = answer.admin.as_ref().err()?;
        Some(trouble.finding(Id::Node, "its proxy's admin API", "create and get pods/portforward").on(&answer.node))
    };
    answers.iter().filter_map(finding).collect()
}

fn admins(answers: &[NodeAnswers]) -> impl Iterator<Item = (&NodeAnswers, &Admin)> {
    answers.iter().filter_map(|answer| Some((answer, answer.admin.as_ref().ok()?)))
}

/// `server`: seconds by which the API server's clock is ahead of this machine's; where it is unknown there is nothing to
/// compare with, which has been said.
pub(super) fn clocks(answers: &[NodeAnswers], server: Option<f64>) -> Vec<Finding> {
    let Some(server) = server else {
        return Vec::new();
    };
    let clock = |(answer, admin): (&NodeAnswers, &Admin)| {
        let finding = match admin.ahead {
            Some(ahead) => judge_clock("its", server - ahead),
            None => Finding::skipped(Id::Clock, "its clock cannot be compared: its proxy's answers have no Date"),
        };
        finding.on(&answer.node)
    };
    admins(answers).map(clock).collect()
}

/// Are they all the same, and what this program is?
pub(super) fn versions(answers: &[NodeAnswers], rolling_out: bool) -> Vec<Finding> {
    let mut nodes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (answer, admin) in admins(answers) {
        nodes.entry(short(&admin.config.version)).or_default().push(&answer.node);
    }
    let mixed = nodes.len() > 1;
    let mut findings = Vec::new();
    for (version, nodes) in &nodes {
        for node in nodes {
            let finding = match (mixed, rolling_out) {
                (false, _) => Finding::ok(Id::Version, version),
                (true, true) => Finding::warn(Id::Version, format!("{version}, and a rollout runs")),
                (true, false) => Finding::warn(Id::Version, format!("{version}, which is not everywhere the same"))
                    .hint("delete the pods with the wrong one, or let 'helm upgrade' replace them"),
            };
            findings.push(finding.on(node));
        }
    }
    let number = |version: &str| version.split(' ').next().unwrap_or_default().to_owned();
    let ours = env!("CARGO_PKG_VERSION");
    if let Some(other) = nodes.keys().map(|version| number(version)).find(|version| version != ours) {
        findings.push(
            Finding::warn(
                Id::Version,
                format!("this program is {ours}, proxies are {other}: it may not know what they say"),
            )
            .hint("use the 'posthouse check' of their version"),
        );
    }
    findings
}

/// Is each proxy ready, and is what it knows up to date?
pub(super) fn states(answers: &[NodeAnswers], nodes: &[Node], namespace: &str) -> Vec<Finding> {
    let nodes: BTreeMap<&str, &Node> = nodes.iter().map(|node| (node_name(node), node)).collect();
    let mut findings = Vec::new();
    for (answer, admin) in admins(answers) {
        let mut found = state(&admin.config, &answer.node, &format!("kubectl -n {namespace} logs {}", answer.pod));
        found.extend(nodes.get(answer.node.as_str()).into_iter().flat_map(|node| address(node, &admin.config)));
        if found.is_empty() {
            found.push(Finding::ok(Id::Node, "ready, and what it knows is up to date"));
        }
        findings.extend(found.into_iter().map(|finding| finding.on(&answer.node)));
    }
    findings
}

fn state(config: &NodeConfig, node: &str, logs: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let believed = &config.config.node_name;
    if believed != node {
        findings.push(
            Finding::fail(Id::Node, format!("its proxy takes itself for node '{believed}'"))
                .hint("POSTHOUSE_NODE_NAME must be spec.nodeName, as the chart has it"),
        );
    }
    if !config.ready {
        findings.push(
            Finding::fail(Id::Node, format!("its proxy is not ready: {}", config.pending.join("; ")))
                .hint(format!("its log says more: {logs}")),
        );
    }
    for watch in &config.discovery.watches {
        let kind = &watch.kind;
        let age = watch.age.filter(|age| *age > STALE.as_secs_f64());
        let finding = match (&watch.last_error, age, watch.from_snapshot) {
            (Some(error), _, _) if error.contains("403") => {
                Finding::fail(Id::Permissions, format!("its proxy may not read {kind} objects: {error}"))
                    .hint("the ClusterRole and ClusterRoleBinding 'posthouse': rbac.create=true, then 'helm upgrade'")
            }
            (Some(error), _, _) => {
                Finding::warn(Id::Node, format!("its watch of {kind} objects fails, the last view is served: {error}"))
                    .hint("can the node reach the API server?")
            }
            (None, Some(age), _) => {
                Finding::warn(Id::Node, format!("its watch of {kind} objects is silent for {age:.0} s"))
                    .hint("can the node reach the API server?")
            }
            (None, None, Some(_)) => Finding::warn(
                Id::Node,
                format!(
                    "its {kind} objects are those of the snapshot: the API server has not listed them since it started"
                ),
            )
            .hint("can the node reach the API server?"),
            (None, None, None) => continue,
        };
        findings.push(finding);
    }
    let problems = &config.discovery.problems;
    if let Some(first) = problems.first() {
        let all = problems.len() as u64 + config.discovery.problems_dropped;
        let object = [first.source.as_str(), first.object.as_str()].join(" ");
        findings.push(
            Finding::warn(
                Id::Node,
                format!("it skips {all} objects that do not fit; {}: {}", object.trim(), first.error),
            )
            .hint("all of them stand in /config of its admin API"),
        );
    }
    findings
}

/// Is the proxy's address the Node's?
fn address(node: &Node, config: &NodeConfig) -> Option<Finding> {
    let status = node.status.as_ref();
    let addresses: Vec<&str> = status
        .and_then(|status| status.addresses.as_ref())
        .into_iter()
        .flatten()
        .filter(|address| matches!(address.type_.as_str(), "InternalIP" | "ExternalIP"))
        .map(|address| address.address.as_str())
        .collect();
    let ips = &config.config.node_ip;
    let message = format!("its proxy's address {} is none of the Node's ({})", ips.join(", "), addresses.join(", "));
    (!ips.iter().any(|ip| addresses.contains(&ip.as_str()))).then(|| {
        Finding::fail(Id::Node, message).hint(
            "POSTHOUSE_NODE_IP must be status.hostIP, as the chart has it; other nodes refuse the proxy otherwise",
        )
    })
}

/// The same, before there is a proxy: does each Node say which addresses its pods have?
pub(super) fn objects(nodes: &[Node]) -> Vec<Finding> {
    let ranges = |node: &Node| {
        let spec = node.spec.as_ref();
        spec.is_some_and(|spec| spec.pod_cidr.is_some() || spec.pod_cidrs.as_ref().is_some_and(|all| !all.is_empty()))
    };
    let finding = |node: &Node| {
        let finding = match ranges(node) {
            true => Finding::ok(Id::Node, "its pods' addresses are known (spec.podCIDRs)"),
            false => Finding::warn(
                Id::Node,
                "it has no spec.podCIDRs: a pod that the API does not show within 3 s of its first request is refused",
            )
            .hint("kube-controller-manager --allocate-node-cidrs, or a network plugin that writes them"),
        };
        finding.on(node_name(node))
    };
    nodes.iter().map(finding).collect()
}

/// Has each a certificate that will last?
pub(super) fn certificates(answers: &[NodeAnswers]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (answer, admin) in admins(answers) {
        let found = match &admin.identity {
            Ok(Some(identity)) => certificate(identity),
            Ok(None) => vec![Finding::skipped(Id::Certificate, "its version does not tell")],
            Err(trouble) => {
                vec![Finding::fail(Id::Certificate, format!("its certificate cannot be looked at: {trouble}"))]
            }
        };
        findings.extend(found.into_iter().map(|finding| finding.on(&answer.node)));
    }
    findings
}

fn certificate(identity: &Identity) -> Vec<Finding> {
    if identity.tls == "off" {
        return vec![
            Finding::warn(
                Id::Certificate,
                "it has none: its links are in the clear, and a peer is who its address says",
            )
            .hint("tls=node in the chart's values; tlsPermissive=true while the nodes go over to it"),
        ];
    }
    let why = |otherwise: &str| match &identity.last_error {
        Some(Rejected { source, error }) => format!("{source}: {error}"),
        None => otherwise.to_owned(),
    };
    let mut findings = Vec::new();
    match &identity.certificate {
        None => findings.push(
            Finding::fail(Id::Certificate, format!("its proxy has none: {}", why("it waits for its first"))).hint(
                "does 'posthouse controller' run and sign? kubectl get csr shows what was asked and why it was denied",
            ),
        ),
        Some(certificate) => findings.extend(life(certificate, identity.last_error.is_some(), &why)),
    }
    if identity.permissive {
        findings.push(
            Finding::warn(Id::Certificate, "its proxy also takes links without TLS (tlsPermissive)")
                .hint("tlsPermissive=false, when posthouse_link_plain_connections_total grows on no node"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok(Id::Certificate, "valid, and renewed in time"));
    }
    findings
}

fn life(certificate: &Certificate, failing: bool, why: &dyn Fn(&str) -> String) -> Option<Finding> {
    let Certificate { not_before: Some(begin), not_after: Some(end), expires_in_seconds: Some(left) } = certificate
    else {
        return Some(Finding::skipped(Id::Certificate, "its version does not tell how long it lasts"));
    };
    let whole = end.0.as_second() - begin.0.as_second();
    let left = i64::try_from(*left).unwrap_or(i64::MAX);
    let hint = "the proxy's log, and that of 'posthouse controller', say what stands in the way; where the certificate comes from files, \
                look at what writes them";
    let for_ = match left {
        0..60 => format!("{left} s"),
        60..7200 => format!("{} min", left / 60),
        _ => format!("{} h", left / 3600),
    };
    let finding = if left == 0 {
        Finding::fail(Id::Certificate, format!("it has ended: {}", why("none came in its place")))
    } else if failing {
        Finding::warn(Id::Certificate, format!("it lasts for {for_} more, and cannot be renewed: {}", why("")))
    } else if left < whole / OVERDUE {
        Finding::warn(Id::Certificate, format!("it lasts for {for_} more, and its renewal is overdue"))
    } else {
        return None;
    };
    Some(finding.hint(hint))
}

/// Does each know the others, and reach them? `ready`: the nodes with a ready proxy.
pub(super) fn links(answers: &[NodeAnswers], ready: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (answer, admin) in admins(answers) {
        let found = match &admin.peers {
            None => continue,
            Some(Err(trouble)) => vec![Finding::fail(Id::Links, format!("its links cannot be looked at: {trouble}"))],
            Some(Ok(peers)) => link(peers, &answer.node, ready),
        };
        findings.extend(found.into_iter().map(|finding| finding.on(&answer.node)));
    }
    findings
}

fn link(peers: &Peers, node: &str, ready: &BTreeSet<String>) -> Vec<Finding> {
    let known: BTreeMap<&str, bool> = peers.peers.iter().map(|peer| (peer.node.as_str(), peer.ready)).collect();
    let others = || ready.iter().map(String::as_str).filter(|other| *other != node);
    let unknown: Vec<&str> = others().filter(|other| known.get(other) != Some(&true)).collect();
    let mut findings = Vec::new();
    if let [first, ..] = unknown.as_slice() {
        let others = match unknown.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        findings.push(
            Finding::fail(Id::Links, format!("its proxy does not know that node {first}{others} has one"))
                .hint("kubectl get endpointslices -l kubernetes.io/service-name=posthouse; a new proxy needs some seconds to get there"),
        );
    }
    for peer in peers.others() {
        let Some(link) = peer.link.as_ref().filter(|link| link.connections == 0) else { continue };
        // It is that of the last attempt: one that opened a link wipes it out.
        let Some(error) = &link.last_error else { continue };
        let finding = match link.opened {
            0 => Finding::fail(
                Id::Links,
                format!("never reached the proxy of {} at {}: {error}", peer.node, peer.address),
            ),
            _ => Finding::warn(
                Id::Links,
                format!("has no connection to the proxy of {} now; what failed last: {error}", peer.node),
            ),
        };
        findings.push(
            finding.hint(format!("do a firewall or a NetworkPolicy of the hosts let nodes reach {}?", peer.address)),
        );
    }
    let untried: Vec<&str> = peers.others().filter(|peer| peer.is_untried()).map(|peer| peer.node.as_str()).collect();
    if let [first, rest @ ..] = untried.as_slice() {
        let others = match rest.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        findings.push(
            Finding::skipped(Id::Links, format!("not tried yet: no request has crossed to node {first}{others}"))
                .hint("--url of a Service with pods on each node tries them"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            Id::Links,
            match others().count() {
                0 => "there is no other proxy".to_owned(),
                1 => "knows the proxy of 1 other node, and reached it".to_owned(),
                n => format!("knows the proxies of {n} other nodes, and reached each of them"),
            },
        ));
    }
    findings
}

/// Were the requests answered as they should be?
pub(super) fn probes(answers: &[NodeAnswers], url: Option<&Uri>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for answer in answers {
        let finding = match (&answer.outbound, &answer.admin) {
            (Ok(probe), _) => judge_outbound(probe),
            // Said once already.
            (Err(trouble), Err(same)) if trouble == same => continue,
            (Err(trouble), _) => trouble.finding(Id::Probe, "its outbound port", "create and get pods/portforward"),
        };
        findings.push(finding.on(&answer.node));
        let finding = match (url, &answer.url) {
            (Some(url), Some(Ok(probe))) => judge_request(probe, url),
            (Some(url), Some(Err(trouble))) => {
                trouble.finding(Id::Probe, &format!("GET {url}"), "create and get pods/portforward")
            }
            _ => continue,
        };
        findings.push(finding.on(&answer.node));
    }
    findings
}

/// The answer for a name that cannot exist: is it a posthouse that refuses it?
fn judge_outbound(probe: &Probe) -> Finding {
    let Probe { status, headers, took } = probe;
    let finding = match proxy_status(headers).map(|said| (said.error, said.details)) {
        Some((Some(token), _)) if token == "destination_not_found" => {
            Finding::ok(Id::Probe, "its outbound port answers")
        }
        Some((Some(token), details)) => {
            Finding::fail(Id::Probe, format!("its outbound port answers {status}, {token}: {details}"))
        }
        Some((None, _)) | None => {
            return Finding::fail(Id::Probe, format!("what answers on its outbound port is no posthouse ({status})"))
                .hint("'ss -ltnp' on the node shows who listens there; an answer of 'ports' may tell, too");
        }
    };
    finding.took(*took)
}

fn judge_request(probe: &Probe, url: &Uri) -> Finding {
    let Probe { status, headers, took } = probe;
    let finding = match proxy_status(headers).map(|said| (said.error, said.details)) {
        Some((Some(token), details)) => Finding::fail(Id::Probe, format!("GET {url}: {status}, {token}: {details}"))
            .hint("/services/NAMESPACE/NAME of its admin API shows the Service as it knows it"),
        _ if status.is_server_error() => {
            Finding::warn(Id::Probe, format!("GET {url}: the application itself answers {status}"))
        }
        _ => Finding::ok(Id::Probe, format!("GET {url}: {status}")),
    };
    finding.took(*took)
}

/// For the JSON.
pub(super) fn summary(answers: &[NodeAnswers]) -> Vec<NodeSummary> {
    let summary = |answer: &NodeAnswers| NodeSummary {
        name: answer.node.clone(),
        pod: answer.pod.clone(),
        version: answer.admin.as_ref().ok().map(|admin| admin.config.version.clone()),
        ready: answer.admin.as_ref().ok().map(|admin| admin.config.ready),
    };
    answers.iter().map(summary).collect()
}

#[cfg(test)]
mod tests;
