"""Scaling, rolling restarts, deleted pods and an upgrade of Posthouse itself, all under load on every node.

Two loads run the whole time: POSTs to `echo`, whose pods drain as Kubernetes asks (readiness, preStop), of which none may fail;
and GETs to `abrupt`, whose pods are gone at once, of which none may fail either, since they may be sent again.
"""

import random
import time

import pytest

import kube


@pytest.fixture(scope="module")
def loads(mesh):
    with (
        mesh.load("steady", "--url", "http://echo.shop/", "--rate", mesh.RATE, "--method", "POST", "--body", "100") as drained,
        mesh.load("gets", "--url", "http://abrupt.shop/", "--rate", 50) as abrupt,
    ):
        time.sleep(3)
        yield drained, abrupt


def judged(report, mesh, loads, what, begin, end):
    """No request of either load failed between the two times, and the load was what it should be."""
    drained, abrupt = (load.window(begin, end) for load in loads)
    nodes = len(mesh.proxies())
    report(
        f"{what}, {end - begin:.0f} s: {drained.ok:,} POSTs to draining pods at {mesh.rate_of(drained)}/s, {drained.failed} failed; "
        f"{abrupt.ok:,} GETs to abrupt pods, {abrupt.failed} failed; slowest {drained.slowest_ms:.0f} and {abrupt.slowest_ms:.0f} ms"
    )
    assert not drained.failures and drained.failed == 0, drained.failures[:10]
    assert not abrupt.failures and abrupt.failed == 0, abrupt.failures[:10]
    assert mesh.rate_of(drained) >= 0.95 * mesh.RATE * nodes, "the load was not what it should be"


def settle():
    """The last requests of a window are those sent while the last change still settles."""
    time.sleep(5)


def test_scaling_from_3_to_12_and_back(mesh, loads, report):
    begin = time.time()
    for replicas in (12, 3):
        for name in ("echo", "abrupt"):
            kube.kubectl("scale", f"deploy/{name}", "-n", "shop", f"--replicas={replicas}")
        for name in ("echo", "abrupt"):
            kube.rolled_out(f"deploy/{name}", "shop")
            kube.until(f"{replicas} pods of {name}", lambda name=name: len(kube.pods("shop", f"app={name}")) == replicas)
        settle()
    judged(report, mesh, loads, "scale 3, 12, 3", begin, time.time())


def test_two_rolling_restarts(mesh, loads, report):
    begin = time.time()
    for _ in range(2):
        for name in ("echo", "abrupt"):
            kube.kubectl("rollout", "restart", f"deploy/{name}", "-n", "shop")
        for name in ("echo", "abrupt"):
            kube.rolled_out(f"deploy/{name}", "shop")
        settle()
    judged(report, mesh, loads, "two rolling restarts", begin, time.time())


def test_random_pods_are_deleted(mesh, loads, report):
    begin = time.time()
    for _ in range(5):
        for name in ("echo", "abrupt"):
            victim = random.choice(sorted(kube.pods("shop", f"app={name}")))
            kube.kubectl("delete", "pod", victim, "-n", "shop", "--wait=false")
        time.sleep(3)
    for name in ("echo", "abrupt"):
        kube.rolled_out(f"deploy/{name}", "shop")
    settle()
    judged(report, mesh, loads, "10 pods deleted", begin, time.time())


def test_helm_upgrade_replaces_every_proxy(mesh, loads, report):
    before = mesh.proxies()
    begin = time.time()
    mesh.install("--set", "podAnnotations.example\\.com/turn=second")
    kube.rolled_out("ds/posthouse", mesh.NAMESPACE)
    settle()
    end = time.time()
    after = mesh.proxies()
    assert set(before) == set(after) and not set(before.values()) & set(after.values())
    judged(report, mesh, loads, f"helm upgrade, {len(after)} proxies replaced", begin, end)
