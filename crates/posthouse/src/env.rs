//! `posthouse env`: the environment that sends a workload's requests through its node's proxy, as text for a manifest or a
//! patch. Nothing is injected anywhere: what it prints is all there is to it, and the README shows the same text.

use std::fmt::Write;

use crate::args::{EnvArgs, EnvFormat};

/// What a client must reach without the proxy, in the spellings that clients agree on.
///
/// - No brackets around IPv6 addresses and no IPv6 networks: Python's httpx fails at the start on either. A bare `::1`
///   is right for curl, Go, Python and, since 2026, undici.
/// - Each of the API server's names by itself: Node.js and the JDK match whole names, and a suffix matches to the left
///   (`kubernetes.default` is no suffix of `kubernetes.default.svc`).
/// - The node by its address: the proxy itself. HTTP libraries that already speak to a proxy (axios) are not sent
///   through it a second time by Node.js's own support.
/// - 169.254.169.254, where most clouds keep a machine's credentials: the proxy refuses link-local addresses.
fn direct(args: &EnvArgs) -> Vec<String> {
    let api_server = format!("kubernetes.default.svc.{}", args.cluster_domain);
    let fixed = [
        "localhost",
        "127.0.0.1",
        "::1",
        "$(NODE_IP)",
        "169.254.169.254",
        "kubernetes.default",
        "kubernetes.default.svc",
        &api_server,
        "$(KUBERNETES_SERVICE_HOST)",
    ];
    let mut names: Vec<String> = Vec::new();
    for name in fixed.into_iter().chain(args.no_proxy.iter().map(String::as_str)) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// A line of the list: a variable, or what is said about the next ones.
enum Line {
    Comment(&'static str),
    /// One with a value; references `$(NAME)` are to variables above it, which Kubernetes demands.
    Value(&'static str, String),
    /// NODE_IP, which only the kubelet knows.
    NodeIp,
}

/// Both cases of each variable, since programs differ in which they read: curl ignores `HTTP_PROXY` (a CGI's client could
/// set it), gRPC's C core reads only lower case, Go's gRPC only `HTTPS_PROXY`.
fn lines(args: &EnvArgs) -> Vec<Line> {
    let proxy = match args.ipv6 {
        false => format!("http://$(NODE_IP):{}", args.port),
        true => format!("http://[$(NODE_IP)]:{}", args.port),
    };
    let direct = direct(args);
    let mut lines = vec![
        Line::NodeIp,
        Line::Value("HTTP_PROXY", proxy.clone()),
        Line::Value("HTTPS_PROXY", proxy.clone()),
        Line::Value("http_proxy", proxy.clone()),
        Line::Value("https_proxy", proxy),
        Line::Comment("Node.js (22.21, 24.5 and newer) reads them only when it is told to."),
        Line::Value("NODE_USE_ENV_PROXY", "1".to_owned()),
        Line::Comment(
            "What must not go through the proxy: this pod, the node, the cloud's metadata and the API server.",
        ),
        Line::Value("NO_PROXY", direct.join(",")),
        // One place to add a name by hand.
        Line::Value("no_proxy", "$(NO_PROXY)".to_owned()),
    ];
    if args.java {
        lines
            .push(Line::Comment("For Java, which has properties of its own; what the container had here is replaced."));
        lines.push(Line::Value("JAVA_TOOL_OPTIONS", java(args, &direct)));
    }
    lines
}

/// The JDK's properties ("Networking Properties"): names by `|`, `*` where the variables have a leading dot, hosts as they
/// stand in a URL, so IPv6 in brackets. `http.nonProxyHosts` is for HTTPS, too.
fn java(args: &EnvArgs, direct: &[String]) -> String {
    let pattern = |name: &String| match name.as_str() {
        "127.0.0.1" => "127.*".to_owned(),
        "$(NODE_IP)" | "$(KUBERNETES_SERVICE_HOST)" if args.ipv6 => format!("[{name}]"),
        name if name.starts_with('.') => format!("*{name}"),
        name if name.matches(':').count() > 1 => format!("[{name}]"),
        name => name.to_owned(),
    };
    let hosts: Vec<String> = direct.iter().map(pattern).collect();
    let port = args.port;
    let of = |scheme: &str| format!("-D{scheme}.proxyHost=$(NODE_IP) -D{scheme}.proxyPort={port}");
    format!("{} {} -Dhttp.nonProxyHosts={}", of("http"), of("https"), hosts.join("|"))
}

/// The text, with a line's end.
pub(crate) fn render(args: &EnvArgs) -> String {
    let lines = lines(args);
    let mut text = String::new();
    let (mut depth, container) = match (args.format, &args.container) {
        (EnvFormat::Yaml, _) | (EnvFormat::Patch, None) => (0, None),
        (EnvFormat::Patch, Some(container)) => (8, Some(container)),
    };
    depth += usize::from(args.indent);
    let outer = " ".repeat(usize::from(args.indent));
    if let Some(container) = container {
        for line in ["spec:", "  template:", "    spec:", "      containers:"] {
            let _ = writeln!(text, "{outer}{line}");
        }
        // A reference needs its variable above it. A patch alone leaves those that the container already has where they
        // are, and would put NODE_IP below them.
        let order: Vec<String> = names(&lines).map(|name| format!("{{name: {name}}}")).collect();
        // Quoted: "123" and "no" are names, too.
        let _ = writeln!(text, "{outer}      - name: \"{container}\"");
        let _ = writeln!(text, "{outer}        $setElementOrder/env: [{}]", order.join(", "));
    }
    let indent = " ".repeat(depth);
    let _ = writeln!(text, "{indent}env:");
    for line in &lines {
        // Neither of the names and values has a quote or a backslash, which would need escapes.
        let _ = match line {
            Line::Comment(words) => writeln!(text, "{indent}# {words}"),
            Line::Value(name, value) => writeln!(text, "{indent}- {{name: {name}, value: \"{value}\"}}"),
            Line::NodeIp => writeln!(
                text,
                "{indent}- name: NODE_IP\n{indent}  valueFrom: {{fieldRef: {{fieldPath: status.hostIP}}}}"
            ),
        };
    }
    text
}

fn names(lines: &[Line]) -> impl Iterator<Item = &'static str> + '_ {
    lines.iter().filter_map(|line| match line {
        Line::Comment(_) => None,
        Line::Value(name, _) => Some(*name),
        Line::NodeIp => Some("NODE_IP"),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;
    use crate::args::{Cli, Command};

    fn args(flags: &[&str]) -> EnvArgs {
        let argv = ["posthouse", "env"].iter().chain(flags);
        match Cli::try_parse_from(argv).unwrap().command {
            Command::Env(args) => args,
            other => panic!("{other:?}"),
        }
    }

    /// The printed text as an API server would read it.
    fn parsed(flags: &[&str]) -> Value {
        serde_norway::from_str(&render(&args(flags))).unwrap()
    }

    fn value<'a>(env: &'a Value, name: &str) -> &'a str {
        let variable = env.as_array().unwrap().iter().find(|variable| variable["name"] == name).unwrap();
        variable["value"].as_str().unwrap()
    }

    #[test]
    fn the_readme_shows_what_is_printed() {
        let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
        let block = format!("```yaml\n{}```\n", render(&args(&[])));
        assert!(readme.contains(&block), "README.md does not have this block:\n{block}");
    }

    #[test]
    fn each_variable_stands_once_and_below_those_it_names() {
        for flags in [&["--java"][..], &["--java", "--ipv6", "--no-proxy=.example.com"]] {
            let env = parsed(flags)["env"].take();
            let mut above: Vec<&str> = vec!["KUBERNETES_SERVICE_HOST"];
            for variable in env.as_array().unwrap() {
                let name = variable["name"].as_str().unwrap();
                assert!(!above.contains(&name), "{name} twice");
                let value = variable["value"].as_str().unwrap_or_default();
                for reference in value.split("$(").skip(1) {
                    let (reference, _) = reference.split_once(')').unwrap();
                    assert!(above.contains(&reference), "{name} names {reference}");
                }
                above.push(name);
            }
            assert_eq!(env[0]["valueFrom"]["fieldRef"]["fieldPath"], "status.hostIP");
        }
    }

    #[test]
    fn flags_change_what_they_say() {
        let env = parsed(&[
            "--ipv6",
            "--port=80",
            "--cluster-domain=k8s.example.",
            "--no-proxy=a.example,.b.example,a.example",
        ])["env"]
            .take();
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            assert_eq!(value(&env, name), "http://[$(NODE_IP)]:80");
        }
        let direct = value(&env, "NO_PROXY");
        assert_eq!(value(&env, "no_proxy"), "$(NO_PROXY)");
        assert!(direct.contains(",kubernetes.default.svc.k8s.example,$("), "{direct}");
        assert!(direct.ends_with(",a.example,.b.example"), "{direct}");
        assert!(!direct.contains('['), "Python's httpx fails on brackets: {direct}");
        let shifted = render(&args(&["--indent=4"]));
        assert!(shifted.lines().all(|line| line.starts_with("    ")), "{shifted}");
    }

    #[test]
    fn java_gets_properties() {
        let env = parsed(&["--java", "--no-proxy=.b.example"])["env"].take();
        let options = value(&env, "JAVA_TOOL_OPTIONS");
        let common =
            "-Dhttp.proxyHost=$(NODE_IP) -Dhttp.proxyPort=4140 -Dhttps.proxyHost=$(NODE_IP) -Dhttps.proxyPort=4140";
        let hosts = options.strip_prefix(common).unwrap().strip_prefix(" -Dhttp.nonProxyHosts=").unwrap();
        let hosts: Vec<&str> = hosts.split('|').collect();
        for host in ["localhost", "127.*", "[::1]", "$(NODE_IP)", "*.b.example"] {
            assert!(hosts.contains(&host), "{hosts:?}");
        }
        let env = parsed(&["--java", "--ipv6"])["env"].take();
        assert!(value(&env, "JAVA_TOOL_OPTIONS").contains("|[$(NODE_IP)]|"));
    }

    #[test]
    fn a_patch_orders_what_it_sets() {
        let patch = parsed(&["--format=patch", "--container=app"]);
        let container = &patch["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["name"], "app");
        let names: Vec<Value> =
            container["env"].as_array().unwrap().iter().map(|variable| json!({"name": variable["name"]})).collect();
        assert_eq!(container["$setElementOrder/env"], Value::Array(names));
        assert_eq!(container["env"], parsed(&[])["env"]);
        for name in ["123", "no", "null", "1e3", "0x1f"] {
            let patch = parsed(&["--format=patch", "--container", name]);
            assert_eq!(
                patch["spec"]["template"]["spec"]["containers"][0]["name"], name,
                "a name, whatever YAML takes it for"
            );
        }
    }

    #[test]
    fn names_that_would_break_the_text_or_a_client_are_refused() {
        for name in ["", "a b", "a\"b", "a\nb", "[::1]", "*", "*.example.com", "$(HOME)", "a;b", "a\\b", "ä.example"] {
            let flag = format!("--no-proxy={name}");
            assert!(Cli::try_parse_from(["posthouse", "env", &flag]).is_err(), "{name:?}");
        }
        for name in ["example.com", ".example.com", "10.0.0.0/8", "fd00::1", "192.0.2.7", "my_host"] {
            args(&["--no-proxy", name]);
        }
        for (text, name) in [
            ("https://foo.com/", "foo.com"),
            ("http://foo.com:8080/a?b", "foo.com"),
            ("foo.com/a", "foo.com"),
            ("foo:8080", "foo"),
            ("192.0.2.7:80", "192.0.2.7"),
            ("10.0.0.0/33", "10.0.0.0"),
        ] {
            let error = Cli::try_parse_from(["posthouse", "env", "--no-proxy", text]).unwrap_err().to_string();
            let wanted = format!("write the name alone, {name}, without scheme, path or port");
            assert!(error.contains(&wanted), "{text}: {error}");
        }
        for text in ["fd00::/8", "https://", "://", "https://u@foo.com"] {
            assert!(Cli::try_parse_from(["posthouse", "env", "--no-proxy", text]).is_err(), "{text}");
        }
        for format in [&["--container=app"][..], &["--container=app", "--format=yaml"]] {
            let argv = ["posthouse", "env"].iter().chain(format);
            assert!(Cli::try_parse_from(argv).is_err(), "the container would be ignored: {format:?}");
        }
        assert!(Cli::try_parse_from(["posthouse", "env", "--format=patch"]).is_err(), "which container?");
        assert!(Cli::try_parse_from(["posthouse", "env", "--port=0"]).is_err());
    }
}
