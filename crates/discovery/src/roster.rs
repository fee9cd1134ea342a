//! A roster: the pods of a node (source `kube`) or of a folder (`dir`) by name, as they were last seen, and the answer to
//! what a stream on a link claims of its sender. A claim is false only by a list that is known to be true now; whatever else
//! was verified once stays so while the source is away.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::counter;
use posthouse_model::Pod;
use posthouse_model::workload::{Checked, Claim, Identity};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use crate::status::Board;

/// How long a claim waits for the first list, and how long a pod that is not in the list may take to come into it: it can
/// send before our watch shows it, since its node's proxy saw it first. 1 s: watches show changes within some 10 ms, and a
/// request that is going to be refused may take that long.
pub(crate) const WAIT: Duration = Duration::from_secs(1);
/// A timer that fires so late tells of a machine that stood still.
const LATE: Duration = Duration::from_millis(100);
/// How many streams may wait for one roster at a time: as many as a peer's worker opens on a link, so that a burst at the first
/// list (a receiver that has just started) is checked whole. Each holds its stream's few KiB for at most [`WAIT`] twice over,
/// once more when the machine stands still.
pub(crate) const WAITING: usize = 4_096;

/// What is known of the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing yet.
    Unlisted,
    /// All of them, and changes are followed.
    Live,
    /// All of them, as of the time when the watch broke.
    Stale,
}

#[derive(Clone)]
struct Shown {
    /// By `namespace/name`.
    pods: imbl::HashMap<Arc<str>, Arc<Identity>>,
    state: State,
}

/// See the module's text. One writer; readers never wait.
pub(crate) struct Roster {
    shown: ArcSwap<Shown>,
    changes: watch::Sender<()>,
    waiting: Semaphore,
}

/// A change of a roster, see [`Roster::change`].
pub(crate) struct Change<'a> {
    shown: &'a mut Shown,
    changed: bool,
}

impl Change<'_> {
    /// The pod is there and is this.
    pub(crate) fn put(&mut self, name: &Arc<str>, pod: &Pod) {
        let identity = Identity {
            pod: pod.id.clone(),
            service_account: Arc::clone(&pod.service_account),
            node: Arc::clone(&pod.node),
            address: pod.addresses.first().copied(),
        };
        if self.shown.pods.get(name).is_none_or(|old| **old != identity) {
            self.shown.pods.insert(Arc::clone(name), Arc::new(identity));
            self.changed = true;
        }
    }

    /// The pod is no more, or has finished.
    pub(crate) fn remove(&mut self, name: &str) {
        self.changed |= self.shown.pods.remove(name).is_some();
    }

    pub(crate) fn set(&mut self, state: State) {
        self.changed |= self.shown.state != state;
        self.shown.state = state;
    }

    /// The names of all pods.
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        self.shown.pods.keys().cloned().collect()
    }
}

impl Roster {
    pub(crate) fn new() -> Self {
        let shown = Shown { pods: imbl::HashMap::new(), state: State::Unlisted };
        Self { shown: ArcSwap::from_pointee(shown), changes: watch::Sender::new(()), waiting: Semaphore::new(WAITING) }
    }

    /// Changes the roster in one step. There must be one caller at a time.
    pub(crate) fn change<R>(&self, with: impl FnOnce(&mut Change<'_>) -> R) -> R {
        // O(1): the map is persistent.
        let mut shown = Shown::clone(&self.shown.load());
        let mut change = Change { shown: &mut shown, changed: false };
        let result = with(&mut change);
        if change.changed {
            self.shown.store(Arc::new(shown));
            self.changes.send_replace(());
        }
        result
    }

    pub(crate) fn state(&self) -> State {
        self.shown.load().state
    }

    /// How many pods it has.
    pub(crate) fn len(&self) -> usize {
        self.shown.load().pods.len()
    }

    /// The pod, if it is what the claim says. Never waits and allocates nothing.
    pub(crate) fn verified(&self, claim: &Claim, node: &str) -> Option<Arc<Identity>> {
        let shown = self.shown.load();
        let identity = shown.pods.get(name(claim))?;
        is(identity, claim, node).then(|| Arc::clone(identity))
    }

    /// The answer, within twice [`WAIT`] unless the machine stands still.
    pub(crate) async fn check(&self, claim: &Claim, node: &str) -> Checked {
        let mut changes = self.changes.subscribe();
        if let Some(identity) = self.verified(claim, node) {
            return Checked::Verified(identity);
        }
        let Ok(_turn) = self.waiting.try_acquire() else {
            counter!("posthouse_limit_reached_total", "limit" => "claim_waits").increment(1);
            return Checked::Unknown("too many claims of its node wait to be checked");
        };
        let mut listed = self.state() != State::Unlisted;
        let mut until = Instant::now() + WAIT;
        let mut is_late = false;
        loop {
            match timeout_at(until, changes.changed()).await {
                Ok(Ok(())) => {}
                // After a stall of the whole machine every timer is over before the news that came meanwhile are read.
                Err(_) if !is_late && until.elapsed() >= LATE => {
                    is_late = true;
                    until = Instant::now() + WAIT;
                }
                Ok(Err(_)) | Err(_) => break,
            }
            if let Some(identity) = self.verified(claim, node) {
                return Checked::Verified(identity);
            }
            if !listed && self.state() != State::Unlisted {
                listed = true;
                until = Instant::now() + WAIT;
            }
        }
        self.refused(claim, node)
    }

    /// The answer to a claim that is not verified.
    fn refused(&self, claim: &Claim, node: &str) -> Checked {
        let shown = self.shown.load();
        match shown.state {
            State::Unlisted => return Checked::Unknown("the pods of its node are not listed yet"),
            State::Stale => return Checked::Unknown("the API is away and did not show such a pod before"),
            State::Live => {}
        }
        let (name, uid, account) = (name(claim), claim.uid(), claim.service_account());
        let why = match shown.pods.get(name) {
            None => format!("no such pod on node {node}: {name} (uid {uid})"),
            Some(pod) if *pod.node != *node => format!("pod {name} is on node {}, not on {node}", pod.node),
            Some(pod) if *pod.pod.uid != *uid => {
                format!("pod {name} on node {node} has uid {}, not {uid}", pod.pod.uid)
            }
            Some(pod) => {
                format!("pod {name} on node {node} has service account {}, not {account}", pod.service_account)
            }
        };
        Checked::False(why.into())
    }
}

/// Counts an answer and gives it.
pub(crate) fn counted(board: &Board, checked: Checked) -> Checked {
    board.claims.count(&checked);
    checked
}

/// `namespace/name`, as it stands at the claim's beginning.
fn name(claim: &Claim) -> &str {
    let text = claim.as_str();
    let end = text.match_indices('/').nth(1).map_or(text.len(), |(at, _)| at);
    text.get(..end).unwrap_or_default()
}

fn is(identity: &Identity, claim: &Claim, node: &str) -> bool {
    *identity.node == *node
        && *identity.pod.uid == *claim.uid()
        && *identity.service_account == *claim.service_account()
}
