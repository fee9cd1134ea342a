//! `posthouse check`: what stands in the way of an installation, or what is wrong with one, as one line a finding with what
//! to do about it. [`run`] is the door and [`examine`] the order. Each check is a function of its own: a thin part asks the
//! API server or a node's proxy, a pure one judges the plain answer. Nothing is changed in the cluster: reviews of
//! permissions and a pod as a dry run are all that is posted, and the API server forgets them.

mod api;
mod forward;
mod nodes;
mod permissions;
mod ports;
mod report;
mod workload;

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::apps::v1::DaemonSet;
use serde::{Serialize, Serializer};

use crate::Failure;
use crate::args::CheckArgs;
use api::{Cluster, Trouble};
use report::{Mode, Report};

/// What a finding is about; in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Id {
    Api,
    Clock,
    Namespace,
    Permissions,
    Daemonset,
    Ports,
    Version,
    Node,
    Certificate,
    Links,
    Probe,
}

impl Id {
    /// All of them, with what `--help` and the reference page say.
    pub(crate) const ALL: [(Self, &str); 11] = [
        (Self::Api, "the API server answers, and is Kubernetes 1.21 or newer (EndpointSlices)"),
        (
            Self::Clock,
            "this machine's and each node's clock against the API server's: more than 5 s apart is a warning, more than 60 s a problem \
             (certificates have a beginning and an end)",
        ),
        (
            Self::Namespace,
            "it admits pods on the host's network, which the pod security levels 'baseline' and 'restricted' do not: by a pod that is \
             created as a dry run, or else by the namespace's label",
        ),
        (
            Self::Permissions,
            "before: you may create what the chart installs, and grant what its role contains, and no other release has that role. After: the proxies' service account may \
             read what they need, and no proxy is refused",
        ),
        (
            Self::Daemonset,
            "every Linux node has a ready proxy, or why not: taints, scheduling, image, crash and its last words, as of a port that is taken; \
             whether a rollout runs. Before: there is no mesh in another namespace",
        ),
        (Self::Ports, "no other pod declares one of the proxy's ports on a node"),
        (Self::Version, "the proxies are of one version, and of this program's"),
        (
            Self::Node,
            "each proxy is ready, watches the API without errors and heard of it within 120 s, skips no object; its Node has addresses and podCIDRs",
        ),
        (
            Self::Certificate,
            "each proxy links with TLS and takes no plain links; its certificate is valid, and no attempt to renew it fails or is overdue",
        ),
        (
            Self::Links,
            "each proxy knows the proxies of all other nodes, and reached them when it last tried; a link that no request has needed yet \
             is skipped: --url tries them",
        ),
        (Self::Probe, "on each node's outbound port a posthouse answers, and with --url the application behind it"),
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Clock => "clock",
            Self::Namespace => "namespace",
            Self::Permissions => "permissions",
            Self::Daemonset => "daemonset",
            Self::Ports => "ports",
            Self::Version => "version",
            Self::Node => "node",
            Self::Certificate => "certificate",
            Self::Links => "links",
            Self::Probe => "probe",
        }
    }
}

/// The checks, for `--help`. Clap breaks lines, but does not indent what follows.
pub(crate) fn overview() -> String {
    const WIDTH: usize = 64;
    let mut text = String::from("Checks:");
    for (id, help) in Id::ALL {
        text.push_str(&format!("\n  {:<11} ", id.as_str()));
        let mut column = 0;
        for word in help.split_whitespace() {
            if column > 0 && column + word.len() >= WIDTH {
                text.push_str(&format!("\n{:14}", ""));
                column = 0;
            }
            text.push_str(&format!(" {word}"));
            column += word.len() + 1;
        }
    }
    text
}

/// How it stands; the greater, the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    /// It could not be looked at, for a reason that is no fault of the installation.
    Skipped,
    /// It works, but somebody should look at it.
    Warn,
    /// It does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Finding {
    id: Id,
    verdict: Verdict,
    /// `node/NAME`; `None`: the cluster or the installation.
    subject: Option<String>,
    message: String,
    /// The command or the setting that helps.
    hint: Option<String>,
    /// Skipped as it should be, as the proxies are before there are any: no reason to look again.
    #[serde(skip)]
    usual: bool,
    /// How long an answer took.
    #[serde(rename = "took_ms", serialize_with = "millis")]
    took: Option<Duration>,
}

fn millis<S: Serializer>(took: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match took {
        Some(took) => to.serialize_some(&((took.as_secs_f64() * 1e4).round() / 10.0)),
        None => to.serialize_none(),
    }
}

impl Finding {
    fn new(id: Id, verdict: Verdict, message: impl Into<String>) -> Self {
        Self { id, verdict, subject: None, message: message.into(), hint: None, usual: false, took: None }
    }

    fn ok(id: Id, message: impl Into<String>) -> Self {
        Self::new(id, Verdict::Ok, message)
    }

    fn skipped(id: Id, message: impl Into<String>) -> Self {
        Self::new(id, Verdict::Skipped, message)
    }

    /// What is not there to be looked at yet.
    fn not_yet(id: Id, message: impl Into<String>) -> Self {
        Self { usual: true, ..Self::skipped(id, message) }
    }

    fn warn(id: Id, message: impl Into<String>) -> Self {
        Self::new(id, Verdict::Warn, message)
    }

    fn fail(id: Id, message: impl Into<String>) -> Self {
        Self::new(id, Verdict::Fail, message)
    }

    fn on(mut self, node: &str) -> Self {
        self.subject = Some(format!("node/{node}"));
        self
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn took(mut self, took: Duration) -> Self {
        self.took = Some(took);
        self
    }
}

/// Checks and reports on stdout; says whether nothing failed, or with `--strict`, whether everything is in order.
///
/// # Errors
/// The kubeconfig is of no use, or stdout cannot be written.
pub(crate) fn run(args: &CheckArgs, colours: bool) -> Result<bool, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime cannot start")?;
    runtime.block_on(async {
        let cluster = Cluster::connect(args).await.map_err(Failure::Usage)?;
        let mut report = Report::new(args.output, colours, &args.namespace, std::io::stdout().lock());
        examine(&cluster, args, &mut report).await;
        let verdict = report.finish().context("stdout cannot be written")?;
        Ok(verdict == Verdict::Ok || (!args.strict && verdict < Verdict::Fail))
    })
}

/// Everything in its order: what the rest depends on comes first.
async fn examine(cluster: &Cluster, args: &CheckArgs, report: &mut Report<impl std::io::Write>) {
    let (findings, server) = api::reach(cluster).await;
    report.add(findings);
    let Some(server) = server else {
        return;
    };
    let namespace = cluster.namespace().await;
    let tried = workload::try_host_network(cluster, &namespace).await;
    report.add(vec![workload::namespace(&namespace, &cluster.namespace, &tried)]);
    let (found, daemonset) = workload::find(cluster, args.pre).await;
    // The one whose proxies are examined; with --pre it matters only for what is its own.
    let examined = daemonset.as_ref().filter(|_| !args.pre);
    match examined {
        Some(daemonset) => {
            report.mode(Mode::Installed);
            report.add(permissions::of_proxies(cluster, daemonset).await);
        }
        None => report.add(permissions::to_install(cluster, matches!(namespace, Err(Trouble::Missing))).await),
    }
    report.add(found);

    let nodes = match cluster.nodes(&args.node).await {
        Ok((nodes, findings)) => {
            report.add(findings);
            nodes
        }
        Err(trouble) => {
            report.add(vec![trouble.finding(Id::Daemonset, "the nodes", "list on nodes")]);
            return;
        }
    };
    let pods = match &daemonset {
        Some(daemonset) => match workload::pods(cluster, daemonset).await {
            Ok(pods) => pods,
            Err(trouble) => {
                report.add(vec![trouble.finding(Id::Daemonset, "the proxies' pods", "list on pods")]);
                return;
            }
        },
        None => Vec::new(),
    };
    let last_words = workload::last_words(cluster, &pods).await;
    if let Some(daemonset) = examined {
        let events = workload::events(cluster, &pods, &nodes).await;
        report.add(workload::judge(daemonset, &nodes, &pods, &last_words, events.as_deref()));
    }
    if nodes.is_empty() {
        return;
    }
    let port_numbers = workload::Ports::of(daemonset.as_ref());
    report.add(ports::check(cluster, &nodes, &pods, &last_words, port_numbers).await);
    report.add(nodes::objects(&nodes));
    if let Some(daemonset) = examined {
        live(cluster, args, report, daemonset, &nodes, &pods, server.ahead).await;
    }
}

/// What the proxies themselves say.
async fn live(
    cluster: &Cluster,
    args: &CheckArgs,
    report: &mut Report<impl std::io::Write>,
    daemonset: &DaemonSet,
    nodes: &[k8s_openapi::api::core::v1::Node],
    pods: &[k8s_openapi::api::core::v1::Pod],
    server_ahead: Option<f64>,
) {
    let ports = workload::Ports::of(Some(daemonset));
    let ready = workload::ready_nodes(pods);
    let targets = workload::to_ask(nodes, pods);
    if targets.is_empty() {
        return;
    }
    let answers = nodes::ask(cluster, targets, ports, args.url.as_ref()).await;
    report.add(nodes::unreachable(&answers));
    report.add(nodes::clocks(&answers, server_ahead));
    report.add(nodes::versions(&answers, workload::rolling_out(daemonset)));
    report.add(nodes::states(&answers, nodes, &cluster.namespace));
    report.add(nodes::certificates(&answers));
    report.add(nodes::links(&answers, &ready));
    report.add(nodes::probes(&answers, args.url.as_ref()));
    report.nodes(nodes::summary(&answers));
}

#[cfg(test)]
mod tests;
