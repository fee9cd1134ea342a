//! Which nodes a DaemonSet wants a pod on: its controller's own rules (`nodeShouldRunDaemonPod`), as far as the API shows what
//! they go by.

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};

/// Whether a node should have a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    Wanted,
    /// The node selector or the affinity leaves it out, which somebody wrote on purpose.
    NotSelected,
    /// A taint keeps the pod away, which is mostly an oversight.
    Tainted(String),
    /// Not Linux: there is no proxy for it.
    OtherSystem,
}

/// The taints that the controller itself tolerates for pods on the host's network.
const TOLERATED: [(&str, &str); 7] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ("node.kubernetes.io/network-unavailable", "NoSchedule"),
];

pub(super) fn place(node: &Node, template: &PodSpec) -> Placement {
    let system = label(node, "kubernetes.io/os")
        .or_else(|| node.status.as_ref()?.node_info.as_ref().map(|info| info.operating_system.as_str()));
    if system.is_some_and(|system| system != "linux") {
        return Placement::OtherSystem;
    }
    let selected = template.node_selector.iter().flatten().all(|(key, value)| label(node, key) == Some(value));
    if !selected || !affine(node, template) {
        return Placement::NotSelected;
    }
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let tolerations: Vec<&Toleration> = template.tolerations.iter().flatten().collect();
    let blocking = taints.into_iter().flatten().find(|taint| {
        let own = TOLERATED.contains(&(taint.key.as_str(), taint.effect.as_str()));
        taint.effect != "PreferNoSchedule" && !own && !tolerations.iter().any(|t| tolerates(t, taint))
    });
    match blocking {
        Some(Taint { key, value, effect, .. }) => {
            let value = value.as_ref().filter(|value| !value.is_empty());
            Placement::Tainted(match value {
                Some(value) => format!("{key}={value}:{effect}"),
                None => format!("{key}:{effect}"),
            })
        }
        None => Placement::Wanted,
    }
}

fn label<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// The required node affinity: one of its terms, all of a term's requirements.
fn affine(node: &Node, template: &PodSpec) -> bool {
    let affinity = template.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let term = |term: &NodeSelectorTerm| {
        let by_label = term.match_expressions.iter().flatten().all(|wanted| meets(wanted, label(node, &wanted.key)));
        // The only field there is.
        let by_field = term.match_fields.iter().flatten().all(|wanted| meets(wanted, node.metadata.name.as_deref()));
        by_label && by_field
    };
    required.is_none_or(|required| required.node_selector_terms.iter().any(term))
}

fn meets(wanted: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let listed = || wanted.values.iter().flatten().any(|value| Some(value.as_str()) == found);
    let compared = |test: fn(i64, i64) -> bool| {
        let bound = wanted.values.as_ref().and_then(|values| values.first()?.parse().ok());
        let found = found.and_then(|found| found.parse().ok());
        found.zip(bound).is_some_and(|(found, bound)| test(found, bound))
    };
    match wanted.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compared(|found, bound| found > bound),
        "Lt" => compared(|found, bound| found < bound),
        _ => false,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let effect = given(&toleration.effect).is_none_or(|effect| effect == taint.effect);
    let key = given(&toleration.key);
    effect
        && match toleration.operator.as_deref() {
            Some("Exists") => key.is_none_or(|key| key == taint.key),
            None | Some("" | "Equal") => {
                key.as_ref() == Some(&taint.key)
                    && toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
            }
            Some(_) => false,
        }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json! borrows, and calls read better with literals")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(spec: Value) -> Node {
        let labels = json!({"kubernetes.io/os": "linux", "zone": "a", "cores": "8"});
        serde_json::from_value(json!({"metadata": {"name": "n1", "labels": labels}, "spec": spec})).unwrap()
    }

    fn template(mut spec: Value) -> PodSpec {
        spec["containers"] = json!([]);
        serde_json::from_value(spec).unwrap()
    }

    fn placed(node_spec: Value, template_spec: Value) -> Placement {
        place(&node(node_spec), &template(template_spec))
    }

    #[test]
    fn taints_and_tolerations() {
        let taint = |effect: &str| json!({"taints": [{"key": "gpu", "value": "yes", "effect": effect}]});
        let tolerate = |toleration: Value| json!({"tolerations": [toleration]});
        let kept_away = Placement::Tainted("gpu=yes:NoSchedule".into());
        for (toleration, wanted) in [
            (json!({"operator": "Exists"}), true),
            (json!({"operator": "Exists", "key": "gpu"}), true),
            (json!({"operator": "Exists", "key": "gpu", "effect": "NoSchedule"}), true),
            (json!({"operator": "Exists", "key": "gpu", "effect": "NoExecute"}), false),
            (json!({"operator": "Exists", "key": "other"}), false),
            (json!({"key": "gpu", "value": "yes"}), true),
            (json!({"key": "gpu", "operator": "Equal", "value": "no"}), false),
            (json!({"key": "gpu", "operator": "Unheard"}), false),
        ] {
            let expected = if wanted { Placement::Wanted } else { kept_away.clone() };
            assert_eq!(placed(taint("NoSchedule"), tolerate(toleration.clone())), expected, "{toleration}");
        }
        assert_eq!(placed(taint("PreferNoSchedule"), json!({})), Placement::Wanted);
        let cordoned = json!({"taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]});
        assert_eq!(placed(cordoned, json!({})), Placement::Wanted, "DaemonSets run on cordoned nodes");
        let bare = json!({"taints": [{"key": "k", "effect": "NoExecute"}]});
        assert_eq!(placed(bare, json!({})), Placement::Tainted("k:NoExecute".into()));
    }

    #[test]
    fn selectors_and_affinity() {
        assert_eq!(placed(json!({}), json!({"nodeSelector": {"zone": "a"}})), Placement::Wanted);
        assert_eq!(placed(json!({}), json!({"nodeSelector": {"zone": "b"}})), Placement::NotSelected);
        let affinity = |terms: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
        let one = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        for (terms, wanted) in [
            (json!([one("zone", "In", &["a", "b"])]), true),
            (json!([one("zone", "In", &["b"])]), false),
            (json!([one("zone", "In", &["b"]), one("zone", "Exists", &[])]), true),
            (json!([one("zone", "NotIn", &["a"])]), false),
            (json!([one("none", "NotIn", &["a"])]), true),
            (json!([one("none", "DoesNotExist", &[])]), true),
            (json!([one("cores", "Gt", &["4"])]), true),
            (json!([one("cores", "Lt", &["4"])]), false),
            (json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]), true),
            (json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]), false),
        ] {
            let expected = if wanted { Placement::Wanted } else { Placement::NotSelected };
            assert_eq!(placed(json!({}), affinity(terms.clone())), expected, "{terms}");
        }
    }

    #[test]
    fn other_systems_have_no_proxy() {
        let windows = json!({"metadata": {"name": "w", "labels": {"kubernetes.io/os": "windows"}}});
        assert_eq!(place(&serde_json::from_value(windows).unwrap(), &PodSpec::default()), Placement::OtherSystem);
        let info = json!({"metadata": {"name": "w"}, "status": {"nodeInfo": {"operatingSystem": "windows", "architecture": "",
            "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "",
            "machineID": "", "osImage": "", "systemUUID": ""}}});
        assert_eq!(place(&serde_json::from_value(info).unwrap(), &PodSpec::default()), Placement::OtherSystem);
    }
}
