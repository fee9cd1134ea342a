//! Claims of senders against a scripted API server, in paused time: who is verified, who is refuted, and when nobody can
//! tell; what it costs the API, and how much there is at most.

use posthouse_model::Node;
use posthouse_model::workload::{Checked, Claim, Identity, Workloads};
use smallvec::SmallVec;

use super::*;
use crate::kube::peers::Peers;
use crate::roster::WAITING;

struct Claims {
    peers: Arc<Peers>,
    script: Arc<Script>,
    asked: mpsc::UnboundedReceiver<Asked>,
    board: Arc<Board>,
    directory: DirectoryHandle,
}

fn know(directory: &DirectoryHandle, nodes: impl IntoIterator<Item = String>) {
    let mut changed = Directory::clone(&directory.load());
    for name in nodes {
        changed.put_node(Node { name: name.into(), addresses: SmallVec::new(), pod_cidrs: SmallVec::new() });
    }
    directory.publish(changed);
}

impl Claims {
    fn new(script: (Arc<Script>, mpsc::UnboundedReceiver<Asked>)) -> Self {
        let (script, asked) = script;
        let directory = DirectoryHandle::default();
        know(&directory, ["node-b".to_owned()]);
        let board = Arc::new(Board::new("kube".to_owned()));
        let peers = Peers::new(script.client(), directory.clone(), Arc::clone(&board), Timing::default());
        tokio::spawn(Arc::clone(&peers).sweep());
        Self { peers, script, asked, board, directory }
    }

    async fn check(&self, claim: &str) -> Checked {
        self.peers.check(&read(claim), "node-b").await
    }

    fn known(&self, claim: &str) -> Option<Checked> {
        self.peers.known(&read(claim), "node-b")
    }

    /// The requests so far.
    fn asked(&mut self) -> Vec<Asked> {
        std::iter::from_fn(|| self.asked.try_recv().ok()).collect()
    }
}

fn read(claim: &str) -> Claim {
    Claim::parse(claim).unwrap()
}

fn pod(name: &str, uid: &str, account: &str, phase: &str, version: &str) -> String {
    pod_on("node-b", name, uid, account, phase, version)
}

fn pod_on(node: &str, name: &str, uid: &str, account: &str, phase: &str, version: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"shop","uid":"{uid}","resourceVersion":"{version}"}},"spec":{{"nodeName":"{node}","serviceAccountName":"{account}"}},"status":{{"phase":"{phase}","podIPs":[{{"ip":"10.1.0.7"}}]}}}}"#
    )
}

fn web() -> String {
    pod("web-1", "u1", "web", "Running", "7")
}

fn verified(checked: Checked) -> Arc<Identity> {
    match checked {
        Checked::Verified(identity) => identity,
        other => panic!("{other:?}"),
    }
}

fn refuted(checked: Checked) -> String {
    match checked {
        Checked::False(why) => why.to_string(),
        other => panic!("{other:?}"),
    }
}

fn unknown(checked: Checked) -> &'static str {
    match checked {
        Checked::Unknown(why) => why,
        other => panic!("{other:?}"),
    }
}

/// Sleeping lets the other tasks do all that they can do by then.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn one_list_and_one_watch_serve_all_pods_of_a_node() {
    let script = Script::new();
    let api = pod("api-1", "u2", "api", "Pending", "8");
    script.0.list(Kind::Pod, Answer::List(vec![web(), api], "10", None));
    let mut claims = Claims::new(script);
    assert_eq!(claims.known("shop/web-1/u1/web"), None);
    let identity = verified(claims.check("shop/web-1/u1/web").await);
    assert_eq!((&*identity.pod.namespace, &*identity.pod.name, &*identity.pod.uid), ("shop", "web-1", "u1"));
    assert_eq!((&*identity.service_account, &*identity.node), ("web", "node-b"));
    assert_eq!(identity.address, Some("10.1.0.7".parse().unwrap()));
    let again = verified(claims.known("shop/web-1/u1/web").unwrap());
    assert!(Arc::ptr_eq(&identity, &again), "nothing is allocated a request");
    verified(claims.known("shop/api-1/u2/api").unwrap());
    pass(Duration::from_millis(1)).await;

    let asked = claims.asked();
    let [list, watch] = &asked[..] else { panic!("{asked:?}") };
    for request in [list, watch] {
        assert_eq!((request.kind, request.query("fieldSelector")), (Kind::Pod, Some("spec.nodeName=node-b")));
    }
    assert_eq!((list.watch, list.query("resourceVersion"), list.query("limit")), (false, Some("0"), None));
    assert_eq!((watch.watch, watch.query("resourceVersion")), (true, Some("10")));
    let counted = claims.board.status().claims;
    assert_eq!((counted.verified, counted.refuted, counted.unknown, counted.nodes), (3, 0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_the_list_refutes_is_false_and_says_why() {
    let script = Script::new();
    script.0.list(Kind::Pod, one([web()]));
    let claims = Claims::new(script);
    verified(claims.check("shop/web-1/u1/web").await);
    for (claim, why) in [
        ("shop/web-2/u9/web", "no such pod on node node-b: shop/web-2 (uid u9)"),
        ("other/web-1/u1/web", "no such pod on node node-b: other/web-1 (uid u1)"),
        ("shop/web-1/u9/web", "pod shop/web-1 on node node-b has uid u1, not u9"),
        ("shop/web-1/u1/admin", "pod shop/web-1 on node node-b has service account web, not admin"),
    ] {
        assert_eq!(claims.known(claim), None, "{claim}: it may be news");
        assert_eq!(refuted(claims.check(claim).await), why);
    }
    assert_eq!(claims.board.status().claims.refuted, 4);
}

#[tokio::test(start_paused = true)]
async fn pods_of_another_node_are_no_pods_of_this_one() {
    let script = Script::new();
    // The selector is ours, the answer is not.
    let foreign = pod_on("node-c", "db-1", "u3", "db", "Running", "7");
    script.0.list(Kind::Pod, one([web(), foreign]));
    let claims = Claims::new(script);
    assert!(refuted(claims.check("shop/db-1/u3/db").await).starts_with("no such pod on node node-b"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_may_send_before_the_watch_shows_it() {
    let script = Script::new();
    script.0.list(Kind::Pod, one([web()]));
    let events = script.0.stream(Kind::Pod);
    let claims = Claims::new(script);
    verified(claims.check("shop/web-1/u1/web").await);
    let late = pod("web-2", "u2", "web", "Pending", "11");
    let (checked, ()) = tokio::join!(claims.check("shop/web-2/u2/web"), async {
        pass(Duration::from_millis(900)).await;
        events.send("ADDED", &late);
    });
    verified(checked);
    // One of the same name and another uid takes the place of the first, as in a StatefulSet.
    let (checked, ()) = tokio::join!(claims.check("shop/web-2/u3/web"), async {
        pass(Duration::from_millis(500)).await;
        events.send("DELETED", &late);
        events.send("ADDED", &pod("web-2", "u3", "web", "Pending", "12"));
    });
    verified(checked);
    assert_eq!(claims.known("shop/web-2/u2/web"), None, "the first is no more");
}

#[tokio::test(start_paused = true)]
async fn pods_that_finished_or_are_deleted_are_verified_no_more() {
    let script = Script::new();
    let done = pod("job-0", "u5", "job", "Succeeded", "7");
    script.0.list(Kind::Pod, one([web(), pod("job-1", "u2", "job", "Running", "7"), done]));
    let events = script.0.stream(Kind::Pod);
    let claims = Claims::new(script);
    verified(claims.check("shop/web-1/u1/web").await);
    verified(claims.check("shop/job-1/u2/job").await);
    refuted(claims.check("shop/job-0/u5/job").await);
    events.send("MODIFIED", &pod("job-1", "u2", "job", "Failed", "11"));
    events.send("DELETED", &web());
    pass(Duration::from_millis(1)).await;
    for claim in ["shop/job-1/u2/job", "shop/web-1/u1/web"] {
        assert_eq!(claims.known(claim), None);
        assert!(refuted(claims.check(claim).await).starts_with("no such pod on node node-b"));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_list_nobody_can_tell() {
    let script = Script::new();
    script.0.list(Kind::Pod, Answer::Status(403));
    script.0.list(Kind::Pod, Answer::Silence);
    let claims = Claims::new(script);
    assert_eq!(unknown(claims.check("shop/web-1/u1/web").await), "the pods of its node are not listed yet");
    let status = claims.board.status();
    assert!(status.problems.iter().any(|p| p.object == "pods of other nodes" && p.error.contains("403")), "{status:?}");
    assert_eq!(status.claims.unknown, 1);
}

/// The timer is over before the news that came meanwhile are read.
#[tokio::test(start_paused = true)]
async fn a_claim_is_not_false_because_the_machine_stood_still() {
    let script = Script::new();
    script.0.list(Kind::Pod, one([pod("api-1", "u2", "api", "Running", "7")]));
    let events = script.0.stream(Kind::Pod);
    let claims = Claims::new(script);
    verified(claims.check("shop/api-1/u2/api").await);
    let (checked, ()) = tokio::join!(claims.check("shop/web-1/u1/web"), async {
        pass(Duration::from_millis(10)).await;
        tokio::time::advance(Duration::from_secs(3)).await;
        events.send("ADDED", &web());
    });
    verified(checked);
    let began = tokio::time::Instant::now();
    refuted(claims.check("shop/web-2/u3/web").await);
    assert!(began.elapsed() < Duration::from_millis(1_100), "in time it is false at once: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn while_the_api_is_away_who_was_verified_stays_so_and_nobody_is_refuted() {
    let script = Script::new();
    script.0.list(Kind::Pod, one([web()]));
    let events = script.0.stream(Kind::Pod);
    let claims = Claims::new(script);
    verified(claims.check("shop/web-1/u1/web").await);
    claims.script.set_away(true);
    events.cut();
    pass(Duration::from_secs(3600)).await;
    // Nobody asked for an hour; that ended the watch. So begin anew, and be away for less than that.
    claims.script.set_away(false);
    claims.script.list(Kind::Pod, one([web()]));
    let events = claims.script.stream(Kind::Pod);
    verified(claims.check("shop/web-1/u1/web").await);
    claims.script.set_away(true);
    events.cut();
    for _ in 0..20 {
        pass(Duration::from_secs(300)).await;
        verified(claims.known("shop/web-1/u1/web").unwrap());
        verified(claims.check("shop/web-1/u1/web").await);
        for claim in ["shop/web-2/u2/web", "shop/web-1/u2/web", "shop/web-1/u1/admin"] {
            assert_eq!(unknown(claims.check(claim).await), "the API is away and did not show such a pod before");
        }
    }
    assert!(claims.board.status().problems.iter().any(|p| p.object == "pods of other nodes"));

    claims.script.set_away(false);
    let events = claims.script.stream(Kind::Pod);
    pass(Duration::from_secs(31)).await;
    events.send("ADDED", &pod("web-2", "u2", "web", "Running", "11"));
    verified(claims.check("shop/web-2/u2/web").await);
    refuted(claims.check("shop/web-3/u3/web").await);
    assert_eq!(claims.board.status().problems, []);
}

#[tokio::test(start_paused = true)]
async fn a_relist_counts_only_when_it_is_complete_and_an_empty_one_never() {
    let script = Script::new();
    script.0.list(Kind::Pod, one([web(), pod("api-1", "u2", "api", "Running", "7")]));
    let events = script.0.stream(Kind::Pod);
    let claims = Claims::new(script);
    verified(claims.check("shop/web-1/u1/web").await);
    claims.script.list(Kind::Pod, one([]));
    claims.script.list(Kind::Pod, Answer::List(vec![web()], "20", Some("more")));
    claims.script.list(Kind::Pod, Answer::Silence);
    events.send("ERROR", &server::status(410));
    pass(Duration::from_secs(5)).await;
    verified(claims.known("shop/web-1/u1/web").unwrap());
    verified(claims.known("shop/api-1/u2/api").unwrap());
    unknown(claims.check("shop/web-3/u3/web").await);
    claims.script.list(Kind::Pod, one([]));
    let _events = claims.script.stream(Kind::Pod);
    pass(Duration::from_secs(120)).await;
    verified(claims.known("shop/web-1/u1/web").unwrap());
    assert_eq!(claims.known("shop/api-1/u2/api"), None);
    refuted(claims.check("shop/api-1/u2/api").await);
    let lists: Vec<Asked> = { claims }.asked().into_iter().filter(|asked| !asked.watch).collect();
    let versions: Vec<_> = lists.iter().map(|list| list.query("resourceVersion")).collect();
    assert_eq!((versions[0], versions[1]), (Some("0"), None), "never back to what an older cache has");
}

#[tokio::test(start_paused = true)]
async fn only_nodes_of_the_directory_are_asked_about() {
    let mut claims = Claims::new(Script::new());
    let checked = claims.peers.check(&read("shop/web-1/u1/web"), "node-x").await;
    assert_eq!(unknown(checked), "its node is not known");
    assert_eq!(claims.asked(), []);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_nobody_asked_for_ten_minutes_ends() {
    let script = Script::new();
    script.0.list(Kind::Pod, one([web()]));
    let events = script.0.stream(Kind::Pod);
    let claims = Claims::new(script);
    verified(claims.check("shop/web-1/u1/web").await);
    for _ in 0..10 {
        for _ in 0..9 {
            pass(Duration::from_secs(60)).await;
            events.bookmark("11");
        }
        verified(claims.known("shop/web-1/u1/web").unwrap());
    }
    assert_eq!(claims.board.status().claims.nodes, 1);
    for _ in 0..11 {
        pass(Duration::from_secs(60)).await;
        if claims.board.status().claims.nodes > 0 {
            events.bookmark("12");
        }
    }
    events.left().await;
    assert_eq!(claims.board.status().claims.nodes, 0);
    assert_eq!(claims.known("shop/web-1/u1/web"), None);
}

#[tokio::test(start_paused = true)]
async fn the_watch_of_a_node_that_is_no_more_ends() {
    let script = Script::new();
    script.0.list(Kind::Pod, one([web()]));
    let events = script.0.stream(Kind::Pod);
    let claims = Claims::new(script);
    verified(claims.check("shop/web-1/u1/web").await);
    let mut changed = Directory::clone(&claims.directory.load());
    changed.remove_node("node-b");
    claims.directory.publish(changed);
    events.left().await;
    pass(Duration::from_secs(1)).await;
    assert_eq!(claims.known("shop/web-1/u1/web"), None);
}

#[tokio::test(start_paused = true)]
async fn at_most_512_nodes_are_watched_and_the_least_used_gives_way() {
    let claims = Claims::new(Script::new());
    let node = |n: usize| format!("node-{n}");
    know(&claims.directory, (0..600).map(node));
    for n in 0..512 {
        claims
            .script
            .list(Kind::Pod, Answer::List(vec![pod_on(&node(n), "web-1", "u1", "web", "Running", "7")], "10", None));
        verified(claims.peers.check(&read("shop/web-1/u1/web"), &node(n)).await);
    }
    assert_eq!(claims.board.status().claims.nodes, 512);
    let claim = read("shop/web-1/u1/web");
    assert_eq!(unknown(claims.peers.check(&claim, &node(512)).await), "too many nodes are asked about");
    // All but one are used while the time passes after which a watch may be given up.
    for _ in 0..4 {
        pass(Duration::from_secs(10)).await;
        for n in (0..512).filter(|n| *n != 77) {
            verified(claims.peers.known(&claim, &node(n)).unwrap());
        }
    }
    claims
        .script
        .list(Kind::Pod, Answer::List(vec![pod_on(&node(512), "web-1", "u1", "web", "Running", "7")], "10", None));
    verified(claims.peers.check(&claim, &node(512)).await);
    assert_eq!(claims.peers.known(&claim, &node(77)), None);
    assert!(claims.peers.known(&claim, &node(76)).is_some());
    assert_eq!(unknown(claims.peers.check(&claim, &node(513)).await), "too many nodes are asked about");
    assert_eq!(claims.board.status().claims.nodes, 512);
}

#[tokio::test(start_paused = true)]
async fn so_many_claims_of_a_node_may_wait_at_a_time() {
    let script = Script::new();
    script.0.list(Kind::Pod, one([web()]));
    let claims = Claims::new(script);
    verified(claims.check("shop/web-1/u1/web").await);
    let waiting: Vec<_> = (0..WAITING)
        .map(|n| {
            let peers = Arc::clone(&claims.peers);
            tokio::spawn(async move { peers.check(&read(&format!("shop/made-up/{n}/x")), "node-b").await })
        })
        .collect();
    pass(Duration::from_millis(1)).await;
    assert_eq!(
        unknown(claims.check("shop/made-up/too-many/x").await),
        "too many claims of its node wait to be checked"
    );
    verified(claims.check("shop/web-1/u1/web").await);
    for checked in waiting {
        refuted(checked.await.unwrap());
    }
    refuted(claims.check("shop/made-up/too-many/x").await);
}

#[tokio::test(start_paused = true)]
async fn workers_may_ask_from_runtimes_of_their_own() {
    let script = Script::new();
    script.0.list(Kind::Pod, one([web()]));
    let claims = Claims::new(script);
    let peers = Arc::clone(&claims.peers);
    let worker = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { peers.check(&read("shop/web-1/u1/web"), "node-b").await })
    });
    while !worker.is_finished() {
        pass(Duration::from_millis(1)).await;
    }
    verified(worker.join().unwrap());
    assert!(claims.known("shop/web-1/u1/web").is_some(), "the watch outlives the worker that asked first");
}
