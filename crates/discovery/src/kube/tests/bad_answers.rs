//! Answers that are broken, silent, empty or not wanted: the last good view stays.

use super::*;

#[tokio::test]
async fn a_watch_cut_off_within_an_object_goes_on_where_it_was() {
    let (script, asked) = scripted();
    let first = script.stream(Kind::EndpointSlice);
    let second = script.stream(Kind::EndpointSlice);
    let server = Server::start(&script).await;
    let mut under = Under::start(&server.client(), asked, quick());
    under.asked(Kind::EndpointSlice, true).await;
    first.send("MODIFIED", &slice("web", "11", &["10.1.0.2"]));
    under.until("the whole object", |d| ips(d, "web") == ["10.1.0.2"]).await;
    let half = slice("web", "12", &["10.1.0.3"]);
    first.raw(&format!("{{\"type\":\"MODIFIED\",\"object\":{}", half.split_at(half.len() / 2).0));
    first.cut();
    assert_eq!(under.asked(Kind::EndpointSlice, true).await.query("resourceVersion"), Some("11"));
    assert_eq!(ips(&under.handle.load(), "web"), ["10.1.0.2"], "half an object changes nothing");
    second.send("MODIFIED", &half);
    under.until("the object in whole", |d| ips(d, "web") == ["10.1.0.3"]).await;
    assert_eq!(under.board.status().watches[Kind::EndpointSlice.index()].lists, 1, "no relist was needed");
}

#[tokio::test]
async fn a_list_cut_off_is_asked_for_again() {
    let (script, asked) = scripted();
    let half = script.list_stream(Kind::Node);
    half.raw(r#"{"kind":"NodeList","metadata":{"resourceVersion":"10"},"items":[{"metadata":{"na"#);
    half.cut();
    script.list(
        Kind::Node,
        one([r#"{"metadata":{"name":"node-b"},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.2"}]}}"#
            .to_owned()]),
    );
    let server = Server::start(&script).await;
    let mut under = Under::start(&server.client(), asked, quick());
    under.until("the Node", |d| d.complete && d.node("node-b").is_some()).await;
}

#[tokio::test]
async fn an_object_of_wrong_types_is_skipped_and_its_last_good_state_stays() {
    let bad = |name: &str| slice(name, "11", &[]).replace(r#""port":8080"#, r#""port":"many""#);
    let (script, asked) = Script::new();
    script.list(Kind::Service, one([service("web"), service("other")]));
    script.list(Kind::EndpointSlice, one([bad("other"), "7".to_owned(), slice("web", "9", &["10.1.0.1"])]));
    let events = script.stream(Kind::EndpointSlice);
    let server = Server::start(&script).await;
    let mut under = Under::start(&server.client(), asked, quick());
    under.until("the good ones", |d| d.complete && ips(d, "web") == ["10.1.0.1"]).await;
    let status = under.board.status();
    let of = |status: &Status, object: &str| status.problems.iter().any(|p| p.object == object);
    assert!(of(&status, "EndpointSlice shop/other-x"), "{:?}", status.problems);
    assert_eq!(status.work.skipped, 2);

    events.send("MODIFIED", &bad("web"));
    events.send("MODIFIED", &slice("other", "12", &["10.1.0.5"]));
    under.until("what follows", |d| ips(d, "other") == ["10.1.0.5"]).await;
    assert_eq!(ips(&under.handle.load(), "web"), ["10.1.0.1"], "the last good state stays");
    let status = under.board.status();
    assert!(of(&status, "EndpointSlice shop/web-x") && !of(&status, "EndpointSlice shop/other-x"), "{status:?}");
    events.send("DELETED", &bad("web"));
    under.until("its deletion", |d| ips(d, "web").is_empty()).await;
    assert!(!of(&under.board.status(), "EndpointSlice shop/web-x"));
}

#[tokio::test]
async fn a_silent_watch_is_begun_anew_and_then_listed_anew() {
    let (script, asked) = scripted();
    let first = script.stream(Kind::EndpointSlice);
    let second = script.stream(Kind::EndpointSlice);
    let server = Server::start(&script).await;
    let timing = Timing { stall: Duration::from_millis(100), ..quick() };
    let mut under = Under::start(&server.client(), asked, timing);
    under.asked(Kind::EndpointSlice, false).await;
    first.left().await;
    under.asked(Kind::EndpointSlice, true).await;
    assert_eq!(under.asked(Kind::EndpointSlice, true).await.query("resourceVersion"), Some("10"));
    // An unscripted relist is an empty one, which must not be believed.
    second.left().await;
    under.asked(Kind::EndpointSlice, false).await;
    let status = under
        .status("the last error", |status| {
            let error = status.watches[Kind::EndpointSlice.index()].last_error.as_deref();
            error.is_some_and(|error| error.contains("not believed"))
        })
        .await;
    assert_eq!(status.watches[Kind::EndpointSlice.index()].phase, Phase::Waiting);
    assert_eq!(ips(&under.handle.load(), "web"), ["10.1.0.1"]);
}

#[tokio::test]
async fn an_empty_relist_is_not_believed() {
    let pod = r#"{"metadata":{"name":"p","namespace":"shop","uid":"u1"},"spec":{"nodeName":"node-a"},"status":{"podIP":"10.2.0.1"}}"#;
    let node = r#"{"metadata":{"name":"node-a"}}"#;
    let (script, asked) = scripted();
    script.list(Kind::Pod, one([pod.to_owned()]));
    script.list(Kind::Node, one([node.to_owned()]));
    let server = Server::start(&script).await;
    let streams: Vec<_> = Kind::ALL.iter().map(|kind| script.stream(*kind)).collect();
    let mut under = Under::start(&server.client(), asked, quick());
    under.until("the list", |d| d.complete && d.size().pods == 1).await;
    for events in &streams {
        events.send("ERROR", &server::status(410));
    }
    for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_optional()) {
        under
            .status("disbelief", |s| {
                s.watches[kind.index()].last_error.as_deref().is_some_and(|e| e.contains("not believed"))
            })
            .await;
    }
    let size = under.handle.load().size();
    assert_eq!((size.services, size.endpoints, size.nodes, size.pods), (1, 1, 1, 1));
    // A list that is not empty is believed again.
    script.list(Kind::EndpointSlice, one([slice("web", "40", &["10.1.0.7"])]));
    under.until("belief", |d| ips(d, "web") == ["10.1.0.7"]).await;
    under.status("no error", |s| s.watches[Kind::EndpointSlice.index()].last_error.is_none()).await;
}

#[tokio::test]
async fn what_is_forbidden_is_said_and_asked_for_again() {
    let (script, asked) = scripted();
    script.list(Kind::Node, Answer::Status(403));
    script.list(Kind::Node, Answer::Text("{}".to_owned()));
    script.list(Kind::Node, Answer::Text("not json".to_owned()));
    let server = Server::start(&script).await;
    let timing = Timing { backoff: (Duration::from_millis(100), Duration::from_millis(100)), ..quick() };
    let mut under = Under::start(&server.client(), asked, timing);
    for words in ["403", "no list", "no list"] {
        under
            .status(words, |s| s.watches[Kind::Node.index()].last_error.as_deref().is_some_and(|e| e.contains(words)))
            .await;
    }
    under.until("completeness", |d| d.complete).await;
}
