use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, SubjectPublicKeyInfo};
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn now() -> SystemTime {
    // Whole seconds, as certificates have.
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn key() -> SubjectPublicKeyInfo {
    SubjectPublicKeyInfo::from_der(&KeyPair::generate().unwrap().subject_public_key_info()).unwrap()
}

fn granted(node: &str, lifetime: Option<Duration>) -> Granted {
    Granted { node: node.to_owned(), key: key(), lifetime, bundle: None }
}

fn read(made: &Made) -> Authority {
    Authority::read(made.certificate.as_bytes(), made.key.as_bytes(), Some(made.certificate.as_bytes())).unwrap()
}

fn leaf(pem: &str) -> CertificateDer<'static> {
    certificates(pem.as_bytes()).unwrap().remove(0)
}

#[test]
fn a_made_authority_signs_what_a_node_needs_and_nothing_more() {
    let authority = read(&make(now(), 365 * DAY).unwrap());
    assert_eq!((authority.not_before, authority.not_after), (now() - BACKDATE, now() + 365 * DAY));
    assert_eq!(authority.lifetime(), 365 * DAY);
    let root = parse(&authority.roots[0]).unwrap();
    assert!(root.is_ca());
    assert_eq!(root.subject().to_string(), "CN=posthouse CA");
    assert_eq!(root.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(0));

    let granted = granted("node-a", None);
    let pem = authority.sign(&granted, "cluster.local", now(), DAY).unwrap();
    assert_eq!(certificates(pem.as_bytes()).unwrap().len(), 1, "the root is in the bundle");
    let der = leaf(&pem);
    let certificate = parse(&der).unwrap();
    certificate.verify_signature(Some(root.public_key())).unwrap();
    assert_eq!(certificate.public_key().raw, granted.key.subject_public_key_info());
    assert!(!certificate.is_ca());
    assert_eq!(certificate.subject().to_string(), "CN=posthouse node node-a");
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://cluster.local/node/node-a")]);
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth && !extended.any && extended.other.is_empty());
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let validity = certificate.validity();
    assert_eq!((instant(validity.not_before), instant(validity.not_after)), (now() - BACKDATE, now() + DAY));
    let by = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.clone(),
        _ => None,
    });
    assert!(by.is_some(), "with two roots of one name it is faster to find the right one");
}

#[test]
fn a_certificate_ends_with_what_is_shortest() {
    let authority = read(&make(now(), 10 * DAY).unwrap());
    let end = |asked: Option<Duration>, at: SystemTime| {
        let pem = authority.sign(&granted("node-a", asked), "cluster.local", at, DAY).unwrap();
        end_of(&leaf(&pem))
    };
    assert_eq!(end(None, now()), now() + DAY);
    assert_eq!(end(Some(DAY / 24), now()), now() + DAY / 24);
    assert_eq!(end(Some(30 * DAY), now()), now() + DAY);
    assert_eq!(end(None, now() + 10 * DAY - DAY / 24), now() + 10 * DAY, "never beyond the authority's end");
    let late = authority.sign(&granted("node-a", None), "cluster.local", now() + 10 * DAY, DAY).unwrap_err();
    assert!(late.to_string().contains("ended"), "{late}");
}

#[test]
fn a_long_nodes_name_fits_the_subject() {
    let authority = read(&make(now(), 10 * DAY).unwrap());
    let node = "n".repeat(253);
    let pem = authority.sign(&granted(&node, None), "cluster.local", now(), DAY).unwrap();
    let der = leaf(&pem);
    let certificate = parse(&der).unwrap();
    let common = certificate.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned();
    assert_eq!(common.len(), 64);
    let uri = node_uri("cluster.local", &node);
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::URI(&uri)]);
}

/// A root, an authority below it as cert-manager makes them, and that one's key.
fn below() -> (String, String, String) {
    let root_key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let mut root = CertificateParams::default();
    root.distinguished_name = name("Some company's root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = name("Some company's mesh");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let issuer = Issuer::from_params(&root, &root_key);
    let pem = params.signed_by(&key, &issuer).unwrap().pem();
    (root_pem, pem, key.serialize_pem())
}

#[test]
fn an_authority_below_a_root_sends_its_own_certificate_along() {
    let (root, issuer, key) = below();
    for chain in [issuer.clone(), format!("{issuer}{root}")] {
        let authority = Authority::read(chain.as_bytes(), key.as_bytes(), Some(root.as_bytes())).unwrap();
        let pem = authority.sign(&granted("node-a", None), "cluster.local", now(), DAY).unwrap();
        let sent = certificates(pem.as_bytes()).unwrap();
        assert_eq!(sent.len(), 2, "the node's and the issuer's, without the root");
        assert_eq!(sent[1], leaf(&issuer));
        assert!(signed_by(&sent[0], &sent[1]) && signed_by(&sent[1], &leaf(&root)));
    }
}

#[test]
fn what_is_wrong_with_a_secret_is_said_by_its_key_and_never_with_its_content() {
    let made = make(now(), DAY).unwrap();
    let other = make(now(), DAY).unwrap();
    let (root, issuer, issuer_key) = below();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::NoCa;
    let no_authority = params.self_signed(&key).unwrap().pem();
    let (crt, tls_key) = (made.certificate.as_str(), made.key.as_str());
    for (chain, key, roots, words) in [
        ("", tls_key, Some(crt), "tls.crt has no certificate"),
        ("hello", tls_key, Some(crt), "tls.crt has no certificate"),
        ("-----BEGIN CERTIFICATE-----\nM*II\n-----END CERTIFICATE-----\n", tls_key, Some(crt), "tls.crt is no PEM"),
        ("-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n", tls_key, Some(crt), "cannot be read"),
        (&no_authority, &key.serialize_pem(), Some(crt), "no authority's certificate"),
        (crt, "", Some(crt), "tls.key is no private key"),
        (crt, "-----BEGIN PRIVATE KEY-----\nSECRETSECRET\n-----END PRIVATE KEY-----\n", Some(crt), "tls.key is no"),
        (crt, &other.key, Some(crt), "tls.key is not the key of tls.crt"),
        (crt, tls_key, Some(""), "ca.crt has no certificate"),
        (crt, tls_key, Some(&*other.certificate), "tls.crt does not lead to"),
        (&issuer, &issuer_key, None, "ca.crt is missing"),
        (&issuer, &issuer_key, Some(crt), "does not lead to"),
        (&format!("{issuer}{crt}"), &issuer_key, Some(&root), "does not lead to"),
    ] {
        let error = Authority::read(chain.as_bytes(), key.as_bytes(), roots.map(str::as_bytes)).err();
        let error = error.unwrap_or_else(|| panic!("taken, and should be refused: {words}")).to_string();
        assert!(error.contains(words), "{words:?} is not in {error:?}");
        assert!(!error.contains("SECRET") && !error.contains('\n'), "{error}");
    }
    assert!(Authority::read(crt.as_bytes(), tls_key.as_bytes(), None).is_ok(), "a root needs no ca.crt");
}
