//! Runs the matrix (see matrix/README.md): each file's policies are read as from manifests, each case is decided as the proxy
//! does it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a helper fails its test")]

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use posthouse_policy::{Operation, Policy, Set, Source, Target, Workload, normalise_path};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Setting {
    policies: Vec<Manifest>,
    from: Option<Who>,
    to: Option<To>,
    request: Option<Request>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    metadata: Meta,
    #[serde(default)]
    spec: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    name: String,
    namespace: String,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Who {
    Word(String),
    Pod(Pod),
    Stranger(Stranger),
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Pod {
    namespace: String,
    pod: String,
    service_account: String,
    node: String,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stranger {
    unidentified: bool,
    node: String,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct To {
    namespace: String,
    service: String,
    #[serde(default)]
    also: Vec<String>,
    pod: Option<String>,
    port: u16,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    method: String,
    path: String,
    host: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    from: Option<Who>,
    to: Option<To>,
    request: Option<Request>,
    #[serde(default)]
    tunnel: bool,
    expect: Expect,
    by: Option<String>,
    would: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
enum Expect {
    Allow,
    Deny,
    Refuse,
}

/// What came of a case: the decision, who denies, who would.
type Outcome = (Expect, Option<String>, Option<String>);

fn run(set: &Set, setting: &Setting, case: &Case) -> Outcome {
    let to = case.to.as_ref().or(setting.to.as_ref()).expect("a case goes somewhere");
    let who = case.from.as_ref().or(setting.from.as_ref()).expect("a case comes from somewhere");
    let source = match who {
        Who::Pod(Pod { namespace, pod, service_account, node }) => {
            Source { node, workload: Some(Workload { namespace, pod, service_account }), doubtful: false }
        }
        Who::Stranger(Stranger { unidentified: true, node }) => Source { node, workload: None, doubtful: false },
        Who::Word(word) if word == "unidentified" => Source { node: "node-a", workload: None, doubtful: false },
        Who::Word(_) | Who::Stranger(_) => panic!("{}: nobody such", case.name),
    };
    let services = std::iter::once(&to.service).chain(&to.also).map(String::as_str);
    let Some(guard) = set.concerning(&to.namespace, services) else { return (Expect::Allow, None, None) };
    let pod = to.pod.clone().unwrap_or_else(|| format!("{}-0", to.service));
    let target = Target { namespace: &to.namespace, pod: &pod, port: to.port };
    let request = case.request.as_ref().or(setting.request.as_ref());
    let path;
    let operation = match request {
        Some(Request { method, path: sent, host }) if !case.tunnel => {
            let sent = sent.split('?').next().unwrap();
            path = match guard.reads_path() {
                true => match normalise_path(sent) {
                    Ok(path) => path,
                    Err(_) => return (Expect::Refuse, None, None),
                },
                false => sent.into(),
            };
            Operation::Http { method, path: &path, host }
        }
        _ if case.tunnel => Operation::Tunnel,
        _ => panic!("{}: neither a request nor a tunnel", case.name),
    };
    let verdict = guard.decide(&source, &target, &operation);
    assert_eq!(verdict.denied_by.is_none(), verdict.reason.is_empty(), "{}: a denial has a reason", case.name);
    if !guard.reads_source() {
        let stranger = Source { node: source.node, workload: None, doubtful: false };
        assert_eq!(guard.decide(&stranger, &target, &operation), verdict, "{}: the source is not read", case.name);
    }
    let decision = if verdict.denied_by.is_some() { Expect::Deny } else { Expect::Allow };
    let name = |by: Option<std::sync::Arc<str>>| by.map(|by| by.to_string());
    (decision, name(verdict.denied_by), name(verdict.would_deny))
}

#[test]
fn every_case_is_decided_as_a_person_would() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/matrix");
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let setting: Setting = serde_norway::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut set = Set::default();
        for Manifest { metadata: Meta { name, namespace }, spec } in &setting.policies {
            let policy = Policy::read(namespace, name, spec);
            if file != "broken.yaml" {
                assert_eq!(policy.problem(), None, "{file}: {name}");
            } else if name != "allowed-anyway" {
                assert!(policy.problem().is_some(), "{file}: {name}");
            }
            set.put(policy);
        }
        let mut names = HashSet::new();
        for case in &setting.cases {
            assert!(names.insert(&case.name), "{file}: two cases '{}'", case.name);
            let wanted = (case.expect, case.by.clone(), case.would.clone());
            let found = run(&set, &setting, case);
            seen.insert(found.0);
            count += 1;
            if found != wanted {
                wrong.push(format!("{file}: {}: {found:?}, not {wanted:?}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen.len(), 3, "each kind of decision comes up");
    assert!(count >= 60, "only {count} cases were found");
}
