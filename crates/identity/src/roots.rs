//! The trust bundle and the one judgement of a certificate by it: the node's own when it is read, and a peer's after each
//! handshake, resumed or not.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::provider;
use crate::spiffe::SpiffeId;

/// One trust root, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Its subject.
    pub subject: String,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
    /// From when it is trusted.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
}

/// What is trusted to sign.
#[derive(Clone, Debug)]
pub(crate) struct Roots(Vec<(Root, TrustAnchor<'static>)>);

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) subject: String,
    pub(crate) issuer: String,
    pub(crate) serial: String,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// Its URI names; one that is no text counts as one, too.
    pub(crate) uris: Vec<String>,
}

impl Facts {
    pub(crate) fn read(certificate: &CertificateDer<'_>) -> Result<Self, Verdict> {
        let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|_| Verdict::Unreadable)?;
        if !rest.is_empty() {
            return Err(Verdict::Unreadable);
        }
        let names = parsed.subject_alternative_name().map_err(|_| Verdict::Unreadable)?;
        let uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            GeneralName::Invalid(..) => Some("(an unreadable name)".to_owned()),
            _ => None,
        });
        Ok(Self {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            serial: parsed.raw_serial_as_string(),
            not_before: system_time(parsed.validity().not_before.timestamp()),
            not_after: system_time(parsed.validity().not_after.timestamp()),
            uris: uris.collect(),
        })
    }

    pub(crate) fn valid_at(&self, now: SystemTime) -> Result<(), Verdict> {
        if now < self.not_before {
            return Err(Verdict::NotYetValid(self.not_before));
        }
        if now > self.not_after {
            return Err(Verdict::Expired(self.not_after));
        }
        Ok(())
    }

    /// Whether it is the certificate of `expected`.
    pub(crate) fn is_for(&self, expected: &SpiffeId) -> Result<(), Verdict> {
        let found = self.uri()?;
        if found == expected.as_str() {
            return Ok(());
        }
        Err(Verdict::OtherIdentity { found: found.to_owned(), expected: expected.as_str().to_owned() })
    }

    /// The one URI, which is the identity.
    pub(crate) fn uri(&self) -> Result<&str, Verdict> {
        match self.uris.as_slice() {
            [uri] => Ok(uri),
            [] => Err(Verdict::NoUri),
            several => Err(Verdict::SeveralUris(several.len())),
        }
    }
}

/// Why a certificate is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Verdict {
    /// No X.509 certificate, or not one of version 3.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// By the clock.
    #[error("the certificate is expired since {}", rfc3339(*.0))]
    Expired(SystemTime),
    /// By the clock.
    #[error("the certificate is not valid before {}", rfc3339(*.0))]
    NotYetValid(SystemTime),
    /// No root that is valid now signed it.
    #[error("the certificate is not signed by a root of the trust bundle (issuer: {0})")]
    UnknownIssuer(String),
    /// Its extended key usage does not allow what it is used for.
    #[error("the certificate's extended key usage does not allow TLS {0}")]
    Usage(&'static str),
    /// Another fault of the chain.
    #[error("the certificate's chain is not valid: {0}")]
    Chain(String),
    /// Its DNS names do not have it.
    #[error("the certificate is not for the name {0}")]
    OtherName(String),
    /// No URI among the subject's alternative names.
    #[error("the certificate has no URI among its names")]
    NoUri,
    /// More than one: which one counts would be a matter of taste.
    #[error("the certificate has {0} URIs among its names, exactly one is allowed")]
    SeveralUris(usize),
    /// Another identity than expected.
    #[error("the certificate is for {found}, not for {expected}")]
    OtherIdentity {
        /// What it says.
        found: String,
        /// What was expected.
        expected: String,
    },
}

/// What the certificate is used for.
#[derive(Clone, Copy)]
pub(crate) enum Usage {
    Client,
    Server,
}

impl Roots {
    pub(crate) fn new(certificates: &[CertificateDer<'static>]) -> Result<Self, Verdict> {
        let root = |certificate: &CertificateDer<'static>| {
            let facts = Facts::read(certificate)?;
            let anchor = webpki::anchor_from_trusted_cert(certificate).map_err(|_| Verdict::Unreadable)?.to_owned();
            let Facts { subject, not_before, not_after, .. } = facts;
            Ok((Root { subject, fingerprint: fingerprint(certificate), not_before, not_after }, anchor))
        };
        certificates.iter().map(root).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn list(&self) -> impl Iterator<Item = &Root> {
        self.0.iter().map(|(root, _)| root)
    }

    pub(crate) fn any_valid_at(&self, now: SystemTime) -> bool {
        self.list().any(|root| root.not_before <= now && now <= root.not_after)
    }

    /// Judges a certificate and those between it and a root: its validity now, its signatures up to a root that is itself valid now, its usage.
    /// Names are the caller's.
    pub(crate) fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        usage: Usage,
        now: SystemTime,
    ) -> Result<Facts, Verdict> {
        let facts = Facts::read(leaf)?;
        facts.valid_at(now)?;
        let valid = |root: &Root| root.not_before <= now && now <= root.not_after;
        let anchors: Vec<TrustAnchor<'_>> =
            self.0.iter().filter(|(root, _)| valid(root)).map(|(_, anchor)| anchor.clone()).collect();
        let certificate = EndEntityCert::try_from(leaf).map_err(|_| Verdict::Unreadable)?;
        let (usage, name): (KeyUsage, _) = match usage {
            Usage::Client => (KeyUsage::client_auth(), "clients"),
            Usage::Server => (KeyUsage::server_auth(), "servers"),
        };
        verify(&certificate, &anchors, between, now, usage).map_err(|error| match error {
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                Verdict::UnknownIssuer(facts.issuer.clone())
            }
            webpki::Error::RequiredEkuNotFoundContext(_) => Verdict::Usage(name),
            error => Verdict::Chain(error.to_string()),
        })?;
        Ok(facts)
    }
}

fn verify(
    leaf: &EndEntityCert<'_>,
    anchors: &[TrustAnchor<'_>],
    between: &[CertificateDer<'_>],
    now: SystemTime,
    usage: impl ExtendedKeyUsageValidator,
) -> Result<(), webpki::Error> {
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let algorithms = provider().signature_verification_algorithms.all;
    leaf.verify_for_usage(algorithms, anchors, between, now, usage, None, None).map(|_| ())
}

/// SHA-256 in hexadecimal.
pub(crate) fn fingerprint(bytes: &[u8]) -> String {
    let digest = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256
        .tls13()
        .map(|suite| suite.common.hash_provider.hash(bytes));
    digest.iter().flat_map(|digest| digest.as_ref()).map(|byte| format!("{byte:02x}")).collect()
}

/// As people and JSON have it: `2026-01-31T12:00:00Z`.
#[must_use]
pub fn rfc3339(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_else(|_| "a time that cannot be written".to_owned())
}

fn system_time(unix: i64) -> SystemTime {
    let distance = Duration::from_secs(unix.unsigned_abs());
    let at = if unix < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    at.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Shared by all that hold the bundle.
pub(crate) type SharedRoots = Arc<Roots>;
