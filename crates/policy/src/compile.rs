//! From a policy as it is written to one that decides. What cannot be understood wholly is broken, and denies: half of a
//! policy may allow what all of it would not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::cel::Condition;
use crate::path::{decoded, normalise_path};
use crate::resource::{Action, AuthorizationPolicy, AuthorizationPolicySpec, From, PathMatch, Rule, TargetRef, To};

/// The most entries of each list of targets, rules, sources and operations; the schema has the same.
const MAX_ENTRIES: usize = 64;
/// The most values of a field.
const MAX_VALUES: usize = 256;
/// The longest value, in bytes: beyond any name or path that a rule has.
const MAX_VALUE: usize = 1024;

/// What is wrong with a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Its shape is not the resource's: an unknown field, a value of a wrong type or an unknown word.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// A value that makes no sense.
    #[error("{at}: {why}")]
    Field {
        /// The field, from `spec` on.
        at: String,
        /// What is wrong with it.
        why: String,
    },
    /// A condition that is refused.
    #[error("{at}: {why}")]
    Condition {
        /// The field, from `spec` on.
        at: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Problem {
    /// In one word, as a condition's `reason` has it.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "Unreadable",
            Self::Field { .. } => "InvalidField",
            Self::Condition { .. } => "InvalidExpression",
        }
    }
}

/// Whether a policy can be used; the controller writes the answer into its status.
///
/// # Errors
/// What is wrong with it. Every proxy comes to the same answer, and denies every request to its targets.
pub fn validate(policy: &AuthorizationPolicy) -> Result<(), Problem> {
    rules(&policy.spec, policy.metadata.namespace.as_deref().unwrap_or_default())?;
    targets(policy.spec.target_refs.as_deref().unwrap_or_default()).map(drop)
}

/// One policy, ready to decide.
#[derive(Debug)]
pub struct Policy {
    key: Arc<str>,
    namespace: Arc<str>,
    /// Names of Services; empty: the whole namespace.
    targets: Box<[Arc<str>]>,
    dry_run: bool,
    pub(crate) effect: Effect,
}

/// What a policy does.
#[derive(Debug)]
pub(crate) enum Effect {
    Rules { action: Action, rules: Box<[CompiledRule]> },
    Broken(Problem),
}

impl Policy {
    /// Reads the `spec` of a manifest. There is always a policy: a broken one denies every request to its targets, or to its
    /// whole namespace where not even these can be read. A broken one in dry run denies nothing, if that much is written.
    #[must_use]
    pub fn read(namespace: &str, name: &str, spec: &Value) -> Self {
        let parsed = AuthorizationPolicySpec::deserialize(spec);
        let parsed = parsed.map_err(|error| Problem::Unreadable(error.to_string()));
        let effect = parsed.and_then(|spec| Ok(Effect::Rules { action: spec.action, rules: rules(&spec, namespace)? }));
        Self::with(namespace, name, spec, effect)
    }

    /// A policy that is broken whatever its `spec` says, which tells its targets.
    #[must_use]
    pub fn broken(namespace: &str, name: &str, spec: &Value, problem: Problem) -> Self {
        Self::with(namespace, name, spec, Err(problem))
    }

    fn with(namespace: &str, name: &str, spec: &Value, effect: Result<Effect, Problem>) -> Self {
        let refs = spec.get("targetRefs").map_or_else(|| Ok(Vec::new()), Vec::<TargetRef>::deserialize);
        let targets = refs.map_err(|error| Problem::Unreadable(error.to_string())).and_then(|refs| targets(&refs));
        let (targets, effect) = match (targets, effect) {
            (Ok(targets), effect) => (targets, effect.unwrap_or_else(Effect::Broken)),
            (Err(_), Err(problem)) | (Err(problem), Ok(_)) => (Box::default(), Effect::Broken(problem)),
        };
        Self {
            key: Arc::from([namespace, "/", name].concat()),
            namespace: Arc::from(namespace),
            targets,
            dry_run: spec.get("dryRun").and_then(Value::as_bool).unwrap_or(false),
            effect,
        }
    }

    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// The namespace that it is in and for.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Services that it names; none: every pod of the namespace.
    #[must_use]
    pub fn targets(&self) -> &[Arc<str>] {
        &self.targets
    }

    /// Whether it only reports.
    #[must_use]
    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// What it does; `None` when it is broken.
    #[must_use]
    pub fn action(&self) -> Option<Action> {
        match &self.effect {
            Effect::Rules { action, .. } => Some(*action),
            Effect::Broken(_) => None,
        }
    }

    /// Why it is broken, if it is.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match &self.effect {
            Effect::Rules { .. } => None,
            Effect::Broken(problem) => Some(problem),
        }
    }
}

/// A rule: all three must match.
#[derive(Debug)]
pub(crate) struct CompiledRule {
    /// Empty: anyone.
    pub(crate) from: Box<[Origin]>,
    /// Empty: anything.
    pub(crate) to: Box<[Request]>,
    pub(crate) when: Option<Condition>,
}

/// Who asks. `None`: the field was not given.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) accounts: Option<HashMap<Box<str>, Accounts>>,
    pub(crate) namespaces: Option<HashSet<Box<str>>>,
    pub(crate) nodes: Option<HashSet<Box<str>>>,
    pub(crate) identified: Option<bool>,
}

/// Service accounts of one namespace.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    pub(crate) all: bool,
    pub(crate) names: HashSet<Box<str>>,
}

/// What is asked for. `None`: the field was not given.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) methods: Option<HashSet<Box<str>>>,
    pub(crate) paths: Option<Paths>,
    pub(crate) ports: Option<HashSet<u16>>,
    pub(crate) hosts: Option<Hosts>,
}

/// Paths with their percent-encoding undone.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    pub(crate) exact: HashSet<Box<str>>,
    /// Without the slash at the end.
    pub(crate) prefixes: Vec<Box<str>>,
}

/// Hosts in lower case.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    pub(crate) exact: Vec<Box<str>>,
    /// With the dot: `.example.org`.
    pub(crate) suffixes: Vec<Box<str>>,
}

/// Where in the spec we are, for the problem's words.
struct Place<'a>(&'a str, usize, &'a str);

impl Place<'_> {
    fn wrong(&self, field: &str, why: impl Into<String>) -> Problem {
        let Self(rule, entry, list) = self;
        Problem::Field { at: format!("{rule}.{list}[{entry}]{field}"), why: why.into() }
    }
}

fn targets(refs: &[TargetRef]) -> Result<Box<[Arc<str>]>, Problem> {
    let wrong = |at: String, why: &str| Problem::Field { at, why: why.to_owned() };
    if refs.len() > MAX_ENTRIES {
        return Err(wrong("spec.targetRefs".to_owned(), "it has more than 64 entries"));
    }
    let one = |(number, target): (usize, &TargetRef)| {
        let at = |field: &str| format!("spec.targetRefs[{number}].{field}");
        let TargetRef { group, kind, name } = target;
        if group.as_deref().is_some_and(|group| !group.is_empty()) {
            return Err(wrong(at("group"), "only the core group, which is empty, has Services"));
        }
        if kind != "Service" {
            return Err(wrong(at("kind"), "only a Service can be a target"));
        }
        if !is_name(name) {
            return Err(wrong(at("name"), "it is no name of a Service"));
        }
        Ok(Arc::from(name.as_str()))
    };
    refs.iter().enumerate().map(one).collect()
}

fn rules(spec: &AuthorizationPolicySpec, namespace: &str) -> Result<Box<[CompiledRule]>, Problem> {
    let rules = spec.rules.as_deref().unwrap_or_default();
    if rules.len() > MAX_ENTRIES {
        return Err(Problem::Field {
            at: "spec.rules".to_owned(),
            why: format!("it has more than {MAX_ENTRIES} entries"),
        });
    }
    rules.iter().enumerate().map(|(number, one)| rule(number, one, namespace)).collect()
}

fn rule(number: usize, rule: &Rule, namespace: &str) -> Result<CompiledRule, Problem> {
    let Rule { from, to, when } = rule;
    let at = format!("spec.rules[{number}]");
    let (from, to) = (from.as_deref().unwrap_or_default(), to.as_deref().unwrap_or_default());
    for (list, length) in [("from", from.len()), ("to", to.len())] {
        if length > MAX_ENTRIES {
            return Err(Problem::Field {
                at: format!("{at}.{list}"),
                why: format!("it has more than {MAX_ENTRIES} entries"),
            });
        }
    }
    let when = when
        .as_deref()
        .map(|text| Condition::compile(text).map_err(|why| Problem::Condition { at: format!("{at}.when"), why }));
    Ok(CompiledRule {
        from: from
            .iter()
            .enumerate()
            .map(|(n, from)| origin(from, namespace, &Place(&at, n, "from")))
            .collect::<Result<_, _>>()?,
        to: to.iter().enumerate().map(|(n, to)| request(to, &Place(&at, n, "to"))).collect::<Result<_, _>>()?,
        when: when.transpose()?,
    })
}

fn origin(from: &From, own: &str, place: &Place<'_>) -> Result<Origin, Problem> {
    let From { service_accounts, namespaces, nodes, unidentified } = from;
    if *from == From::default() {
        return Err(place.wrong("", "it says nothing; leave `from` out to mean anyone"));
    }
    if *unidentified == Some(true) && (service_accounts.is_some() || namespaces.is_some()) {
        return Err(
            place.wrong("", "nobody is unidentified and has a service account or namespace; make it two entries")
        );
    }
    let name = |value: &str| is_name(value).then(|| Box::from(value)).ok_or("it is no name");
    let mut accounts: Option<HashMap<Box<str>, Accounts>> = None;
    for (number, written) in values(service_accounts.as_deref(), ".serviceAccounts", place)?.iter().enumerate() {
        let (namespace, account) = written.split_once('/').unwrap_or((own, written));
        if !is_name(namespace) || !(is_name(account) || (account == "*" && written.len() > 1)) {
            let why = "it is neither 'namespace/name' nor 'name' nor 'namespace/*'";
            return Err(place.wrong(&format!(".serviceAccounts[{number}]"), why));
        }
        let of = accounts.get_or_insert_default().entry(Box::from(namespace)).or_default();
        if account == "*" {
            of.all = true;
        } else {
            of.names.insert(Box::from(account));
        }
    }
    Ok(Origin {
        accounts,
        namespaces: set(namespaces.as_deref(), ".namespaces", place, name)?,
        nodes: set(nodes.as_deref(), ".nodes", place, name)?,
        identified: unidentified.map(|unidentified| !unidentified),
    })
}

fn request(to: &To, place: &Place<'_>) -> Result<Request, Problem> {
    let To { methods, paths, ports, hosts } = to;
    if *to == To::default() {
        return Err(place.wrong("", "it says nothing; leave `to` out to mean anything"));
    }
    let method = |value: &str| {
        // RFC 9110: a token, and case matters; there is no known method with small letters.
        let token = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"!#$%&'+-.^_`|~".contains(&byte);
        (!value.is_empty() && value.bytes().all(token)).then(|| Box::from(value)).ok_or("it is no method in capitals")
    };
    let mut found_paths: Option<Paths> = None;
    for (number, path) in values(paths.as_deref(), ".paths", place)?.iter().enumerate() {
        let wrong = |why: &str| place.wrong(&format!(".paths[{number}]"), why);
        let PathMatch { exact, prefix } = path;
        let into = found_paths.get_or_insert_default();
        match (exact, prefix) {
            (Some(path), None) => {
                into.exact.insert(Box::from(own_path(path).map_err(|why| wrong(&why))?));
            }
            (None, Some(path)) if path == "*" => return Err(wrong("'*' is no prefix; '/' is that of every path")),
            (None, Some(path)) => {
                let path = own_path(path).map_err(|why| wrong(&why))?;
                into.prefixes.push(Box::from(path.strip_suffix('/').unwrap_or(&path)));
            }
            _ => return Err(wrong("it has not exactly one of `exact` and `prefix`")),
        }
    }
    let ports = values(ports.as_deref(), ".ports", place).map(|found| (!found.is_empty()).then_some(found))?;
    if ports.is_some_and(|ports| ports.contains(&0)) {
        return Err(place.wrong(".ports", "0 is no port"));
    }
    let mut found_hosts: Option<Hosts> = None;
    for (number, written) in values(hosts.as_deref(), ".hosts", place)?.iter().enumerate() {
        let host = written.to_ascii_lowercase();
        let into = found_hosts.get_or_insert_default();
        match host.strip_prefix('*') {
            Some(suffix) if suffix.strip_prefix('.').is_some_and(is_name) => into.suffixes.push(Box::from(suffix)),
            None if is_name(&host) || is_bracketed(&host) => into.exact.push(Box::from(host)),
            _ => {
                let why = "it is neither a host without a port nor '*.' and a name";
                return Err(place.wrong(&format!(".hosts[{number}]"), why));
            }
        }
    }
    Ok(Request {
        methods: set(methods.as_deref(), ".methods", place, method)?,
        paths: found_paths,
        ports: ports.map(|ports| ports.iter().copied().collect()),
        hosts: found_hosts,
    })
}

/// A path of a policy, as requests' paths are compared with it.
fn own_path(written: &str) -> Result<String, String> {
    match normalise_path(written) {
        Err(why) => Err(why.to_owned()),
        Ok(normal) if written.len() > MAX_VALUE => {
            Err(format!("the path has {} bytes; at most {MAX_VALUE} are read", normal.len()))
        }
        Ok(normal) if normal != written => Err(format!("the path is not in normal form; write '{normal}'")),
        Ok(normal) => Ok(decoded(&normal).into_owned()),
    }
}

/// The values of a field; none when it is not given.
fn values<'a, T>(given: Option<&'a [T]>, field: &str, place: &Place<'_>) -> Result<&'a [T], Problem> {
    match given {
        Some([]) => Err(place.wrong(field, "the list is empty; leave the field out, or name what is meant")),
        Some(all) if all.len() > MAX_VALUES => Err(place.wrong(field, format!("it has more than {MAX_VALUES} values"))),
        given => Ok(given.unwrap_or_default()),
    }
}

/// A field's values as a set.
fn set(
    given: Option<&[String]>,
    field: &str,
    place: &Place<'_>,
    check: impl Fn(&str) -> Result<Box<str>, &'static str>,
) -> Result<Option<HashSet<Box<str>>>, Problem> {
    let mut found = HashSet::new();
    for (number, value) in values(given, field, place)?.iter().enumerate() {
        let value =
            check(value).map_err(|why| place.wrong(&format!("{field}[{number}]"), format!("'{value}': {why}")))?;
        found.insert(value);
    }
    Ok(given.map(|_| found))
}

/// A DNS name in small letters, as Kubernetes has it: Services, namespaces, service accounts, nodes, hosts.
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn is_bracketed(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    inner.is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problem(spec: &Value) -> String {
        let policy = Policy::read("shop", "p", spec);
        policy.problem().unwrap_or_else(|| panic!("{spec} is taken")).to_string()
    }

    #[test]
    fn what_makes_no_sense_is_broken_and_says_where() {
        let rule = |rule: Value| json!({"action": "Allow", "rules": [{}, rule]});
        for (spec, at, why) in [
            (Value::Null, "", "cannot be read"),
            (json!("text"), "", "cannot be read"),
            (json!({}), "", "`action`"),
            (json!({"action": "Permit"}), "", "`Permit`"),
            (json!({"action": "allow"}), "", "`allow`"),
            (json!({"action": "Allow", "rule": []}), "", "`rule`"),
            (json!({"action": "Allow", "dryRun": "yes"}), "", "yes"),
            (json!({"action": "Allow", "rules": {}}), "", "sequence"),
            (
                json!({"action": "Allow", "targetRefs": [{"kind": "Pod", "name": "a"}]}),
                "spec.targetRefs[0].kind",
                "Service",
            ),
            (
                json!({"action": "Allow", "targetRefs": [{"kind": "Service", "name": "A"}]}),
                "spec.targetRefs[0].name",
                "name",
            ),
            (
                json!({"action": "Allow", "targetRefs": [{"group": "apps", "kind": "Service", "name": "a"}]}),
                "spec.targetRefs[0].group",
                "core",
            ),
            (rule(json!({"form": []})), "", "`form`"),
            (rule(json!({"from": null})), "", "null"),
            (rule(json!({"when": null})), "", "null"),
            (rule(json!({"from": [{"namespaces": ["a"], "serviceAccounts": null}]})), "", "null"),
            (json!({"action": "Deny", "targetRefs": null}), "", "null"),
            (rule(json!({"from": [{}]})), "spec.rules[1].from[0]", "says nothing"),
            (rule(json!({"to": [{}]})), "spec.rules[1].to[0]", "says nothing"),
            (rule(json!({"from": [{"namespaces": []}]})), "spec.rules[1].from[0].namespaces", "empty"),
            (rule(json!({"from": [{"namespaces": ["*"]}]})), "spec.rules[1].from[0].namespaces[0]", "no name"),
            (rule(json!({"from": [{"nodes": ["A"]}]})), "spec.rules[1].from[0].nodes[0]", "no name"),
            (rule(json!({"from": [{"serviceAccounts": ["*"]}]})), "serviceAccounts[0]", "neither"),
            (rule(json!({"from": [{"serviceAccounts": ["*/a"]}]})), "serviceAccounts[0]", "neither"),
            (rule(json!({"from": [{"serviceAccounts": ["a/b/c"]}]})), "serviceAccounts[0]", "neither"),
            (rule(json!({"from": [{"serviceAccounts": [""]}]})), "serviceAccounts[0]", "neither"),
            (rule(json!({"from": [{"serviceAccounts": ["a"], "unidentified": true}]})), "from[0]", "two entries"),
            (rule(json!({"to": [{"methods": []}]})), "methods", "empty"),
            (rule(json!({"to": [{"methods": ["get"]}]})), "methods[0]", "capitals"),
            (rule(json!({"to": [{"methods": ["*"]}]})), "methods[0]", "capitals"),
            (rule(json!({"to": [{"paths": []}]})), "paths", "empty"),
            (rule(json!({"to": [{"paths": [{}]}]})), "paths[0]", "exactly one"),
            (rule(json!({"to": [{"paths": [{"exact": "/a", "prefix": "/a"}]}]})), "paths[0]", "exactly one"),
            (rule(json!({"to": [{"paths": [{"exact": "a"}]}]})), "paths[0]", "absolute"),
            (rule(json!({"to": [{"paths": [{"exact": "/a/../b"}]}]})), "paths[0]", "write '/b'"),
            (rule(json!({"to": [{"paths": [{"prefix": "/a//b"}]}]})), "paths[0]", "write '/a/b'"),
            (rule(json!({"to": [{"paths": [{"prefix": "/a?b"}]}]})), "paths[0]", "query"),
            (rule(json!({"to": [{"paths": [{"prefix": "*"}]}]})), "paths[0]", "no prefix"),
            (rule(json!({"to": [{"paths": [{"regex": ".*"}]}]})), "", "`regex`"),
            (rule(json!({"to": [{"ports": []}]})), "ports", "empty"),
            (rule(json!({"to": [{"ports": [0]}]})), "ports", "no port"),
            (rule(json!({"to": [{"ports": [70000]}]})), "", "70000"),
            (rule(json!({"to": [{"hosts": ["web:80"]}]})), "hosts[0]", "without a port"),
            (rule(json!({"to": [{"hosts": ["*"]}]})), "hosts[0]", "neither"),
            (rule(json!({"to": [{"hosts": ["*web"]}]})), "hosts[0]", "neither"),
            (rule(json!({"when": "source.pod =="})), "spec.rules[1].when", "CEL"),
            (rule(json!({"when": ""})), "spec.rules[1].when", "CEL"),
            (json!({"action": "Allow", "rules": vec![json!({}); 65]}), "spec.rules", "more than 64"),
            (rule(json!({"to": [{"ports": vec![1; 257]}]})), "ports", "more than 256"),
        ] {
            let said = problem(&spec);
            assert!(said.contains(at) && said.contains(why), "{spec}: {said}");
        }
    }

    #[test]
    fn a_broken_policy_keeps_what_can_be_read_of_it() {
        let read = |spec: Value| {
            let policy = Policy::read("shop", "p", &spec);
            assert!(policy.problem().is_some() && policy.action().is_none());
            (policy.targets().iter().map(ToString::to_string).collect::<Vec<_>>(), policy.is_dry_run())
        };
        let web = json!([{"kind": "Service", "name": "web"}]);
        assert_eq!(read(json!({"action": "No", "targetRefs": web})), (vec!["web".to_owned()], false));
        assert_eq!(read(json!({"action": "No", "targetRefs": web, "dryRun": true})), (vec!["web".to_owned()], true));
        assert_eq!(read(json!({"action": "No", "targetRefs": web, "dryRun": "true"})), (vec!["web".to_owned()], false));
        assert_eq!(read(json!({"action": "Allow", "targetRefs": [{"name": "web"}]})), (vec![], false));
        assert_eq!(
            read(
                json!({"action": "Allow", "targetRefs": [{"kind": "Service", "name": "web"}, {"kind": "Pod", "name": "x"}]})
            ),
            (vec![], false)
        );
    }

    #[test]
    fn the_controller_comes_to_the_same_answer() {
        let resource = |spec: Value| -> AuthorizationPolicy {
            let text = json!({"apiVersion": "posthouse.io/v1alpha1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
            serde_json::from_value(text).unwrap()
        };
        assert_eq!(
            validate(&resource(json!({"action": "Allow", "rules": [{"from": [{"serviceAccounts": ["web"]}]}]}))),
            Ok(())
        );
        let problem = validate(&resource(json!({"action": "Deny", "rules": [{"when": "x"}]}))).unwrap_err();
        assert_eq!((problem.reason(), problem.to_string().contains("no 'x'")), ("InvalidExpression", true));
        let problem =
            validate(&resource(json!({"action": "Deny", "targetRefs": [{"kind": "Pod", "name": "a"}]}))).unwrap_err();
        assert_eq!(problem.reason(), "InvalidField");
    }
}
