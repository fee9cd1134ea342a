//! Holds docs/reference.md against the code: the tables of flags, metrics, admin paths and error tokens are made here and
//! must stand in the page as they are. `UPDATE_REFERENCE=1 cargo test -p posthouse reference` writes them anew.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Arg, CommandFactory};
use posthouse_model::MetricDoc;
use posthouse_proxy::ErrorKind;

use crate::admin::{PATHS, PathDoc};
use crate::args::Cli;
use crate::{check, telemetry};

/// The sections that are made from the code, by the name in their marker.
fn sections() -> [(&'static str, String); 8] {
    [
        ("flags", flags("run")),
        ("controller flags", flags("controller")),
        ("check flags", typed_flags("check")),
        ("checks", checks()),
        ("env flags", typed_flags("env")),
        ("paths", paths()),
        ("metrics", metrics()),
        ("errors", errors()),
    ]
}

/// The flags of a subcommand that runs as a service, with their variables.
fn flags(subcommand: &str) -> String {
    let cli = Cli::command();
    let command = cli.find_subcommand(subcommand).unwrap();
    let mut text = String::new();
    let mut heading = "";
    for arg in command.get_arguments().filter(|arg| arg.get_id() != "help") {
        let group = arg.get_help_heading().unwrap_or("All");
        if group != heading {
            writeln!(text, "\n### {group}\n\n| flag | variable | default | meaning |\n|---|---|---|---|").unwrap();
            heading = group;
        }
        let value = match arg.get_action().takes_values() {
            true => format!(" {}", arg.get_value_names().unwrap()[0]),
            false => String::new(),
        };
        let env = arg.get_env().unwrap().to_str().unwrap();
        let (help, default) = help_and_default(arg);
        writeln!(text, "| `--{}{value}` | `{env}` | {default} | {} |", arg.get_long().unwrap(), cell(&help)).unwrap();
    }
    text
}

/// The flags of a subcommand that people type, so that none has a variable.
fn typed_flags(subcommand: &str) -> String {
    let cli = Cli::command();
    let command = cli.find_subcommand(subcommand).unwrap();
    let mut text = String::from("\n| flag | default | meaning |\n|---|---|---|\n");
    for arg in command.get_arguments().filter(|arg| arg.get_id() != "help") {
        assert!(arg.get_env().is_none(), "{arg}: it would have to stand in the table");
        let (help, default) = help_and_default(arg);
        let (value, default) = match arg.get_action().takes_values() {
            true => (format!(" {}", arg.get_value_names().unwrap()[0]), default),
            false => (String::new(), "off".to_owned()),
        };
        writeln!(text, "| `--{}{value}` | {default} | {} |", arg.get_long().unwrap(), cell(&help)).unwrap();
    }
    text
}

/// The help in one paragraph and, taken out of it, the default.
fn help_and_default(arg: &Arg) -> (String, String) {
    let help = arg.get_long_help().or(arg.get_help()).unwrap().to_string();
    let mut default = arg.get_default_values().iter().map(|v| format!("`{}`", v.to_str().unwrap())).collect::<String>();
    let mut sentences: Vec<String> = Vec::new();
    for part in help.split("\n\n") {
        match part.trim().strip_prefix("[default: ").and_then(|rest| rest.strip_suffix(']')) {
            Some(text) => text.clone_into(&mut default),
            None => sentences.push(format!("{}.", part.trim().trim_end_matches('.'))),
        }
    }
    let choices: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set() && arg.get_action().takes_values())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !choices.is_empty() {
        sentences.push(format!("One of {}.", choices.join(", ")));
    }
    if default.is_empty() {
        default = "none: required".into();
    }
    (sentences.join(" "), cell(&default))
}

fn checks() -> String {
    let mut text = String::from("\n| check | what it looks at |\n|---|---|\n");
    for (id, help) in check::Id::ALL {
        writeln!(text, "| `{}` | {} |", id.as_str(), cell(help)).unwrap();
    }
    text
}

fn paths() -> String {
    let mut text = String::from("\n| path | what |\n|---|---|\n");
    for PathDoc { path, help } in PATHS {
        writeln!(text, "| `{path}` | {} |", cell(help)).unwrap();
    }
    text
}

fn metrics() -> String {
    let mut text = String::new();
    let parts = [
        ("Requests and links", posthouse_proxy::METRICS),
        ("Link security", posthouse_identity::METRICS),
        ("Directory and process", telemetry::METRICS),
        ("Controller", posthouse_controller::METRICS),
    ];
    for (heading, docs) in parts {
        writeln!(text, "\n### {heading}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|").unwrap();
        for MetricDoc { name, kind, labels, help } in docs {
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            writeln!(text, "| `{name}` | {kind} | {} | {} |", labels.join(", "), cell(help)).unwrap();
        }
    }
    text
}

fn errors() -> String {
    let mut text = String::from("\n| token | HTTP status | gRPC status |\n|---|---|---|\n");
    for kind in ErrorKind::ALL {
        writeln!(text, "| `{}` | {} | {} |", kind.token(), kind.status().as_u16(), kind.grpc_status()).unwrap();
    }
    text
}

/// Text as the cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn page_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference.md")
}

/// Puts each section between its markers.
fn updated(page: &str) -> String {
    let mut page = page.to_owned();
    for (name, content) in sections() {
        let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
        let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no {begin:?} in the page"));
        let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end:?} in the page"));
        page = format!("{before}{begin}{content}\n{end}{after}");
    }
    page
}

#[test]
fn the_reference_page_says_what_the_code_does() {
    let path = page_path();
    let page = std::fs::read_to_string(&path).unwrap();
    let wanted = updated(&page);
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, wanted).unwrap();
        return;
    }
    for (line, (found, wanted)) in page.lines().zip(wanted.lines()).enumerate() {
        assert_eq!(
            found,
            wanted,
            "docs/reference.md:{}; UPDATE_REFERENCE=1 cargo test -p posthouse reference",
            line + 1
        );
    }
    assert_eq!(page, wanted, "docs/reference.md; UPDATE_REFERENCE=1 cargo test -p posthouse reference");
}

#[test]
fn metric_names_are_single_and_carry_their_unit() {
    let docs: Vec<MetricDoc> =
        [posthouse_proxy::METRICS, posthouse_identity::METRICS, posthouse_controller::METRICS, telemetry::METRICS]
            .concat();
    let mut names: Vec<&str> = docs.iter().map(|doc| doc.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    for doc in docs {
        assert_eq!(
            doc.kind == "counter",
            doc.name.ends_with("_total"),
            "{}: counters, and only they, end in _total",
            doc.name
        );
        assert!(matches!(doc.kind, "counter" | "gauge" | "histogram"), "{}: {}", doc.name, doc.kind);
        assert!(!doc.help.is_empty() && !doc.help.contains('\n'), "{}", doc.name);
    }
}
