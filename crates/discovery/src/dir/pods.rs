//! Claims of senders, held against the Pods of all nodes that the folder has.

use std::sync::Arc;

use posthouse_model::DirectoryHandle;
use posthouse_model::workload::{Checked, Checking, Claim, Workloads};

use crate::roster::{Roster, State, counted};
use crate::status::Board;

/// See the module's text.
pub(crate) struct FolderPods {
    /// The folder's thread is its one writer.
    pub(super) roster: Arc<Roster>,
    directory: DirectoryHandle,
    board: Arc<Board>,
}

impl FolderPods {
    pub(crate) fn new(directory: DirectoryHandle, board: Arc<Board>) -> Arc<Self> {
        Arc::new(Self { roster: Arc::new(Roster::new()), directory, board })
    }

    /// The folder was read whole.
    pub(super) fn read(&self) {
        self.roster.change(|pods| pods.set(State::Live));
    }

    /// The folder cannot be read.
    pub(super) fn away(&self) {
        if self.roster.state() == State::Live {
            self.roster.change(|pods| pods.set(State::Stale));
        }
    }
}

impl Workloads for FolderPods {
    fn known(&self, claim: &Claim, node: &str) -> Option<Checked> {
        let identity = self.roster.verified(claim, node)?;
        Some(counted(&self.board, Checked::Verified(identity)))
    }

    fn check<'a>(&'a self, claim: &'a Claim, node: &'a str) -> Checking<'a> {
        Box::pin(async move {
            let checked = match self.directory.load().node(node).is_some() {
                true => self.roster.check(claim, node).await,
                false => Checked::Unknown("its node is not known"),
            };
            counted(&self.board, checked)
        })
    }
}
