"""Mutual TLS between the two hops: the certificates of a run, and the proof that a link really has it.

All subjects get the same certificates (ECDSA P-256, made by `openssl`), so that their signatures cost the same. A subject whose
link answers without TLS, with an older TLS, or to somebody without a certificate would look cheap: it fails instead.
"""

import http.client
import re
import shutil
import socket
import ssl
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from machine import StartError

NODES = ("node-a", "node-b")
PROBE_SECONDS = 3
# What a client says first in HTTP/2: the preface and an empty SETTINGS frame (RFC 9113 §3.4).
H2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
EXTENSIONS = """
[node]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = URI:spiffe://cluster.local/node/{node}, DNS:{node}
"""


@dataclass(frozen=True)
class Identity:
    """The files that one hop is given. `both` is certificate and key in one file, as HAProxy wants them."""

    name: str
    cert: Path
    key: Path
    both: Path
    ca: Path


def uri(node):
    return f"spiffe://cluster.local/node/{node}"


def _openssl(*arguments):
    done = subprocess.run(["openssl", *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=30, check=False)
    if done.returncode != 0:
        raise StartError(f"openssl {arguments[0]} failed: {done.stdout.decode(errors='replace').strip()[-300:]}")


def make(work, authority="ca"):
    """A CA and one certificate a node, in a directory of their own below `work`; returns {node: Identity}."""
    if not shutil.which("openssl"):
        raise StartError("no program openssl, which makes the certificates")
    home = Path(work) / authority
    home.mkdir(mode=0o700)
    ca, ca_key = home / "ca.pem", home / "ca.key"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _openssl("req", "-x509", *curve, "-keyout", ca_key, "-out", ca, "-days", 2, "-subj", f"/CN=bench {authority}",
             "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    found = {}
    for node in NODES:
        one = Identity(node, home / f"{node}.crt", home / f"{node}.key", home / f"{node}.pem", ca)
        request, extensions = home / f"{node}.csr", home / f"{node}.ext"
        extensions.write_text(EXTENSIONS.format(node=node))
        _openssl("req", "-new", *curve, "-keyout", one.key, "-out", request, "-subj", f"/CN={node}")
        _openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", 2, "-sha256",
                 "-extfile", extensions, "-extensions", "node", "-out", one.cert)
        one.both.write_text(one.cert.read_text() + one.key.read_text())
        found[node] = one
    return found


def impostor(work, real):
    """A node-b of another CA: what hop A must not take for node-b. It trusts both CAs, so nothing else is wrong with it."""
    fake = make(work, "stranger")["node-b"]
    both = fake.ca.with_name("both.pem")
    both.write_text(real.ca.read_text() + fake.ca.read_text())
    return replace(fake, ca=both)


def _first_bytes(stream, hello):
    """What comes back first for `hello`; empty if the peer closes, resets, sends an alert or says nothing."""
    try:
        stream.sendall(hello)
        return stream.recv(64)
    except OSError:
        return b""


def serves(answer):
    """Whether these first bytes are service: a good answer in HTTP/1.1, or the SETTINGS of an HTTP/2 server."""
    return answer.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")) or (len(answer) >= 9 and answer[3] == 4)


def _context(identity, alpn, newest=ssl.TLSVersion.TLSv1_3):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(identity.ca)
    context.set_alpn_protocols([alpn])
    if newest is ssl.TLSVersion.TLSv1_2:
        context.maximum_version = newest
    else:
        context.minimum_version = newest
    return context


@dataclass(frozen=True)
class Link:
    """Hop B's end of a link and how to speak to it; `source` is an address of `client`, which Posthouse holds against it."""

    name: str
    address: str
    source: str
    client: Identity
    host: str
    path: str
    h2: bool

    def hello(self):
        get = f"GET {self.path} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode()
        return H2_HELLO if self.h2 else get

    def dial(self):
        ip, port = self.address.split(":")
        return socket.create_connection((ip, int(port)), PROBE_SECONDS, source_address=(self.source, 0))

    def plain(self, hello):
        with self.dial() as raw:
            return _first_bytes(raw, hello)

    def secure(self, certificate=True, newest=ssl.TLSVersion.TLSv1_3, ca=None):
        """(version, first bytes) of an exchange by TLS; OSError (ssl.SSLError among them) if there is no handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(ca or self.client.ca)
        context.set_alpn_protocols(["h2" if self.h2 else "http/1.1"])
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = newest
        if certificate:
            context.load_cert_chain(self.client.cert, self.client.key)
        with self.dial() as raw, context.wrap_socket(raw, server_hostname="node-b") as stream:
            return stream.version(), _first_bytes(stream, self.hello())


def prove(link):
    """Raises StartError unless the link serves its client by TLS 1.3 and certificate, and nobody in any lesser way."""

    def refused(how, answer):
        if serves(answer):
            raise StartError(f"{link.name}: the link serves {how}: {answer[:40]!r}")

    for hello in (replace(link, h2=False).hello(), H2_HELLO):
        refused("without TLS", link.plain(hello))
    for how, options in (("a client without a certificate", {"certificate": False}),
                         ("by TLS 1.2", {"newest": ssl.TLSVersion.TLSv1_2})):
        try:
            refused(how, link.secure(**options)[1])
        except OSError:
            pass  # Refused in the handshake.
    try:
        version, answer = link.secure()
    except OSError as error:
        raise StartError(f"{link.name}: the link refuses a node with its certificate: {error}") from None
    if version != "TLSv1.3" or not serves(answer):
        raise StartError(f"{link.name}: the link does not serve a node with its certificate ({version}, {answer[:40]!r})")


def scrape(address, path):
    """A page of a subject's own counters."""
    ip, port = address.split(":")
    connection = http.client.HTTPConnection(ip, int(port), timeout=PROBE_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode(errors="replace")
    finally:
        connection.close()


def ask(path, words=b""):
    """What comes out of a Unix socket for `words`, until its end."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(PROBE_SECONDS)
        stream.connect(str(path))
        stream.sendall(words)
        found = b""
        while part := stream.recv(65536):
            found += part
        return found.decode(errors="replace")


def total(text, pattern):
    """The sum of a counter's samples; StartError if there is none, as a hop that counts nothing proves nothing."""
    samples = re.findall(pattern, text, re.M)
    if not samples:
        raise StartError(f"no counter of handshakes ({pattern}) in: {text[-200:]!r}")
    return sum(int(float(sample)) for sample in samples)
