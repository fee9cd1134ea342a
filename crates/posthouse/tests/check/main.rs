//! `posthouse check` as a person runs it: the built program with a kubeconfig, against an API server that is made up, and
//! through its port-forward against a proxy that is real. What each object means is the modules' own tests; here the
//! output, the exit code and the order count.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a helper fails its test")]

mod api_server;
mod fake_proxy;
mod objects;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use api_server::{ApiServer, Script, kubeconfig};
use fake_proxy::FakeProxy;
use objects::{CLUSTER_ROLE, DAEMONSET, DAEMONSETS, NAMESPACE, NODES, PODS, bare, crashing, installed, proxy};

/// What a run printed and how it ended.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    /// Looks for a line that begins like this and contains that.
    #[track_caller]
    fn has(&self, begin: &str, part: &str) {
        let found = self.stdout.lines().any(|line| line.starts_with(begin) && line.contains(part));
        assert!(found, "no line '{begin}…{part}' in\n{}{}", self.stdout, self.stderr);
    }

    #[track_caller]
    fn ends(&self, code: i32, verdict: &str) {
        assert_eq!(self.stdout.lines().last(), Some(verdict), "{}{}", self.stdout, self.stderr);
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
    }
}

/// Runs it with this kubeconfig. A proxy in the environment must not matter: nothing listens there.
async fn run(kubeconfig: &str, flags: &[&str]) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthouse"));
    command.arg("check").args(["--namespace=mesh", "--timeout=5s"]).args(flags).env_clear().env("KUBECONFIG", path);
    for variable in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
        command.env(variable, "http://127.0.0.1:1");
    }
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    drop(folder);
    Run {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn check(script: Script, flags: &[&str]) -> Run {
    let server = ApiServer::start(script).await;
    run(&server.kubeconfig(), flags).await
}

#[tokio::test]
async fn before_the_installation_it_says_so_and_finds_nothing() {
    let mut script = bare(&["a", "b"]);
    script.answers.remove(NAMESPACE);
    let run = check(script, &[]).await;
    run.has("ok    api", "Kubernetes 1.36.3 answers at http://127.0.0.1:");
    run.has("ok    clock", "this machine's");
    run.has("ok    namespace", "--create-namespace");
    run.has("ok    permissions", "you may create what the chart installs (7 kinds)");
    run.has("ok    permissions", "you may grant");
    run.has("skip  daemonset", "not installed in the namespace 'mesh'");
    run.has("ok    ports", "4140, 4141, 9990, 9991");
    run.has("ok    node", "a, b: ");
    run.ends(0, "everything is in order for an installation (8 checks, 1 skipped)");
    assert!(!run.stdout.contains('\x1b'), "colours are for terminals");
}

#[tokio::test]
async fn what_speaks_against_an_installation() {
    let mut script = bare(&["a"]);
    script.put(
        NAMESPACE,
        json!({"metadata": {"name": "mesh", "labels": {"pod-security.kubernetes.io/enforce": "baseline"}}}),
    );
    script.denied = ["create clusterroles", "escalate clusterroles", "watch nodes"].into();
    let taken = json!({
        "metadata": {"name": "old", "namespace": "shop"},
        "spec": {"nodeName": "a", "hostNetwork": true, "containers": [{"name": "c", "ports": [{"containerPort": 4140}]}]},
    });
    script.list(PODS, &[taken]);
    script.clock = 30;
    let run = check(script, &["--pre"]).await;
    // Dates have whole seconds, and an answer takes time.
    let about = ["29 s behind", "30 s behind", "31 s behind"];
    assert!(about.iter().any(|behind| run.stdout.contains(behind)), "{}", run.stdout);
    run.has("warn  clock", "s behind");
    run.has("FAIL  namespace", "baseline");
    run.has(
        "                   hint: ",
        "kubectl label --overwrite namespace mesh pod-security.kubernetes.io/enforce=privileged",
    );
    run.has("FAIL  permissions", "you may not create clusterroles.rbac.authorization.k8s.io");
    run.has("FAIL  permissions", "you may not do yourself: watch nodes");
    run.has("skip  daemonset", "not installed in the namespace 'mesh'");
    run.has("FAIL  ports", "a: pod shop/old is on the host's network and declares port 4140");
    run.ends(1, "4 problems, 1 warning (7 checks, 1 skipped)");
}

#[tokio::test]
async fn a_mesh_that_is_there_already_is_in_the_way_of_another() {
    let role = |namespace: &str| {
        let annotations =
            json!({"meta.helm.sh/release-name": "posthouse", "meta.helm.sh/release-namespace": namespace});
        json!({"metadata": {"name": "posthouse", "annotations": annotations}, "rules": []})
    };
    let mut script = bare(&["a"]);
    script.list(DAEMONSETS, &[json!({"metadata": {"name": "posthouse", "namespace": "other"}})]);
    script.put(CLUSTER_ROLE, role("other"));
    let server = ApiServer::start(script).await;
    let run = self::run(&server.kubeconfig(), &["--pre"]).await;
    run.has("FAIL  daemonset", "the cluster has a mesh already, in the namespace 'other'");
    run.has(
        "FAIL  permissions",
        "the ClusterRole 'posthouse' belongs to the release 'posthouse' in the namespace 'other'",
    );
    run.ends(1, "2 problems (9 checks)");
    let asked = server.asked();
    let listed = asked.iter().find(|path| path.starts_with(DAEMONSETS)).unwrap();
    assert!(listed.contains("app.kubernetes.io%2Fname%3Dposthouse"), "{listed}");

    // The same namespace again: an upgrade is no installation, but nothing is in its way.
    let mut own = proxy("p-a", "a");
    own["spec"]["containers"][0]["ports"] = json!([{"containerPort": 4140}]);
    let mut script = installed(&["a"], std::slice::from_ref(&own));
    script.list(PODS, &[own]);
    script.put(CLUSTER_ROLE, role("mesh"));
    let run = check(script, &["--pre"]).await;
    run.has("skip  daemonset", "installed in the namespace 'mesh' already, and not looked at (--pre)");
    run.ends(0, "everything is in order for an installation (7 checks, 1 skipped)");

    let mut script = bare(&["a"]);
    script.forbid(DAEMONSETS);
    script.forbid(CLUSTER_ROLE);
    let run = check(script, &["--pre"]).await;
    run.has("skip  daemonset", "whether another namespace has a mesh cannot be looked at");
    run.has("skip  permissions", "whether another release has the ClusterRole cannot be looked at");
    run.ends(0, "no problem found, but 2 checks could not be looked at (7 checks, 1 skipped)");
}

#[tokio::test]
async fn a_default_of_the_whole_cluster_is_found_by_trying() {
    let mut script = bare(&["a"]);
    script.pod_security = Some((
        403,
        "pods \"posthouse-check-x\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces",
    ));
    let run = check(script, &["--pre"]).await;
    run.has("FAIL  namespace", "refuses pods on the host's network, by the cluster's default: pods ");
    run.has("                   hint: ", "pod-security.kubernetes.io/enforce=privileged");
    assert_eq!(run.code, 1);

    let mut script = bare(&["a"]);
    script.pod_security = Some((403, "pods is forbidden: User \"u\" cannot create resource \"pods\""));
    let run = check(script, &["--pre"]).await;
    run.has(
        "ok    namespace",
        "no label of the namespace 'mesh' forbids pods on the host's network; a cluster-wide default",
    );

    // There is nothing to try it in; and the namespace that must be made is a permission more.
    let mut script = bare(&["a"]);
    script.answers.remove(NAMESPACE);
    let server = ApiServer::start(script).await;
    let run = self::run(&server.kubeconfig(), &["--pre"]).await;
    run.has("ok    namespace", "a cluster-wide default is seen only after the namespace exists");
    run.has("ok    permissions", "(7 kinds)");
    assert!(!server.asked().iter().any(|path| path.contains("dryRun")));
}

#[tokio::test]
async fn a_namespace_that_cannot_be_read_is_not_taken_for_a_new_one() {
    let mut script = bare(&["a"]);
    script.forbid(NAMESPACE);
    script.denied = ["create namespaces"].into();
    let run = check(script, &["--pre"]).await;
    run.has("skip  namespace", "you are not allowed to");
    run.has("ok    permissions", "you may create what the chart installs (6 kinds)");
    assert_eq!(run.code, 0, "{}", run.stdout);
}

#[tokio::test]
async fn strict_is_for_those_who_want_to_know_of_everything() {
    let mut script = bare(&["a"]);
    script.forbid(PODS);
    assert_eq!(check(script, &["--pre", "--strict"]).await.code, 1, "what could not be looked at");
    let mut script = bare(&["a"]);
    script.clock = 30;
    assert_eq!(check(script, &["--pre", "--strict"]).await.code, 1, "a warning");
    assert_eq!(check(bare(&["a"]), &["--pre", "--strict"]).await.code, 0, "no mesh yet, as is to be expected");
}

#[tokio::test]
async fn an_api_server_that_does_not_tell_the_time_is_no_clock() {
    let proxy_a = FakeProxy::start(json!([])).await;
    let mut script = proxy_a.script();
    script.no_date = true;
    let run = check(script, &[]).await;
    run.has("skip  clock", "no clock can be compared");
    assert_eq!(run.stdout.matches("clock ").count(), 2, "one line: {}", run.stdout);
}

#[tokio::test]
async fn links_are_good_only_when_they_were_tried() {
    let peer = |node: &str| json!({"node": node, "address": "10.0.0.2:4141", "ready": true, "this_node": node == "a"});
    let proxy_a = FakeProxy::start(json!([peer("a"), peer("b")])).await;
    let run = check(proxy_a.script(), &["--node=a"]).await;
    run.has("skip  links", "a: not tried yet: no request has crossed to node b");
    run.has("                   hint: ", "--url of a Service with pods on each node tries them");
    assert_eq!(proxy_a.requests(), 0);
    assert!(!run.stdout.contains("in order"), "{}", run.stdout);

    let run = check(proxy_a.script(), &["--node=a", "--url=http://web.shop/"]).await;
    run.has("ok    links", "a: there is no other proxy");
    run.has("ok    probe", "a: GET http://web.shop/: 200 OK");
    assert_eq!(proxy_a.requests(), FakeProxy::OPENS_LINKS, "no more than it takes");

    // A Service without pods elsewhere opens no link, however often it is asked.
    let nowhere = FakeProxy::start_unlinked(json!([peer("a"), peer("b")])).await;
    let run = check(nowhere.script(), &["--node=a", "--url=http://web.shop/"]).await;
    run.has("skip  links", "a: not tried yet: no request has crossed to node b");
    assert_eq!(nowhere.requests(), 24);
}

#[tokio::test]
async fn another_program_on_the_port_is_known_with_a_url_too() {
    let proxy_a = FakeProxy::start(json!([])).await;
    let mut script = proxy_a.script();
    script.forwards.insert(("p-a", 4140), proxy_a.admin);
    let run = check(script, &["--url=http://web.shop/"]).await;
    run.has("FAIL  probe", "a: what answers on its outbound port is no posthouse (404 Not Found)");
    assert!(!run.stdout.contains("GET http://web.shop/"), "nobody is there to send it through: {}", run.stdout);
}

#[tokio::test]
async fn an_api_server_that_is_not_there_is_one_failure() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let run = run(&kubeconfig(nobody), &[]).await;
    run.has("FAIL  api", &format!("the API server at http://{nobody} cannot be asked: client error (Connect): "));
    run.has("FAIL  api", "refused");
    run.has("                   hint: ", "--context");
    run.ends(1, "1 problem (1 check)");
    assert_eq!(run.stdout.lines().count(), 4, "{}", run.stdout);
}

#[tokio::test]
async fn what_answers_may_be_something_else_or_too_old() {
    let mut script = Script::default();
    script.put("/version", json!("hello"));
    check(script, &[]).await.has("FAIL  api", "no Kubernetes API server");
    let mut script = bare(&["a"]);
    script.put("/version", json!({"major": "1", "minor": "20+", "gitVersion": "v1.20.1"}));
    check(script, &[]).await.has("FAIL  api", "1.20.1 is too old");
}

#[tokio::test]
async fn who_may_see_little_is_told_what_is_missing() {
    let mut script = bare(&["a"]);
    script.forbid(NAMESPACE);
    script.forbid(PODS);
    let run = check(script, &["--pre"]).await;
    run.has("skip  namespace", "you are not allowed to");
    run.has("skip  ports", "other pods' ports cannot be looked at");
    run.has("                   hint: ", "you need the permission to list pods of all namespaces");
    run.ends(0, "no problem found, but 2 checks could not be looked at (5 checks, 1 skipped)");

    let mut script = bare(&["a"]);
    script.forbid(DAEMONSET);
    let run = check(script, &[]).await;
    run.has("FAIL  daemonset", "the DaemonSet 'posthouse' cannot be looked at");
    assert_eq!(run.code, 1, "whether it is installed was the question");

    let mut script = bare(&["a"]);
    script.forbid(NODES);
    check(script, &[]).await.has("skip  daemonset", "the nodes cannot be looked at");
}

#[tokio::test]
async fn a_daemonset_that_is_not_complete() {
    let mut script = installed(&["a", "b", "c"], &[crashing("p-a", "a", 1), crashing("p-b", "b", 64)]);
    let taken =
        "posthouse: --link-listen 10.0.0.1:4141: cannot listen there: Address in use; another program listens there";
    script.put("/api/v1/namespaces/mesh/pods/p-a/log", json!(taken));
    let event = json!({
        "metadata": {"name": "e"}, "involvedObject": {}, "type": "Warning", "lastTimestamp": "2026-01-01T00:00:00Z",
        "message": "Error creating: quota exceeded",
    });
    script.list("/api/v1/namespaces/mesh/events", &[event]);
    script.denied = ["list nodes"].into();
    let server = ApiServer::start(script).await;
    let run = run(&server.kubeconfig(), &[]).await;
    run.has("FAIL  permissions", "the proxies' service account posthouse may not list nodes");
    run.has("FAIL  daemonset", "a: no ready proxy: pod p-a ended (exit code 1, 4 restarts): ");
    run.has("FAIL  daemonset", "b: no ready proxy: pod p-b ended (exit code 64, 4 restarts)");
    run.has("FAIL  daemonset", "c: no ready proxy: it has no pod: Error creating: quota exceeded");
    run.has("                   hint: ", "on the node, 'ss -ltnp' shows which program has the port");
    run.has("ok    ports", "what a proxy found taken has a program of the node itself");
    run.ends(1, "4 problems (11 checks)");
    let asked = server.asked();
    let log = asked.iter().find(|path| path.contains("/p-a/log")).unwrap();
    assert!(log.contains("previous=true"), "the container waits to begin again: {log}");
}

/// Writes an authority's certificate and one of node a with its key; gives the flags that name them.
fn certify(folder: &Path) -> Vec<String> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local/node/a".try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap().pem();
    let files = [("cert", certificate), ("key", key.serialize_pem()), ("ca", authority.pem())].map(|(flag, text)| {
        let path = folder.join(flag);
        std::fs::write(&path, text).unwrap();
        format!("--tls-{flag}={}", path.display())
    });
    ["--tls=node".to_owned()].into_iter().chain(files).collect()
}

/// A proxy of node a, from a folder of manifests.
struct Proxy {
    child: Child,
    _folders: [TempDir; 2],
    admin: SocketAddr,
    outbound: SocketAddr,
}

impl Proxy {
    fn start() -> Self {
        let certificates = tempfile::tempdir().unwrap();
        let tls = certify(certificates.path());
        Self::with(tls, certificates)
    }

    /// Its links are in the clear.
    fn start_plain() -> Self {
        Self::with(Vec::new(), tempfile::tempdir().unwrap())
    }

    fn with(tls: Vec<String>, certificates: TempDir) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let node = json!({
            "kind": "Node", "apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"podCIDR": "127.0.81.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": "127.0.81.1"}]},
        });
        let web = json!({
            "kind": "Service", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.81.1", "ports": [{"name": "http", "port": 80}]},
        });
        for (name, object) in [("node.json", node), ("web.json", web)] {
            std::fs::write(folder.path().join(name), object.to_string()).unwrap();
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_posthouse"))
            .args(["run", "--node-name=a", "--node-ip=127.0.81.1", "--workers=1", "--log-format=json"])
            .args(["--outbound-listen=127.0.0.1:0", "--link-listen=127.0.81.1:0", "--metrics-listen=127.0.81.1:0"])
            .args(["--admin-listen=127.0.0.1:0", &format!("--source=dir:{}", folder.path().display())])
            .args(tls)
            .env_clear()
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut logged = |field: &str| loop {
            let line = log.next().expect("it ended").unwrap();
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
            if let Some(value) = event[field].as_str() {
                return value.trim_matches(['[', ']']).to_owned();
            }
        };
        let admin = logged("admin").parse().unwrap();
        let outbound = logged("outbound").parse().unwrap();
        // The rest of the log is read so that the pipe never fills.
        std::thread::spawn(move || log.for_each(drop));
        Self { child, _folders: [folder, certificates], admin, outbound }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Node a has a real proxy.
fn script_with(real: &Proxy, nodes: &[&'static str], pods: &[Value]) -> Script {
    let mut script = installed(nodes, pods);
    script.forwards = [(("p-a", 9990), real.admin), (("p-a", 4140), real.outbound)].into();
    script
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_installation_in_order() {
    let real = Proxy::start();
    let run = check(script_with(&real, &["a"], &[proxy("p-a", "a")]), &[]).await;
    run.has("ok    permissions", "the proxies' service account posthouse may read what they need");
    run.has("ok    daemonset", "1 of 1 nodes have a ready proxy");
    run.has("ok    clock", "a: its clock agrees");
    run.has("ok    version", concat!("a: ", env!("CARGO_PKG_VERSION")));
    run.has("ok    node", "a: ready, and what it knows is up to date");
    run.has("ok    certificate", "a: valid, and renewed in time");
    run.has("ok    links", "a: there is no other proxy");
    run.has("ok    probe", "a: its outbound port answers (");
    run.ends(0, "everything is in order (13 checks)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_in_the_clear_are_worth_a_look() {
    let real = Proxy::start_plain();
    let run = check(script_with(&real, &["a"], &[proxy("p-a", "a")]), &[]).await;
    run.has("warn  certificate", "a: it has none: its links are in the clear");
    run.ends(0, "no problem, 1 warning (13 checks)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_cannot_be_asked_do_not_stop_the_others() {
    let real = Proxy::start();
    let pods = [proxy("p-a", "a"), proxy("p-b", "b"), proxy("p-c", "c")];
    let mut script = script_with(&real, &["a", "b", "c"], &pods);
    script.forbid("/api/v1/namespaces/mesh/pods/p-c/portforward");
    let run = check(script, &["--url=http://web.shop/healthz"]).await;
    run.has(
        "FAIL  node",
        "b: its proxy's admin API cannot be looked at: nothing listens on 127.0.0.1:9990 of the node",
    );
    run.has("skip  node", "c: its proxy's admin API cannot be looked at: the API server answers 403");
    run.has("                   hint: ", "you need the permission to create and get pods/portforward");
    run.has("FAIL  links", "a: its proxy does not know that node b and 1 more has one");
    run.has("FAIL  probe", "a: GET http://web.shop/healthz: 503 Service Unavailable, destination_unavailable: ");
    run.has("FAIL  probe", "b: its outbound port cannot be looked at: nothing listens on 127.0.0.1:4140 of the node");
    assert!(
        !run.stdout.lines().any(|line| line.contains("probe") && line.contains("c: ")),
        "c was told of: {}",
        run.stdout
    );
    assert_eq!(run.code, 1);
}

#[tokio::test]
async fn many_nodes_of_which_none_can_be_asked_are_given_up() {
    let names: Vec<String> = (0..60).map(|at| format!("n{at:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let pods: Vec<Value> = names.iter().map(|node| proxy(&format!("p-{node}"), node)).collect();
    let mut script = installed(&names, &pods);
    for node in &names {
        script.forbid(&format!("/api/v1/namespaces/mesh/pods/p-{node}/portforward"));
    }
    let server = ApiServer::start(script).await;
    let run = run(&server.kubeconfig(), &[]).await;
    run.has("ok    daemonset", "60 of 60 nodes have a ready proxy");
    run.has("ok    node", "60 nodes: its pods' addresses are known");
    run.has(
        "skip  node",
        "nodes (n00, n01, n02, n03, n04, …): its proxy's admin API cannot be looked at: the API server answers 403",
    );
    run.has(
        "skip  node",
        "…): its proxy's admin API cannot be looked at: not asked, since none of the first 16 could be",
    );
    let forwards = server.asked().iter().filter(|path| path.contains("/portforward")).count();
    assert!(forwards < 30, "{forwards} were asked");
    run.ends(0, "no problem found, but 60 checks could not be looked at (66 checks)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_is_enough_when_one_is_asked_for() {
    let real = Proxy::start();
    let script = script_with(&real, &["a", "b"], &[proxy("p-a", "a"), crashing("p-b", "b", 1)]);
    let server = ApiServer::start(script).await;
    let run = run(&server.kubeconfig(), &["--node=a,nowhere"]).await;
    run.has("FAIL  node", "nowhere: there is no such node");
    run.has("ok    daemonset", "1 of 1 nodes");
    assert!(server.asked().iter().any(|path| path.starts_with(PODS) && path.contains("spec.nodeName%3Da")));
    run.ends(1, "1 problem (14 checks)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_is_one_object() {
    let real = Proxy::start();
    let run = check(script_with(&real, &["a"], &[proxy("p-a", "a")]), &["--output=json", "--strict"]).await;
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(run.code, 0, "{}", run.stdout);
    assert_eq!((&report["verdict"], &report["mode"]), (&json!("ok"), &json!("installed")));
    assert_eq!(report["namespace"], "mesh");
    let node = &report["nodes"][0];
    assert_eq!((&node["name"], &node["pod"], &node["ready"]), (&json!("a"), &json!("p-a"), &json!(true)));
    assert!(node["version"].as_str().unwrap().starts_with(env!("CARGO_PKG_VERSION")));
    let checks = report["checks"].as_array().unwrap();
    let probe = checks.iter().find(|check| check["id"] == "probe").unwrap();
    assert_eq!((&probe["verdict"], &probe["subject"], &probe["hint"]), (&json!("ok"), &json!("node/a"), &Value::Null));
    assert!(probe["took_ms"].as_f64().is_some_and(|took| took > 0.0));
}

#[tokio::test]
async fn a_wrong_kubeconfig_is_one_line_with_exit_code_64() {
    let server = ApiServer::start(bare(&[])).await;
    let good = server.kubeconfig();
    for (kubeconfig, flags, word) in [
        (good.as_str(), &["--context=prod"][..], "no context 'prod'; it has: test"),
        (&good, &["--kubeconfig=/nonexistent/config"], "/nonexistent/config cannot be read"),
        ("{", &[], "kubeconfig"),
        (&good, &["--url=ftp://x"], "--url"),
        (&good, &["--timeout=0s"], "--timeout"),
        (&good, &["--frobnicate"], "'posthouse check --help'"),
    ] {
        let run = run(kubeconfig, flags).await;
        assert_eq!(run.code, 64, "{flags:?}: {}{}", run.stdout, run.stderr);
        assert!(run.stderr.starts_with("posthouse: ") && run.stderr.lines().count() == 1, "{}", run.stderr);
        assert!(run.stderr.contains(word) && run.stdout.is_empty(), "{flags:?}: {}", run.stderr);
    }
}
