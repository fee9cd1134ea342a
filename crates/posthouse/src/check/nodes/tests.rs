//! Answers of proxies, and what is said about them. How they come is `forward`'s and tested against a real cluster.

#![allow(clippy::needless_pass_by_value, reason = "json! borrows, and calls read better with literals")]

use serde_json::{Value, json};

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::super::Verdict;
use super::super::api::Trouble;
use super::answers::ProxyStatus;
use super::*;

fn config(node: &str) -> Value {
    json!({
        "version": "0.1.0 (commit unknown, release, x, rustc 1)",
        "ready": true,
        "pending": [],
        "config": {"node-name": node, "node-ip": ["10.0.0.1"]},
        "discovery": {"watches": [{"kind": "Service", "age": 3.0}], "problems": [], "problems_dropped": 0},
    })
}

fn admin(config: Value) -> Admin {
    Admin { config: serde_json::from_value(config).unwrap(), ahead: Some(0.2), identity: Ok(None), peers: None }
}

fn answers(node: &str, admin: Result<Admin, Trouble>) -> NodeAnswers {
    let headers = HeaderMap::from_iter([(
        http::HeaderName::from_static("proxy-status"),
        "posthouse; error=destination_not_found; details=\"x\"".parse().unwrap(),
    )]);
    let probe = Probe { status: StatusCode::INTERNAL_SERVER_ERROR, headers, took: Duration::from_millis(2) };
    NodeAnswers { node: node.into(), pod: format!("pod-{node}"), admin, outbound: Ok(probe), url: None }
}

fn node(name: &str) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "status": {"addresses": [{"type": "Hostname", "address": "h"}, {"type": "InternalIP", "address": "10.0.0.1"}]},
    }))
    .unwrap()
}

fn states_of(change: impl FnOnce(&mut Value)) -> Vec<Finding> {
    let mut config = config("a");
    change(&mut config);
    states(&[answers("a", Ok(admin(config)))], &[node("a")], "mesh")
}

#[test]
fn a_proxy_in_order_is_one_line() {
    let findings = states_of(|_| {});
    assert_eq!(findings, [Finding::ok(Id::Node, "ready, and what it knows is up to date").on("a")]);
}

#[test]
fn what_is_wrong_with_a_proxy_is_said() {
    let watch = |watch: Value| move |config: &mut Value| config["discovery"]["watches"][0] = watch;
    let cases: Vec<(Vec<Finding>, Verdict, Id, &str)> = vec![
        (
            states_of(|c| (c["ready"], c["pending"]) = (json!(false), json!(["draining: x"]))),
            Verdict::Fail,
            Id::Node,
            "draining: x",
        ),
        (states_of(|c| c["config"]["node-name"] = "b".into()), Verdict::Fail, Id::Node, "takes itself for node 'b'"),
        (
            states_of(|c| c["config"]["node-ip"] = json!(["10.9.9.9"])),
            Verdict::Fail,
            Id::Node,
            "10.9.9.9 is none of the Node's (10.0.0.1)",
        ),
        (states_of(watch(json!({"kind": "Node", "age": 121.0}))), Verdict::Warn, Id::Node, "silent for 121 s"),
        (
            states_of(watch(json!({"kind": "Node", "age": 300.0, "last_error": "refused"}))),
            Verdict::Warn,
            Id::Node,
            "fails, the last view is served: refused",
        ),
        (
            states_of(watch(json!({"kind": "Pod", "last_error": "the API server answers 403: no"}))),
            Verdict::Fail,
            Id::Permissions,
            "may not read Pod",
        ),
        (
            states_of(watch(json!({"kind": "Service", "age": 1.0, "from_snapshot": 30.0}))),
            Verdict::Warn,
            Id::Node,
            "snapshot",
        ),
        (
            states_of(|c| {
                c["discovery"]["problems"] =
                    json!([{"source": "kube", "object": "EndpointSlice shop/x", "error": "why", "since": 1}]);
            }),
            Verdict::Warn,
            Id::Node,
            "skips 1 objects that do not fit; kube EndpointSlice shop/x: why",
        ),
    ];
    for (findings, verdict, id, word) in cases {
        assert_eq!(findings.len(), 1, "{word}: {findings:#?}");
        let finding = &findings[0];
        assert_eq!((finding.verdict, finding.id), (verdict, id), "{word}");
        assert!(finding.message.contains(word), "{word}: {}", finding.message);
        assert!(finding.hint.is_some(), "{word}");
    }
}

#[test]
fn an_answer_of_another_version_may_lack_fields() {
    let little: NodeConfig = serde_json::from_value(json!({"version": "9", "new": {}})).unwrap();
    assert!(!little.ready && little.discovery.watches.is_empty());
}

#[test]
fn versions_are_compared_with_each_other_and_with_this_program() {
    let of = |versions: &[&str], rolling_out: bool| {
        let with = |(at, version): (usize, &&str)| {
            let mut config = config("a");
            config["version"] = (*version).into();
            answers(&format!("n{at}"), Ok(admin(config)))
        };
        let answers: Vec<NodeAnswers> = versions.iter().enumerate().map(with).collect();
        super::versions(&answers, rolling_out)
    };
    let ours = concat!(env!("CARGO_PKG_VERSION"), " (commit abc, release, x)");
    let findings = of(&[ours, ours], false);
    assert!(findings.iter().all(|finding| finding.verdict == Verdict::Ok), "{findings:?}");
    assert_eq!(findings[0].message, concat!(env!("CARGO_PKG_VERSION"), " (commit abc)"));
    let findings = of(&[ours, "99.0.0 (commit unknown, release)"], true);
    assert_eq!(findings.len(), 3);
    assert!(findings.iter().all(|finding| finding.verdict == Verdict::Warn), "{findings:?}");
    assert!(findings[1].message == "99.0.0, and a rollout runs" && findings[2].message.contains("proxies are 99.0.0"));
    assert!(of(&[ours, "99.0.0"], false)[0].message.ends_with("not everywhere the same"));
}

#[test]
fn a_certificate_is_judged_by_what_is_left_of_it() {
    let valid = |left: u64| {
        json!({"tls": "node", "permissive": false, "last_error": null, "certificate": {
            "not_before": "2026-01-01T00:00:00Z", "not_after": "2026-01-02T00:00:00Z", "expires_in_seconds": left,
        }})
    };
    let with = |mut identity: Value, key: &str, value: Value| {
        identity[key] = value;
        identity
    };
    let error = json!({"source": "csr", "error": "denied: no", "since": "2026-01-01T12:00:00Z"});
    let none = json!({"tls": "node", "certificate": null});
    let cases: Vec<(Value, Verdict, &str)> = vec![
        (valid(86_400), Verdict::Ok, "valid, and renewed in time"),
        (valid(21_600), Verdict::Ok, "valid, and renewed in time"),
        (valid(21_599), Verdict::Warn, "it lasts for 5 h more, and its renewal is overdue"),
        (
            with(valid(50), "last_error", error.clone()),
            Verdict::Warn,
            "for 50 s more, and cannot be renewed: csr: denied: no",
        ),
        (
            with(valid(86_000), "last_error", error.clone()),
            Verdict::Warn,
            "for 23 h more, and cannot be renewed: csr: denied: no",
        ),
        (valid(0), Verdict::Fail, "it has ended: none came in its place"),
        (with(valid(0), "last_error", error.clone()), Verdict::Fail, "it has ended: csr: denied: no"),
        (none.clone(), Verdict::Fail, "its proxy has none: it waits for its first"),
        (with(none, "last_error", error), Verdict::Fail, "its proxy has none: csr: denied: no"),
        (with(valid(86_400), "permissive", json!(true)), Verdict::Warn, "takes links without TLS"),
        (json!({"tls": "off"}), Verdict::Warn, "its links are in the clear"),
        (json!({"tls": "node", "certificate": {"new": 1}}), Verdict::Skipped, "does not tell how long"),
    ];
    for (identity, verdict, word) in cases {
        let findings = certificate(&serde_json::from_value(identity).unwrap());
        assert_eq!(findings.len(), 1, "{word}: {findings:#?}");
        assert_eq!(findings[0].verdict, verdict, "{word}");
        assert!(findings[0].message.contains(word), "{word}: {}", findings[0].message);
        assert_eq!(findings[0].hint.is_some(), verdict > Verdict::Skipped, "{word}");
    }
    let both = certificate(&serde_json::from_value(with(valid(0), "permissive", json!(true))).unwrap());
    assert_eq!(both.len(), 2, "each is said: {both:#?}");
    let skipped = certificates(&[answers("a", Ok(admin(config("a"))))]);
    assert_eq!(skipped, [Finding::skipped(Id::Certificate, "its version does not tell").on("a")]);
}

#[test]
fn every_node_must_know_and_reach_the_others() {
    let ready = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
    let peer = |node: &str, link: Value| json!({"node": node, "address": "10.0.0.2:4141", "ready": true, "this_node": node == "a", "link": link});
    let judge = |peers: Value, names: &[&str]| {
        link(&serde_json::from_value(json!({"peers": peers})).unwrap(), "a", &ready(names))
    };
    let never = json!({"connections": 0, "streams": 0, "opened": 0, "failures": 3, "last_error": "timed out"});
    let lost = json!({"connections": 0, "opened": 2, "failures": 1, "last_error": "reset"});
    let mended = json!({"connections": 1, "opened": 2, "failures": 9, "last_error": "reset"});
    // A refusal while the peer was replaced, long ago: the next attempt wiped it out, and then the link was not needed.
    let idle = json!({"connections": 0, "opened": 2, "failures": 1, "last_error": null});
    let begun = json!({"connections": 0, "opened": 0, "failures": 0, "last_error": null});

    let alone = judge(json!([peer("a", Value::Null)]), &["a"]);
    assert_eq!(alone, [Finding::ok(Id::Links, "there is no other proxy")]);
    let good = judge(json!([peer("a", Value::Null), peer("b", mended), peer("c", idle.clone())]), &["a", "b", "c"]);
    assert_eq!(good, [Finding::ok(Id::Links, "knows the proxies of 2 other nodes, and reached each of them")]);
    let good = judge(json!([peer("b", idle.clone())]), &["a", "b"]);
    assert_eq!(good, [Finding::ok(Id::Links, "knows the proxy of 1 other node, and reached it")]);
    for (peers, verdict, word) in [
        (json!([peer("a", Value::Null)]), Verdict::Fail, "does not know that node b has one"),
        (json!([{"node": "b", "ready": false}]), Verdict::Fail, "does not know that node b has one"),
        (json!([peer("b", Value::Null)]), Verdict::Skipped, "not tried yet: no request has crossed to node b"),
        (json!([peer("b", begun.clone())]), Verdict::Skipped, "not tried yet: no request has crossed to node b"),
        (json!([peer("b", never)]), Verdict::Fail, "never reached the proxy of b at 10.0.0.2:4141: timed out"),
        (json!([peer("b", lost)]), Verdict::Warn, "no connection to the proxy of b now; what failed last: reset"),
    ] {
        let findings = judge(peers, &["a", "b"]);
        assert_eq!(findings.len(), 1, "{word}: {findings:#?}");
        assert_eq!(findings[0].verdict, verdict, "{word}");
        assert!(findings[0].message.contains(word) && findings[0].hint.is_some(), "{}", findings[0].message);
    }
    let some = judge(json!([peer("b", idle), peer("c", Value::Null), peer("d", begun)]), &["a", "b", "c", "d"]);
    assert_eq!(some.len(), 1, "what was not looked at is never good: {some:?}");
    assert!(some[0].verdict == Verdict::Skipped && some[0].message.ends_with("to node c and 1 more"), "{some:?}");
    assert!(judge(json!([]), &["a", "b", "c", "d"])[0].message.contains("node b and 2 more has"), "many are counted");
}

#[test]
fn an_answer_through_a_node_is_judged_by_who_gave_it() {
    let probe = |status: u16, said: Option<&str>| {
        let said = said.map(|said| (http::HeaderName::from_static("proxy-status"), said.parse().unwrap()));
        Probe {
            status: StatusCode::from_u16(status).unwrap(),
            headers: said.into_iter().collect(),
            took: Duration::ZERO,
        }
    };
    let url = Uri::from_static("http://web.shop/");
    let nowhere = "posthouse; error=destination_not_found; details=\"no such \\\"name\\\"\"";
    let busy = "posthouse; error=destination_unavailable; details=\"Service shop/web has no endpoints\"";
    for (status, said, with_url, verdict, word) in [
        (500, Some(nowhere), false, Verdict::Ok, "answers"),
        (500, Some(nowhere), true, Verdict::Fail, "destination_not_found: no such \"name\""),
        (
            503,
            Some(busy),
            true,
            Verdict::Fail,
            "503 Service Unavailable, destination_unavailable: Service shop/web has no",
        ),
        (403, Some("posthouse; error=http_request_denied; details=\"x\""), false, Verdict::Fail, "http_request_denied"),
        (404, None, false, Verdict::Fail, "is no posthouse"),
        (500, Some("other; error=destination_not_found"), false, Verdict::Fail, "is no posthouse"),
        (200, None, true, Verdict::Ok, "200 OK"),
        (404, None, true, Verdict::Ok, "404"),
        (502, None, true, Verdict::Warn, "the application itself answers 502"),
    ] {
        let probe = probe(status, said);
        let finding = if with_url { judge_request(&probe, &url) } else { judge_outbound(&probe) };
        assert_eq!(finding.verdict, verdict, "{status} {said:?}");
        assert!(finding.message.contains(word), "{word}: {}", finding.message);
    }
}

#[test]
fn a_node_that_cannot_be_asked_is_told_once() {
    let refused = Trouble::Forbidden("no".into());
    let mut answer = answers("a", Err(refused.clone()));
    answer.outbound = Err(refused);
    let all = [answer, answers("b", Ok(admin(config("b"))))];
    let findings = unreachable(&all);
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].verdict, Verdict::Skipped, "nothing is known of that node");
    assert!(findings[0].hint.as_deref().unwrap().contains("pods/portforward"));
    assert_eq!(probes(&all, None).len(), 1, "only of b");
    assert_eq!(clocks(&all, Some(0.0)).len(), 1);
    let summary = summary(&all);
    assert_eq!((summary[0].ready, summary[1].ready), (None, Some(true)));
}

#[test]
fn a_nodes_clock_is_held_against_the_api_servers() {
    let mut late = admin(config("a"));
    late.ahead = Some(-20.0);
    let all = [answers("a", Ok(late))];
    let finding = &clocks(&all, Some(1.0))[0];
    assert_eq!(finding.verdict, Verdict::Warn);
    assert!(finding.message.contains("21 s behind"), "{}", finding.message);
    assert_eq!(clocks(&all, None), [], "not against this machine's, which may be wrong itself");
    let mut silent = admin(config("a"));
    silent.ahead = None;
    assert_eq!(clocks(&[answers("a", Ok(silent))], Some(1.0))[0].verdict, Verdict::Skipped);
}

#[test]
fn nodes_without_pod_ranges_are_named() {
    let mut with = node("a");
    with.spec = serde_json::from_value(json!({"podCIDRs": ["10.1.0.0/24"]})).unwrap();
    let verdicts: Vec<Verdict> = objects(&[with, node("b")]).iter().map(|finding| finding.verdict).collect();
    assert_eq!(verdicts, [Verdict::Ok, Verdict::Warn]);
}

#[test]
fn proxy_status_is_read_with_its_escapes() {
    let read = |value: &str| {
        proxy_status(&HeaderMap::from_iter([(http::HeaderName::from_static("proxy-status"), value.parse().unwrap())]))
    };
    let wanted = ProxyStatus { error: Some("x_y".into()), details: "a \"b\" \\ c".into() };
    assert_eq!(read(r#"posthouse; error=x_y; details="a \"b\" \\ c""#), Some(wanted));
    assert_eq!(read("posthouse").unwrap().error, None);
    assert_eq!(read("envoy; error=x"), None);
    assert_eq!(short("0.1.0 (commit unknown, debug)"), "0.1.0");
    assert_eq!(short(""), "");
    let long = "0.1.0 (commit 0123456789abcdef0123456789abcdef01234567-dirty, release)";
    assert_eq!(short(long), "0.1.0 (commit 0123456789ab-dirty)");
}
