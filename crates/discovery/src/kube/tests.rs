//! The `kube` source against a scripted API server: what a good server does, and what bad ones have done.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use posthouse_model::{Directory, DirectoryHandle};
use tokio::sync::{mpsc, watch};

use super::{KubeSource, Timing};
use crate::status::{Board, Kind, Phase, Status};
use crate::writer::Writer;

mod away;
mod bad_answers;
mod claims;
mod policies;
mod secrets;
mod server;

use server::{Answer, Asked, Script, Server, until};

/// A source under test and what it is seen by.
struct Under {
    handle: DirectoryHandle,
    changes: watch::Receiver<u64>,
    board: Arc<Board>,
    asked: mpsc::UnboundedReceiver<Asked>,
    _source: KubeSource,
}

impl Under {
    fn start(client: &Client, asked: mpsc::UnboundedReceiver<Asked>, timing: Timing) -> Self {
        Self::warm(client, asked, timing, None)
    }

    fn warm(
        client: &Client,
        asked: mpsc::UnboundedReceiver<Asked>,
        timing: Timing,
        snapshot: Option<std::path::PathBuf>,
    ) -> Self {
        Self::with_secrets(client, asked, timing, snapshot, &[])
    }

    /// The Secrets of `namespaces` are read, too.
    fn with_secrets(
        client: &Client,
        asked: mpsc::UnboundedReceiver<Asked>,
        timing: Timing,
        snapshot: Option<std::path::PathBuf>,
        namespaces: &[Arc<str>],
    ) -> Self {
        let handle = DirectoryHandle::default();
        let board = Arc::new(Board::new("kube".to_owned()));
        let node: Arc<str> = Arc::from("node-a");
        let writer = Writer::new(&node, "mesh", Arc::clone(&board), handle.clone());
        let source = KubeSource::start(client, &node, snapshot, namespaces, writer, timing);
        Self { changes: handle.subscribe(), handle, board, asked, _source: source }
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Directory) -> bool) {
        let handle = self.handle.clone();
        until(&mut self.changes, what, || done(&handle.load())).await;
    }

    /// Waits for a status; nothing tells of its changes.
    async fn status(&self, what: &str, done: impl Fn(&Status) -> bool) -> Status {
        for _ in 0..10_000 {
            let status = self.board.status();
            if done(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("waited in vain: {what}: {:?}", self.board.status());
    }

    /// The next request for `kind`, list or watch.
    async fn asked(&mut self, kind: Kind, watch: bool) -> Asked {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(3600), self.asked.recv());
            let asked = next.await.expect("a request comes").unwrap();
            if asked.kind == kind && asked.watch == watch {
                return asked;
            }
        }
    }
}

/// Short where a test would wait, long where it must not matter.
fn quick() -> Timing {
    Timing {
        backoff: (Duration::from_millis(2), Duration::from_millis(20)),
        unreachable: Duration::from_millis(20),
        grace: Duration::from_secs(600),
        ..Timing::default()
    }
}

fn service(name: &str) -> String {
    // As in the API's typed lists: without kind and apiVersion.
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"5"}},"spec":{{"clusterIP":"10.0.0.1","ports":[{{"port":80,"targetPort":8080}}]}}}}"#
    )
}

fn slice(service: &str, version: &str, ips: &[&str]) -> String {
    let endpoints: Vec<String> = ips
        .iter()
        .map(|ip| {
            format!(
                r#"{{"addresses":["{ip}"],"conditions":{{}},"nodeName":"node-b","targetRef":{{"kind":"Pod","name":"p","uid":"u-{ip}"}}}}"#
            )
        })
        .collect();
    format!(
        r#"{{"metadata":{{"name":"{service}-x","namespace":"shop","resourceVersion":"{version}","labels":{{"kubernetes.io/service-name":"{service}"}}}},"addressType":"IPv4","ports":[{{"port":8080}}],"endpoints":[{}]}}"#,
        endpoints.join(",")
    )
}

/// The addresses of a Service's endpoints, in order.
fn ips(directory: &Directory, service: &str) -> Vec<String> {
    let service = directory.service(&format!("shop/{service}"));
    let ports = service.iter().flat_map(|service| &service.ports);
    ports.flat_map(|port| port.endpoints.all()).map(|endpoint| endpoint.address.ip().to_string()).collect()
}

fn one(items: impl IntoIterator<Item = String>) -> Answer {
    Answer::List(items.into_iter().collect(), "10", None)
}

/// A script with one Service and its slice of one endpoint.
fn scripted() -> (Arc<Script>, mpsc::UnboundedReceiver<Asked>) {
    let (script, asked) = Script::new();
    script.list(Kind::Service, one([service("web")]));
    script.list(Kind::EndpointSlice, one([slice("web", "9", &["10.1.0.1"])]));
    (script, asked)
}

#[tokio::test]
async fn a_list_comes_in_pages_and_is_complete_with_the_last_kind() {
    let (script, asked) = Script::new();
    script.list(Kind::Service, Answer::List(vec![service("a"), service("b")], "10", Some("t1")));
    script.list(Kind::Service, Answer::List(vec![service("c")], "10", Some("t2")));
    script.list(Kind::Service, Answer::List(vec![service("d")], "10", None));
    // Go writes empty lists as null.
    let bare = slice("a", "9", &[]).replace("[]", "null").replace(r#"[{"port":8080}]"#, "null");
    script.list(Kind::EndpointSlice, Answer::List(vec![bare, slice("d", "9", &["10.1.0.1"])], "10", None));
    script.list(Kind::Node, Answer::Silence);
    let server = Server::start(&script).await;
    let timing = Timing { page: Duration::from_millis(200), ..quick() };
    let mut under = Under::start(&server.client(), asked, timing);

    let pages: Vec<Asked> = {
        let mut pages = Vec::new();
        for _ in 0..3 {
            pages.push(under.asked(Kind::Service, false).await);
        }
        pages
    };
    assert_eq!(pages.iter().map(|page| page.query("continue")).collect::<Vec<_>>(), [None, Some("t1"), Some("t2")]);
    assert!(pages.iter().all(|page| page.query("limit") == Some("500")));
    under.until("the last page", |d| d.service("shop/d").is_some() && !ips(d, "d").is_empty()).await;
    assert!(!under.handle.load().complete, "Nodes are not listed yet");
    // The first list of Nodes hangs and is given up; the second is answered.
    under.until("completeness", |d| d.complete).await;
    let size = under.handle.load().size();
    assert_eq!((size.services, size.endpoints), (4, 1));
    assert!(under.board.status().complete);
}

#[tokio::test]
async fn only_pods_are_asked_for_by_node() {
    let (script, asked) = Script::new();
    let server = Server::start(&script).await;
    let mut under = Under::start(&server.client(), asked, quick());
    let mut selectors = std::collections::HashMap::new();
    while selectors.len() < 2 * Kind::ALL.len() {
        let asked = under.asked.recv().await.unwrap();
        selectors.insert((asked.kind, asked.watch), asked.query("fieldSelector").map(str::to_owned));
        if asked.watch {
            assert_eq!(asked.query("allowWatchBookmarks"), Some("true"), "{asked:?}");
            assert_eq!(asked.query("resourceVersion"), Some("1"), "{asked:?}");
        }
    }
    for ((kind, _), selector) in selectors {
        let want = (kind == Kind::Pod).then(|| "spec.nodeName=node-a".to_owned());
        assert_eq!(selector, want, "{kind}");
    }
}

#[tokio::test]
async fn events_change_the_view_and_a_bookmark_says_where_to_go_on() {
    let (script, asked) = scripted();
    let events = script.stream(Kind::EndpointSlice);
    let server = Server::start(&script).await;
    let mut under = Under::start(&server.client(), asked, quick());
    assert_eq!(under.asked(Kind::EndpointSlice, true).await.query("resourceVersion"), Some("10"));
    under.until("the list", |d| d.complete && ips(d, "web") == ["10.1.0.1"]).await;

    events.send("MODIFIED", &slice("web", "11", &["10.1.0.1", "10.1.0.2"]));
    under.until("an added endpoint", |d| ips(d, "web") == ["10.1.0.1", "10.1.0.2"]).await;
    events.send("DELETED", &slice("web", "12", &["10.1.0.1", "10.1.0.2"]));
    under.until("a deleted slice", |d| ips(d, "web").is_empty()).await;
    // Two events in one piece and a third in two.
    let third = format!("{{\"type\":\"MODIFIED\",\"object\":{}}}\n", slice("web", "14", &["10.1.0.4"]));
    let (start, end) = third.split_at(40);
    events.raw(&format!("{{\"type\":\"ADDED\",\"object\":{}}}\n{start}", slice("web", "13", &["10.1.0.3"])));
    under.until("the first of two", |d| ips(d, "web") == ["10.1.0.3"]).await;
    events.raw(end);
    under.until("the second of two", |d| ips(d, "web") == ["10.1.0.4"]).await;
    events.bookmark("20");
    drop(events);
    assert_eq!(under.asked(Kind::EndpointSlice, true).await.query("resourceVersion"), Some("20"));
    assert_eq!(ips(&under.handle.load(), "web"), ["10.1.0.4"], "the end of a watch changes nothing");
}

/// Lists once, loses the watch by `lose`, and expects a relist that applies differences only.
async fn relists_after(lose: impl FnOnce(&Script)) {
    let (script, asked) = Script::new();
    script.list(Kind::Service, one([service("web"), service("old")]));
    script.list(Kind::EndpointSlice, one([slice("web", "9", &["10.1.0.1"]), slice("old", "9", &["10.1.0.9"])]));
    lose(&script);
    script.list(Kind::EndpointSlice, Answer::List(vec![slice("web", "30", &["10.1.0.1", "10.1.0.2"])], "30", None));
    let server = Server::start(&script).await;
    let mut under = Under::start(&server.client(), asked, quick());
    under.until("the relist", |d| ips(d, "web").len() == 2 && ips(d, "old").is_empty()).await;
    loop {
        if under.asked(Kind::EndpointSlice, true).await.query("resourceVersion") == Some("30") {
            break;
        }
    }
    let status = under.status("the second list", |s| s.watches[Kind::EndpointSlice.index()].lists == 2).await;
    assert_eq!(status.watches[Kind::Service.index()].lists, 1, "only the kind that was lost is listed again");
    assert!(under.handle.load().service("shop/old").is_some());
}

#[tokio::test]
async fn a_version_that_is_gone_by_http_status_means_a_relist() {
    relists_after(|script| script.watch(Kind::EndpointSlice, Answer::Status(410))).await;
}

#[tokio::test]
async fn a_version_that_is_gone_by_an_error_event_means_a_relist() {
    relists_after(|script| {
        script.stream(Kind::EndpointSlice).send("ERROR", &server::status(410));
    })
    .await;
}

#[tokio::test]
async fn a_line_that_is_no_event_means_a_relist() {
    relists_after(|script| {
        script.stream(Kind::EndpointSlice).raw("<html>502 Bad Gateway</html>\n");
    })
    .await;
}

#[tokio::test]
async fn an_expired_page_token_begins_the_list_anew() {
    let (script, asked) = scripted();
    script.list(Kind::Node, Answer::List(vec![], "10", Some("old-token")));
    script.list(Kind::Node, Answer::Status(410));
    let server = Server::start(&script).await;
    let mut under = Under::start(&server.client(), asked, quick());
    let mut tokens = Vec::new();
    for _ in 0..3 {
        tokens.push(under.asked(Kind::Node, false).await.query("continue").map(str::to_owned));
    }
    assert_eq!(tokens, [None, Some("old-token".to_owned()), None]);
    under.until("completeness", |d| d.complete).await;
}

#[tokio::test]
async fn statistics_outlive_a_relist() {
    let (script, asked) = scripted();
    let events = script.stream(Kind::EndpointSlice);
    script.list(Kind::EndpointSlice, Answer::List(vec![slice("web", "30", &["10.1.0.1", "10.1.0.2"])], "30", None));
    let server = Server::start(&script).await;
    let mut under = Under::start(&server.client(), asked, quick());
    under.until("the list", |d| ips(d, "web").len() == 1).await;
    under.handle.load().service("shop/web").unwrap().ports[0].endpoints.all()[0].stats.begin();
    events.send("ERROR", &server::status(410));
    under.until("the relist", |d| ips(d, "web").len() == 2).await;
    assert_eq!(under.handle.load().service("shop/web").unwrap().ports[0].endpoints.all()[0].stats.in_flight(), 1);
}
