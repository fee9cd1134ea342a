//! Discovery: from a cluster's API or a folder of manifests to the model's `Directory`.
//!
//! The door: [`start`] takes [`Settings`] and the [`DirectoryHandle`] to write to and gives back a [`Discovery`], which
//! owns everything that runs and says how it fares ([`Discovery::status`]). Both sources share one way in:
//! `manifest` (text → plain objects of `object`) → `view` (objects by key, what changed) → `translate` (plain objects →
//! model types). `dir` and `kube` differ only in how they come by the text.

use std::path::PathBuf;
use std::sync::Arc;

use posthouse_model::DirectoryHandle;
use posthouse_model::workload::Workloads;

mod dir;
mod intern;
mod kube;
mod manifest;
mod object;
mod roster;
mod snapshot;
mod source;
mod status;
mod translate;
mod trust;
mod view;
mod writer;

pub use self::kube::{PERMISSIONS, Permission, TLS_PERMISSIONS, Verb, chain, connect};
pub use source::{Source, SourceError};
pub use status::{Claims, Kind, MAX_PROBLEMS, Phase, Problem, Status, WatchStatus, Work};

use status::Board;
use writer::Writer;

/// What discovery is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the objects come from.
    pub source: Source,
    /// This node's name: its Pods are the ones that are read.
    pub node_name: Arc<str>,
    /// The proxy's own namespace, in which the Service `posthouse` lists the peers.
    pub namespace: Arc<str>,
    /// A file for the warm start of source `kube`: written while the API answers, read when it does not answer at the
    /// start. Ignored by source `dir`, whose folder is as good.
    pub snapshot: Option<PathBuf>,
    /// The namespaces whose Secrets (of type kubernetes.io/tls) and ConfigMaps source `kube` reads, for Services that are annotated
    /// with certificates. Source `dir` takes whatever is in its folder.
    pub tls_secret_namespaces: Vec<Arc<str>>,
}

/// Why discovery cannot start. Everything that may mend itself (an API server that is away) is no such error.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder of source `dir` is missing, no folder or unreadable.
    #[error("cannot read the folder {path} of --source dir: {error}")]
    Folder {
        /// As it was given.
        path: PathBuf,
        /// The system's answer.
        error: std::io::Error,
    },
    /// Neither a kubeconfig nor a service account is there, or it does not make sense.
    #[error("--source kube finds no usable cluster configuration: {0}")]
    Kube(String),
}

/// Running discovery. Dropping it ends its tasks and threads; the directory stays as it is.
pub struct Discovery {
    board: Arc<Board>,
    workloads: Arc<dyn Workloads>,
    /// Held for its end alone.
    _running: Running,
}

#[expect(dead_code, reason = "each holds what ends when it is dropped")]
enum Running {
    Dir(dir::DirSource),
    Kube(kube::KubeSource),
}

impl Discovery {
    /// How the source fares, for the admin API. Takes a short lock that no request path takes.
    #[must_use]
    pub fn status(&self) -> Status {
        self.board.status()
    }

    /// Checks what streams on links claim of their senders. Its checks may be awaited on any runtime.
    #[must_use]
    pub fn workloads(&self) -> Arc<dyn Workloads> {
        Arc::clone(&self.workloads)
    }
}

/// Starts discovery on the current runtime and returns once the source is known to be usable; `Directory::complete`
/// becomes true when every kind of object has been listed once.
///
/// # Errors
/// What needs a change of the configuration; see [`StartError`].
pub async fn start(settings: Settings, directory: DirectoryHandle) -> Result<Discovery, StartError> {
    let board = Arc::new(Board::new(settings.source.to_string()));
    let Settings { source, node_name, namespace, snapshot, tls_secret_namespaces } = settings;
    let writer = Writer::new(&node_name, &namespace, Arc::clone(&board), directory);
    let (workloads, running): (Arc<dyn Workloads>, _) = match source {
        Source::Dir(path) => {
            let pods = dir::FolderPods::new(writer.directory(), Arc::clone(&board));
            let dir = dir::DirSource::start(path.clone(), writer, Arc::clone(&pods))
                .map_err(|error| StartError::Folder { path, error })?;
            (pods, Running::Dir(dir))
        }
        Source::Kube => {
            let client = kube::client().await.map_err(StartError::Kube)?;
            let timing = kube::Timing::default();
            let namespaces = &tls_secret_namespaces;
            let kube = kube::KubeSource::start(&client, &node_name, snapshot, namespaces, writer, timing);
            (kube.workloads(), Running::Kube(kube))
        }
    };
    Ok(Discovery { board, workloads, _running: running })
}
