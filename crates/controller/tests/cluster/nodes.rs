//! Nodes and controller together, on the real clock: certificates of seconds, an authority of half a minute.

use std::collections::BTreeSet;

use posthouse_identity::kube::{self as issuance, keep};
use posthouse_identity::{Certificates, SpiffeId, TrustDomain};

use super::*;

/// A node's proxy, as far as its certificate goes.
struct Node {
    certificates: Certificates,
    cut: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cluster {
    fn node(&self, name: &str) -> Node {
        self.node_with_token_of(name, name)
    }

    fn node_with_token_of(&self, name: &str, token: &str) -> Node {
        let user = User {
            name: "system:serviceaccount:posthouse:posthouse".to_owned(),
            node: Some(token.to_owned()),
            grants: issuance::PERMISSIONS,
        };
        let cut = Arc::new(AtomicBool::new(false));
        let client = self.api.client(user, Arc::clone(&cut));
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let certificates = Certificates::new(SpiffeId::node(&domain, name).unwrap());
        let timing = issuance::Timing {
            look: (Duration::from_millis(10), Duration::from_millis(100)),
            backoff: (Duration::from_millis(50), Duration::from_millis(500)),
            spread: Duration::from_millis(500),
            ..issuance::Timing::default()
        };
        let task = tokio::spawn({
            let certificates = certificates.clone();
            async move { keep(client, NAMESPACE, certificates, None, timing).await }
        });
        Node { certificates, cut, task }
    }

    fn real_controller(&self, identity: &str, ca: u64, certificate: u64) -> Replica {
        self.controller_with(identity, |settings| {
            settings.clock = Arc::new(SystemTime::now);
            settings.ca_lifetime = Duration::from_secs(ca);
            settings.certificate_lifetime = Duration::from_secs(certificate);
        })
    }

    /// The certificate of a serial number, as the API has it.
    fn issued(&self, serial: &str) -> String {
        let issued = self.api.list(REQUESTS).into_iter().find_map(|request| {
            let text = request["status"]["certificate"].as_str()?;
            let pem = String::from_utf8(BASE64.decode(text).unwrap()).unwrap();
            let (_, parsed) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
            let number =
                parsed.parse_x509().unwrap().raw_serial().iter().map(|b| format!("{b:02x}")).collect::<String>();
            let plain = |text: &str| text.to_lowercase().replace(':', "").trim_start_matches('0').to_owned();
            (plain(&number) == plain(serial)).then_some(pem)
        });
        issued.unwrap_or_else(|| panic!("no request has the certificate {serial}"))
    }
}

impl Node {
    async fn has_certificate(&self) {
        until("a node's certificate", || self.certificates.current().map(drop)).await;
    }

    fn serial(&self) -> String {
        self.certificates.current().unwrap().material.serial().to_owned()
    }

    fn roots(&self) -> BTreeSet<String> {
        self.certificates.current().unwrap().material.roots().map(|root| root.fingerprint.clone()).collect()
    }

    fn rejected(&self) -> Option<String> {
        self.certificates.state().rejected.map(|rejected| rejected.error)
    }
}

#[tokio::test]
async fn a_node_gets_its_certificate_and_renews_it_at_half_life() {
    let cluster = Cluster::new();
    // The node is there first: it waits for the bundle.
    let node = cluster.node("node-a");
    until("a word of it", || node.rejected().filter(|error| error.contains("does posthouse-controller run"))).await;
    let controller = cluster.real_controller("one", 3600, 4);
    node.has_certificate().await;
    let first = node.certificates.current().unwrap();
    assert_eq!(node.rejected(), None);
    assert_eq!(first.material.id().as_str(), "spiffe://cluster.local/node/node-a");
    let (roots, id) = cluster.bundle().unwrap();
    assert!(signed_by(&cluster.issued(&node.serial()), &roots[0]));
    let request = cluster.api.list(REQUESTS).remove(0);
    assert_eq!(request["metadata"]["annotations"][BUNDLE_ANNOTATION], json!(id));
    assert!(!cluster.api.list(REQUESTS).iter().any(|request| request.to_string().contains("PRIVATE")));

    until("a renewal", || (node.serial() != first.material.serial()).then_some(())).await;
    let second = node.certificates.current().unwrap();
    assert!(second.installed < first.material.not_after(), "renewed while the first one was valid");
    assert!(second.material.not_after() > first.material.not_after());
    controller.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}

#[tokio::test]
async fn a_node_is_told_why_it_gets_none() {
    let cluster = Cluster::new();
    let controller = cluster.real_controller("one", 3600, 60);
    let node = cluster.node_with_token_of("node-a", "node-b");
    let error = until("the controller's words", || node.rejected().filter(|error| error.contains("denied"))).await;
    assert!(error.contains("WrongName") && error.contains("spiffe://cluster.local/node/node-b"), "{error}");
    assert!(node.certificates.current().is_none());
    controller.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}

#[tokio::test]
async fn what_a_node_has_stays_while_the_api_is_away() {
    let cluster = Cluster::new();
    let controller = cluster.real_controller("one", 3600, 4);
    let node = cluster.node("node-a");
    node.has_certificate().await;
    let serial = node.serial();
    node.cut.store(true, Ordering::SeqCst);
    let error = until("a word of it", || node.rejected()).await;
    assert!(error.contains("certificate request cannot be made"), "{error}");
    assert_eq!(node.serial(), serial);
    node.cut.store(false, Ordering::SeqCst);
    until("a renewal", || (node.serial() != serial).then_some(())).await;
    assert_eq!(node.rejected(), None);
    controller.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}

/// At every moment of a whole rotation each node's certificate is signed by a root that the other one trusts.
#[tokio::test]
async fn a_rotation_never_leaves_two_nodes_strangers() {
    let cluster = Cluster::new();
    cluster.proxies(&["node-a", "node-b"], &[]);
    // Its last third begins after 12 s.
    let controller = cluster.real_controller("one", 18, 3);
    let (a, b) = (cluster.node("node-a"), cluster.node("node-b"));
    a.has_certificate().await;
    b.has_certificate().await;
    let (first, _) = cluster.bundle().unwrap();
    let mut seen = first.clone();
    let mut phases = BTreeSet::new();
    until("the end of the rotation", || {
        let (roots, _) = cluster.bundle().unwrap();
        for root in &roots {
            if !seen.contains(root) {
                seen.push(root.clone());
            }
        }
        for (one, other) in [(&a, &b), (&b, &a)] {
            let (certificate, trusted) = (cluster.issued(&one.serial()), other.roots());
            let signer = seen.iter().find(|root| signed_by(&certificate, root)).expect("one of ours signed it");
            assert!(trusted.contains(&fingerprint(signer)), "the other does not trust the signer");
        }
        let by_first = [&a, &b].map(|node| signed_by(&cluster.issued(&node.serial()), &first[0]));
        phases.insert((roots.len(), by_first.contains(&false)));
        (roots.len() == 1 && roots != first && a.roots().len() == 1 && b.roots().len() == 1).then_some(())
    })
    .await;
    assert!(phases.contains(&(2, false)), "two roots, all certificates by the first: {phases:?}");
    assert!(phases.contains(&(2, true)), "two roots, certificates by the second: {phases:?}");
    assert_eq!(seen.len(), 2);
    controller.stop().await;
    cluster.nobody_asked_for_more_than_is_allowed();
}

fn fingerprint(pem: &str) -> String {
    let (_, parsed) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &parsed.contents);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
