//! The controller against an API server in the process: the whole life of an authority and of certificate requests, with short
//! times. Every request that is made is held against the list of permissions.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails in a helper fails its test")]

mod api;
mod nodes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use posthouse_controller::{Ca, Election, Health, PERMISSIONS, Settings, Timing, run};
use posthouse_model::issuance::{BUNDLE_ANNOTATION, Grant, Scope};
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use api::{Api, NAMESPACE, User};

/// Far longer than anything takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(60);
const DAY: u64 = 86_400;

const SECRETS: &str = "/api/v1/namespaces/posthouse/secrets";
const MAPS: &str = "/api/v1/namespaces/posthouse/configmaps";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/posthouse/endpointslices";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/posthouse/leases";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/posthouse/deployments";

/// Waits until there is something.
async fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Enough time for several passes of every controller, in which something must not happen.
async fn passes() {
    tokio::time::sleep(Duration::from_millis(400)).await;
}

struct Cluster {
    api: Api,
    /// Seconds since 1970.
    clock: Arc<AtomicU64>,
}

/// A replica of the controller.
struct Replica {
    health: Health,
    cut: Arc<AtomicBool>,
    stop: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl Replica {
    async fn stop(self) {
        drop(self.stop);
        self.task.await.unwrap();
    }
}

impl Cluster {
    fn new() -> Self {
        let api = Api::default();
        api.put(DEPLOYMENTS, json!({"metadata": {"name": "posthouse-controller", "uid": "deployment-1"}}));
        Self { api, clock: Arc::new(AtomicU64::new(1_800_000_000)) }
    }

    fn pass_days(&self, days: u64) {
        self.clock.fetch_add(days * DAY, Ordering::SeqCst);
    }

    fn controller(&self, identity: &str) -> Replica {
        self.controller_with(identity, |_| {})
    }

    fn controller_with(&self, identity: &str, change: impl FnOnce(&mut Settings)) -> Replica {
        let clock = Arc::clone(&self.clock);
        let mut settings = Settings {
            namespace: NAMESPACE.to_owned(),
            identity: identity.to_owned(),
            trust_domain: "cluster.local".to_owned(),
            proxy_account: "posthouse".to_owned(),
            ca: Ca::Create,
            ca_lifetime: Duration::from_secs(90 * DAY),
            certificate_lifetime: Duration::from_secs(DAY),
            timing: Timing {
                election: Election {
                    lease: Duration::from_secs(2),
                    renew: Duration::from_secs(1),
                    retry: Duration::from_millis(50),
                },
                pass: Duration::from_millis(20),
                retry: Duration::from_millis(20),
                pass_limit: Duration::from_secs(10),
                settle: Duration::from_secs(180),
            },
            clock: Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(clock.load(Ordering::SeqCst))),
        };
        change(&mut settings);
        let user = User { name: identity.to_owned(), node: None, grants: PERMISSIONS };
        let cut = Arc::new(AtomicBool::new(false));
        let client = self.api.client(user, Arc::clone(&cut));
        let health = Health::default();
        let (stop, stopped) = watch::channel(());
        let task = tokio::spawn(run(client, settings, health.clone(), stopped));
        Replica { health, cut, stop, task }
    }

    /// A request by the proxy of a node, for the certificate of another or the same.
    async fn request(&self, node: &str, name: &str, bundle: Option<&str>) -> String {
        let mut params = CertificateParams::default();
        let uri = format!("spiffe://cluster.local/node/{name}");
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri).unwrap())];
        let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let annotations = bundle.map(|bundle| json!({BUNDLE_ANNOTATION: bundle}));
        let request = json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "posthouse-", "annotations": annotations},
            "spec": {
                "request": BASE64.encode(pem),
                "signerName": "posthouse.io/node",
                "usages": ["digital signature", "client auth", "server auth"],
            },
        });
        const GRANTS: &[Grant] = &[Grant {
            scope: Scope::Cluster,
            group: "certificates.k8s.io",
            resource: "certificatesigningrequests",
            names: &[],
            verbs: &["create"],
            why: "",
        }];
        let user = User {
            name: "system:serviceaccount:posthouse:posthouse".to_owned(),
            node: Some(node.to_owned()),
            grants: GRANTS,
        };
        let client = self.api.client(user, Arc::default());
        let made: Value = client
            .request(http::Request::post(REQUESTS).body(serde_json::to_vec(&request).unwrap()).unwrap())
            .await
            .unwrap();
        made["metadata"]["name"].as_str().unwrap().to_owned()
    }

    /// The certificate that the request came to, as PEM.
    async fn certificate(&self, request: &str) -> String {
        let text = until("a certificate", || {
            let object = self.api.get(&format!("{REQUESTS}/{request}"))?;
            object["status"]["certificate"].as_str().map(str::to_owned)
        })
        .await;
        String::from_utf8(BASE64.decode(text).unwrap()).unwrap()
    }

    fn has_certificate(&self, request: &str) -> bool {
        self.api.get(&format!("{REQUESTS}/{request}")).unwrap()["status"]["certificate"].is_string()
    }

    /// The bundle's roots as PEM, and its name.
    fn bundle(&self) -> Option<(Vec<String>, String)> {
        let map = self.api.get(&format!("{MAPS}/posthouse-trust"))?;
        let text = map["data"]["ca.crt"].as_str().unwrap();
        let end = "-----END CERTIFICATE-----\n";
        let roots = text.split_inclusive(end).map(str::to_owned).collect();
        Some((roots, map["metadata"]["annotations"][BUNDLE_ANNOTATION].as_str().unwrap().to_owned()))
    }

    fn secret(&self, key: &str) -> Option<String> {
        let secret = self.api.get(&format!("{SECRETS}/posthouse-ca"))?;
        let text = secret["data"][key].as_str()?;
        Some(String::from_utf8(BASE64.decode(text).unwrap()).unwrap())
    }

    /// Which nodes have a ready proxy, and which one that is not.
    fn proxies(&self, ready: &[&str], unready: &[&str]) {
        let endpoint = |node: &&str, ready: bool| json!({"addresses": ["10.0.0.1"], "conditions": {"ready": ready}, "nodeName": node});
        let endpoints: Vec<Value> = ready
            .iter()
            .map(|node| endpoint(node, true))
            .chain(unready.iter().map(|node| endpoint(node, false)))
            .collect();
        self.api.put(
            SLICES,
            json!({
                "metadata": {"name": "posthouse-1", "labels": {"kubernetes.io/service-name": "posthouse"}},
                "addressType": "IPv4",
                "endpoints": endpoints,
            }),
        );
    }

    fn nobody_asked_for_more_than_is_allowed(&self) {
        assert_eq!(self.api.forbidden(), Vec::<String>::new());
    }
}

/// Whether the first certificate of a PEM text was signed by that root.
fn signed_by(certificate: &str, root: &str) -> bool {
    let (_, certificate) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).unwrap();
    let (_, root) = x509_parser::pem::parse_x509_pem(root.as_bytes()).unwrap();
    let (certificate, root) = (certificate.parse_x509().unwrap(), root.parse_x509().unwrap());
    certificate.verify_signature(Some(root.public_key())).is_ok()
}

#[tokio::test]
async fn a_first_start_makes_an_authority_publishes_it_and_signs() {
    let cluster = Cluster::new();
    // A request that is there before the controller.
    let early = cluster.request("node-a", "node-a", None).await;
    let controller = cluster.controller("one");
    let certificate = cluster.certificate(&early).await;
    assert!(controller.health.leads() && controller.health.is_ready());

    let secret = cluster.api.get(&format!("{SECRETS}/posthouse-ca")).unwrap();
    assert_eq!(secret["type"], "kubernetes.io/tls");
    assert_eq!(secret["metadata"]["ownerReferences"][0]["uid"], "deployment-1");
    let root = cluster.secret("ca.crt").unwrap();
    assert_eq!(cluster.secret("tls.crt").unwrap(), root);
    assert!(signed_by(&certificate, &root));
    let (roots, _) = cluster.bundle().unwrap();
    assert_eq!(roots, [root]);
    let map = cluster.api.get(&format!("{MAPS}/posthouse-trust")).unwrap();
    assert_eq!(map["metadata"]["ownerReferences"][0]["uid"], "deployment-1");
    assert!(!map.to_string().contains("PRIVATE KEY"));

    let request = cluster.api.get(&format!("{REQUESTS}/{early}")).unwrap();
    let conditions = request["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 1);
    assert_eq!((&conditions[0]["type"], &conditions[0]["status"]), (&json!("Approved"), &json!("True")));
    controller.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}

#[tokio::test]
async fn a_node_that_asks_for_anothers_name_is_denied_in_words_and_others_signers_are_left_alone() {
    let cluster = Cluster::new();
    let controller = cluster.controller("one");
    let thief = cluster.request("node-b", "node-a", None).await;
    let object = until("a decision", || {
        let object = cluster.api.get(&format!("{REQUESTS}/{thief}")).unwrap();
        object["status"]["conditions"].is_array().then_some(object)
    })
    .await;
    let condition = &object["status"]["conditions"][0];
    assert_eq!((&condition["type"], &condition["reason"]), (&json!("Denied"), &json!("WrongName")));
    assert!(condition["message"].as_str().unwrap().contains("spiffe://cluster.local/node/node-a"));
    assert!(object["status"]["certificate"].is_null());

    // Somebody approves one by hand that must not be signed: it fails instead.
    let mut object = cluster.api.get(&format!("{REQUESTS}/{thief}")).unwrap();
    object["metadata"]["name"] = "by-hand".into();
    object["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}]});
    cluster.api.put(REQUESTS, object.clone());
    until("a failure", || {
        let object = cluster.api.get(&format!("{REQUESTS}/by-hand")).unwrap();
        let conditions = object["status"]["conditions"].as_array().unwrap();
        conditions.iter().any(|condition| condition["type"] == "Failed").then_some(())
    })
    .await;

    object["metadata"]["name"] = "of-another-signer".into();
    object["spec"]["signerName"] = "kubernetes.io/kubelet-serving".into();
    object["status"] = json!({});
    cluster.api.put(REQUESTS, object);
    let good = cluster.request("node-a", "node-a", None).await;
    cluster.certificate(&good).await;
    passes().await;
    let other = cluster.api.get(&format!("{REQUESTS}/of-another-signer")).unwrap();
    assert_eq!(other["status"], json!({}));
    controller.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}

#[tokio::test]
async fn a_root_is_replaced_only_after_every_ready_node_trusts_the_next() {
    let cluster = Cluster::new();
    cluster.proxies(&["node-a", "node-b"], &["node-c"]);
    let controller = cluster.controller("one");
    let first = cluster.request("node-a", "node-a", None).await;
    cluster.certificate(&first).await;
    let old = cluster.secret("ca.crt").unwrap();
    let (_, before) = cluster.bundle().unwrap();
    for node in ["node-a", "node-b"] {
        let request = cluster.request(node, node, Some(&before)).await;
        cluster.certificate(&request).await;
    }

    // Two thirds of 90 days.
    cluster.pass_days(61);
    let (roots, both) = until("two roots", || cluster.bundle().filter(|(roots, _)| roots.len() == 2)).await;
    assert_eq!(roots[0], old);
    let new = roots[1].clone();
    passes().await;
    assert_eq!(cluster.secret("ca.crt").unwrap(), old, "nobody knows the next root yet");

    // One node knows it. Its certificate is by the old root still, and a lie about another node counts for nothing.
    let request = cluster.request("node-a", "node-a", Some(&both)).await;
    assert!(signed_by(&cluster.certificate(&request).await, &old));
    cluster.request("node-a", "node-b", Some(&both)).await;
    passes().await;
    assert_eq!(cluster.secret("ca.crt").unwrap(), old, "node-b does not know the next root yet");

    // The leader dies, and Kubernetes cleans old requests away: what was reported is not forgotten.
    controller.task.abort();
    for request in cluster.api.list(REQUESTS) {
        cluster.api.delete(REQUESTS, request["metadata"]["name"].as_str().unwrap());
    }
    let second = cluster.controller("two");
    let request = cluster.request("node-b", "node-b", Some(&both)).await;
    until("the switch", || (cluster.secret("ca.crt").unwrap() == new).then_some(())).await;
    cluster.certificate(&request).await;
    assert_eq!(cluster.secret("tls.crt").unwrap(), new);
    assert_eq!(cluster.secret("next.crt"), None);
    assert_eq!(cluster.secret("next.key"), None);
    until("a certificate by the new root", || cluster.bundle().filter(|(_, id)| *id == both)).await;
    passes().await;
    let request = cluster.request("node-c", "node-c", Some(&both)).await;
    assert!(signed_by(&cluster.certificate(&request).await, &new));

    // A certificate by the old root may live for a day; then its root goes.
    passes().await;
    assert_eq!(cluster.bundle().unwrap().0, [old, new.clone()]);
    cluster.pass_days(1);
    until("one root", || cluster.bundle().filter(|(roots, _)| *roots == [new.clone()])).await;
    second.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}

#[tokio::test]
async fn a_root_that_ends_is_replaced_even_where_a_node_never_answers() {
    let cluster = Cluster::new();
    cluster.proxies(&["node-a"], &[]);
    let controller = cluster.controller("one");
    let old = until("an authority", || cluster.secret("ca.crt")).await;
    cluster.pass_days(88);
    until("two roots", || cluster.bundle().filter(|(roots, _)| roots.len() == 2)).await;
    passes().await;
    assert_eq!(cluster.secret("ca.crt").unwrap(), old);
    // Less than the life of a node's certificate is left.
    cluster.pass_days(1);
    until("the switch", || (cluster.secret("ca.crt").unwrap() != old).then_some(())).await;
    let request = cluster.request("node-a", "node-a", None).await;
    assert!(!signed_by(&cluster.certificate(&request).await, &old));
    controller.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}

/// A Secret that somebody else made, with a certificate that ends in `days`.
fn foreign(cluster: &Cluster, days: u64) -> (Value, String) {
    use rcgen::{BasicConstraints, IsCa};
    let now = cluster.clock.load(Ordering::SeqCst);
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = (SystemTime::UNIX_EPOCH + Duration::from_secs(now)).into();
    params.not_after = (SystemTime::UNIX_EPOCH + Duration::from_secs(now + days * DAY)).into();
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let secret = json!({
        "metadata": {"name": "posthouse-ca", "namespace": NAMESPACE},
        "type": "kubernetes.io/tls",
        "data": {
            "tls.crt": BASE64.encode(&pem), "tls.key": BASE64.encode(key.serialize_pem()), "ca.crt": BASE64.encode(&pem),
        },
    });
    (secret, pem)
}

#[tokio::test]
async fn anothers_authority_is_followed_and_never_written() {
    let cluster = Cluster::new();
    let (secret, first) = foreign(&cluster, 10);
    cluster.api.put(SECRETS, secret);
    let controller = cluster.controller("one");
    let request = cluster.request("node-a", "node-a", None).await;
    assert!(signed_by(&cluster.certificate(&request).await, &first));
    cluster.proxies(&["node-a"], &[]);

    // In its last third, and nothing happens: that is its maker's business.
    cluster.pass_days(9);
    passes().await;
    assert_eq!(cluster.bundle().unwrap().0, std::slice::from_ref(&first));
    // Its maker renews it with another key: published at once, used when the node knows it.
    let (secret, second) = foreign(&cluster, 10);
    cluster.api.put(SECRETS, secret);
    let (_, both) = until("both roots", || cluster.bundle().filter(|(roots, _)| roots.len() == 2)).await;
    let request = cluster.request("node-a", "node-a", None).await;
    assert!(signed_by(&cluster.certificate(&request).await, &first), "node-a does not know the second yet");
    cluster.request("node-a", "node-a", Some(&both)).await;
    let by_second = async {
        loop {
            let request = cluster.request("node-a", "node-a", Some(&both)).await;
            if signed_by(&cluster.certificate(&request).await, &second) {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, by_second).await.expect("the second authority signs once node-a knows it");
    assert_eq!(cluster.api.writers(&format!("{SECRETS}/posthouse-ca")), Vec::<String>::new());
    cluster.pass_days(1);
    until("one root", || cluster.bundle().filter(|(roots, _)| *roots == [second.clone()])).await;
    controller.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}

#[tokio::test]
async fn a_bad_secret_is_left_alone_and_a_good_authority_goes_on_meanwhile() {
    let cluster = Cluster::new();
    let (good, root) = foreign(&cluster, 10);
    let mut bad = good.clone();
    bad["data"]["tls.key"] = BASE64.encode("hello").into();
    cluster.api.put(SECRETS, bad.clone());
    let controller = cluster.controller("one");
    let request = cluster.request("node-a", "node-a", None).await;
    passes().await;
    assert!(!cluster.has_certificate(&request));
    assert_eq!(cluster.bundle(), None);
    cluster.api.put(SECRETS, good);
    assert!(signed_by(&cluster.certificate(&request).await, &root));
    cluster.api.put(SECRETS, bad.clone());
    passes().await;
    let request = cluster.request("node-a", "node-a", None).await;
    assert!(signed_by(&cluster.certificate(&request).await, &root));
    assert_eq!(cluster.api.get(&format!("{SECRETS}/posthouse-ca")).unwrap()["data"], bad["data"]);
    assert_eq!(cluster.api.writers(&format!("{SECRETS}/posthouse-ca")), Vec::<String>::new());
    controller.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}

#[tokio::test]
async fn anothers_trust_bundle_is_not_overwritten() {
    let cluster = Cluster::new();
    let theirs = json!({"metadata": {"name": "posthouse-trust"}, "data": {"ca.crt": "theirs"}});
    cluster.api.put(MAPS, theirs.clone());
    let controller = cluster.controller("one");
    let request = cluster.request("node-a", "node-a", None).await;
    passes().await;
    assert_eq!(cluster.api.get(&format!("{MAPS}/posthouse-trust")).unwrap()["data"], theirs["data"]);
    assert!(!cluster.has_certificate(&request), "a certificate whose root nobody is told of is of no use");
    cluster.api.delete(MAPS, "posthouse-trust");
    cluster.certificate(&request).await;
    controller.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}

#[tokio::test]
async fn an_authority_to_adopt_is_waited_for() {
    let cluster = Cluster::new();
    let controller = cluster.controller_with("one", |settings| settings.ca = Ca::Adopt);
    let request = cluster.request("node-a", "node-a", None).await;
    passes().await;
    assert_eq!(cluster.secret("tls.crt"), None);
    assert!(controller.health.is_ready());
    let (secret, root) = foreign(&cluster, 10);
    cluster.api.put(SECRETS, secret);
    assert!(signed_by(&cluster.certificate(&request).await, &root));
    controller.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}

#[tokio::test]
async fn what_a_former_installation_left_is_taken_over() {
    let cluster = Cluster::new();
    let controller = cluster.controller("one");
    let root = until("an authority", || cluster.secret("ca.crt")).await;
    until("a bundle", || cluster.bundle()).await;
    controller.stop().await;
    cluster.api.put(DEPLOYMENTS, json!({"metadata": {"name": "posthouse-controller", "uid": "deployment-2"}}));
    let controller = cluster.controller("two");
    for path in [format!("{SECRETS}/posthouse-ca"), format!("{MAPS}/posthouse-trust")] {
        until("the new owner", || {
            let owner = cluster.api.get(&path)?["metadata"]["ownerReferences"][0]["uid"].clone();
            (owner == "deployment-2").then_some(())
        })
        .await;
    }
    assert_eq!(cluster.secret("ca.crt").unwrap(), root);
    controller.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}

#[tokio::test]
async fn a_policy_is_told_whether_it_can_be_used() {
    let cluster = Cluster::new();
    let path = "/apis/posthouse.io/v1alpha1/authorizationpolicies";
    let policy = |name: &str, action: &str| {
        json!({
            "apiVersion": "posthouse.io/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": NAMESPACE, "generation": 1}, "spec": {"action": action},
        })
    };
    cluster.api.put(path, policy("good", "Allow"));
    cluster.api.put(path, policy("bad", "Permit"));
    let controller = cluster.controller("one");
    for (name, status, reason) in [("good", "True", "Accepted"), ("bad", "False", "Unreadable")] {
        let condition = until("a status", || {
            let condition = cluster.api.get(&format!("{path}/{name}"))?["status"]["conditions"][0].clone();
            condition.is_object().then_some(condition)
        })
        .await;
        assert_eq!((&condition["type"], &condition["status"]), (&json!("Accepted"), &json!(status)), "{condition}");
        assert_eq!((&condition["reason"], &condition["observedGeneration"]), (&json!(reason), &json!(1)));
    }
    controller.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}

#[tokio::test]
async fn an_uninstall_leaves_nothing_that_is_made_in_its_last_moment() {
    let cluster = Cluster::new();
    let controller = cluster.controller("one");
    until("a bundle", || cluster.bundle()).await;
    let lease = cluster.api.get(&format!("{LEASES}/posthouse-controller")).unwrap();
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "deployment-1");
    // The Deployment goes, and with it what belongs to it; the pod is not gone yet.
    cluster.api.delete(DEPLOYMENTS, "posthouse-controller");
    for (collection, name) in [(SECRETS, "posthouse-ca"), (MAPS, "posthouse-trust"), (LEASES, "posthouse-controller")] {
        cluster.api.delete(collection, name);
    }
    passes().await;
    controller.stop().await;
    for collection in [SECRETS, MAPS, LEASES] {
        assert_eq!(cluster.api.list(collection), Vec::<Value>::new());
    }
    cluster.nobody_asked_for_more_than_is_allowed();
}

/// The name in the Lease.
fn holder(cluster: &Cluster) -> Option<String> {
    cluster.api.get(&format!("{LEASES}/posthouse-controller"))?["spec"]["holderIdentity"].as_str().map(str::to_owned)
}

#[tokio::test(start_paused = true)]
async fn one_of_two_leads_and_the_other_takes_over() {
    let cluster = Cluster::new();
    let one = cluster.controller("one");
    until("a leader", || one.health.leads().then_some(())).await;
    let two = cluster.controller("two");
    until("the other's first look", || two.health.is_ready().then_some(())).await;
    let request = cluster.request("node-a", "node-a", None).await;
    cluster.certificate(&request).await;
    assert!(one.health.leads() && !two.health.leads());

    // It is cut off: it stops acting before the other may begin.
    one.cut.store(true, Ordering::SeqCst);
    until("the end of the first lead", || {
        assert!(!(one.health.leads() && two.health.leads()), "two lead at once");
        (!one.health.leads()).then_some(())
    })
    .await;
    assert_eq!(holder(&cluster).as_deref(), Some("one"), "it still has the lease that nobody may take yet");
    until("the second leader", || two.health.leads().then_some(())).await;
    let request = cluster.request("node-a", "node-a", None).await;
    cluster.certificate(&request).await;
    assert_eq!(cluster.api.writers(&format!("{REQUESTS}/{request}/status")), ["two"]);

    // It comes back and stands by.
    one.cut.store(false, Ordering::SeqCst);
    passes().await;
    assert!(!one.health.leads() && two.health.leads());

    // A leader that ends in order leaves the lease, so that the other need not wait it out.
    two.stop().await;
    assert_ne!(holder(&cluster).as_deref(), Some("two"));
    until("the first again", || one.health.leads().then_some(())).await;

    // A leader that is killed leaves it to time.
    one.task.abort();
    let three = cluster.controller("three");
    until("the third", || three.health.leads().then_some(())).await;
    let transitions =
        cluster.api.get(&format!("{LEASES}/posthouse-controller")).unwrap()["spec"]["leaseTransitions"].clone();
    assert_eq!(transitions, 4, "one, two, one, three");
    three.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}
