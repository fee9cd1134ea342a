//! How discovery fares, as the admin API shows it: each watch with its age and last error, what was skipped and why, and
//! how much work was done. [`Board`] is where the source's tasks write it down; it is off the request path, so a
//! plain mutex will do.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use posthouse_model::workload::Checked;
use serde::Serialize;
use tokio::time::Instant;

/// The kinds of objects that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// v1 Pod, of this node.
    Pod,
    /// v1 Node.
    Node,
    /// posthouse.io/v1alpha1 AuthorizationPolicy.
    AuthorizationPolicy,
    /// v1 Secret of type kubernetes.io/tls, in the namespaces whose Secrets are read.
    Secret,
    /// v1 ConfigMap, there.
    ConfigMap,
}

impl Kind {
    /// Those of the whole cluster, that every view needs.
    pub const ALL: [Self; 5] = [Self::Service, Self::EndpointSlice, Self::Pod, Self::Node, Self::AuthorizationPolicy];

    /// As `kind` is written in a manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::Node => "Node",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }

    /// Whether the API may do without: then there is no such object, and nothing is amiss.
    pub(crate) fn is_optional(self) -> bool {
        match self {
            Self::AuthorizationPolicy => true,
            Self::Service | Self::EndpointSlice | Self::Pod | Self::Node | Self::Secret | Self::ConfigMap => false,
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a watch is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing has been read yet.
    #[default]
    Starting,
    /// The objects are being listed.
    Listing,
    /// The list is complete and changes are followed.
    Watching,
    /// The last attempt failed; the next one follows after a back-off. The last good view is served.
    Waiting,
    /// The API does not have this kind: its CRD is not installed. Asked for again every 30 s.
    Absent,
}

/// A snapshot of how discovery fares.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// `kube` or `dir:PATH`.
    pub source: String,
    /// Whether every kind has been listed once (or came from the warm start's snapshot).
    pub complete: bool,
    /// One for each kind of object.
    pub watches: Vec<WatchStatus>,
    /// What was skipped or failed and is still so, oldest first; at most [`MAX_PROBLEMS`].
    pub problems: Vec<Problem>,
    /// Problems that found no room in the list; they are in the log.
    pub problems_dropped: u64,
    /// Counters since the start.
    pub work: Work,
    /// What came of the claims of senders on other nodes.
    pub claims: Claims,
    /// Seconds that the last change took from plain objects to the published directory.
    #[serde(serialize_with = "seconds")]
    pub last_publish: Option<Duration>,
}

/// One kind of object.
#[derive(Clone, Debug, Serialize)]
pub struct WatchStatus {
    /// The kind.
    pub kind: Kind,
    /// What its watch is doing.
    pub phase: Phase,
    /// How many objects are known.
    pub objects: usize,
    /// Seconds since the source last said anything about this kind (a list, an event, a bookmark, a scan).
    #[serde(serialize_with = "seconds")]
    pub age: Option<Duration>,
    /// The last failure in words; stays until the next success.
    pub last_error: Option<String>,
    /// Seconds since that failure.
    #[serde(serialize_with = "seconds")]
    pub last_error_age: Option<Duration>,
    /// Complete lists so far; more than one means relists.
    pub lists: u64,
    /// Set while the objects come from the warm start's snapshot: the snapshot's age in seconds.
    #[serde(serialize_with = "seconds")]
    pub from_snapshot: Option<Duration>,
}

fn seconds<S: serde::Serializer>(age: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match age {
        Some(age) => to.serialize_some(&((age.as_secs_f64() * 1e6).round() / 1e6)),
        None => to.serialize_none(),
    }
}

/// Something that was skipped, or a source that fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, or the watch.
    pub source: String,
    /// Which object or document in it; empty when it is all of it.
    pub object: String,
    /// What is wrong, and what was done about it.
    pub error: String,
    /// Unix time in seconds at which it was first seen.
    #[serde(serialize_with = "unix")]
    pub since: SystemTime,
}

fn unix<S: serde::Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}

/// Work done since the start. A change of one object must move these by what it touches, not by the cluster's size;
/// tests hold us to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Work {
    /// Manifests or API objects that were parsed.
    pub parsed: u64,
    /// Documents and objects of other kinds, passed over quietly.
    pub ignored: u64,
    /// Objects that were skipped because they did not fit.
    pub skipped: u64,
    /// Services whose endpoints were worked out anew.
    pub rebuilt: u64,
    /// Directories published.
    pub published: u64,
}

/// Checks of what streams on links claim of their senders, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Claims {
    /// The pod is what it claims to be.
    pub verified: u64,
    /// It is not.
    #[serde(rename = "false")]
    pub refuted: u64,
    /// It could not be told.
    pub unknown: u64,
    /// Nodes whose pods are watched for this now.
    pub nodes: usize,
}

/// The same as it is counted; workers do that, so there is no lock.
#[derive(Debug, Default)]
pub(crate) struct ClaimCounts {
    verified: AtomicU64,
    refuted: AtomicU64,
    unknown: AtomicU64,
    nodes: AtomicUsize,
}

impl ClaimCounts {
    pub(crate) fn count(&self, checked: &Checked) {
        let counter = match checked {
            Checked::Verified(_) => &self.verified,
            Checked::False(_) => &self.refuted,
            Checked::Unknown(_) => &self.unknown,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set_nodes(&self, nodes: usize) {
        self.nodes.store(nodes, Ordering::Relaxed);
    }

    pub(crate) fn nodes(&self) -> usize {
        self.nodes.load(Ordering::Relaxed)
    }

    fn read(&self) -> Claims {
        Claims {
            verified: self.verified.load(Ordering::Relaxed),
            refuted: self.refuted.load(Ordering::Relaxed),
            unknown: self.unknown.load(Ordering::Relaxed),
            nodes: self.nodes(),
        }
    }
}

/// How many problems are kept for the admin API. A broken generator breaks all of its output at once; a hundred tell the
/// story as well as a hundred thousand.
pub const MAX_PROBLEMS: usize = 100;

/// Where the tasks of a source write down how they fare.
pub(crate) struct Board {
    source: String,
    state: Mutex<State>,
    pub(crate) claims: ClaimCounts,
}

#[derive(Default)]
struct State {
    complete: bool,
    watches: [Watch; Kind::ALL.len()],
    problems: BTreeMap<(String, String), (String, SystemTime)>,
    dropped: u64,
    work: Work,
    last_publish: Option<Duration>,
}

#[derive(Clone, Default)]
struct Watch {
    phase: Phase,
    objects: usize,
    heard: Option<Instant>,
    error: Option<(String, Instant)>,
    lists: u64,
    snapshot: Option<SystemTime>,
    /// The API was last heard to lack this kind.
    absent: bool,
}

impl Board {
    pub(crate) fn new(source: String) -> Self {
        Self { source, state: Mutex::default(), claims: ClaimCounts::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below is a plain assignment, so a panic elsewhere leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self) -> Status {
        let state = self.lock();
        let watches = Kind::ALL.into_iter().zip(&state.watches).map(|(kind, watch)| WatchStatus {
            kind,
            phase: watch.phase,
            objects: watch.objects,
            age: watch.heard.map(|at| at.elapsed()),
            last_error: watch.error.as_ref().map(|(text, _)| text.clone()),
            last_error_age: watch.error.as_ref().map(|(_, at)| at.elapsed()),
            lists: watch.lists,
            from_snapshot: watch.snapshot.map(|at| at.elapsed().unwrap_or_default()),
        });
        let mut problems: Vec<Problem> = state
            .problems
            .iter()
            .map(|((source, object), (error, since))| Problem {
                source: source.clone(),
                object: object.clone(),
                error: error.clone(),
                since: *since,
            })
            .collect();
        problems.sort_by_key(|problem| problem.since);
        Status {
            source: self.source.clone(),
            complete: state.complete,
            watches: watches.collect(),
            problems,
            problems_dropped: state.dropped,
            work: state.work,
            claims: self.claims.read(),
            last_publish: state.last_publish,
        }
    }

    /// Every kind is known.
    pub(crate) fn set_complete(&self) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.complete, true) {
            let objects: usize = state.watches.iter().map(|watch| watch.objects).sum();
            drop(state);
            tracing::info!(source = self.source, objects, "discovery has its first complete view");
        }
    }

    pub(crate) fn set_objects(&self, kind: Kind, objects: usize) {
        self.lock().watches[kind.index()].objects = objects;
    }

    pub(crate) fn set_phase(&self, kind: Kind, phase: Phase) {
        self.lock().watches[kind.index()].phase = phase;
    }

    /// The source said something about `kind`.
    pub(crate) fn heard(&self, kind: Kind) {
        let watch = &mut self.lock().watches[kind.index()];
        watch.heard = Some(Instant::now());
        watch.error = None;
    }

    /// A list of `kind` is complete.
    pub(crate) fn listed(&self, kind: Kind) {
        let watch = &mut self.lock().watches[kind.index()];
        watch.lists += 1;
        watch.snapshot = None;
        watch.absent = false;
    }

    /// The source has no lists, only scans: the first one counts.
    pub(crate) fn listed_once(&self, kind: Kind) {
        let watch = &mut self.lock().watches[kind.index()];
        watch.lists = 1;
        watch.phase = Phase::Watching;
    }

    /// The objects of `kind` come from a snapshot that was written at `at`.
    pub(crate) fn warmed(&self, kind: Kind, at: SystemTime) {
        self.lock().watches[kind.index()].snapshot = Some(at);
    }

    /// The API does not have `kind`.
    pub(crate) fn absent(&self, kind: Kind) {
        let mut state = self.lock();
        let watch = &mut state.watches[kind.index()];
        watch.heard = Some(Instant::now());
        watch.error = None;
        watch.phase = Phase::Absent;
        let repeated = std::mem::replace(&mut watch.absent, true);
        drop(state);
        if !repeated {
            tracing::info!(source = self.source, %kind, "the API does not have this kind, so there are none; it is looked for again every 30 s");
        }
    }

    /// The watch of `kind` failed and will try again.
    pub(crate) fn failed(&self, kind: Kind, error: &str) {
        let mut state = self.lock();
        let watch = &mut state.watches[kind.index()];
        let repeated = watch.error.as_ref().is_some_and(|(old, _)| old == error);
        watch.error = Some((error.to_owned(), Instant::now()));
        watch.phase = Phase::Waiting;
        drop(state);
        if !repeated {
            tracing::warn!(source = self.source, %kind, error, "discovery fails; the last good view is served");
        }
    }

    pub(crate) fn count(&self, add: Work) {
        let work = &mut self.lock().work;
        work.parsed += add.parsed;
        work.ignored += add.ignored;
        work.skipped += add.skipped;
        work.rebuilt += add.rebuilt;
        work.published += add.published;
    }

    /// A directory was published after so long.
    pub(crate) fn published(&self, took: Duration) {
        self.lock().last_publish = Some(took);
    }

    /// Notes a problem and logs it, once as long as it stays the same.
    pub(crate) fn problem(&self, source: &str, object: &str, error: &str) {
        let mut state = self.lock();
        let key = (source.to_owned(), object.to_owned());
        let full = state.problems.len() >= MAX_PROBLEMS;
        let news = match state.problems.get_mut(&key) {
            Some((old, _)) if old == error => false,
            Some((old, _)) => {
                error.clone_into(old);
                true
            }
            None if !full => {
                state.problems.insert(key, (error.to_owned(), SystemTime::now()));
                true
            }
            None => {
                state.dropped += 1;
                true
            }
        };
        drop(state);
        if news {
            tracing::warn!(source, object, error, "discovery skips what does not fit");
        }
    }

    /// The problem is no more.
    pub(crate) fn mended(&self, source: &str, object: &str) {
        let mut state = self.lock();
        // Nearly always empty: this is asked for each good object.
        if !state.problems.is_empty() && state.problems.remove(&(source.to_owned(), object.to_owned())).is_some() {
            drop(state);
            tracing::info!(source, object, "discovery: mended");
        }
    }

    /// All problems of `source` whose object is not in `still` are no more.
    pub(crate) fn mended_except(&self, source: &str, still: &[String]) {
        let mut state = self.lock();
        if state.problems.is_empty() {
            return;
        }
        state.problems.retain(|(of, object), _| of != source || still.iter().any(|s| s == object));
    }
}
