//! The certificate authority: made, read from the Secret, and used to sign. No IO.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use posthouse_model::issuance::node_uri;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::review::Granted;

/// Clocks of nodes may be behind ours by this much. 5 min: kube-controller-manager's signer.
pub(crate) const BACKDATE: Duration = Duration::from_secs(300);
/// The name of an authority that we make.
const NAME: &str = "posthouse CA";
/// The longest common name (X.520, ub-common-name).
const MAX_NAME: usize = 64;

/// Why an authority cannot be used. The text names the Secret's key that is wrong, never its content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Bad(String);

impl Bad {
    /// What is wrong with a key of the Secret.
    pub(crate) fn of(key: &str, why: &str) -> Self {
        Self(format!("{key} {why}"))
    }
}

fn bad<T>(what: impl Into<String>) -> Result<T, Bad> {
    Err(Bad(what.into()))
}

/// An authority's certificate and key as PEM, as they are made.
pub(crate) struct Made {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// Makes a root of its own, valid from now on for `lifetime`.
pub(crate) fn make(now: SystemTime, lifetime: Duration) -> Result<Made, Bad> {
    let failed = |error: rcgen::Error| Bad(format!("no authority can be made: {error}"));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(now + lifetime);
    params.distinguished_name = name(NAME);
    // It signs nodes and no further authorities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Made { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// One that can sign.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The issuer's certificate and what is between it and a root.
    chain: Vec<CertificateDer<'static>>,
    pub(crate) roots: Vec<CertificateDer<'static>>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Authority {
    /// Reads `tls.crt` (the issuer and what leads to a root), `tls.key` and `ca.crt` (the roots).
    pub(crate) fn read(chain: &[u8], key: &[u8], roots: Option<&[u8]>) -> Result<Self, Bad> {
        let chain = certificates(chain).map_err(|why| Bad(format!("tls.crt {why}")))?;
        let first = chain.first().ok_or_else(|| Bad("tls.crt has no certificate".to_owned()))?;
        let parsed = parse(first).map_err(|why| Bad(format!("tls.crt {why}")))?;
        if !parsed.is_ca() {
            return bad("tls.crt is no authority's certificate (its basic constraints say so)");
        }
        if parsed.key_usage().ok().flatten().is_some_and(|usage| !usage.value.key_cert_sign()) {
            return bad("tls.crt may not sign certificates (its key usages say so)");
        }
        let key = std::str::from_utf8(key)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok())
            .ok_or_else(|| Bad("tls.key is no private key as PEM (ECDSA, Ed25519 or RSA)".to_owned()))?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return bad("tls.key is not the key of tls.crt's first certificate");
        }
        let roots = match roots {
            Some(pem) => certificates(pem).map_err(|why| Bad(format!("ca.crt {why}")))?,
            None if parsed.subject() == parsed.issuer() => vec![first.clone()],
            None => return bad("ca.crt is missing, and tls.crt is no root itself"),
        };
        if roots.is_empty() {
            return bad("ca.crt has no certificate");
        }
        leads_to_root(&chain, &roots)?;
        let validity = parsed.validity();
        let (not_before, not_after) = (instant(validity.not_before), instant(validity.not_after));
        let issuer = Issuer::from_ca_cert_der(first, key).map_err(|error| Bad(format!("tls.crt: {error}")))?;
        Ok(Self { issuer, chain, roots, not_before, not_after })
    }

    /// Whether `other` is the same certificate with what leads to a root.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.chain == other.chain && self.roots == other.roots
    }

    /// How long it was made for, if we made it.
    pub(crate) fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before + BACKDATE).unwrap_or_default()
    }

    /// A node's certificate and what leads from it to a root, as PEM.
    pub(crate) fn sign(
        &self,
        granted: &Granted,
        trust_domain: &str,
        now: SystemTime,
        longest: Duration,
    ) -> Result<String, Bad> {
        if now >= self.not_after {
            return bad("the authority's own certificate has ended");
        }
        let lifetime = granted.lifetime.map_or(longest, |asked| asked.min(longest));
        let failed = |error: rcgen::Error| Bad(format!("the certificate cannot be signed: {error}"));
        let uri = node_uri(trust_domain, &granted.node);
        let mut params = CertificateParams::default();
        params.not_before = OffsetDateTime::from((now - BACKDATE).max(self.not_before));
        params.not_after = OffsetDateTime::from((now + lifetime).min(self.not_after));
        let common: String = format!("posthouse node {}", granted.node).chars().take(MAX_NAME).collect();
        params.distinguished_name = name(&common);
        params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(failed)?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&granted.key, &self.issuer).map_err(failed)?;
        let mut pem = certificate.pem();
        for link in self.chain.iter().filter(|link| !self.roots.contains(link)) {
            pem.push_str(&to_pem(link));
        }
        Ok(pem)
    }
}

pub(crate) fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// Each certificate of the chain is signed by the next, and the last one by a root or it is one.
fn leads_to_root(chain: &[CertificateDer<'_>], roots: &[CertificateDer<'_>]) -> Result<(), Bad> {
    for (place, certificate) in chain.iter().enumerate() {
        if roots.contains(certificate) {
            return Ok(());
        }
        let above: &[CertificateDer<'_>] = match chain.get(place + 1) {
            Some(next) => std::slice::from_ref(next),
            None => roots,
        };
        if !above.iter().any(|above| signed_by(certificate, above)) {
            return bad("tls.crt does not lead to a certificate of ca.crt");
        }
    }
    Ok(())
}

fn signed_by(certificate: &CertificateDer<'_>, above: &CertificateDer<'_>) -> bool {
    let (Ok(certificate), Ok(above)) = (parse(certificate), parse(above)) else { return false };
    certificate.issuer() == above.subject() && certificate.verify_signature(Some(above.public_key())).is_ok()
}

/// Every certificate of a PEM text.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| format!("is no PEM: {error}"))?;
    for certificate in &all {
        parse(certificate)?;
    }
    Ok(all)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err("has a certificate that cannot be read".to_owned()),
    }
}

/// When a certificate ends; the epoch for one that cannot be read.
pub(crate) fn end_of(der: &CertificateDer<'_>) -> SystemTime {
    parse(der).map_or(SystemTime::UNIX_EPOCH, |parsed| instant(parsed.validity().not_after))
}

fn instant(time: x509_parser::time::ASN1Time) -> SystemTime {
    SystemTime::from(time.to_datetime())
}

/// One certificate as PEM (RFC 7468: 64 characters a line).
pub(crate) fn to_pem(der: &CertificateDer<'_>) -> String {
    let text = BASE64.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
mod tests;
