//! Plain requests to `https` ports: the receiver's proxy makes TLS to the pod and verifies it as the Service says.

use std::sync::Arc;

use http::Version;
use posthouse_model::AppProtocol;
use posthouse_model::directory::BackendTls;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use crate::harness::{A, B, H2, Mesh, Pod, Svc, Wire};

const NAME: &str = "web.demo.svc";

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A server with a certificate for `name` that speaks both versions.
    fn server(&self, name: &str) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    fn backend(&self) -> BackendTls {
        BackendTls { verify: true, roots: self.0.pem().into_bytes(), hostname: NAME.into(), problem: None }
    }
}

fn https(pod: &Pod, backend: BackendTls) -> Svc {
    Svc::new("web").app(AppProtocol::Https).end(pod).backend(backend)
}

#[tokio::test]
async fn both_versions_reach_a_pod_in_tls_and_its_connections_are_used_again() {
    let ca = Ca::new("ours");
    for node in [B, A] {
        let pod = Pod::tls(node, 10, ca.server(NAME), "pod").await;
        let mesh = Mesh::start();
        mesh.put(&https(&pod, ca.backend()));
        let mut client = Wire::connect(mesh.a.outbound).await;
        for _ in 0..3 {
            assert_eq!(client.get("web.demo", "/").await.text(), "pod");
        }
        assert_eq!(pod.accepted(), 1, "{node}: GETs share a connection");
        let posted = client.ask("POST / HTTP/1.1\r\nHost: web.demo\r\nContent-Length: 2\r\n\r\nhi").await;
        assert_eq!(posted.text(), "pod");
        assert_eq!(pod.accepted(), 2, "what must not be sent twice has its own");
        let client = H2::connect(mesh.a.outbound).await;
        for _ in 0..3 {
            assert_eq!(client.get("http://web.demo/").await.unwrap().text(), "pod");
        }
        assert_eq!(pod.accepted(), 3, "{node}: HTTP/2 shares one");
        let seen = pod.seen();
        assert_eq!(seen[0].version, Version::HTTP_11);
        assert_eq!((seen[4].version, seen[4].uri.scheme_str()), (Version::HTTP_2, Some("https")));
    }
}

#[tokio::test]
async fn a_pod_that_does_not_prove_its_service_gets_nothing() {
    let (ca, other) = (Ca::new("ours"), Ca::new("theirs"));
    for (what, config, backend, status, word) in [
        ("another CA", other.server(NAME), ca.backend(), "tls_certificate_error", "UnknownIssuer"),
        ("another name", ca.server("db.demo.svc"), ca.backend(), "tls_certificate_error", "not valid for name"),
        (
            "nothing to verify by",
            ca.server(NAME),
            BackendTls { problem: Some("set posthouse.io/backend-tls-ca".into()), ..ca.backend() },
            "tls_certificate_error",
            "set posthouse.io/backend-tls-ca",
        ),
    ] {
        let pod = Pod::tls(B, 10, config, "pod").await;
        let mesh = Mesh::start();
        mesh.put(&https(&pod, backend));
        let answer = Wire::connect(mesh.a.outbound).await.get("web.demo", "/").await;
        answer.is_error(502, status);
        assert!(answer.text().contains(word) && answer.text().contains(NAME), "{what}: {}", answer.text());
        assert!(pod.seen().is_empty(), "{what}");
    }
    let plain = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.put(&https(&plain, ca.backend()));
    Wire::connect(mesh.a.outbound).await.get("web.demo", "/").await.is_error(502, "tls_protocol_error");
    assert!(plain.seen().is_empty());
}

#[tokio::test]
async fn other_roots_take_effect_on_the_next_request() {
    let (ca, other) = (Ca::new("ours"), Ca::new("theirs"));
    let pod = Pod::tls(B, 10, ca.server(NAME), "pod").await;
    let mesh = Mesh::start();
    let mut client = Wire::connect(mesh.a.outbound).await;
    mesh.put(&https(&pod, ca.backend()));
    assert_eq!(client.get("web.demo", "/").await.text(), "pod");
    mesh.put(&https(&pod, other.backend()));
    client.get("web.demo", "/").await.is_error(502, "tls_certificate_error");
    mesh.put(&https(&pod, BackendTls { verify: false, roots: Vec::new(), ..other.backend() }));
    assert_eq!(client.get("web.demo", "/").await.text(), "pod");
}

#[tokio::test]
async fn tls_that_the_client_makes_itself_stays_its_own() {
    let ca = Ca::new("ours");
    let pod = Pod::tls(B, 10, ca.server(NAME), "pod").await;
    let mesh = Mesh::start();
    mesh.put(&https(&pod, ca.backend()));
    let mut client = Wire::connect(mesh.a.outbound).await;
    client.send("CONNECT web.demo:80 HTTP/1.1\r\nHost: web.demo:80\r\n\r\n").await;
    client.head().await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.0.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(NAME.try_into().unwrap(), client.stream).await.unwrap();
    let client = H2::over(stream).await;
    assert_eq!(client.get("https://web.demo/").await.unwrap().text(), "pod");
}
