//! The decision: pure computation over borrowed facts. Nothing is allocated for a request but by conditions and for paths
//! that are percent-encoded.

use std::borrow::Cow;
use std::sync::Arc;

use imbl::{HashMap, OrdMap};

use crate::compile::{CompiledRule, Effect, Hosts, Origin, Paths, Policy, Request};
use crate::path::{decoded, normalise_path};
use crate::resource::Action;
use crate::{Operation, Source, Target, Verdict};

/// Every policy of the cluster, compiled. Cheap to clone; a changed policy costs itself alone.
#[derive(Clone, Debug, Default)]
pub struct Set {
    policies: OrdMap<Arc<str>, Arc<Policy>>,
    /// By target: `namespace/service`, or `namespace/` for the whole namespace. Each in the order of their names.
    by_target: HashMap<Arc<str>, OrdMap<Arc<str>, Arc<Policy>>>,
}

impl Set {
    /// Adds or replaces a policy.
    pub fn put(&mut self, policy: impl Into<Arc<Policy>>) {
        let policy = policy.into();
        let key = Arc::clone(policy.key());
        self.remove(&key);
        for target in targets(&policy) {
            self.by_target.entry(target).or_default().insert(Arc::clone(&key), Arc::clone(&policy));
        }
        self.policies.insert(key, policy);
    }

    /// Removes a policy (`namespace/name`).
    pub fn remove(&mut self, key: &str) {
        let Some(old) = self.policies.remove(key) else { return };
        for target in targets(&old) {
            let empty = self.by_target.get_mut(&target).is_none_or(|policies| {
                policies.remove(key);
                policies.is_empty()
            });
            if empty {
                self.by_target.remove(&target);
            }
        }
    }

    /// Whether `other` is this very set, so that nothing changed between them. A look at two pointers.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.policies.ptr_eq(&other.policies)
    }

    /// Every policy, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// A policy (`namespace/name`).
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// The policies that concern pods of `namespace` behind `services` (names of Services there); `None` when no policy does.
    #[must_use]
    pub fn concerning<'a>(&self, namespace: &str, services: impl Iterator<Item = &'a str>) -> Option<Arc<Guard>> {
        if self.is_empty() {
            return None;
        }
        let mut concerned: OrdMap<Arc<str>, Arc<Policy>> = OrdMap::new();
        for service in std::iter::once("").chain(services) {
            let of = self.by_target.get(&*[namespace, "/", service].concat());
            concerned.extend(of.into_iter().flatten().map(|(key, policy)| (Arc::clone(key), Arc::clone(policy))));
        }
        (!concerned.is_empty()).then(|| Arc::new(Guard::new(concerned.values())))
    }
}

fn targets(policy: &Policy) -> impl Iterator<Item = Arc<str>> {
    let whole = policy.targets().is_empty().then_some("");
    let named = policy.targets().iter().map(|target| &**target);
    whole.into_iter().chain(named).map(|target| Arc::from([policy.namespace(), "/", target].concat()))
}

/// The policies that concern one target.
#[derive(Debug)]
pub struct Guard {
    enforced: Sorted,
    dry_run: Sorted,
    reads_source: bool,
    reads_path: bool,
    /// Policies in dry run read it: they get it in normal form, and nothing else changes.
    dry_run_reads_path: bool,
}

/// Policies by what they do, each in the order of their names.
#[derive(Debug, Default)]
struct Sorted {
    broken: Vec<Arc<Policy>>,
    deny: Vec<Arc<Policy>>,
    allow: Vec<Arc<Policy>>,
}

impl Guard {
    fn new<'a>(policies: impl Iterator<Item = &'a Arc<Policy>>) -> Self {
        let mut guard = Self {
            enforced: Sorted::default(),
            dry_run: Sorted::default(),
            reads_source: false,
            reads_path: false,
            dry_run_reads_path: false,
        };
        for policy in policies {
            let into = if policy.is_dry_run() { &mut guard.dry_run } else { &mut guard.enforced };
            match &policy.effect {
                Effect::Broken(_) => into.broken.push(Arc::clone(policy)),
                Effect::Rules { action, rules } => {
                    match action {
                        Action::Allow => into.allow.push(Arc::clone(policy)),
                        Action::Deny => into.deny.push(Arc::clone(policy)),
                    }
                    guard.reads_source |= rules.iter().any(CompiledRule::reads_source);
                    let reads_path = rules.iter().any(CompiledRule::reads_path);
                    if policy.is_dry_run() {
                        guard.dry_run_reads_path |= reads_path;
                    } else {
                        guard.reads_path |= reads_path;
                    }
                }
            }
        }
        guard
    }

    /// Whether a decision depends on who asks, so that the claim must be verified. Rules on nodes alone do not need it.
    #[must_use]
    pub fn reads_source(&self) -> bool {
        self.reads_source
    }

    /// Whether a decision depends on the path, so that it must be in normal form and forwarded so.
    #[must_use]
    pub fn reads_path(&self) -> bool {
        self.reads_path
    }

    /// Decides.
    #[must_use]
    pub fn decide(&self, source: &Source<'_>, target: &Target<'_>, operation: &Operation<'_>) -> Verdict {
        let asked = Asked { source, target, operation, path: self.path(operation) };
        let Self { enforced, dry_run, .. } = self;
        let deny =
            |by: &Arc<Policy>, reason| Verdict { denied_by: Some(Arc::clone(by.key())), reason, would_deny: None };
        if let Some(broken) = enforced.broken.first() {
            return deny(broken, "the policy is not accepted, so it denies every request");
        }
        if let Some(policy) = enforced.deny.iter().find(|policy| asked.is_matched_by(policy)) {
            return deny(policy, "the policy denies it");
        }
        let allowed = enforced.allow.iter().any(|policy| asked.is_matched_by(policy));
        if let Some(first) = enforced.allow.first()
            && !allowed
        {
            return deny(first, "no policy allows it");
        }
        // A path without a normal form would be refused.
        let ambiguous = !self.reads_path
            && self.dry_run_reads_path
            && matches!(operation, Operation::Http { path, .. } if normalise_path(path).is_err());
        let refusing = || dry_run.deny.first().or_else(|| dry_run.allow.first()).filter(|_| ambiguous);
        let would_deny = dry_run
            .broken
            .first()
            .or_else(refusing)
            .or_else(|| dry_run.deny.iter().find(|policy| asked.is_matched_by(policy)))
            .or_else(|| {
                // Were they enforced: any Allow that matches would do.
                let first = dry_run.allow.first().filter(|_| !allowed)?;
                (!dry_run.allow.iter().any(|policy| asked.is_matched_by(policy))).then_some(first)
            });
        Verdict { denied_by: None, reason: "", would_deny: would_deny.map(|policy| Arc::clone(policy.key())) }
    }

    /// The path as rules compare it.
    fn path<'a>(&self, operation: &Operation<'a>) -> Cow<'a, str> {
        match operation {
            Operation::Http { path, .. } if self.reads_path => decoded(path),
            Operation::Http { path, .. } if self.dry_run_reads_path => {
                normalise_path(path).map_or(Cow::Borrowed(""), |normal| Cow::Owned(decoded(&normal).into_owned()))
            }
            Operation::Http { .. } | Operation::Tunnel => Cow::Borrowed(""),
        }
    }
}

/// One request.
struct Asked<'a> {
    source: &'a Source<'a>,
    target: &'a Target<'a>,
    operation: &'a Operation<'a>,
    /// With its percent-encoding undone.
    path: Cow<'a, str>,
}

impl Asked<'_> {
    fn is_matched_by(&self, policy: &Policy) -> bool {
        match &policy.effect {
            Effect::Rules { action, rules } => rules.iter().any(|rule| self.matches(rule, *action)),
            Effect::Broken(_) => false,
        }
    }

    fn matches(&self, rule: &CompiledRule, action: Action) -> bool {
        let CompiledRule { from, to, when } = rule;
        // What cannot be told counts as what denies.
        let unknown = action == Action::Deny;
        // Who claims to be somebody may be anybody to what denies.
        let anybody = unknown && self.source.doubtful;
        (from.is_empty() || from.iter().any(|origin| self.comes_from(origin, anybody)))
            && (to.is_empty() || to.iter().any(|request| self.asks_for(request, unknown)))
            && when.as_ref().is_none_or(|condition| {
                anybody && rule.reads_source()
                    || condition.evaluate(self.source, self.target, self.operation).unwrap_or(unknown)
            })
    }

    fn comes_from(&self, origin: &Origin, anybody: bool) -> bool {
        let Origin { accounts, namespaces, nodes, identified } = origin;
        let workload = self.source.workload.as_ref();
        let of_account = || {
            accounts.as_ref().is_none_or(|accounts| {
                let Some(workload) = workload else { return false };
                let of = accounts.get(workload.namespace);
                of.is_some_and(|of| of.all || of.names.contains(workload.service_account))
            })
        };
        let of_namespace =
            || namespaces.as_ref().is_none_or(|all| workload.is_some_and(|workload| all.contains(workload.namespace)));
        (anybody || identified.is_none_or(|identified| identified == workload.is_some()))
            && nodes.as_ref().is_none_or(|nodes| nodes.contains(self.source.node))
            && (anybody || of_account())
            && (anybody || of_namespace())
    }

    fn asks_for(&self, request: &Request, unknown: bool) -> bool {
        let Request { methods, paths, ports, hosts } = request;
        if !ports.as_ref().is_none_or(|ports| ports.contains(&self.target.port)) {
            return false;
        }
        match self.operation {
            Operation::Http { method, host, .. } => {
                methods.as_ref().is_none_or(|methods| methods.contains(*method))
                    && paths.as_ref().is_none_or(|paths| paths.contain(&self.path))
                    && hosts.as_ref().is_none_or(|hosts| hosts.contain(host))
            }
            Operation::Tunnel => unknown || (methods.is_none() && paths.is_none() && hosts.is_none()),
        }
    }
}

impl CompiledRule {
    /// Nodes are known without asking.
    fn reads_source(&self) -> bool {
        let reads =
            |origin: &Origin| origin.accounts.is_some() || origin.namespaces.is_some() || origin.identified.is_some();
        self.from.iter().any(reads) || self.when.as_ref().is_some_and(|when| when.reads_source)
    }

    fn reads_path(&self) -> bool {
        self.to.iter().any(|request| request.paths.is_some()) || self.when.as_ref().is_some_and(|when| when.reads_path)
    }
}

impl Paths {
    fn contain(&self, path: &str) -> bool {
        let below =
            |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.exact.contains(path) || self.prefixes.iter().any(|prefix| below(prefix))
    }
}

impl Hosts {
    fn contain(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        let ends = |suffix: &str| {
            host.len() > suffix.len()
                && host
                    .as_bytes()
                    .get(host.len() - suffix.len()..)
                    .is_some_and(|end| end.eq_ignore_ascii_case(suffix.as_bytes()))
        };
        self.exact.iter().any(|exact| exact.eq_ignore_ascii_case(host))
            || self.suffixes.iter().any(|suffix| ends(suffix))
    }
}
