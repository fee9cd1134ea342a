//! What all workers share, and what the admin API may read of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use posthouse_model::transport::{LinkTransport, PodTls};
use posthouse_model::workload::Workloads;
use posthouse_model::{DirectoryHandle, ServiceKey};

use crate::config::Config;
use crate::link::LinkTable;
use crate::metrics::RetryBudget;

/// Who proves what to whom.
#[derive(Clone)]
pub struct Trust {
    /// Makes and takes links.
    pub links: Arc<dyn LinkTransport>,
    /// Makes TLS to pods.
    pub pods: Arc<dyn PodTls>,
    /// Checks which pods streams come from.
    pub workloads: Arc<dyn Workloads>,
}

/// The shared, immutable part of the data plane.
pub struct Proxy {
    pub(crate) config: Config,
    pub(crate) directory: DirectoryHandle,
    pub(crate) trust: Trust,
    pub(crate) link_table: LinkTable,
    /// Retry budgets by Service key, shared by the workers; looked up once a Service and worker.
    pub(crate) budgets: Mutex<HashMap<ServiceKey, Arc<RetryBudget>>>,
}

impl Proxy {
    /// Puts the parts together; nothing runs yet.
    #[must_use]
    pub fn new(config: Config, directory: DirectoryHandle, trust: Trust) -> Arc<Self> {
        Arc::new(Self {
            config,
            directory,
            trust,
            link_table: LinkTable::default(),
            budgets: Mutex::new(HashMap::new()),
        })
    }

    pub(crate) fn budget(&self, key: &ServiceKey) -> Arc<RetryBudget> {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        if budgets.len() > 2 * self.directory.load().size().services + 1024 {
            let directory = self.directory.load();
            budgets.retain(|key, _| directory.service(key).is_some());
        }
        Arc::clone(budgets.entry(Arc::clone(key)).or_default())
    }

    /// The links of this node, one entry for each peer that was ever dialled and is still in the directory.
    #[must_use]
    pub fn links(&self) -> Vec<LinkStatus> {
        let directory = self.directory.load();
        self.link_table.list(|node| directory.peer(node).is_some())
    }
}

/// State of the links to one peer, over all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkStatus {
    /// The peer's node.
    pub node: String,
    /// Open connections to it.
    pub connections: u64,
    /// Streams open on them.
    pub streams: u64,
    /// Connections ever opened.
    pub opened: u64,
    /// Attempts to connect that failed.
    pub failures: u64,
    /// The last failure in words, until a link opens again.
    pub last_error: Option<String>,
}
