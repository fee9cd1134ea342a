//! What an operator is told while the node's certificate is missing, expired and good again.

use posthouse_identity::{Pem, SpiffeId, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd};

use super::*;

/// A certificate of node-a that ends in `year`.
fn material(id: &SpiffeId, year: i32) -> Material {
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
    params.not_after = date_time_ymd(year, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap().pem();
    let (key, roots) = (key.serialize_pem(), ca.pem());
    let pem = Pem { certificates: certificate.as_bytes(), key: key.as_bytes(), roots: roots.as_bytes() };
    // As of 2001, when all of them were good.
    Material::parse(&pem, id, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap()
}

#[tokio::test]
async fn readiness_says_what_is_wrong_with_the_certificate() {
    let id = SpiffeId::node(&TrustDomain::parse("cluster.local").unwrap(), "node-a").unwrap();
    let certificates = Certificates::new(id.clone());
    let readiness = Readiness::default();
    let telling = async { tell(&certificates, &readiness).await };
    let told = |word: &'static str| {
        let readiness = readiness.clone();
        async move {
            while !readiness.reasons().iter().any(|reason| reason.contains(word)) {
                tokio::task::yield_now().await;
            }
            assert_eq!(readiness.reasons().len(), 1, "{:?}", readiness.reasons());
        }
    };
    let life = async {
        told("no certificate yet").await;
        certificates.install(material(&id, 2010), "test");
        told("expired").await;
        certificates.install(material(&id, 2090), "test");
        while !readiness.reasons().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), async {
        tokio::select! {
            () = telling => panic!("it goes on"),
            () = life => {}
        }
    })
    .await
    .unwrap();
}
