"""A node that loses its power, its network or its kubelet, under load of idempotent requests from the others."""

import time

import pytest

import kube
import nodes

pytestmark = pytest.mark.own


@pytest.fixture(scope="module")
def load(mesh):
    with mesh.load("loss", "--url", "http://abrupt.shop/", "--timeout", "30s") as running:
        time.sleep(3)
        yield running


def whole_again(mesh, load):
    """Every node Ready, every workload in place, also the load's client of the lost node."""
    for number in (1, 2, 3):
        nodes.ready(number)
    for workload in ("ds/client", "ds/loss"):
        kube.rolled_out(workload, "shop")
    mesh.rolled_out()
    kube.until("three proxies", lambda: len(mesh.proxies()) == 3)
    for name in ("abrupt", "echo", "greeter"):
        kube.rolled_out(f"deploy/{name}", "shop")
    kube.rolled_out("sts/db", "shop")
    load.pods = kube.on_nodes("shop", "load=loss")


def told(report, what, window, lost):
    """How many failed, and how long after the loss the last one was sent."""
    last = max((sent - lost for sent, _, _ in window.failures), default=None)
    words = "none failed" if last is None else f"{window.failed} failed, the last of them sent {last:.1f} s after it"
    report(f"{what}: {window.ok:,} GETs from the other two nodes, {words}; slowest answer {window.slowest_ms / 1000:.1f} s")
    return last


def test_power_off(mesh, load, report):
    begin = time.time()
    time.sleep(2)
    lost = time.time()
    nodes.power_off(3)
    time.sleep(35)
    window = load.window(begin, time.time() - 2, nodes={"node-1", "node-2"})
    told(report, "node-3 powered off", window, lost)
    nodes.power_on(3)
    whole_again(mesh, load)
    assert window.failed == 0, window.failures[:10]


def test_network_cut_and_restored(mesh, load, report):
    begin = time.time()
    time.sleep(2)
    lost = time.time()
    nodes.sh("ip link set ${LINK}3 down")
    try:
        time.sleep(45)
    finally:
        nodes.sh("ip link set ${LINK}3 up")
    time.sleep(15)
    window = load.window(begin, time.time() - 2, nodes={"node-1", "node-2"})
    last = told(report, "node-3's network cut for 45 s", window, lost)
    whole_again(mesh, load)
    assert window.failed == 0, (last, window.failures[:10])


def test_kubelet_killed(mesh, load, report):
    """Its pods run on; Kubernetes calls them not ready after a while, and ready again later."""
    begin = time.time()
    nodes.sh("stop node-3.kubelet KILL")
    try:
        time.sleep(30)
    finally:
        nodes.power_on(3)
    time.sleep(5)
    window = load.window(begin, time.time() - 2)
    told(report, "node-3's kubelet killed for 30 s", window, begin)
    whole_again(mesh, load)
    assert window.failed == 0, window.failures[:10]
