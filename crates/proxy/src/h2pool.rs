//! HTTP/2 connections kept by key (a peer's node, a pod's address), one of them dialled at a time: a burst of requests to
//! a new destination waits for the first one's handshake instead of making its own.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::error::{Error, ErrorKind, Retry};
use crate::h2conn::H2Conn;
use crate::link_conn::LinkConn;

/// A connection as the pool sees it.
pub(crate) trait Pooled {
    /// Whether a stream may be opened now.
    fn has_room(&self) -> bool;
    /// Whether no stream can be opened any more; those that are open go on.
    fn is_closed(&self) -> bool;
    /// Open streams.
    fn active(&self) -> usize;
    /// Called when a stream has ended.
    fn ended(&self);
}

/// Counts an open stream and keeps its connection.
pub(crate) enum StreamLease {
    Pod(Rc<H2Conn>),
    Link(Rc<LinkConn>),
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        match self {
            Self::Pod(connection) => connection.ended(),
            Self::Link(connection) => connection.ended(),
        }
    }
}

pub(crate) struct H2Pool<K, C> {
    /// Connections to one destination at most; the next is opened when all before are full.
    max: usize,
    slots: RefCell<HashMap<K, Slot<C>>>,
}

struct Slot<C> {
    connections: Vec<Rc<C>>,
    dialing: bool,
    /// Counts ended dials, so that waiters tell the one they waited for from an older one.
    dials: u64,
    failure: Option<Error>,
    done: Rc<Notify>,
}

impl<C> Default for Slot<C> {
    fn default() -> Self {
        Self { connections: Vec::new(), dialing: false, dials: 0, failure: None, done: Rc::new(Notify::new()) }
    }
}

impl<K: Hash + Eq + Clone, C: Pooled> H2Pool<K, C> {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, slots: RefCell::new(HashMap::new()) }
    }

    /// A connection with room for a stream, dialled by `dial` when there is none.
    pub(crate) async fn get<F>(&self, key: &K, dial: impl FnOnce() -> F) -> Result<Rc<C>, Error>
    where
        F: Future<Output = Result<Rc<C>, Error>>,
    {
        match self.ready(key) {
            Some(connection) => Ok(connection),
            None => Box::pin(self.wait_or_dial(key, dial)).await,
        }
    }

    /// A connection with room for a stream, if there is one.
    fn ready(&self, key: &K) -> Option<Rc<C>> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(key)?;
        slot.connections.retain(|c| !c.is_closed());
        slot.connections.iter().find(|c| c.has_room()).map(Rc::clone)
    }

    async fn wait_or_dial<F>(&self, key: &K, dial: impl FnOnce() -> F) -> Result<Rc<C>, Error>
    where
        F: Future<Output = Result<Rc<C>, Error>>,
    {
        let mut waited_for = None;
        loop {
            let wait = {
                let mut slots = self.slots.borrow_mut();
                if !slots.contains_key(key) {
                    slots.insert(key.clone(), Slot::default());
                }
                let Some(slot) = slots.get_mut(key) else {
                    continue;
                };
                slot.connections.retain(|c| !c.is_closed());
                if let Some(connection) = slot.connections.iter().find(|c| c.has_room()) {
                    return Ok(Rc::clone(connection));
                }
                if let (Some(before), Some(failure)) = (waited_for, &slot.failure)
                    && slot.dials > before
                {
                    return Err(failure.clone());
                }
                if slot.connections.len() >= self.max {
                    metrics::counter!(crate::metrics::LIMIT_REACHED, "limit" => "h2_streams").increment(1);
                    return Err(Error::upstream(
                        ErrorKind::ConnectionLimitReached,
                        Retry::Safe,
                        "all streams of all connections to this destination are in use",
                    ));
                }
                if slot.dialing {
                    waited_for.get_or_insert(slot.dials);
                    Some(Rc::clone(&slot.done))
                } else {
                    slot.dialing = true;
                    None
                }
            };
            match wait {
                // The borrow ended above and nothing ran since, so the wake-up cannot be missed.
                Some(done) => done.notified().await,
                None => break,
            }
        }
        let dialing = Dialing { pool: self, key, ended: false };
        let result = dial().await;
        dialing.end(&result);
        result
    }

    /// Forgets closed connections and those for which `keep` says no.
    pub(crate) fn sweep(&self, mut keep: impl FnMut(&K, &C) -> bool) {
        self.slots.borrow_mut().retain(|key, slot| {
            slot.connections.retain(|c| !c.is_closed() && (c.active() > 0 || keep(key, c)));
            !slot.connections.is_empty() || slot.dialing
        });
    }
}

/// A dial under way; when its request is cancelled, the next waiter dials.
struct Dialing<'a, K: Hash + Eq, C> {
    pool: &'a H2Pool<K, C>,
    key: &'a K,
    ended: bool,
}

impl<K: Hash + Eq, C> Dialing<'_, K, C> {
    fn end(mut self, result: &Result<Rc<C>, Error>) {
        self.ended = true;
        let mut slots = self.pool.slots.borrow_mut();
        if let Some(slot) = slots.get_mut(self.key) {
            slot.dialing = false;
            slot.dials += 1;
            match result {
                Ok(connection) => {
                    slot.failure = None;
                    slot.connections.push(Rc::clone(connection));
                }
                Err(error) => slot.failure = Some(error.clone()),
            }
            slot.done.notify_waiters();
        }
    }
}

impl<K: Hash + Eq, C> Drop for Dialing<'_, K, C> {
    fn drop(&mut self) {
        if !self.ended
            && let Some(slot) = self.pool.slots.borrow_mut().get_mut(self.key)
        {
            slot.dialing = false;
            slot.done.notify_waiters();
        }
    }
}
