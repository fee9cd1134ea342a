//! Objects as the API server has them, and what is said about them.

#![allow(clippy::needless_pass_by_value, reason = "json! borrows, and calls read better with literals")]

use serde_json::{Value, json};

use super::super::Verdict;
use super::*;

fn node(name: &str) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .unwrap()
}

fn dead(name: &str) -> Node {
    let mut node = node(name);
    node.status = serde_json::from_value(json!({"conditions": [{"type": "Ready", "status": "Unknown"}]})).unwrap();
    node
}

fn daemonset(desired: i32, updated: i32) -> DaemonSet {
    serde_json::from_value(json!({
        "metadata": {"name": "posthouse", "namespace": "mesh", "generation": 2},
        "spec": {"selector": {}, "template": {"spec": {"containers": [], "nodeSelector": {"kubernetes.io/os": "linux"}}}},
        "status": {"observedGeneration": 2, "desiredNumberScheduled": desired, "updatedNumberScheduled": updated,
            "currentNumberScheduled": updated, "numberMisscheduled": 0, "numberReady": updated},
    }))
    .unwrap()
}

fn pod(name: &str, node: &str, status: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "mesh"},
        "spec": {"nodeName": node, "containers": []},
        "status": status,
    }))
    .unwrap()
}

fn ready(name: &str, node: &str) -> Pod {
    let running = json!({"name": "posthouse", "ready": true, "image": "", "imageID": "", "restartCount": 0,
        "state": {"running": {}}});
    pod(
        name,
        node,
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [running]}),
    )
}

/// A pod whose container is in these states.
fn in_state(node: &str, state: Value, last_state: Value, restarts: i32) -> Pod {
    let container = json!({"name": "posthouse", "ready": false, "image": "", "imageID": "", "restartCount": restarts,
        "state": state, "lastState": last_state});
    pod("p", node, json!({"phase": "Running", "containerStatuses": [container]}))
}

fn judged(nodes: &[Node], pods: &[Pod]) -> Vec<Finding> {
    judge(&daemonset(2, 2), nodes, pods, &HashMap::new(), None)
}

fn only(findings: &[Finding]) -> &Finding {
    assert_eq!(findings.len(), 1, "{findings:#?}");
    &findings[0]
}

#[test]
fn a_complete_daemonset_is_one_line() {
    let findings = judged(&[node("a"), node("b")], &[ready("p1", "a"), ready("p2", "b")]);
    let finding = only(&findings);
    assert_eq!((finding.verdict, finding.message.as_str()), (Verdict::Ok, "2 of 2 nodes have a ready proxy"));
}

#[test]
fn each_node_without_a_proxy_says_why() {
    let waiting = |reason: &str| json!({"waiting": {"reason": reason, "message": "the kubelet's words"}});
    let ended = |code: i32, reason: &str| json!({"terminated": {"exitCode": code, "reason": reason}});
    let unscheduled = |message: &str| {
        pod(
            "p",
            "a",
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": message}]}),
        )
    };
    let mut leaving = ready("p", "a");
    leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    let cases: Vec<(Pod, &[&str], &str)> = vec![
        (
            in_state("a", waiting("ImagePullBackOff"), json!({}), 0),
            &["waits (ImagePullBackOff)", "the kubelet's words"],
            "image.tag",
        ),
        (
            in_state("a", waiting("CreateContainerConfigError"), ended(1, "Error"), 1),
            &["CreateContainerConfigError"],
            "describe pod p",
        ),
        (
            in_state("a", waiting("CrashLoopBackOff"), ended(64, "Error"), 3),
            &["exit code 64, 3 restarts", "last words"],
            "flag",
        ),
        (
            in_state("a", waiting("CrashLoopBackOff"), ended(137, "OOMKilled"), 1),
            &["OOMKilled", "1 restart)"],
            "limits.memory",
        ),
        (in_state("a", ended(1, "Error"), json!({}), 0), &["exit code 1", "last words"], "logs p --previous"),
        (in_state("a", json!({"running": {}}), ended(1, "Error"), 2), &["exit code 1, 2 restarts"], "logs p"),
        (in_state("a", json!({"running": {}}), json!({}), 0), &["runs but is not ready"], "exec p -- /posthouse ready"),
        (
            unscheduled("0/3 nodes are available: 1 Insufficient cpu."),
            &["finds no place", "Insufficient cpu"],
            "resources.requests",
        ),
        (unscheduled("1 node(s) didn't have free ports for the requested pod ports"), &["free ports"], "'ports'"),
        (
            pod("p", "a", json!({"phase": "Failed", "reason": "Evicted", "message": "disk"})),
            &["failed: Evicted: disk"],
            "describe",
        ),
        (pod("p", "a", json!({"phase": "Pending"})), &["has not started yet"], "describe"),
        (leaving, &["is being deleted"], "describe"),
    ];
    let words = HashMap::from([("p".to_owned(), "last words".to_owned())]);
    for (pod, wanted, help) in cases {
        let findings = judge(&daemonset(1, 1), &[node("a")], std::slice::from_ref(&pod), &words, None);
        let finding = only(&findings);
        assert_eq!((finding.verdict, finding.subject.as_deref()), (Verdict::Fail, Some("node/a")));
        assert!(finding.message.starts_with("no ready proxy: pod p "), "{}", finding.message);
        for word in wanted {
            assert!(finding.message.contains(word), "{word}: {}", finding.message);
        }
        assert!(finding.hint.as_deref().unwrap().contains(help), "{help}: {:?}", finding.hint);
    }
}

#[test]
fn a_pod_that_finds_no_place_is_known_by_the_node_it_is_meant_for() {
    let mut waiting = pod("p", "a", json!({"phase": "Pending"}));
    let terms = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]);
    let affinity =
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
    waiting.spec = serde_json::from_value(json!({"containers": [], "affinity": affinity})).unwrap();
    assert_eq!(node_of(&waiting), Some("b"));
}

#[test]
fn a_node_without_a_pod_is_explained_by_the_controllers_complaint() {
    let event = "pods \"posthouse-\" is forbidden: violates PodSecurity \"baseline:latest\"";
    let findings = judge(&daemonset(1, 0), &[node("a")], &[], &HashMap::new(), Some(event));
    assert!(findings[0].message.contains("violates PodSecurity"), "{findings:?}");
    assert!(
        findings[0].verdict == Verdict::Fail && findings[1].message.starts_with("a rollout runs: 0 of 1"),
        "{findings:?}"
    );
}

#[test]
fn nodes_that_should_have_none_or_cannot() {
    let mut tainted = node("t");
    tainted.spec = serde_json::from_value(json!({"taints": [{"key": "gpu", "effect": "NoSchedule"}]})).unwrap();
    let mut windows = node("w");
    windows.metadata.labels = serde_json::from_value(json!({"kubernetes.io/os": "windows"})).unwrap();
    let findings = judged(&[node("a"), tainted, windows], &[ready("p", "a")]);
    assert_eq!(findings.len(), 2, "{findings:#?}");
    assert_eq!(findings[0].message, "1 of 1 nodes have a ready proxy");
    assert_eq!((findings[1].verdict, findings[1].subject.as_deref()), (Verdict::Warn, Some("node/t")));
    assert!(findings[1].message.contains("gpu:NoSchedule"), "{}", findings[1].message);

    let findings = judged(&[dead("d")], &[]);
    assert_eq!((findings[0].verdict, findings[0].message.as_str()), (Verdict::Warn, "the node itself is not ready"));

    assert_eq!(judged(&[], &[])[0].verdict, Verdict::Warn, "no node at all");
}

#[test]
fn a_rollout_that_hangs_leaves_the_old_proxy_serving() {
    let new = in_state("a", json!({"waiting": {"reason": "ErrImagePull"}}), json!({}), 0);
    let findings = judge(&daemonset(1, 0), &[node("a")], &[ready("old", "a"), new], &HashMap::new(), None);
    let verdicts: Vec<Verdict> = findings.iter().map(|finding| finding.verdict).collect();
    assert_eq!(verdicts, [Verdict::Ok, Verdict::Warn, Verdict::Warn], "{findings:#?}");
    assert!(findings[1].message.starts_with("the old proxy serves, the new one does not yet: pod p waits"));
    assert!(findings[2].hint.as_deref().unwrap().contains("rollout status"));
    let mut unseen = daemonset(1, 1);
    unseen.metadata.generation = Some(3);
    assert!(rolling_out(&unseen), "the controller has not seen the change");
}

#[test]
fn pod_security_decides_whether_host_network_is_let_in() {
    let tried = |labels: Value, tried: Result<(), Trouble>| {
        let object = serde_json::from_value(json!({"metadata": {"name": "mesh", "labels": labels}})).unwrap();
        namespace(&Ok(object), "mesh", &Some(tried))
    };
    let of = |labels: Value| tried(labels, Ok(()));
    let label = "pod-security.kubernetes.io/enforce";
    for level in ["baseline", "restricted"] {
        let finding = of(json!({label: level}));
        assert_eq!(finding.verdict, Verdict::Fail, "{level}");
        let command = "kubectl label --overwrite namespace mesh pod-security.kubernetes.io/enforce=privileged";
        assert_eq!(finding.hint.as_deref(), Some(command));
    }
    for labels in [json!({label: "privileged"}), json!({}), json!({"pod-security.kubernetes.io/warn": "restricted"})] {
        assert_eq!(of(labels.clone()).verdict, Verdict::Ok, "{labels}");
    }
    let missing = namespace(&Err(Trouble::Missing), "mesh", &None);
    assert!(
        missing.verdict == Verdict::Ok && missing.message.contains("only after the namespace exists"),
        "{missing:?}"
    );
    assert_eq!(namespace(&Err(Trouble::Forbidden("no".into())), "mesh", &None).verdict, Verdict::Skipped);

    let violates = "pods \"posthouse-check-x\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces";
    let by_default = tried(json!({}), Err(Trouble::Forbidden(violates.into())));
    assert_eq!(by_default.verdict, Verdict::Fail);
    assert!(by_default.message.contains("by the cluster's default"), "{}", by_default.message);
    assert!(by_default.hint.unwrap().ends_with("enforce=privileged"));
    for words in ["admission webhook \"x\" denied the request: no", "ValidatingAdmissionPolicy 'x' denied request: no"]
    {
        assert_eq!(tried(json!({}), Err(Trouble::Other(words.into()))).verdict, Verdict::Warn, "{words}");
    }
    let unseen = tried(json!({}), Err(Trouble::Forbidden("User \"u\" cannot create resource \"pods\"".into())));
    assert_eq!(unseen.verdict, Verdict::Ok);
    assert!(unseen.message.starts_with("no label of the namespace 'mesh' forbids"), "{}", unseen.message);
    assert!(unseen.message.contains("default was not seen"), "{}", unseen.message);
    let labelled = tried(json!({label: "privileged"}), Err(Trouble::Slow(std::time::Duration::from_secs(1))));
    assert!(
        labelled.verdict == Verdict::Ok && !labelled.message.contains("default"),
        "the label decides: {labelled:?}"
    );
}

#[test]
fn the_pod_to_ask_is_a_ready_one_if_there_is_one() {
    let running = |name: &str, node: &str| {
        let mut pod = in_state(node, json!({"running": {}}), json!({}), 0);
        pod.metadata.name = Some(name.into());
        pod
    };
    let stuck = in_state("c", json!({"waiting": {}}), json!({}), 0);
    let pods = [
        running("new", "a"),
        ready("old", "a"),
        running("slow", "b"),
        stuck,
        ready("elsewhere", "z"),
        ready("lost", "d"),
    ];
    let targets = to_ask(&[node("a"), node("b"), node("c"), dead("d")], &pods);
    assert_eq!(targets, [("a".to_owned(), "old".to_owned()), ("b".to_owned(), "slow".to_owned())]);
}

#[test]
fn ports_are_those_of_the_daemonset() {
    assert_eq!(Ports::of(None).all(), [4140, 4141, 9990, 9991]);
    let with = |container: Value| {
        let mut daemonset = daemonset(1, 1);
        let mut container = container;
        container["name"] = "posthouse".into();
        let spec = json!({"containers": [{"name": "other"}, container]});
        daemonset.spec.as_mut().unwrap().template.spec = serde_json::from_value(spec).unwrap();
        Ports::of(Some(&daemonset)).all()
    };
    assert_eq!(with(json!({})), [4140, 4141, 9990, 9991]);
    assert_eq!(
        with(json!({"args": ["run", "--admin-listen=127.0.0.1:1", "--outbound-listen", "[::1]:2,0.0.0.0:2"]})),
        [2, 4141, 1, 9991]
    );
    assert_eq!(
        with(json!({"env": [{"name": "POSTHOUSE_METRICS_LISTEN", "value": "10.0.0.1:3"}]})),
        [4140, 4141, 9990, 3]
    );
    let both = json!({"command": ["/posthouse", "run", "--link-listen", "x:5"], "env": [{"name": "POSTHOUSE_LINK_LISTEN", "value": "x:6"}]});
    assert_eq!(with(both), [4140, 5, 9990, 9991], "the flag wins");
}

#[test]
fn a_wrong_namespace_is_told_from_no_installation() {
    let none = not_installed("mesh", &[], false);
    assert!(none.verdict == Verdict::Skipped && none.usual);
    let planned = not_installed("mesh", &["other".to_owned()], true);
    assert!(planned.verdict == Verdict::Fail && planned.message.ends_with("in the namespace 'other'"), "{planned:?}");
    let finding = not_installed("mesh", &["other".to_owned()], false);
    assert_eq!(finding.verdict, Verdict::Warn);
    assert!(finding.hint.unwrap().contains("--namespace other"));
}

#[test]
fn last_words_are_the_last_line_that_says_something() {
    assert_eq!(last_line("a\nb: c\n\n").as_deref(), Some("b: c"));
    assert_eq!(last_line(" \n"), None);
    let long = last_line(&"ä".repeat(1000)).unwrap();
    assert_eq!(long.chars().count(), MAX_WORDS + 1);
}
