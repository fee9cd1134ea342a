"""What an attacker who has the keys could make: certificates and requests that the tests sign themselves, and links that are dialled
with them from a node's own network."""

import base64
import datetime
import json
import sys
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import kube
import mesh
import nodes

LINK = 4141
SIGNER = "posthouse.io/node"
CLIENT = Path(__file__).with_name("link_client.py")
MINUTE = datetime.timedelta(minutes=1)


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def name(common):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


class Authority:
    """A certificate authority whose key the tests have: one of their own, or (a cluster's admin can read it) the mesh's."""

    def __init__(self, certificate, key):
        self.certificate, self.key = certificate, key

    @classmethod
    def made(cls, common):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder().subject_name(name(common)).issuer_name(name(common)).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now() - 5 * MINUTE).not_valid_after(now() + 60 * MINUTE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def of_the_mesh(cls):
        data = kube.get("secret", "posthouse-ca", "-n", mesh.NAMESPACE)["data"]
        certificate, key = (base64.b64decode(data[entry]) for entry in ("tls.crt", "tls.key"))
        return cls(
            x509.load_pem_x509_certificates(certificate)[0], serialization.load_pem_private_key(key, password=None)
        )

    @property
    def pem(self):
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, subject, begin=-5 * MINUTE, end=30 * MINUTE):
        """A certificate and its key as PEM for a URI or a DNS name; by default a good one."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternative = x509.UniformResourceIdentifier(subject) if "://" in subject else x509.DNSName(subject)
        certificate = (
            x509.CertificateBuilder().subject_name(name("e2e")).issuer_name(self.certificate.subject)
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now() + begin).not_valid_after(now() + end)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode(), pem(key)


def serial(der):
    """The serial number of a certificate that a link's client was shown."""
    return f"{x509.load_der_x509_certificate(base64.b64decode(der)).serial_number:x}"


def serial_of(certificate):
    """The same of one as PEM."""
    return f"{x509.load_pem_x509_certificate(certificate.encode()).serial_number:x}"


class Links:
    """Dials links from nodes' own networks; files of keys are made in `folder`."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0

    def file(self, text):
        self.count += 1
        path = self.folder / f"{self.count}.pem"
        path.touch(mode=0o600)
        path.write_text(text)
        return str(path)

    def dial(self, source, target, identity=None, roots=None, sni=None, streams=(), tls=True):
        """What comes of a link from node number `source` to node number `target`; `identity` is (certificate, key)."""
        return self.dial_from(f"{nodes.NAMESPACES}{source}", target, identity, roots, sni, streams, tls)

    def dial_from(self, namespace, target, identity=None, roots=None, sni=None, streams=(), tls=True):
        """The same from any network namespace."""
        certificate, key = map(self.file, identity) if identity else (None, None)
        secure = {
            "certificate": certificate, "key": key, "roots": roots and self.file(roots), "name": sni, "alpn": ["h2"],
        }
        plan = {"address": [nodes.address(target), LINK], "tls": secure if tls else None, "streams": list(streams)}
        done = kube.run("ip", "netns", "exec", namespace, sys.executable, CLIENT, json.dumps(plan), timeout=60)
        return json.loads(done.stdout)


def counted(number, metric, **labels):
    """A metric of a node's proxy, without the API's help."""
    return mesh.series(nodes.metrics(number), metric, **labels)


def handshakes(number, direction="in", **labels):
    return counted(number, "posthouse_link_handshakes_total", direction=direction, **labels)


def request_pem(uri):
    """A certificate request for a fresh key as PEM."""
    request = (
        x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM)


def kubeconfig(folder, namespace, account, pod):
    """A kubeconfig with a token of `account` that is bound to `pod`, as the kubelet would mount it there."""
    uid = kube.get("pod", pod, "-n", namespace)["metadata"]["uid"]
    token = kube.kubectl(
        "create", "token", account, "-n", namespace, "--duration=10m",
        "--bound-object-kind=Pod", f"--bound-object-name={pod}", f"--bound-object-uid={uid}",
    ).strip()
    config = json.loads(kube.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    config["users"] = [{"name": "bound", "user": {"token": token}}]
    for context in config["contexts"]:
        context["context"]["user"] = "bound"
    path = folder / f"{namespace}-{account}-{pod}.conf"
    path.touch(mode=0o600)
    path.write_text(json.dumps(config))
    return path


def ask_for_certificate(config, uri):
    """Makes a CertificateSigningRequest with a kubeconfig's token, and gives it once it is decided upon."""
    request = {
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"generateName": "e2e-"},
        "spec": {
            "request": base64.b64encode(request_pem(uri)).decode(), "signerName": SIGNER, "expirationSeconds": 600,
            "usages": ["digital signature", "client auth", "server auth"],
        },
    }
    made = kube.kubectl(
        f"--kubeconfig={config}", "create", "--validate=false", "-f", "-", "-o", "jsonpath={.metadata.name}",
        stdin=json.dumps(request),
    ).strip()

    def decided():
        found = kube.get("certificatesigningrequest", made)
        status = found.get("status", {})
        kinds = {condition["type"] for condition in status.get("conditions", [])}
        return found if "Denied" in kinds or {"Approved"} <= kinds and status.get("certificate") else None

    try:
        return kube.until(f"the controller decides about {made}", decided, seconds=30, every=0.2)
    finally:
        kube.kubectl("delete", "certificatesigningrequest", made, "--ignore-not-found")


def decision(csr):
    """(type, reason, message) of a decided request."""
    (condition,) = csr["status"]["conditions"]
    return condition["type"], condition.get("reason", ""), condition.get("message", "")


def uris(csr):
    """The URIs in the certificate that was issued."""
    certificate = x509.load_pem_x509_certificates(base64.b64decode(csr["status"]["certificate"]))[0]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def settled(seconds=1.5):
    """A scrape shows what was counted at once; this is for what may still be under way at the other end."""
    time.sleep(seconds)

