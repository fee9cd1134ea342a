//! A CA for tests: certificates of nodes, and such as no node should have.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

use crate::{Pem, SpiffeId, TrustDomain};

pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

pub(crate) fn id(node: &str) -> SpiffeId {
    SpiffeId::node(&domain(), node).unwrap()
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// The parameters of a node's certificate.
pub(crate) fn node_params(node: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, node);
    params.subject_alt_names = vec![uri(id(node).as_str())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, |_| {})
    }

    pub(crate) fn with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        change(&mut params);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn issuer(&self) -> &CertifiedIssuer<'static, KeyPair> {
        &self.0
    }

    pub(crate) fn node(&self, node: &str) -> Issued {
        self.issue(&node_params(node))
    }

    pub(crate) fn node_with(&self, node: &str, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let mut params = node_params(node);
        change(&mut params);
        self.issue(&params)
    }

    pub(crate) fn node_valid(&self, node: &str, from: OffsetDateTime, to: OffsetDateTime) -> Issued {
        self.node_with(node, |params| (params.not_before, params.not_after) = (from, to))
    }

    pub(crate) fn issue(&self, params: &CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Issued { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

impl Issued {
    pub(crate) fn pem<'a>(&'a self, roots: &'a str) -> Pem<'a> {
        Pem { certificates: self.certificate.as_bytes(), key: self.key.as_bytes(), roots: roots.as_bytes() }
    }
}
