//! The admin API over a real socket, with a directory made by hand.

use std::time::Duration;

use posthouse_model::address::Refusal;
use posthouse_model::stats::now_nanos;
use posthouse_model::{
    AppProtocol, Directory, Endpoint, EndpointSet, EndpointState, EndpointStats, Peer, PodRef, Service, ServiceKind,
    ServicePort,
};

use posthouse_policy::Policy;

use super::*;
use crate::args::{Cli, Command, Surroundings};
use crate::readiness::Readiness;
use crate::server::tests::Running;
use crate::telemetry::tests::{status, telemetry};

fn service(namespace: &str, name: &str, kind: ServiceKind, endpoints: Vec<Arc<Endpoint>>) -> Service {
    Service {
        namespace: namespace.into(),
        name: name.into(),
        kind,
        tls: None,
        backend: None,
        ports: vec![ServicePort {
            name: "http".into(),
            port: 80,
            app_protocol: AppProtocol::Http1,
            endpoints: Arc::new(EndpointSet::new(endpoints)),
        }],
        changed: SystemTime::now() - Duration::from_secs(100),
    }
}

fn endpoint(address: &str, state: EndpointState, refusal: Option<Refusal>) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        node: Some("node-a".into()),
        zone: None,
        hostname: None,
        pod: Some(PodRef { namespace: "shop".into(), name: "web-1".into(), uid: "u1".into() }),
        state,
        refusal,
        stats: Arc::new(EndpointStats::default()),
    }
}

fn directory() -> Directory {
    let mut directory = Directory::default();
    (directory.version, directory.complete) = (3, true);
    let good = endpoint("10.1.0.1:8080", EndpointState::Ready, None);
    good.stats.begin();
    good.stats.answered(2_500_000, now_nanos());
    good.stats.failed();
    let shy = endpoint("[fd00::2]:8080", EndpointState::Draining, None);
    shy.stats.refused(now_nanos());
    let bad = endpoint("169.254.169.254:80", EndpointState::Ready, Some(Refusal::LinkLocal));
    let endpoints = [good, shy, bad].map(Arc::new).to_vec();
    let ips = ServiceKind::ClusterIp(["10.96.0.1".parse().unwrap()].into_iter().collect());
    directory.put_service(service("shop", "web", ips, endpoints));
    let allow =
        serde_json::json!({"action": "Allow", "dryRun": true, "targetRefs": [{"kind": "Service", "name": "web"}]});
    directory.policies.put(Policy::read("shop", "web", &allow));
    let typo = serde_json::json!({"action": "Deny", "rules": [{"when": "x"}]});
    directory.policies.put(Policy::read("bank", "typo", &typo));
    directory.put_service(service("shop", "db", ServiceKind::Headless, vec![]));
    directory.put_service(service("ext", "api", ServiceKind::ExternalName("api.example.com".into()), vec![]));
    directory.set_peers(["node-b", "node-a"].map(|node| Peer {
        node: node.into(),
        address: "10.0.0.2:4141".parse().unwrap(),
        ready: node == "node-b",
    }));
    directory
}

fn config() -> Config {
    use clap::Parser;
    let argv = ["posthouse", "run", "--node-name=node-a", "--node-ip=10.0.0.1", "--workers=2", "--drain=5s"];
    let Command::Run(run) = Cli::try_parse_from(argv).unwrap().command else { panic!("not run") };
    let around = Surroundings { env: |_| None, namespace_file: "/nonexistent".into(), cores: 1 };
    run.into_config(&around).unwrap()
}

fn api_with(directory: Directory) -> Running {
    let directory = DirectoryHandle::new(directory);
    let link = || LinkStatus {
        node: "node-b".into(),
        connections: 2,
        streams: 7,
        opened: 3,
        failures: 1,
        last_error: Some("connection refused".into()),
    };
    Running::start(Admin {
        config: config(),
        directory: directory.clone(),
        discovery: Box::new(status),
        links: Box::new(move || vec![link()]),
        certificates: None,
        telemetry: telemetry(&directory, &Readiness::default(), || {}),
        started: SystemTime::now() - Duration::from_secs(60),
    })
}

fn api() -> Running {
    api_with(directory())
}

#[tokio::test]
async fn services_are_listed_in_order_with_counts() {
    let api = api();
    let answer = api.get("/services").await;
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    let list = answer.json();
    assert_eq!(list["directory_version"], 3);
    let names: Vec<_> = list["services"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["api", "db", "web"]);
    let [api_service, db, web] = [0, 1, 2].map(|at| &list["services"][at]);
    assert_eq!(
        (&api_service["kind"], &api_service["external_name"]),
        (&"ExternalName".into(), &"api.example.com".into())
    );
    assert_eq!(db["kind"], "Headless");
    assert_eq!((&web["kind"], &web["cluster_ips"][0]), (&"ClusterIP".into(), &"10.96.0.1".into()));
    let port = &web["ports"][0];
    assert_eq!((&port["port"], &port["app_protocol"]), (&80.into(), &"http".into()));
    assert_eq!((&port["endpoints"]["ready"], &port["endpoints"]["total"]), (&1.into(), &3.into()));
    assert!(web["changed_seconds_ago"].as_u64().unwrap() >= 100);
    api.stop().await;
}

#[tokio::test]
async fn a_big_list_is_whole_and_an_empty_one_is_valid() {
    let api = api_with(Directory::default());
    assert_eq!(api.get("/services").await.json()["services"].as_array().unwrap().len(), 0);
    api.stop().await;

    let mut directory = Directory::default();
    for n in 0..3000 {
        directory.put_service(service("big", &format!("s{n:04}"), ServiceKind::Headless, vec![]));
    }
    let api = api_with(directory);
    let answer = api.get("/services").await;
    assert!(answer.body.len() > 10 * 32 * 1024, "several pieces");
    let list = answer.json();
    let names: Vec<_> = list["services"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 3000);
    assert!(names.is_sorted());
    api.stop().await;
}

#[tokio::test]
async fn one_service_shows_its_endpoints_with_what_this_node_knows_of_them() {
    let api = api();
    let web = api.get("/services/shop/web").await.json();
    let endpoints = &web["ports"][0]["endpoints"];
    let good = &endpoints[0];
    assert_eq!((&good["address"], &good["state"]), (&"10.1.0.1:8080".into(), &"ready".into()));
    assert_eq!((&good["node"], &good["pod"]), (&"node-a".into(), &"shop/web-1".into()));
    assert_eq!((&good["in_flight"], &good["requests"], &good["failures"]), (&1.into(), &1.into(), &1.into()));
    assert_eq!((&good["latency_ms"], &good["passed_over"]), (&2.5.into(), &false.into()));
    let shy = &endpoints[1];
    assert_eq!((&shy["address"], &shy["state"]), (&"[fd00::2]:8080".into(), &"draining".into()));
    assert_eq!((&shy["passed_over"], &shy["latency_ms"]), (&true.into(), &serde_json::Value::Null));
    assert_eq!(endpoints[2]["refused"], "a link-local address");
    let missing = api.get("/services/shop/nothing").await;
    assert_eq!(missing.status, 404);
    assert!(missing.json()["error"].as_str().unwrap().contains("'shop/nothing'"));
    api.stop().await;
}

#[tokio::test]
async fn peers_are_joined_with_their_links() {
    let api = api();
    let peers = api.get("/peers").await.json();
    let [this, other] = [0, 1].map(|at| &peers["peers"][at]);
    assert_eq!(
        (&this["node"], &this["this_node"], &this["link"]),
        (&"node-a".into(), &true.into(), &serde_json::Value::Null)
    );
    assert_eq!(
        (&other["node"], &other["ready"], &other["address"]),
        (&"node-b".into(), &true.into(), &"10.0.0.2:4141".into())
    );
    assert_eq!((&other["link"]["streams"], &other["link"]["last_error"]), (&7.into(), &"connection refused".into()));
    api.stop().await;
}

#[tokio::test]
async fn policies_show_their_targets_and_what_is_wrong_with_them() {
    let api = api();
    let policies = api.get("/policies").await.json();
    assert_eq!(
        policies["policies"],
        serde_json::json!([
            {"namespace": "bank", "name": "typo", "action": null, "dry_run": false, "targets": [], "accepted": false,
             "reason": "InvalidExpression", "message": "spec.rules[0].when: there is no 'x'; there are source, request and target"},
            {"namespace": "shop", "name": "web", "action": "Allow", "dry_run": true, "targets": ["web"], "accepted": true},
        ])
    );
    api.stop().await;
}

#[tokio::test]
async fn config_shows_flags_watches_and_problems() {
    let api = api();
    let config = api.get("/config").await.json();
    assert!(config["version"].as_str().unwrap().starts_with(env!("CARGO_PKG_VERSION")));
    assert!(config["uptime_seconds"].as_u64().unwrap() >= 60);
    assert_eq!((&config["ready"], &config["config"]["drain"]), (&true.into(), &"5000ms".into()));
    assert_eq!(config["directory"]["services"], 3);
    assert_eq!(config["discovery"]["watches"][1]["last_error"], "connection refused");
    assert_eq!(config["discovery"]["problems"][0]["source"], "web.yaml");
    // Every flag of the command line is shown under its own name.
    let command = <Cli as clap::CommandFactory>::command();
    let run = command.find_subcommand("run").unwrap();
    let mut flags: Vec<_> = run.get_arguments().filter_map(|arg| arg.get_long()).filter(|f| *f != "help").collect();
    flags.sort_unstable();
    let shown: Vec<_> = config["config"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(shown, flags);
    api.stop().await;
}

#[tokio::test]
async fn health_and_metrics_are_here_too_and_the_index_lists_every_path() {
    let api = api();
    for path in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(api.get(path).await.status, 200, "{path}");
    }
    let index = api.get("/").await.body;
    for PathDoc { path, .. } in PATHS {
        assert!(index.contains(path), "{path} is missing in\n{index}");
        let real = path.replace("{namespace}", "shop").replace("{name}", "web");
        assert_eq!(api.get(&real).await.status, 200, "{real}");
    }
    api.stop().await;
}

#[tokio::test]
async fn everything_else_is_refused_with_what_to_do() {
    let api = api();
    let answer = api.get("/nope").await;
    assert_eq!(answer.status, 404);
    assert!(answer.json()["error"].as_str().unwrap().contains("GET / lists"), "{}", answer.body);
    let answer = api.ask("POST", "/config", "Host: localhost\r\nContent-Length: 0\r\n").await;
    assert_eq!(answer.status, 405);
    assert!(answer.head.contains("allow: get") && answer.json()["error"].is_string());
    let answer = api.ask("GET", "/services", "Host: rebound.example\r\n").await;
    assert_eq!(answer.status, 403);
    assert!(answer.json()["error"].as_str().unwrap().contains("localhost"), "{}", answer.body);
    let answer = api.ask("GET", "/services", "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n").await;
    assert_eq!(answer.status, 403);
    api.stop().await;
}

#[tokio::test]
async fn identity_says_that_links_are_in_the_clear() {
    let api = api();
    let answer = api.get("/identity").await.json();
    assert_eq!(answer["tls"], "off");
    assert!(answer["hint"].as_str().unwrap().contains("--tls node"), "{answer}");
    api.stop().await;
}
