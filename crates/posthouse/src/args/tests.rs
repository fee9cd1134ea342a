//! From argument lists to configurations and one-line errors. The environment is part of the table, not of the process:
//! variables that clap itself reads are tested through the built program (tests/cli.rs).

use std::ffi::OsString;

use clap::CommandFactory;

use super::*;

fn around() -> Surroundings {
    Surroundings { env: |_| None, namespace_file: PathBuf::from("/nonexistent/namespace"), cores: 3 }
}

fn config_in(around: &Surroundings, flags: &[&str]) -> Result<Config, String> {
    let argv: Vec<OsString> = ["posthouse", "run"].iter().chain(flags).map(OsString::from).collect();
    match Cli::try_parse_from(&argv) {
        Ok(Cli { command: Command::Run(run) }) => run.into_config(around),
        Ok(_) => panic!("another command"),
        Err(error) => Err(one_line(&error, &argv)),
    }
}

fn config(flags: &[&str]) -> Result<Config, String> {
    config_in(&around(), flags)
}

const NODE: [&str; 4] = ["--node-name", "node-a", "--node-ip", "10.0.0.1"];

fn with(more: &[&str]) -> Result<Config, String> {
    config(&[&NODE, more].concat())
}

fn addresses(list: &[&str]) -> Vec<SocketAddr> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn the_command_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn what_is_not_given_follows_from_the_node() {
    let config = with(&[]).unwrap();
    assert_eq!(config.source, Source::Kube);
    assert_eq!(config.outbound_listen, addresses(&["10.0.0.1:4140", "127.0.0.1:4140"]));
    assert_eq!(config.link_listen, "10.0.0.1:4141".parse().unwrap());
    assert_eq!(config.admin_listen, "127.0.0.1:9990".parse().unwrap());
    assert_eq!(config.metrics_listen, "10.0.0.1:9991".parse().unwrap());
    assert_eq!((config.workers, config.missing_peer), (3, MissingPeer::Direct));
    assert_eq!((config.namespace.as_str(), config.cluster_domain.as_str()), ("posthouse", "cluster.local"));
    assert_eq!((config.drain, config.snapshot), (Duration::from_secs(30), None));
    assert!(config.egress_allow.is_empty(), "nothing outside unless it is listed");
    assert_eq!((config.log.as_str(), config.log_format), ("info", LogFormat::Text));
}

#[test]
fn both_ip_families_everywhere() {
    let config = config(&["--node-name", "a", "--node-ip", "fd00::7,10.0.0.1"]).unwrap();
    assert_eq!(config.outbound_listen, addresses(&["[fd00::7]:4140", "10.0.0.1:4140", "[::1]:4140", "127.0.0.1:4140"]));
    assert_eq!(config.link_listen, "[fd00::7]:4141".parse().unwrap());
    let config = with(&["--outbound-listen", "[::1]:4140", "--outbound-listen", "[fd00::1]:1,127.0.0.1:2"]).unwrap();
    assert_eq!(config.outbound_listen, addresses(&["[::1]:4140", "[fd00::1]:1", "127.0.0.1:2"]));
    let mapped = self::config(&["--node-name", "a", "--node-ip", "::ffff:10.0.0.1"]).unwrap();
    assert_eq!(mapped.node_ips, ["10.0.0.1".parse::<IpAddr>().unwrap()], "one spelling for one address");
}

#[test]
fn the_node_may_come_from_the_plain_variables() {
    let around = Surroundings {
        env: |name| match name {
            "NODE_NAME" => Some("from-env".into()),
            "NODE_IP" => Some("10.9.9.9,fd00::9".into()),
            _ => None,
        },
        ..around()
    };
    let config = config_in(&around, &[]).unwrap();
    assert_eq!(config.node_name, "from-env");
    assert_eq!(config.node_ips.len(), 2);
    assert_eq!(config_in(&around, &NODE).unwrap().node_name, "node-a", "the flag wins");
}

#[test]
fn the_namespace_is_the_pods_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("namespace");
    std::fs::write(&file, "mesh\n").unwrap();
    let around = Surroundings { namespace_file: file, ..around() };
    assert_eq!(config_in(&around, &NODE).unwrap().namespace, "mesh");
    let flags = [&NODE[..], &["--namespace", "other"]].concat();
    assert_eq!(config_in(&around, &flags).unwrap().namespace, "other");
}

#[test]
fn every_value_is_read_as_written() {
    let config = with(&[
        "--source=dir:./manifests",
        "--cluster-domain=.Cluster.Example.",
        "--missing-peer=fail",
        "--drain=1500ms",
        "--egress-allow=*.Example.com:443,203.0.113.0/24",
        "--egress-allow=[2001:db8::/32]:8000-8099",
        "--workers=7",
        "--snapshot=/var/lib/posthouse/view",
        "--tls-secret-namespaces=shop,mesh",
        "--log=info,posthouse_proxy=debug",
        "--log-format=json",
        "--tls=off",
    ])
    .unwrap();
    assert_eq!(config.source, Source::Dir("./manifests".into()));
    assert_eq!(config.cluster_domain, "cluster.example");
    assert_eq!(config.missing_peer, MissingPeer::Fail);
    assert_eq!((config.drain, config.workers), (Duration::from_millis(1500), 7));
    let allow: Vec<String> = config.egress_allow.iter().map(ToString::to_string).collect();
    assert_eq!(allow, ["*.example.com:443", "203.0.113.0/24", "[2001:db8::/32]:8000-8099"]);
    assert_eq!(config.snapshot, Some("/var/lib/posthouse/view".into()));
    assert_eq!(config.tls_secret_namespaces, ["shop", "mesh"]);
    assert_eq!((config.log.as_str(), config.log_format), ("info,posthouse_proxy=debug", LogFormat::Json));
}

#[test]
fn links_are_secured_as_asked() {
    let files = ["--tls-cert=/c", "--tls-key=/k", "--tls-ca=/r"];
    assert_eq!(with(&["--trust-domain=other"]).unwrap().tls, None);
    let config = with(&[&files[..], &["--tls=node"]].concat()).unwrap();
    assert_eq!(config.missing_peer, MissingPeer::Fail, "a direct connection is not encrypted");
    let tls = config.tls.unwrap();
    assert_eq!((tls.id.as_str(), tls.mode(), tls.permissive), ("spiffe://cluster.local/node/node-a", "node", false));
    assert_eq!(tls.files, Some(Files { certificates: "/c".into(), key: "/k".into(), roots: "/r".into() }));
    assert_eq!(with(&["--tls=node"]).unwrap().tls.unwrap().files, None, "the cluster's controller issues them");
    let cached = with(&["--tls=node", "--identity-cache=/run/i"]).unwrap().tls.unwrap();
    assert_eq!(cached.cache, Some("/run/i".into()));
    let more = ["--tls=service", "--tls-permissive", "--trust-domain=mesh.example", "--missing-peer=direct"];
    let config = with(&[&files[..], &more].concat()).unwrap();
    assert_eq!(config.missing_peer, MissingPeer::Direct, "the flag wins");
    let tls = config.tls.unwrap();
    assert_eq!((tls.id.as_str(), tls.mode(), tls.permissive), ("spiffe://mesh.example/node/node-a", "service", true));
}

#[test]
fn a_wrong_flag_is_named_on_one_line_with_what_would_be_right() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["--bogus"], &["'--bogus'"]),
        (&["--outbound-listne=127.0.0.1:1"], &["--outbound-listne", "similar", "--outbound-listen"]),
        (&["extra"], &["'extra'"]),
        (&["--tls=node", "--source=dir:x"], &["--tls", "--tls-cert, --tls-key and --tls-ca"]),
        (&["--tls=service", "--source=dir:x"], &["--tls", "--tls-cert, --tls-key and --tls-ca"]),
        (&["--tls=maybe"], &["--tls", "off, node, service"]),
        (&["--tls=node", "--tls-cert=a"], &["--tls-key and --tls-ca: missing", "belong together"]),
        (&["--tls=node", "--tls-key=a", "--tls-ca=b"], &["--tls-cert: missing", "belong together"]),
        (&["--tls-cert=a", "--tls-key=b", "--tls-ca=c"], &["--tls-cert", "--tls node or service"]),
        (&["--tls-permissive"], &["--tls-permissive", "--tls node or service"]),
        (&["--identity-cache=/run/i"], &["--identity-cache", "--tls node or service"]),
        (&["--trust-domain=spiffe://a"], &["--trust-domain", "as in 'cluster.local'"]),
        (&["--source=zookeeper"], &["--source", "'kube'", "dir:PATH"]),
        (&["--source=dir:"], &["--source", "dir:PATH"]),
        (&["--workers=0"], &["--workers", "1 to 1024"]),
        (&["--workers=9999"], &["--workers", "1 to 1024"]),
        (&["--drain=30"], &["--drain", "unit"]),
        (&["--drain=99999999999999999h"], &["--drain", "too long"]),
        (&["--drain=é"], &["--drain", "unit"]),
        (&["--link-listen=4141"], &["--link-listen", "IP:PORT"]),
        (&["--outbound-listen=::1:4140x"], &["--outbound-listen", "[::1]:4140"]),
        (&["--missing-peer=maybe"], &["--missing-peer", "direct", "fail"]),
        (&["--egress-allow=https://api.example.com"], &["--egress-allow", "without scheme"]),
        (&["--egress-allow=api.example.com:https"], &["--egress-allow", "1 to 65535"]),
        (&["--egress-allow=api.example.com,,b.example.com"], &["--egress-allow", "empty entry"]),
        (&["--egress-allow=*"], &["--egress-allow", "*.example.com"]),
        (&["--egress-allow=web"], &["--egress-allow", "whole name"]),
        (&["--egress-allow=2001:db8::1:443"], &["--egress-allow", "in brackets"]),
        (&["--egress-allow=[2001:db8::]/32:443"], &["--egress-allow", "the length inside"]),
        (&["--egress-allow=203.0.113.7/24"], &["--egress-allow", "write 203.0.113.0/24"]),
        (&["--egress-allow=169.254.169.254"], &["--egress-allow", "never dialled"]),
        (&["--egress-allow=127.0.0.0/8:80"], &["--egress-allow", "a loopback address"]),
        (&["--egress-allow=web.shop.svc"], &["--egress-allow web.shop.svc", "never go out"]),
        (&["--egress-allow=*.K8s.example", "--cluster-domain=k8s.example"], &["--egress-allow", "never go out"]),
        (&["--namespace=a.b"], &["--namespace"]),
        (&["--cluster-domain=..."], &["--cluster-domain", "cluster.local"]),
        (&["--log=loud"], &["--log", "error, warn, info, debug or trace"]),
        (&["--log=posthouse_proxy"], &["--log", "posthouse_proxy=debug"]),
        (&["--log="], &["--log"]),
        (&["--link-listen=10.0.0.1:4140"], &["--link-listen", "--outbound-listen", "already"]),
        (&["--admin-listen=0.0.0.0:9991"], &["--metrics-listen", "--admin-listen", "already"]),
        (&["--outbound-listen=[::]:7000", "--link-listen=[fd00::1]:7000"], &["--outbound-listen", "already"]),
        (&["--node-ip=0.0.0.0"], &["--node-ip", "0.0.0.0"]),
        (&["--node-ip=node"], &["--node-ip", "'node'"]),
        (&["--node-name=Node_A"], &["--node-name", "'Node_A'"]),
    ];
    for (flags, words) in cases {
        // The last of two wins for nothing, so a case that sets the node's flags itself comes without the others.
        let flags = if flags[0].starts_with("--node") {
            [flags, &["--node-name=x", "--node-ip=10.0.0.1"][usize::from(flags[0].starts_with("--node-name"))..][..1]]
                .concat()
        } else {
            [&NODE, *flags].concat()
        };
        let error = config(&flags).expect_err(&format!("{flags:?}"));
        assert!(!error.contains('\n'), "{flags:?}: {error:?} is one line");
        for word in *words {
            assert!(error.contains(word), "{flags:?}: {error:?} lacks {word:?}");
        }
    }
}

#[test]
fn one_port_may_take_every_address_of_both_families() {
    let config = config(&[&NODE[..], &["--outbound-listen=0.0.0.0:4140,[::]:4140"]].concat()).unwrap();
    assert_eq!(config.outbound_listen, ["0.0.0.0:4140".parse().unwrap(), "[::]:4140".parse().unwrap()]);
}

#[test]
fn the_node_must_be_told() {
    let error = config(&["--node-ip", "10.0.0.1"]).unwrap_err();
    assert!(error.contains("--node-name") && error.contains("NODE_NAME"), "{error}");
    let error = config(&["--node-name", "a"]).unwrap_err();
    assert!(error.contains("--node-ip") && error.contains("NODE_IP"), "{error}");
    let around = Surroundings { env: |name| (name == "NODE_IP").then(|| "x".into()), ..around() };
    let error = config_in(&around, &["--node-name", "a"]).unwrap_err();
    assert!(error.starts_with("NODE_IP:"), "{error}");
}

#[test]
fn every_flag_has_a_variable_a_heading_and_a_word_on_its_value() {
    let cli = Cli::command();
    for arg in cli.find_subcommand("run").unwrap().get_arguments().filter(|arg| arg.get_id() != "help") {
        let long = arg.get_long().unwrap();
        let env = arg.get_env().unwrap_or_else(|| panic!("--{long} has no variable")).to_str().unwrap();
        assert_eq!(env, format!("POSTHOUSE_{}", long.replace('-', "_").to_uppercase()));
        assert!(
            !env.starts_with("POSTHOUSE_PORT") && !env.starts_with("POSTHOUSE_SERVICE"),
            "{env} is Kubernetes' own"
        );
        assert!(arg.get_help_heading().is_some(), "--{long} has no heading");
        let help = arg.get_long_help().or(arg.get_help()).unwrap().to_string();
        let required = help.contains("required");
        assert!(
            !arg.get_default_values().is_empty() || help.contains("[default:") || required,
            "--{long} says neither its default nor that it is required"
        );
    }
}
