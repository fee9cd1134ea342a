//! The pods of other nodes, as far as their claims are to be checked: one list and watch a node (`spec.nodeName`, which the
//! API server has an index for), begun by the first claim from there, ended when nobody asked for ten minutes. All that is
//! claimed of a pod is fixed for its life, so one watch serves all pods of a node; see docs/decisions.md.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use kube::Client;
use metrics::counter;
use posthouse_model::DirectoryHandle;
use posthouse_model::workload::{Checked, Checking, Claim, Workloads};
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::api::{Api, Failure};
use super::feed::{self, Next, Seen};
use super::watch::Taker;
use super::{SOURCE, Timing, supervise};
use crate::manifest::{self, Context, Parsed};
use crate::object::Object;
use crate::roster::{Change, Roster, State, counted};
use crate::status::{Board, Phase};

/// How many nodes are watched at a time. Each takes a connection to the API server and, with 110 pods, some 50 kB.
const MAX_NODES: usize = 512;
/// A watch that nobody asked for this long is ended. 10 min: an API server's own watch lives for 5 to 10.
const IDLE: Duration = Duration::from_secs(600);
/// How often unused watches are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// At [`MAX_NODES`] one that was not asked for this long gives way; otherwise the new one must wait, or they would turn each other
/// out again and again.
const SPARE: Duration = Duration::from_secs(30);
/// Under this name the board shows that watches fail.
const PROBLEM: &str = "pods of other nodes";

/// See the module's text.
pub(crate) struct Peers {
    client: Client,
    timing: Timing,
    directory: DirectoryHandle,
    board: Arc<Board>,
    /// Watches run here; claims are asked about by workers, which have runtimes of their own.
    runtime: Handle,
    begun: Instant,
    nodes: ArcSwap<HashMap<Arc<str>, Arc<Watched>>>,
    /// Taken to change `nodes`; whether that is over.
    ended: Mutex<bool>,
    broken: Arc<AtomicUsize>,
}

/// A node under watch.
struct Watched {
    pods: Arc<NodePods>,
    /// Seconds since `Peers::begun`.
    used: AtomicU64,
    /// Ends when dropped.
    _watch: JoinSet<()>,
}

impl Peers {
    /// Must be called on the runtime that watches are to run on.
    pub(crate) fn new(client: Client, directory: DirectoryHandle, board: Arc<Board>, timing: Timing) -> Arc<Self> {
        Arc::new(Self {
            client,
            timing,
            directory,
            board,
            runtime: Handle::current(),
            begun: Instant::now(),
            nodes: ArcSwap::default(),
            ended: Mutex::new(false),
            broken: Arc::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_secs()
    }

    /// Whether the directory has the node: nobody else's name makes us ask the API.
    fn is_node(&self, node: &str) -> bool {
        self.directory.load().node(node).is_some()
    }

    /// Ends the watches that nobody needs; for ever.
    pub(crate) async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let now = self.now();
            self.keep(|node, watched| watched.idle(now) < IDLE && self.is_node(node));
        }
    }

    /// Ends them all, for good.
    pub(crate) fn end(&self) {
        *self.lock() = true;
        self.keep(|_, _| false);
    }

    fn keep(&self, which: impl Fn(&str, &Watched) -> bool) {
        let _ended = self.lock();
        let nodes = self.nodes.load();
        if nodes.iter().all(|(node, watched)| which(node, watched)) {
            return;
        }
        let kept = nodes.iter().filter(|(node, watched)| which(node, watched));
        self.store(kept.map(|(node, watched)| (Arc::clone(node), Arc::clone(watched))).collect());
    }

    fn store(&self, nodes: HashMap<Arc<str>, Arc<Watched>>) {
        self.board.claims.set_nodes(nodes.len());
        self.nodes.store(Arc::new(nodes));
    }

    /// The node's watch, begun if need be; `None` when there are too many.
    fn watched(&self, node: &str) -> Option<Arc<Watched>> {
        if let Some(watched) = self.nodes.load().get(node) {
            return Some(Arc::clone(watched));
        }
        let ended = self.lock();
        let mut nodes = HashMap::clone(&self.nodes.load());
        if let Some(watched) = nodes.get(node) {
            return Some(Arc::clone(watched));
        }
        if *ended {
            return None;
        }
        let now = self.now();
        if nodes.len() >= MAX_NODES {
            let least = nodes.iter().min_by_key(|(_, watched)| watched.used.load(Ordering::Relaxed));
            let spare = least.filter(|(_, watched)| watched.idle(now) >= SPARE).map(|(node, _)| Arc::clone(node))?;
            nodes.remove(&spare);
        }
        let node: Arc<str> = Arc::from(node);
        let pods = Arc::new(NodePods {
            roster: Roster::new(),
            context: Mutex::new(Context::new(Arc::clone(&node))),
            directory: self.directory.clone(),
            board: Arc::clone(&self.board),
            failing: AtomicBool::new(false),
            broken: Arc::clone(&self.broken),
        });
        let api = Api::pods_of(self.client.clone(), &node, self.timing);
        let mut watch = JoinSet::new();
        watch.spawn_on(supervise(api, Arc::clone(&pods), self.timing), &self.runtime);
        let watched = Arc::new(Watched { pods, used: AtomicU64::new(now), _watch: watch });
        nodes.insert(node, Arc::clone(&watched));
        self.store(nodes);
        Some(watched)
    }

    async fn ask(&self, claim: &Claim, node: &str) -> Checked {
        if !self.is_node(node) {
            return Checked::Unknown("its node is not known");
        }
        let Some(watched) = self.watched(node) else {
            counter!("posthouse_limit_reached_total", "limit" => "claim_nodes").increment(1);
            return Checked::Unknown("too many nodes are asked about");
        };
        watched.touch(self.now());
        watched.pods.roster.check(claim, node).await
    }
}

impl Workloads for Peers {
    fn known(&self, claim: &Claim, node: &str) -> Option<Checked> {
        let nodes = self.nodes.load();
        let watched = nodes.get(node)?;
        watched.touch(self.now());
        let identity = watched.pods.roster.verified(claim, node)?;
        Some(counted(&self.board, Checked::Verified(identity)))
    }

    fn check<'a>(&'a self, claim: &'a Claim, node: &'a str) -> Checking<'a> {
        Box::pin(async move { counted(&self.board, self.ask(claim, node).await) })
    }
}

impl Watched {
    /// Written at most once a second, so that the workers do not take the cache line from each other.
    fn touch(&self, now: u64) {
        if self.used.load(Ordering::Relaxed) != now {
            self.used.store(now, Ordering::Relaxed);
        }
    }

    fn idle(&self, now: u64) -> Duration {
        Duration::from_secs(now.saturating_sub(self.used.load(Ordering::Relaxed)))
    }
}

/// What the watch of a node writes to.
struct NodePods {
    roster: Roster,
    /// Whoever holds it is the roster's one writer.
    context: Mutex<Context>,
    directory: DirectoryHandle,
    board: Arc<Board>,
    failing: AtomicBool,
    /// How many of these watches fail now.
    broken: Arc<AtomicUsize>,
}

impl NodePods {
    fn lock(&self) -> MutexGuard<'_, Context> {
        self.context.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mended(&self) {
        if self.failing.swap(false, Ordering::Relaxed) && self.broken.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.board.mended(SOURCE, PROBLEM);
        }
    }
}

/// Takes one object and gives its name, if it has one. One that does not fit changes nothing.
fn take(context: &mut Context, pods: &mut Change<'_>, object: &RawValue) -> Option<Arc<str>> {
    match manifest::json_item(object.get(), Some(crate::status::Kind::Pod), context) {
        Ok(Parsed::Object(reduced)) => {
            match &reduced.object {
                Some(Object::Pod(pod)) => pods.put(&reduced.key.name, pod),
                _ => pods.remove(&reduced.key.name),
            }
            Some(reduced.key.name)
        }
        Ok(Parsed::Other | Parsed::List(_)) => None,
        Err(unfit) => unfit.key.map(|key| key.name),
    }
}

impl Taker for NodePods {
    fn page(&self, text: &str, seen: &mut Seen) -> Result<Next, Failure> {
        let mut context = self.lock();
        self.roster.change(|pods| seen.page(text, |object| take(&mut context, pods, object)))
    }

    fn complete(&self, seen: &Seen) -> Result<(), Failure> {
        let _context = self.lock();
        let known = self.roster.len();
        if seen.is_empty() && known > 0 {
            // Our own kind runs on every node that sends claims.
            return Err(Failure::Other(format!(
                "the API lists no Pod of a node that had {known}; that is not believed"
            )));
        }
        self.roster.change(|pods| {
            for name in pods.names().iter().filter(|name| seen.ended(name)) {
                pods.remove(name);
            }
            pods.set(State::Live);
        });
        self.mended();
        Ok(())
    }

    fn events(&self, lines: &[u8], version: &mut String) -> Result<(), Failure> {
        let mut context = self.lock();
        self.roster.change(|pods| {
            feed::events(lines, version, |change, object| {
                let name = take(&mut context, pods, object);
                if change == feed::Change::Gone {
                    pods.remove(&name?);
                }
                Some(())
            })
        })
    }

    fn phase(&self, phase: Phase) {
        let _context = self.lock();
        // A watch that goes on where it was: what happened meanwhile comes first. A list says so itself, once it is complete.
        if phase == Phase::Watching && self.roster.state() == State::Stale {
            self.roster.change(|pods| pods.set(State::Live));
            self.mended();
        }
    }

    fn heard(&self) {}

    fn failed(&self, failure: &Failure) {
        let _context = self.lock();
        if self.roster.state() == State::Live {
            self.roster.change(|pods| pods.set(State::Stale));
        }
        if !self.failing.swap(true, Ordering::Relaxed) {
            self.broken.fetch_add(1, Ordering::Relaxed);
        }
        self.board.problem(SOURCE, PROBLEM, failure.text());
    }

    fn crowd(&self) -> usize {
        let nodes = self.directory.load().size().nodes;
        // `SHARE` reckons with four watches a node.
        nodes * (4 + self.board.claims.nodes()) / 4
    }
}

impl Drop for NodePods {
    fn drop(&mut self) {
        self.mended();
    }
}
