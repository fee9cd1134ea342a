//! Readiness as guards: whatever must happen before (or must not happen during) service holds one, and the process is
//! ready while none is held. `/readyz` shows what is still pending.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The set of guards that are held. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readiness {
    pending: Arc<Mutex<Pending>>,
}

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    reasons: BTreeMap<u64, &'static str>,
}

impl Readiness {
    /// The process is not ready until the guard is dropped; `reason` says to an operator what it waits for.
    #[must_use = "dropping the guard says that the wait is over"]
    pub(crate) fn pending(&self, reason: &'static str) -> Guard {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let id = pending.next;
        pending.next += 1;
        pending.reasons.insert(id, reason);
        Guard { id, readiness: self.clone() }
    }

    /// What is waited for, oldest first; empty means ready.
    pub(crate) fn reasons(&self) -> Vec<&'static str> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).reasons.values().copied().collect()
    }
}

/// Keeps the process unready while it lives.
#[derive(Debug)]
pub(crate) struct Guard {
    id: u64,
    readiness: Readiness,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.readiness.pending.lock().unwrap_or_else(PoisonError::into_inner).reasons.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_while_no_guard_is_held() {
        let readiness = Readiness::default();
        let first = readiness.pending("directory");
        let second = readiness.pending("listeners");
        assert_eq!(readiness.reasons(), ["directory", "listeners"]);
        drop(first);
        assert_eq!(readiness.reasons(), ["listeners"]);
        drop(second);
        assert!(readiness.reasons().is_empty());
        let clone = readiness.clone();
        let _draining = clone.pending("draining");
        assert_eq!(readiness.reasons(), ["draining"], "clones share one set");
    }
}
