//! The built program's command line: what a newcomer meets first. Each case starts the program and looks at its exit
//! code and its output.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a helper fails its test")]

use std::process::{Command, Output};

fn posthouse(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthouse"));
    command.args(arguments).env_clear().envs(variables.iter().copied());
    command.output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line of an error.
fn line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.stdout.is_empty(), "errors go to stderr");
    assert!(text.ends_with('\n') && text.lines().count() == 1, "one line: {text:?}");
    text
}

#[test]
fn help_and_version_are_answers_not_errors() {
    for arguments in [&["--help"][..], &["run", "--help"], &["run", "-h"], &["check", "--help"], &["env", "--help"]] {
        let output = posthouse(arguments, &[]);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(stdout(&output).contains("Usage: posthouse"), "{arguments:?}");
    }
    let output = posthouse(&["--version"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let version = stdout(&output);
    assert!(version.starts_with(concat!("posthouse ", env!("CARGO_PKG_VERSION"), " (commit ")), "{version}");
}

#[test]
fn the_help_shows_every_variable_and_its_groups() {
    let help = stdout(&posthouse(&["run", "--help"], &[]));
    for word in ["Node:", "Discovery:", "Listeners:", "Requests:", "Security:", "Logs:", "POSTHOUSE_DRAIN", "NODE_IP"] {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn what_is_wrong_is_said_on_one_line_with_exit_code_64() {
    let node = ["--node-name=a", "--node-ip=127.0.0.1"];
    let cases: &[(&[&str], &str)] = &[
        (&[], "'posthouse --help' lists them"),
        (&["walk"], "'walk'"),
        (&["run"], "--node-name"),
        (&["run", "--frobnicate"], "'--frobnicate'"),
        (&["env", "--frobnicate"], "'posthouse env --help'"),
        (&["env", "--container=app"], "--format patch"),
        (&["env", "--no-proxy=https://foo.com/"], "write the name alone, foo.com, without scheme, path or port"),
        (&["run", node[0], node[1], "--tls=node", "--source=dir:/tmp"], "--tls-cert, --tls-key and --tls-ca"),
        (
            &["run", node[0], node[1], "--tls=node", "--tls-cert=/nonexistent/c", "--tls-key=k", "--tls-ca=r"],
            "--tls-cert /nonexistent/c: No such file",
        ),
        (
            &[
                "run",
                node[0],
                node[1],
                "--tls=node",
                "--tls-cert=/dev/null",
                "--tls-key=/dev/null",
                "--tls-ca=/dev/null",
            ],
            "--tls-cert /dev/null: no certificate is in it; it must have the node's certificate in PEM",
        ),
        (&["run", node[0], node[1], "--source=dir:/nonexistent/manifests"], "/nonexistent/manifests"),
        (&["run", node[0], node[1], "--source=dir:/proc/version"], "/proc/version"),
    ];
    for (arguments, word) in cases {
        let output = posthouse(arguments, &[]);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", line(&output));
        let line = line(&output);
        assert!(line.starts_with("posthouse: ") && line.contains(word), "{arguments:?}: {line}");
    }
}

#[test]
fn a_wrong_variable_is_named_as_such() {
    let output = posthouse(&["run"], &[("POSTHOUSE_WORKERS", "many")]);
    assert_eq!(output.status.code(), Some(64));
    let line = line(&output);
    assert!(line.contains("--workers") && line.contains("POSTHOUSE_WORKERS"), "{line}");
    let output = posthouse(&["run", "--workers=many"], &[("POSTHOUSE_WORKERS", "2")]);
    assert!(!self::line(&output).contains("POSTHOUSE_WORKERS"), "the flag was wrong, not the variable");
}

#[test]
fn an_address_that_cannot_be_listened_on_is_named_with_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let source = format!("--source=dir:{}", folder.path().display());
    let arguments = ["run", "--node-name=a", "--node-ip=192.0.2.1", &source];
    let output = posthouse(&arguments, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(line(&output).contains("192.0.2.1:4141"), "{}", line(&output));
}
