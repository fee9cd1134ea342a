//! The `dir` source as a user meets it: a folder, changed by editors, renames and symlink swaps, and what is served
//! meanwhile. Changes are awaited by the directory's publications, never by the clock.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are test code, too")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use posthouse_discovery::{Discovery, Phase, Settings, Source, StartError, Status, start};
use posthouse_model::workload::{Checked, Claim};
use posthouse_model::{Directory, DirectoryHandle};
use tempfile::TempDir;
use tokio::sync::watch;

struct Under {
    folder: TempDir,
    handle: DirectoryHandle,
    changes: watch::Receiver<u64>,
    discovery: Discovery,
}

fn settings(folder: &Path) -> Settings {
    Settings {
        source: Source::Dir(folder.to_owned()),
        node_name: Arc::from("node-a"),
        namespace: Arc::from("mesh"),
        snapshot: None,
        tls_secret_namespaces: Vec::new(),
    }
}

impl Under {
    /// Starts on a folder with these files and waits for the first scan.
    async fn start(files: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self::on(folder).await
    }

    async fn on(folder: TempDir) -> Self {
        let handle = DirectoryHandle::default();
        let discovery = start(settings(folder.path()), handle.clone()).await.unwrap();
        let mut under = Self { folder, changes: handle.subscribe(), handle, discovery };
        under.until("the first scan", |d| d.complete).await;
        under
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Directory) -> bool) {
        let waiting = async {
            while !done(&self.handle.load()) {
                self.changes.changed().await.unwrap();
            }
        };
        // Only a limit to a test that fails.
        let limit = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        assert!(limit.is_ok(), "waited in vain: {what}: {:?}", self.discovery.status());
    }

    /// Waits for a status; nothing tells of its changes.
    async fn status(&self, what: &str, done: impl Fn(&Status) -> bool) -> Status {
        for _ in 0..6_000 {
            let status = self.discovery.status();
            if done(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("waited in vain: {what}: {:?}", self.discovery.status());
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// As careful writers do.
    fn replace(&self, name: &str, text: &str) {
        fs::write(self.path(".new"), text).unwrap();
        fs::rename(self.path(".new"), self.path(name)).unwrap();
    }

    fn ports(&self, service: &str) -> Vec<u16> {
        ports(&self.handle.load(), service)
    }
}

fn ports(directory: &Directory, service: &str) -> Vec<u16> {
    directory.service(&format!("shop/{service}")).map_or_else(Vec::new, |s| s.ports.iter().map(|p| p.port).collect())
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n  ports:\n  - port: {port}\n"
    )
}

fn has(status: &Status, source: &str, words: &str) -> bool {
    status.problems.iter().any(|p| p.source.ends_with(source) && (p.object.contains(words) || p.error.contains(words)))
}

#[tokio::test]
async fn every_spelling_of_manifests_is_read() {
    let json = |name: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"shop"}},"spec":{{"ports":[{{"port":4}}]}}}}"#
        )
    };
    let under = Under::start(&[
        ("a.yaml", service("one", 1)),
        ("b.yml", format!("# two in one\n---\n{}---\n{}", service("two", 2), service("three", 3))),
        ("c.json", json("four")),
        ("d.json", format!(r#"{{"kind":"List","apiVersion":"v1","items":[{},{}]}}"#, json("five"), json("six"))),
        ("e.yaml", format!(r#"{{"kind":"List","apiVersion":"v1","items":[{}]}}"#, json("seven"))),
        ("f.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n".to_owned()),
        ("README.md", "not a manifest".to_owned()),
        (".hidden.yaml", service("hidden", 9)),
    ])
    .await;
    let directory = under.handle.load();
    let mut names: Vec<_> = directory.services().map(|s| s.name.to_string()).collect();
    names.sort();
    assert_eq!(names, ["five", "four", "one", "seven", "six", "three", "two"]);
    let status = under.discovery.status();
    assert!(status.complete && status.problems.is_empty(), "{status:?}");
    assert_eq!((status.work.parsed, status.work.ignored), (7, 1));
    assert!(status.watches.iter().all(|w| w.phase == Phase::Watching && w.age.is_some() && w.lists == 1));
}

#[tokio::test]
async fn changes_by_writing_renaming_and_removing() {
    let mut under = Under::start(&[("a.yaml", service("web", 1)), ("b.yaml", service("other", 1))]).await;
    fs::write(under.path("a.yaml"), service("web", 2)).unwrap();
    under.until("a rewritten file", |d| ports(d, "web") == [2]).await;
    under.replace("a.yaml", &service("web", 3));
    under.until("a replaced file", |d| ports(d, "web") == [3]).await;
    let before = under.discovery.status().work;
    fs::rename(under.path("a.yaml"), under.path("z.yaml")).unwrap();
    under.replace("a2.yaml", &service("new", 1));
    under.until("a new file", |d| ports(d, "new") == [1]).await;
    assert_eq!(under.ports("web"), [3], "an object that moves between files is never away");
    under.status("the move", |s| s.work.parsed >= before.parsed + 2).await;
    fs::remove_file(under.path("z.yaml")).unwrap();
    under.until("a removed file", |d| d.service("shop/web").is_none()).await;
    assert_eq!(under.ports("other"), [1]);
    assert!(under.discovery.status().problems.is_empty());
}

#[tokio::test]
async fn one_document_of_many_changes_and_one_goes() {
    let file = |a: u16, b: Option<u16>| {
        let b = b.map(|b| format!("---\n{}", service("b", b))).unwrap_or_default();
        format!("{}{b}---\n{}", service("a", a), service("c", 1))
    };
    let mut under = Under::start(&[("all.yaml", file(1, Some(1)))]).await;
    let before = under.discovery.status().work;
    under.replace("all.yaml", &file(1, Some(2)));
    under.until("a changed document", |d| ports(d, "b") == [2]).await;
    let after = under.discovery.status().work;
    assert_eq!((after.parsed - before.parsed, after.rebuilt - before.rebuilt), (1, 1), "only what changed is parsed");
    under.replace("all.yaml", &file(1, None));
    under.until("a removed document", |d| d.service("shop/b").is_none()).await;
    assert_eq!((under.ports("a"), under.ports("c")), (vec![1], vec![1]));
}

#[tokio::test]
async fn a_config_map_is_swapped_by_its_symlink() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let version = |name: &str, port: u16, other: bool| {
        fs::create_dir(path.join(name)).unwrap();
        fs::write(path.join(name).join("web.yaml"), service("web", port)).unwrap();
        if other {
            fs::write(path.join(name).join("other.yaml"), service("other", port)).unwrap();
        }
    };
    let swap = |to: &str| {
        symlink(to, path.join("..data_tmp")).unwrap();
        fs::rename(path.join("..data_tmp"), path.join("..data")).unwrap();
    };
    version("..v1", 1, true);
    swap("..v1");
    symlink("..data/web.yaml", path.join("web.yaml")).unwrap();
    symlink("..data/other.yaml", path.join("other.yaml")).unwrap();
    let mut under = Under::on(folder).await;
    assert_eq!((under.ports("web"), under.ports("other")), (vec![1], vec![1]));
    version("..v2", 2, true);
    swap("..v2");
    under.until("the second version", |d| ports(d, "web") == [2] && ports(d, "other") == [2]).await;
    version("..v3", 3, false);
    swap("..v3");
    fs::remove_file(under.path("other.yaml")).unwrap();
    under.until("the third version", |d| ports(d, "web") == [3] && d.service("shop/other").is_none()).await;
}

#[tokio::test]
async fn a_folder_that_is_a_symlink_is_swapped_whole() {
    let outer = tempfile::tempdir().unwrap();
    for (name, port) in [("v1", 1), ("v2", 2)] {
        fs::create_dir(outer.path().join(name)).unwrap();
        fs::write(outer.path().join(name).join("web.yaml"), service("web", port)).unwrap();
    }
    let link = outer.path().join("current");
    symlink("v1", &link).unwrap();
    let handle = DirectoryHandle::default();
    let discovery = start(settings(&link), handle.clone()).await.unwrap();
    let mut under = Under { folder: outer, changes: handle.subscribe(), handle, discovery };
    under.until("the first version", |d| ports(d, "web") == [1]).await;
    symlink("v2", under.path("next")).unwrap();
    fs::rename(under.path("next"), &link).unwrap();
    under.until("the second version", |d| ports(d, "web") == [2]).await;
    fs::write(under.path("v2").join("web.yaml"), service("web", 3)).unwrap();
    under.until("a change in it", |d| ports(d, "web") == [3]).await;
}

#[tokio::test]
async fn a_broken_document_is_named_and_its_last_good_objects_stay() {
    let mut under = Under::start(&[
        ("a.yaml", format!("{}---\n{}", service("web", 1), service("api", 1))),
        ("b.yaml", service("other", 1)),
    ])
    .await;
    // One document breaks, another changes, a third file changes.
    under.replace("a.yaml", &format!("kind: Service\n  broken: [\n---\n{}", service("api", 2)));
    under.replace("b.yaml", &service("other", 2));
    under.until("the good parts", |d| ports(d, "api") == [2] && ports(d, "other") == [2]).await;
    assert_eq!(under.ports("web"), [1], "the last good one stays");
    let status = under.status("the problem", |s| has(s, "a.yaml", "document 1 (line 1)")).await;
    assert_eq!((status.problems.len(), status.work.skipped), (1, 1), "{status:?}");
    // Wrong types are named by the object.
    under.replace(
        "a.yaml",
        &format!("{}---\n{}", service("web", 3).replace("port: 3", "port: three"), service("api", 3)),
    );
    under.until("the good part", |d| ports(d, "api") == [3]).await;
    under.status("the problem", |s| has(s, "a.yaml", "Service shop/web, document 1") && s.problems.len() == 1).await;
    assert_eq!(under.ports("web"), [1]);
    // Mended, with one of the two gone: now it goes.
    under.replace("a.yaml", &service("web", 4));
    under.until("the mended file", |d| ports(d, "web") == [4] && d.service("shop/api").is_none()).await;
    under.status("no problem", |s| s.problems.is_empty()).await;
}

#[tokio::test]
async fn a_file_that_breaks_wholly_or_is_empty_takes_nothing_away() {
    let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web","namespace":"shop"},"spec":{"ports":[{"port":1}]}}"#;
    let mut under = Under::start(&[("a.json", json.to_owned()), ("b.yaml", service("other", 1))]).await;
    for (number, text) in ["{\"half\":", "", " \n", "\u{0}\u{1}"].into_iter().enumerate() {
        under.replace("a.json", text);
        let port = u16::try_from(number + 2).unwrap();
        under.replace("b.yaml", &service("other", port));
        under.until("the other file", |d| ports(d, "other") == [port]).await;
        under.status("the problem", |s| has(s, "a.json", "last good objects stay")).await;
        assert_eq!(under.ports("web"), [1], "{text:?}");
    }
    fs::write(under.path("a.json"), [0xff, 0xfe]).unwrap();
    under.status("the problem", |s| has(s, "a.json", "cannot be read")).await;
    assert_eq!(under.ports("web"), [1]);
    under.replace("a.json", &json.replace(":1}", ":9}"));
    under.until("the mended file", |d| ports(d, "web") == [9]).await;
    under.status("no problem", |s| s.problems.is_empty()).await;
}

#[tokio::test]
async fn a_folder_that_is_emptied_or_gone_leaves_the_last_good_view() {
    let mut under = Under::start(&[("a.yaml", service("web", 1)), ("b.yaml", service("api", 1))]).await;
    fs::remove_file(under.path("a.yaml")).unwrap();
    under.until("one file is explicit", |d| d.service("shop/web").is_none()).await;
    fs::remove_file(under.path("b.yaml")).unwrap();
    under
        .status("the problem", |s| s.problems.iter().any(|p| p.error.contains("no file has an object any more")))
        .await;
    assert_eq!(under.ports("api"), [1], "the last good view stays");
    // The folder itself goes, and another one comes.
    fs::remove_dir_all(under.folder.path()).unwrap();
    under.status("the problem", |s| s.problems.iter().any(|p| p.error.contains("cannot be read"))).await;
    assert!(under.discovery.status().watches.iter().all(|w| w.phase == Phase::Waiting && w.last_error.is_some()));
    assert_eq!(under.ports("api"), [1]);
    fs::create_dir(under.folder.path()).unwrap();
    under.replace("c.yaml", &service("new", 1));
    under.until("the new folder", |d| ports(d, "new") == [1] && d.service("shop/api").is_none()).await;
    under.status("no problem", |s| s.problems.is_empty()).await;
    under.replace("c.yaml", &service("new", 2));
    under.until("a change in it", |d| ports(d, "new") == [2]).await;
}

#[tokio::test]
async fn an_object_in_two_files_is_the_first_files() {
    let mut under = Under::start(&[("b.yaml", service("web", 2)), ("c.yaml", service("web", 3))]).await;
    assert_eq!(under.ports("web"), [2]);
    assert!(has(&under.discovery.status(), "c.yaml", "first file by name counts"));
    under.replace("a.yaml", &service("web", 1));
    under.until("an earlier file", |d| ports(d, "web") == [1]).await;
    fs::remove_file(under.path("a.yaml")).unwrap();
    under.until("the next in order", |d| ports(d, "web") == [2]).await;
    fs::remove_file(under.path("b.yaml")).unwrap();
    under.until("the last one", |d| ports(d, "web") == [3]).await;
    under.status("no problem", |s| s.problems.is_empty()).await;
    // Twice in one file.
    under.replace("c.yaml", &format!("{}---\n{}", service("web", 4), service("web", 5)));
    under.until("the first of two", |d| ports(d, "web") == [4]).await;
    under.status("the problem", |s| has(s, "c.yaml", "twice")).await;
    under.replace("c.yaml", &service("web", 5));
    under.until("what is left", |d| ports(d, "web") == [5]).await;
}

#[tokio::test]
async fn a_missing_folder_is_an_error_that_says_where() {
    for path in ["/nonexistent/manifests", "/proc/self/status"] {
        match start(settings(Path::new(path)), DirectoryHandle::default()).await {
            Err(error @ StartError::Folder { .. }) => assert!(error.to_string().contains(path), "{error}"),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("{path} is no folder"),
        }
    }
}

#[tokio::test]
async fn an_empty_folder_is_a_complete_view_and_dropping_ends_the_watch() {
    let mut under = Under::start(&[]).await;
    assert_eq!(under.handle.load().size().services, 0);
    under.replace("a.yaml", &service("web", 1));
    under.until("the first file", |d| ports(d, "web") == [1]).await;
    let Under { folder, handle, discovery, .. } = under;
    drop(discovery);
    // The thread has ended, and with it its handle: only ours are left to write.
    fs::write(folder.path().join("a.yaml"), service("web", 2)).unwrap();
    assert_eq!(ports(&handle.load(), "web"), [1]);
}

fn pod(name: &str, node: &str, phase: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: u-{name}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: web}}\nstatus: {{phase: {phase}, podIP: 127.0.2.9}}\n"
    )
}

fn node(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{addresses: [{{type: InternalIP, address: {ip}}}]}}\n"
    )
}

#[tokio::test]
async fn claims_of_senders_are_held_against_the_pods_of_all_nodes() {
    let mut under = Under::start(&[
        ("nodes.yaml", format!("{}---\n{}", node("node-a", "127.0.0.11"), node("node-b", "127.0.0.12"))),
        ("web.yaml", pod("web", "node-b", "Running")),
        ("job.yaml", pod("job", "node-b", "Running")),
        ("bare.yaml", pod("bare", "node-b", "Running").replace(", uid: u-bare", "")),
        ("own.yaml", pod("own", "node-a", "Running")),
    ])
    .await;
    assert_eq!(under.handle.load().size().pods, 1, "pods of other nodes are no pods of the directory");
    let workloads = under.discovery.workloads();
    let check = async |claim: &str, node: &str| workloads.check(&Claim::parse(claim).unwrap(), node).await;
    let Checked::Verified(web) = check("shop/web/u-web/web", "node-b").await else { panic!("not verified") };
    assert_eq!((&*web.node, web.address), ("node-b", Some("127.0.2.9".parse().unwrap())));
    assert!(
        matches!(check("shop/bare/shop:bare/web", "node-b").await, Checked::Verified(_)),
        "it has no uid of its own"
    );
    assert!(matches!(check("shop/web/u-web/web", "node-x").await, Checked::Unknown(_)));
    for (claim, node, why) in [
        ("shop/web/u-web/web", "node-a", "pod shop/web is on node node-b, not on node-a"),
        ("shop/web/u-old/web", "node-b", "pod shop/web on node node-b has uid u-web, not u-old"),
        ("shop/web/u-web/admin", "node-b", "pod shop/web on node node-b has service account web, not admin"),
        ("shop/new/u-new/web", "node-b", "no such pod on node node-b: shop/new (uid u-new)"),
    ] {
        assert_eq!(check(claim, node).await, Checked::False(why.into()));
    }

    under.replace("job.yaml", &pod("job", "node-b", "Succeeded"));
    fs::remove_file(under.path("web.yaml")).unwrap();
    under.replace("new.yaml", &format!("{}---\n{}", pod("new", "node-b", "Running"), service("sign", 1)));
    under.until("the change", |d| d.service("shop/sign").is_some()).await;
    // The three changes may be seen one after the other.
    let fresh = Claim::parse("shop/new/u-new/web").unwrap();
    assert!(matches!(workloads.check(&fresh, "node-b").await, Checked::Verified(_)));
    under
        .status("the removal", |_| workloads.known(&Claim::parse("shop/web/u-web/web").unwrap(), "node-b").is_none())
        .await;
    for claim in ["shop/web/u-web/web", "shop/job/u-job/web"] {
        assert!(matches!(check(claim, "node-b").await, Checked::False(_)), "{claim}");
    }

    // A folder that is away refutes nobody.
    let away = under.folder.path().with_extension("away");
    fs::rename(under.folder.path(), &away).unwrap();
    under.status("the failure", |s| has(s, "", "cannot be read")).await;
    assert!(workloads.known(&fresh, "node-b").is_some());
    assert!(matches!(check("shop/web/u-web/web", "node-b").await, Checked::Unknown(_)));
    fs::rename(&away, under.folder.path()).unwrap();
}

#[tokio::test]
async fn certificates_of_services_are_in_the_folder() {
    let web = service("web", 1)
        .replace("namespace: shop", "namespace: shop\n  annotations: {posthouse.io/tls-secret: web-tls}");
    let secret = |key: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {{name: web-tls, namespace: shop}}\n\
             stringData: {{tls.crt: CRT, tls.key: {key}, ca.crt: CA}}\n"
        )
    };
    let mut under =
        Under::start(&[("web.yaml", web), ("other.yaml", service("other", 2)), ("tls.yaml", secret("KEY-1"))]).await;
    let key = |d: &Directory| {
        let tls = d.service("shop/web")?.tls.clone()?;
        tls.problem.is_none().then(|| tls.key.clone())
    };
    assert_eq!(key(&under.handle.load()), Some(b"KEY-1".to_vec()));
    let rebuilt = under.discovery.status().work.rebuilt;
    under.replace("tls.yaml", &secret("KEY-2"));
    under.until("another key", |d| key(d) == Some(b"KEY-2".to_vec())).await;
    assert_eq!(under.discovery.status().work.rebuilt, rebuilt + 1);
    // Half a file, as a careless writer leaves it, and then none.
    under.replace("tls.yaml", &secret("[HUSH]"));
    let status = under.status("the problem", |s| has(s, "tls.yaml", "tls.key is no text")).await;
    assert!(!serde_json::to_string(&status).unwrap().contains("HUSH"));
    fs::remove_file(under.path("tls.yaml")).unwrap();
    under.status("the loss", |s| has(s, "certificates", "what was read last is used on")).await;
    assert_eq!(key(&under.handle.load()), Some(b"KEY-2".to_vec()));
}

#[tokio::test]
async fn policies_in_a_folder_are_kept_whatever_is_wrong_with_them() {
    let policy = |spec: &str| {
        format!(
            "apiVersion: posthouse.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let mut under = Under::start(&[("p.yaml", policy("{action: Deny}")), ("a.yaml", service("web", 80))]).await;
    let accepted = |d: &Directory| d.policies.get("shop/p").map(|policy| policy.problem().is_none());
    assert_eq!(accepted(&under.handle.load()), Some(true));
    under.replace("p.yaml", &policy("{action: Deny, rules: [{when: x}]}"));
    under.until("a condition that is none", |d| accepted(d) == Some(false)).await;
    let problems = under.status("the problem", |s| !s.problems.is_empty()).await.problems;
    assert!(problems[0].error.contains("spec.rules[0].when"), "{problems:?}");
    under.replace("p.yaml", &policy("{action: Deny, rules: [{}]}"));
    under.until("a good one", |d| accepted(d) == Some(true)).await;
    under.replace("p.yaml", &policy("{action: Deny, rules: ["));
    under.status("half a file", |s| s.problems.iter().any(|problem| problem.source == "p.yaml")).await;
    assert_eq!(accepted(&under.handle.load()), Some(true), "half a file takes nothing away");
    fs::remove_file(under.path("p.yaml")).unwrap();
    under.until("its end", |d| accepted(d).is_none()).await;
}
