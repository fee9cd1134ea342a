//! Each thing that can be wrong with certificate, key and bundle, with the line that it is told by.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SignatureAlgorithm};
use time::OffsetDateTime;
use time::macros::datetime;
use x509_parser::der_parser::der::parse_der;

use super::*;
use crate::certificates::Certificates;
use crate::test_ca::{Ca, Issued, id, node_params, uri};

fn parse(pem: &Pem<'_>) -> Result<Material, MaterialError> {
    Material::parse(pem, &id("node-1"), SystemTime::now())
}

fn refusal(pem: &Pem<'_>) -> (Part, String) {
    let error = parse(pem).unwrap_err();
    let line = error.to_string();
    assert!(!line.contains('\n') && !line.contains("PRIVATE KEY-----\n"), "{line}");
    (error.part, line)
}

#[test]
fn a_good_one_is_taken_with_its_facts() {
    let (ca, old) = (Ca::new("ca"), Ca::new("old"));
    let from = datetime!(2020-01-01 0:00 UTC);
    let to = datetime!(2090-01-01 0:00 UTC);
    let issued = ca.node_valid("node-1", from, to);
    let bundle = old.pem() + &ca.pem();
    let material = parse(&issued.pem(&bundle)).unwrap();
    assert_eq!(material.id().as_str(), "spiffe://cluster.local/node/node-1");
    assert_eq!((material.not_before(), material.not_after()), (from.into(), to.into()));
    let subjects: Vec<&str> = material.roots().map(|root| root.subject.as_str()).collect();
    assert_eq!(subjects, ["CN=old", "CN=ca"]);
    assert_eq!(material.facts.issuer, "CN=ca");
    assert_eq!((material.fingerprint.len(), material.serial().is_empty()), (64, false));
    assert!(!format!("{material:?}").to_lowercase().contains("key"), "{material:?}");
}

#[test]
fn every_fault_is_one_line_that_says_what_to_do() {
    let ca = Ca::new("ca");
    let root = ca.pem();
    let good = ca.node("node-1");
    let stranger = Ca::new("stranger");
    let table: Vec<(Issued, String, Part, &str)> = vec![
        (
            Issued { certificate: String::new(), ..good.clone() },
            root.clone(),
            Part::Certificates,
            "no certificate is in it; it must have the node's certificate in PEM, '-----BEGIN CERTIFICATE-----'",
        ),
        (
            Issued { certificate: good.certificate.replace("-----END CERTIFICATE-----", ""), ..good.clone() },
            root.clone(),
            Part::Certificates,
            "this is broken PEM: a section has no '-----END' line; write the file again",
        ),
        (
            Issued { certificate: good.certificate.replacen("MII", "M*I", 1), ..good.clone() },
            root.clone(),
            Part::Certificates,
            "this is broken PEM: a section is not base64; write the file again",
        ),
        (
            Issued {
                certificate: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
                ..good.clone()
            },
            root.clone(),
            Part::Certificates,
            "this is broken PEM: its content is no certificate; write the file again",
        ),
        (
            Issued { certificate: good.certificate.repeat(9), ..good.clone() },
            root.clone(),
            Part::Certificates,
            "9 certificates are too many, at most 8 are allowed here",
        ),
        (
            Issued { key: good.certificate.clone(), ..good.clone() },
            root.clone(),
            Part::Key,
            "no private key is in it; it must have one in PEM, '-----BEGIN PRIVATE KEY-----' (PKCS#8, SEC1 or PKCS#1)",
        ),
        (
            Issued { key: good.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), ..good.clone() },
            root.clone(),
            Part::Key,
            "the private key is encrypted, and there is nobody to ask for its passphrase; store it without one",
        ),
        (
            Issued { key: good.key.repeat(2), ..good.clone() },
            root.clone(),
            Part::Key,
            "2 private keys are in it; leave the one that belongs to the certificate",
        ),
        (
            Issued { key: "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_owned(), ..good.clone() },
            root.clone(),
            Part::Key,
            "the private key cannot be used; use an ECDSA P-256, P-384, RSA (2048 bits or more) or Ed25519 key",
        ),
        (
            Issued { key: ca.node("node-1").key, ..good.clone() },
            root.clone(),
            Part::Key,
            "the private key does not belong to the certificate; write both files from one issuance",
        ),
        (
            good.clone(),
            "# nothing\n".to_owned(),
            Part::Roots,
            "the trust bundle has no certificate; it must have the CA's certificate in PEM",
        ),
        (
            good.clone(),
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
            Part::Roots,
            "a certificate of the trust bundle cannot be read; write the file again",
        ),
        (good.clone(), root.repeat(101), Part::Roots, "101 certificates are too many, at most 100 are allowed here"),
        (
            good.clone(),
            stranger.pem(),
            Part::Certificates,
            "the certificate is not signed by a root of the trust bundle (issuer: CN=ca); the bundle must have the CA that signed it",
        ),
        (
            // The same name, another key.
            good.clone(),
            Ca::new("ca").pem(),
            Part::Certificates,
            "the certificate is not signed by a root of the trust bundle (issuer: CN=ca); the bundle must have the CA that signed it",
        ),
        (
            ca.node_valid("node-1", datetime!(2020-01-01 0:00 UTC), datetime!(2021-01-01 0:00 UTC)),
            root.clone(),
            Part::Certificates,
            "the certificate is expired since 2021-01-01T00:00:00Z; issue a new one or check the clock",
        ),
        (
            ca.node_valid("node-1", datetime!(2090-01-01 0:00 UTC), datetime!(2091-01-01 0:00 UTC)),
            root.clone(),
            Part::Certificates,
            "the certificate is not valid before 2090-01-01T00:00:00Z; issue a new one or check the clock",
        ),
        (
            ca.node_with("node-1", |params| params.subject_alt_names.clear()),
            root.clone(),
            Part::Certificates,
            "the certificate has no URI among its names; issue one whose one URI is spiffe://cluster.local/node/node-1",
        ),
        (
            ca.node_with("node-1", |params| params.subject_alt_names.push(uri("spiffe://cluster.local/node/node-2"))),
            root.clone(),
            Part::Certificates,
            "the certificate has 2 URIs among its names, exactly one is allowed; issue one whose one URI is spiffe://cluster.local/node/node-1",
        ),
        (
            ca.node("node-2"),
            root.clone(),
            Part::Certificates,
            "the certificate is for spiffe://cluster.local/node/node-2, not for spiffe://cluster.local/node/node-1; issue one for this node or check --node-name and --trust-domain",
        ),
        (
            ca.node_with("node-1", |params| params.subject_alt_names = vec![uri("spiffe://other/node/node-1")]),
            root.clone(),
            Part::Certificates,
            "the certificate is for spiffe://other/node/node-1, not for spiffe://cluster.local/node/node-1; issue one for this node or check --node-name and --trust-domain",
        ),
        (
            ca.node_with("node-1", |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            root.clone(),
            Part::Certificates,
            "the certificate's extended key usage does not allow TLS servers; issue one for TLS servers and clients, version 3, with the certificates between it and the root",
        ),
        (
            ca.node_with("node-1", |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            root.clone(),
            Part::Certificates,
            "the certificate's extended key usage does not allow TLS clients; issue one for TLS servers and clients, version 3, with the certificates between it and the root",
        ),
        (
            ca.node_with("node-1", |params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
            root.clone(),
            Part::Certificates,
            "the certificate's chain is not valid: CaUsedAsEndEntity; issue one for TLS servers and clients, version 3, with the certificates between it and the root",
        ),
    ];
    for (issued, roots, part, line) in table {
        assert_eq!(refusal(&issued.pem(&roots)), (part, line.to_owned()));
    }
}

#[test]
fn roots_count_only_while_they_are_valid() {
    let ended = |params: &mut CertificateParams| {
        params.not_before = datetime!(2020-01-01 0:00 UTC);
        params.not_after = datetime!(2021-01-01 0:00 UTC);
    };
    let old = Ca::with("ca", ended);
    let issued = old.node("node-1");
    let line = "no certificate of the trust bundle is valid now; renew the CA's certificate or check the clock";
    assert_eq!(refusal(&issued.pem(&old.pem())), (Part::Roots, line.to_owned()));
    let bundle = old.pem() + &Ca::new("other").pem();
    let (part, line) = refusal(&issued.pem(&bundle));
    assert_eq!(part, Part::Certificates);
    assert!(line.starts_with("the certificate is not signed by a root of the trust bundle"), "{line}");
}

#[test]
fn a_chain_over_a_certificate_between_is_followed() {
    let ca = Ca::new("ca");
    let mut params = node_params("between");
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names.clear();
    let between = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), ca.issuer()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = node_params("node-1").signed_by(&key, &between).unwrap();
    let whole = Issued { certificate: leaf.pem() + &between.pem(), key: key.serialize_pem() };
    assert!(parse(&whole.pem(&ca.pem())).is_ok());
    let alone = Issued { certificate: leaf.pem(), ..whole };
    let (_, line) = refusal(&alone.pem(&ca.pem()));
    assert!(line.contains("(issuer: CN=between)"), "{line}");
}

/// The key inside of PKCS#8, which is what SEC1 and PKCS#1 have.
fn inner_key(key: &KeyPair, label: &str) -> String {
    let (_, outer) = parse_der(key.serialized_der()).unwrap();
    let inner = outer.as_sequence().unwrap()[2].as_slice().unwrap().to_vec();
    let (begin, end) = (format!("-----BEGIN {label}-----\n"), format!("-----END {label}-----\n"));
    // The parser takes base64 in one line, too.
    begin + &base64(&inner) + "\n" + &end
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = bytes.chunks(3).flat_map(|chunk| {
        let word = chunk.iter().fold(0_u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        (0..4).map(
            move |i| {
                if i > chunk.len() { '=' } else { char::from(ALPHABET[(word >> (18 - 6 * i)) as usize % 64]) }
            },
        )
    });
    letters.collect()
}

#[test]
fn keys_of_every_kind_are_read() {
    let ca = Ca::new("ca");
    let root = ca.pem();
    let kinds: [(&'static SignatureAlgorithm, Option<&str>); 6] = [
        (&rcgen::PKCS_ECDSA_P256_SHA256, None),
        (&rcgen::PKCS_ECDSA_P256_SHA256, Some("EC PRIVATE KEY")),
        (&rcgen::PKCS_ECDSA_P384_SHA384, Some("EC PRIVATE KEY")),
        (&rcgen::PKCS_ED25519, None),
        (&rcgen::PKCS_RSA_SHA256, None),
        (&rcgen::PKCS_RSA_SHA256, Some("RSA PRIVATE KEY")),
    ];
    for (algorithm, label) in kinds {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = node_params("node-1").signed_by(&key, ca.issuer()).unwrap().pem();
        let key = label.map_or_else(|| key.serialize_pem(), |label| inner_key(&key, label));
        let issued = Issued { certificate, key };
        parse(&issued.pem(&root)).unwrap_or_else(|error| panic!("{algorithm:?} {label:?}: {error}"));
    }
}

#[test]
fn a_bad_new_one_never_replaces_a_good_old_one() {
    let ca = Ca::new("ca");
    let root = ca.pem();
    let certificates = Certificates::new(id("node-1"));
    let changed = certificates.changed();
    assert!(certificates.current().is_none() && certificates.state().certificate.is_none());
    let first = ca.node("node-1");
    assert!(certificates.install(parse(&first.pem(&root)).unwrap(), "files"));
    assert!(changed.has_changed().unwrap());

    let error = parse(&ca.node("node-2").pem(&root)).unwrap_err();
    certificates.rejected("files", &error);
    let at = certificates.state().rejected.unwrap().at;
    certificates.rejected("files", &error);
    let state = certificates.state();
    assert_eq!((state.epoch, certificates.epoch()), (1, 1));
    assert_eq!(state.rejected.as_ref().unwrap().error, error.to_string());
    assert_eq!(state.rejected.unwrap().at, at, "since when");
    assert_eq!(state.certificate.unwrap().serial, certificates.current().unwrap().material.serial());

    assert!(!certificates.install(parse(&first.pem(&root)).unwrap(), "files"), "the same again");
    assert_eq!((certificates.epoch(), certificates.state().rejected), (1, None));
    let bundle = root + &Ca::new("next").pem();
    assert!(certificates.install(parse(&first.pem(&bundle)).unwrap(), "files"), "other roots are a change");
    assert_eq!((certificates.epoch(), certificates.state().certificate.unwrap().roots.len()), (2, 2));
}

#[test]
fn validity_goes_by_the_given_clock() {
    let now = OffsetDateTime::now_utc();
    let ca = Ca::new("ca");
    let issued = ca.node_valid("node-1", now - Duration::from_secs(60), now + Duration::from_secs(60));
    let at = |at: OffsetDateTime| Material::parse(&issued.pem(&ca.pem()), &id("node-1"), at.into()).is_ok();
    assert_eq!([at(now - Duration::from_secs(120)), at(now), at(now + Duration::from_secs(120))], [false, true, false]);
}
