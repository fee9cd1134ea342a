//! Holds charts/posthouse against the program: permissions, variables, defaults, the words about each value. What takes Helm to
//! see (that it renders, what it refuses) is in e2e/kubernetes/test_chart.py. `UPDATE_REFERENCE=1 cargo test -p posthouse
//! --test chart` writes anew the tables that are made here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a helper fails its test")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "chart/controller.rs"]
mod controller;

use kube::CustomResourceExt;
use posthouse_discovery::{PERMISSIONS, Permission, TLS_PERMISSIONS};
use posthouse_policy::AuthorizationPolicy;
use serde_json::Value as Json;
use serde_norway::{Mapping, Value as Yaml};

const UPDATE: &str = "UPDATE_REFERENCE=1 cargo test -p posthouse --test chart";

/// A file of the repository.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn template(name: &str) -> String {
    read(&format!("charts/posthouse/templates/{name}"))
}

/// Every template's name and text.
fn templates() -> Vec<(String, String)> {
    let entries = std::fs::read_dir(path("charts/posthouse/templates")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.map(|name| (name.clone(), template(&name))).collect()
}

/// Compares a section of a page with what it must be, or writes it.
fn hold(page: &str, section: &str, wanted: &str) {
    let text = read(page);
    let (begin, end) = (format!("<!-- begin {section} -->\n"), format!("<!-- end {section} -->"));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("no {begin:?} in {page}"));
    let (found, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end:?} in {page}"));
    let wanted = format!("\n{wanted}\n");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(path(page), format!("{before}{begin}{wanted}{end}{after}")).unwrap();
        return;
    }
    for (found, wanted) in found.lines().zip(wanted.lines()) {
        assert_eq!(found, wanted, "{page}; {UPDATE}");
    }
    assert_eq!(found, wanted, "{page}; {UPDATE}");
}

/// Text as the cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// Group, resource and verb of every right that these rules grant.
fn granted(rules: &str) -> BTreeSet<(String, String, String)> {
    assert!(!rules.contains("{{"), "the rules must be plain YAML, so that they can be compared");
    let rules: Vec<Mapping> = serde_norway::from_str(rules).unwrap();
    let mut granted = BTreeSet::new();
    for rule in &rules {
        let keys: Vec<&str> = rule.keys().map(|key| key.as_str().unwrap()).collect();
        assert_eq!(keys, ["apiGroups", "resources", "verbs"]);
        let words = |key: &str| rule[key].as_sequence().unwrap().iter().map(|word| word.as_str().unwrap().to_owned());
        for group in words("apiGroups") {
            for resource in words("resources") {
                for verb in words("verbs") {
                    let right = (group.clone(), resource.clone(), verb);
                    assert!(granted.insert(right.clone()), "{right:?} is granted twice");
                }
            }
        }
    }
    granted
}

fn needed(permissions: &[Permission]) -> BTreeSet<(String, String, String)> {
    let verbs = |p: &Permission| -> Vec<_> {
        p.verbs.iter().map(|verb| (p.group.to_owned(), p.resource.to_owned(), verb.as_str().to_owned())).collect()
    };
    permissions.iter().flat_map(verbs).collect()
}

#[test]
fn the_roles_grant_what_the_program_asks_for_and_nothing_else() {
    let text = template("clusterrole.yaml");
    let (_, rules) = text.split_once("\nrules:\n").expect("clusterrole.yaml has rules");
    let rules = rules.trim_end().strip_suffix("{{- end }}").expect("the rules are the template's end");
    assert_eq!(
        granted(rules),
        needed(&PERMISSIONS),
        "clusterrole.yaml (left) and posthouse_discovery::PERMISSIONS (right)"
    );
    let text = template("tls-roles.yaml");
    let (_, rules) = text.split_once("\nrules:\n").expect("tls-roles.yaml has rules");
    let (rules, _) = rules.split_once("\n---\n").expect("the binding follows");
    assert_eq!(
        granted(rules),
        needed(&TLS_PERMISSIONS),
        "tls-roles.yaml (left) and posthouse_discovery::TLS_PERMISSIONS (right)"
    );
    // There is no other role with more; those for certificates are held by chart/controller.rs.
    let others = |name: &str| !name.starts_with("controller-") && !name.starts_with("identity-");
    for (name, text) in templates().into_iter().filter(|(name, _)| others(name)) {
        let roles = text.lines().filter(|line| matches!(line.trim(), "kind: Role" | "kind: ClusterRole")).count();
        // The bindings name the roles, too.
        let wanted = match name.as_str() {
            "clusterrole.yaml" | "clusterrolebinding.yaml" => 1,
            "tls-roles.yaml" => 2,
            _ => 0,
        };
        assert_eq!(roles, wanted, "{name}");
    }
}

fn permissions(all: &[Permission]) -> String {
    let mut table = String::from("| resource | verbs | what for |\n|---|---|---|\n");
    for permission in all {
        let resource = match permission.group {
            "" => permission.resource.to_owned(),
            group => format!("{}.{group}", permission.resource),
        };
        let verbs: Vec<&str> = permission.verbs.iter().map(|verb| verb.as_str()).collect();
        writeln!(table, "| `{resource}` | {} | {} |", verbs.join(", "), cell(permission.why)).unwrap();
    }
    table
}

#[test]
fn the_page_on_discovery_lists_the_permissions() {
    hold("docs/discovery.md", "permissions", &permissions(&PERMISSIONS));
    hold("docs/discovery.md", "tls permissions", &permissions(&TLS_PERMISSIONS));
}

/// A flag of `posthouse run` as docs/reference.md has it, which is itself held against the code.
struct Flag {
    name: String,
    variable: String,
    default: String,
    help: String,
}

fn flags() -> Vec<Flag> {
    let page = read("docs/reference.md");
    let (_, rest) = page.split_once("<!-- begin flags -->").unwrap();
    let (table, _) = rest.split_once("<!-- end flags -->").unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `--"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let name = cells[0].trim_matches('`').split(' ').next().unwrap();
        let plain = |cell: &str| cell.trim_matches('`').to_owned();
        Flag { name: name.to_owned(), variable: plain(cells[1]), default: plain(cells[2]), help: plain(cells[3]) }
    })
    .collect()
}

#[test]
fn every_flag_is_set_by_the_chart_or_left_alone_on_purpose() {
    /// Where the default is right in a pod: the source is `kube`; the ports are fixed, since an address with a port
    /// of one's own cannot be made of `status.hostIPs` in a manifest. Certificates from files are for nodes outside of a
    /// cluster.
    const LEFT: [&str; 8] = [
        "POSTHOUSE_TLS_CERT",
        "POSTHOUSE_TLS_KEY",
        "POSTHOUSE_TLS_CA",
        "POSTHOUSE_SOURCE",
        "POSTHOUSE_OUTBOUND_LISTEN",
        "POSTHOUSE_LINK_LISTEN",
        "POSTHOUSE_ADMIN_LISTEN",
        "POSTHOUSE_METRICS_LISTEN",
    ];
    let text = template("daemonset.yaml");
    let set: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- name: "))
        .filter(|n| n.starts_with("POSTHOUSE_"))
        .collect();
    let flags = flags();
    let known: BTreeSet<&str> = flags.iter().map(|flag| flag.variable.as_str()).collect();
    for variable in &set {
        assert!(known.contains(variable), "daemonset.yaml sets {variable}, which posthouse run does not read");
        for taken in ["POSTHOUSE_PORT", "POSTHOUSE_SERVICE_"] {
            assert!(!variable.starts_with(taken), "Kubernetes itself sets {variable} beside a Service posthouse");
        }
    }
    for variable in known {
        let (set, left) = (set.contains(variable), LEFT.contains(&variable));
        assert!(set || left, "posthouse run reads {variable}: set it in daemonset.yaml or name it here with a reason");
        assert!(!(set && left), "{variable} is set by daemonset.yaml and said to be left alone");
    }
}

#[test]
fn no_port_is_declared() {
    let text = template("daemonset.yaml");
    for line in text.lines().map(str::trim) {
        for word in ["ports:", "containerPort", "hostPort"] {
            assert!(!line.trim_start_matches("- ").starts_with(word), "a surge pod could not be scheduled: {line}");
        }
    }
}

#[test]
fn the_chart_has_the_programs_version() {
    let chart: Mapping = serde_norway::from_str(&read("charts/posthouse/Chart.yaml")).unwrap();
    for key in ["version", "appVersion"] {
        assert_eq!(chart[key].as_str(), Some(env!("CARGO_PKG_VERSION")), "Chart.yaml: {key}");
    }
}

#[test]
fn the_notes_show_what_posthouse_env_prints() {
    let output = Command::new(env!("CARGO_BIN_EXE_posthouse")).args(["env", "--indent", "5"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let wanted = String::from_utf8(output.stdout).unwrap().replace("cluster.local", "{{ .Values.clusterDomain }}");
    let notes = template("NOTES.txt");
    let begin = notes.find("     env:\n").expect("NOTES.txt has an env block");
    let (before, rest) = notes.split_at(begin);
    let (found, after) = rest.split_at(rest.find("\n\n").unwrap() + 1);
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(path("charts/posthouse/templates/NOTES.txt"), format!("{before}{wanted}{after}")).unwrap();
        return;
    }
    assert_eq!(found, wanted, "NOTES.txt; {UPDATE}");
}

fn schema() -> Json {
    serde_json::from_str(&read("charts/posthouse/values.schema.json")).unwrap()
}

fn values() -> Mapping {
    serde_norway::from_str(&read("charts/posthouse/values.yaml")).unwrap()
}

/// One value, or a group of them, in the order of values.yaml.
struct Row {
    name: String,
    /// As the schema has it; none for a group.
    default: Option<Json>,
    description: String,
    choices: Vec<String>,
}

/// Goes through values.yaml and the schema together; what one has and the other has not fails.
fn rows(schema: &Json, values: &Mapping, above: &str, to: &mut Vec<Row>) {
    let properties = schema["properties"].as_object().unwrap();
    for name in properties.keys() {
        assert!(values.contains_key(name.as_str()), "{above}{name} is in values.schema.json, not in values.yaml");
    }
    for (name, value) in values {
        let name = name.as_str().unwrap();
        let full = format!("{above}{name}");
        let property =
            properties.get(name).unwrap_or_else(|| panic!("{full} is in values.yaml, not in values.schema.json"));
        let choices = property["enum"].as_array().into_iter().flatten().filter_map(Json::as_str);
        to.push(Row {
            name: full.clone(),
            default: property.get("default").cloned(),
            description: property["description"].as_str().unwrap_or_default().to_owned(),
            choices: choices.map(|choice| format!("`{choice}`")).collect(),
        });
        match property.get("default") {
            Some(default) => {
                assert_eq!(
                    *default,
                    serde_json::to_value(value).unwrap(),
                    "{full}: default in the schema and values.yaml"
                );
            }
            None => rows(property, value.as_mapping().unwrap(), &format!("{full}."), to),
        }
    }
}

fn all_rows() -> Vec<Row> {
    let mut all = Vec::new();
    rows(&schema(), &values(), "", &mut all);
    all
}

#[test]
fn every_value_is_described_and_has_its_default() {
    for Row { name, description, .. } in all_rows() {
        assert!(description.ends_with('.'), "{name} needs a description in whole sentences: {description:?}");
    }
    described(&schema(), "values");
}

/// Everything below a schema is described, and nothing unknown passes.
fn described(schema: &Json, at: &str) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        assert!(property["description"].as_str().is_some_and(|text| text.len() > 5), "{at} is not described");
        assert!(property.get("type").or(property.get("enum")).is_some(), "{at} takes anything");
        described(property, &at);
    }
    if schema.get("properties").is_some() {
        assert_eq!(schema["additionalProperties"], false, "{at} lets typing errors pass");
    }
    if let Some(items) = schema.get("items") {
        described(items, &format!("{at}[]"));
    }
}

#[test]
fn the_readme_lists_the_values() {
    let mut table = String::from("| value | default | meaning |\n|---|---|---|\n");
    for Row { name, default, description, choices } in all_rows().into_iter().filter(|row| row.name != "global") {
        let choices = if choices.is_empty() { String::new() } else { format!(" One of {}.", choices.join(", ")) };
        match default {
            Some(default) => {
                writeln!(table, "| `{name}` | `{default}` | {}{choices} |", cell(&description)).unwrap();
            }
            None => writeln!(table, "| **`{name}`** | | {} |", cell(&description)).unwrap(),
        }
    }
    hold("charts/posthouse/README.md", "values", &table);
}

#[test]
fn values_have_the_defaults_and_choices_of_their_flags() {
    let flags = flags();
    let rows = all_rows();
    let named = |flag: &str, value: &str| {
        let flag = flags.iter().find(|f| f.name == flag).unwrap_or_else(|| panic!("no flag {flag}"));
        let row = rows.iter().find(|row| row.name == value).unwrap_or_else(|| panic!("no value {value}"));
        (flag, row)
    };
    for (flag, value) in [("--cluster-domain", "clusterDomain"), ("--log", "log.level"), ("--log-format", "log.format")]
    {
        let (flag, row) = named(flag, value);
        assert_eq!(row.default.as_ref().and_then(Json::as_str), Some(flag.default.as_str()), "{value}");
        if !row.choices.is_empty() {
            let choices = row.choices.join(", ");
            assert!(
                flag.help.contains(&format!("One of {choices}")),
                "{value}: {choices} {}: {}",
                flag.name,
                flag.help
            );
        }
    }
    // Empty is the flag's own default, which goes by tls.
    let (missing_peer, row) = named("--missing-peer", "missingPeer");
    assert_eq!(row.choices[0], "``");
    let choices = format!("One of {}.", row.choices[1..].join(", "));
    assert!(missing_peer.help.ends_with(&choices), "missingPeer: {choices} {}", missing_peer.help);
    assert_eq!(row.default, Some(Json::from("")));
    // The program alone has nobody who signs; the chart brings the controller.
    let (tls, row) = named("--tls", "tls");
    assert_eq!((tls.default.as_str(), row.default.as_ref().and_then(Json::as_str)), ("off", Some("node")));
    assert!(tls.help.contains(&format!("One of {}", row.choices.join(", "))), "tls: {}", tls.help);
    let (_, trust_domain) = (named("--tls-permissive", "tlsPermissive"), named("--trust-domain", "trustDomain"));
    assert_eq!(trust_domain.1.default.as_ref().and_then(Json::as_str), Some(trust_domain.0.default.as_str()));
    let (drain, row) = named("--drain", "drainSeconds");
    assert_eq!(format!("{}s", row.default.as_ref().unwrap()), drain.default);
}

/// The definition as the types have it, in Helm's clothes.
#[test]
fn the_crd_is_that_of_the_program() {
    const FILE: &str = "charts/posthouse/templates/crd-authorizationpolicies.yaml";
    const HEAD: &str = "\
{{- if .Values.crds.install }}
# Made from the types in crates/policy/src/resource.rs; UPDATE_REFERENCE=1 cargo test -p posthouse --test chart writes it anew.
";
    let crd = serde_json::to_value(AuthorizationPolicy::crd()).unwrap();
    assert_eq!(crd["metadata"], serde_json::json!({"name": "authorizationpolicies.posthouse.io"}));
    let spec = serde_norway::to_string(&serde_json::json!({"spec": crd["spec"]})).unwrap();
    assert!(!spec.contains("{{"), "Helm would read it as a template");
    let wanted = format!(
        "{HEAD}apiVersion: {}
kind: {}
metadata:
  name: authorizationpolicies.posthouse.io
  labels:
    {{{{- include \"posthouse.labels\" (dict \"root\" . \"component\" \"proxy\") | nindent 4 }}}}
  annotations:
    # With the definition every policy would go.
    helm.sh/resource-policy: keep
{spec}{{{{- end }}}}
",
        crd["apiVersion"].as_str().unwrap(),
        crd["kind"].as_str().unwrap(),
    );
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(path(FILE), wanted).unwrap();
        return;
    }
    let found = read(FILE);
    for (found, wanted) in found.lines().zip(wanted.lines()) {
        assert_eq!(found, wanted, "{FILE}; {UPDATE}");
    }
    assert_eq!(found, wanted, "{FILE}; {UPDATE}");
}

/// What the API server demands of a structural schema, as far as our types could break it, and that each field is explained.
#[test]
fn the_crd_can_be_installed() {
    fn walk(schema: &Json, at: &str, count: &mut usize) {
        for word in ["$ref", "definitions", "anyOf", "oneOf", "allOf", "const", "$defs"] {
            assert!(schema.get(word).is_none(), "{at} has {word}");
        }
        assert!(schema["type"].is_string(), "{at} has no type");
        assert_ne!(schema.get("additionalProperties"), Some(&Json::Bool(false)), "{at}: properties exclude it");
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            *count += 1;
            let at = format!("{at}.{name}");
            let explained = property["description"].as_str().is_some_and(|text| text.len() > 5);
            assert!(explained || at.starts_with(".status.conditions[]"), "{at} is not described");
            walk(property, &at, count);
        }
        if let Some(items) = schema.get("items") {
            assert!(schema["maxItems"].is_u64() || at.starts_with(".status"), "{at} has no bound");
            walk(items, &format!("{at}[]"), count);
        }
    }
    let crd = serde_json::to_value(AuthorizationPolicy::crd()).unwrap();
    let version = &crd["spec"]["versions"][0];
    let properties = &version["schema"]["openAPIV3Schema"]["properties"];
    let mut count = 0;
    for part in ["spec", "status"] {
        walk(&properties[part], &format!(".{part}"), &mut count);
    }
    assert!(count > 20, "{count} fields");
    assert_eq!(version["subresources"], serde_json::json!({"status": {}}));
    let columns: Vec<&str> =
        version["additionalPrinterColumns"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Action", "DryRun", "Accepted", "Age"]);
}

#[test]
fn examples_are_yaml() {
    for entry in std::fs::read_dir(path("charts/posthouse/examples")).unwrap() {
        let file = entry.unwrap().path();
        let example: Yaml = serde_norway::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(example["kind"], "NetworkPolicy", "{}", file.display());
    }
}
