//! When our own authority is replaced. Its life has three thirds; in the last one a second authority is made and published
//! (`Begin`), signs once every node trusts it (`Switch`), and the first one's root goes when nothing that it signed is valid
//! any more (`bundle.rs`). All of this stands in the Secret and the ConfigMap, so that another replica goes on from where
//! this one ends. A pure function; `keeper.rs` does what it says.

use std::time::{Duration, SystemTime};

/// What matters for the decision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) now: SystemTime,
    /// The end and the whole life of the authority that signs.
    pub(crate) not_after: SystemTime,
    pub(crate) lifetime: Duration,
    /// The longest life of a node's certificate.
    pub(crate) longest: Duration,
    /// Whether there is a second authority.
    pub(crate) next: bool,
    /// Whether its root is published and every node with a ready proxy has said that it loaded that bundle.
    pub(crate) known_everywhere: bool,
}

/// What is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing is due.
    Rest,
    /// The second authority is made.
    Begin,
    /// Nodes have to load the new bundle first.
    Wait,
    /// The second authority signs from now on.
    Switch {
        /// Not every node has said that it knows the new root, but the old authority has too little time left.
        forced: bool,
    },
}

/// The part of an authority's life in which it is replaced.
const LAST: u32 = 3;

pub(crate) fn step(facts: &Facts) -> Step {
    let left = facts.not_after.duration_since(facts.now).unwrap_or_default();
    if !facts.next {
        return if left <= facts.lifetime / LAST { Step::Begin } else { Step::Rest };
    }
    if facts.known_everywhere {
        return Step::Switch { forced: false };
    }
    // From here on certificates by the old authority would end early, all in the same moment: a node that has not loaded
    // the new root by now is not waited for.
    if left <= facts.longest { Step::Switch { forced: true } } else { Step::Wait }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn facts(day: u64) -> Facts {
        Facts {
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(day * DAY),
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(360 * DAY),
            lifetime: Duration::from_secs(360 * DAY),
            longest: Duration::from_secs(DAY),
            next: false,
            known_everywhere: false,
        }
    }

    #[test]
    fn an_authority_is_replaced_in_its_last_third_once_every_node_knows_the_next() {
        assert_eq!(step(&facts(0)), Step::Rest);
        assert_eq!(step(&facts(239)), Step::Rest);
        assert_eq!(step(&facts(240)), Step::Begin);
        assert_eq!(step(&facts(1000)), Step::Begin, "a cluster that slept through the end");
        let begun = |day| Facts { next: true, ..facts(day) };
        assert_eq!(step(&begun(240)), Step::Wait);
        assert_eq!(step(&begun(358)), Step::Wait);
        assert_eq!(step(&Facts { known_everywhere: true, ..begun(241) }), Step::Switch { forced: false });
        assert_eq!(step(&begun(359)), Step::Switch { forced: true });
        assert_eq!(step(&begun(1000)), Step::Switch { forced: true });
    }

    #[test]
    fn what_nodes_know_means_nothing_without_a_second_authority() {
        assert_eq!(step(&Facts { known_everywhere: true, ..facts(1) }), Step::Rest);
    }
}
