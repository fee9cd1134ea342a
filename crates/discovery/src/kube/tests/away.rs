//! No server at all: a minute of it, a restart, a start without it.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_minute_without_the_server_costs_nothing_but_news() {
    let (script, asked) = scripted();
    script.list(Kind::Node, one([r#"{"metadata":{"name":"node-a"}}"#.to_owned()]));
    let events = script.stream(Kind::EndpointSlice);
    let timing = Timing { grace: Duration::from_secs(3), ..Timing::default() };
    let mut under = Under::start(&script.client(), asked, timing);
    under.until("the list", |d| d.complete && ips(d, "web") == ["10.1.0.1"]).await;
    events.bookmark("15");
    let version = under.handle.load().version;

    script.set_away(true);
    events.cut();
    let left = tokio::time::Instant::now();
    let mut tries = Vec::new();
    while left.elapsed() < Duration::from_secs(60) {
        let asked = tokio::time::timeout(Duration::from_secs(60), under.asked(Kind::EndpointSlice, true)).await;
        tries.extend(asked.map(|asked| asked.query("resourceVersion").map(str::to_owned)));
        assert_eq!(ips(&under.handle.load(), "web"), ["10.1.0.1"], "the last good view is served");
        assert!(under.handle.load().complete);
    }
    // Each 0.5 to 1 s, so that the view is right soon after the return; never a storm. The first is from before.
    assert!((55..=125).contains(&tries.len()), "{}", tries.len());
    assert!(tries[1..].iter().all(|version| version.as_deref() == Some("15")), "{tries:?}");
    assert_eq!(under.handle.load().version, version, "nothing was published meanwhile");
    let status = under.board.status();
    let watch = &status.watches[Kind::EndpointSlice.index()];
    assert!(watch.last_error.as_deref().is_some_and(|e| e.contains("refused")), "{watch:?}");
    assert!(watch.age.unwrap() >= Duration::from_secs(59), "{watch:?}");

    let events = script.stream(Kind::EndpointSlice);
    script.set_away(false);
    let back = tokio::time::Instant::now();
    events.send("MODIFIED", &slice("web", "16", &["10.1.0.2"]));
    under.until("news", |d| ips(d, "web") == ["10.1.0.2"]).await;
    assert!(back.elapsed() <= Duration::from_secs(1), "the next try comes within a second: {:?}", back.elapsed());
    let watch = under.board.status().watches[Kind::EndpointSlice.index()].clone();
    assert!(watch.last_error.is_none() && watch.lists == 1, "{watch:?}");
}

#[tokio::test]
async fn a_server_that_restarts_is_found_again() {
    let (script, asked) = scripted();
    let mut server = Server::start(&script).await;
    let mut under = Under::start(&server.client(), asked, quick());
    under.until("the list", |d| d.complete).await;
    server.go_away().await;
    under
        .status("failures", |s| {
            s.watches.iter().all(|watch| watch.phase == Phase::Waiting && watch.last_error.is_some())
        })
        .await;
    assert_eq!(ips(&under.handle.load(), "web"), ["10.1.0.1"]);
    let events = script.stream(Kind::EndpointSlice);
    server.come_back().await;
    events.send("MODIFIED", &slice("web", "16", &["10.1.0.2"]));
    under.until("news", |d| ips(d, "web") == ["10.1.0.2"]).await;
}

#[tokio::test]
async fn a_warm_start_serves_the_snapshot_until_the_api_lists() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot.json");
    let timing = Timing { snapshot: Duration::from_millis(5), grace: Duration::from_millis(1), ..quick() };

    // The first run writes it.
    let (script, asked) = Script::new();
    script.list(Kind::Service, one([service("web"), service("old")]));
    script.list(Kind::EndpointSlice, one([slice("web", "9", &["10.1.0.1"]), slice("old", "9", &["10.1.0.9"])]));
    let server = Server::start(&script).await;
    let mut under = Under::warm(&server.client(), asked, timing, Some(path.clone()));
    under.until("the list", |d| d.complete).await;
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(under);

    // The second one finds the API silent.
    let (script, asked) = Script::new();
    for kind in Kind::ALL {
        script.list(kind, Answer::Silence);
    }
    script.list(Kind::Service, one([service("web")]));
    script.list(Kind::EndpointSlice, one([slice("web", "9", &["10.1.0.1", "10.1.0.2"])]));
    let server = Server::start(&script).await;
    let timing = Timing { page: Duration::from_millis(500), ..timing };
    let mut under = Under::warm(&server.client(), asked, timing, Some(path.clone()));
    under.until("the snapshot", |d| d.complete && ips(d, "web") == ["10.1.0.1"] && ips(d, "old").len() == 1).await;
    let status = under.board.status();
    assert!(status.watches.iter().all(|watch| watch.from_snapshot.is_some() && watch.lists == 0), "{status:?}");
    under.handle.load().service("shop/web").unwrap().ports[0].endpoints.all()[0].stats.begin();
    under.until("the difference", |d| d.service("shop/old").is_none() && ips(d, "web").len() == 2).await;
    let directory = under.handle.load_full();
    assert_eq!(directory.service("shop/web").unwrap().ports[0].endpoints.all()[0].stats.in_flight(), 1);
    under.status("no snapshot", |s| s.watches.iter().all(|watch| watch.from_snapshot.is_none())).await;
}

/// Nothing listens there: there is nothing to wait for.
#[tokio::test(start_paused = true)]
async fn a_start_without_a_server_serves_the_snapshot_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot.json");
    let node = r#"{"kind":"Node","apiVersion":"v1","metadata":{"name":"node-a"}}"#;
    let kinds = Kind::ALL.map(|kind| format!("\"{kind}\"")).join(",");
    let head = format!("{{\"written\":1,\"kinds\":[{kinds}]}}");
    std::fs::write(&path, format!("{head}\n{{\"kind\":\"List\",\"items\":[{node}]}}\n")).unwrap();
    let (script, asked) = Script::new();
    script.set_away(true);
    let timing = Timing { grace: Duration::from_secs(3600), ..Timing::default() };
    let begun = tokio::time::Instant::now();
    let mut under = Under::warm(&script.client(), asked, timing, Some(path));
    under.until("the snapshot", |d| d.complete).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_broken_snapshot_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot.json");
    for text in ["", "half of a", "{\"written\":1}\n{\"kind\":\"List\",\"items\":[{\"a\":1", "{\"written\":1}\n[]"] {
        std::fs::write(&path, text).unwrap();
        let (script, asked) = scripted();
        script.list(Kind::Node, Answer::Silence);
        let server = Server::start(&script).await;
        let timing = Timing { grace: Duration::from_millis(1), page: Duration::from_millis(50), ..quick() };
        let mut under = Under::warm(&server.client(), asked, timing, Some(path.clone()));
        under.until("the list", |d| d.complete && ips(d, "web") == ["10.1.0.1"]).await;
        assert!(under.board.status().watches.iter().all(|watch| watch.from_snapshot.is_none()), "{text:?}");
    }
}
