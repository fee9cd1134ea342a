//! The one writer of the directory: takes what a source read, keeps the view and publishes. Sources call it from their
//! own threads or tasks, one at a time.

use std::sync::Arc;

use posthouse_model::DirectoryHandle;
use tokio::time::Instant;

use crate::manifest::Context;
use crate::object::{Key, Reduced};
use crate::roster::Roster;
use crate::status::{Board, Kind, Work};
use crate::view::View;

/// Under this name problems with peers are shown.
const PEERS: &str = "peers";

/// Under this name problems with Services' certificates are shown.
const CERTIFICATES: &str = "certificates";

/// See the module's text.
pub(crate) struct Writer {
    pub(crate) view: View,
    pub(crate) context: Context,
    pub(crate) board: Arc<Board>,
    handle: DirectoryHandle,
    /// Where the Pods of all nodes are kept, if they are read.
    roster: Option<Arc<Roster>>,
    /// Counted here and handed over on publishing, to take the board's lock once.
    pub(crate) work: Work,
}

impl Writer {
    pub(crate) fn new(node_name: &Arc<str>, namespace: &str, board: Arc<Board>, handle: DirectoryHandle) -> Self {
        Self {
            view: View::new(Arc::clone(node_name), namespace),
            context: Context::new(Arc::clone(node_name)),
            board,
            handle,
            roster: None,
            work: Work::default(),
        }
    }

    /// Where it publishes.
    pub(crate) fn directory(&self) -> DirectoryHandle {
        self.handle.clone()
    }

    /// From now on the Pods of all nodes are read and kept there.
    pub(crate) fn keep_every_pod(&mut self, roster: Arc<Roster>) {
        self.context.every_node = true;
        self.view.moved = Some(Vec::new());
        self.roster = Some(roster);
    }

    /// Takes an object as it is now.
    pub(crate) fn apply(&mut self, reduced: Reduced) {
        match reduced.object {
            Some(object) => self.view.put(reduced.key, object),
            None => self.view.remove(&reduced.key),
        }
    }

    /// Takes objects away.
    pub(crate) fn remove<'a>(&mut self, keys: impl IntoIterator<Item = &'a Key>) {
        for key in keys {
            self.view.remove(key);
        }
    }

    /// Rebuilds what changed and makes it the newest directory, if anything did. Whoever sees the new directory finds its
    /// work and problems on the board already.
    pub(crate) fn publish(&mut self) {
        let began = Instant::now();
        let settled = self.view.settle();
        self.work.rebuilt += settled.rebuilt;
        self.work.published += u64::from(settled.changed);
        if let Some(notes) = settled.peer_notes {
            for note in &notes {
                self.board.problem(PEERS, note, "it is no peer until that is mended");
            }
            self.board.mended_except(PEERS, &notes);
        }
        if let Some(roster) = self.roster.as_ref().filter(|_| !settled.moved.is_empty()) {
            roster.change(|pods| {
                for (name, pod) in &settled.moved {
                    match pod {
                        Some(pod) => pods.put(name, pod),
                        None => pods.remove(name),
                    }
                }
            });
        }
        for (service, notes) in &settled.tls_notes {
            let service = format!("Service {service}");
            match notes.is_empty() {
                true => self.board.mended(CERTIFICATES, &service),
                false => self.board.problem(CERTIFICATES, &service, &notes.join("; ")),
            }
        }
        for kind in Kind::ALL {
            self.board.set_objects(kind, self.view.len(kind));
        }
        self.board.count(std::mem::take(&mut self.work));
        if self.view.directory().complete {
            self.board.set_complete();
        }
        if settled.changed {
            self.board.published(began.elapsed());
            self.handle.publish(self.view.directory().clone());
        }
    }
}
