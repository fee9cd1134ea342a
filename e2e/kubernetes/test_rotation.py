"""Certificates that end, authorities that follow each other, and Services' own certificates, under load: with lifetimes of seconds, on a
mesh that is installed anew for this. No request may fail."""

import base64
import json
import time

import pytest

import kube
import trust

pytestmark = pytest.mark.own

# An authority lives at least six times as long as a node's certificate; it is replaced in the last third of its life.
CERTIFICATE, AUTHORITY = 25, 150
SHORT = (
    "--set", f"controller.certificateLifetime={CERTIFICATE}s,controller.caLifetime={AUTHORITY}s",
    "--set", "tls=service", "--set-json", 'tlsSecretNamespaces=["shop"]',
)
SERVICE = "echo.shop.svc.cluster.local"


def anew(mesh, *args):
    mesh.uninstall()
    owned = ("secret/posthouse-ca", "configmap/posthouse-trust")
    kube.until(
        "the old authority is gone, which happens some time after its owner, the controller, is",
        lambda: not kube.kubectl("get", *owned, "-n", mesh.NAMESPACE, "-o", "name", "--ignore-not-found").strip(),
        seconds=60, every=0.5,
    )
    mesh.install(*args)
    mesh.rolled_out()


def certify(certificate, key, roots):
    """Makes this the certificate of the Service echo."""
    data = {"tls.crt": certificate, "tls.key": key, "ca.crt": roots}
    kube.apply(json.dumps({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "echo-tls"},
        "data": {entry: base64.b64encode(text.encode()).decode() for entry, text in data.items()},
    }), "shop")


class Presented:
    """Which certificate the nodes present for the Service, seen by a link from another node."""

    def __init__(self, folder, domain):
        self.links, self.domain = trust.Links(folder), domain

    def serial(self, source, target):
        identity = trust.Authority.of_the_mesh().issue(f"spiffe://{self.domain}/node/node-{source}")
        came = self.links.dial(source, target, identity, sni=SERVICE)
        assert came["outcome"] == "taken", came
        return trust.serial(came["certificate"])

    def until(self, certificate):
        wanted = trust.serial_of(certificate)
        for source, target in ((1, 2), (2, 3), (3, 1)):
            kube.until(
                f"node-{target} presents the certificate {wanted} as {SERVICE}",
                lambda source=source, target=target: self.serial(source, target) == wanted, seconds=30, every=0.5,
            )


def roots(identity):
    return {root["fingerprint_sha256"] for root in identity["roots"]}


@pytest.fixture(scope="module")
def installed(mesh):
    """The time at which the mesh with short lifetimes began, and each node's roots then."""
    began = time.time()
    anew(mesh, *SHORT)
    with mesh.admins() as admins:
        old = {node: roots(admin.get("/identity")) for node, admin in admins.items()}
    yield began, old
    kube.kubectl("annotate", "service/echo", "-n", "shop", "posthouse.io/tls-secret-")
    kube.kubectl("delete", "secret/echo-tls", "-n", "shop", "--ignore-not-found")
    anew(mesh)


@pytest.fixture(scope="module")
def services(mesh, installed, tmp_path_factory):
    """Two authorities of the Service's owner; the first has made its certificate, which every node presents."""
    first, second = trust.Authority.made("shop 1"), trust.Authority.made("shop 2")
    certificate, key = first.issue(SERVICE)
    certify(certificate, key, first.pem)
    kube.kubectl("annotate", "service/echo", "-n", "shop", "posthouse.io/tls-secret=echo-tls", "--overwrite")
    with mesh.admins() as admins:
        domain = next(iter(admins.values())).get("/identity")["spiffe_id"].split("/")[2]
    presented = Presented(tmp_path_factory.mktemp("links"), domain)
    presented.until(certificate)
    return first, second, presented, (certificate, key)


@pytest.fixture(scope="module")
def loads(mesh, installed, services):
    """POSTs to echo, whose links prove the Service, and GETs to abrupt, whose links prove the node."""
    with (
        mesh.load("proven", "--url", "http://echo.shop/", "--method", "POST", "--body", "100", rate=100) as proven,
        mesh.load("plain", "--url", "http://abrupt.shop/", rate=50) as plain,
    ):
        time.sleep(2)
        yield proven, plain


def judged(report, what, loads, begin, end):
    windows = [load.window(begin, end) for load in loads]
    told = " and ".join(f"{window.ok:,} requests, {window.failed} failed" for window in windows)
    report(f"{what}, {end - begin:.0f} s: {told}; slowest {max(window.slowest_ms for window in windows):.0f} ms")
    for window in windows:
        assert not window.failures and window.failed == 0, window.failures[:10]


def test_a_services_certificate_and_its_authority_are_replaced_under_load(services, loads, report):
    """Its renewal; then another authority, as it is done without a gap: trust both, change the certificate, trust the new one."""
    first, second, presented, (certificate, key) = services
    begin = time.time()
    renewed = first.issue(SERVICE)
    certify(*renewed, first.pem)
    presented.until(renewed[0])
    certify(*renewed, first.pem + second.pem)
    time.sleep(3)     # nothing outside of the nodes shows which roots they verify a Service by
    changed = second.issue(SERVICE)
    certify(*changed, first.pem + second.pem)
    presented.until(changed[0])
    certify(*changed, second.pem)
    time.sleep(3)
    assert len({trust.serial_of(each) for each in (certificate, renewed[0], changed[0])}) == 3
    judged(report, "a Service's certificate renewed, then by another authority", loads, begin, time.time())


def test_the_meshs_authority_and_every_nodes_certificate_are_replaced_under_load(mesh, installed, loads, report):
    """Every node goes from the old root by both to the new one alone, and its certificate changes again and again."""
    begin = time.time()
    began, old = installed
    assert all(len(each) == 1 for each in old.values()), old
    # Its last third, the word of every node, the last certificate by the old one, and room for a busy machine.
    deadline = began + AUTHORITY + 4 * CERTIFICATE + 60
    with mesh.admins() as admins:
        history = {node: [] for node in admins}
        while True:
            for node, admin in admins.items():
                identity = admin.get("/identity")
                assert identity["certificate"]["expires_in_seconds"] > 0, f"{node} is without a valid certificate: {identity}"
                seen = (identity["certificate"]["serial"], frozenset(roots(identity)))
                if seen not in history[node]:
                    history[node].append(seen)
            # Compared with the root that was there first: it is gone everywhere.
            if all(not old[node] & history[node][-1][1] for node in history):
                break
            assert time.time() < deadline, f"no rotation until now: {history}"
            time.sleep(1)
        last = {node: admin.get("/identity") for node, admin in admins.items()}
    # Some renewals more, by the new authority.
    time.sleep(CERTIFICATE)
    end = time.time()
    for node, seen in history.items():
        assert any(len(each) >= 2 and old[node] & each for _, each in seen), f"{node} never trusted both: {seen}"
        assert len({serial for serial, _ in seen}) >= 3, f"{node} had few certificates: {seen}"
        assert last[node]["last_error"] is None, last[node]
    assert len({frozenset(roots(identity)) for identity in last.values()}) == 1, last
    judged(report, f"a new authority after {end - began:.0f} s, certificates of {CERTIFICATE} s", loads, begin, end)
