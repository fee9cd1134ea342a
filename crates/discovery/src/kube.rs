//! The `kube` source: one watch a kind (`watch`), all feeding one writer (`feed`), and the warm start's snapshot. kube-rs
//! brings the client (TLS, credentials and their renewal); listing and watching are ours, since what a bad answer may do
//! to the view is decided there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::{Client, Config};
use tokio::task::JoinSet;

use crate::snapshot;
use crate::status::{Board, Kind};
use crate::writer::Writer;

mod api;
mod feed;
mod peers;
mod permissions;
#[cfg(test)]
mod tests;
mod watch;

use api::{Api, Failure};
use feed::{Feed, OfKind, OfNamespace};
use watch::{Taker, Watch};

use peers::Peers;

pub use permissions::{PERMISSIONS, Permission, TLS_PERMISSIONS, Verb};
pub use posthouse_model::chain;

/// Under this name problems with objects of the API are shown.
pub(crate) const SOURCE: &str = "kube";

/// How long connecting to the API server may take. 10 s: a node's network is ready or it is not; kube's default is 30 s.
const CONNECT: Duration = Duration::from_secs(10);

/// The waits of this source; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// Objects a page. 500: client-go's pager.
    pub(crate) page_size: u32,
    /// How long one page may take. 60 s: the API server's own limit for a request (`--request-timeout`).
    pub(crate) page: Duration,
    /// How long the server may take to accept a watch; it answers before the first event.
    pub(crate) open: Duration,
    /// A watch that is silent this long is stalled. 120 s: API servers send bookmarks about once a minute
    /// (`bookmarkFrequency` in apiserver's cacher), so two are missing.
    pub(crate) stall: Duration,
    /// The first and the longest back-off; doubled each time, with jitter. 30 s: client-go's reflector; it begins with
    /// 0.8 s, we with 0.25 s, since an API server behind a load balancer is mostly back at once.
    pub(crate) backoff: (Duration, Duration),
    /// The longest wait while nothing listens at the server's address, and in the minute after that. 1 s: the view is right
    /// 2 s after an outage. In clusters of more than 250 nodes it grows with them (`watch::SHARE`).
    pub(crate) unreachable: Duration,
    /// How often a kind is asked for that the API does not have.
    pub(crate) absent: Duration,
    /// How soon for the second time; the first answer is not believed. 1 s: a start without the CRD is later by that.
    pub(crate) absent_again: Duration,
    /// A watch that lived this long or said something was a success: the back-off begins anew.
    pub(crate) settled: Duration,
    /// How long the API may take to list everything before the snapshot is used.
    pub(crate) grace: Duration,
    /// The least time between two writings of the snapshot.
    pub(crate) snapshot: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            page_size: 500,
            page: Duration::from_secs(60),
            open: Duration::from_secs(30),
            stall: Duration::from_secs(120),
            backoff: (Duration::from_millis(250), Duration::from_secs(30)),
            unreachable: Duration::from_secs(1),
            absent: Duration::from_secs(30),
            absent_again: Duration::from_secs(1),
            settled: Duration::from_secs(5),
            grace: Duration::from_secs(3),
            snapshot: Duration::from_secs(10),
        }
    }
}

/// A running `kube` source. Dropping it ends its tasks.
pub(crate) struct KubeSource {
    _tasks: JoinSet<()>,
    peers: Arc<Peers>,
}

impl Drop for KubeSource {
    fn drop(&mut self) {
        self.peers.end();
    }
}

/// A client by the kubeconfig or the service account.
///
/// # Errors
/// There is neither, or it makes no sense; in words.
pub(crate) async fn client() -> Result<Client, String> {
    // A watch may be silent for longer than any limit of reading; ours are in `Timing`.
    connect(None).await
}

/// The same, for watches by kube-rs itself: they notice a connection that is dead only by `read_timeout`.
///
/// # Errors
/// There is neither, or it makes no sense; in words.
pub async fn connect(read_timeout: Option<Duration>) -> Result<Client, String> {
    let mut config = Config::infer().await.map_err(|error| chain(&error))?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = read_timeout;
    // The back-off is ours.
    config.default_retry = false;
    // kube takes HTTPS_PROXY from the environment. On a node of this mesh that may well be us.
    config.proxy_url = None;
    Client::try_from(config).map_err(|error| chain(&error))
}

impl KubeSource {
    /// Starts on the current runtime.
    pub(crate) fn start(
        client: &Client,
        node_name: &Arc<str>,
        snapshot: Option<PathBuf>,
        namespaces: &[Arc<str>],
        writer: Writer,
        timing: Timing,
    ) -> Self {
        let board = Arc::clone(&writer.board);
        let peers = Peers::new(client.clone(), writer.directory(), Arc::clone(&board), timing);
        let feed = Arc::new(Feed::new(writer, namespaces));
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&peers).sweep());
        for kind in Kind::ALL {
            let api = Api::new(client.clone(), kind, node_name, timing);
            let taker = Arc::new(OfKind { feed: Arc::clone(&feed), board: Arc::clone(&board), kind });
            tasks.spawn(supervise(api, taker, timing));
        }
        for namespace in namespaces {
            for kind in [Kind::Secret, Kind::ConfigMap] {
                let taker = OfNamespace {
                    feed: Arc::clone(&feed),
                    board: Arc::clone(&board),
                    kind,
                    namespace: Arc::clone(namespace),
                    namespaces: namespaces.len(),
                };
                let api = Api::of_namespace(client.clone(), kind, namespace, timing);
                tasks.spawn(supervise(api, Arc::new(taker), timing));
            }
        }
        if let Some(path) = snapshot {
            tasks.spawn(keep_snapshot(path, feed, board, timing));
        }
        Self { _tasks: tasks, peers }
    }

    /// Whom to ask about claims.
    pub(crate) fn workloads(&self) -> Arc<Peers> {
        Arc::clone(&self.peers)
    }
}

/// Runs one watch for ever. It has no way to end but a bug's panic; a node must not go blind by that.
async fn supervise<T: Taker>(api: Api, taker: Arc<T>, timing: Timing) {
    loop {
        let mut watch = JoinSet::new();
        watch.spawn(Watch::new(api.clone(), Arc::clone(&taker), timing).run());
        if let Some(Err(error)) = watch.join_next().await {
            taker.failed(&Failure::Other(format!("the watch failed within itself and begins anew: {error}")));
        }
        tokio::time::sleep(timing.backoff.1).await;
    }
}

/// Loads the snapshot when the API does not list everything at once, and writes it as things change.
async fn keep_snapshot(path: PathBuf, feed: Arc<Feed>, board: Arc<Board>, timing: Timing) {
    tokio::select! {
        () = tokio::time::sleep(timing.grace) => {}
        // Nobody listens there: it will not list anything within the grace time either.
        () = feed.unreachable.notified() => {}
    }
    let label = path.display().to_string();
    if !feed.is_complete() {
        let (feed, from) = (Arc::clone(&feed), path.clone());
        let loaded = tokio::task::spawn_blocking(move || {
            let snapshot = snapshot::read(&from)?;
            feed.warm(&snapshot)
        });
        let why = match loaded.await {
            Ok(Ok(())) => None,
            Ok(Err(snapshot::ReadError::Missing)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = why {
            tracing::warn!(snapshot = label, why, "the warm start's snapshot is not used");
        }
    }
    let mut written = None;
    loop {
        if let Some((changes, objects)) = feed.to_keep(written) {
            let to = path.clone();
            match tokio::task::spawn_blocking(move || snapshot::write(&to, &objects)).await {
                Ok(Ok(())) => {
                    written = Some(changes);
                    board.mended(&label, "snapshot");
                }
                Ok(Err(error)) => {
                    board.problem(&label, "snapshot", &format!("the warm start's snapshot cannot be written: {error}"));
                }
                Err(error) => board.problem(&label, "snapshot", &error.to_string()),
            }
        }
        tokio::time::sleep(timing.snapshot).await;
    }
}
