//! The built program with `--source kube` on a bad day of the API server, with requests under way all the time: pages,
//! bookmarks, watches that break within an object, 410, objects that do not fit, an empty list, silence, and a real
//! minute without any server. Not one request may fail. How each single answer is taken, and the waits that are longer
//! than this test, are the discovery crate's own tests; here the whole has to hold.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a helper fails its test")]

mod api_server;
mod objects;
mod posthouse;
mod traffic;

use std::time::{Duration, Instant};

use serde_json::Value;

use api_server::{Answer, ApiServer, Kind};
use objects::{node, own_pod, service, slice, slice_of_wrong_types};
use posthouse::Posthouse;
use traffic::{HelloPod, Traffic};

/// Far longer than any step takes, a minute of absence and the longest back-off of 30 s included; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until `done`. Another process tells nobody of its changes, so it is asked again and again.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The addresses of this test, which no other uses: the port must still be free when the server comes back after a minute.
const NODE: &str = "127.0.71.1";
const OTHER_NODE: &str = "127.0.72.1";
const API_SERVER: &str = "127.0.73.1";
/// The pod that sends, on [`NODE`].
const CLIENT: &str = "127.0.71.9";
/// The pods that answer: two from the start, the third after the server's return. There is no proxy on node-b, so its
/// pod is reached directly.
const POD_A: &str = "127.0.71.11";
const POD_B: &str = "127.0.72.12";
const POD_C: &str = "127.0.71.13";
const CLUSTER_IP: &str = "10.96.71.1";

/// One test and not many, since a scenario is the point. Its minute without the server is a real one: the program's own
/// clock cannot be paused from outside. It waits rather than works, beside other tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_day_of_the_api_server_loses_no_request() {
    // One port for all, since a slice has one list of ports for all of its endpoints.
    let first = HelloPod::start(POD_A, 0).await;
    let port = first.port;
    let pods = [first, HelloPod::start(POD_B, port).await];
    let late_pod = HelloPod::start(POD_C, port).await;
    let two = slice("web", port, &[("node-a", POD_A), ("node-b", POD_B)]);
    let three = slice("web", port, &[("node-a", POD_A), ("node-b", POD_B), ("node-a", POD_C)]);

    let mut api = ApiServer::start(API_SERVER).await;
    for object in [
        (Kind::Node, node("node-a", NODE, "127.0.71.0/24")),
        (Kind::Node, node("node-b", OTHER_NODE, "127.0.72.0/24")),
        (Kind::Pod, own_pod("client", CLIENT)),
        (Kind::Pod, own_pod("web-a", POD_A)),
        (Kind::Service, service("web", CLUSTER_IP)),
        (Kind::Service, service("other", "10.96.71.2")),
        (Kind::EndpointSlice, two.clone()),
        (Kind::EndpointSlice, slice("other", port, &[])),
    ] {
        api.put(object.0, object.1);
    }
    // One object of a page does not fit: the page's others count.
    let mut bad = service("bad", "10.96.71.3");
    bad["spec"]["ports"] = "eighty".into();
    api.put(Kind::Service, bad);

    let mut posthouse = Posthouse::start(&api.kubeconfig()).await;
    let traffic = Traffic::start(CLIENT, posthouse.outbound, &["web.shop", CLUSTER_IP]);
    traffic.goes_on(50).await;
    let tokens = api.tokens(Kind::Service);
    assert_eq!(tokens, [None, Some("2".to_owned())], "the list came in pages");
    assert!(posthouse.problem("Service shop/bad").await.is_some_and(|error| error.contains("eighty")));

    bookmarks_say_where_the_next_watch_begins(&api).await;
    half_an_object_changes_nothing(&api, &posthouse, &traffic).await;
    an_object_in_two_parts_is_whole(&api, &posthouse, &traffic).await;
    assert_eq!(posthouse.lists().await, [1, 1, 1, 1, 1], "a watch that breaks is taken up where it was");

    gone_within_a_watch(&api, &posthouse, &traffic, two).await;
    gone_by_status_and_then_an_empty_list(&api, &posthouse, &traffic).await;
    assert_eq!(posthouse.lists().await, [1, 3, 1, 1, 1], "only what was gone is listed anew");

    silence(&api, &posthouse, &traffic).await;
    a_minute_without_the_server(&mut api, &posthouse, &traffic).await;

    // What the server learnt meanwhile comes with its return.
    api.put(Kind::EndpointSlice, three);
    api.put(Kind::Pod, own_pod("web-c", POD_C));
    api.come_back().await;
    until("the new pod's turn", async || posthouse.ready_endpoints("web").await == 3 && late_pod.answered() > 20).await;
    until("news of every kind", async || posthouse.is_fresh().await).await;
    assert_eq!(posthouse.lists().await, [1, 3, 1, 1, 1], "the watches go on where they were");
    // A change now arrives as on any other day.
    api.put(Kind::Service, service("after", "10.96.71.5"));
    until("a change", async || posthouse.service("after").await.is_some()).await;
    traffic.goes_on(50).await;

    let (sent, failures) = traffic.stop().await;
    assert!(failures.is_empty(), "of {sent} requests {} failed: {failures:#?}", failures.len());
    assert!(pods.iter().all(|pod| pod.answered() > 100), "both first pods had their share of {sent} requests");
    let failed = posthouse.metric_sum("posthouse_request_failures_total").await;
    assert_eq!(failed, 0.0, "nor does the program itself count a failure");
    posthouse.ends().await;
}

/// The version of a bookmark is where the next watch begins.
async fn bookmarks_say_where_the_next_watch_begins(api: &ApiServer) {
    api.watched(Kind::EndpointSlice).await;
    let version = api.bookmark(Kind::EndpointSlice);
    api.end(Kind::EndpointSlice);
    until("the next watch", async || api.last_watch(Kind::EndpointSlice) == Some(version)).await;
}

/// Half of an event that would take away every endpoint, and then the connection breaks or the answer ends.
async fn half_an_object_changes_nothing(api: &ApiServer, posthouse: &Posthouse, traffic: &Traffic) {
    let event = api_server::event("MODIFIED", &slice("web", 1, &[]));
    let (half, _) = event.split_at(event.len() / 2);
    for cut in [true, false] {
        api.watched(Kind::EndpointSlice).await;
        let begun = api.watches(Kind::EndpointSlice);
        let version = api.last_watch(Kind::EndpointSlice);
        api.raw(Kind::EndpointSlice, half);
        traffic.goes_on(20).await;
        if cut {
            api.cut(Kind::EndpointSlice);
        } else {
            api.end(Kind::EndpointSlice);
        }
        until("another watch", async || api.watches(Kind::EndpointSlice) > begun).await;
        assert_eq!(api.last_watch(Kind::EndpointSlice), version, "half an object moves nothing");
        assert_eq!(posthouse.ready_endpoints("web").await, 2);
    }
}

async fn an_object_in_two_parts_is_whole(api: &ApiServer, posthouse: &Posthouse, traffic: &Traffic) {
    api.watched(Kind::Service).await;
    let event = api_server::event("ADDED", &api.put_unseen(Kind::Service, service("parts", "10.96.71.4")));
    let (first, second) = event.split_at(event.len() / 2);
    api.raw(Kind::Service, first);
    traffic.goes_on(20).await;
    assert_eq!(posthouse.service("parts").await, None);
    api.raw(Kind::Service, second);
    until("the whole object", async || posthouse.service("parts").await.is_some()).await;
}

/// An ERROR event with 410; and in the list that follows, the object that all requests depend on does not fit.
async fn gone_within_a_watch(api: &ApiServer, posthouse: &Posthouse, traffic: &Traffic, good: Value) {
    api.watched(Kind::EndpointSlice).await;
    api.put_unseen(Kind::EndpointSlice, slice_of_wrong_types("web"));
    api.raw(Kind::EndpointSlice, &api_server::event("ERROR", &api_server::status(410)));
    until("a relist", async || posthouse.lists().await[1] == 2).await;
    assert!(posthouse.problem("EndpointSlice shop/web-1").await.is_some_and(|error| error.contains("last good state")));
    traffic.goes_on(50).await;
    assert_eq!(posthouse.ready_endpoints("web").await, 2, "the last good state stays");
    api.put(Kind::EndpointSlice, good);
    until("the mended object", async || posthouse.problem("EndpointSlice shop/web-1").await.is_none()).await;
    assert_eq!(posthouse.ready_endpoints("web").await, 2);
}

/// 410 as the answer to a watch; and the lists that follow are empty, until the server has its wits again.
async fn gone_by_status_and_then_an_empty_list(api: &ApiServer, posthouse: &Posthouse, traffic: &Traffic) {
    api.watched(Kind::EndpointSlice).await;
    api.next_watch(Kind::EndpointSlice, Answer::Status(410));
    api.set_forgotten(Some(Kind::EndpointSlice));
    api.end(Kind::EndpointSlice);
    until("disbelief", async || {
        let error = posthouse.watch(Kind::EndpointSlice).await["last_error"].to_string();
        error.contains("not believed")
    })
    .await;
    traffic.goes_on(50).await;
    assert_eq!(posthouse.ready_endpoints("web").await, 2, "nobody loses endpoints by an empty list");
    api.set_forgotten(None);
    until("a relist", async || posthouse.lists().await[1] == 3).await;
}

/// One watch falls silent within an object, another is never answered. That they are given up in the end is shown
/// elsewhere; here it must not matter to requests.
async fn silence(api: &ApiServer, posthouse: &Posthouse, traffic: &Traffic) {
    api.watched(Kind::EndpointSlice).await;
    let event = api_server::event("MODIFIED", &slice("web", 1, &[]));
    api.raw(Kind::EndpointSlice, event.trim_end().trim_end_matches('}'));
    api.watched(Kind::Node).await;
    let begun = api.watches(Kind::Node);
    api.next_watch(Kind::Node, Answer::Silence);
    api.end(Kind::Node);
    until("a watch that is not answered", async || api.watches(Kind::Node) > begun).await;
    traffic.goes_on(200).await;
    assert_eq!(posthouse.ready_endpoints("web").await, 2);
}

async fn a_minute_without_the_server(api: &mut ApiServer, posthouse: &Posthouse, traffic: &Traffic) {
    // The clock of at least two kinds begins now.
    for kind in [Kind::Service, Kind::Pod] {
        api.watched(kind).await;
        api.bookmark(kind);
    }
    api.go_away().await;
    until("failures of every kind", async || posthouse.metrics("posthouse_directory_watch_failing").await == [1.0; 5])
        .await;
    let version = posthouse.metric_sum("posthouse_directory_version").await;
    let mut before = [0.0; 5];
    // By the program's own measure: each age only grows, until the youngest is a minute.
    until("a minute", async || {
        traffic.goes_on(20).await;
        let ages = posthouse.metrics("posthouse_directory_age_seconds").await;
        assert!(ages.len() == 5 && ages.iter().zip(before).all(|(now, before)| *now > before), "{before:?} {ages:?}");
        before.copy_from_slice(&ages);
        ages.iter().all(|age| *age >= 60.0)
    })
    .await;
    assert_eq!(posthouse.metric_sum("posthouse_directory_version").await, version, "nothing was published");
    assert_eq!(posthouse.metrics("posthouse_ready").await, [1.0]);
    assert_eq!(posthouse.ready_endpoints("web").await, 2);
    let config: Value = posthouse.config().await;
    let watches = config["discovery"]["watches"].as_array().unwrap();
    assert!(watches.iter().all(|watch| watch["last_error"].is_string()), "the admin API says why: {watches:#?}");
}
