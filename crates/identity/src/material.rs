//! A certificate chain, its key and the trust bundle, read from PEM and checked as a whole: what is wrong is told here, in one
//! line, and not by the first peer that refuses a link.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use crate::provider;
use crate::roots::{Facts, Root, Roots, SharedRoots, Usage, Verdict, fingerprint};
use crate::spiffe::SpiffeId;

/// Certificates in a chain: a root, a few between, the node's. rustls itself takes 10 from a peer at most.
const MAX_CHAIN: usize = 8;
/// Roots in a bundle: a rotation has two; more than this is somebody's collection of public CAs, which must not name nodes.
const MAX_ROOTS: usize = 100;

/// The three parts, as text that nobody has checked yet.
#[derive(Clone, Copy)]
pub struct Pem<'a> {
    /// The chain, the node's own certificate first.
    pub certificates: &'a [u8],
    /// Its private key: PKCS#8, SEC1 or PKCS#1.
    pub key: &'a [u8],
    /// The trust bundle.
    pub roots: &'a [u8],
}

/// Which part of [`Pem`] an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The chain.
    Certificates,
    /// The private key.
    Key,
    /// The trust bundle.
    Roots,
}

/// What is wrong with a [`Pem`], in one line that says what to do; never with any of the key's text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{problem}")]
pub struct MaterialError {
    /// Where.
    pub part: Part,
    /// What.
    pub problem: Problem,
}

/// See [`MaterialError`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// Syntax.
    #[error("this is broken PEM: {0}; write the file again")]
    BrokenPem(&'static str),
    /// Nothing there.
    #[error("no certificate is in it; it must have the node's certificate in PEM, '-----BEGIN CERTIFICATE-----'")]
    NoCertificate,
    /// More certificates than are read: see `MAX_CHAIN` and `MAX_ROOTS`.
    #[error("{found} certificates are too many, at most {limit} are allowed here")]
    TooMany {
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Nothing there.
    #[error("no private key is in it; it must have one in PEM, '-----BEGIN PRIVATE KEY-----' (PKCS#8, SEC1 or PKCS#1)")]
    NoKey,
    /// With a passphrase.
    #[error("the private key is encrypted, and there is nobody to ask for its passphrase; store it without one")]
    EncryptedKey,
    /// More than one.
    #[error("{0} private keys are in it; leave the one that belongs to the certificate")]
    SeveralKeys(usize),
    /// Not RSA (2048 bits and more), ECDSA (P-256, P-384, P-521) or Ed25519.
    #[error("the private key cannot be used; use an ECDSA P-256, P-384, RSA (2048 bits or more) or Ed25519 key")]
    UnusableKey,
    /// The certificate has another public key.
    #[error("the private key does not belong to the certificate; write both files from one issuance")]
    KeyMismatch,
    /// Nothing there.
    #[error("the trust bundle has no certificate; it must have the CA's certificate in PEM")]
    EmptyBundle,
    /// No root that is valid now.
    #[error("no certificate of the trust bundle is valid now; renew the CA's certificate or check the clock")]
    NoValidRoot,
    /// One of the bundle's certificates is none.
    #[error("a certificate of the trust bundle cannot be read; write the file again")]
    UnreadableRoot,
    /// The certificate is not this node's, or not valid.
    #[error("{verdict}; {}", hint(.verdict, .expected))]
    Certificate {
        /// Why.
        verdict: Verdict,
        /// What it must be.
        expected: String,
    },
}

fn hint(verdict: &Verdict, expected: &str) -> String {
    match verdict {
        Verdict::Expired(_) | Verdict::NotYetValid(_) => "issue a new one or check the clock".to_owned(),
        Verdict::UnknownIssuer(_) => "the bundle must have the CA that signed it".to_owned(),
        Verdict::Unreadable | Verdict::Usage(_) | Verdict::Chain(_) => {
            "issue one for TLS servers and clients, version 3, with the certificates between it and the root".to_owned()
        }
        Verdict::OtherName(_) => "issue one with this name".to_owned(),
        Verdict::NoUri | Verdict::SeveralUris(_) => format!("issue one whose one URI is {expected}"),
        Verdict::OtherIdentity { .. } => "issue one for this node or check --node-name and --trust-domain".to_owned(),
    }
}

impl MaterialError {
    fn new(part: Part, problem: Problem) -> Self {
        Self { part, problem }
    }
}

/// A checked chain, key and bundle.
#[derive(Clone)]
pub struct Material {
    pub(crate) id: SpiffeId,
    pub(crate) facts: Facts,
    pub(crate) fingerprint: String,
    pub(crate) certified: Arc<CertifiedKey>,
    pub(crate) roots: SharedRoots,
}

impl fmt::Debug for Material {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").field("id", &self.id).field("serial", &self.facts.serial).finish_non_exhaustive()
    }
}

impl Material {
    /// Reads `pem` and checks that it is `expected`'s certificate, valid at `now`, with its own key, signed by its own bundle and
    /// good for both ends of a link.
    pub fn parse(pem: &Pem<'_>, expected: &SpiffeId, now: SystemTime) -> Result<Self, MaterialError> {
        let (certified, roots) = read(pem)?;
        let refused = |verdict| {
            let problem = Problem::Certificate { verdict, expected: expected.as_str().to_owned() };
            MaterialError::new(Part::Certificates, problem)
        };
        if !roots.any_valid_at(now) {
            return Err(MaterialError::new(Part::Roots, Problem::NoValidRoot));
        }
        let (leaf, between) = certified.cert.split_first().ok_or(refused(Verdict::Unreadable))?;
        let facts = roots.judge(leaf, between, Usage::Server, now).map_err(refused)?;
        roots.judge(leaf, between, Usage::Client, now).map_err(refused)?;
        facts.is_for(expected).map_err(refused)?;
        Ok(Self {
            id: expected.clone(),
            fingerprint: fingerprint(leaf),
            facts,
            certified: Arc::new(certified),
            roots: Arc::new(roots),
        })
    }

    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// From when the certificate is valid.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.facts.not_before
    }

    /// Until when the certificate is valid.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.facts.not_after
    }

    /// The certificate's serial number, in hexadecimal.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.facts.serial
    }

    /// The trust roots.
    pub fn roots(&self) -> impl Iterator<Item = &Root> {
        self.roots.list()
    }

    /// Whether `other` is the same chain with the same roots.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert && self.roots().eq(other.roots())
    }
}

/// Reads the three parts and checks that they are some chain, its key and some roots.
pub(crate) fn read(pem: &Pem<'_>) -> Result<(CertifiedKey, Roots), MaterialError> {
    let certified = certified(pem.certificates, pem.key)?;
    Ok((certified, read_roots(pem.roots)?))
}

/// Reads a trust bundle.
pub(crate) fn read_roots(text: &[u8]) -> Result<Roots, MaterialError> {
    let roots = certificates(text, Part::Roots, MAX_ROOTS)?;
    Roots::new(&roots).map_err(|_| MaterialError::new(Part::Roots, Problem::UnreadableRoot))
}

fn certified(chain: &[u8], private: &[u8]) -> Result<CertifiedKey, MaterialError> {
    let chain = certificates(chain, Part::Certificates, MAX_CHAIN)?;
    CertifiedKey::from_der(chain, key(private)?, provider()).map_err(|error| {
        let (part, problem) = match error {
            rustls::Error::InconsistentKeys(_) => (Part::Key, Problem::KeyMismatch),
            rustls::Error::InvalidCertificate(_) => {
                (Part::Certificates, Problem::BrokenPem("its content is no certificate"))
            }
            _ => (Part::Key, Problem::UnusableKey),
        };
        MaterialError::new(part, problem)
    })
}

fn certificates(text: &[u8], part: Part, limit: usize) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let found: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| MaterialError::new(part, Problem::BrokenPem(syntax(&error))))?;
    match found.len() {
        0 if part == Part::Roots => Err(MaterialError::new(part, Problem::EmptyBundle)),
        0 => Err(MaterialError::new(part, Problem::NoCertificate)),
        found if found > limit => Err(MaterialError::new(part, Problem::TooMany { found, limit })),
        _ => Ok(found),
    }
}

fn key(text: &[u8]) -> Result<PrivateKeyDer<'static>, MaterialError> {
    let error = |problem| MaterialError::new(Part::Key, problem);
    let mut keys: Vec<PrivateKeyDer<'static>> = PrivateKeyDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|e| error(Problem::BrokenPem(syntax(&e))))?;
    match (keys.pop(), keys.len()) {
        (Some(key), 0) => Ok(key),
        (Some(_), others) => Err(error(Problem::SeveralKeys(others + 1))),
        (None, _) if text.windows(9).any(|part| part == b"ENCRYPTED") => Err(error(Problem::EncryptedKey)),
        (None, _) => Err(error(Problem::NoKey)),
    }
}

/// What is wrong with the syntax, without any of the text: it could be a key's.
fn syntax(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no '-----END' line",
        pem::Error::IllegalSectionStart { .. } => "a '-----BEGIN' line is not well formed",
        pem::Error::Base64Decode(_) => "a section is not base64",
        _ => "it cannot be read",
    }
}

#[cfg(test)]
mod tests;
