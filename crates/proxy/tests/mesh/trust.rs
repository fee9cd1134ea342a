//! Who asks: what a pod is told of its callers, and what becomes of claims that are false or cannot be checked.

use std::sync::{Arc, Mutex};

use posthouse_model::PodRef;
use posthouse_model::workload::{Checked, Checking, Claim, Identity, Workloads};

use crate::harness::{A, B, Frames, Mesh, Outcome, Pod, Trust, Wire, pod_ip};

const CALLER: u8 = 20;

/// Answers every check in one way and keeps what it was asked.
struct Fixed {
    answer: fn(&Claim, &str) -> Checked,
    asked: Mutex<Vec<(String, String)>>,
}

impl Workloads for Fixed {
    fn known(&self, _: &Claim, _: &str) -> Option<Checked> {
        None
    }

    fn check<'a>(&'a self, claim: &'a Claim, node: &'a str) -> Checking<'a> {
        self.asked.lock().unwrap().push((claim.as_str().to_owned(), node.to_owned()));
        Box::pin(std::future::ready((self.answer)(claim, node)))
    }
}

fn verified(claim: &Claim, node: &str) -> Checked {
    let pod = PodRef { namespace: claim.namespace().into(), name: claim.pod().into(), uid: claim.uid().into() };
    let service_account = claim.service_account().into();
    Checked::Verified(Arc::new(Identity { pod, service_account, node: node.into(), address: Some(pod_ip(A, 77)) }))
}

/// A mesh with a pod on each node behind `web`, and a client pod on node-a.
async fn mesh(vouched: bool, answer: fn(&Claim, &str) -> Checked, on: &'static str) -> (Mesh, Pod, Arc<Fixed>) {
    let pod = Pod::named(on, 10, "pod").await;
    let workloads = Arc::new(Fixed { answer, asked: Mutex::default() });
    let mesh = Mesh::trusting(|_| {}, &Trust { vouched, workloads: Arc::clone(&workloads) as _ });
    mesh.web(&[&pod]);
    mesh.pod(A, pod_ip(A, CALLER), "shop");
    (mesh, pod, workloads)
}

const LIES: &str = "Posthouse_Client: a\r\nX_Forwarded-For: 10.0.0.4\r\nPosthouse-Client: spiffe://cluster.local/ns/kube-system/sa/admin\r\nX-Forwarded-For: 10.0.0.1, 10.0.0.2\r\nx-forwarded-for: 10.0.0.3\r\n";

/// What the pod sees under both names after a request from the client pod that lies about them.
async fn told(mesh: &Mesh, pod: &Pod) -> (Vec<String>, Vec<String>) {
    let mut client = Wire::connect_from(pod_ip(A, CALLER), mesh.a.outbound).await;
    let answer = client.ask(format!("GET / HTTP/1.1\r\nHost: web.demo\r\n{LIES}\r\n")).await;
    assert_eq!(answer.text(), "pod", "{answer:?}");
    let seen = pod.seen().pop().unwrap();
    let all = |name: &str| {
        seen.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(seen.headers.keys().all(|name| !name.as_str().contains('_')), "{:?}", seen.headers);
    (all("posthouse-client"), all("x-forwarded-for"))
}

#[tokio::test]
async fn a_pod_is_told_who_asks_over_an_authenticated_link_and_never_what_the_client_says() {
    let (mesh, pod, workloads) = mesh(true, verified, B).await;
    let (client, forwarded_for) = told(&mesh, &pod).await;
    assert_eq!(client, [format!("spiffe://cluster.local/ns/shop/sa/default;pod=pod-{}", pod_ip(A, CALLER))]);
    // The address is the API's, not the one that the sender's node saw.
    assert_eq!(forwarded_for, [pod_ip(A, 77).to_string()]);
    let ip = pod_ip(A, CALLER);
    assert_eq!(workloads.asked.lock().unwrap()[0], (format!("shop/pod-{ip}/uid-{ip}/default"), A.to_owned()));
}

#[tokio::test]
async fn a_pod_of_the_same_node_is_told_without_anybody_being_asked() {
    let (mesh, pod, workloads) = mesh(true, verified, A).await;
    let (client, forwarded_for) = told(&mesh, &pod).await;
    assert_eq!(client, [format!("spiffe://cluster.local/ns/shop/sa/default;pod=pod-{}", pod_ip(A, CALLER))]);
    assert_eq!(forwarded_for, [pod_ip(A, CALLER).to_string()]);
    assert!(workloads.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn who_cannot_be_checked_is_served_as_unidentified() {
    for (vouched, answer) in [
        (true, (|_: &Claim, _: &str| Checked::Unknown("the API is away")) as fn(&Claim, &str) -> Checked),
        // A plain link proves nobody, whatever the API says of the pod.
        (false, verified),
    ] {
        let (mesh, pod, workloads) = mesh(vouched, answer, B).await;
        assert_eq!(told(&mesh, &pod).await, (Vec::new(), Vec::new()), "vouched: {vouched}");
        assert_eq!(workloads.asked.lock().unwrap().len(), usize::from(vouched));
    }
}

#[tokio::test]
async fn a_false_claim_is_refused_by_name_on_both_versions_and_reaches_no_pod() {
    let (mesh, pod, _) = mesh(true, |_, _| Checked::False("no such pod runs there".into()), B).await;
    let mut client = Wire::connect_from(pod_ip(A, CALLER), mesh.a.outbound).await;
    let answer = client.get("web.demo", "/").await;
    answer.is_error(403, "http_request_denied");
    let text = answer.text();
    for word in ["node-a claims", "shop/pod-", "no such pod runs there", "checked by node node-b"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let mut tunnel = Wire::connect_from(pod_ip(A, CALLER), mesh.a.outbound).await;
    tunnel.send("CONNECT web.demo:80 HTTP/1.1\r\nHost: web.demo:80\r\n\r\n").await;
    tunnel.head().await;
    tunnel.ask("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await.is_error(403, "http_request_denied");
    assert_eq!(pod.accepted(), 0);
    assert_eq!(mesh.a.stats(pod.address).in_flight(), 0);
}

/// A request's fields as node-a's proxy would send them over the link.
fn order<'a>(target: &'a str, source: &'a str) -> Vec<(&'a [u8], &'a [u8])> {
    vec![
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", b"web.demo"),
        (b":path", b"/"),
        (b"posthouse-target", target.as_bytes()),
        (b"posthouse-source", source.as_bytes()),
        (b"posthouse-protocol", b"http/1.1"),
    ]
}

#[tokio::test]
async fn a_malformed_claim_on_a_link_is_refused() {
    let (mesh, pod, workloads) = mesh(true, verified, B).await;
    let target = pod.address.to_string();
    for source in ["shop/web", "shop/web/uid/sa/more", "", "shop//uid/sa"] {
        // A link each: an answer's second status may come by the dynamic table, which is not read here.
        let mut link = Frames::over(Wire::connect_from(pod_ip(A, 1), mesh.b.link).await, &[]).await;
        link.headers(1, &order(&target, source), true).await;
        assert_eq!(link.outcome(1).await, Outcome::Answered(403), "{source}");
    }
    assert!(workloads.asked.lock().unwrap().is_empty());
    assert_eq!(pod.accepted(), 0);
}
