//! The asking: each node's admin API, and requests through its outbound port, by port-forward. Nodes are asked some at a time;
//! one that cannot be asked costs its time limits, no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderMap, StatusCode, Uri, header};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::super::api::{Cluster, Trouble, ahead};
use super::super::forward::{Answer, Forwarded};
use super::super::workload::Ports;
use super::answers::{Identity, NodeConfig, Peers, proxy_status};

/// Nodes asked at the same time: each is a connection of the API server to a kubelet.
const AT_ONCE: usize = 8;
/// When so many could not be asked and none could, it is not the nodes' fault, and thousands of time limits are not waited for.
const GIVE_UP: usize = 2 * AT_ONCE;
/// Every node lists every other, so in a large cluster some stand for all: 64 of 5,000 are 80 MB instead of 6 GB.
const ASK_PEERS: usize = 64;
/// A name that cannot exist (RFC 6761): every proxy must refuse it by itself.
const NOWHERE: &str = "http://posthouse-check.invalid/";
/// Requests of `--url` through a node, each to a random pod: with pods on 3 nodes the chance that none of so many goes to a
/// certain one is 1 in 17,000.
const MAX_REQUESTS: usize = 24;
/// As many of them before the links are looked at again.
const BETWEEN_LOOKS: usize = 8;

/// One node and what it answered.
pub(in crate::check) struct NodeAnswers {
    pub(super) node: String,
    pub(super) pod: String,
    pub(super) admin: Result<Admin, Trouble>,
    /// To the name that cannot exist.
    pub(super) outbound: Result<Probe, Trouble>,
    /// To `--url`, the worst of several. `None`: not sent.
    pub(super) url: Option<Result<Probe, Trouble>>,
}

pub(super) struct Admin {
    pub(super) config: NodeConfig,
    /// Seconds by which the node's clock is ahead of this machine's.
    pub(super) ahead: Option<f64>,
    /// `Ok(None)`: its version has none.
    pub(super) identity: Result<Option<Identity>, Trouble>,
    /// As they are after all requests. `None`: not asked.
    pub(super) peers: Option<Result<Peers, Trouble>>,
}

/// The answer to a request that was sent through a node.
pub(super) struct Probe {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) took: Duration,
}

impl Probe {
    /// The token of the proxy's own error.
    pub(super) fn token(&self) -> Option<String> {
        proxy_status(&self.headers)?.error
    }
}

/// Asks the pods: (node, pod).
pub(in crate::check) async fn ask(
    cluster: &Cluster,
    targets: Vec<(String, String)>,
    ports: Ports,
    url: Option<&Uri>,
) -> Vec<NodeAnswers> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut asking = JoinSet::new();
    let tally = Arc::new(Tally::default());
    let step = targets.len().div_ceil(ASK_PEERS);
    for (at, (node, pod)) in targets.into_iter().enumerate() {
        let (cluster, turns, tally, url) = (cluster.clone(), Arc::clone(&turns), Arc::clone(&tally), url.cloned());
        asking.spawn(async move {
            // The semaphore is never closed.
            let _turn = turns.acquire_owned().await;
            ask_node(&cluster, (node, pod), ports, (url.as_ref(), at % step == 0), &tally).await
        });
    }
    let mut answers = asking.join_all().await;
    answers.sort_by(|a, b| a.node.cmp(&b.node));
    answers
}

async fn ask_node(
    cluster: &Cluster,
    (node, pod): (String, String),
    ports: Ports,
    (url, with_peers): (Option<&Uri>, bool),
    tally: &Tally,
) -> NodeAnswers {
    let mut admin = Caller::new(cluster, &pod, ports.admin);
    let mut state = match tally.is_hopeless() {
        true => Err(Trouble::GivenUp(GIVE_UP)),
        false => ask_state(&mut admin).await,
    };
    tally.count(state.is_ok());
    let mut through = Caller::new(cluster, &pod, ports.outbound);
    let outbound = match &state {
        // Another port of the same pod, by the same way, would fare no better.
        Err(trouble @ (Trouble::Forbidden(_) | Trouble::Unauthorized | Trouble::Slow(_) | Trouble::GivenUp(_))) => {
            Err(trouble.clone())
        }
        _ => through.send(&Uri::from_static(NOWHERE)).await,
    };
    let mut links = (with_peers && state.is_ok()).then_some(&mut admin);
    let mut peers = None;
    if let Some(admin) = &mut links {
        peers = Some(ask_peers(admin).await);
    }
    // Where no posthouse answers there is nobody to send an application's request through.
    let url = match (url, &outbound) {
        (Some(url), Ok(probe)) if probe.token().is_some() => {
            Some(try_links(&mut through, url, links, &mut peers).await)
        }
        _ => None,
    };
    if let Ok(state) = &mut state {
        state.peers = peers;
    }
    NodeAnswers { node, pod, admin: state, outbound, url }
}

/// Sends requests until every link was tried, or so many that the Service has hardly a pod behind those that were not. Gives
/// the worst answer, and `peers` as they are after it.
async fn try_links(
    through: &mut Caller<'_>,
    url: &Uri,
    mut admin: Option<&mut Caller<'_>>,
    peers: &mut Option<Result<Peers, Trouble>>,
) -> Result<Probe, Trouble> {
    let untried = |peers: &Option<Result<Peers, Trouble>>| match peers {
        Some(Ok(peers)) => peers.others().filter(|peer| peer.is_untried()).count(),
        _ => 0,
    };
    let badness = |answer: &Result<Probe, Trouble>| match answer {
        Ok(probe) if probe.token().is_none() => usize::from(probe.status.is_server_error()),
        _ => 2,
    };
    let mut worst = through.send(url).await;
    let mut sent = 1;
    loop {
        let batch = untried(peers).min(BETWEEN_LOOKS).min(MAX_REQUESTS - sent);
        for _ in 0..batch {
            // One that fails is enough.
            if badness(&worst) > 1 {
                break;
            }
            let answer = through.send(url).await;
            sent += 1;
            if badness(&answer) > badness(&worst) {
                worst = answer;
            }
        }
        if let Some(admin) = &mut admin {
            *peers = Some(ask_peers(admin).await);
        }
        if untried(peers) == 0 || sent >= MAX_REQUESTS || badness(&worst) > 1 {
            return worst;
        }
    }
}

/// How the nodes so far fared.
#[derive(Default)]
struct Tally {
    answered: AtomicUsize,
    failed: AtomicUsize,
}

impl Tally {
    fn count(&self, answered: bool) {
        if answered { &self.answered } else { &self.failed }.fetch_add(1, Ordering::Relaxed);
    }

    fn is_hopeless(&self) -> bool {
        self.answered.load(Ordering::Relaxed) == 0 && self.failed.load(Ordering::Relaxed) >= GIVE_UP
    }
}

async fn ask_state(admin: &mut Caller<'_>) -> Result<Admin, Trouble> {
    let answer = admin.get(&Uri::from_static("/config")).await?;
    let ahead = ahead(&answer.headers, answer.asked);
    let config = parse(&answer, admin.port)?;
    let identity = match admin.get(&Uri::from_static("/identity")).await {
        Ok(answer) if answer.status == StatusCode::NOT_FOUND => Ok(None),
        Ok(answer) => parse(&answer, admin.port).map(Some),
        Err(trouble) => Err(trouble),
    };
    Ok(Admin { config, ahead, identity, peers: None })
}

async fn ask_peers(admin: &mut Caller<'_>) -> Result<Peers, Trouble> {
    let answer = admin.get(&Uri::from_static("/peers")).await?;
    parse(&answer, admin.port)
}

fn parse<T: serde::de::DeserializeOwned>(answer: &Answer, port: u16) -> Result<T, Trouble> {
    let parsed = (answer.status == StatusCode::OK).then(|| serde_json::from_slice(&answer.body).ok()).flatten();
    parsed.ok_or_else(|| Trouble::Other(format!("what answers on port {port} is no posthouse ({})", answer.status)))
}

/// A port of a pod, with a connection that is opened anew when the other end closed it between two requests.
struct Caller<'a> {
    cluster: &'a Cluster,
    pod: &'a str,
    port: u16,
    connection: Option<Forwarded>,
}

impl<'a> Caller<'a> {
    fn new(cluster: &'a Cluster, pod: &'a str, port: u16) -> Self {
        Self { cluster, pod, port, connection: None }
    }

    async fn get(&mut self, uri: &Uri) -> Result<Answer, Trouble> {
        if let Some(mut connection) = self.connection.take() {
            match connection.get(uri).await {
                Err(Trouble::Other(_)) => {}
                answered => return self.keep(connection, answered),
            }
        }
        let mut connection = Forwarded::open(self.cluster, self.pod, self.port).await?;
        let answered = connection.get(uri).await;
        self.keep(connection, answered)
    }

    /// Keeps the connection for the next request, unless this answer was its last.
    fn keep(&mut self, connection: Forwarded, answered: Result<Answer, Trouble>) -> Result<Answer, Trouble> {
        let ends = |answer: &Answer| answer.headers.get(header::CONNECTION).is_some_and(|value| value == "close");
        self.connection = answered.as_ref().is_ok_and(|answer| !ends(answer)).then_some(connection);
        answered
    }

    async fn send(&mut self, uri: &Uri) -> Result<Probe, Trouble> {
        let answer = self.get(uri).await?;
        Ok(Probe { status: answer.status, headers: answer.headers, took: answer.took })
    }
}
