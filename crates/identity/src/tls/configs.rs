//! rustls' configurations, made anew for each certificate of the node, and the verifiers that put our one judgement into
//! rustls' handshake, so that the peer is told by an alert.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::EndEntityCert;

use super::ALPN;
use super::failure::{Failure, Reason, certificate_error};
use crate::certificates::Current;
use crate::provider;
use crate::roots::{Facts, SharedRoots, Usage, Verdict};
use crate::spiffe::{SpiffeId, TrustDomain};

/// Sessions that may be resumed, at about 2 KiB (the peer's chain). A link is made once and kept, so this is for the minutes
/// after a restart: two sessions for each of a few hundred peers; others make a full handshake.
const SESSIONS: usize = 1024;

/// Made from one certificate of the node.
pub(super) struct Configs {
    pub(super) current: Arc<Current>,
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
    time: Arc<dyn TimeProvider>,
}

impl Configs {
    pub(super) fn build(current: Arc<Current>, time: &Arc<dyn TimeProvider>) -> Result<Self, Failure> {
        let material = &current.material;
        let expected = Expected::Node(material.id.trust_domain().clone());
        let client = client(&current, Arc::clone(&material.roots), expected, time)?;
        let server = server(&current, &material.certified, time)?;
        Ok(Self { client, server, current, time: Arc::clone(time) })
    }

    pub(super) fn epoch(&self) -> u64 {
        self.current.epoch
    }

    /// For links to a Service that is verified by roots of its own.
    pub(super) fn client_for_service(&self, roots: SharedRoots) -> Result<Arc<ClientConfig>, Failure> {
        client(&self.current, roots, Expected::Service, &self.time)
    }

    /// For links to a Service of this node's pods that has a certificate of its own.
    pub(super) fn server_for_service(&self, certified: &Arc<CertifiedKey>) -> Result<Arc<ServerConfig>, Failure> {
        server(&self.current, certified, &self.time)
    }
}

fn client(
    current: &Current,
    roots: SharedRoots,
    expected: Expected,
    time: &Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, Failure> {
    let mut config = ClientConfig::builder_with_details(Arc::clone(provider()), Arc::clone(time))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier { roots, expected }))
        .with_client_cert_resolver(Arc::new(single(&current.material.certified)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(Arc::new(config))
}

fn server(
    current: &Current,
    certified: &Arc<CertifiedKey>,
    time: &Arc<dyn TimeProvider>,
) -> Result<Arc<ServerConfig>, Failure> {
    let material = &current.material;
    let verifier =
        ClientVerifier { roots: Arc::clone(&material.roots), trust_domain: material.id.trust_domain().clone() };
    let resolver: Arc<dyn ResolvesServerCert> = Arc::new(single(certified));
    let mut config = ServerConfig::builder_with_details(Arc::clone(provider()), Arc::clone(time))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    Ok(Arc::new(config))
}

fn single(certified: &Arc<CertifiedKey>) -> SingleCertAndKey {
    SingleCertAndKey::from(CertifiedKey::clone(certified))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unusable(error: rustls::Error) -> Failure {
    Failure::new(Reason::OwnCertificate, format!("TLS cannot be set up: {error}"))
}

/// Who must be at the other end of a link that we dial; the name comes with the handshake.
#[derive(Clone, Debug)]
pub(super) enum Expected {
    /// The node of this trust domain with the name that was asked for.
    Node(TrustDomain),
    /// The Service with the DNS name that was asked for. Which node serves it is not proven then: the Service's certificate may
    /// be on each of its nodes, and that is what its owner wants to be asked by.
    Service,
}

impl Expected {
    /// The one judgement of a server, in the handshake and after it.
    pub(super) fn check(
        &self,
        roots: &SharedRoots,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: SystemTime,
    ) -> Result<(), Verdict> {
        let (leaf, between) = chain.split_first().ok_or(Verdict::Unreadable)?;
        self.check_leaf(roots, leaf, between, name, now)
    }

    fn check_leaf(
        &self,
        roots: &SharedRoots,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: SystemTime,
    ) -> Result<(), Verdict> {
        let facts = roots.judge(leaf, between, Usage::Server, now)?;
        match self {
            Self::Node(domain) => {
                let expected = SpiffeId::node(domain, &name.to_str())
                    .map_err(|_| Verdict::OtherName(name.to_str().into_owned()))?;
                facts.is_for(&expected)
            }
            Self::Service => EndEntityCert::try_from(leaf)
                .and_then(|leaf| leaf.verify_is_valid_for_subject_name(name))
                .map_err(|_| Verdict::OtherName(name.to_str().into_owned())),
        }
    }
}

/// The one judgement of a client: a node of the trust domain. Returns its name and facts.
pub(super) fn check_client(
    roots: &SharedRoots,
    trust_domain: &TrustDomain,
    leaf: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<(Arc<str>, Facts), Verdict> {
    let facts = roots.judge(leaf, between, Usage::Client, now)?;
    let uri = facts.uri()?;
    let node = trust_domain.node_of(uri).map(Arc::from).ok_or_else(|| Verdict::OtherIdentity {
        found: uri.to_owned(),
        expected: format!("a node, spiffe://{trust_domain}/node/..."),
    })?;
    Ok((node, facts))
}

pub(super) fn system_time(at: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(at.as_secs())).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[derive(Debug)]
struct ServerVerifier {
    roots: SharedRoots,
    expected: Expected,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.expected
            .check_leaf(&self.roots, leaf, between, name, system_time(now))
            .map(|()| ServerCertVerified::assertion())
            .map_err(|verdict| certificate_error(verdict, now).into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[derive(Debug)]
struct ClientVerifier {
    roots: SharedRoots,
    trust_domain: TrustDomain,
}

impl ClientCertVerifier for ClientVerifier {
    /// No hints: a node has one certificate, and the bundle is nobody else's business.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        check_client(&self.roots, &self.trust_domain, leaf, between, system_time(now))
            .map(|_| ClientCertVerified::assertion())
            .map_err(|verdict| certificate_error(verdict, now).into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn tls13_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = &provider().signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
}
