"""Scaling, rolling restarts, deleted pods and an upgrade of Posthouse itself, all under load on every node.

Loads run the whole time: POSTs to `echo`, whose pods drain as Kubernetes asks (readiness, preStop), of which none may fail, quick
ones and some that take half a second; and GETs to `abrupt`, whose pods are gone at once, of which none may fail either, since they
may be sent again.
"""

import random
import time

import pytest

import kube


@pytest.fixture(scope="module")
def loads(mesh):
    post = ("--method", "POST", "--body", "100")
    with (
        mesh.load("steady", "--url", "http://echo.shop/", *post) as quick,
        mesh.load("slow", "--url", "http://echo.shop/delay/500", *post, rate=10) as slow,
        mesh.load("gets", "--url", "http://abrupt.shop/", rate=50) as abrupt,
    ):
        time.sleep(3)
        yield quick, slow, abrupt


def judged(report, mesh, loads, what, begin, end):
    """No request of any load failed between the two times, and each load was what it should be."""
    quick, slow, abrupt = (load.window(begin, end) for load in loads)
    report(
        f"{what}, {end - begin:.0f} s: {quick.ok:,} POSTs to draining pods at {mesh.rate_of(quick)}/s and {slow.ok:,} of 0.5 s each, "
        f"{quick.failed + slow.failed} failed; {abrupt.ok:,} GETs to abrupt pods, {abrupt.failed} failed; "
        f"slowest {quick.slowest_ms:.0f}, {slow.slowest_ms:.0f} and {abrupt.slowest_ms:.0f} ms"
    )
    for window in (quick, slow, abrupt):
        assert not window.failures and window.failed == 0, window.failures[:10]


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
    mesh.rolled_out()
    left = set(before.values())
    kube.until(
        "the old proxies have drained and are gone",
        lambda: not left & set(kube.kubectl("get", "pods", "-n", mesh.NAMESPACE, "-o", "name").replace("pod/", "").split()),
        seconds=120,
    )
    settle()
    end = time.time()
    after = mesh.proxies()
    assert set(before) == set(after) and not set(before.values()) & set(after.values())
    judged(report, mesh, loads, f"helm upgrade, {len(after)} proxies replaced", begin, end)
