//! TLS to pods: what `https` ports of Services want of whoever asks in plain HTTP. A pod is verified as a web client verifies a
//! server: a chain to the Service's roots and the Service's name; nothing of it is believed for links.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use posthouse_model::directory::BackendTls;
use posthouse_model::transport::{BoxIo, Connecting, PodTls};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::provider;

/// How long a pod's handshake may take: longer than the connection itself, since it computes. Source: design default, TLS accept 10 s.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Configurations that are kept ready, one a Service and protocol, with their sessions. A node that meets more starts over.
const MAX_CONFIGS: usize = 512;

/// The first is held so that its place in memory stays its own.
type Config = (Arc<BackendTls>, Result<Arc<ClientConfig>, Arc<str>>);

/// Makes TLS to pods.
#[derive(Default)]
pub struct Backends(Mutex<HashMap<Pointer, Config>>);

/// A key by the place in memory; never followed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Pointer(usize, &'static [u8]);

impl Backends {
    fn config(&self, backend: &Arc<BackendTls>, protocol: &'static [u8]) -> io::Result<Arc<ClientConfig>> {
        let key = Pointer(Arc::as_ptr(backend).addr(), protocol);
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).map(|(_, config)| config.clone());
        let config = known.unwrap_or_else(|| {
            // Without the lock: a bundle may be long. What is wrong with it is remembered as well.
            let built = build(backend, protocol).map(Arc::new).map_err(|error| Arc::from(error.to_string()));
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() >= MAX_CONFIGS {
                all.clear();
            }
            all.insert(key, (Arc::clone(backend), built.clone()));
            built
        });
        config.map_err(|why| refused(&*why))
    }
}

/// tokio-rustls calls every fault of TLS invalid data; here that means the certificate.
fn told_apart(error: io::Error) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(_)) | None => error,
        Some(_) => io::Error::other(error),
    }
}

fn refused(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn build(backend: &BackendTls, protocol: &'static [u8]) -> io::Result<ClientConfig> {
    if let Some(problem) = &backend.problem {
        return Err(refused(&**problem));
    }
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider()))
        // 1.2, too: the pod's server is not ours to choose.
        .with_safe_default_protocol_versions()
        .map_err(refused)?;
    let verifier: Arc<dyn ServerCertVerifier> = if backend.verify {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(&backend.roots) {
            let root = root.map_err(|_| refused("the roots that its pods are verified by are no valid PEM"))?;
            roots.add(root).map_err(|_| refused("one of the roots that its pods are verified by is no certificate"))?;
        }
        if roots.is_empty() {
            return Err(refused("there is no certificate among the roots that its pods are verified by"));
        }
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider())).build().map_err(refused)?
    } else {
        Arc::new(Unverified)
    };
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(config)
}

impl PodTls for Backends {
    fn connect<'a>(
        &'a self,
        stream: TcpStream,
        backend: &'a Arc<BackendTls>,
        protocol: &'static [u8],
    ) -> Connecting<'a, BoxIo> {
        Box::pin(async move {
            let config = self.config(backend, protocol)?;
            let name = ServerName::try_from(backend.hostname.to_string())
                .map_err(|_| refused(format!("'{}' is no DNS name to verify its pods by", backend.hostname)))?;
            let handshake = TlsConnector::from(config).connect(name, stream);
            let stream = tokio::time::timeout(HANDSHAKE, handshake)
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no TLS handshake in {HANDSHAKE:?}")))?
                .map_err(told_apart)?;
            // HTTP/1.1 is what a server without ALPN speaks; HTTP/2 must be agreed on (RFC 9113 §3.2).
            match stream.get_ref().1.alpn_protocol() {
                None if protocol == b"http/1.1" => {}
                Some(agreed) if agreed == protocol => {}
                _ => {
                    let wanted = String::from_utf8_lossy(protocol);
                    return Err(refused(format!("it does not agree to {wanted} in its TLS handshake (ALPN)")));
                }
            }
            Ok(Box::new(stream) as BoxIo)
        })
    }
}

/// For `posthouse.io/backend-tls: insecure`: encrypted, but with whom is not asked.
#[derive(Debug)]
struct Unverified;

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
