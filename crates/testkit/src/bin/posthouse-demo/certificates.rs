//! A CA for the demo's life and one certificate for each node, written where the proxies are told to look. On a cluster the
//! controller does this; by hand it is any CA that puts `spiffe://<trust domain>/node/<node>` into a certificate.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::topology::{NODES, Node};

/// What the proxies call `--trust-domain` unless told otherwise.
const TRUST_DOMAIN: &str = "cluster.local";

/// The folder with all of them.
#[derive(Debug)]
pub(crate) struct Certificates(PathBuf);

impl Certificates {
    /// Makes a CA, which is forgotten once it has signed, and a certificate for each node.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn write(folder: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir(&folder)?;
        let mut params = named("Posthouse demo CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let certificates = Self(folder);
        fs::write(certificates.ca(), ca.pem())?;
        for node in NODES {
            let mut params = named(node.name);
            let uri = format!("spiffe://{TRUST_DOMAIN}/node/{}", node.name);
            params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate()?;
            fs::write(certificates.certificate(node), params.signed_by(&key, &ca)?.pem())?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(certificates.key(node))?;
            file.write_all(key.serialize_pem().as_bytes())?;
        }
        Ok(certificates)
    }

    /// The flags of `node`'s proxy.
    pub(crate) fn arguments(&self, node: Node) -> Vec<String> {
        let file = |path: PathBuf| path.display().to_string();
        let (certificate, key, ca) = (file(self.certificate(node)), file(self.key(node)), file(self.ca()));
        ["--tls", "node", "--tls-cert", &certificate, "--tls-key", &key, "--tls-ca", &ca].map(str::to_owned).to_vec()
    }

    /// Where they are.
    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    fn ca(&self) -> PathBuf {
        self.0.join("ca.crt")
    }

    fn certificate(&self, node: Node) -> PathBuf {
        self.0.join(format!("{}.crt", node.name))
    }

    fn key(&self, node: Node) -> PathBuf {
        self.0.join(format!("{}.key", node.name))
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
