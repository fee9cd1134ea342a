"""A cluster that goes from plain links to TLS, and back, under load, by the steps of docs/security.md. No request may fail."""

import time

import pytest

import kube
import trust

pytestmark = pytest.mark.own


def set_mode(mesh, mode, permissive=False):
    """helm upgrade, until every proxy runs in this mode."""
    before = set(mesh.proxies().values())
    mesh.install("--set", f"tls={mode},tlsPermissive={str(permissive).lower()}")
    kube.rolled_out("ds/posthouse", mesh.NAMESPACE)
    kube.until(
        "the old proxies have drained and are gone",
        lambda: not before & set(kube.kubectl("get", "pods", "-n", mesh.NAMESPACE, "-o", "name").replace("pod/", "").split()),
        seconds=120,
    )


def told(mesh):
    """Node -> mode, whether it is permissive, plain links that are open, plain links that were made."""
    with mesh.admins() as admins:
        identities = {node: admin.get("/identity") for node, admin in admins.items()}
        return {
            node: (
                identities[node]["tls"], identities[node].get("permissive"),
                admin.metric("posthouse_link_plain_connections"), admin.metric("posthouse_link_plain_connections_total"),
            )
            for node, admin in admins.items()
        }


def plain_links(links):
    """What comes of a link without TLS to each node, from another one's address."""
    return [links.dial(source, target, tls=False)["outcome"] for source, target in ((1, 2), (2, 3), (3, 1))]


@pytest.fixture
def off(mesh):
    try:
        set_mode(mesh, "off")
        assert {mode for mode, *_ in told(mesh).values()} == {"off"}
        yield
    finally:
        mesh.install()
        mesh.rolled_out()


def test_from_off_to_node_and_back_and_again(mesh, off, report, tmp_path):
    links = trust.Links(tmp_path)
    post = ("--url", "http://echo.shop/", "--method", "POST", "--body", "100")
    with mesh.load("migration", *post) as load:
        time.sleep(3)
        begin = time.time()

        set_mode(mesh, "node", permissive=True)
        during = time.time()
        kube.until(
            "all links are over TLS, and none without it was made for 10 s",
            lambda: (first := told(mesh), time.sleep(10)) and (now := told(mesh)) == first
            and all(state[:3] == ("node", True, 0) for state in now.values()),
            seconds=60,
        )
        assert plain_links(links) == ["taken"] * 3
        warned = mesh.posthouse("check", check=False).stdout
        assert "also takes links without TLS" in warned, warned

        set_mode(mesh, "node")
        assert {state[:2] for state in told(mesh).values()} == {("node", False)}
        assert plain_links(links) == ["refused"] * 3

        set_mode(mesh, "node", permissive=True)
        set_mode(mesh, "off")
        assert {mode for mode, *_ in told(mesh).values()} == {"off"}
        plainly = mesh.posthouse("check", check=False).stdout
        assert "its links are in the clear" in plainly, plainly

        time.sleep(5)
        end = time.time()
        window = load.window(begin, end)
        report(
            f"off, permissive, node, permissive, off in {end - begin:.0f} s, {during - begin:.0f} of them the first: "
            f"{window.ok:,} POSTs at {mesh.rate_of(window)}/s, {window.failed} failed; slowest {window.slowest_ms:.0f} ms"
        )
        assert not window.failures and window.failed == 0, window.failures[:10]
