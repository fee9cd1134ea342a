//! Which trust bundle each node has loaded, as its certificate requests say. Kept in a ConfigMap while a rotation waits for
//! it, because Kubernetes removes old requests after an hour; a new leader reads it there and from the requests that are
//! left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The ConfigMap.
pub(crate) const ROTATION: &str = "posthouse-rotation";
const BUNDLE_KEY: &str = "bundle";
const NODES_KEY: &str = "nodes";

/// The newest report of each node. Only nodes whose request was granted get here, so there are never more than nodes.
#[derive(Debug, Default)]
pub(crate) struct Reports(Mutex<BTreeMap<String, Report>>);

#[derive(Clone, Debug)]
struct Report {
    at: Option<Time>,
    bundle: String,
}

impl Reports {
    /// Notes what a request of `node`, made at `at`, says.
    pub(crate) fn note(&self, node: &str, at: Option<Time>, bundle: &str) {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match nodes.get_mut(node) {
            Some(known) if known.at > at => {}
            Some(known) => *known = Report { at, bundle: bundle.to_owned() },
            None => {
                nodes.insert(node.to_owned(), Report { at, bundle: bundle.to_owned() });
            }
        }
    }

    /// The nodes that have loaded `bundle`.
    pub(crate) fn informed(&self, bundle: &str) -> BTreeSet<String> {
        let nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.iter().filter(|(_, report)| report.bundle == bundle).map(|(node, _)| node.clone()).collect()
    }
}

/// The nodes of which the ConfigMap says that they have loaded `bundle`.
pub(crate) fn read(map: &ConfigMap, bundle: &str) -> BTreeSet<String> {
    let get = |key: &str| map.data.as_ref().and_then(|data| data.get(key)).map_or("", String::as_str);
    if get(BUNDLE_KEY) != bundle {
        return BTreeSet::new();
    }
    get(NODES_KEY).lines().map(str::to_owned).collect()
}

/// Writes them there.
pub(crate) fn write(map: &mut ConfigMap, bundle: &str, nodes: &BTreeSet<String>) {
    let text = nodes.iter().map(|node| format!("{node}\n")).collect();
    let data = map.data.get_or_insert_default();
    data.insert(BUNDLE_KEY.to_owned(), bundle.to_owned());
    data.insert(NODES_KEY.to_owned(), text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Option<Time> {
        Some(Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap()))
    }

    #[test]
    fn the_newest_request_of_a_node_counts_in_whatever_order_they_are_seen() {
        let reports = Reports::default();
        reports.note("a", at(2), "new");
        reports.note("a", at(1), "old");
        reports.note("b", at(1), "old");
        reports.note("c", at(1), "old");
        reports.note("c", at(3), "new");
        assert_eq!(reports.informed("new"), BTreeSet::from(["a".to_owned(), "c".to_owned()]));
        assert_eq!(reports.informed("old"), BTreeSet::from(["b".to_owned()]));
    }

    #[test]
    fn a_new_leader_reads_what_the_old_one_wrote_of_the_same_bundle_only() {
        let mut map = ConfigMap::default();
        let nodes = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        write(&mut map, "bundle-1", &nodes);
        assert_eq!(read(&map, "bundle-1"), nodes);
        assert_eq!(read(&map, "bundle-2"), BTreeSet::new());
        assert_eq!(read(&ConfigMap::default(), "bundle-1"), BTreeSet::new());
    }
}
