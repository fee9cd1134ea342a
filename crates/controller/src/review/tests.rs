//! Every way in which a request differs from the one that is right, one at a time.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use rcgen::string::Ia5String;
use rcgen::{
    Attribute, BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519,
    PKCS_RSA_SHA256, SanType,
};

use super::*;

const URI: &str = "spiffe://cluster.local/node/node-a";
const USER: &str = "system:serviceaccount:posthouse:posthouse";

fn rules() -> Rules {
    Rules { trust_domain: "cluster.local".to_owned(), username: USER.to_owned() }
}

fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

fn params(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params
}

/// The request as PEM, with a key of the usual kind.
fn pem(params: &CertificateParams) -> Vec<u8> {
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap().into_bytes()
}

fn named(names: Vec<SanType>) -> Vec<u8> {
    pem(&params(names))
}

/// What is right.
fn good() -> CertificateSigningRequest {
    CertificateSigningRequest {
        spec: CertificateSigningRequestSpec {
            request: ByteString(named(vec![uri(URI)])),
            signer_name: "posthouse.io/node".to_owned(),
            username: Some(USER.to_owned()),
            extra: Some(BTreeMap::from([(NODE_NAME.to_owned(), vec!["node-a".to_owned()])])),
            usages: Some(["digital signature", "client auth", "server auth"].map(str::to_owned).to_vec()),
            expiration_seconds: Some(3600),
            ..CertificateSigningRequestSpec::default()
        },
        ..CertificateSigningRequest::default()
    }
}

fn changed(change: impl FnOnce(&mut CertificateSigningRequestSpec)) -> CertificateSigningRequest {
    let mut csr = good();
    change(&mut csr.spec);
    csr
}

fn with_request(request: Vec<u8>) -> CertificateSigningRequest {
    changed(|spec| spec.request = ByteString(request))
}

fn with_names(names: Vec<SanType>) -> CertificateSigningRequest {
    with_request(named(names))
}

fn with_params(change: impl FnOnce(&mut CertificateParams)) -> CertificateSigningRequest {
    let mut params = params(vec![uri(URI)]);
    change(&mut params);
    with_request(pem(&params))
}

fn with_nodes(nodes: &[&str]) -> CertificateSigningRequest {
    changed(|spec| {
        let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
        spec.extra = Some(BTreeMap::from([(NODE_NAME.to_owned(), nodes)]));
    })
}

fn with_usages(usages: &[&str]) -> CertificateSigningRequest {
    changed(|spec| spec.usages = Some(usages.iter().map(|usage| (*usage).to_owned()).collect()))
}

fn with_user(user: &str) -> CertificateSigningRequest {
    changed(|spec| spec.username = Some(user.to_owned()))
}

fn with_key(algorithm: &'static rcgen::SignatureAlgorithm) -> CertificateSigningRequest {
    let key = KeyPair::generate_for(algorithm).unwrap();
    with_request(params(vec![uri(URI)]).serialize_request(&key).unwrap().pem().unwrap().into_bytes())
}

/// A good request of which one byte of the DER is another. The signature is at its end.
fn with_byte(from_end: usize) -> CertificateSigningRequest {
    let request = params(vec![uri(URI)]).serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let mut der = request.der().to_vec();
    let at = der.len() - from_end;
    der[at] ^= 1;
    with_request(encode(&der))
}

fn encode(der: &[u8]) -> Vec<u8> {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n").into_bytes()
}

/// The same request, said to be for the key of another: whoever copies a public key cannot sign with it.
fn with_foreign_key() -> CertificateSigningRequest {
    let (own, foreign) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut der = params(vec![uri(URI)]).serialize_request(&own).unwrap().der().to_vec();
    let at = der.windows(65).position(|part| part == own.public_key_raw()).unwrap();
    der[at..at + 65].copy_from_slice(foreign.public_key_raw());
    with_request(encode(&der))
}

/// RSA with 1024 bits, made by `openssl req -new -newkey rsa:1024`: our own library refuses to make one.
const RSA_1024: &str = include_str!("rsa1024.csr");

#[test]
fn a_proxys_request_for_its_own_node_is_granted() {
    let mut csr = good();
    csr.metadata.annotations = Some(BTreeMap::from([(BUNDLE_ANNOTATION.to_owned(), "abc".to_owned())]));
    let granted = review(&csr, &rules()).unwrap();
    assert_eq!(granted.node, "node-a");
    assert_eq!(granted.bundle.as_deref(), Some("abc"));
    assert_eq!(granted.lifetime, Some(Duration::from_secs(3600)));
    for key in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519, &PKCS_RSA_SHA256] {
        review(&with_key(key), &rules()).unwrap_or_else(|denial| panic!("{key:?}: {denial:?}"));
    }
    let all = with_usages(&["server auth", "client auth", "key encipherment", "digital signature"]);
    review(&all, &rules()).unwrap();
    review(&with_usages(&["server auth", "client auth"]), &rules()).unwrap();
    // The subject is not looked at, since it does not get into the certificate.
    review(&with_params(|params| params.distinguished_name = crate::authority::name("system:masters")), &rules())
        .unwrap();
}

#[test]
fn everything_else_is_denied_and_the_message_says_why() {
    let dns = || SanType::DnsName(Ia5String::try_from("node-a").unwrap());
    let other = "spiffe://cluster.local/node/node-b";
    let two_requests = [named(vec![uri(URI)]), named(vec![uri(URI)])].concat();
    let cases: Vec<(&str, CertificateSigningRequest, Reason, &str)> = vec![
        // Who asks.
        ("no user", changed(|spec| spec.username = None), Reason::NotAProxy, "\"\""),
        ("another account", with_user("system:serviceaccount:posthouse:default"), Reason::NotAProxy, "default"),
        ("another namespace", with_user("system:serviceaccount:shop:posthouse"), Reason::NotAProxy, "shop"),
        ("an account whose name goes on", with_user(&format!("{USER}2")), Reason::NotAProxy, "only"),
        ("a user of that name", with_user("posthouse"), Reason::NotAProxy, "\"posthouse\""),
        ("another case", with_user("system:serviceaccount:Posthouse:posthouse"), Reason::NotAProxy, "Posthouse"),
        ("a kubelet", with_user("system:node:node-a"), Reason::NotAProxy, "system:node:node-a"),
        // For which node.
        ("no extra at all", changed(|spec| spec.extra = None), Reason::NodeUnknown, "1.30"),
        (
            "a token of no pod",
            changed(|spec| spec.extra = Some(BTreeMap::new())),
            Reason::NodeUnknown,
            "token of a pod",
        ),
        ("an empty list", with_nodes(&[]), Reason::NodeUnknown, "1.30"),
        ("an empty name", with_nodes(&[""]), Reason::NodeUnknown, "one node's name"),
        ("two nodes", with_nodes(&["node-a", "node-b"]), Reason::NodeUnknown, "node-b"),
        ("twice the same node", with_nodes(&["node-a", "node-a"]), Reason::NodeUnknown, "one node's name"),
        ("a token of another node", with_nodes(&["node-b"]), Reason::WrongName, other),
        ("a token of a node of another case", with_nodes(&["Node-A"]), Reason::WrongName, "Node-A"),
        // Names.
        ("another node", with_names(vec![uri(other)]), Reason::WrongName, other),
        ("no name", with_names(vec![]), Reason::WrongName, "no name"),
        ("two names", with_names(vec![uri(URI), uri(other)]), Reason::WrongName, "2 names"),
        ("the same name twice", with_names(vec![uri(URI), uri(URI)]), Reason::WrongName, "2 names"),
        ("a DNS name beside it", with_names(vec![uri(URI), dns()]), Reason::WrongName, "2 names"),
        ("a DNS name", with_names(vec![dns()]), Reason::WrongName, "may for"),
        ("an address", with_names(vec![SanType::IpAddress([10, 0, 0, 1].into())]), Reason::WrongName, "may for"),
        ("a trailing slash", with_names(vec![uri(&format!("{URI}/"))]), Reason::WrongName, "node-a/"),
        ("another case", with_names(vec![uri("spiffe://cluster.local/node/Node-a")]), Reason::WrongName, "Node-a"),
        (
            "a scheme in capitals",
            with_names(vec![uri("SPIFFE://cluster.local/node/node-a")]),
            Reason::WrongName,
            "SPIFFE",
        ),
        ("another trust domain", with_names(vec![uri("spiffe://other/node/node-a")]), Reason::WrongName, "other"),
        ("a pod's name", with_names(vec![uri("spiffe://cluster.local/ns/shop/sa/web")]), Reason::WrongName, "sa/web"),
        ("an escape", with_names(vec![uri("spiffe://cluster.local/node/node%2Da")]), Reason::WrongName, "%2D"),
        ("a query", with_names(vec![uri(&format!("{URI}?x"))]), Reason::WrongName, "?x"),
        // Usages.
        ("no usages", changed(|spec| spec.usages = None), Reason::WrongUsages, "client auth"),
        ("for servers only", with_usages(&["server auth"]), Reason::WrongUsages, "client auth"),
        ("for clients only", with_usages(&["client auth"]), Reason::WrongUsages, "server auth"),
        ("to sign others", with_usages(&["client auth", "server auth", "cert sign"]), Reason::WrongUsages, "cert sign"),
        ("for anything", with_usages(&["client auth", "server auth", "any"]), Reason::WrongUsages, "any"),
        ("of another case", with_usages(&["client auth", "Server Auth"]), Reason::WrongUsages, "Server Auth"),
        // Extensions.
        (
            "an authority",
            with_params(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            Reason::UnwantedExtension,
            "2.5.29.19",
        ),
        (
            "no authority, said aloud",
            with_params(|p| p.is_ca = IsCa::ExplicitNoCa),
            Reason::UnwantedExtension,
            "2.5.29.19",
        ),
        (
            "key usages",
            with_params(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]),
            Reason::UnwantedExtension,
            "2.5.29.15",
        ),
        (
            "extended usages",
            with_params(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
            Reason::UnwantedExtension,
            "2.5.29.37",
        ),
        (
            "an extension that nobody knows",
            with_params(|params| {
                params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
            }),
            Reason::UnwantedExtension,
            "1.2.3.4",
        ),
        ("an attribute", with_request(with_attribute()), Reason::UnwantedExtension, "1.2.840.113549.1.9.7"),
        // Keys.
        ("a short RSA key", with_request(RSA_1024.into()), Reason::WeakKey, "1024"),
        ("P-521", with_key(&PKCS_ECDSA_P521_SHA512), Reason::WeakKey, "P-384"),
        // What is no request.
        ("nothing", with_request(vec![]), Reason::BadRequest, "no PEM block"),
        ("no PEM", with_request(b"hello".to_vec()), Reason::BadRequest, "no PEM block"),
        (
            "half a block",
            with_request(b"-----BEGIN CERTIFICATE REQUEST-----\nMII=\n".to_vec()),
            Reason::BadRequest,
            "PEM",
        ),
        (
            "another block",
            with_request(KeyPair::generate().unwrap().serialize_pem().into()),
            Reason::BadRequest,
            "no PEM",
        ),
        ("nonsense inside", with_request(encode(b"nonsense")), Reason::BadRequest, "cannot be read"),
        ("two requests", with_request(two_requests), Reason::BadRequest, "more than one"),
        ("a long one", with_request(vec![b'-'; MAX_REQUEST + 1]), Reason::BadRequest, "too long"),
        ("a broken signature", with_byte(1), Reason::BadRequest, "not signed by the key"),
        ("somebody else's key", with_foreign_key(), Reason::BadRequest, "not signed by the key"),
    ];
    for (what, csr, reason, words) in cases {
        match review(&csr, &rules()) {
            Ok(granted) => panic!("{what} is granted: {granted:?}"),
            Err(denial) => {
                assert_eq!(denial.reason, reason, "{what}: {denial:?}");
                assert!(denial.message.contains(words), "{what}: {words:?} is not in {:?}", denial.message);
            }
        }
    }
}

/// A request with a challenge password.
fn with_attribute() -> Vec<u8> {
    let attribute = Attribute {
        oid: &[1, 2, 840, 113_549, 1, 9, 7],
        // SET { UTF8String "pass" }
        values: vec![0x31, 6, 12, 4, b'p', b'a', b's', b's'],
    };
    let key = KeyPair::generate().unwrap();
    let request = params(vec![uri(URI)]).serialize_request_with_attributes(&key, vec![attribute]).unwrap();
    request.pem().unwrap().into_bytes()
}

#[test]
fn bytes_that_nobody_meant_never_panic() {
    let key = KeyPair::generate().unwrap();
    let der = params(vec![uri(URI)]).serialize_request(&key).unwrap().der().to_vec();
    for at in 0..der.len() {
        let mut broken = der.clone();
        broken[at] ^= 0x55;
        // Outside of what is signed there are bits that mean nothing (of the signature's wrapping); then it is the same request.
        if let Ok(granted) = review(&with_request(encode(&broken)), &rules()) {
            assert_eq!(rcgen::PublicKeyData::der_bytes(&granted.key), key.public_key_raw(), "byte {at} changed");
        }
        assert!(review(&with_request(encode(&der[..at])), &rules()).is_err(), "cut at {at}");
    }
}
