//! May this request be signed? One pure function over the CertificateSigningRequest, no IO. Who asks was filled in by the
//! API server, so that `spec.username` and `spec.extra` can be believed; everything else is the asker's own word. Of the
//! request itself only the public key goes into the certificate: the rest is written by us, and a request that asks for
//! more than it would get is denied rather than cut down.

use std::time::Duration;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use posthouse_model::issuance::{BUNDLE_ANNOTATION, node_uri};
use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateSigningRequestDer, pem};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo as ParsedKey;

/// The API server writes here which node a pod's token was made for (KEP-4193; Kubernetes 1.30 and newer).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// The least RSA key, in bits (CA/Browser Forum Baseline Requirements 6.1.5).
const RSA_BITS: usize = 2048;
/// More than any request of ours by far; the API server's own limit is that of an object, 1.5 MiB.
const MAX_REQUEST: usize = 64 << 10;

/// Whose requests are signed.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// The trust domain of the names in certificates.
    pub(crate) trust_domain: String,
    /// The proxies' user name, `system:serviceaccount:<namespace>:<account>`.
    pub(crate) username: String,
}

/// What may be signed.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) node: String,
    pub(crate) key: SubjectPublicKeyInfo,
    /// The validity that was asked for.
    pub(crate) lifetime: Option<Duration>,
    /// The trust bundle that the node has loaded, as it says.
    pub(crate) bundle: Option<String>,
}

/// Why a request is denied: the reason of the condition and the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Another user than the proxies' service account.
    NotAProxy,
    /// The API server does not say for which node the asker's token was made.
    NodeUnknown,
    /// It asks for another name than its node's, or for more than that.
    WrongName,
    /// Other usages than a link's.
    WrongUsages,
    /// A key that is too weak or of a kind that we do not sign.
    WeakKey,
    /// Extensions or attributes beside the name.
    UnwantedExtension,
    /// It is no request, or its signature is not by its key.
    BadRequest,
}

impl Reason {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::NotAProxy => "NotAProxy",
            Self::NodeUnknown => "NodeUnknown",
            Self::WrongName => "WrongName",
            Self::WrongUsages => "WrongUsages",
            Self::WeakKey => "WeakKey",
            Self::UnwantedExtension => "UnwantedExtension",
            Self::BadRequest => "BadRequest",
        }
    }
}

/// A request that is not signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denial {
    pub(crate) reason: Reason,
    /// What was wrong, for people who read the request or the proxy's log.
    pub(crate) message: String,
}

fn deny<T>(reason: Reason, message: impl Into<String>) -> Result<T, Denial> {
    Err(Denial { reason, message: message.into() })
}

/// Decides about a request of our signer.
pub(crate) fn review(csr: &CertificateSigningRequest, rules: &Rules) -> Result<Granted, Denial> {
    let spec = &csr.spec;
    let username = spec.username.as_deref().unwrap_or_default();
    if username != rules.username {
        return deny(
            Reason::NotAProxy,
            format!("the request is by {username:?}, and only {:?} gets certificates", rules.username),
        );
    }
    let nodes = spec.extra.as_ref().and_then(|extra| extra.get(NODE_NAME)).map_or(&[][..], Vec::as_slice);
    let node = match nodes {
        [node] if !node.is_empty() => node,
        [] => {
            return deny(
                Reason::NodeUnknown,
                format!(
                    "the API server does not say on which node the asker runs ({NODE_NAME}): it takes Kubernetes 1.30 and the token of a pod"
                ),
            );
        }
        several => {
            return deny(Reason::NodeUnknown, format!("{NODE_NAME} has to be one node's name, not {several:?}"));
        }
    };
    usages(spec.usages.as_deref().unwrap_or_default())?;
    let key = request(&spec.request.0, &node_uri(&rules.trust_domain, node))?;
    let lifetime = spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    let bundle = csr.metadata.annotations.as_ref().and_then(|all| all.get(BUNDLE_ANNOTATION)).cloned();
    Ok(Granted { node: node.clone(), key, lifetime, bundle })
}

/// A certificate gets both ends' usages, so a request that does not want both is none of a proxy.
fn usages(asked: &[String]) -> Result<(), Denial> {
    const NEEDED: [&str; 2] = ["client auth", "server auth"];
    const ALLOWED: [&str; 4] = ["digital signature", "key encipherment", "client auth", "server auth"];
    for usage in asked {
        if !ALLOWED.contains(&usage.as_str()) {
            return deny(Reason::WrongUsages, format!("usage {usage:?} is not one of {}", ALLOWED.join(", ")));
        }
    }
    for usage in NEEDED {
        if !asked.iter().any(|asked| asked == usage) {
            return deny(Reason::WrongUsages, format!("usage {usage:?} is missing: a node is both ends of links"));
        }
    }
    Ok(())
}

/// Reads the request, holds it against the one name that it may ask for, and gives its key.
fn request(pem: &[u8], uri: &str) -> Result<SubjectPublicKeyInfo, Denial> {
    let bad = |what: &str| Denial { reason: Reason::BadRequest, message: format!("spec.request {what}") };
    if pem.len() > MAX_REQUEST {
        return Err(bad("is too long"));
    }
    let mut blocks = CertificateSigningRequestDer::pem_slice_iter(pem);
    let der = match (blocks.next(), blocks.next()) {
        (Some(Ok(der)), None) => der,
        (Some(Ok(_)), Some(_)) => return Err(bad("has more than one request")),
        (None | Some(Err(pem::Error::NoItemsFound)), _) => return Err(bad("has no PEM block CERTIFICATE REQUEST")),
        (Some(Err(error)), _) => return Err(bad(&format!("is no PEM: {error}"))),
    };
    let parsed = match X509CertificationRequest::from_der(&der) {
        Ok(([], parsed)) => parsed,
        Ok(_) => return Err(bad("has bytes behind its end")),
        Err(error) => return Err(bad(&format!("cannot be read: {error}"))),
    };
    let info = &parsed.certification_request_info;
    strong(&info.subject_pki)?;
    if parsed.verify_signature().is_err() {
        return Err(bad("is not signed by the key that it asks for"));
    }
    names(&parsed, uri)?;
    SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
        .map_err(|error| Denial { reason: Reason::WeakKey, message: format!("the key cannot be used: {error}") })
}

fn strong(key: &ParsedKey<'_>) -> Result<(), Denial> {
    let curve = || key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    let algorithm = &key.algorithm.algorithm;
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve().is_some_and(|c| c == OID_EC_P256 || c == OID_NIST_EC_P384)
        || *algorithm == OID_SIG_ED25519
    {
        return Ok(());
    }
    if *algorithm == OID_PKCS1_RSAENCRYPTION
        && let Ok(PublicKey::RSA(rsa)) = key.parsed()
    {
        let bits = rsa.key_size();
        if bits >= RSA_BITS {
            return Ok(());
        }
        return deny(Reason::WeakKey, format!("an RSA key of {bits} bits is too short: {RSA_BITS} at least"));
    }
    deny(Reason::WeakKey, "the key is none of ECDSA P-256, ECDSA P-384, Ed25519 and RSA")
}

/// The one name, and nothing beside it.
fn names(request: &X509CertificationRequest<'_>, uri: &str) -> Result<(), Denial> {
    let mut names: Option<&[GeneralName<'_>]> = None;
    for attribute in request.certification_request_info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else {
            return deny(Reason::UnwantedExtension, format!("the request has the attribute {}", attribute.oid));
        };
        for extension in &asked.extensions {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) if names.is_none() => names = Some(&san.general_names),
                ParsedExtension::SubjectAlternativeName(_) => {
                    return deny(Reason::WrongName, "the request has two lists of names");
                }
                _ => {
                    return deny(
                        Reason::UnwantedExtension,
                        format!(
                            "the request asks for the extension {}, and nothing but its name may be asked for",
                            extension.oid
                        ),
                    );
                }
            }
        }
    }
    match names {
        Some([GeneralName::URI(asked)]) if *asked == uri => Ok(()),
        Some([GeneralName::URI(asked)]) => {
            deny(Reason::WrongName, format!("the request asks for {asked:?}, and its token was made for {uri:?}"))
        }
        Some([other]) => deny(Reason::WrongName, format!("the request asks for {other}, and may for {uri:?} only")),
        Some(several) => deny(
            Reason::WrongName,
            format!("the request asks for {} names, and may for one only, {uri:?}", several.len()),
        ),
        None => deny(Reason::WrongName, format!("the request has no name: it has to be {uri:?}")),
    }
}

#[cfg(test)]
mod tests;
