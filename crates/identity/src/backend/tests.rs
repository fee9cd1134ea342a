//! TLS to pods over loopback.

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::test_ca::{Ca, Issued};

const NAME: &str = "web.shop.svc";

fn certificate(ca: &Ca, name: &str) -> Issued {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    ca.issue(&params)
}

fn backend(verify: bool, roots: &str) -> Arc<BackendTls> {
    Arc::new(BackendTls { verify, roots: roots.as_bytes().to_vec(), hostname: NAME.into(), problem: None })
}

/// A pod that answers each byte with the next one, by the protocols that it agrees to; gives its TLS version.
async fn pod(issued: &Issued, protocols: &[&[u8]]) -> (TcpStream, tokio::task::JoinHandle<()>) {
    let chain = vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (taken, _) = listener.accept().await.unwrap();
    let serving = tokio::spawn(async move {
        let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(taken).await else { return };
        while let Ok(byte) = stream.read_u8().await {
            stream.write_u8(byte + 1).await.unwrap();
        }
    });
    (dialled, serving)
}

async fn ask(
    backends: &Backends,
    stream: TcpStream,
    backend: &Arc<BackendTls>,
    protocol: &'static [u8],
) -> io::Result<u8> {
    let mut io = backends.connect(stream, backend, protocol).await?;
    io.write_u8(41).await?;
    io.read_u8().await
}

#[tokio::test]
async fn a_pod_is_verified_by_its_services_roots_and_name() {
    let (ca, other) = (Ca::new("shop"), Ca::new("other"));
    let backends = Backends::default();
    for (what, issued, roots, verify, wanted) in [
        ("the right one", certificate(&ca, NAME), ca.pem(), true, None),
        ("another name", certificate(&ca, "db.shop.svc"), ca.pem(), true, Some("not valid for name")),
        ("another CA", certificate(&other, NAME), ca.pem(), true, Some("UnknownIssuer")),
        ("one of two roots", certificate(&other, NAME), format!("{}{}", ca.pem(), other.pem()), true, None),
        ("nobody asks", certificate(&other, "db.shop.svc"), String::new(), false, None),
    ] {
        let (stream, _pod) = pod(&issued, &[b"http/1.1"]).await;
        let answer = ask(&backends, stream, &backend(verify, &roots), b"http/1.1").await;
        match wanted {
            None => assert_eq!(answer.unwrap(), 42, "{what}"),
            Some(word) => {
                let error = answer.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}: {error}");
                assert!(error.to_string().contains(word), "{what}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn what_a_pod_shall_be_verified_by_is_told_when_it_cannot_be_used() {
    let ca = Ca::new("shop");
    let backends = Backends::default();
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n";
    for (roots, problem, word) in [
        (String::new(), None, "no certificate among the roots"),
        (broken.to_owned(), None, "no valid PEM"),
        (ca.pem(), Some("ConfigMap web-ca is missing"), "ConfigMap web-ca is missing"),
    ] {
        let (stream, _pod) = pod(&certificate(&ca, NAME), &[b"http/1.1"]).await;
        let wanted = BackendTls { problem: problem.map(Into::into), ..(*backend(true, &roots)).clone() };
        let error = ask(&backends, stream, &Arc::new(wanted), b"http/1.1").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn http2_is_agreed_on_and_http1_is_what_a_server_without_alpn_speaks() {
    let ca = Ca::new("shop");
    let backends = Backends::default();
    for (protocols, asked, works) in [
        (vec![&b"h2"[..], b"http/1.1"], &b"h2"[..], true),
        (vec![b"h2", b"http/1.1"], b"http/1.1", true),
        (vec![], b"http/1.1", true),
        (vec![], b"h2", false),
        (vec![b"http/1.1"], b"h2", false),
    ] {
        let (stream, _pod) = pod(&certificate(&ca, NAME), &protocols).await;
        let answer = ask(&backends, stream, &backend(true, &ca.pem()), asked).await;
        assert_eq!(answer.is_ok(), works, "{protocols:?} {asked:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_pod_that_speaks_no_tls_is_told_apart_from_one_with_a_bad_certificate() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut taken, _) = listener.accept().await.unwrap();
    taken.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let roots = Ca::new("shop").pem();
    let error = ask(&Backends::default(), stream, &backend(true, &roots), b"http/1.1").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Other, "{error}");
}

#[tokio::test]
async fn new_roots_are_another_configuration_and_the_number_of_them_is_bounded() {
    let ca = Ca::new("shop");
    let backends = Backends::default();
    for _ in 0..MAX_CONFIGS + 10 {
        backends.config(&backend(true, &ca.pem()), b"h2").unwrap();
    }
    assert!(backends.0.lock().unwrap().len() <= MAX_CONFIGS);
    let one = backend(true, &ca.pem());
    let first = backends.config(&one, b"h2").unwrap();
    assert!(Arc::ptr_eq(&first, &backends.config(&one, b"h2").unwrap()), "its sessions are kept");
    assert!(!Arc::ptr_eq(&first, &backends.config(&one, b"http/1.1").unwrap()));
    assert!(!Arc::ptr_eq(&first, &backends.config(&backend(true, &ca.pem()), b"h2").unwrap()));
}
