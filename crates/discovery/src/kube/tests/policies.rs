//! AuthorizationPolicies through the API: a CRD that is not there, a right that is missing, lists that are empty, objects that
//! do not fit.

use super::*;

fn policy(name: &str, spec: &str) -> String {
    format!(
        r#"{{"apiVersion":"posthouse.io/v1alpha1","kind":"AuthorizationPolicy","metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"7"}},"spec":{spec}}}"#
    )
}

const DENY: &str = r#"{"action":"Deny","rules":[{}]}"#;

/// Each policy's name and whether it is accepted.
fn policies(directory: &Directory) -> Vec<(String, bool)> {
    directory.policies.iter().map(|policy| (policy.key().to_string(), policy.problem().is_none())).collect()
}

fn known(names: &[(&str, bool)]) -> Vec<(String, bool)> {
    names.iter().map(|(name, accepted)| (format!("shop/{name}"), *accepted)).collect()
}

fn watch_of(status: &Status) -> &crate::status::WatchStatus {
    &status.watches[Kind::AuthorizationPolicy.index()]
}

#[tokio::test]
async fn policies_come_change_and_go() {
    let (script, asked) = scripted();
    script.list(Kind::AuthorizationPolicy, one([policy("a", DENY)]));
    let events = script.stream(Kind::AuthorizationPolicy);
    let server = Server::start(&script).await;
    let mut under = Under::start(&server.client(), asked, quick());
    under.until("the list", |d| d.complete && policies(d) == known(&[("a", true)])).await;
    events.send("ADDED", &policy("b", r#"{"action":"Deny","rules":[{"form":[]}]}"#));
    under
        .until("one that does not fit is kept as broken", |d| policies(d) == known(&[("a", true), ("b", false)]))
        .await;
    let problem = |status: &Status| status.problems.iter().find(|p| p.object.ends_with("shop/b")).cloned();
    assert!(
        problem(&under.board.status()).unwrap().error.contains("denies every request"),
        "{:?}",
        under.board.status()
    );
    events.send("MODIFIED", &policy("a", r#""none""#));
    under
        .until("a good one that no longer fits is broken", |d| policies(d) == known(&[("a", false), ("b", false)]))
        .await;
    events.send("MODIFIED", &policy("b", DENY));
    under.until("and mended", |d| policies(d) == known(&[("a", false), ("b", true)])).await;
    assert!(problem(&under.board.status()).is_none());
    events.send("DELETED", &policy("a", r#""none""#));
    under.until("and deleted", |d| policies(d) == known(&[("b", true)])).await;
    assert_eq!(under.board.status().work.skipped, 0);
}

#[tokio::test(start_paused = true)]
async fn without_the_crd_there_are_none_until_it_comes() {
    let (script, asked) = scripted();
    script.list(Kind::AuthorizationPolicy, Answer::NoSuchPath);
    script.list(Kind::AuthorizationPolicy, Answer::NoSuchPath);
    script.list(Kind::AuthorizationPolicy, Answer::Status(404));
    script.list(Kind::AuthorizationPolicy, Answer::NoSuchPath);
    script.list(Kind::AuthorizationPolicy, one([policy("a", DENY)]));
    let _events = script.stream(Kind::AuthorizationPolicy);
    let mut under = Under::start(&script.client(), asked, Timing::default());
    under.until("completeness", |d| d.complete).await;
    let status = under.board.status();
    let watch = watch_of(&status);
    assert_eq!((watch.phase, watch.objects, &watch.last_error), (Phase::Absent, 0, &None));
    assert!(status.problems.is_empty());
    let began = tokio::time::Instant::now();
    under.until("the CRD", |d| policies(d) == known(&[("a", true)])).await;
    assert!(began.elapsed() >= 3 * Duration::from_secs(15), "asked every half minute only: {:?}", began.elapsed());
    assert_eq!(watch_of(&under.status("a watch", |s| watch_of(s).phase == Phase::Watching).await).lists, 1);
}

/// A server that has just started does not know its own kinds for a moment: nobody may pass for that.
#[tokio::test(start_paused = true)]
async fn that_there_is_no_crd_is_not_believed_before_it_is_said_twice() {
    let (script, asked) = scripted();
    script.list(Kind::AuthorizationPolicy, Answer::NoSuchPath);
    script.list(Kind::AuthorizationPolicy, one([policy("a", DENY)]));
    let mut under = Under::start(&script.client(), asked, Timing::default());
    let began = tokio::time::Instant::now();
    under.until("completeness", |d| d.complete).await;
    assert_eq!(policies(&under.handle.load()), known(&[("a", true)]), "complete without a policy that there is");
    assert!(began.elapsed() < Duration::from_secs(2), "asked again after {:?}", began.elapsed());
}

/// The same of one that was in other trouble in between: what it says then is said for the first time.
#[tokio::test(start_paused = true)]
async fn other_trouble_between_two_such_answers_makes_the_second_a_first_one() {
    for trouble in [Answer::Refused, Answer::Status(403), Answer::Status(503), Answer::Silence] {
        let (script, asked) = scripted();
        for answer in [Answer::NoSuchPath, trouble, Answer::NoSuchPath, one([policy("a", DENY)])] {
            script.list(Kind::AuthorizationPolicy, answer);
        }
        let mut under = Under::start(&script.client(), asked, Timing::default());
        under.until("completeness", |d| d.complete).await;
        assert_eq!(policies(&under.handle.load()), known(&[("a", true)]), "complete without a policy that there is");
    }
}

#[tokio::test]
async fn what_is_known_outlives_the_crd() {
    let (script, asked) = scripted();
    script.list(Kind::AuthorizationPolicy, one([policy("a", DENY)]));
    script.watch(Kind::AuthorizationPolicy, Answer::NoSuchPath);
    script.list(Kind::AuthorizationPolicy, Answer::NoSuchPath);
    // Installed again, and empty: that is said twice.
    script.list(Kind::AuthorizationPolicy, one([]));
    script.list(Kind::AuthorizationPolicy, Answer::Silence);
    script.list(Kind::AuthorizationPolicy, one([]));
    let server = Server::start(&script).await;
    let timing = Timing { absent: Duration::from_millis(50), page: Duration::from_millis(300), ..quick() };
    let mut under = Under::start(&server.client(), asked, timing);
    under.until("the list", |d| d.complete).await;
    let status = under.status("the CRD's end", |s| s.problems.iter().any(|p| p.error.contains("stay in force"))).await;
    assert_eq!(watch_of(&status).objects, 1);
    under.status("disbelief", |s| watch_of(s).last_error.as_deref().is_some_and(|e| e.contains("not believed"))).await;
    assert_eq!(policies(&under.handle.load()), known(&[("a", true)]));
    under.until("belief", |d| d.policies.is_empty()).await;
    under.status("no problem", |s| s.problems.is_empty()).await;
}

#[tokio::test]
async fn without_the_right_to_read_them_nothing_is_complete() {
    let (script, asked) = scripted();
    for _ in 0..3 {
        script.list(Kind::AuthorizationPolicy, Answer::Status(403));
    }
    let server = Server::start(&script).await;
    let timing = Timing { backoff: (Duration::from_millis(50), Duration::from_millis(50)), ..quick() };
    let mut under = Under::start(&server.client(), asked, timing);
    let forbidden = |s: &Status| watch_of(s).last_error.as_deref().is_some_and(|error| error.contains("403"));
    let others =
        |s: &Status| Kind::ALL.iter().filter(|k| s.watches[k.index()].lists == 1).count() == Kind::ALL.len() - 1;
    under.status("all others", |s| forbidden(s) && others(s)).await;
    assert!(!under.handle.load().complete);
    under.until("completeness with the right", |d| d.complete).await;
}

#[tokio::test]
async fn a_snapshot_has_them_and_one_that_does_not_know_them_is_no_view() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let (script, asked) = scripted();
    script.list(Kind::AuthorizationPolicy, one([policy("a", DENY), policy("b", r#"{"action":"No"}"#)]));
    let server = Server::start(&script).await;
    let timing = Timing { grace: Duration::from_millis(1), snapshot: Duration::from_millis(5), ..quick() };
    let mut under = Under::warm(&server.client(), asked, timing, Some(path.clone()));
    under.until("the list", |d| d.complete && d.policies.len() == 2).await;
    for _ in 0..2_000 {
        if std::fs::read_to_string(&path).is_ok_and(|text| text.contains("shop")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(under);

    let (script, asked) = Script::new();
    script.set_away(true);
    let mut under = Under::warm(&script.client(), asked, timing, Some(path.clone()));
    under.until("the snapshot", |d| d.complete).await;
    assert_eq!(policies(&under.handle.load()), known(&[("a", true), ("b", false)]));
    drop(under);

    // As versions wrote it that did not know of policies.
    let text = std::fs::read_to_string(&path).unwrap();
    let (_, body) = text.split_once('\n').unwrap();
    let old: Vec<&str> = body.lines().filter(|line| !line.contains("AuthorizationPolicy")).collect();
    std::fs::write(&path, format!("{{\"written\":1}}\n{}\n", old.join("\n").replace("},\n]", "}\n]"))).unwrap();
    let (script, asked) = Script::new();
    script.set_away(true);
    let mut under = Under::warm(&script.client(), asked, timing, Some(path));
    under.until("its objects", |d| d.size().services == 1).await;
    assert!(!under.handle.load().complete, "nobody knows whether there are policies");
    script.set_away(false);
    under.until("the API's word", |d| d.complete).await;
}
