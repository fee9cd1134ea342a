//! What the chart has for certificates: the controller's and the nodes' roles, the controller's variables.

use std::collections::BTreeSet;
use std::fmt::Write;

use posthouse_identity::kube::PERMISSIONS as NODE;
use posthouse_model::issuance::{Grant, Scope};
use serde_norway::Mapping;

use super::{cell, hold, path, read, template, templates};

/// Group, resource, name (none for all) and verb.
type Right = (String, String, Option<String>, String);

/// The rights that a role of the chart grants.
fn granted(name: &str, scope: Scope) -> BTreeSet<Right> {
    let text = template(name);
    let (head, rules) = text.split_once("\nrules:\n").unwrap_or_else(|| panic!("{name} has no rules"));
    assert_eq!(head.contains("\nkind: Role\n"), scope == Scope::Namespace, "{name}");
    let rules = rules.trim_end().strip_suffix("{{- end }}").unwrap_or_else(|| panic!("{name}: the rules are its end"));
    assert!(!rules.contains("{{"), "{name}: the rules must be plain YAML, so that they can be compared");
    let rules: Vec<Mapping> = serde_norway::from_str(rules).unwrap();
    let mut granted = BTreeSet::new();
    for rule in &rules {
        let words = |key: &str| -> Vec<String> {
            let words = rule.get(key).and_then(|words| words.as_sequence());
            words.into_iter().flatten().map(|word| word.as_str().unwrap().to_owned()).collect()
        };
        let names = match words("resourceNames") {
            names if names.is_empty() => vec![None],
            names => names.into_iter().map(Some).collect(),
        };
        for group in words("apiGroups") {
            for resource in words("resources") {
                for name in &names {
                    for verb in words("verbs") {
                        let right = (group.clone(), resource.clone(), name.clone(), verb);
                        assert!(granted.insert(right.clone()), "{right:?} is granted twice");
                    }
                }
            }
        }
    }
    granted
}

/// The rights that the program needs.
fn needed(grants: &[Grant], scope: Scope) -> BTreeSet<Right> {
    let mut needed = BTreeSet::new();
    for grant in grants.iter().filter(|grant| grant.scope == scope) {
        let names: Vec<Option<String>> = match grant.names {
            [] => vec![None],
            names => names.iter().map(|name| Some((*name).to_owned())).collect(),
        };
        for name in names {
            for verb in grant.verbs {
                needed.insert((grant.group.to_owned(), grant.resource.to_owned(), name.clone(), (*verb).to_owned()));
            }
        }
    }
    needed
}

#[test]
fn roles_grant_what_the_program_asks_for_and_nothing_else() {
    for (file, grants, scope) in [
        ("controller-clusterrole.yaml", posthouse_controller::PERMISSIONS, Scope::Cluster),
        ("controller-role.yaml", posthouse_controller::PERMISSIONS, Scope::Namespace),
        ("identity-clusterrole.yaml", NODE, Scope::Cluster),
        ("identity-role.yaml", NODE, Scope::Namespace),
    ] {
        assert_eq!(granted(file, scope), needed(grants, scope), "{file} (left) and PERMISSIONS (right)");
    }
    // Each has its binding, and there is no other.
    let ours = |name: &str| name.starts_with("controller-") || name.starts_with("identity-");
    let roles: BTreeSet<String> =
        templates().into_iter().map(|(name, _)| name).filter(|name| ours(name) && name.contains("role")).collect();
    let wanted = ["controller", "identity"].iter().flat_map(|of| {
        ["clusterrole", "clusterrolebinding", "role", "rolebinding"].map(|kind| format!("{of}-{kind}.yaml"))
    });
    assert_eq!(roles, wanted.collect());
}

#[test]
fn the_page_on_security_lists_the_permissions() {
    for (section, grants) in
        [("controller permissions", posthouse_controller::PERMISSIONS), ("identity permissions", NODE)]
    {
        let mut table = String::from("| resource | where | verbs | what for |\n|---|---|---|---|\n");
        for Grant { scope, group, resource, names, verbs, why } in grants {
            let resource = if group.is_empty() { (*resource).to_owned() } else { format!("{resource}.{group}") };
            let scope = if *scope == Scope::Cluster { "cluster" } else { "namespace" };
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            let names = if names.is_empty() { String::new() } else { format!(" {}", names.join(", ")) };
            writeln!(table, "| `{resource}`{names} | {scope} | {} | {} |", verbs.join(", "), cell(why)).unwrap();
        }
        hold("docs/security.md", section, &table);
    }
}

#[test]
fn every_flag_of_the_controller_is_set() {
    let page = read("docs/reference.md");
    let (_, rest) = page.split_once("<!-- begin controller flags -->").unwrap();
    let (table, _) = rest.split_once("<!-- end controller flags -->").unwrap();
    let cells = |row: &str, column: usize| row.split('|').nth(column).unwrap().trim().trim_matches('`').to_owned();
    let flags: BTreeSet<String> =
        table.lines().filter(|line| line.starts_with("| `--")).map(|row| cells(row, 2)).collect();
    let text = template("controller-deployment.yaml");
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("- name: "));
    let mut set: BTreeSet<String> = names.filter(|name| name.starts_with("POSTHOUSE_")).map(str::to_owned).collect();
    // From the pod's address the port is made.
    assert!(set.remove("POSTHOUSE_POD_IP"));
    set.insert("POSTHOUSE_METRICS_LISTEN".to_owned());
    assert_eq!(set, flags, "controller-deployment.yaml (left) and posthouse controller (right)");
    let values: Mapping = serde_norway::from_str(&read("charts/posthouse/values.yaml")).unwrap();
    for (variable, value) in [
        ("POSTHOUSE_CA", "ca"),
        ("POSTHOUSE_CA_LIFETIME", "caLifetime"),
        ("POSTHOUSE_CERTIFICATE_LIFETIME", "certificateLifetime"),
    ] {
        let row = table.lines().find(|line| line.contains(&format!("`{variable}`"))).unwrap();
        assert_eq!(values["controller"][value].as_str(), Some(cells(row, 3).as_str()), "controller.{value}");
    }
    assert!(path("docs/security.md").exists());
}
