//! One copy of each string that many objects repeat: node names, zones, namespaces, port names. At 100,000 endpoints the
//! copies would weigh more than everything else together.

use std::collections::HashSet;
use std::sync::Arc;

/// Hands out shared strings.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    known: HashSet<Arc<str>>,
    /// Size after the last clean-up: strings that nobody holds any more go once the set has doubled.
    settled: usize,
}

/// Below this size cleaning up is not worth the walk.
const SMALL: usize = 1024;

impl Interner {
    /// The shared copy of `text`.
    pub(crate) fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        if self.known.len() >= SMALL.max(2 * self.settled) {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.settled = self.known.len();
        }
        let new: Arc<str> = Arc::from(text);
        self.known.insert(Arc::clone(&new));
        new
    }

    /// The shared copy of an optional text; empty counts as absent.
    pub(crate) fn some(&mut self, text: Option<&str>) -> Option<Arc<str>> {
        text.filter(|text| !text.is_empty()).map(|text| self.get(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_shared_and_forgotten_when_unused() {
        let mut interner = Interner::default();
        let kept = interner.get("zone-a");
        assert!(Arc::ptr_eq(&kept, &interner.get("zone-a")));
        for i in 0..10_000 {
            interner.get(&format!("gone-{i}"));
        }
        assert!(interner.known.len() <= SMALL + 1, "{}", interner.known.len());
        assert!(Arc::ptr_eq(&kept, &interner.get("zone-a")));
    }
}
