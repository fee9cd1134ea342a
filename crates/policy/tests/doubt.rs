//! Callers whose claim cannot be checked, and policies in dry run: what they must not change.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails its test")]

use std::sync::Arc;

use posthouse_policy::{Guard, Operation, Policy, Set, Source, Target};
use serde_json::{Value, json};

fn guard(specs: &[Value]) -> Arc<Guard> {
    let mut set = Set::default();
    for (n, spec) in specs.iter().enumerate() {
        set.put(Policy::read("shop", &format!("p{n}"), spec));
    }
    set.concerning("shop", std::iter::once("web")).unwrap()
}

/// Who denies a GET of a caller of that kind, and who would.
fn get(guard: &Guard, doubtful: bool, path: &str) -> (Option<String>, Option<String>) {
    let source = Source { node: "node-a", workload: None, doubtful };
    let target = Target { namespace: "shop", pod: "web-0", port: 80 };
    let verdict = guard.decide(&source, &target, &Operation::Http { method: "GET", path, host: "web.shop" });
    (verdict.denied_by.map(|by| by.to_string()), verdict.would_deny.map(|by| by.to_string()))
}

#[test]
fn nobody_gets_around_a_denial_by_a_claim_that_cannot_be_checked() {
    for spec in [
        json!({"action": "Deny", "rules": [{"from": [{"serviceAccounts": ["cli"]}]}]}),
        json!({"action": "Deny", "rules": [{"from": [{"namespaces": ["dev"]}]}]}),
        json!({"action": "Deny", "rules": [{"when": "source.serviceAccount == 'cli'"}]}),
    ] {
        let guard = guard(std::slice::from_ref(&spec));
        assert_eq!(get(&guard, true, "/").0.as_deref(), Some("shop/p0"), "{spec}");
        assert_eq!(get(&guard, false, "/").0, None, "who claims nothing is nobody of these: {spec}");
    }
}

#[test]
fn a_claim_that_cannot_be_checked_is_unidentified_to_what_allows_and_to_denials_of_other_things() {
    let account = json!({"action": "Allow", "rules": [{"from": [{"serviceAccounts": ["cli"]}]}]});
    assert_eq!(get(&guard(&[account]), true, "/").0.as_deref(), Some("shop/p0"));
    let anyone = json!({"action": "Allow", "rules": [{"from": [{"unidentified": true}]}]});
    assert_eq!(get(&guard(&[anyone]), true, "/").0, None);
    let other_node =
        json!({"action": "Deny", "rules": [{"from": [{"nodes": ["node-b"], "serviceAccounts": ["cli"]}]}]});
    assert_eq!(get(&guard(&[other_node]), true, "/").0, None, "its node is known");
    let method = json!({"action": "Deny", "rules": [{"to": [{"methods": ["DELETE"]}]}]});
    assert_eq!(get(&guard(&[method]), true, "/").0, None);
}

#[test]
fn dry_run_neither_refuses_nor_rewrites_a_path_but_tells_what_it_would_do() {
    let spec = json!({"action": "Deny", "dryRun": true, "rules": [{"to": [{"paths": [{"prefix": "/admin"}]}]}]});
    let guard = guard(&[spec]);
    assert!(!guard.reads_path());
    for (path, would) in
        [("/admin", true), ("//a/../admin/x", true), ("/%61dmin", true), ("/open", false), ("/a;b", true)]
    {
        let (denied, would_deny) = get(&guard, false, path);
        assert_eq!((denied, would_deny.is_some()), (None, would), "{path}");
    }
}
