//! The Secrets and ConfigMaps of the namespaces that are given: what is asked for, what Services have of it, and what a
//! bad answer does.

use posthouse_model::directory::ServiceTls;

use super::*;

fn annotated() -> String {
    service("web").replace(
        r#""namespace":"shop""#,
        r#""namespace":"shop","annotations":{"posthouse.io/tls-secret":"web-tls","posthouse.io/tls-ca-configmap":"ca"}"#,
    )
}

/// With a key of `S0VZLTE=` (KEY-1) or the like.
fn secret(key: &str, version: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"web-tls","namespace":"shop","resourceVersion":"{version}"}},"type":"kubernetes.io/tls","data":{{"tls.crt":"Q1JULTE=","tls.key":"{key}"}}}}"#
    )
}

fn config_map() -> String {
    r#"{"metadata":{"name":"ca","namespace":"shop","resourceVersion":"7"},"data":{"ca.crt":"CA-1"}}"#.to_owned()
}

fn tls(directory: &Directory) -> Option<Arc<ServiceTls>> {
    directory.service("shop/web")?.tls.clone()
}

fn key(directory: &Directory) -> Option<Vec<u8>> {
    tls(directory).filter(|tls| tls.problem.is_none()).map(|tls| tls.key.clone())
}

fn start(script: &Arc<Script>, asked: mpsc::UnboundedReceiver<Asked>, snapshot: Option<std::path::PathBuf>) -> Under {
    let timing = Timing { snapshot: Duration::from_millis(50), grace: Duration::from_millis(50), ..Timing::default() };
    Under::with_secrets(&script.client(), asked, timing, snapshot, &[Arc::from("shop")])
}

#[tokio::test(start_paused = true)]
async fn services_have_the_certificates_of_a_namespace_that_is_given() {
    let (script, asked) = Script::new();
    script.list(Kind::Service, one([annotated()]));
    script.list(Kind::Secret, one([secret("S0VZLTE=", "7")]));
    script.list(Kind::ConfigMap, one([config_map()]));
    let events = script.stream(Kind::Secret);
    let mut under = start(&script, asked, None);
    assert_eq!(under.asked(Kind::Secret, false).await.query("fieldSelector"), Some("type=kubernetes.io/tls"));
    assert_eq!(under.asked(Kind::Secret, true).await.query("fieldSelector"), Some("type=kubernetes.io/tls"));
    under.until("the certificate", |d| d.complete && key(d).is_some()).await;
    let good = tls(&under.handle.load()).unwrap();
    assert_eq!([&good.certificates[..], &good.key, &good.roots], [b"CRT-1", &b"KEY-1"[..], b"CA-1"]);

    events.send("MODIFIED", &secret("S0VZLTI=", "11"));
    under.until("another key", |d| key(d).is_some_and(|key| key == b"KEY-2")).await;
    events.send("DELETED", &secret("S0VZLTI=", "12"));
    let kept = |s: &Status| s.problems.iter().any(|p| p.object == "Service shop/web" && p.error.contains("used on"));
    under.status("the loss is said", kept).await;
    assert_eq!(key(&under.handle.load()), Some(b"KEY-2".to_vec()));
    events.send("ADDED", &secret("S0VZLTM=", "13"));
    under.until("a third key", |d| key(d).is_some_and(|key| key == b"KEY-3")).await;
    assert_eq!(under.board.status().problems, []);

    // A list without it is believed, but changes nothing.
    script.list(Kind::Secret, one([]));
    events.send("ERROR", &server::status(410));
    under.status("the loss is said again", kept).await;
    assert_eq!(key(&under.handle.load()), Some(b"KEY-3".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn the_view_is_complete_once_secrets_were_read() {
    let (script, asked) = Script::new();
    script.list(Kind::Service, one([annotated()]));
    let late = script.list_stream(Kind::Secret);
    let mut under = start(&script, asked, None);
    under.asked(Kind::Node, true).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!under.handle.load().complete);
    late.raw(&format!(r#"{{"metadata":{{"resourceVersion":"9"}},"items":[{}]}}"#, secret("S0VZLTE=", "7")));
    drop(late);
    under.until("completeness", |d| d.complete).await;
}

#[tokio::test(start_paused = true)]
async fn without_the_permission_everything_else_works_and_it_is_said() {
    let (script, asked) = Script::new();
    script.list(Kind::Service, one([annotated(), service("other")]));
    for _ in 0..3 {
        script.list(Kind::Secret, Answer::Status(403));
    }
    script.list(Kind::Secret, one([secret("S0VZLTE=", "7")]));
    script.list(Kind::ConfigMap, one([config_map()]));
    let mut under = start(&script, asked, None);
    under.until("completeness", |d| d.complete && d.service("shop/other").is_some()).await;
    let problem = tls(&under.handle.load()).unwrap().problem.clone();
    assert_eq!(problem.as_deref(), Some("Secret shop/web-tls is not read yet"));
    let said =
        |s: &Status| s.problems.iter().any(|p| p.object == "Secrets of namespace shop" && p.error.contains("403"));
    under.status("the failure", said).await;
    under.until("the certificate", |d| key(d).is_some()).await;
    under.status("no problem", |s| s.problems.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn no_secret_is_read_unless_a_namespace_is_given() {
    let (script, asked) = Script::new();
    script.list(Kind::Service, one([annotated()]));
    let mut under = Under::start(&script.client(), asked, Timing::default());
    under.until("completeness", |d| d.complete && d.service("shop/web").is_some()).await;
    let problem = tls(&under.handle.load()).unwrap().problem.clone().unwrap();
    assert!(problem.starts_with("namespace shop is not among --tls-secret-namespaces"), "{problem}");
    tokio::time::sleep(Duration::from_secs(300)).await;
    while let Ok(asked) = under.asked.try_recv() {
        assert!(Kind::ALL.contains(&asked.kind), "{asked:?}");
    }
}

#[tokio::test]
async fn the_snapshot_has_no_secret_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let (script, asked) = Script::new();
    script.list(Kind::Service, one([annotated()]));
    script.list(Kind::Secret, one([secret("S0VZLTE=", "7")]));
    script.list(Kind::ConfigMap, one([config_map()]));
    let mut under = start(&script, asked, Some(path.clone()));
    under.until("the certificate", |d| d.complete && key(d).is_some()).await;
    let mut written = String::new();
    for _ in 0..10_000 {
        written = std::fs::read_to_string(&path).unwrap_or_default();
        if written.contains("shop") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(written.contains(r#""posthouse.io/tls-secret":"web-tls""#), "{written}");
    let shown = serde_json::to_string(&under.board.status()).unwrap();
    for hidden in ["KEY-1", "S0VZLTE", "CRT-1", "Q1JULTE", "tls.key"] {
        assert!(!written.contains(hidden) && !shown.contains(hidden), "{hidden}");
    }
}
